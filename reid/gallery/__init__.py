"""The searchable gallery: feature vectors, what is known of their images, and the model that made them.

It is one folder, or a collection of Milvus (`reid.gallery.milvus.gallery`): `Gallery.create` and `Gallery.open` take
either place and give the same interface. A folder holds

    manifest.json        what never changes: format version, model fingerprint, input size, dimension, metric
    gallery.sqlite       what is in it: key, path, content hash, pid, camid, times and free fields of every image, and
                         which vector files hold their vectors, with a checksum of every row
    vectors-NNNNNN.npy   (n, D) float32 rows, ascending by key; never written to again, memory-mapped. Of a compact
                         gallery (n, d) uint8 codes, which codec-NNNNNN.safetensors is the key to
    index-NNNNNN.safetensors  of a large gallery: lists of codes, derived from the vectors
    model.safetensors    the model that made the vectors, if it was given
    lock                 held while somebody writes

A write makes its vector files first, each under a temporary name, synced and renamed, and then one SQLite transaction,
synced, that names them. So whoever is killed at any moment leaves the gallery as it was or as it should be; the next
writer removes the files that no transaction named. Readers see one whole state at a time and never wait for vectors to
be written. A file that is replaced lives on for those who have it open.

>>> import tempfile, numpy as np
>>> folder, vectors = tempfile.TemporaryDirectory(), np.eye(4, dtype=np.float32)
>>> gallery = Gallery.create(f"{folder.name}/people", dimension=4, fingerprint="model", input_size=(384, 128))
>>> gallery.add(vectors, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], pids=[1, 1, 2, "anna"], camids=[1, 2, 1, 3])
array([0, 1, 2, 3])
>>> keys, scores = gallery.search(vectors[:1], top_k=2, filter=Filter(camids=[1]))
>>> [gallery.entry(key).path for key in keys[0]], scores.tolist()
(['a.jpg', 'c.jpg'], [[1.0, 0.0]])
>>> folder.cleanup()
"""

import os
from typing import TYPE_CHECKING, Any

from reid.core.files import hash_file
from reid.core.values import parse_age, parse_pid, parse_time, show_time
from reid.gallery.base import Gallery
from reid.gallery.entry import Entry, Forgotten, Info
from reid.gallery.export import export, to_faiss
from reid.gallery.filter import Filter
from reid.gallery.folder.presets import PRESETS
from reid.retrieval.vectors import fuse


def check(place: str | os.PathLike[str]) -> list[str]:
    """Reads all of the gallery that is there: what is wrong, a line each. Raises ReidError."""
    return Gallery.unread(place).check()


def repair(place: str | os.PathLike[str]) -> tuple[list[Entry], list[str]]:
    """Keeps every vector that is whole: the images that are dropped, and what is wrong still. Raises ReidError."""
    return Gallery.unread(place).repair()


if TYPE_CHECKING:
    from reid.gallery.rerank import search_reranked as search_reranked

__all__ = [
    "PRESETS",
    "Entry",
    "Filter",
    "Forgotten",
    "Gallery",
    "Info",
    "check",
    "export",
    "fuse",
    "hash_file",
    "parse_age",
    "parse_pid",
    "parse_time",
    "repair",
    "search_reranked",
    "show_time",
    "to_faiss",
]


def __getattr__(name: str) -> Any:
    """Re-ranking needs scipy, whose import takes as long as all others of a gallery: not before it is asked for."""
    if name != "search_reranked":
        raise AttributeError(f"module 'reid.gallery' has no attribute {name!r}")
    from reid.gallery.rerank import search_reranked

    return search_reranked
