"""Tables of one's own images."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from reid.core.files import open_table
from reid.core.tables import csv_value
from reid.core.types import ReidError
from reid.core.values import Field, Pid, parse_pid, parse_time

_KNOWN = ("path", "pid", "camid", "time")  # columns of a table of images; the others become free fields


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


CAMERA_DIGITS = 9  # more is no camera's number but a date or a serial number, and does not fit an array of int64
_CAMERA = re.compile(r"(?<![a-z0-9])c(?:am)?(\d+)(?:s\d+)?(?![a-z0-9])", re.IGNORECASE)


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
