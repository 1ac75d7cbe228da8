"""One's own images, without writing a class: a folder a person, or a CSV, as a data set or as records to index.

Folders: `ROOT/anna/c2_0001.jpg`. The person is the folder, the camera a token `c<N>` or `cam<N>` of the file name
(upper or lower case; `c2s1` as Market-1501 writes it will do). With `ROOT/{train,query,gallery}/anna/...` the split is
given; `train` may be left out, for evaluation only. The folders may have Market-1501's names, too.

Flat folders: where no person has a folder, the person is what stands before the camera: `0007_c2s1_000401_00.jpg` is
person 0007, of any number, by camera 2, of any number. As in Market-1501 the person -1 is junk, left out of training
and queries, and 0000 a distractor where the gallery alone holds it.

CSV: ROOT is the file, or a folder with one `*.csv`. The header holds `path,pid,camid` and, where the split is given,
`split` (train, query or gallery). A relative path starts at the CSV's folder; an absolute one stands as it is. A pid is
any text, a camid a whole number from 0 of at most nine digits. UTF-8; commas, semicolons or tabs between the columns.

Persons are numbered from 1 in the sorted order of their names; but in flat folders there are no distractors, no junk.

Where no split is given, the field's manner (CUHK03's new protocol): of the persons, sorted, the first, third, ... are
for training. Of each other person the first image of each camera is a query and the rest are gallery; if that leaves
the person none in the gallery, only the first camera's is a query, and a person's only image is gallery.
"""

from __future__ import annotations

import csv
import os
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from reid.core.files import absolute, open_table, some
from reid.core.images import is_image, list_folder, stem
from reid.core.tables import csv_value
from reid.core.types import DISTRACTOR, FOLDERS, JUNK, ReidError, Sample, Splits
from reid.core.values import Field, Pid, parse_pid, parse_time

_KNOWN = ("path", "pid", "camid", "time")  # columns of a table of images; the others become free fields
CAMERA_DIGITS = 9  # more is no camera's number but a date or a serial number, and does not fit an array of int64
_CAMERA = re.compile(r"(?<![a-z0-9])c(?:am)?(\d+)(?:s\d+)?(?![a-z0-9])", re.IGNORECASE)
SPLITS = tuple(FOLDERS)
COLUMNS = ("path", "pid", "camid")
_SEPARATORS = ",;\t"  # of a CSV
_LAYOUTS = (
    "a folder a person with the camera in the file name (anna/c2_0001.jpg), names of person and camera "
    "(0007_c2_0001.jpg), or a CSV with path,pid,camid"
)


class ImageRecord(NamedTuple):
    """An image file to index, and what is known of it."""

    path: str
    pid: Pid | None = None
    camid: int | None = None
    time: float | None = None
    fields: Mapping[str, Field] = {}


def read_table(table: str | os.PathLike[str]) -> list[ImageRecord]:
    """A CSV with a column path and any of pid, camid and time; further columns become free fields.

    Relative paths start at the CSV's folder; an empty value is an unknown one. Raises ReidError that names the line.
    """
    table = Path(table)
    images = []
    try:
        with open_table(table) as stream:
            reader = csv.DictReader(stream, skipinitialspace=True)
            header = [name.strip() for name in reader.fieldnames or []]
            if "path" not in header:
                raise ReidError(
                    f"{table}: expected a first line with path (and pid, camid, time, ...), it has "
                    f"{','.join(header) or 'nothing'}"
                )
            reader.fieldnames = header
            for row in reader:
                try:
                    images.append(_parse_row(row, table.parent))
                except ReidError as error:
                    raise ReidError(f"{table}, line {reader.line_num}: {error}") from None
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReidError(f"{table}: expected a CSV in UTF-8 ({error}); save it as one") from error
    return images


def _parse_row(row: Mapping[str, str | None], parent: Path) -> ImageRecord:
    if None in row:
        raise ReidError("has more values than the first line has names")
    values = {name: csv_value((value or "").strip()) for name, value in row.items()}
    if not values["path"]:
        raise ReidError("expected a path, got none")
    camid = values.get("camid", "")
    if camid and not camid.isdecimal():
        raise ReidError(f"expected a camid that is a whole number from 0, or nothing, got {camid!r}")
    return ImageRecord(
        os.path.abspath(parent / values["path"]),
        parse_pid(values.get("pid", "")),
        int(camid) if camid else None,
        parse_time(values["time"]) if values.get("time") else None,
        {name: value for name, value in values.items() if name not in _KNOWN and value},
    )


def camera_of(name: str) -> int | None:
    """The camera that a file name tells, without its suffix: 2 of "c2_0001" or "cam2-1"; None of none or of two, and of
    one of more than nine digits."""
    numbers = _CAMERA.findall(name)
    if any(len(number.lstrip("0")) > CAMERA_DIGITS for number in numbers):
        return None
    cameras = {int(number) for number in numbers}
    return cameras.pop() if len(cameras) == 1 else None


