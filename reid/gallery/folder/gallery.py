"""The gallery's folder: what `reid.gallery` says of it, read and written."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.files import atomic_file, atomic_folder, write_json
from reid.core.types import Ranking, ReidError
from reid.core.values import Pid
from reid.gallery.base import RECALL, Gallery, Snapshot, check_new
from reid.gallery.entry import Entry, Forgotten, Info, as_pid, as_seconds
from reid.gallery.filter import Filter
from reid.gallery.folder import presets, quantizers
from reid.gallery.folder.check import check, repair
from reid.gallery.folder.database import COLUMNS, SCHEMA, Database, View, entry_of
from reid.gallery.folder.forget import prove
from reid.gallery.folder.model import copy_model, model_name, model_trouble
from reid.gallery.folder.quantizers import INDEX
from reid.gallery.folder.vectors import Damage
from reid.gallery.index.ivf import TOP_K, Indexed, Lists
from reid.gallery.index.sq8 import Codec
from reid.gallery.manifest import (
    DATABASE,
    FORMAT_VERSION,
    MANIFEST,
    METRIC,
    Manifest,
    damaged,
    read_manifest,
    translate_errors,
)

_PAGE = 10_000  # entries read at a time


@contextlib.contextmanager
def _made_by_one(path: Path) -> Iterator[None]:
    """ReidError where another process makes a gallery at `path` meanwhile."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
        raise ReidError(
            f"gallery {path}: another process made one there meanwhile: open it, or run the same command again"
        ) from None


