"""What every gallery is, wherever its images lie, and what all of them share."""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid.core.types import Ranking, ReidError
from reid.core.values import Field, Pid
from reid.gallery.entry import Entry, Forgotten, Info, as_digest, as_integer, as_json, as_pid, as_seconds, stored
from reid.gallery.filter import Filter
from reid.gallery.manifest import Manifest
from reid.gallery.places import kind_of
from reid.retrieval.vectors import UNIT_TOLERANCE, is_unit, row_norms

RECALL = 0.99  # of the nearest images, that an index should find


class Snapshot(NamedTuple):
    """All images of a gallery in order of key, and their vectors, some at a time."""

    entries: list[Entry]
    vectors: Callable[[Sequence[int]], Iterator[np.ndarray]]  # of the entries at those places, ascending


class Gallery(ABC):
    """A gallery that is open: a folder, or a collection of Milvus.

    `place` says where: a folder's path, milvus://HOST:PORT/NAME (milvus+https:// over TLS), or milvus+lite:PATH.db for
    Milvus embedded in this program. Every call sees the newest state; within `reading` all calls see one. `wait`:
    seconds that a writer waits for another one.
    """

    place: str
    wait: float
    _manifest: Manifest

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
    ) -> Gallery:
        """A new and empty gallery, where there must not be one, nor anything else.

        dimension: of the vectors. fingerprint: names the model that makes them. input_size: (h, w) in pixels of the
        model's images. model: its file, copied into the gallery. Raises ReidError.
        """
        return kind_of(place).create(
            place, dimension=dimension, fingerprint=fingerprint, input_size=input_size, model=model, wait=wait
        )

    @classmethod
    def open(cls, place: str | os.PathLike[str], *, wait: float = 10.0) -> Gallery:
        """The gallery that is there. Checksums are not compared: see `check`. Raises ReidError."""
        return kind_of(place).open(place, wait=wait)

    @classmethod
    def unread(cls, place: str | os.PathLike[str]) -> Gallery:
        """The gallery that is there, of which nothing was read yet: for `check` and `repair`. Raises ReidError."""
        return kind_of(place).unread(place)

    @classmethod
    def exists(cls, place: str | os.PathLike[str]) -> bool:
        """Whether there is a gallery, whole or damaged. Raises ReidError where that cannot be told."""
        return kind_of(place).exists(place)

    # ---- what is in it

    @property
    def dimension(self) -> int:
        return self._manifest.dimension

    @property
    def fingerprint(self) -> str:
        return self._manifest.fingerprint

    @property
    def input_size(self) -> tuple[int, int]:
        """(h, w) of the model's images in pixels."""
        return self._manifest.input_size

    @property
    @abstractmethod
    def model_path(self) -> Path | None:
        """The model's file, if the gallery has it. Raises ReidError where it is not what was written."""

    def check_model(self, fingerprint: str) -> None:
        """Raises ReidError unless the gallery's vectors were made by the model of that fingerprint."""
        if fingerprint != self.fingerprint:
            raise ReidError(
                f"gallery {self.place}: was made by the model {self.fingerprint}, the query by {fingerprint}: their "
                "vectors do not compare; use the gallery's model, or index the images again"
            )

    def __len__(self) -> int:
        return self.count()

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        """Whether an image of that path, spelled so, is in the gallery."""
        return self.count(Filter(paths=[path])) > 0

    @abstractmethod
    def count(self, filter: Filter | None = None) -> int:
        """Images that meet the filter."""

    @abstractmethod
    def entry(self, key: int) -> Entry:
        """The image of that key. Raises ReidError where there is none (-1 in a Ranking among them)."""

    @abstractmethod
    def entries(self, filter: Filter | None = None) -> Iterator[Entry]:
        """The images that meet the filter, in order of key. Outside `reading` they may change on the way."""

    @abstractmethod
    def vectors(self, keys: Sequence[int] | np.ndarray) -> np.ndarray:
        """(n, D) float32, the vectors of those images. Raises ReidError for a key that there is not."""

    @abstractmethod
    def snapshot(self) -> Snapshot:
        """All of it."""

    @abstractmethod
    def info(self) -> Info:
        """What it holds."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[Any]:
        """Everything that is read within the block is one state of the gallery."""

    def known(self, paths: Sequence[str | os.PathLike[str]], hashes: Sequence[str]) -> list[bool]:
        """Which images, by the SHA-256 of their content, are in the gallery: under their path, or under another one
        while their path is not in it with another content."""
        names = [stored(path) for path in paths]
        at, same = self._at_paths(names), self._with_hashes(hashes)
        return [at[name][1] in (None, digest) if name in at else digest in same for name, digest in zip(names, hashes)]

    @abstractmethod
    def _at_paths(self, paths: Sequence[str | bytes]) -> dict[str | bytes, tuple[int, str | None]]:
        """(key, hash) of the images of those paths; those that there are not are left out."""

    @abstractmethod
    def _with_hashes(self, hashes: Sequence[str]) -> set[str]:
        """Which of those hashes images have."""

    # ---- search

    @abstractmethod
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
        """The top_k images nearest to each of Q vectors by cosine similarity; equal scores in order of key.

        vectors (Q, D): floats of unit length, see `fuse` for several images of one person. filter: what is searched.
        exclude_camids: besides, a camera whose images are left out, one for all queries or one for each (Q,), None for
        none; images from unknown cameras stay in. Both are applied before the search, so that top_k are found where
        there are so many. group_by: "pid" or a free field: of each group only the nearest image; images without one
        (pid unknown, junk or distractor) are groups of their own. threshold: scores below it are no answers.
        Raises ReidError.
        """

    def _asked(
        self, vectors: np.ndarray, top_k: int, exclude_camids: int | Sequence[int | None] | np.ndarray | None
    ) -> tuple[np.ndarray, list[int | None]]:
        """A search's vectors, and for each of them the camera that is left out."""
        vectors = checked(vectors, self.dimension, f"gallery {self.place}: query vectors")
        if top_k < 1:
            raise ReidError(f"gallery {self.place}: top_k is a number of images, at least 1: got {top_k}")
        if exclude_camids is None or isinstance(exclude_camids, (int, np.integer)):
            cameras = [as_integer(exclude_camids)] * len(vectors)
        else:
            cameras = [as_integer(camid) for camid in exclude_camids]
        if len(cameras) != len(vectors):
            raise ReidError(
                f"gallery {self.place}: exclude_camids should be one camera or one a query, "
                f"got {len(cameras)} for {len(vectors)} queries"
            )
        return vectors, cameras

    # ---- writing

    def add(
        self,
        vectors: np.ndarray,
        paths: Sequence[str | os.PathLike[str]],
        pids: Sequence[Pid | None] | np.ndarray | None = None,
        camids: Sequence[int | None] | np.ndarray | None = None,
        times: Sequence[float | None] | np.ndarray | None = None,
        fields: Sequence[Mapping[str, Field]] | None = None,
        hashes: Sequence[str | None] | None = None,
    ) -> np.ndarray:
        """Adds N images and returns their keys, (N,) int64; all of them are in the gallery then, or none and ReidError.

        vectors (N, D): floats of unit length. paths: of the images, compared as they are spelled. pids, camids, times
        (of capture, seconds since 1970, UTC): None, or None among them, where unknown. fields: free, of text and
        numbers. hashes: SHA-256 of the files' contents (`hash_file`). An image whose path is in the gallery with
        another hash takes its place, under a new key; otherwise none of the paths may be in it (see `known`).
        """
        vectors = checked(vectors, self.dimension, f"gallery {self.place}: vectors to add")
        rows = _as_rows(paths, pids, camids, times, hashes, fields, len(vectors), self.place)
        with self._writing() as writer:
            replaced = self._replaced([row[0] for row in rows], [row[4] for row in rows])
            return self._append(writer, [vectors], rows, [time.time()] * len(vectors), replaced)

    def merge(self, other: Gallery) -> tuple[int, int]:
        """Adds another gallery's images and returns how many were added, and how many left out since their path or
        their content is here already. Raises ReidError where it is of another model."""
        if other.fingerprint != self.fingerprint or other.dimension != self.dimension:
            raise ReidError(
                f"gallery {self.place}: was made by the model {self.fingerprint}, {other.place} by {other.fingerprint}"
                ": their vectors do not compare; index the images of one again"
            )
        if self._is_same(other):
            raise ReidError(f"gallery {self.place}: is the one to be merged into it; give another")
        theirs, vectors = other.snapshot()
        with self._writing() as writer:
            here = self._at_paths([stored(entry.path) for entry in theirs])
            seen = self._with_hashes([entry.hash for entry in theirs if entry.hash])
            new = []
            for place, entry in enumerate(theirs):
                if stored(entry.path) not in here and entry.hash not in seen:
                    new.append(place)
                    seen |= {entry.hash} if entry.hash else set()
            chosen = [theirs[place] for place in new]
            rows = [(stored(e.path), e.pid, e.camid, e.time, e.hash, as_json(e.fields)) for e in chosen]
            self._append(writer, vectors(new), rows, [e.added for e in chosen])
        return len(new), len(theirs) - len(new)

    def remove(self, filter: Filter) -> int:
        """Removes the images that meet the filter and returns how many: they are found no more. Raises ReidError for a
        filter of nothing."""
        if filter.is_empty:
            raise ReidError(
                f"gallery {self.place}: removing takes a condition (keys, paths, a camera, a person, a time)"
            )
        with self._writing() as writer:
            return self._remove(writer, [entry.key for entry in self.entries(filter)])

    def set_preset(self, preset: str, *, recall: float = RECALL) -> None:
        """How the gallery is kept and searched from now on: "exact", "compact", "large" or "auto", see
        `reid.gallery.folder.presets`. Fits a quantizer or an index to the images, which takes minutes for a million.

        recall: of `large`, the share of the top 10, 100 or 500 that a search should find. Raises ReidError.
        """
        raise ReidError(
            f"gallery {self.place}: presets are of galleries in folders; the index of one in Milvus is chosen when it "
            "is made, with ?index=... behind its place"
        )

    @abstractmethod
    def expire(self, before: float) -> int:
        """Removes the images whose time of capture, or where that is unknown whose time of adding, lies before that
        time (seconds since 1970), and returns how many. They leave the files as those of `forget` do."""

    @abstractmethod
    def forget(self, pid: Pid) -> Forgotten:
        """Deletes every trace of one person, and proves it as far as that can be. Raises ReidError where one is left.
        May be repeated, and goes on where it was killed."""

    @abstractmethod
    def compact(self) -> None:
        """Takes what was removed out of the files."""

    @abstractmethod
    def check(self) -> list[str]:
        """Reads all of it: what is wrong, a line each. Raises ReidError where there is none to read."""

    @abstractmethod
    def repair(self) -> tuple[list[Entry], list[str]]:
        """Keeps every vector that is whole and drops the images of the others.

        Returns those images, and what is wrong still. Raises ReidError where nothing says which vector is whose.
        """

    @abstractmethod
    def _writing(self) -> AbstractContextManager[Any]:
        """Alone among writers; raises ReidError where another one writes for long."""

    @abstractmethod
    def _append(
        self,
        writer: Any,
        vectors: Iterable[np.ndarray],
        rows: Sequence[tuple[Any, ...]],
        added: Sequence[float],
        replaced: Sequence[int] = (),
    ) -> np.ndarray:
        """Keys of new images behind all others, in the place of those; rows: (path, pid, camid, time, hash, fields)."""

    @abstractmethod
    def _remove(self, writer: Any, keys: list[int]) -> int:
        """Removes those images."""

    @abstractmethod
    def _is_same(self, other: Gallery) -> bool:
        """Whether both lie at one place."""

    def _replaced(self, paths: Sequence[str | bytes], hashes: Sequence[str | None]) -> list[int]:
        """Keys of the images whose place those of that path take. Raises ReidError where they cannot."""
        keys, seen, here = [], set[str | bytes](), self._at_paths(paths)
        for path, digest in zip(paths, hashes):
            if path in seen or (path in here and (digest is None or here[path][1] in (None, digest))):
                where = "given twice" if path in seen else "in it already"
                raise ReidError(
                    f"gallery {self.place}: nothing was added, for {os.fsdecode(path)} is {where}; leave it out"
                )
            seen.add(path)
            if path in here:
                keys.append(here[path][0])
        return keys


