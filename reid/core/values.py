"""What people write of persons, times and ages: parsed and shown."""

from __future__ import annotations

import math
import re
from datetime import UTC, datetime

from reid.core.types import ReidError

Pid = int | str
Field = str | int | float


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
            raise ReidError(
                f"a time is 2026-11-26T19:30 (UTC), or with a zone, or seconds since 1970: got {text!r}"
            ) from None
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
