"""A gallery's contents in other programs' formats."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.files import atomic_folder
from reid.core.tables import csv_text
from reid.core.types import ReidError
from reid.core.values import show_time
from reid.gallery.base import Gallery
from reid.gallery.entry import Entry, stored


def export(
    gallery: Gallery, folder: str | os.PathLike[str], *, parquet: bool = False, faiss: bool = False
) -> list[str]:
    """Writes all images to a new folder and returns the names of its files.

    vectors.npy, (N, D) float32, and entries.csv, a line for each of its rows; or with parquet one gallery.parquet with
    both. Of a compact gallery the vectors are what its codes stand for. faiss: besides, gallery.faiss, an exact index
    whose ids are the keys. Times are ISO 8601, in UTC. Raises ReidError.
    """
    folder = Path(folder)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ReidError(f"export: {folder} exists already and is not empty: give another folder")
    if parquet and _lacks("pyarrow"):
        raise ReidError("export: Parquet needs pyarrow: pip install 'pyarrow>=18', or leave --parquet out")
    entries, vectors = gallery.snapshot()
    everything = range(len(entries))
    with atomic_folder(folder) as temporary:
        if parquet:
            _write_parquet(temporary / "gallery.parquet", entries, vectors(everything), gallery.dimension)
        else:
            rows_of = [
                [*e[:4], show_time(e.time), show_time(e.added), e.hash, json.dumps(e.fields, ensure_ascii=False)]
                for e in entries
            ]
            (temporary / "entries.csv").write_text(csv_text(Entry._fields, rows_of), encoding="utf-8")
            shape = (len(entries), gallery.dimension)
            rows = np.lib.format.open_memmap(temporary / "vectors.npy", "w+", np.float32, shape)
            start = 0
            for block in vectors(everything):
                rows[start : start + len(block)] = block
                start += len(block)
            rows.flush()
        if faiss:
            import faiss as library

            with (temporary / "gallery.faiss").open("wb") as stream:  # by a name, faiss misses it where a disk is full
                writer = library.PyCallbackIOWriter(stream.write)  # type: ignore
                library.write_index(_flat_index(entries, vectors(everything), gallery.dimension), writer)
    return sorted(file.name for file in folder.iterdir())


def to_faiss(gallery: Gallery) -> Any:
    """A faiss.IndexIDMap2 of all images in memory: exact, inner product, the keys as ids. For programs that hold one.

    `Gallery.search` is exact without it, and faster: see `reid.retrieval.knn`.
    """
    entries, vectors = gallery.snapshot()
    return _flat_index(entries, vectors(range(len(entries))), gallery.dimension)


def _flat_index(entries: list[Entry], blocks: Iterator[np.ndarray], dimension: int) -> Any:
    import faiss

    index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
    keys = np.array([entry.key for entry in entries], np.int64)
    for block in blocks:
        index.add_with_ids(block, keys[index.ntotal : index.ntotal + len(block)])
    return index


def _write_parquet(file: Path, entries: list[Entry], blocks: Iterator[np.ndarray], dimension: int) -> None:
    import pyarrow
    from pyarrow import parquet

    kinds = {
        "key": pyarrow.int64(),
        "path": pyarrow.string(),
        "pid": pyarrow.string(),
        "camid": pyarrow.int64(),
        "time": pyarrow.timestamp("us", "UTC"),
        "added": pyarrow.timestamp("us", "UTC"),
        "hash": pyarrow.string(),
        "fields": pyarrow.string(),
        "vector": pyarrow.list_(pyarrow.float32(), dimension),
    }
    with parquet.ParquetWriter(file, pyarrow.schema(kinds.items())) as writer:
        start = 0
        for block in blocks:
            part = entries[start : start + len(block)]
            start += len(block)
            columns: list[list[Any]] = [
                [e.key for e in part],
                [_text(e.path) for e in part],
                [None if e.pid is None else str(e.pid) for e in part],
                [e.camid for e in part],
                [None if e.time is None else round(e.time * 1e6) for e in part],
                [round(e.added * 1e6) for e in part],
                [e.hash for e in part],
                [json.dumps(e.fields, ensure_ascii=False) for e in part],
            ]
            arrays = [pyarrow.array(column, kind) for column, kind in zip(columns, kinds.values())]
            flat = pyarrow.array(block.ravel(), pyarrow.float32())
            arrays.append(pyarrow.FixedSizeListArray.from_arrays(flat, dimension))
            writer.write_table(pyarrow.table(arrays, names=list(kinds)))


def _text(path: str) -> str:
    """With what is not UTF-8 escaped, since Parquet holds text."""
    return path if isinstance(stored(path), str) else path.encode("utf-8", "backslashreplace").decode()


def _lacks(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is None
    except ValueError:
        return True
