"""The one parser of Market-1501-like folders: sorted listing, name grammar, range checks, official counts.

A data set of this kind is a `Layout`, a few lines of facts; reading it is `read(LAYOUT, root)`.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from reid.core.files import absolute as absolute
from reid.core.files import some as some
from reid.core.images import is_image, list_folder
from reid.core.images import stem as stem
from reid.core.types import DISTRACTOR, JUNK, ReidError, Sample, Splits
from reid.core.types import FOLDERS as FOLDERS

_PID_AND_CAMERA = re.compile(r"(?P<pid>-?\d{1,9})_c(?P<camid>\d{1,9})(?!\d)")  # what any Market-like name tells
_CHOOSE_FOLDER = "one's own images are read as the data set folder"


@dataclass(frozen=True)
class Count:
    """What one split holds. `cameras` maps camid to images, and is empty where nobody published it."""

    images: int
    identities: int  # pids > 0: neither distractors nor junk
    cameras: Mapping[int, int] = field(default_factory=dict)
    distractors: int = 0
    junk: int = 0


@dataclass(frozen=True)
class Layout:
    """The facts of one data set in Market-1501's folders."""

    name: str  # key of datasets.DATASETS
    folders: tuple[str, ...]  # names it goes by under a parent folder, besides being the root itself
    pattern: re.Pattern[str]  # of a file name without its suffix; groups pid and camid
    grammar: str  # the same for a reader's eye
    pids: tuple[int, int]  # first and last that a name may hold
    cameras: int  # 1 to this
    obtain: str  # how one comes by the data set
    official: Mapping[str, Count] = field(default_factory=dict)  # split -> count; empty where none are published
    notice: str = ""  # said aloud on every read
    terms: str = ""  # on which it may be used, in its authors' words where they gave any
    more: Mapping[str, str] = field(default_factory=dict)  # "distractors", "multi_query" -> folder, which may be absent


def per_camera(*images: int) -> dict[int, int]:
    """Images of camera 1, 2, ... as `Count.cameras` holds them.

    >>> per_camera(5, 7)
    {1: 5, 2: 7}
    """
    return dict(enumerate(images, start=1))


def count(samples: Iterable[Sample]) -> Count:
    samples = list(samples)
    return Count(
        images=len(samples),
        identities=len({sample.pid for sample in samples if sample.pid > 0}),
        cameras=dict(sorted(Counter(sample.camid for sample in samples).items())),
        distractors=sum(sample.pid == DISTRACTOR for sample in samples),
        junk=sum(sample.pid == JUNK for sample in samples),
    )


def read(layout: Layout, root: str | os.PathLike[str]) -> Splits:
    """Reads the data set at `root`, which is its own folder or the parent of it.

    Raises ReidError where a folder is missing or empty, or a name does not fit. Counts never stop a read: they set
    `official_split` and `warnings`.
    """
    found = first_with_splits(candidates(root, layout.folders))
    if found is None:
        raise not_found(layout, root)
    return read_found(layout, found)


def read_found(layout: Layout, found: Path) -> Splits:
    """The same for the data set's own folder."""
    train, query, gallery = (read_folder(layout, found / folder) for folder in FOLDERS.values())
    warnings = [layout.notice] if layout.notice else []
    persons: dict[str, list[Sample]] = {}
    for split, samples in (("train", train), ("query", query)):
        persons[split] = [sample for sample in samples if sample.pid > 0]
        dropped = len(samples) - len(persons[split])
        if dropped:
            warnings.append(
                f"{layout.name}: left out {dropped} images of {FOLDERS[split]} that are nobody's (pid <= 0)"
            )
    splits = Splits(layout.name, str(found), persons["train"], persons["query"], gallery, None, warnings, layout.terms)
    if not layout.official:
        return splits
    differences = compare(splits, layout.official)
    return splits._replace(official_split=not differences, warnings=warnings + differences)


