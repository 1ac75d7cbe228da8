"""Image files."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from reid.core.types import ReidError

IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files: those named (also by patterns), and those in the named folders and below, sorted."""
    found: set[Path] = set()
    matched = [[p] if os.path.exists(p) else sorted(glob.glob(p, recursive=True)) or [p] for p in places]
    for place in (Path(path) for paths in matched for path in paths):
        if not place.exists():
            raise ReidError(f"no image or folder at {place}")
        inside = place.rglob("*") if place.is_dir() else [place]
        images = [p for p in inside if p.is_file() and (p == place or p.suffix.lower() in IMAGE_SUFFIXES)]
        if not images:
            raise ReidError(f"no images in {place}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and below")
        found.update(images)
    return sorted(found)


def find_bad(paths: Iterable[str]) -> dict[str, str]:
    from datasets import doctor

    return doctor.find_bad(paths)
