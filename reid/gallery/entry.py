"""The values that a gallery holds of an image, checked as they come in. Every function raises ReidError."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Mapping
from typing import Any, NamedTuple, SupportsIndex

from reid.core.types import ReidError
from reid.core.values import Field, Pid


def stored(path: str | os.PathLike[str]) -> str | bytes:
    """A path as SQLite holds it: text, or its bytes where they are not UTF-8."""
    name = os.fspath(path)
    try:
        name.encode()
    except UnicodeEncodeError:
        return os.fsencode(name)
    return name


def as_integer(value: SupportsIndex | None) -> int | None:
    return None if value is None else _in_range(operator.index(value))


def _in_range(value: int) -> int:
    if not -(2**63) <= value < 2**63:
        raise ReidError(f"a gallery's numbers have 64 bits, got {value}")
    return value


def as_pid(value: SupportsIndex | str | None) -> Pid | None:
    if isinstance(value, str):
        if not value or isinstance(stored(value), bytes):
            raise ReidError(f"a pid is a number or a name, got {value!r}; None is for an unknown person")
        return str(value)
    return as_integer(value)


def as_seconds(value: float | None) -> float | None:
    if value is None:
        return None
    if not math.isfinite(value):
        raise ReidError(f"a time is a finite number of seconds since 1970, got {value}; None is for an unknown one")
    return float(value)


def as_digest(value: str | None) -> str | None:
    if value is not None and (len(value) != 64 or set(value) - set("0123456789abcdef")):
        raise ReidError(f"a hash is a SHA-256 of 64 hexadecimal digits, got {value!r}; see hash_file")
    return value


def as_json(fields: Mapping[str, Field] | None) -> str:
    wrong = [f"{k!r}: {v!r}" for k, v in (fields or {}).items() if not isinstance(k, str) or not _is_field(v)]
    if wrong:
        raise ReidError(f"free fields are text and finite numbers under names, got {', '.join(wrong)}")
    return json.dumps(dict(fields or {}))


def _is_field(value: object) -> bool:
    return isinstance(value, str) or (
        isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    )


class Entry(NamedTuple):
    """One image of a gallery. None: unknown."""

    key: int  # given in order from 0, never twice: a key always names the same picture
    path: str  # as it was given to `add`
    pid: Pid | None = None
    camid: int | None = None
    time: float | None = None  # of capture, seconds since 1970, UTC
    added: float = 0.0  # likewise, when it came into the gallery
    hash: str | None = None  # SHA-256 of the file's content, hexadecimal
    fields: Mapping[str, Field] = {}


class Info(NamedTuple):
    """What a gallery holds."""

    format_version: int
    fingerprint: str
    input_size: tuple[int, int]
    dimension: int
    metric: str
    has_model: bool
    images: int
    people: int  # pids, junk and distractors not counted
    cameras: dict[int, int]  # camid -> images; those of unknown cameras are in none
    times: tuple[float, float] | None  # first and last of capture
    added: tuple[float, float] | None
    files: int | None  # that hold vectors; of these three, what a server of Milvus does not tell is None
    removed: int | None  # vectors of removed images, which `compact` takes out of the files
    bytes: int | None  # of the folder
    preset: str | None = None  # of a folder
    learnt: Mapping[str, Any] | None = None  # of a quantizer or an index: what it was fitted to, what was measured


class Forgotten(NamedTuple):
    """What `forget` did."""

    images: int
    proof: str  # what was looked at and found free of them, and what was not