def compare(splits: Splits, official: Mapping[str, Count]) -> list[str]:
    """One line per kind of count (images, identities, images per camera) that differs from the official one."""
    mine = {split: count(getattr(splits, split)) for split in FOLDERS}
    kinds: dict[str, list[str]] = {"images": [], "identities": [], "images a camera": []}
    for split, theirs in official.items():
        ours = mine[split]
        for kind in ("images", "identities", "distractors", "junk"):
            a, b = getattr(ours, kind), getattr(theirs, kind)
            if a != b:
                line = "identities" if kind == "identities" else "images"
                kinds[line].append(f"{split} {a} {kind} (official {b})")
        if theirs.cameras and ours.images == theirs.images:  # else the difference of images says it already
            kinds["images a camera"] += [
                f"{split} c{camid} {ours.cameras.get(camid, 0)} images (official {theirs.cameras.get(camid, 0)})"
                for camid in sorted({*ours.cameras, *theirs.cameras})
                if ours.cameras.get(camid, 0) != theirs.cameras.get(camid, 0)
            ]
    return [f"not the official split: {', '.join(parts)}" for parts in kinds.values() if parts]


def candidates(root: str | os.PathLike[str], folders: Sequence[str]) -> Iterator[Path]:
    """Where a data set may lie: at `root`, in one of `folders` under it, or, as unpacked archives have it, in one of
    them in another of them."""
    top = absolute(root)
    yield top
    for outer in ("", *dict.fromkeys(Path(folder).parts[0] for folder in folders)):
        for inner in folders:
            yield top / outer / inner


def first_with_splits(candidates: Iterable[Path]) -> Path | None:
    """The first folder that holds bounding_box_train/ or bounding_box_test/."""
    for candidate in candidates:
        if any((candidate / FOLDERS[split]).is_dir() for split in ("train", "gallery")):
            return candidate
    return None


def not_found(layout: Layout, root: str | os.PathLike[str]) -> ReidError:
    return ReidError(
        f"{layout.name}: looked for {', '.join(FOLDERS.values())} in {absolute(root)}{seen(root)} and under it in "
        f"{', '.join(layout.folders)}; {layout.obtain}"
    )


def seen(root: str | os.PathLike[str]) -> str:
    """What is at `root` instead of a data set, in brackets, and what would read it."""
    path = absolute(root)
    if path.is_file():
        hint = "a CSV is read as the data set folder" if path.suffix.lower() == ".csv" else "name a folder"
        return f" (a file; {hint})"
    if not path.is_dir():
        return " (no such folder)"
    names = list_folder(path)
    if not names:
        return " (an empty folder)"
    own = {"query", "gallery"} <= set(names) or any(name.lower().endswith(".csv") for name in names)
    return f" (which holds {some(names)}{'; ' + _CHOOSE_FOLDER if own else ''})"


def read_folder(layout: Layout, folder: Path) -> list[Sample]:
    """The images of one folder by their names. ReidError where it is missing or empty, or a name does not fit."""
    names = [name for name in list_folder(folder) if is_image(name)] if folder.is_dir() else []
    if not names:
        there = list_folder(folder) if folder.is_dir() else []
        what = f"holds none but {some(there)}" if there else "is empty" if folder.is_dir() else "is missing"
        raise ReidError(f"{layout.name}: expected images in {folder}, which {what}; {layout.obtain}")
    samples, misfits = [], []
    for name in names:
        match = layout.pattern.fullmatch(stem(name))
        pid, camid = (int(match["pid"]), int(match["camid"])) if match else (0, 0)
        if match and layout.pids[0] <= pid <= layout.pids[1] and 1 <= camid <= layout.cameras:
            samples.append(Sample(str(folder / name), pid, camid))
        else:
            misfits.append(name)
    if misfits:
        raise ReidError(
            f"{layout.name}: expected names like {layout.grammar} in {folder}, but {len(misfits)} of {len(names)} do "
            f"not fit: {some(misfits)}{_strange(layout, misfits)}; rename them or move them away; {_CHOOSE_FOLDER}"
        )
    return samples


def _strange(layout: Layout, names: Sequence[str]) -> str:
    """The cameras and persons that Market-like names tell and that the data set has not, in brackets."""
    told = [match for name in names if (match := _PID_AND_CAMERA.match(name))]
    cameras = sorted({int(match["camid"]) for match in told} - set(range(1, layout.cameras + 1)))
    pids = sorted({pid for match in told if not layout.pids[0] <= (pid := int(match["pid"])) <= layout.pids[1]})
    parts = [
        f"{what} {some([str(n) for n in numbers])}"
        for what, numbers in (("camera", cameras), ("person", pids))
        if numbers
    ]
    return f" ({', '.join(parts)}: {layout.name} has none such)" if parts else ""
