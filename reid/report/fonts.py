"""Letters of every script in pictures: matplotlib's DejaVu, else a font of the system, else escapes.

DejaVu has Latin, Greek, Cyrillic, Arabic, Hebrew, Armenian and Georgian. Chinese, Japanese, Korean and others take a
font of the system, such as Noto; where there is none, a letter is drawn as its escape ("\\u674e"), which still tells
names apart, and never as a box.
"""

from __future__ import annotations

import functools
import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from PIL import ImageFont

from reid.core.terminal import printable

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_FOLDERS = (
    "/usr/share/fonts",
    "/usr/local/share/fonts",
    "~/.local/share/fonts",
    "~/.fonts",
    "/Library/Fonts",
    "/System/Library/Fonts",
)
_MANY = (
    "noto",
    "wqy",
    "droid",
    "cjk",
    "unifont",
    "arphic",
    "ipa",
    "takao",
    "nanum",
    "pingfang",
    "hiragino",
    "arial uni",
)
_NEVER = "\U0010ffff"  # no font has it: it is drawn as the font's box


def in_a_font(text: str, size: int) -> tuple[str, Font]:
    """The text as it is to be drawn, on one line, and a font of `size` pixels that has every letter of it."""
    text = printable(text)
    fonts = _fonts(size)
    first = next(fonts)
    lacking = _lacking(text, first)
    if not lacking:
        return text, first
    other = next((font for font in fonts if not _lacking(text, font)), None)
    if other is not None:
        return text, other
    return "".join(c.encode("unicode_escape").decode() if c in lacking else c for c in text), first


def _fonts(size: int) -> Iterator[Font]:
    """DejaVu, then the system's."""
    for file in _files():
        font = _open(file, size)
        if font is not None:
            yield font
    if not _files() or _open(_files()[0], size) is None:
        yield ImageFont.load_default(size=size)


@functools.cache
def _open(file: Path, size: int) -> Font | None:
    try:
        return ImageFont.truetype(file, size)
    except (OSError, ValueError):  # no font after all
        return None


@functools.cache
def _files() -> tuple[Path, ...]:
    spec = importlib.util.find_spec("matplotlib")  # found and not imported: that takes longer than a search
    folders = spec.submodule_search_locations if spec else None
    own = [Path(folder) / "mpl-data/fonts/ttf/DejaVuSans.ttf" for folder in folders or ()]
    found = [
        Path(place) / name
        for root in _FOLDERS
        for place, _, names in os.walk(os.path.expanduser(root))
        for name in names
        if name.lower().endswith((".ttf", ".ttc", ".otf")) and any(word in name.lower() for word in _MANY)
    ]
    return (
        *(file for file in own if file.is_file()),
        *sorted(found, key=lambda file: ("Regular" not in file.name, file)),
    )


@functools.cache
def _has(font: Font, letter: str) -> bool:
    return letter.isspace() or bytes(font.getmask(letter)) != bytes(font.getmask(_NEVER))


def _lacking(text: str, font: Font) -> set[str]:
    return {letter for letter in set(text) if not letter.isascii() and not _has(font, letter)}
