"""A gallery in Milvus: a cluster that several machines share, or Milvus Lite embedded in this program, for trying out.

    milvus://HOST:PORT/NAME    a server or cluster, of Milvus 2.3 or newer; milvus+https:// over TLS. What the
                               environment holds in MILVUS_TOKEN ("user:password", or an API key) is its password
    milvus+lite:PATH.db        a folder that Milvus Lite keeps; one program has it open at a time

Two collections are one gallery. NAME holds an image a row: its vector with a checksum, and what is known of it, so that
filters apply before the search. NAME_about holds the manifest, the state, and the model in pieces, which each machine
copies into its cache once.

Milvus has no transactions. What an addition has written is seen, all at once, when it raises `next_key` in the state,
and the next writer removes what a killed one left above it. An image that another one replaces is deleted after that,
so readers may see both for a moment. A removal that is killed may have removed some of its images.

The index is FLAT, exact, unless the place asks for another one when the gallery is made, and then for its depth when it
is searched: milvus://HOST:PORT/NAME?index=IVF_SQ8&nlist=4096, and milvus://HOST:PORT/NAME?nprobe=64 (docs/scale.md).
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.files import hash_file
from reid.core.types import Ranking, ReidError
from reid.core.values import Pid
from reid.gallery.base import Gallery, Snapshot, check_new, no_group
from reid.gallery.entry import Entry, Forgotten, Info, as_pid, as_seconds
from reid.gallery.filter import Filter
from reid.gallery.manifest import FORMAT_VERSION, METRIC, Manifest, as_manifest, damaged
from reid.gallery.milvus.check import lost_vectors, troubles_of
from reid.gallery.milvus.client import STEP, Collections, parse
from reid.gallery.milvus.forget import merge_files
from reid.gallery.milvus.model import copied_model, write_model
from reid.gallery.milvus.rows import COLUMNS, as_entry, info_of, older, path_text, where
from reid.gallery.milvus.search import LIMIT, has_field, nearest, nearest_groups
from reid.gallery.milvus.writer import Writer


class MilvusGallery(Gallery):
    """Use `Gallery.create` or `Gallery.open`. Safe to use from several threads."""

    def __init__(self, place: str, *, wait: float = 10.0) -> None:
        self.place = place
        self._at = Collections(place)
        self._writer = Writer(place, self._at, wait)
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
    ) -> MilvusGallery:
        """NAME and NAME_about must not exist."""
        check_new(place, dimension, model)
        gallery = cls(os.fspath(place), wait=wait)
        there = [name for name in (gallery._at.images, gallery._at.about) if gallery._at.has(name)]
        if there == [gallery._at.images] or gallery._at.text("manifest") is not None:
            raise ReidError(f"gallery {place}: exists already; open it, or choose another name")
        gallery.drop()  # of a creation that was killed
        gallery._at.make(int(dimension))
        digest = hash_file(model) if model is not None else None
        if model is not None:
            write_model(gallery._at, model)
        height, width = map(int, input_size)
        manifest = Manifest(FORMAT_VERSION, fingerprint, (height, width), int(dimension), METRIC, digest)
        gallery._at.put("state", json.dumps({"next_key": 0}))
        gallery._at.put("manifest", json.dumps(asdict(manifest)))
        return cls.open(place, wait=wait)

    @classmethod
    def open(cls, place: str | os.PathLike[str], *, wait: float = 10.0) -> MilvusGallery:
        folder = parse(os.fspath(place)).folder
        gallery = None if folder and not folder.exists() else cls(os.fspath(place), wait=wait)  # Milvus Lite makes it
        text = None if gallery is None else gallery._at.text("manifest")
        if gallery is None or text is None:
            raise ReidError(f"gallery {place}: there is none; index a folder of images first")
        try:
            gallery._manifest = as_manifest(json.loads(text), gallery.place)
        except ValueError:
            raise damaged(gallery.place, "its manifest is not JSON", mendable=False) from None
        if not gallery._at.load(gallery._at.images):
            raise damaged(gallery.place, f"the collection {gallery._at.images} is missing", mendable=False)
        gallery._writer.next_key()
        return gallery

    @classmethod
    def unread(cls, place: str | os.PathLike[str]) -> MilvusGallery:
        return cls.open(place)

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        folder = parse(os.fspath(place)).folder
        if folder is not None and not folder.exists():
            return False
        return cls(os.fspath(place))._at.text("manifest") is not None

    def drop(self) -> None:
        """Deletes the gallery."""
        for name in (self._at.images, self._at.about):
            if self._at.has(name):
                self._at.call("drop_collection", name)

    # ---- what is in it

    @property
    def model_path(self) -> Path | None:
        """This machine's copy of it, in $XDG_CACHE_HOME/reid or ~/.cache/reid."""
        digest = self._manifest.model
        return None if digest is None else copied_model(self._at, digest, self.place)

    def count(self, filter: Filter | None = None) -> int:
        with self.reading():
            found = self._at.call("query", self._at.images, filter=self._where(filter), output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def entry(self, key: int) -> Entry:
        with self.reading():
            rows = self._rows_of([key], COLUMNS)
        if not rows:
            raise ReidError(f"gallery {self.place}: no image has the key {key}")
        return as_entry(rows[key])

    def entries(self, filter: Filter | None = None) -> Iterator[Entry]:
        with self.reading():
            where = self._where(filter)
        for row in self._at.rows(where, COLUMNS):
            yield as_entry(row)

    def vectors(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(keys, np.int64)
        rows = np.empty((len(wanted), self.dimension), np.float32)
        with self.reading():
            for start in range(0, len(wanted), STEP):
                part = wanted[start : start + STEP].tolist()
                found = self._rows_of(part, ["key", "vector"])
                for place, key in enumerate(part, start):
                    if key not in found:
                        raise ReidError(f"gallery {self.place}: no image has the key {key}")
                    rows[place] = found[key]["vector"]
        return rows

    def snapshot(self) -> Snapshot:
        entries = list(self.entries())

        def vectors(places: Sequence[int]) -> Iterator[np.ndarray]:
            for start in range(0, len(places), STEP):
                yield self.vectors([entries[place].key for place in places[start : start + STEP]])

        return Snapshot(entries, vectors)

    def info(self) -> Info:
        """People, cameras and times are counted in a pass over what is known of all images."""
        folder = self._at.folder
        files = [] if folder is None else [file for file in folder.rglob("*") if file.is_file()]
        size = None if folder is None else sum(file.stat().st_size for file in files)
        return info_of(self._manifest, list(self.entries()), size)

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Images that are added meanwhile are not seen; those that are removed are gone."""
        if getattr(self._local, "next_key", None) is not None:
            yield
            return
        self._local.next_key = self._writer.next_key()
        try:
            yield
        finally:
            self._local.next_key = None

    def _at_paths(self, paths: Sequence[str | bytes]) -> dict[str | bytes, tuple[int, str | None]]:
        names = {path_text(path): path for path in paths}
        found: dict[str | bytes, tuple[int, str | None]] = {}
        with self.reading():
            for row in self._writer.among("path", list(names), ["key", "path", "hash"], self._where(None)):
                found[names[row["path"]]] = row["key"], row["hash"] or None
        return found

    def _with_hashes(self, hashes: Sequence[str]) -> set[str]:
        with self.reading():
            return {
                row["hash"]
                for row in self._writer.among("hash", [x for x in set(hashes) if x], ["hash"], self._where(None))
            }

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
        """As exact as the index of the collection; which of equal scores are the last of the top_k is up to Milvus."""
        vectors, cameras = self._asked(vectors, top_k, exclude_camids)
        if top_k > LIMIT:
            raise ReidError(f"gallery {self.place}: Milvus answers {LIMIT:,} images at most, got top_k {top_k}")
        keys = np.full((len(vectors), top_k), -1, dtype=np.int64)
        scores = np.full((len(vectors), top_k), -np.inf, dtype=np.float32)
        step = 1 if group_by is not None else max(1, 100_000 // top_k)
        with self.reading():
            named = group_by not in (None, "pid")
            if named and not has_field(self._at, self._where(None), str(group_by)) and len(self):
                raise no_group(self.place, str(group_by))
            for camera in dict.fromkeys(cameras):
                where = self._where(filter, camera)
                rows = [q for q, own in enumerate(cameras) if own == camera]
                for start in range(0, len(rows), step):
                    part = rows[start : start + step]
                    if group_by is None:
                        answers = nearest(self._at, vectors[part], where, top_k)
                    else:
                        answers = [nearest_groups(self._at, vectors[part], where, top_k, group_by)]
                    for q, hits in zip(part, answers):
                        keys[q, : len(hits)] = [key for key, _, _ in hits]
                        scores[q, : len(hits)] = [score for _, score, _ in hits]
        if threshold is not None:
            keys[scores < threshold], scores[scores < threshold] = -1, -np.inf
        return Ranking(keys, scores)

    def _where(self, filter: Filter | None, camera: int | None = None) -> str:
        return where(filter, self._local.next_key, camera)

    # ---- writing

    def expire(self, before: float) -> int:
        """Milvus takes them out of its files as after `forget`."""
        with self._writer.writing():
            with self.reading():
                old = f"{self._where(None)} and {older(as_seconds(before) or 0.0)}"
            count = self._remove(None, [row["key"] for row in self._at.rows(old, ["key"])])
        merge_files(self._at, self.wait)
        return count

    def forget(self, pid: Pid) -> Forgotten:
        """No query and no search finds them: that is proved. Milvus marks what is deleted, and takes it out of its
        files when it merges them, which it is asked for; the old files, its log, and backups are its own matter."""
        person = as_pid(pid)
        if person is None:
            raise ReidError(f"gallery {self.place}: forgetting takes a person's pid")
        with self._writer.writing():
            entries = list(self.entries(Filter(pids=[person])))
            keys = [entry.key for entry in entries]
            vectors = self.vectors(keys)
            self._remove(None, keys)
        merged = merge_files(self._at, self.wait)
        left = self.count(Filter(pids=[person])) + sum(
            self.count(Filter(keys=keys[start : start + STEP])) for start in range(0, len(keys), STEP)
        )
        for start in range(0, len(keys), STEP):
            left += int(np.isin(self.search(vectors[start : start + STEP], 1).keys, keys).sum())
        if left:
            raise ReidError(f"gallery {self.place}: images of the person are found still; run it again")
        return Forgotten(len(entries), f"no query and no search finds them; {merged}")

    def compact(self) -> None:
        """Milvus does it by itself, too."""
        merge_files(self._at, self.wait)

    @property
    def wait(self) -> float:
        return self._writer.wait

    @wait.setter
    def wait(self, seconds: float) -> None:
        self._writer.wait = seconds

    def _writing(self) -> AbstractContextManager[None]:
        return self._writer.writing()

    def _append(
        self,
        writer: None,
        vectors: Iterable[np.ndarray],
        rows: Sequence[tuple[Any, ...]],
        added: Sequence[float],
        replaced: Sequence[int] = (),
    ) -> np.ndarray:
        return self._writer.append(vectors, rows, added, replaced)

    def _remove(self, writer: None, keys: list[int]) -> int:
        self._writer.delete(keys)
        return len(keys)

    def _is_same(self, other: Gallery) -> bool:
        return isinstance(other, MilvusGallery) and parse(self.place)[:2] == parse(other.place)[:2]

    # ---- check and repair

    def check(self) -> list[str]:
        """What is wrong, a line each: every vector is held against its checksum."""
        troubles = troubles_of(self._at, self._writer.next_key())
        try:
            _ = self.model_path
        except ReidError:
            troubles.append("its model is not what was written")
        return troubles

    def repair(self) -> tuple[list[Entry], list[str]]:
        """Drops the images whose vectors are not what was written, and what killed writers left; returns those images,
        and what is wrong still."""
        for name in self._at.texts("writer-"):
            self._at.call("delete", self._at.about, ids=[name])
        with self._writer.writing():
            dropped = [self.entry(key) for key in lost_vectors(self._at, self._writer.next_key())]
            self._writer.delete([entry.key for entry in dropped])
        return dropped, self.check()

    def _rows_of(self, keys: Sequence[int], fields: Sequence[str]) -> dict[int, dict[str, Any]]:
        seen = [int(key) for key in keys if 0 <= key < self._local.next_key]
        rows = self._at.call("get", self._at.images, ids=seen, output_fields=list(fields)) if seen else []
        return {row["key"]: row for row in rows}
