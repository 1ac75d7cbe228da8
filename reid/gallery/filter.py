"""Which images of a gallery: conditions that become SQL, with every value a parameter."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

from reid.core.types import ReidError
from reid.gallery.entry import Field, stored


@dataclass(frozen=True)
class Filter:
    """Images that meet every condition given; with none, all images. An image whose value is unknown does not meet
    `camids`, `pids`, `after`, `before` and `fields`, and is not left out by `exclude_camids`.
    """

    camids: Sequence[int] = ()
    exclude_camids: Sequence[int] = ()
    pids: Sequence[int | str] = ()
    after: float | None = None  # time of capture, seconds since 1970 (UTC), this second included
    before: float | None = None  # likewise, not included
    fields: Mapping[str, Field] = field(default_factory=dict)  # compared as text
    keys: Sequence[int] | None = None
    exclude_keys: Sequence[int] = ()
    paths: Sequence[str | os.PathLike[str]] | None = None  # as they were given to `add`

    @property
    def is_empty(self) -> bool:
        return not self.where()[1]

    def where(self) -> tuple[str, tuple[str | int | float | bytes, ...]]:
        """An SQL condition on the table `images`, and its parameters."""
        parts: list[str] = ["1"]
        values: list[str | int | float | bytes] = []

        def add(sql: str, *parameters: str | int | float | bytes) -> None:
            parts.append(sql)
            values.extend(parameters)

        def among(numbers: Sequence[int | str]) -> str:
            return json.dumps([x if isinstance(x, str) else int(x) for x in numbers])

        one_of = "(SELECT value FROM json_each(?))"
        if self.camids:
            add(f"camid IN {one_of}", among(self.camids))
        if self.exclude_camids:
            add(f"(camid IS NULL OR camid NOT IN {one_of})", among(self.exclude_camids))
        if self.pids:
            add(f"pid IN {one_of}", among(self.pids))
        if self.after is not None:
            add("time >= ?", float(self.after))
        if self.before is not None:
            add("time < ?", float(self.before))
        for name, value in self.fields.items():
            equal = "json_each.key = ? AND CAST(json_each.value AS TEXT) = CAST(? AS TEXT)"
            add(f"EXISTS (SELECT 1 FROM json_each(images.fields) WHERE {equal})", name, value)
        if self.keys is not None:
            add(f"key IN {one_of}", among(self.keys))
        if self.exclude_keys:
            add(f"key NOT IN {one_of}", among(self.exclude_keys))
        if self.paths is not None:
            texts = [stored(path) for path in self.paths]
            strange = [text for text in texts if isinstance(text, bytes)]
            marks = "".join(" OR path = ?" for _ in strange)
            add(f"(path IN {one_of}{marks})", json.dumps([t for t in texts if isinstance(t, str)]), *strange)
        return " AND ".join(parts), tuple(values)


def parse_time(text: str) -> float:
    """ISO 8601, or seconds since 1970 -> seconds since 1970; UTC where no zone is given. Raises ReidError.

    >>> parse_time("1970-01-02T00:00:30+00:00"), parse_time("1970-01-02"), parse_time("12.5")
    (86430.0, 86400.0, 12.5)
    """
    try:
        seconds = float(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text.strip())
        except ValueError:
            raise ReidError(f"a time is 2026-11-26T19:30 (UTC), or with a zone, or seconds since 1970: got {text!r}"
                            ) from None  # fmt: skip
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise ReidError(f"a time is a finite number of seconds since 1970, got {text!r}")
    return seconds


def show_time(seconds: float | None) -> str:
    """ISO 8601 in UTC, "" for None.

    >>> show_time(86430.0)
    '1970-01-02T00:00:30+00:00'
    """
    try:
        return "" if seconds is None else datetime.fromtimestamp(seconds, UTC).isoformat()
    except (ValueError, OverflowError, OSError):
        return str(seconds)


_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def parse_age(text: str) -> float:
    """Seconds of an age: 90s, 15m, 12h, 30d or 4w. Raises ReidError.

    >>> parse_age("30d")
    2592000.0
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip())
    if not match:
        raise ReidError(f"an age is a number and s, m, h, d or w, such as 30d: got {text!r}")
    return float(match[1]) * _UNITS[match[2]]


def parse_pid(text: str) -> int | str | None:
    """A person's number where the text is one as it is written, otherwise a name; None for nothing.

    >>> parse_pid("7"), parse_pid("-1"), parse_pid("007"), parse_pid("anna"), parse_pid(" ")
    (7, -1, '007', 'anna', None)
    """
    text = text.strip()
    return int(text) if re.fullmatch(r"0|-?[1-9]\d{0,17}", text) else text or None
