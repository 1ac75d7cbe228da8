"""Work in threads: numpy lets go of the interpreter while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Job = TypeVar("Job")


def together(run: Callable[[Job], object], jobs: Sequence[Job]) -> None:
    """Runs the jobs in as many threads as OpenMP has."""
    if len(jobs) == 1:
        run(jobs[0])
        return
    with ThreadPoolExecutor(int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)) as pool:
        for _ in pool.map(run, jobs):
            pass
