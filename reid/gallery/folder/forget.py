"""The proof that nothing is left of who was forgotten."""

from __future__ import annotations

import os

import numpy as np

from reid.core.types import ReidError
from reid.gallery.entry import Entry, Forgotten, stored
from reid.gallery.folder import quantizers
from reid.gallery.folder.database import Database, View
from reid.gallery.folder.quantizers import INDEX
from reid.gallery.index.ivf import Lists


def prove(database: Database, entries: list[Entry], traces: np.ndarray) -> Forgotten:
    """Raises ReidError where a file holds bytes of those images."""
    words = {os.fsencode(entry.path) for entry in entries} | {e.hash.encode() for e in entries if e.hash}
    with database.reading() as db:
        view = database.seen()
        similar = set[bytes]()  # what remaining images have in common
        for word in words:
            text = stored(os.fsdecode(word))
            like = "SELECT path, hash FROM images WHERE instr(path, ?) OR hash = ?"
            for path, digest in db.execute(like, [text, text]):
                similar |= {os.fsencode(path), (digest or "").encode()}
    similar.discard(b"")
    size, files = 0, [file for file in sorted(database.path.iterdir()) if file.is_file()]
    names = {segment.name: segment for segment in view.segments}
    found = []
    for file in files:
        size += file.stat().st_size
        if file.name in names:
            held = _rows_in(traces, names[file.name].vectors)
            if not names[file.name].live[held].all():  # an equal vector of an image that remains is that image's
                found.append(file.name)
            continue
        data = file.read_bytes()
        for word in sorted(similar, key=len, reverse=True):
            data = data.replace(word, b"\0" * len(word))
        if view.learnt is not None and file.name == view.learnt.name and _codes_left(database, view, traces):
            found.append(file.name)
            continue
        if any(word in data for word in words) or any(row.tobytes() in data for row in traces):
            found.append(file.name)
    if found:
        raise ReidError(f"gallery {database.path}: {', '.join(found)} hold traces of the person still; run it again")
    return Forgotten(
        len(entries),
        f"no trace of their paths, content hashes and vectors in its {len(files)} files ({size:,} bytes searched)",
    )


def _codes_left(database: Database, view: View, traces: np.ndarray) -> bool:
    """Whether an index holds codes of those vectors that are no remaining image's."""
    assert view.learnt is not None
    if view.learnt.kind != INDEX:
        return False
    lists = quantizers.load(database.path, view.learnt)
    assert isinstance(lists, Lists)
    held = lists.keys[lists.order[_rows_in(lists.codec.encode(traces), lists.codes)]]
    return not np.isin(held, view.keys[view.live]).all()


def _rows_in(wanted: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """(n,) bool: which rows equal one of the wanted, bit for bit."""
    if not len(wanted):
        return np.zeros(len(rows), bool)
    head = min(8 // rows.dtype.itemsize, rows.shape[1])  # eight bytes tell nearly all apart
    known = {row.tobytes() for row in wanted}
    width = np.dtype((np.void, rows.dtype.itemsize * head))
    first = np.ascontiguousarray(rows[:, :head]).view(width)[:, 0]
    maybe = np.isin(first, np.ascontiguousarray(wanted[:, :head]).view(width)[:, 0])
    for place in np.flatnonzero(maybe):
        maybe[place] = rows[place].tobytes() in known
    return maybe
