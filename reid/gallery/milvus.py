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

The index is FLAT, exact. For more images than memory holds, choose another one in Milvus (docs/scale.md): nothing here
depends on it but the recall of `search`.
"""

from __future__ import annotations

import base64
import collections
import contextlib
import hashlib
import json
import logging
import os
import random
import re
import socket
import threading
import time
import uuid
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid.files import atomic_file
from reid.gallery.base import Gallery, Snapshot, cache_folder, check_new
from reid.gallery.manifest import FORMAT_VERSION, METRIC, Manifest, as_manifest, damaged
from reid.gallery.select import Filter
from reid.gallery.store import Entry, Forgotten, Info, hash_file
from reid.gallery.values import Field, Pid, as_pid, as_seconds, stored
from reid.types import Ranking, ReidError

_LIMIT = 16_384  # images that Milvus answers at most (quotaAndLimits)
_STEP = 500  # rows sent or asked for at a time; a message holds 64 MiB
_PIECE = 48_000  # bytes of the model in a row; Milvus holds 65,535 in one text
_NO_CAMERA, _NO_TIME = -(2**62), -1e300  # unknown; columns that may be empty are of newer versions
_FIELDS = ["key", "path", "pid", "camid", "time", "added", "hash", "fields"]
_NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)


class _Place(NamedTuple):
    uri: str
    collection: str
    folder: Path | None  # that Milvus Lite keeps


class MilvusGallery(Gallery):
    """Use `Gallery.create` or `Gallery.open`. Safe to use from several threads."""

    def __init__(self, place: str, *, wait: float = 10.0) -> None:
        self.place, self.wait = place, wait
        where = _parse(place)
        self._name, self._about, self._folder = where.collection, f"{where.collection}_about", where.folder
        self._client = _connect(place, where)
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
        begun = gallery._has(gallery._about)
        if (gallery._has(gallery._name) and not begun) or (begun and gallery._texts("manifest")):
            raise ReidError(f"gallery {place}: exists already; open it, or choose another name")
        for name in (gallery._about, gallery._name) if begun else ():  # of a creation that was killed
            gallery._call("drop_collection", name)
        gallery._make_collections(int(dimension))
        digest = hash_file(model) if model is not None else None
        if model is not None:
            with open(model, "rb") as file:
                for n, piece in enumerate(iter(lambda: file.read(_PIECE), b"")):
                    gallery._put(f"model-{n:06}", base64.b64encode(piece).decode())
        height, width = map(int, input_size)
        manifest = Manifest(FORMAT_VERSION, fingerprint, (height, width), int(dimension), METRIC, digest)
        gallery._put("state", json.dumps({"next_key": 0}))
        gallery._put("manifest", json.dumps(asdict(manifest)))
        return cls.open(place, wait=wait)

    @classmethod
    def open(cls, place: str | os.PathLike[str], *, wait: float = 10.0) -> MilvusGallery:
        if not cls.exists(place):
            raise ReidError(f"gallery {place}: there is none; index a folder of images first")
        gallery = cls(os.fspath(place), wait=wait)
        text = gallery._texts("manifest")["manifest"]
        try:
            gallery._manifest = as_manifest(json.loads(text), gallery.place)
        except ValueError:
            raise damaged(gallery.place, "its manifest is not JSON") from None
        if not gallery._has(gallery._name):
            raise damaged(gallery.place, f"the collection {gallery._name} is missing")
        gallery._next_key()
        return gallery

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        folder = _parse(os.fspath(place)).folder
        if folder is not None and not folder.exists():  # Milvus Lite would make it
            return False
        gallery = cls(os.fspath(place))
        return gallery._has(gallery._about) and bool(gallery._texts("manifest"))

    # ---- what is in it

    @property
    def model_path(self) -> Path | None:
        """This machine's copy of it, in $XDG_CACHE_HOME/reid or ~/.cache/reid."""
        digest = self._manifest.model
        if digest is None:
            return None
        file = cache_folder() / f"{digest}.safetensors"
        if not file.is_file() or hash_file(file) != digest:
            pieces = sorted(self._texts("model-", starts=True).items())
            data = b"".join(base64.b64decode(text) for _, text in pieces)
            if hashlib.sha256(data).hexdigest() != digest:
                raise damaged(self.place, "its model is not what was written")
            with atomic_file(file) as temporary:
                temporary.write_bytes(data)
        return file

    def count(self, filter: Filter | None = None) -> int:
        with self.reading():
            found = self._call("query", self._name, filter=self._where(filter), output_fields=["count(*)"])
        return int(found[0]["count(*)"])

    def entry(self, key: int) -> Entry:
        with self.reading():
            rows = self._rows_of([key], _FIELDS)
        if not rows:
            raise ReidError(f"gallery {self.place}: no image has the key {key}")
        return _entry(rows[key])

    def entries(self, filter: Filter | None = None) -> Iterator[Entry]:
        with self.reading():
            where = self._where(filter)
        for row in self._rows(where, _FIELDS):
            yield _entry(row)

    def vectors(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        wanted = np.asarray(keys, np.int64)
        rows = np.empty((len(wanted), self.dimension), np.float32)
        with self.reading():
            for start in range(0, len(wanted), _STEP):
                part = wanted[start : start + _STEP].tolist()
                found = self._rows_of(part, ["key", "vector"])
                for place, key in enumerate(part, start):
                    if key not in found:
                        raise ReidError(f"gallery {self.place}: no image has the key {key}")
                    rows[place] = found[key]["vector"]
        return rows

    def snapshot(self) -> Snapshot:
        entries = list(self.entries())

        def vectors(places: Sequence[int]) -> Iterator[np.ndarray]:
            for start in range(0, len(places), _STEP):
                yield self.vectors([entries[place].key for place in places[start : start + _STEP]])

        return Snapshot(entries, vectors)

    def info(self) -> Info:
        """People, cameras and times are counted in a pass over what is known of all images."""
        entries = list(self.entries())
        cameras = collections.Counter(entry.camid for entry in entries if entry.camid is not None)
        times = [entry.time for entry in entries if entry.time is not None]
        added = [entry.added for entry in entries]
        m = self._manifest
        return Info(
            m.format_version,
            m.fingerprint,
            m.input_size,
            m.dimension,
            m.metric,
            m.model is not None,
            len(entries),
            len({entry.pid for entry in entries} - {None, -1, 0}),
            dict(sorted(cameras.items())),
            (min(times), max(times)) if times else None,
            (min(added), max(added)) if added else None,
            None,
            None,
            None if self._folder is None else sum(f.stat().st_size for f in self._folder.rglob("*") if f.is_file()),
        )

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """Images that are added meanwhile are not seen; those that are removed are gone."""
        if getattr(self._local, "next_key", None) is not None:
            yield
            return
        self._local.next_key = self._next_key()
        try:
            yield
        finally:
            self._local.next_key = None

    def _at_paths(self, paths: Sequence[str | bytes]) -> dict[str | bytes, tuple[int, str | None]]:
        names = {_text(path): path for path in paths}
        found: dict[str | bytes, tuple[int, str | None]] = {}
        with self.reading():
            for row in self._among("path", list(names), ["key", "path", "hash"]):
                found[names[row["path"]]] = row["key"], row["hash"] or None
        return found

    def _with_hashes(self, hashes: Sequence[str]) -> set[str]:
        with self.reading():
            return {row["hash"] for row in self._among("hash", [x for x in set(hashes) if x], ["hash"])}

    def _among(self, column: str, values: Sequence[str], fields: Sequence[str]) -> Iterator[dict[str, Any]]:
        """The images that have one of those texts in that column, by key."""
        for start in range(0, len(values), _STEP):
            part = values[start : start + _STEP]
            yield from self._rows(f"{self._where(None)} and {column} in {_list(part)}", fields)

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
        if top_k > _LIMIT:
            raise ReidError(f"gallery {self.place}: Milvus answers {_LIMIT:,} images at most, got top_k {top_k}")
        keys = np.full((len(vectors), top_k), -1, dtype=np.int64)
        scores = np.full((len(vectors), top_k), -np.inf, dtype=np.float32)
        step = 1 if group_by is not None else max(1, 100_000 // top_k)
        with self.reading():
            if group_by not in (None, "pid") and not self._has_field(str(group_by)) and len(self):
                raise self._no_group(str(group_by))
            for camera in dict.fromkeys(cameras):
                where = self._where(filter, camera)
                rows = [q for q, own in enumerate(cameras) if own == camera]
                for start in range(0, len(rows), step):
                    part = rows[start : start + step]
                    if group_by is None:
                        answers = self._nearest(vectors[part], where, top_k)
                    else:
                        answers = [self._grouped(vectors[part], where, top_k, group_by)]
                    for q, hits in zip(part, answers):
                        keys[q, : len(hits)] = [key for key, _, _ in hits]
                        scores[q, : len(hits)] = [score for _, score, _ in hits]
        if threshold is not None:
            keys[scores < threshold], scores[scores < threshold] = -1, -np.inf
        return Ranking(keys, scores)

    def _nearest(
        self, queries: np.ndarray, where: str, top_k: int, fields: Sequence[str] = ()
    ) -> list[list[tuple[int, float, dict[str, Any]]]]:
        """(key, score, those columns) of the nearest images of each query."""
        found = self._call("search", self._name, data=list(queries), anns_field="vector", filter=where, limit=top_k,
                           output_fields=["key", *fields], search_params={"metric_type": "IP"})  # fmt: skip
        hits = [[(h["key"], min(1.0, max(-1.0, h["distance"])), h["entity"]) for h in answer] for answer in found]
        return [sorted(answer, key=lambda hit: (-hit[1], hit[0])) for answer in hits]

    def _grouped(self, query: np.ndarray, where: str, top_k: int, group_by: str) -> list[tuple[int, float, Any]]:
        """The nearest image of each of the nearest groups: those found are left out and the next ones asked for."""
        best: dict[object, tuple[int, float, Any]] = {}
        limit = min(4 * top_k, _LIMIT)
        while len(best) < top_k:
            named = [group for group in best if isinstance(group, str)]
            alone = [key for key in best if isinstance(key, int)]
            parts = [where]
            if named and group_by == "pid":
                parts.append(f"pid not in {_list(named)}")
            elif named:
                parts.append(f"not array_contains_any(tags, {_list([_tag(group_by, text) for text in named])})")
            if alone:
                parts.append(f"key not in {alone}")
            (hits,) = self._nearest(query, " and ".join(parts), limit, ["pid" if group_by == "pid" else "fields"])
            for hit in hits:
                best.setdefault(_group(hit, group_by), hit)
            if len(hits) < limit:
                break
        return list(best.values())[:top_k]

    def _has_field(self, name: str) -> bool:
        where = f"{self._where(None)} and array_contains(tags, {_quoted(_tag(name))})"
        return bool(self._call("query", self._name, filter=where, output_fields=["key"], limit=1))

    def _where(self, filter: Filter | None, camera: int | None = None) -> str:
        """Milvus's condition: that of `Filter.where`, of the images that additions have finished."""
        f = filter or Filter()
        parts = [f"key < {self._local.next_key}"]
        if f.camids:
            parts.append(f"camid in {[int(x) for x in f.camids]}")
        if left_out := [*map(int, f.exclude_camids), *([] if camera is None else [camera])]:
            parts.append(f"camid not in {left_out}")
        if f.pids:
            parts.append(f"pid in {_list([_pid_text(pid) for pid in f.pids])}")
        if f.after is not None:
            parts.append(f"time >= {max(float(f.after), _NO_TIME / 2)!r}")
        if f.before is not None:
            parts.append(f"time > {_NO_TIME / 2!r} and time < {min(float(f.before), -_NO_TIME)!r}")
        parts += [f"array_contains(tags, {_quoted(_tag(name, _plain(value)))})" for name, value in f.fields.items()]
        for column, values in (
            ("key", None if f.keys is None else f"{[int(key) for key in f.keys]}"),
            ("path", None if f.paths is None else _list([_text(stored(path)) for path in f.paths])),
        ):
            if values is not None:
                parts.append("key < 0" if values == "[]" else f"{column} in {values}")
        if f.exclude_keys:
            parts.append(f"key not in {[int(key) for key in f.exclude_keys]}")
        return " and ".join(parts)

    # ---- writing

    def expire(self, before: float) -> int:
        """Milvus takes them out of its files as after `forget`."""
        limit = min(max(as_seconds(before) or 0.0, _NO_TIME / 2), -_NO_TIME)
        with self._writing():
            with self.reading():
                known, unknown = f"time > {_NO_TIME / 2!r}", f"time < {_NO_TIME / 2!r}"
                old = f"(({known} and time < {limit!r}) or ({unknown} and added < {limit!r}))"
                where = f"{self._where(None)} and {old}"
            count = self._remove(None, [row["key"] for row in self._rows(where, ["key"])])
        self._merge_files()
        return count

    def forget(self, pid: Pid) -> Forgotten:
        """No query and no search finds them: that is proved. Milvus marks what is deleted, and takes it out of its
        files when it merges them, which it is asked for; the old files, its log, and backups are its own matter."""
        person = as_pid(pid)
        if person is None:
            raise ReidError(f"gallery {self.place}: forgetting takes a person's pid")
        with self._writing():
            entries = list(self.entries(Filter(pids=[person])))
            keys = [entry.key for entry in entries]
            vectors = self.vectors(keys)
            self._remove(None, keys)
        merged = self._merge_files()
        left = self.count(Filter(pids=[person])) + sum(
            self.count(Filter(keys=keys[start : start + _STEP])) for start in range(0, len(keys), _STEP)
        )
        for start in range(0, len(keys), _STEP):
            left += int(np.isin(self.search(vectors[start : start + _STEP], 1).keys, keys).sum())
        if left:
            raise ReidError(f"gallery {self.place}: images of the person are found still; run it again")
        return Forgotten(len(entries), f"no query and no search finds them; {merged}")

    def compact(self) -> None:
        """Milvus does it by itself, too."""
        self._merge_files()

    def _merge_files(self) -> str:
        """Asks Milvus to take what was deleted out of its files; what it has done by then, a clause."""
        self._call("flush", self._name)
        if self._folder is not None:
            return ("Milvus Lite keeps deleted rows in its files until it merges these by itself: to be sure, merge "
                    "what remains into another gallery and delete this one")  # fmt: skip
        job = self._call("compact", self._name)
        end = time.monotonic() + self.wait
        while (state := str(self._call("get_compaction_state", job))) != "Completed" and time.monotonic() < end:
            time.sleep(0.2)
        done = "has merged its files" if state == "Completed" else f"was asked to merge its files (job {job}, {state})"
        return (f"Milvus {done} and deletes the old ones after its retention time (dataCoord.gc.dropTolerance); its "
                "message log and backups were not looked at")  # fmt: skip

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        """Every writer says that it is there, and goes on if no other one is: of two that meet, at least one sees the
        other."""
        me = f"writer-{uuid.uuid4().hex}"
        end = time.monotonic() + self.wait
        while True:
            self._put(me, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}))
            others = [text for name, text in self._texts("writer-", starts=True).items() if name != me]
            others = [text for text in others if not _is_dead(json.loads(text))]
            if not others:
                break
            self._call("delete", self._about, ids=[me])
            if time.monotonic() >= end:
                who = json.loads(others[0])
                raise ReidError(
                    f"gallery {self.place}: process {who['process']} of {who['host']} is writing to it, for more than "
                    f"{self.wait:g} seconds; try again later, or if it is there no more, gallery check --repair"
                )
            time.sleep(random.uniform(0.02, 0.1))
        try:
            self._finish()
            yield
        finally:
            self._call("delete", self._about, ids=[me])

    def _finish(self) -> None:
        """What a killed writer left: images of an addition that it did not finish, and those that were replaced."""
        state = self._state()
        self._delete([row["key"] for row in self._rows(f"key >= {state['next_key']}", ["key"])])
        if "replacing" in state:
            new = [row["path"] for row in self._rows(f"key >= {state['replacing']}", ["key", "path"])]
            with self.reading():
                old = [row["key"] for row in self._among("path", new, ["key"]) if row["key"] < state["replacing"]]
            self._delete(old)
            self._put("state", json.dumps({"next_key": state["next_key"]}))

    def _append(
        self,
        writer: None,
        vectors: Iterable[np.ndarray],
        rows: Sequence[tuple[Any, ...]],
        added: Sequence[float],
        replaced: Sequence[int] = (),
    ) -> np.ndarray:
        first = self._next_key()
        keys = np.arange(first, first + len(rows), dtype=np.int64)
        done = 0
        for block in vectors:
            for start in range(0, len(block), _STEP):
                part = np.ascontiguousarray(block[start : start + _STEP])
                some = slice(done, done + len(part))
                self._call("insert", self._name, data=[
                    _row(key, vector, row, since)
                    for key, vector, row, since in zip(keys[some].tolist(), part, rows[some], added[some])
                ])  # fmt: skip
                done += len(part)
        if rows:
            state = {"next_key": first + len(rows)}
            self._put("state", json.dumps(state | ({"replacing": first} if replaced else {})))
            if replaced:
                self._delete(list(replaced))
                self._put("state", json.dumps(state))
        return keys

    def _remove(self, writer: None, keys: list[int]) -> int:
        self._delete(keys)
        return len(keys)

    def _delete(self, keys: list[int]) -> None:
        for start in range(0, len(keys), _STEP):
            self._call("delete", self._name, ids=keys[start : start + _STEP])

    # ---- check and repair

    def check(self) -> list[str]:
        """What is wrong, a line each: every vector is held against its checksum."""
        next_key = self._next_key()
        paths: collections.Counter[str] = collections.Counter()
        lost, unfinished = self._lost(), 0
        for row in self._rows("", ["key", "path"]):
            paths[row["path"]] += row["key"] < next_key
            unfinished += row["key"] >= next_key
        twice = sum(count > 1 for count in paths.values())
        troubles = [f"{len(lost)} vectors are not what was written"] if lost else []
        troubles += [f"{twice} paths are there twice, since a writer was killed"] if twice else []
        troubles += [f"{unfinished} images of an addition that was not finished"] if unfinished else []
        try:
            _ = self.model_path
        except ReidError:
            troubles.append("its model is not what was written")
        return troubles

    def repair(self) -> tuple[list[Entry], list[str]]:
        """Drops the images whose vectors are not what was written, and what killed writers left; returns those images,
        and what is wrong still."""
        for name in self._texts("writer-", starts=True):
            self._call("delete", self._about, ids=[name])
        with self._writing():
            dropped = [self.entry(key) for key in self._lost()]
            self._delete([entry.key for entry in dropped])
        return dropped, self.check()

    def _lost(self) -> list[int]:
        with self.reading():
            where = self._where(None)
        rows = self._rows(where, ["key", "vector", "checksum"])
        return [row["key"] for row in rows if zlib.crc32(np.array(row["vector"], "<f4").tobytes()) != row["checksum"]]

    # ---- Milvus

    def _make_collections(self, dimension: int) -> None:
        from pymilvus import DataType

        text = {"datatype": DataType.VARCHAR, "max_length": 65_535}
        about = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        about.add_field("id", DataType.VARCHAR, max_length=100, is_primary=True)
        about.add_field("text", **text)
        about.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # which every collection has
        images = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        images.add_field("key", DataType.INT64, is_primary=True)
        images.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        for name in ("path", "pid", "hash", "fields"):
            images.add_field(name, **text)
        images.add_field("camid", DataType.INT64)
        images.add_field("time", DataType.DOUBLE)
        images.add_field("added", DataType.DOUBLE)
        images.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_length=65_535, max_capacity=4096)
        images.add_field("checksum", DataType.INT64)
        for name, schema in ((self._about, about), (self._name, images)):
            self._call("create_collection", name, schema=schema, consistency_level="Strong")
            index = self._client.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="IP")
            for column in ("path", "pid", "hash") if schema is images else ():
                index.add_index(column, index_type="INVERTED")
            self._call("create_index", name, index, sync=False)
            self._call("load_collection", name)

    def _call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with _told(self.place):
            return getattr(self._client, method)(*args, **kwargs)

    def _has(self, collection: str) -> bool:
        return bool(self._call("has_collection", collection))

    def _rows(self, where: str, fields: Sequence[str], collection: str | None = None) -> Iterator[dict[str, Any]]:
        """Those columns of the rows that meet a condition, in order of the first column."""
        pages = self._call("query_iterator", collection or self._name, batch_size=_STEP, filter=where,
                           output_fields=list(fields))  # fmt: skip
        while True:
            with _told(self.place):
                page = pages.next()
            if not page:
                pages.close()
                return
            yield from sorted(page, key=lambda row: row[fields[0]])

    def _rows_of(self, keys: Sequence[int], fields: Sequence[str]) -> dict[int, dict[str, Any]]:
        seen = [int(key) for key in keys if 0 <= key < self._local.next_key]
        rows = self._call("get", self._name, ids=seen, output_fields=list(fields)) if seen else []
        return {row["key"]: row for row in rows}

    def _texts(self, name: str, *, starts: bool = False) -> dict[str, str]:
        """What is said of the gallery under that name, or under all that start so."""
        where = f'id like "{name}%"' if starts else f'id == "{name}"'
        return {row["id"]: row["text"] for row in self._rows(where, ["id", "text"], self._about)}

    def _put(self, name: str, text: str) -> None:
        self._call("upsert", self._about, data=[{"id": name, "text": text, "vector": [0.0, 1.0]}])

    def _state(self) -> dict[str, int]:
        try:
            state: dict[str, int] = json.loads(self._texts("state")["state"])
            return {name: int(value) for name, value in state.items()}
        except (KeyError, ValueError, AttributeError):
            raise damaged(self.place, "its state is not what was written") from None

    def _next_key(self) -> int:
        """Above the keys of all images; those of an addition that goes on are above it."""
        return self._state()["next_key"]