class FolderGallery(Gallery):
    """A gallery in a folder.

    Safe to use from several threads, and across a fork. Readers wait for `wait` seconds, too. What it searches and
    lists is here; how it is stored, in `reid.gallery.folder.database`.
    """

    def __init__(self, path: Path, *, wait: float = 10.0) -> None:
        """Use `create` or `open`."""
        self.path, self.place = Path(os.path.abspath(path)), str(path)  # it stays there when the program moves
        self._manifest = read_manifest(path)
        self._database = Database(self.path, self._manifest.dimension, wait)
        self._indexed: tuple[int, int, Indexed | None] | None = None  # of which index and state

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
        if path.is_dir() and os.path.samefile(path, os.curdir):
            raise ReidError(f"gallery {path}: the working folder cannot become one; name a new folder, such as people")
        check_new(path, dimension, model)
        height, width = map(int, input_size)
        with translate_errors(path, writing=True), _made_by_one(path), atomic_folder(path) as folder:
            digest = copy_model(Path(model), folder) if model is not None else None
            manifest = Manifest(FORMAT_VERSION, fingerprint, (height, width), int(dimension), METRIC, digest)
            with atomic_file(folder / DATABASE) as temporary, contextlib.closing(sqlite3.connect(temporary)) as db:
                db.executescript(SCHEMA)
            write_json(folder / MANIFEST, asdict(manifest))
        return cls.open(path, wait=wait)

    @classmethod
    def open(cls, place: str | os.PathLike[str], *, wait: float = 10.0) -> FolderGallery:
        """The vectors' checksums are not compared: see `check`."""
        gallery = cls(Path(place), wait=wait)
        with gallery.reading():
            return gallery

    @classmethod
    def unread(cls, place: str | os.PathLike[str]) -> FolderGallery:
        return cls(Path(place))

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        return (Path(place) / MANIFEST).exists()

    @property
    def wait(self) -> float:
        return self._database.wait

    @wait.setter
    def wait(self, seconds: float) -> None:
        self._database.wait = seconds

    # ---- what is in it

    def count(self, filter: Filter | None = None) -> int:
        where, values = (filter or Filter()).where()
        with self.reading() as db:
            return int(db.execute(f"SELECT COUNT(*) FROM images WHERE {where}", values).fetchone()[0])

    def entry(self, key: int) -> Entry:
        with self.reading() as db:
            row = db.execute(f"SELECT {COLUMNS} FROM images WHERE key = ?", [int(key)]).fetchone()
        if row is None:
            raise ReidError(f"gallery {self.path}: no image has the key {key}")
        return entry_of(row)

    def entries(self, filter: Filter | None = None) -> Iterator[Entry]:
        where, values = (filter or Filter()).where()
        query = f"SELECT {COLUMNS} FROM images WHERE key > ? AND {where} ORDER BY key LIMIT {_PAGE}"
        last = -1
        while True:
            with self.reading() as db:
                page = [entry_of(row) for row in db.execute(query, [last, *values])]
            yield from page
            if len(page) < _PAGE:
                return
            last = page[-1].key

    def vectors(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """Of a compact gallery what its codes stand for."""
        with self.reading():
            view = self._database.seen()
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
            view, entries, sums = self._database.seen(), list(self.entries()), self._database.checksums()

        def vectors(places: Sequence[int]) -> Iterator[np.ndarray]:
            chosen = np.zeros(len(view.keys), bool)
            chosen[np.flatnonzero(view.live)[np.array(places, np.int64)]] = True
            pieces = self._database.pieces(view.segments, sums, chosen)
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
            view, manifest = self._database.seen(), self._manifest
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
        if trouble := model_trouble(self.path, self._manifest):
            raise damaged(self.path, trouble, mendable=False)
        return self.path / model_name(self.path)

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
            view = self._database.seen()
            masks = {camera: self._database.mask(db, view, filter, camera) for camera in dict.fromkeys(cameras)}
            groups = None if group_by is None else self._database.groups(db, group_by)
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

    def _index(self, view: View) -> Indexed | None:
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
                    warnings.warn(
                        f"gallery {self.path}: {damage}; searched exactly, without it; gallery check "
                        "--repair learns it anew",
                        stacklevel=3,
                    )
            made = Indexed(lists, view.keys) if isinstance(lists, Lists) else None
            self._indexed = known = view.learnt.number, view.generation, made
        return known[2]

    # ---- writing

    def set_preset(self, preset: str, *, recall: float = RECALL) -> None:
        with self._database.writing() as db:
            presets.change(self._database, db, preset, recall)

    def expire(self, before: float) -> int:
        with self._database.writing(vacuum=True) as db:
            old = "SELECT key FROM images WHERE COALESCE(time, added) < ? ORDER BY key"
            count = self._database.remove(db, [key for (key,) in db.execute(old, [as_seconds(before)])], purge=True)
            presets.keep_up(self._database, db, prune=True)
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
        with self._database.locked():
            with self._database.writing(vacuum=True, locked=True) as db:
                theirs = db.execute(f"SELECT {COLUMNS} FROM images WHERE pid = ? ORDER BY key", [person])
                entries = [entry_of(row) for row in theirs]
                keys = [entry.key for entry in entries]
                none = np.empty((0, self._database.layout(db).width), self._database.layout(db).kind)
                traces = np.concatenate(
                    [none, *(s.vectors[np.isin(s.keys, keys)] for s in self._database.segments(db))]
                )
                self._database.remove(db, keys, purge=True)
                presets.learn(self._database, db)
            return prove(self._database, entries, traces)

    def compact(self) -> None:
        """Writes all vectors into one file, without those of removed images, learns an index anew, and packs the
        database."""
        with self._database.writing(vacuum=True) as db:
            parts = self._database.segments(db)
            if len(parts) > 1 or any(segment.count < len(segment.keys) for segment in parts):
                self._database.rewrite(db, parts)
            presets.learn(self._database, db)

    def _is_same(self, other: Gallery) -> bool:
        with contextlib.suppress(OSError):
            return isinstance(other, FolderGallery) and os.path.samefile(self.path, other.path)
        return False

    # ---- the folder

    def reading(self) -> AbstractContextManager[sqlite3.Connection]:
        """Writers wait meanwhile: keep it short. Gives the database, to be read only."""
        return self._database.reading()

    def _writing(self) -> AbstractContextManager[sqlite3.Connection]:
        return self._database.writing()

    def _append(
        self,
        writer: sqlite3.Connection,
        vectors: Iterable[np.ndarray],
        rows: Sequence[tuple[Any, ...]],
        added: Sequence[float],
        replaced: Sequence[int] = (),
    ) -> np.ndarray:
        keys = self._database.append(writer, vectors, rows, added, replaced)
        if len(keys):
            presets.keep_up(self._database, writer)
        return keys

    def _remove(self, writer: sqlite3.Connection, keys: list[int]) -> int:
        return self._database.remove(writer, keys)

    def check(self) -> list[str]:
        trouble = model_trouble(self.path, self._manifest)
        return [*check(self._database), *([trouble] if trouble else [])]

    def repair(self) -> tuple[list[Entry], list[str]]:
        return repair(self._database), self.check()


def _grouped(
    query: np.ndarray, view: View, mask: np.ndarray, top_k: int, groups: Mapping[int, object], indexed: Indexed | None
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


def _size(folder: Path) -> int:
    """Bytes of the files in it; one that is swept away meanwhile counts nothing."""
    size = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):
            size += file.stat().st_size
    return size