def person_of(name: str) -> str | None:
    """The person that a flat folder's file name tells, without its suffix: what stands before the camera, or None."""
    match = _CAMERA.search(name)
    return (name[: match.start()].rstrip("_- .") or None) if match else None


class _Row(NamedTuple):
    path: str
    person: str
    camid: int
    split: str  # one of SPLITS, or "" where none is given
    flat: bool = False  # the person is told by the file name


def read_own_images(root: str | os.PathLike[str]) -> Splits:
    """Reads one's own images at `root`. Raises ReidError, naming the file or the CSV's line, where they do not fit."""
    root = absolute(root)
    if root.is_file():
        rows, warnings = _read_csv(root)
        found = root.parent
    elif root.is_dir():
        tables = [
            root / name for name in list_folder(root) if name.lower().endswith(".csv") and (root / name).is_file()
        ]
        if len(tables) > 1:
            raise ReidError(f"folder: expected one CSV in {root}, found {some([t.name for t in tables])}; name it")
        rows, warnings = _read_csv(tables[0]) if tables else _read_folders(root)
        found = root
    else:
        raise ReidError(f"folder: no such folder or file: {root}; expected {_LAYOUTS}")

    nobody = _nobody(rows)
    named = sorted({row.person for row in rows} - nobody.keys())
    pids = {person: pid for pid, person in enumerate(named, start=1)} | nobody
    kept = [row for row in rows if row.split == "gallery" or pids[row.person] > 0]
    if len(kept) < len(rows):
        junk = len(rows) - len(kept)
        warnings.append(f"folder: left out {junk} images of training and queries that are nobody's (person -1)")
        rows = kept
    given = any(row.split for row in rows)
    lists: dict[str, list[Sample]] = {split: [] for split in SPLITS}
    if given:
        for row in rows:
            lists[row.split].append(Sample(row.path, pids[row.person], row.camid))
        if not lists["query"] or not lists["gallery"]:
            raise ReidError(
                f"folder: expected images for both query and gallery in {root}, found {len(lists['query'])} and "
                f"{len(lists['gallery'])}; give both, or no split at all to have the persons divided"
            )
        if not lists["train"]:
            warnings.append("folder: there are no training images: good for evaluation only")
    else:
        if len(named) < 2:
            raise ReidError(
                f"folder: expected two persons or more in {root}, found {len(named)}: nobody is left to test on"
            )
        divide([Sample(row.path, pids[row.person], row.camid) for row in rows], lists)
    train, query, gallery = (sorted(lists[split]) for split in SPLITS)
    return Splits("folder", str(found), train, query, gallery, None, warnings)


def divide(samples: Iterable[Sample], lists: dict[str, list[Sample]]) -> None:
    """Sorts `samples` (pids from 1, without gaps) into `lists` by the protocol of this module's docstring."""
    persons: dict[int, list[Sample]] = defaultdict(list)
    for sample in sorted(samples):
        persons[sample.pid].append(sample)
    for pid, images in sorted(persons.items()):
        if pid % 2 == 1:
            lists["train"] += images
            continue
        cameras = sorted({sample.camid for sample in images})
        queries = [next(sample for sample in images if sample.camid == camid) for camid in cameras]
        if len(queries) == len(images):
            queries = queries[:1] if len(images) > 1 else []
        lists["query"] += queries
        lists["gallery"] += [sample for sample in images if sample not in queries]


def _nobody(rows: list[_Row]) -> dict[str, int]:
    """The names in flat folders that are no person's, as Market-1501 has them: JUNK or DISTRACTOR."""
    told = {row.person for row in rows if row.flat}
    elsewhere = {row.person for row in rows if row.split != "gallery"}
    nobody = {name: DISTRACTOR for name in told - elsewhere if not name.strip("0")}
    return nobody | ({"-1": JUNK} if "-1" in told else {})


def _read_folders(root: Path) -> tuple[list[_Row], list[str]]:
    names = {split: (split, FOLDERS[split]) for split in SPLITS}  # query is query in both
    given = {split: name for split in SPLITS for name in names[split] if (root / name).is_dir()}
    for split, (own, market) in names.items():
        if own != market and (root / own).is_dir() and (root / market).is_dir():
            raise ReidError(f"folder: expected {own}/ or {market}/ for {split} in {root}, found both; keep one")
    if not given:
        rows, others = _read_persons(root, "")
    elif {"query", "gallery"} <= given.keys():
        rows, others = [], [name for name in list_folder(root) if name not in given.values()]
        for split, name in given.items():
            found, more = _read_persons(root / name, split)
            rows += found
            others += more
    else:
        raise ReidError(
            f"folder: expected both query/ and gallery/ in {root} (and train/, to train), "
            f"found {'/ and '.join(given.values())}/ alone; give both, or none of the three to have the persons divided"
        )
    if not rows:
        held = f"; it holds {some(others)}" if others else ""
        raise ReidError(f"folder: found no image in {root}{held}; expected {_LAYOUTS}")
    left_out = f"folder: left out {len(others)} files and folders that hold no images: {some(others)}"
    return rows, [left_out] if others else []


