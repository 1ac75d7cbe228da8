"""Text for people to read: no control sequence of a file's name reaches a terminal, a page or a picture."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Iterator
from typing import Any, TextIO

# C0, delete and C1; what turns the direction of writing; ends of lines but \n
_CONTROL = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_UNSAFE, _ANY = re.compile(f"[{_CONTROL}]"), re.compile(f"[{_CONTROL}\t\n\ud800-\udfff]")


def printable(text: str) -> str:
    """On one line: control characters, and bytes of file names that are no text, as escapes ("\\x1b", "\\udcff")."""
    return _ANY.sub(_escaped, text)


def _escaped(match: re.Match[str]) -> str:
    return match[0].encode("unicode_escape").decode()


class _Shown:
    """A stream that writes control characters as escapes, as well as what its encoding lacks."""

    def __init__(self, stream: TextIO, kept: str) -> None:
        self._stream, self._kept = stream, kept

    def write(self, text: str) -> int:
        shown = _UNSAFE.sub(lambda match: match[0] if match[0] in self._kept else _escaped(match), text)
        encoding = getattr(self._stream, "encoding", None) or "utf-8"
        self._stream.write(shown.encode(encoding, "backslashreplace").decode(encoding))
        return len(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def safe_streams() -> Iterator[None]:
    """In it, what is printed to stdout and stderr reaches them without control characters; bars return to their line's
    start on stderr. Names that the streams' encoding lacks are escaped."""
    out: Any = _Shown(sys.stdout, "")
    err: Any = _Shown(sys.stderr, "\r")
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        yield
