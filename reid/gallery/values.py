"""The values that a gallery holds of an image, checked as they come in. Every function raises ReidError."""

from __future__ import annotations

import json
import math
import operator
import os
from collections.abc import Mapping
from typing import SupportsIndex

from reid.core.types import ReidError

Pid = int | str
Field = str | int | float


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
