"""Work in threads: numpy lets go of the interpreter while it computes."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from threading import current_thread
from typing import TypeVar

import numpy as np
from threadpoolctl import ThreadpoolController

Job = TypeVar("Job")

_NAME = "reid.parallel_map"


def parallel_map(run: Callable[[Job], object], jobs: Sequence[Job]) -> None:
    """Runs the jobs in as many threads as OpenMP has; those of a job, in its own thread."""
    if len(jobs) == 1 or current_thread().name.startswith(_NAME):
        for job in jobs:
            run(job)
        return
    for _ in _pool(_threads(), os.getpid()).map(run, jobs):
        pass


def pieces(count: int, size: int = 1024) -> list[slice]:
    """Slices of at most `size` that make up 0 .. count, as many as keep all threads at work."""
    size = max(1, min(size, -(-count // _threads())))
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def multiply(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """left (n, d) @ right (d, m), in as many threads as OpenMP has, also within `threads_of_ours`."""
    found = np.empty((len(left), right.shape[1]), np.result_type(left, right))
    parallel_map(lambda part: np.matmul(left[part], right, out=found[part]), pieces(len(left)))
    return found


@contextmanager
def threads_of_ours() -> Iterator[None]:
    """In it, BLAS multiplies in the thread that calls it.

    Threads of its own go on spinning for a while after each product, in the way of those of `parallel_map`.
    """
    with _libraries().limit(limits=1, user_api="blas"):
        yield


@cache
def _pool(threads: int, process: int) -> ThreadPoolExecutor:
    """Of this process: a fork has none of the threads."""
    return ThreadPoolExecutor(threads, thread_name_prefix=_NAME)


def _threads() -> int:
    first = os.environ.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # "2,1": of the outermost level, and within
    return int(first) if first.isdecimal() and int(first) > 0 else os.cpu_count() or 1


@cache
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()
