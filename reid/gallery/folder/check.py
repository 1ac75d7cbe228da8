"""Is a gallery what was written, and what can be saved of one that is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import NamedTuple

import numpy as np

from reid.core.types import ReidError
from reid.gallery.entry import Entry
from reid.gallery.folder import presets, quantizers
from reid.gallery.folder import vectors as vector_files
from reid.gallery.folder.database import COLUMNS, Database, entry_of
from reid.gallery.folder.quantizers import INDEX
from reid.gallery.folder.vectors import Damage
from reid.gallery.manifest import DATABASE, translate_errors


class _Part(NamedTuple):
    """A vector file beside what the database says of it."""

    number: int
    keys: np.ndarray  # (n,) int64
    rows: np.ndarray  # (m <= n, D) float32 or (m, d) uint8, mapped
    whole: np.ndarray  # (n,) bool
    trouble: str | None


def check(database: Database) -> list[str]:
    """Reads all of it: what is wrong, a line each. Raises ReidError where there is none to read."""
    with translate_errors(database.path), closing(database.connect()) as db:
        db.execute("BEGIN")
        troubles = [f"{DATABASE}: {line}" for line in _sound(db)]
        if not troubles:
            parts = _parts(database, db)
            troubles += [part.trouble for part in parts if part.trouble]
            lost, _ = _strays(db, np.concatenate([np.empty(0, np.int64), *(part.keys for part in parts)]))
            if lost:
                troubles.append(f"{DATABASE}: {len(lost)} images have no vector in any file")
            troubles += _index_trouble(database, db)
    return troubles


def repair(database: Database) -> list[Entry]:
    """Keeps the vectors that are whole, in new files where a file is damaged, drops the images of the others, and
    learns a damaged index anew.

    Returns those images. Raises ReidError where the database is damaged, since nothing says then which vector is
    whose, or the codec of a compact database.
    """
    with database.locked():
        with translate_errors(database.path), closing(database.connect()) as db:
            damage = _sound(db)
        if damage:
            raise ReidError(
                f"gallery {database.path}: {DATABASE} is damaged ({damage[0]}) and cannot be repaired: take it "
                "from a copy, or index the images again"
            )
        with database.writing(locked=True) as db:
            gone: set[int] = set()
            parts = _parts(database, db)
            index_trouble = _index_trouble(database, db)
            for part in parts:
                if part.trouble:
                    gone.update(_save(database, db, part))
            lost, strange = _strays(db, np.concatenate([np.empty(0, np.int64), *(part.keys for part in parts)]))
            dropped = []
            for key in sorted(gone | lost):
                row = db.execute(f"SELECT {COLUMNS} FROM images WHERE key = ?", [key]).fetchone()
                if row:
                    dropped.append(entry_of(row))
            db.executemany("DELETE FROM images WHERE key = ?", [(entry.key,) for entry in dropped])
            db.executemany("INSERT OR IGNORE INTO removed VALUES (?)", [(key,) for key in strange])
            held = {
                key
                for _, blob in db.execute("SELECT number, keys FROM segments")
                for key in np.frombuffer(blob, "<i8").tolist()
            }
            idle = [(key,) for (key,) in db.execute("SELECT key FROM removed") if key not in held]
            db.executemany("DELETE FROM removed WHERE key = ?", idle)
            if index_trouble:
                presets.learn(database, db)
    return dropped


def _sound(db: sqlite3.Connection) -> list[str]:
    """SQLite's own check; [] where nothing is wrong."""
    try:
        lines = [str(line) for (line,) in db.execute("PRAGMA integrity_check(5)")]
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return [] if lines == ["ok"] else lines


def _parts(database: Database, db: sqlite3.Connection) -> list[_Part]:
    parts, layout = [], database.layout(db)
    for number, keys, sums in db.execute("SELECT number, keys, checksums FROM segments ORDER BY number").fetchall():
        expected = np.frombuffer(sums, "<u4")
        rows, whole = vector_files.salvage(database.path, number, expected, layout)
        trouble = None
        try:
            vector_files.load(database.path, number, len(expected), layout)
        except Damage as damage:
            trouble = str(damage)
        if not whole.all():
            trouble = (
                f"{trouble or vector_files.name_of(number) + ' is not what was written'}: "
                f"{np.count_nonzero(~whole)} of its {len(whole)} vectors are lost"
            )
        parts.append(_Part(number, np.frombuffer(keys, "<i8"), rows, whole, trouble))
    return parts


def _index_trouble(database: Database, db: sqlite3.Connection) -> list[str]:
    named = quantizers.named(db)
    if named is not None and named.kind == INDEX:
        try:
            quantizers.load(database.path, named)
        except Damage as damage:
            return [str(damage)]
    return []


def _save(database: Database, db: sqlite3.Connection, part: _Part) -> list[int]:
    """A new file of the rows that are whole, removed images' too, in the place of that; the keys of the others."""
    kept = np.flatnonzero(part.whole)
    if len(kept):
        (number,) = db.execute("SELECT next_segment FROM state").fetchone()
        pieces = (part.rows[kept[start : start + 1024]] for start in range(0, len(kept), 1024))
        sums = vector_files.write(database.path, number, pieces, len(kept), database.layout(db))
        db.execute("INSERT INTO segments VALUES (?, ?, ?)", [number, part.keys[kept].tobytes(), sums.tobytes()])
        db.execute("UPDATE state SET next_segment = ?", [number + 1])
    db.execute("DELETE FROM segments WHERE number = ?", [part.number])
    gone: list[int] = part.keys[~part.whole].tolist()
    return gone


def _strays(db: sqlite3.Connection, keys: np.ndarray) -> tuple[set[int], set[int]]:
    """Images without a vector, and vectors that are neither an image's nor a removed one's."""
    images = {key for (key,) in db.execute("SELECT key FROM images")}
    removed = {key for (key,) in db.execute("SELECT key FROM removed")}
    held = set(keys.tolist())
    return images - held, held - images - removed
