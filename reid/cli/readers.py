"""The data sets that --dataset names: handed to the command line by whoever starts it.

`run_reid.py` hands it the package `datasets`, with every benchmark.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any, Protocol

from reid.core.types import ReidError, Sample, Splits


class Readers(Protocol):
    """What the command line needs to know of data sets."""

    @property
    def DATASETS(self) -> Mapping[str, Any]:
        """The names that `read` takes."""

    def read(self, name: str, root: str | os.PathLike[str]) -> Splits:
        """Reads a data set at its own folder, or at the parent of it. Raises ReidError."""

    def distractors(self, splits: Splits) -> list[Sample]:
        """Images of nobody beside the gallery. Raises ReidError where there are none."""

    def multi_query(self, splits: Splits) -> list[Sample]:
        """The images of the query persons by the query cameras, sorted by path."""

    def examine(self, splits: Splits) -> Any:
        """The report of the data doctor: `ok`, `as_dict()` and `lines()`."""


class OwnImages:
    """One's own images alone, as the installed command reads them: the checkout's `datasets` has the benchmarks."""

    DATASETS: Mapping[str, Any] = {"folder": None}

    def read(self, name: str, root: str | os.PathLike[str]) -> Splits:
        if name not in self.DATASETS:
            raise _elsewhere(f"the data set {name}")
        from reid.core.own_images import read_own_images  # not above: it takes longer than `gallery info`

        return read_own_images(root)

    def distractors(self, splits: Splits) -> list[Sample]:
        raise ReidError(f"{splits.name} has no distractors beside its gallery: leave --distractors out")

    def multi_query(self, splits: Splits) -> list[Sample]:
        asked = {(sample.pid, sample.camid) for sample in splits.query}
        return sorted(s for s in [*splits.query, *splits.gallery] if (s.pid, s.camid) in asked)

    def examine(self, splits: Splits) -> Any:
        raise _elsewhere("check-data")


def _elsewhere(what: str) -> ReidError:
    return ReidError(
        f"the installed command reads one's own images (--dataset folder) alone; for {what} run "
        "`python run_reid.py` in a checkout of the program with the same words"
    )


OWN = OwnImages()
