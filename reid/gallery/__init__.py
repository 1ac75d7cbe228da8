"""The searchable gallery: feature vectors, what is known of their images, and the model that made them.

It is one folder, or a collection of Milvus (`reid.gallery.milvus`): `Gallery.create` and `Gallery.open` take either
place and give the same interface. A folder holds

    manifest.json        what never changes: format version, model fingerprint, input size, dimension, metric
    gallery.sqlite       what is in it: key, path, content hash, pid, camid, times and free fields of every image, and
                         which vector files hold their vectors, with a checksum of every row
    vectors-NNNNNN.npy   (n, D) float32 rows, ascending by key; never written to again, memory-mapped
    model.safetensors    the model that made the vectors, if it was given
    lock                 held while somebody writes

A write makes its vector files first, each under a temporary name, synced and renamed, and then one SQLite transaction,
synced, that names them. So whoever is killed at any moment leaves the gallery as it was or as it should be; the next
writer removes the files that no transaction named. Readers see one whole state at a time and never wait for vectors to
be written. A file that is replaced lives on for those who have it open.

>>> gallery = Gallery.create("people", dimension=2048, fingerprint=f, input_size=(384, 128))  # doctest: +SKIP
>>> keys = gallery.add(features, paths, pids, camids)                                         # doctest: +SKIP
>>> ranking = Gallery.open("people").search(query_features, top_k=10, filter=Filter(camids=[3]))  # doctest: +SKIP
"""

from reid.gallery.base import Gallery
from reid.gallery.export import export, to_faiss
from reid.gallery.health import check, repair
from reid.gallery.reranked import search_reranked
from reid.gallery.select import Filter, parse_age, parse_pid, parse_time, show_time
from reid.gallery.store import Entry, Forgotten, Info, fuse, hash_file

__all__ = [
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
