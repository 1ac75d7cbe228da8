"""What never changes of a gallery, and how its troubles are told."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reid.core.types import ReidError

FORMAT_VERSION = 3
METRIC = "cosine"
MANIFEST, DATABASE = "manifest.json", "gallery.sqlite"
MODELS = {  # a gallery holds at most one model, under one of these names, and the file that goes with it
    "model.safetensors": ("model.safetensors",),
    "model.onnx": ("model.onnx",),
    "model.xml": ("model.xml", "model.bin"),  # OpenVINO's graph and weights
}


@dataclass(frozen=True)
class Manifest:
    format_version: int
    fingerprint: str
    input_size: tuple[int, int]
    dimension: int
    metric: str
    model: str | None  # SHA-256 of the model's copy, of both files' bytes where it has two


def read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReidError(f"gallery {folder}: there is none (no {MANIFEST}); index a folder of images first") from None
    except OSError as error:
        raise ReidError(f"gallery {folder}: cannot be read, {error.strerror}") from None
    except ValueError:
        raise damaged(folder, f"{MANIFEST} is not JSON", mendable=False) from None
    return as_manifest(values, folder)


def as_manifest(values: Any, place: Path | str) -> Manifest:
    """What was read of a manifest. Raises ReidError."""
    version = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version != FORMAT_VERSION:
        older = f"this program reads {FORMAT_VERSION}: index the images again, into another folder"
        newer = f"this program reads up to {FORMAT_VERSION}; use a newer version of the program"
        raise ReidError(
            f"gallery {place}: has format version {version}, {newer if version > FORMAT_VERSION else older}"
        )
    try:
        manifest = Manifest(**{**values, "input_size": tuple(values["input_size"])})
        numbers = (manifest.dimension, *manifest.input_size)
        sound = (
            version == FORMAT_VERSION
            and all(isinstance(number, int) and number >= 1 for number in numbers)
            and len(manifest.input_size) == 2
            and isinstance(manifest.fingerprint, str)
            and isinstance(manifest.model, str | None)
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise damaged(place, f"{MANIFEST} lacks values or holds wrong ones", mendable=False)
    if manifest.metric != METRIC:
        raise ReidError(f"gallery {place}: has the metric {manifest.metric!r}, this program knows {METRIC!r} only")
    return manifest


def damaged(place: Path | str, what: str, *, mendable: bool = True) -> ReidError:
    """mendable: whether `repair` does something about it."""
    advice = "see gallery check --repair" if mendable else "which cannot be repaired: take it from a copy"
    return ReidError(f"gallery {place}: is damaged, {what}; {advice}, or index the images again")


@contextlib.contextmanager
def translate_errors(path: Path, *kinds: type[Exception], writing: bool = False) -> Iterator[None]:
    """Makes a full disk, a read-only folder, a damaged database and their like one line."""
    expected = kinds or (OSError, sqlite3.Error)
    failed = "written, nothing was changed" if writing else "read"
    try:
        yield
    except expected as error:
        reason = getattr(error, "strerror", None) or str(error)
        if "locked" in reason:
            reason += ": another process is reading or writing it for long, try again later"
        elif isinstance(error, sqlite3.Error) and (type(error) is not sqlite3.OperationalError or "no such" in reason):
            raise damaged(path, f"{DATABASE} is not what was written: {reason}", mendable=False) from error
        raise ReidError(f"gallery {path}: cannot be {failed} ({reason})") from error