def _parse(place: str) -> _Place:
    if place.startswith("milvus+lite:"):
        folder = Path(place.removeprefix("milvus+lite:"))
        if folder.suffix != ".db":
            raise ReidError(f"gallery {place}: Milvus Lite keeps a folder whose name ends in .db: milvus+lite:PATH.db")
        return _Place(str(folder), "gallery", folder)
    scheme, _, rest = place.partition("://")
    host, _, name = rest.partition("/")
    if not host or not _NAME.fullmatch(name):
        raise ReidError(f"gallery {place}: expected milvus://HOST:PORT/NAME, the name of letters, digits and _")
    return _Place(f"{'https' if scheme == 'milvus+https' else 'http'}://{host}", name, None)


def _connect(place: str, where: _Place) -> Any:
    try:
        import pymilvus
    except ImportError:
        raise ReidError(f"gallery {place}: needs pymilvus: pip install 'pymilvus>=3.0' 'milvus-lite>=3.2'") from None
    for name in ("pymilvus", "milvus_lite"):  # every error is raised, and told once
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _told(place):
        return pymilvus.MilvusClient(where.uri, token=os.environ.get("MILVUS_TOKEN", "") if not where.folder else "")


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """Makes what Milvus answers one line."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = " ".join(str(getattr(error, "message", "") or error).split())[:200]
        if said == "Open local milvus failed":
            said = "it cannot be opened: another program has it open, or another version of Milvus Lite made it"
        raise ReidError(f"gallery {place}: Milvus answers: {said}") from error


def _is_dead(writer: Mapping[str, Any]) -> bool:
    """Whether that process was one of this machine, and is no more."""
    if writer["host"] != socket.gethostname():
        return False
    try:
        os.kill(writer["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False


def _row(key: int, vector: np.ndarray, row: tuple[Any, ...], added: float) -> dict[str, Any]:
    path, pid, camid, at, digest, fields = row
    tags = [tag for name, value in json.loads(fields).items() for tag in (_tag(name), _tag(name, _plain(value)))]
    return {
        "key": key, "vector": vector, "path": _text(path), "pid": "" if pid is None else _pid_text(pid),
        "camid": _NO_CAMERA if camid is None else camid, "time": _NO_TIME if at is None else at, "added": added,
        "hash": digest or "", "fields": fields, "tags": tags, "checksum": zlib.crc32(vector.tobytes()),
    }  # fmt: skip


def _entry(row: Mapping[str, Any]) -> Entry:
    camid = None if row["camid"] == _NO_CAMERA else row["camid"]
    at = None if row["time"] < _NO_TIME / 2 else row["time"]
    pid = json.loads(row["pid"]) if row["pid"] else None
    return Entry(row["key"], _path(row["path"]), pid, camid, at, row["added"], row["hash"] or None,
                 json.loads(row["fields"]))  # fmt: skip


def _text(path: str | bytes) -> str:
    """A path as Milvus holds it, which is UTF-8: other bytes in hexadecimal."""
    if isinstance(path, str) and not path.startswith("bytes:"):
        return path
    return f"bytes:{os.fsencode(path).hex()}"


def _path(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text.removeprefix("bytes:"))) if text.startswith("bytes:") else text


def _pid_text(pid: Pid) -> str:
    """7 and "7" are two people."""
    return json.dumps(pid if isinstance(pid, str) else int(pid))


def _plain(value: Field) -> str:
    return value if isinstance(value, str) else str(value)


def _tag(*parts: str) -> str:
    """What an image with a field has: (name) and (name, value)."""
    return json.dumps(parts)


def _group(hit: tuple[int, float, Mapping[str, Any]], group_by: str) -> object:
    """Of an image: text, or where it is in none its key."""
    key, _, columns = hit
    if group_by == "pid":
        return columns["pid"] if columns["pid"] not in ("", "-1", "0") else key
    fields = json.loads(columns["fields"])
    return _plain(fields[group_by]) if group_by in fields else key


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_quoted, texts))}]"


def _quoted(text: str) -> str:
    """A text in a condition: nothing in it ends it."""
    for sign, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(sign, escaped)
    return f'"{text}"'
