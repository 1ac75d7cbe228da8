"""MSMT17 (Wei et al., "Person Transfer GAN to Bridge Domain Gap for Person Re-Identification", CVPR 2018).

`MSMT17_V1` holds train/ and test/, `MSMT17_V2` the same pictures with the faces blurred in mask_train_v2/ and
mask_test_v2/; both hold list_train.txt, list_val.txt, list_query.txt and list_gallery.txt. A line of a list is an image
and its person, `0000/0000_000_01_0303morning_0008_0.jpg 0`; the third number of the name is the camera, 1 to 15.

Where both versions lie in the folder that is named, V1 is read, aloud, as torchreid and fastreid do: V2 came later, and
the figures of the paper and of torchreid are V1's. Name MSMT17_V2 itself to have V2. Figures of the two are not mixed.

Training is list_train and list_val together (32,621 images), the published count. The lists number the persons of
training and those of the test from 0 each; here a person of training is its number + 1 (1 to 1041), one of the test its
number + 1042 (1042 to 4101). No distractors, no junk. Counts: the paper.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from datasets import parse
from reid.core.images import is_image, list_folder
from reid.core.types import ReidError, Sample, Splits

NAME = "msmt17"
LISTS = {"train": ("list_train.txt", "list_val.txt"), "query": ("list_query.txt",), "gallery": ("list_gallery.txt",)}
PERSONS = {"train": 1041, "test": 3060}
CAMERAS = 15
OFFICIAL: Mapping[str, parse.Count] = {
    "train": parse.Count(32621, 1041),
    "query": parse.Count(11659, 3060),
    "gallery": parse.Count(82161, 3060),
}
_FOLDERS = ("MSMT17_V1", "MSMT17_V2", "MSMT17", "msmt17")
_VERSIONS = {1: {"train": "train", "test": "test"}, 2: {"train": "mask_train_v2", "test": "mask_test_v2"}}
_IMAGE = re.compile(r"(?P<folder>\d{4})/(?P<pid>\d{4})_\d{1,9}_(?P<camid>\d{2})_[A-Za-z0-9_]+")
_LINE = "0000/0000_000_01_0303morning_0008_0.jpg 0"
TERMS = "MSMT17 is given by its authors, for research, to those who ask them"
_OBTAIN = f"{TERMS}: unpack it and name its folder"


class _Found(NamedTuple):
    version: int  # 1 or 2
    root: Path
    folders: dict[str, Path]  # "train", "test" -> where the images are


def read(root: Path) -> Splits:
    """Reads MSMT17_V1 or MSMT17_V2 at `root`, or under it.

    Raises ReidError where a list or a listed image is missing, and for lines that do not fit, by their numbers.
    """
    places = [place for path in parse.candidates(root, _FOLDERS) for place in _look(path)]
    if not places:
        raise ReidError(
            f"{NAME}: looked for list_train.txt beside train/ (V1) or mask_train_v2/ (V2) in {parse.absolute(root)}"
            f"{parse.seen(root)} and under it in {', '.join(_FOLDERS)}; {_OBTAIN}"
        )
    found = min(places, key=lambda place: place.version)  # the first of the lowest version
    warnings = []
    if any(place.version == 2 for place in places) and found.version == 1:
        warnings.append(
            f"{NAME}: took V1, {found.root}, of the two versions there; name MSMT17_V2 itself for V2 (blurred faces)"
        )
    if found.version == 2:
        warnings.append(f"{NAME}: this is V2, whose faces are blurred: compare with figures of V2 only")
    lists: dict[str, list[Sample]] = {}
    for split, names in LISTS.items():
        side = "train" if split == "train" else "test"
        read_already: dict[str, str] = {}  # image -> list and line
        samples: list[Sample] = []
        for name in names:
            samples += _read_list(found.root / name, found.folders[side], side, read_already)
        lists[split] = sorted(samples)
    splits = Splits(NAME, str(found.root), lists["train"], lists["query"], lists["gallery"], None, warnings, TERMS)
    differences = parse.compare(splits, OFFICIAL)
    return splits._replace(official_split=not differences, warnings=warnings + differences)


def _look(path: Path) -> list[_Found]:
    """The versions that lie in `path` itself: none, one, or both."""
    if not any((path / name).is_file() for names in LISTS.values() for name in names):
        return []
    there = {name.lower(): path / name for name in list_folder(path)}
    return [
        _Found(2 if path.name.upper().endswith("_V2") else version, path, {k: there[v] for k, v in folders.items()})
        for version, folders in _VERSIONS.items()
        if all(folder in there and there[folder].is_dir() for folder in folders.values())
    ]


def _read_list(path: Path, folder: Path, side: str, read_already: dict[str, str]) -> list[Sample]:
    """The samples of one list. `read_already` gets its images, and refuses those that it holds."""
    if not path.is_file():
        raise ReidError(f"{NAME}: expected {path}, which is missing; {_OBTAIN}")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ReidError(f"{NAME}: expected lines like {_LINE!r} in {path}, could not read it: {error}") from error
    first = 1 if side == "train" else 1 + PERSONS["train"]
    samples: list[Sample] = []
    misfits, missing = [], []
    held: dict[str, set[str]] = {}  # person's folder -> file names
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, trouble = _check_line(line, PERSONS[side])
        if not trouble and image in read_already:
            trouble = f"repeats {read_already[image]}"
        if trouble:
            misfits.append(f"line {number} {trouble}")
            continue
        read_already[image] = f"line {number} of {path.name}"
        person, name = image.split("/")
        if person not in held:
            held[person] = set(os.listdir(folder / person)) if (folder / person).is_dir() else set()
        if name not in held[person]:
            missing.append(image)
        match = _IMAGE.match(image)
        assert match is not None  # as _check_line found
        samples.append(Sample(str(folder / image), first + int(match["pid"]), int(match["camid"])))
    if misfits:
        raise ReidError(
            f"{NAME}: expected lines like {_LINE!r} in {path}, but {len(misfits)} of {len(lines)} do not fit: "
            f"{parse.some(misfits)}; get the list anew"
        )
    if missing:
        raise ReidError(
            f"{NAME}: {len(missing)} of the {len(samples)} images of {path.name} are not in {folder}: "
            f"{parse.some(missing)}; unpack the archive anew"
        )
    if not samples:
        raise ReidError(f"{NAME}: expected lines like {_LINE!r} in {path}, which is empty; get the list anew")
    return samples


def _check_line(line: str, persons: int) -> tuple[str, str]:
    """The image that a line names, and what is wrong with the line, "" where nothing is."""
    image, _, label = line.strip().rpartition(" ")
    shown = line if len(line) <= 80 else f"{line[:80]}..."
    match = _IMAGE.fullmatch(parse.stem(image)) if is_image(image) else None
    if match is None or not (label.isascii() and label.isdecimal() and len(label) <= 9):
        outside = image.startswith("/") or ".." in image.split("/")
        return "", f"is {shown!r}" + (", a path outside the folder" if outside else "")
    if not match["folder"] == match["pid"] == f"{int(label):04d}":
        return "", f"is {shown!r}: folder {match['folder']}, name {match['pid']} and label {label} contradict"
    if int(label) >= persons or not 1 <= int(match["camid"]) <= CAMERAS:
        return "", f"is {shown!r}: expected a person from 0 to {persons - 1} and a camera from 1 to {CAMERAS}"
    return image, ""
