"""Where a gallery may lie, and which class it is of there: told by its place alone."""

from __future__ import annotations

import hashlib
import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from reid.gallery.base import Gallery

MILVUS = ("milvus://", "milvus+https://", "milvus+lite:")


def is_milvus(place: str | os.PathLike[str]) -> bool:
    return os.fspath(place).startswith(MILVUS)


def kind_of(place: str | os.PathLike[str]) -> type[Gallery]:
    """The class of a gallery that lies there. Imported when it is asked for."""
    kind: type[Gallery]
    if is_milvus(place):
        kind = importlib.import_module("reid.gallery.milvus.gallery").MilvusGallery
    else:
        kind = importlib.import_module("reid.gallery.folder.gallery").FolderGallery
    return kind


def scratch_of(place: str | os.PathLike[str]) -> Path:
    """A folder of this machine for what is under way to a gallery: beside it, or in the cache."""
    if not is_milvus(place):
        folder = Path(os.path.abspath(place))
        return folder.with_name(f".{folder.name}-embedding")
    return cache_folder() / f"embedding-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}"


def cache_folder() -> Path:
    """What this machine keeps of galleries elsewhere: copies of models, embeddings on their way."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "reid"
