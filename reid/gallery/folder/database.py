"""The database of a gallery in a folder: SQLite, the lock of its writers, and the vector files that it names."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.files import locked
from reid.core.types import ReidError
from reid.gallery.base import no_group
from reid.gallery.entry import Entry
from reid.gallery.filter import Filter
from reid.gallery.folder import quantizers
from reid.gallery.folder import vectors as vector_files
from reid.gallery.folder.quantizers import CODEC, Learnt
from reid.gallery.folder.vectors import Damage, Layout, Segment
from reid.gallery.index.ivf import Indexed
from reid.gallery.index.sq8 import Codec, Coded, width_of
from reid.gallery.manifest import DATABASE, damaged, translate_errors
from reid.retrieval import knn
from reid.retrieval.vectors import take

_LOCK = "lock"
_MASKS = 32  # filters remembered of one state
COLUMNS = "key, path, pid, camid, time, added, hash, fields"
SCHEMA = """
CREATE TABLE state (generation INTEGER NOT NULL, next_key INTEGER NOT NULL, next_segment INTEGER NOT NULL,
    preset TEXT NOT NULL, recall REAL NOT NULL);
INSERT INTO state VALUES (0, 0, 1, 'exact', 0.99);
CREATE TABLE images (
    key INTEGER PRIMARY KEY, path NOT NULL, pid, camid INTEGER, time REAL, added REAL NOT NULL, hash TEXT,
    fields TEXT NOT NULL);
CREATE UNIQUE INDEX images_path ON images (path);
CREATE INDEX images_hash ON images (hash);
CREATE INDEX images_pid ON images (pid);
CREATE TABLE segments (number INTEGER PRIMARY KEY, keys BLOB NOT NULL, checksums BLOB NOT NULL);
CREATE TABLE removed (key INTEGER PRIMARY KEY);
CREATE TABLE learnt (number INTEGER PRIMARY KEY, kind TEXT NOT NULL, digest TEXT NOT NULL, settings TEXT NOT NULL);
"""  # removed: keys that a segment holds still, and images no more; learnt: one row at most


@dataclass(frozen=True, eq=False)
class View:
    """One state of the gallery."""

    generation: int
    segments: list[Segment]
    keys: np.ndarray  # (N,) int64, ascending: of all rows of all segments
    live: np.ndarray  # (N,) bool
    coded: Coded | None  # what the segments' rows are codes of
    learnt: Learnt | None
    masks: dict[tuple[object, ...], np.ndarray] = field(default_factory=dict)  # of filters

    @property
    def rows(self) -> list[np.ndarray]:
        return [segment.vectors for segment in self.segments]

    def vectors(self, places: np.ndarray) -> np.ndarray:
        """(n, D) float32 of those rows, ascending."""
        rows = take(self.rows, places)
        return rows if self.coded is None else self.coded.codec.restore(rows)

    def nearest(
        self, queries: np.ndarray, chosen: np.ndarray, top_k: int, indexed: Indexed | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `knn.nearest`."""
        if self.coded is not None:
            return self.coded.nearest(queries, self.rows, chosen, top_k)
        return (indexed or knn).nearest(queries, self.rows, chosen, top_k)