def _read_persons(root: Path, split: str) -> tuple[list[_Row], list[str]]:
    """The images of every person's folder, or of a flat folder, and the names of what is none."""
    rows, others, misfits = [], [], []
    names = list_folder(root)
    folders = [name for name in names if (root / name).is_dir()]
    beside = [name for name in names if name not in set(folders)]
    for person in folders:
        for name in list_folder(root / person):
            path = root / person / name
            if path.is_dir():
                raise ReidError(
                    f"folder: expected images in the person's folder {path.parent}, found folder {name}/; "
                    f"expected {_LAYOUTS}; where {path.parent} is the data set, name it"
                )
            if not is_image(name):
                others.append(f"{person}/{name}")
                continue
            camera = camera_of(stem(name))
            if camera is None:
                misfits.append(f"{person}/{name}")
            else:
                rows.append(_Row(str(path), person, camera, split))
    if misfits:
        raise ReidError(
            f"folder: expected one camera in every file name, such as c2_0001.jpg or cam2-1.jpg, but {len(misfits)} "
            f"in {root} have none, two, or one of over {CAMERA_DIGITS} digits: {some(misfits)}; rename them, or "
            "list them in a CSV"
        )
    flat = [name for name in beside if is_image(name)]
    if rows or not flat:
        return rows, beside + others
    for name in flat:
        who, camera = person_of(stem(name)), camera_of(stem(name))
        if who is None or camera is None:
            misfits.append(name)
        else:
            rows.append(_Row(str(root / name), who, camera, split, flat=True))
    if misfits:
        raise ReidError(
            f"folder: found {len(flat)} images in {root} and no folder a person, but {len(misfits)} of their names do "
            f"not tell person and camera as 0007_c2_0001.jpg does: {some(misfits)}; rename them, move them to a "
            "folder a person (anna/c2_0001.jpg), or list them in a CSV with path,pid,camid"
        )
    return rows, [name for name in names if name not in set(flat)] + others


def _read_csv(table: Path) -> tuple[list[_Row], list[str]]:
    rows: list[_Row] = []
    lines: dict[str, int] = {}  # of every path
    missing = []
    try:
        with open_table(table) as stream:
            separator = _separator(stream.readline())
            stream.seek(0)
            reader = csv.DictReader(stream, skipinitialspace=True, delimiter=separator)
            header = [name.strip() for name in reader.fieldnames or []]
            lacking = [name for name in COLUMNS if name not in header]
            if lacking:
                raise ReidError(
                    f"{table}: expected a first line with {','.join(COLUMNS)} (and split), separated by commas, "
                    f"semicolons or tabs; it has {','.join(header)[:200] or 'nothing'}; add {', '.join(lacking)}"
                )
            reader.fieldnames = header
            for values in reader:
                row = _parse_sample(values, f"{table}, line {reader.line_num}", table.parent, "split" in header)
                if row.path in lines:
                    raise ReidError(f"{table}, line {reader.line_num}: repeats the path of line {lines[row.path]}")
                lines[row.path] = reader.line_num
                if not os.path.isfile(row.path):
                    missing.append(f"line {reader.line_num}: {row.path}")
                rows.append(row)
    except (csv.Error, UnicodeDecodeError) as error:
        raise ReidError(f"{table}: expected a CSV in UTF-8 ({error}); save it as one") from error
    if missing:
        raise ReidError(
            f"{table}: {len(missing)} of {len(rows)} paths do not exist (relative ones start at the CSV's folder): "
            f"{some(missing)}"
        )
    if not rows:
        raise ReidError(f"{table}: expected a line an image below the header, found none")
    minus = (
        [f'{table}: pid "-1" is a person like any other here, not junk'] if any(r.person == "-1" for r in rows) else []
    )
    return rows, minus


def _separator(header: str) -> str:
    """What stands between the columns of a CSV: that by which most of COLUMNS are found."""
    found = {
        mark: {name.strip() for row in csv.reader([header], skipinitialspace=True, delimiter=mark) for name in row}
        for mark in _SEPARATORS
    }
    return max(found, key=lambda mark: len(found[mark] & set(COLUMNS)))


def _parse_sample(values: dict[str, str | None], where: str, parent: Path, has_split: bool) -> _Row:
    path, person, camid = (csv_value((values[name] or "").strip()) for name in COLUMNS)
    if not path or not person:
        raise ReidError(f"{where}: expected a path and a pid, got {path!r} and {person!r}")
    if not camid.isdecimal() or len(camid.lstrip("0")) > CAMERA_DIGITS:
        got = repr(camid) if len(camid) <= 40 else f"one of {len(camid)} characters"
        raise ReidError(
            f"{where}: expected a camid that is a whole number from 0 of at most {CAMERA_DIGITS} digits, got {got}; "
            "give every camera a number"
        )
    split = (values["split"] or "").strip() if has_split else ""
    if has_split and split not in SPLITS:
        raise ReidError(f"{where}: expected split to be {', '.join(SPLITS)}, got {split!r}")
    return _Row(os.path.abspath(parent / path), person, int(camid), split)
