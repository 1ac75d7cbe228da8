"""Folders on disk -> lists of samples. No torch.

>>> import datasets
>>> splits = datasets.read("market1501", "/data/Market-1501-v15.09.15")  # doctest: +SKIP
>>> splits.train[0]  # doctest: +SKIP
Sample(path='/data/.../bounding_box_train/0002_c1s1_000451_03.jpg', pid=2, camid=1)

A new data set is a module with `read(root: Path) -> Splits` and a line in `DATASETS`; official counts, where there
are any, a line in `OFFICIAL`.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from datasets import cuhk03np, dukemtmc, folder, market1501, parse
from reid.types import ReidError, Splits


def _read_synthetic(root: Path) -> Splits:
    from datasets import synthetic  # not above: it is also a program, `python -m datasets.synthetic`

    return synthetic.read(root)


DATASETS: dict[str, Callable[[Path], Splits]] = {
    "market1501": market1501.read,
    "dukemtmc": dukemtmc.read,
    "cuhk03np_labeled": partial(cuhk03np.read, "labeled"),
    "cuhk03np_detected": partial(cuhk03np.read, "detected"),
    "folder": folder.read,
    "synthetic": _read_synthetic,
}

OFFICIAL: dict[str, Mapping[str, parse.Count]] = {
    layout.name: layout.official for layout in (market1501.LAYOUT, dukemtmc.LAYOUT, *cuhk03np.LAYOUTS.values())
}


def read(name: str, root: str | os.PathLike[str]) -> Splits:
    """Reads data set `name` at `root`: its own folder, or the parent of it (for `folder` also a CSV file).

    Raises ReidError for an unknown name, a missing or empty folder, and file names that do not fit.
    """
    if name not in DATASETS:
        raise ReidError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name](parse.absolute(root))
