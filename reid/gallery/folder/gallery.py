"""The gallery's folder: what `reid.gallery` says of it, read and written."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid.core.files import atomic_file, atomic_folder, write_json
from reid.core.types import Ranking, ReidError
from reid.gallery.base import RECALL, Gallery, Snapshot, check_new
from reid.gallery.filter import Filter
from reid.gallery.folder import presets, quantizers
from reid.gallery.folder import vectors as vector_files
from reid.gallery.folder.manifest import (
    DATABASE,
    FORMAT_VERSION,
    MANIFEST,
    METRIC,
    MODELS,
    Manifest,
    damaged,
    read_manifest,
    told,
)
from reid.gallery.folder.quantizers import CODEC, INDEX, Learnt
from reid.gallery.folder.vectors import Damage, Layout, Segment
from reid.gallery.index.coded import Coded
from reid.gallery.index.ivf import TOP_K, Indexed, Lists
from reid.gallery.index.sq8 import Codec, width_of
from reid.gallery.values import Field, Pid, as_pid, as_seconds, stored
from reid.retrieval import knn

_LOCK = "lock"
_PAGE = 10_000  # entries read at a time
_MASKS = 32  # filters remembered of one state
_COLUMNS = "key, path, pid, camid, time, added, hash, fields"
_SCHEMA = """
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


class Entry(NamedTuple):
    """One image of a gallery. None: unknown."""

    key: int  # given in order from 0, never twice: a key always names the same picture
    path: str  # as it was given to `add`
    pid: Pid | None = None
    camid: int | None = None
    time: float | None = None  # of capture, seconds since 1970, UTC
    added: float = 0.0  # likewise, when it came into the gallery
    hash: str | None = None  # SHA-256 of the file's content, hexadecimal
    fields: Mapping[str, Field] = {}


class Info(NamedTuple):
    """What a gallery holds."""

    format_version: int
    fingerprint: str
    input_size: tuple[int, int]
    dimension: int
    metric: str
    has_model: bool
    images: int
    people: int  # pids, junk and distractors not counted
    cameras: dict[int, int]  # camid -> images; those of unknown cameras are in none
    times: tuple[float, float] | None  # first and last of capture
    added: tuple[float, float] | None
    files: int | None  # that hold vectors; of these three, what a server of Milvus does not tell is None
    removed: int | None  # vectors of removed images, which `compact` takes out of the files
    bytes: int | None  # of the folder
    preset: str | None = None  # of a folder
    learnt: Mapping[str, Any] | None = None  # of a codec or an index: what it was learnt from, what was measured


class Forgotten(NamedTuple):
    """What `forget` did."""

    images: int
    proof: str  # what was looked at and found free of them, and what was not