class Database:
    """What is in a gallery's folder, and every change of it.

    Safe to use from several threads, and across a fork. Readers wait for `wait` seconds, too.
    """

    def __init__(self, path: Path, dimension: int, wait: float) -> None:
        self.path, self.dimension, self.wait = path, dimension, wait
        self._view: View | None = None
        self._coded: tuple[int, Coded] | None = None
        self._local = threading.local()

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Writers wait meanwhile: keep it short. Gives the database, to be read only."""
        held: sqlite3.Connection | None = getattr(self._local, "db", None)
        if held is not None:
            yield held
            return
        with translate_errors(self.path, sqlite3.Error), contextlib.closing(self.connect()) as db:
            with translate_errors(self.path, OSError):
                db.execute("BEGIN")
                generation = db.execute("SELECT generation FROM state").fetchone()[0]
                if self._view is None or self._view.generation != generation:
                    self._view = self._load(db, generation)
            self._local.db = db
            try:
                yield db
            finally:
                self._local.db = None

    def seen(self) -> View:
        """The state that `reading` found."""
        assert self._view is not None
        return self._view

    def connect(self) -> sqlite3.Connection:
        file = self.path / DATABASE
        if not file.is_file():
            raise damaged(self.path, f"{DATABASE} is missing", mendable=False)
        mode = "rw" if os.access(file, os.W_OK) and os.access(self.path, os.W_OK) else "ro"
        db = sqlite3.connect(
            f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=self.wait, isolation_level=None
        )
        for setting in (
            "synchronous = EXTRA",
            "secure_delete = ON",
            "cache_spill = OFF",
            "temp_store = MEMORY",
            "trusted_schema = OFF",
        ):
            db.execute(f"PRAGMA {setting}")
        return db

    def _load(self, db: sqlite3.Connection, generation: int) -> View:
        parts = self.segments(db)
        keys = np.concatenate([np.empty(0, np.int64), *(segment.keys for segment in parts)])
        live = np.concatenate([np.empty(0, bool), *(segment.live for segment in parts)])
        (images,) = db.execute("SELECT COUNT(*) FROM images").fetchone()
        if images != np.count_nonzero(live):
            raise damaged(self.path, f"{images} images, {np.count_nonzero(live)} vectors of them")
        return View(generation, parts, keys, live, self.codes(db), quantizers.named(db))

    def codes(self, db: sqlite3.Connection) -> Coded | None:
        """What the rows are codes of; None where they are vectors."""
        named = quantizers.named(db)
        if named is None or named.kind != CODEC:
            return None
        if self._coded is None or self._coded[0] != named.number:
            try:
                codec = quantizers.load(self.path, named)
            except Damage as damage:
                raise ReidError(
                    f"gallery {self.path}: {damage}, and nothing else says what its codes stand for: take "
                    "it from a copy, or index the images again"
                ) from None
            assert isinstance(codec, Codec)
            self._coded = named.number, Coded(codec)
        return self._coded[1]

    def layout(self, db: sqlite3.Connection) -> Layout:
        """Of the vector files' rows."""
        coded = self.codes(db)
        return Layout(self.dimension) if coded is None else Layout(coded.codec.width, "|u1")

    def segments(self, db: sqlite3.Connection) -> list[Segment]:
        """The vector files that the database names, ascending by key, opened."""
        removed = np.fromiter((key for (key,) in db.execute("SELECT key FROM removed ORDER BY key")), np.int64)
        open_already = {segment.number: segment.vectors for segment in self._view.segments} if self._view else {}
        parts, layout = [], self.layout(db)
        for number, blob in db.execute("SELECT number, keys FROM segments"):
            keys = np.frombuffer(blob, "<i8")
            try:
                vectors = open_already.get(number)
                if vectors is None:
                    vectors = vector_files.load(self.path, number, len(keys), layout)
            except Damage as damage:
                raise damaged(self.path, str(damage)) from damage.__cause__
            live = np.ones(len(keys), bool)
            among = removed[np.searchsorted(removed, keys[0]) : np.searchsorted(removed, keys[-1], "right")]
            live[np.searchsorted(keys, among)] = False
            parts.append(Segment(number, keys, vectors, live))
        return sorted(parts, key=lambda segment: int(segment.keys[0]))

    def mask(self, db: sqlite3.Connection, view: View, filter: Filter | None, camera: int | None) -> np.ndarray:
        """(N,) bool: the rows that a search looks at."""
        conditions = [(filter or Filter()).where()]
        if camera is not None:
            conditions.append(Filter(exclude_camids=[camera]).where())
        where = " AND ".join(sql for sql, _ in conditions)
        values = tuple(value for _, some in conditions for value in some)
        if not values:
            return view.live
        if (where, values) not in view.masks:
            mask = np.zeros(len(view.keys), bool)
            chosen = db.execute(f"SELECT key FROM images WHERE {where}", values)
            mask[np.searchsorted(view.keys, np.fromiter((key for (key,) in chosen), np.int64))] = True
            if len(view.masks) >= _MASKS:
                view.masks.clear()
            view.masks[where, values] = mask & view.live
        return view.masks[where, values]

    def groups(self, db: sqlite3.Connection, name: str) -> dict[int, object]:
        """key -> group of every image that is in one."""
        if name == "pid":
            return dict(db.execute("SELECT key, pid FROM images WHERE pid IS NOT NULL AND pid NOT IN (-1, 0)"))
        rows = db.execute(
            "SELECT images.key, json_each.value FROM images, json_each(images.fields) WHERE json_each.key = ?", [name]
        ).fetchall()
        if not rows and db.execute("SELECT 1 FROM images LIMIT 1").fetchone():
            raise no_group(str(self.path), name)
        return dict(rows)

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Alone among writers."""
        with translate_errors(self.path, writing=True), contextlib.ExitStack() as held:
            try:
                held.enter_context(locked(self.path / _LOCK, wait=self.wait))
            except BlockingIOError:
                raise ReidError(
                    f"gallery {self.path}: another process is writing to it, for more than {self.wait:g} seconds; try "
                    "again later"
                ) from None
            yield

    @contextlib.contextmanager
    def writing(self, *, vacuum: bool = False, locked: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on disk at the end of the block, or nothing is changed.

        vacuum: the database is packed afterwards. locked: the lock is held already.
        """
        with contextlib.nullcontext() if locked else self.locked(), contextlib.closing(self.connect()) as db:
            with translate_errors(self.path, writing=True):
                self._sweep(db)
                db.execute("BEGIN IMMEDIATE")
                try:
                    yield db
                    db.execute("UPDATE state SET generation = generation + 1")
                    db.execute("COMMIT")
                except BaseException:
                    if db.in_transaction:
                        db.execute("ROLLBACK")
                    self._sweep(db)
                    raise
            try:
                self._sweep(db)
                if vacuum:
                    db.execute("VACUUM")
            except sqlite3.Error as error:
                raise ReidError(
                    f"gallery {self.path}: what was asked for is done, but the database could not be "
                    f"packed ({error}); run it again"
                ) from error

    def _sweep(self, db: sqlite3.Connection) -> None:
        """Removes the vector files that the database does not name, and what killed writers left. Under the lock."""
        named = {vector_files.name_of(number) for (number,) in db.execute("SELECT number FROM segments")}
        if what := quantizers.named(db):
            named.add(what.name)
        for pattern in ("vectors-*.npy", "codec-*.safetensors", "index-*.safetensors", ".*.partial"):
            for file in self.path.glob(pattern):
                if file.name not in named:
                    with contextlib.suppress(OSError):
                        file.unlink()

    def append(
        self,
        db: sqlite3.Connection,
        vectors: Iterable[np.ndarray],
        rows: Sequence[tuple[Any, ...]],
        added: Sequence[float],
        replaced: Sequence[int] = (),
    ) -> np.ndarray:
        """Files at the end that hold no more images than the new one are joined into it: n images that come one by one
        lie in about log2(n) files, and each is written about log2(n) times.
        """
        self.remove(db, list(replaced))
        (first,) = db.execute("SELECT next_key FROM state").fetchone()
        keys = np.arange(first, first + len(rows), dtype=np.int64)
        if not rows:
            return keys
        insert = f"INSERT INTO images ({COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        db.executemany(
            insert,
            (
                (key, p, pid, cam, at, since, digest, more)
                for key, (p, pid, cam, at, digest, more), since in zip(keys.tolist(), rows, added)
            ),
        )
        db.execute("UPDATE state SET next_key = ?", [first + len(rows)])
        parts, count = self.segments(db), len(rows)
        joined: list[Segment] = []
        while parts and parts[-1].count <= count:
            joined.insert(0, parts.pop())
            count += joined[0].count
        coded = self.codes(db)
        self.rewrite(db, joined, keys, vectors if coded is None else map(coded.codec.encode, vectors))
        return keys

    def remove(self, db: sqlite3.Connection, keys: list[int], *, purge: bool = False) -> int:
        """SQLite overwrites what it held of them; files with more removed than live rows, or with purge with any, are
        written anew."""
        rows = [(key,) for key in keys]
        db.executemany("INSERT INTO removed VALUES (?)", rows)
        db.executemany("DELETE FROM images WHERE key = ?", rows)
        for segment in self.segments(db) if keys or purge else ():
            gone = len(segment.keys) - segment.count
            if gone and (purge or gone > segment.count):
                self.rewrite(db, [segment])
        return len(keys)

    def rewrite(
        self,
        db: sqlite3.Connection,
        parts: Sequence[Segment],
        new_keys: np.ndarray | None = None,
        new_rows: Iterable[np.ndarray] = (),
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """One new file in place of those: their live rows, which encode makes codes of, and the new ones."""
        keys = np.concatenate(
            [*(segment.keys[segment.live] for segment in parts), *([] if new_keys is None else [new_keys])]
        )
        pieces, layout = self.pieces(parts, self.checksums(db), None), self.layout(db)
        old: Iterable[np.ndarray] = pieces
        if encode is not None:
            old, layout = map(encode, pieces), Layout(width_of(self.dimension), "|u1")
        if len(keys):
            (number,) = db.execute("SELECT next_segment FROM state").fetchone()
            sums = vector_files.write(self.path, number, (x for y in (old, new_rows) for x in y), len(keys), layout)
            db.execute("INSERT INTO segments VALUES (?, ?, ?)", [number, keys.astype("<i8").tobytes(), sums.tobytes()])
            db.execute("UPDATE state SET next_segment = ?", [number + 1])
        for segment in parts:
            db.execute("DELETE FROM segments WHERE number = ?", [segment.number])
            gone = segment.keys[~segment.live].tolist()
            db.executemany("DELETE FROM removed WHERE key = ?", [(key,) for key in gone])

    def checksums(self, db: sqlite3.Connection | None = None) -> dict[int, np.ndarray]:
        with contextlib.nullcontext(db) if db is not None else self.reading() as source:
            return {n: np.frombuffer(x, "<u4") for n, x in source.execute("SELECT number, checksums FROM segments")}

    def pieces(
        self, parts: Sequence[Segment], sums: Mapping[int, np.ndarray], chosen: np.ndarray | None
    ) -> Iterator[np.ndarray]:
        """The live rows of those segments, or the chosen of all their rows, some at a time; their checksums hold."""
        start = 0
        for segment in parts:
            if chosen is not None:
                mask = chosen[start : start + len(segment.keys)]
                segment = Segment(segment.number, segment.keys, segment.vectors, mask)
                start += len(mask)
            try:
                yield from segment.pieces(sums[segment.number])
            except Damage as damage:
                raise damaged(self.path, str(damage)) from None


def entry_of(row: tuple[Any, ...]) -> Entry:
    key, path, pid, camid, at, added, digest, fields = row
    return Entry(key, os.fsdecode(path), pid, camid, at, added, digest, json.loads(fields))
