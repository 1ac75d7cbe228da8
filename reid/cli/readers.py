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


class NoDataSets:
    """The command line without the checkout's `datasets`: galleries, searches and exports, but no data set by name."""

    DATASETS: Mapping[str, Any] = {}

    def read(self, name: str, root: str | os.PathLike[str]) -> Splits:
        raise ReidError(f"no data set {name!r} here: data sets are read by run_reid.py in the program's checkout")

    def distractors(self, splits: Splits) -> list[Sample]:
        raise ReidError(f"{splits.name} has no distractors beside its gallery: leave --distractors out")

    def multi_query(self, splits: Splits) -> list[Sample]:
        raise _elsewhere()

    def examine(self, splits: Splits) -> Any:
        raise _elsewhere()


def _elsewhere() -> ReidError:
    return ReidError(
        "the installed command reads no data sets: run `python run_reid.py` in a checkout of the program, "
        "which has the readers, with the same words"
    )


OWN = NoDataSets()