@dataclass(frozen=True, eq=False)
class _View:
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
        rows = knn.take(self.rows, places)
        return rows if self.coded is None else self.coded.codec.restore(rows)

    def nearest(
        self, queries: np.ndarray, chosen: np.ndarray, top_k: int, indexed: Indexed | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """See `knn.nearest`."""
        if self.coded is not None:
            return self.coded.nearest(queries, self.rows, chosen, top_k)
        return (indexed or knn).nearest(queries, self.rows, chosen, top_k)


class FolderGallery(Gallery):
    """A gallery in a folder.

    Safe to use from several threads, and across a fork. Readers wait for `wait` seconds, too.
    """

    def __init__(self, path: Path, *, wait: float = 10.0) -> None:
        """Use `create` or `open`."""
        self.path, self.place, self.wait = path, str(path), wait
        self._manifest = read_manifest(path)
        self._view: _View | None = None
        self._coded: tuple[int, Coded] | None = None
        self._indexed: tuple[int, int, Indexed | None] | None = None  # of which index and state
        self._local = threading.local()

    @classmethod
    def create(
        cls,
        place: str | os.PathLike[str],
        *,
        dimension: int,
        fingerprint: str,
        input_size: tuple[int, int],
        model: str | os.PathLike[str] | None = None,
        wait: float = 10.0,
    ) -> FolderGallery:
        """In the folder `place`, which must not exist or be empty."""
        path = Path(place)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ReidError(
                f"gallery {path}: exists already and is not empty; open it, or choose or empty another folder"
            )
        check_new(path, dimension, model)
        height, width = map(int, input_size)
        with told(path, writing=True), atomic_folder(path) as folder:
            digest = _copy_model(Path(model), folder) if model is not None else None
            manifest = Manifest(FORMAT_VERSION, fingerprint, (height, width), int(dimension), METRIC, digest)
            with atomic_file(folder / DATABASE) as temporary, contextlib.closing(sqlite3.connect(temporary)) as db:
                db.executescript(_SCHEMA)
            write_json(folder / MANIFEST, asdict(manifest))
        return cls.open(path, wait=wait)

    @classmethod
    def open(cls, place: str | os.PathLike[str], *, wait: float = 10.0) -> FolderGallery:
        """The vectors' checksums are not compared: see `check`."""
        gallery = cls(Path(place), wait=wait)
        with gallery.reading():
            return gallery

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        return (Path(place) / MANIFEST).exists()

    # ---- what is in it

    def count(self, filter: Filter | None = None) -> int:
        where, values = (filter or Filter()).where()
        with self.reading() as db:
            return int(db.execute(f"SELECT COUNT(*) FROM images WHERE {where}", values).fetchone()[0])

    def entry(self, key: int) -> Entry:
        with self.reading() as db:
            row = db.execute(f"SELECT {_COLUMNS} FROM images WHERE key = ?", [int(key)]).fetchone()
        if row is None:
            raise ReidError(f"gallery {self.path}: no image has the key {key}")
        return _entry(row)

    def entries(self, filter: Filter | None = None) -> Iterator[Entry]:
        where, values = (filter or Filter()).where()
        query = f"SELECT {_COLUMNS} FROM images WHERE key > ? AND {where} ORDER BY key LIMIT {_PAGE}"
        last = -1
        while True:
            with self.reading() as db:
                page = [_entry(row) for row in db.execute(query, [last, *values])]
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1].key

    def vectors(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """Of a compact gallery what its codes stand for."""
        with self.reading():
            view = self._seen()
        places = np.searchsorted(view.keys, keys)
        for key, place in zip(keys, places):
            if place == len(view.keys) or view.keys[place] != key or not view.live[place]:
                raise ReidError(f"gallery {self.path}: no image has the key {key}")
        order = np.argsort(places, kind="stable")
        rows = np.empty((len(places), self.dimension), np.float32)
        if len(places):
            rows[order] = view.vectors(places[order])
        return rows

    def snapshot(self) -> Snapshot:
        """Its files stay readable while this is held."""
        with self.reading():
            view, entries, sums = self._seen(), list(self.entries()), self._checksums()

        def vectors(places: Sequence[int]) -> Iterator[np.ndarray]:
            chosen = np.zeros(len(view.keys), bool)
            chosen[np.flatnonzero(view.live)[np.array(places, np.int64)]] = True
            pieces = self._pieces(view.segments, sums, chosen)
            return pieces if view.coded is None else map(view.coded.codec.restore, pieces)

        return Snapshot(entries, vectors)

    def _at_paths(self, paths: Sequence[str | bytes]) -> dict[str | bytes, tuple[int, str | None]]:
        with self.reading() as db:
            rows = ((p, db.execute("SELECT key, hash FROM images WHERE path = ?", [p]).fetchone()) for p in paths)
            return {path: row for path, row in rows if row}

    def _with_hashes(self, hashes: Sequence[str]) -> set[str]:
        known = "SELECT 1 FROM images WHERE hash = ? LIMIT 1"
        with self.reading() as db:
            return {digest for digest in set(hashes) if db.execute(known, [digest]).fetchone()}

    def info(self) -> Info:
        with self.reading() as db:
            view, manifest = self._seen(), self._manifest
            images, first, last, early, late = db.execute(
                "SELECT COUNT(*), MIN(time), MAX(time), MIN(added), MAX(added) FROM images"
            ).fetchone()
            people = "SELECT COUNT(DISTINCT pid) FROM images WHERE pid IS NOT NULL AND pid NOT IN (-1, 0)"
            cameras = "SELECT camid, COUNT(*) FROM images WHERE camid IS NOT NULL GROUP BY camid ORDER BY camid"
            return Info(
                manifest.format_version,
                manifest.fingerprint,
                manifest.input_size,
                manifest.dimension,
                manifest.metric,
                manifest.model is not None,
                images,
                db.execute(people).fetchone()[0],
                dict(db.execute(cameras)),
                None if first is None else (first, last),
                None if early is None else (early, late),
                len(view.segments),
                int(np.count_nonzero(~view.live)),
                _size(self.path),
                db.execute("SELECT preset FROM state").fetchone()[0],
                view.learnt and {"kind": view.learnt.kind, **view.learnt.settings},
            )

    @property
    def model_path(self) -> Path | None:
        if self._manifest.model is None:
            return None
        if trouble := self._model_trouble():
            raise damaged(self.path, trouble)
        return self.path / self._model_name()

    # ---- search

    def search(
        self,
        vectors: np.ndarray,
        top_k: int,
        *,
        exclude_camids: int | Sequence[int | None] | np.ndarray | None = None,
        filter: Filter | None = None,
        group_by: str | None = None,
        threshold: float | None = None,
    ) -> Ranking:
        """Exactly, and the same however it is asked (see `reid.retrieval.knn`), unless `set_preset` says otherwise.

        Under `compact`, of the vectors that the codes stand for; under `large`, a share of the nearest may be missed,
        while scores are exact.
        """
        vectors, cameras = self._asked(vectors, top_k, exclude_camids)
        keys = np.full((len(vectors), top_k), -1, dtype=np.int64)
        scores = np.full((len(vectors), top_k), -np.inf, dtype=np.float32)
        with self.reading() as db:
            view = self._seen()
            masks = {camera: self._mask(db, view, filter, camera) for camera in dict.fromkeys(cameras)}
            groups = None if group_by is None else self._groups(db, group_by)
            indexed = self._index(view) if top_k <= max(TOP_K) else None
        for camera, mask in masks.items():
            rows = np.array([q for q, own in enumerate(cameras) if own == camera])
            found = min(top_k, int(np.count_nonzero(mask)))
            if not found:
                continue
            if groups is None:
                places, values = view.nearest(vectors[rows], mask, found, indexed)
                keys[rows, :found], scores[rows, :found] = view.keys[places], values
            else:
                for q in rows:
                    own = _grouped(vectors[q : q + 1], view, mask, top_k, groups, indexed)
                    keys[q, : len(own)], scores[q, : len(own)] = zip(*own)
        if threshold is not None:
            keys[scores < threshold], scores[scores < threshold] = -1, -np.inf
        return Ranking(keys, scores)

    def _index(self, view: _View) -> Indexed | None:
        """The index beside the rows of that state. One that is damaged is told of, and not used."""
        if view.learnt is None or view.learnt.kind != INDEX:
            return None
        known = self._indexed
        if known is None or known[:2] != (view.learnt.number, view.generation):
            lists: Codec | Lists | None = None
            if known is not None and known[0] == view.learnt.number:
                lists = known[2].lists if known[2] is not None else None
            else:
                try:
                    lists = quantizers.load(self.path, view.learnt)
                except Damage as damage:
                    warnings.warn(f"gallery {self.path}: {damage}; searched exactly, without it; gallery check "
                                  "--repair learns it anew", stacklevel=3)  # fmt: skip
            made = Indexed(lists, view.keys) if isinstance(lists, Lists) else None
            self._indexed = known = view.learnt.number, view.generation, made
        return known[2]

    def _mask(self, db: sqlite3.Connection, view: _View, filter: Filter | None, camera: int | None) -> np.ndarray:
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

    def _groups(self, db: sqlite3.Connection, name: str) -> dict[int, object]:
        """key -> group of every image that is in one."""
        if name == "pid":
            return dict(db.execute("SELECT key, pid FROM images WHERE pid IS NOT NULL AND pid NOT IN (-1, 0)"))
        rows = db.execute(
            "SELECT images.key, json_each.value FROM images, json_each(images.fields) WHERE json_each.key = ?", [name]
        ).fetchall()
        if not rows and len(self):
            raise self._no_group(name)
        return dict(rows)

    # ---- writing

    def set_preset(self, preset: str, *, recall: float = RECALL) -> None:
        with self._writing() as db:
            presets.change(self, db, preset, recall)

    def expire(self, before: float) -> int:
        with self._writing(vacuum=True) as db:
            old = "SELECT key FROM images WHERE COALESCE(time, added) < ? ORDER BY key"
            count = self._remove(db, [key for (key,) in db.execute(old, [as_seconds(before)])], purge=True)
            presets.keep_up(self, db, prune=True)
            return count

    def forget(self, pid: Pid) -> Forgotten:
        """Their rows in SQLite are overwritten, the files that held their vectors (or those of images removed before,
        of whomever) are written anew without them, an index is learnt anew from who remains, the database is packed.
        Then every file of the folder is searched for the bytes of their paths, content hashes, vectors and codes; what
        remaining images have in common with them (a path that contains one, an equal vector) does not count. Readers
        that have the old files open keep them until they read again; copies and exports made elsewhere are theirs who
        made them. A compact gallery's codec, means over all that it was learnt from, stays.
        """
        person = as_pid(pid)
        if person is None:
            raise ReidError(f"gallery {self.path}: forgetting takes a person's pid")
        with self._locked():
            with self._writing(vacuum=True, locked=True) as db:
                theirs = db.execute(f"SELECT {_COLUMNS} FROM images WHERE pid = ? ORDER BY key", [person])
                entries = [_entry(row) for row in theirs]
                keys = [entry.key for entry in entries]
                none = np.empty((0, self._layout(db).width), self._layout(db).kind)
                traces = np.concatenate([none, *(s.vectors[np.isin(s.keys, keys)] for s in self._segments(db))])
                self._remove(db, keys, purge=True)
                presets.learn(self, db)
            return self._prove(entries, traces)

    def compact(self) -> None:
        """Writes all vectors into one file, without those of removed images, learns an index anew, and packs the
        database."""
        with self._writing(vacuum=True) as db:
            parts = self._segments(db)
            if len(parts) > 1 or any(segment.count < len(segment.keys) for segment in parts):
                self._rewrite(db, parts)
            presets.learn(self, db)

    def _is_same(self, other: Gallery) -> bool:
        with contextlib.suppress(OSError):
            return isinstance(other, FolderGallery) and os.path.samefile(self.path, other.path)
        return False

    # ---- the folder

    @contextlib.contextmanager
    def reading(self) -> Iterator[sqlite3.Connection]:
        """Writers wait meanwhile: keep it short. Gives the database, to be read only."""
        held: sqlite3.Connection | None = getattr(self._local, "db", None)
        if held is not None:
            yield held
            return
        with told(self.path, sqlite3.Error), contextlib.closing(self._connect()) as db:
            with told(self.path, OSError):
                db.execute("BEGIN")
                generation = db.execute("SELECT generation FROM state").fetchone()[0]
                if self._view is None or self._view.generation != generation:
                    self._view = self._load(db, generation)
            self._local.db = db
            try:
                yield db
            finally:
                self._local.db = None

    def _seen(self) -> _View:
        """The state that `reading` found."""
        assert self._view is not None
        return self._view

    def _connect(self) -> sqlite3.Connection:
        file = self.path / DATABASE
        if not file.is_file():
            raise damaged(self.path, f"{DATABASE} is missing")
        mode = "rw" if os.access(file, os.W_OK) and os.access(self.path, os.W_OK) else "ro"
        db = sqlite3.connect(f"{file.absolute().as_uri()}?mode={mode}", uri=True, timeout=self.wait,
                             isolation_level=None)  # fmt: skip
        for setting in ("synchronous = EXTRA", "secure_delete = ON", "cache_spill = OFF", "temp_store = MEMORY",
                        "trusted_schema = OFF"):  # fmt: skip
            db.execute(f"PRAGMA {setting}")
        return db

    def _load(self, db: sqlite3.Connection, generation: int) -> _View:
        parts = self._segments(db)
        keys = np.concatenate([np.empty(0, np.int64), *(segment.keys for segment in parts)])
        live = np.concatenate([np.empty(0, bool), *(segment.live for segment in parts)])
        (images,) = db.execute("SELECT COUNT(*) FROM images").fetchone()
        if images != np.count_nonzero(live):
            raise damaged(self.path, f"{images} images, {np.count_nonzero(live)} vectors of them")
        return _View(generation, parts, keys, live, self._codes(db), quantizers.named(db))

    def _codes(self, db: sqlite3.Connection) -> Coded | None:
        """What the rows are codes of; None where they are vectors."""
        named = quantizers.named(db)
        if named is None or named.kind != CODEC:
            return None
        if self._coded is None or self._coded[0] != named.number:
            try:
                codec = quantizers.load(self.path, named)
            except Damage as damage:
                raise ReidError(f"gallery {self.path}: {damage}, and nothing else says what its codes stand for: take "
                                "it from a copy, or index the images again") from None  # fmt: skip
            assert isinstance(codec, Codec)
            self._coded = named.number, Coded(codec)
        return self._coded[1]

    def _layout(self, db: sqlite3.Connection) -> Layout:
        """Of the vector files' rows."""
        coded = self._codes(db)
        return Layout(self.dimension) if coded is None else Layout(coded.codec.width, "|u1")

    def _segments(self, db: sqlite3.Connection) -> list[Segment]:
        """The vector files that the database names, ascending by key, opened."""
        removed = np.fromiter((key for (key,) in db.execute("SELECT key FROM removed ORDER BY key")), np.int64)
        open_already = {segment.number: segment.vectors for segment in self._view.segments} if self._view else {}
        parts, layout = [], self._layout(db)
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

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Alone among writers."""
        with told(self.path, writing=True), open(self.path / _LOCK, "w") as file:
            end = time.monotonic() + self.wait
            while True:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    if time.monotonic() >= end:
                        raise ReidError(
                            f"gallery {self.path}: another process is writing to it, for more than {self.wait:g} "
                            "seconds; try again later"
                        ) from None
                    time.sleep(0.02)
            yield

    @contextlib.contextmanager
    def _writing(self, *, vacuum: bool = False, locked: bool = False) -> Iterator[sqlite3.Connection]:
        """One transaction: all of it is on disk at the end of the block, or nothing is changed.

        vacuum: the database is packed afterwards. locked: the lock is held already.
        """
        with contextlib.nullcontext() if locked else self._locked(), contextlib.closing(self._connect()) as db:
            with told(self.path, writing=True):
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
                raise ReidError(f"gallery {self.path}: what was asked for is done, but the database could not be "
                                f"packed ({error}); run it again") from error  # fmt: skip

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

    def _append(
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
        self._remove(db, list(replaced))
        (first,) = db.execute("SELECT next_key FROM state").fetchone()
        keys = np.arange(first, first + len(rows), dtype=np.int64)
        if not rows:
            return keys
        insert = f"INSERT INTO images ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?)"
        db.executemany(
            insert, ((key, p, pid, cam, at, since, digest, more)
                     for key, (p, pid, cam, at, digest, more), since in zip(keys.tolist(), rows, added))
        )  # fmt: skip
        db.execute("UPDATE state SET next_key = ?", [first + len(rows)])
        parts, count = self._segments(db), len(rows)
        joined: list[Segment] = []
        while parts and parts[-1].count <= count:
            joined.insert(0, parts.pop())
            count += joined[0].count
        coded = self._codes(db)
        self._rewrite(db, joined, keys, vectors if coded is None else map(coded.codec.encode, vectors))
        presets.keep_up(self, db)
        return keys

    def _remove(self, db: sqlite3.Connection, keys: list[int], *, purge: bool = False) -> int:
        """SQLite overwrites what it held of them; files with more removed than live rows, or with purge with any, are
        written anew."""
        rows = [(key,) for key in keys]
        db.executemany("INSERT INTO removed VALUES (?)", rows)
        db.executemany("DELETE FROM images WHERE key = ?", rows)
        for segment in self._segments(db) if keys or purge else ():
            gone = len(segment.keys) - segment.count
            if gone and (purge or gone > segment.count):
                self._rewrite(db, [segment])
        return len(keys)

    def _rewrite(
        self,
        db: sqlite3.Connection,
        parts: Sequence[Segment],
        new_keys: np.ndarray | None = None,
        new_rows: Iterable[np.ndarray] = (),
        encode: Callable[[np.ndarray], np.ndarray] | None = None,
    ) -> None:
        """One new file in place of those: their live rows, which encode makes codes of, and the new ones."""
        keys = np.concatenate([*(segment.keys[segment.live] for segment in parts),
                               *([] if new_keys is None else [new_keys])])  # fmt: skip
        pieces, layout = self._pieces(parts, self._checksums(db), None), self._layout(db)
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

    def _checksums(self, db: sqlite3.Connection | None = None) -> dict[int, np.ndarray]:
        with contextlib.nullcontext(db) if db is not None else self.reading() as source:
            return {n: np.frombuffer(x, "<u4") for n, x in source.execute("SELECT number, checksums FROM segments")}

    def _pieces(
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

    # ---- proof, check and repair

    def _prove(self, entries: list[Entry], traces: np.ndarray) -> Forgotten:
        """Raises ReidError where a file holds bytes of those images."""
        words = {os.fsencode(entry.path) for entry in entries} | {e.hash.encode() for e in entries if e.hash}
        with self.reading() as db:
            view = self._seen()
            similar = set[bytes]()  # what remaining images have in common
            for word in words:
                text = stored(os.fsdecode(word))
                like = "SELECT path, hash FROM images WHERE instr(path, ?) OR hash = ?"
                for path, digest in db.execute(like, [text, text]):
                    similar |= {os.fsencode(path), (digest or "").encode()}
        similar.discard(b"")
        size, files = 0, [file for file in sorted(self.path.iterdir()) if file.is_file()]
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
            if view.learnt is not None and file.name == view.learnt.name and self._codes_left(view, traces):
                found.append(file.name)
                continue
            if any(word in data for word in words) or any(row.tobytes() in data for row in traces):
                found.append(file.name)
        if found:
            raise ReidError(f"gallery {self.path}: {', '.join(found)} hold traces of the person still; run it again")
        return Forgotten(len(entries), f"no trace of their paths, content hashes and vectors in its {len(files)} files "
                                       f"({size:,} bytes searched)")  # fmt: skip

    def _codes_left(self, view: _View, traces: np.ndarray) -> bool:
        """Whether an index holds codes of those vectors that are no remaining image's."""
        assert view.learnt is not None
        if view.learnt.kind != INDEX:
            return False
        lists = quantizers.load(self.path, view.learnt)
        assert isinstance(lists, Lists)
        held = lists.keys[lists.order[_rows_in(lists.codec.encode(traces), lists.codes)]]
        return not np.isin(held, view.keys[view.live]).all()

    def _model_trouble(self) -> str | None:
        if self._manifest.model is None:
            return None
        name = self._model_name()
        files = [self.path / file for file in MODELS[name]]
        missing = [file.name for file in files if not file.is_file()]
        if missing:
            return f"{missing[0]} is missing"
        return None if hash_file(*files) == self._manifest.model else f"{name} is not what was written"

    def _model_name(self) -> str:
        return next((name for name in MODELS if (self.path / name).is_file()), next(iter(MODELS)))


def fuse(vectors: np.ndarray) -> np.ndarray:
    """(n, D) unit vectors of one person -> (1, D) float32, their mean, of unit length. Raises ReidError."""
    mean = np.asarray(vectors, np.float64).sum(axis=0, keepdims=True)
    norm = np.linalg.norm(mean)
    if norm < 1e-6:
        raise ReidError(f"{len(vectors)} vectors have no mean direction: give images of one person")
    fused: np.ndarray = (mean / norm).astype(np.float32)
    return fused


def _copy_model(model: Path, folder: Path) -> str:
    """Copies a model's file, or files, under the gallery's names for them; their digest."""
    name = f"model{model.suffix}" if f"model{model.suffix}" in MODELS else next(iter(MODELS))
    copies = [folder / file for file in MODELS[name]]
    for source, copy in zip([model, *(model.with_suffix(file.suffix) for file in copies[1:])], copies):
        with atomic_file(copy) as temporary:
            shutil.copyfile(source, temporary)
    return hash_file(*copies)


def hash_file(*paths: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, or of several ones' in turn, hexadecimal."""
    sha = hashlib.sha256()
    for path in paths:
        with open(path, "rb") as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def _grouped(
    query: np.ndarray, view: _View, mask: np.ndarray, top_k: int, groups: Mapping[int, object], indexed: Indexed | None
) -> list[tuple[int, float]]:
    """(key, score) of the nearest image of each of the nearest groups: images are looked at until there are top_k."""
    total, count = int(np.count_nonzero(mask)), top_k
    while True:
        count = min(4 * count, total)
        places, values = view.nearest(query, mask, count, indexed)
        first: dict[object, tuple[int, float]] = {}
        for key, score in zip(view.keys[places[0]].tolist(), values[0].tolist()):
            first.setdefault(("group", groups[key]) if key in groups else key, (key, score))
        if len(first) >= top_k or count == total:
            return list(first.values())[:top_k]


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


def _size(folder: Path) -> int:
    """Bytes of the files in it; one that is swept away meanwhile counts nothing."""
    size = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    return size


def _entry(row: tuple[Any, ...]) -> Entry:
    key, path, pid, camid, at, added, digest, fields = row
    return Entry(key, os.fsdecode(path), pid, camid, at, added, digest, json.loads(fields))
