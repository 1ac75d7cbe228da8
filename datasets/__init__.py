"""Folders on disk -> lists of samples. No torch.

>>> import datasets
>>> splits = datasets.read("market1501", "/data/Market-1501-v15.09.15")  # doctest: +SKIP
>>> splits.train[0]  # doctest: +SKIP
Sample(path='/data/.../bounding_box_train/0002_c1s1_000451_03.jpg', pid=2, camid=1)

Every data set is taken as its authors distribute it: its own folder, the archive's folder in itself, or the one above;
suffixes in capitals or twice (`.jpg.jpg`); what is no image (readme.txt, Thumbs.db, .DS_Store, a .mat) is passed over.

    market1501           bounding_box_train/, query/, bounding_box_test/; images/ and gt_bbox/ where they are there
    dukemtmc             the same folders
    cuhk03np_labeled     labeled/ of cuhk03-np, or cuhk-03.mat and the new protocol's split file
    cuhk03np_detected    likewise detected/
    msmt17               MSMT17_V1 (taken where both are there) or MSMT17_V2: two folders and four lists
    folder               one's own images: a folder a person, names such as 0007_c2_0001.jpg, or a CSV
    synthetic            people that the program draws

A new data set is a module with `read(root: Path) -> Splits` and a line in `DATASETS`; official counts, where there
are any, a line in `OFFICIAL`. Where its authors say on which terms it may be used, the splits hold that.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from datasets import cuhk03np, dukemtmc, folder, market1501, msmt17, parse
from reid.core.types import DISTRACTOR, ReidError, Sample, Splits

if TYPE_CHECKING:
    from datasets.doctor import Report


def _read_synthetic(root: Path) -> Splits:
    from datasets import synthetic  # not above: it is also a program, `python -m datasets.synthetic`

    return synthetic.read(root)


DATASETS: dict[str, Callable[[Path], Splits]] = {
    "market1501": market1501.read,
    "dukemtmc": dukemtmc.read,
    "cuhk03np_labeled": partial(cuhk03np.read, "labeled"),
    "cuhk03np_detected": partial(cuhk03np.read, "detected"),
    "msmt17": msmt17.read,
    "folder": folder.read,
    "synthetic": _read_synthetic,
}

_LAYOUTS = {layout.name: layout for layout in (market1501.LAYOUT, dukemtmc.LAYOUT, *cuhk03np.LAYOUTS.values())}

OFFICIAL: dict[str, Mapping[str, parse.Count]] = {
    **{layout.name: layout.official for layout in _LAYOUTS.values()},
    msmt17.NAME: msmt17.OFFICIAL,
}


def read(name: str, root: str | os.PathLike[str]) -> Splits:
    """Reads data set `name` at `root`: its own folder, or the parent of it (for `folder` also a CSV file).

    Raises ReidError for an unknown name, a missing or empty folder, and file names that do not fit.
    """
    if name not in DATASETS:
        raise ReidError(f"unknown data set {name!r}; choose one of {', '.join(DATASETS)}")
    return DATASETS[name](parse.absolute(root))


def distractors(splits: Splits) -> list[Sample]:
    """Images of nobody that a data set has beside its gallery (Market-1501: 500,000 in images/), pid DISTRACTOR.

    Raises ReidError where it has none.
    """
    if splits.name not in _LAYOUTS or not _LAYOUTS[splits.name].more:
        raise ReidError(f"{splits.name} has no distractors beside its gallery: leave --distractors out")
    layout = _LAYOUTS[splits.name]
    found = parse.read_folder(layout, Path(splits.root) / layout.more["distractors"])
    return [sample._replace(pid=DISTRACTOR) for sample in found]


def multi_query(splits: Splits) -> list[Sample]:
    """The images of the query persons by the query cameras that multi-query evaluation may use, sorted by path.

    Market-1501 has them in gt_bbox/. Elsewhere, or where that is absent, they are the query images themselves and the
    gallery's of a query's person by its own camera, which the protocol leaves out of that query's ranking.
    """
    asked = {(sample.pid, sample.camid) for sample in splits.query}
    layout = _LAYOUTS.get(splits.name)
    samples = [*splits.query, *splits.gallery]
    if layout and layout.more and (folder := Path(splits.root) / layout.more["multi_query"]).is_dir():
        samples = parse.read_folder(layout, folder)
    return sorted(sample for sample in samples if (sample.pid, sample.camid) in asked)


def examine(splits: Splits) -> Report:
    """What the data doctor finds wrong with what `read` gave; see `datasets.doctor`."""
    from datasets import doctor  # not above: it reads pictures

    return doctor.examine(splits)