def check_new(place: str | os.PathLike[str], dimension: int, model: str | os.PathLike[str] | None) -> None:
    """Raises ReidError where no gallery can be made of these."""
    if dimension < 1:
        raise ReidError(f"gallery {place}: the dimension of its vectors should be at least 1, got {dimension}")
    if model is not None and not Path(model).is_file():
        raise ReidError(f"gallery {place}: there is no model file {model}")


def no_group(place: str, name: str) -> ReidError:
    return ReidError(
        f"gallery {place}: no image has the field {name!r} to group by; group by pid, or by a "
        "field that was given to `add`"
    )


def checked(vectors: np.ndarray, dimension: int, what: str) -> np.ndarray:
    """(N, dimension) floats of unit length as contiguous float32. ReidError, which begins with `what`, for others."""
    vectors = np.asarray(vectors)
    norms = row_norms(vectors, f"{what}")
    if vectors.shape[1] != dimension:
        raise ReidError(
            f"{what} should have {dimension} dimensions, got {vectors.shape[1]}; "
            "embed the images with the gallery's model"
        )
    if not is_unit(norms).all():
        row = int(np.argmin(is_unit(norms)))
        raise ReidError(
            f"{what} should have length 1 within {UNIT_TOLERANCE}, row {row} has "
            f"{norms[row]:.6g}; divide each row by its length"
        )
    return np.ascontiguousarray(vectors, dtype=np.float32)


def _as_rows(
    paths: Sequence[Any],
    pids: Any,
    camids: Any,
    times: Any,
    hashes: Any,
    fields: Any,
    count: int,
    place: str,
) -> list[tuple[Any, ...]]:
    """(path, pid, camid, time, hash, fields) of each of `count` images, as a gallery stores them."""
    columns: list[list[Any]] = [[stored(path) for path in paths]]
    kinds: list[tuple[Any, Callable[[Any], Any]]] = [
        (pids, as_pid),
        (camids, as_integer),
        (times, as_seconds),
        (hashes, as_digest),
        (fields, as_json),
    ]
    for given, convert in kinds:
        columns.append([convert(x) for x in ([None] * len(columns[0]) if given is None else given)])
    if len({count, *map(len, columns)}) > 1:
        names = ("paths", "pids", "camids", "times", "hashes", "fields")
        counts = ", ".join(f"{len(column)} {name}" for name, column in zip(names, columns))
        raise ReidError(f"gallery {place}: to add images, give as many of each, got {count} vectors, {counts}")
    return list(zip(*columns))
