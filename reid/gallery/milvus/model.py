"""The model of a gallery in Milvus: in pieces, a text each, of which every machine keeps one copy."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

from reid.core.files import atomic_file, hash_file
from reid.gallery.manifest import damaged
from reid.gallery.milvus.client import Collections
from reid.gallery.places import cache_folder

_PIECE = 48_000  # bytes of the model in a row; Milvus holds 65,535 in one text


def write_model(at: Collections, model: str | os.PathLike[str]) -> None:
    with open(model, "rb") as file:
        for n, piece in enumerate(iter(lambda: file.read(_PIECE), b"")):
            at.put(f"model-{n:06}", base64.b64encode(piece).decode())


def copied_model(at: Collections, digest: str, place: str) -> Path:
    """This machine's copy of the model of that SHA-256, made where there is none. ReidError where the pieces are not
    what was written."""
    file = cache_folder() / f"{digest}.safetensors"
    if not file.is_file() or hash_file(file) != digest:
        pieces = sorted(at.texts("model-").items())
        data = b"".join(base64.b64decode(text) for _, text in pieces)
        if hashlib.sha256(data).hexdigest() != digest:
            raise damaged(place, "its model is not what was written")
        with atomic_file(file) as temporary:
            temporary.write_bytes(data)
    return file
