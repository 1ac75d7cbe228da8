"""The searchable gallery: one folder that holds feature vectors, what is known of their images, and a manifest.

    manifest.json        format version, model fingerprint, input size, dimension, metric, counts, checksums: the root
    vectors-NNNNNN.faiss a faiss index, exact inner product of unit vectors, with 64-bit keys
    entries-NNNNNN.csv   key, path, pid, camid of every image; an unknown pid or camid is empty
    model.safetensors    the model that made the vectors, if it was given
    lock                 held while somebody adds

Every addition writes the two data files whole under the next number and then replaces the manifest, so that a process
killed at any moment leaves the gallery as it was or as it should be. Each addition rewrites the files: add many images
at a time.

>>> gallery = Gallery.create("people", dimension=2048, fingerprint=f, input_size=(384, 128))  # doctest: +SKIP
>>> keys = gallery.add(features, paths, pids, camids)                                         # doctest: +SKIP
>>> ranking = Gallery.open("people").search(query_features, top_k=10, exclude_camids=3)       # doctest: +SKIP
"""

from __future__ import annotations

import contextlib
import csv
import fcntl
import hashlib
import json
import operator
import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, SupportsIndex

import faiss
import numpy as np

from reid.evaluate import UNIT_TOLERANCE, is_unit, row_norms
from reid.files import atomic_file, atomic_folder, write_json
from reid.types import Ranking, ReidError

FORMAT_VERSION = 1
METRIC = "cosine"
_MODEL = "model.safetensors"
_HEADER = ["key", "path", "pid", "camid"]


class Entry(NamedTuple):
    """One image of a gallery."""

    key: int  # given in order from 0, never twice
    path: str  # as it was given to `add`
    pid: int | None  # None: unknown
    camid: int | None  # None: unknown


@dataclass(frozen=True)
class _Manifest:
    format_version: int
    fingerprint: str
    input_size: tuple[int, int]
    dimension: int
    metric: str
    generation: int  # number in the data files' names
    count: int
    next_key: int
    sha256: dict[str, str]  # file name -> checksum of every data file

    @property
    def vectors(self) -> str:
        return f"vectors-{self.generation:06d}.faiss"

    @property
    def entries(self) -> str:
        return f"entries-{self.generation:06d}.csv"


class Gallery:
    """A gallery that is open: held in memory, and written to its folder by `add`.

    Whoever has a gallery open goes on with what was read, while others add to the folder. Searching is safe from
    several threads; adding while another thread searches the same object is not. Do not fork after a search: faiss's
    threads do not live on in the child, which hangs.
    """

    _manifest: _Manifest
    _index: Any  # faiss.IndexIDMap2, whose type hints know the C++ signatures only
    _entries: list[Entry]
    _by_key: dict[int, Entry]
    _paths: set[str]

    def __init__(self, path: Path) -> None:
        """Use `create` or `open`."""
        self.path = path
        self._load()

    @classmethod
    def create(
        cls,
        path: str | os.PathLike[str],
        *,
        dimension: int,
        fingerprint: str,
        input_size: tuple[int, int],
        model: str | os.PathLike[str] | None = None,
    ) -> Gallery:
        """A new and empty gallery in the folder `path`, which must not exist or be empty.

        dimension: of the vectors. fingerprint: names the model that makes them. input_size: (h, w) in pixels of the
        model's images. model: its file, copied into the gallery. Raises ReidError.
        """
        path = Path(path)
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise ReidError(
                f"gallery {path}: exists already and is not empty; open it, or choose or empty another folder"
            )
        if dimension < 1:
            raise ReidError(f"gallery {path}: the dimension of its vectors should be at least 1, got {dimension}")
        if model is not None and not Path(model).is_file():
            raise ReidError(f"gallery {path}: there is no model file {model}")
        height, width = map(int, input_size)
        manifest = _Manifest(FORMAT_VERSION, fingerprint, (height, width), int(dimension), METRIC, 0, 0, 0, {})
        with _writing(path), atomic_folder(path) as folder:
            if model is not None:
                with atomic_file(folder / _MODEL) as temporary:
                    shutil.copyfile(model, temporary)
                manifest.sha256[_MODEL] = _sha256(folder / _MODEL)
            _commit(folder, manifest, faiss.IndexIDMap2(faiss.IndexFlatIP(dimension)), [])
        return cls(path)

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Gallery:
        """The gallery in the folder `path`, every file checked. Raises ReidError."""
        return cls(Path(path))

    def add(
        self,
        vectors: np.ndarray,
        paths: Sequence[str | os.PathLike[str]],
        pids: Sequence[int | None] | np.ndarray | None = None,
        camids: Sequence[int | None] | np.ndarray | None = None,
    ) -> np.ndarray:
        """Adds N images and returns their keys, (N,) int64; all of them are on disk then, or none and ReidError.

        vectors (N, D): floats of unit length. paths: of the images, compared as they are spelled; none may be in the
        gallery already (see `path in gallery`). pids, camids: None, or None among them, where unknown.
        What another process added since this gallery was opened is read first.
        """
        vectors = self._checked(vectors, "vectors to add")
        names = [os.fspath(path) for path in paths]
        persons, cameras = ([None] * len(names) if ids is None else [_id(i) for i in ids] for ids in (pids, camids))
        if not len(vectors) == len(names) == len(persons) == len(cameras):
            raise ReidError(
                f"gallery {self.path}: to add images, give as many of each, got {len(vectors)} vectors, "
                f"{len(names)} paths, {len(persons)} pids, {len(cameras)} camids"
            )
        with _writing(self.path), self._lock():
            if _read_manifest(self.path) != self._manifest:
                self._load()
            old = self._manifest
            keys = np.arange(old.next_key, old.next_key + len(vectors), dtype=np.int64)
            added = [Entry(*row) for row in zip(keys.tolist(), names, persons, cameras)]
            self._check_new(names)
            if not added:
                return keys
            new = replace(
                old,
                generation=old.generation + 1,
                count=old.count + len(added),
                next_key=old.next_key + len(added),
                sha256={name: checksum for name, checksum in old.sha256.items() if name == _MODEL},
            )
            try:
                self._index.add_with_ids(vectors, keys)
                _commit(self.path, new, self._index, self._entries + added)
            except BaseException:
                self._index.remove_ids(keys)
                raise
            self._manifest = new
            self._remember(added)
            _sweep(self.path, new)
        return keys

    def search(
        self,
        vectors: np.ndarray,
        top_k: int,
        *,
        exclude_camids: int | Sequence[int | None] | np.ndarray | None = None,
    ) -> Ranking:
        """The top_k images nearest to each of Q vectors by cosine similarity, exactly; equal scores in order of key.

        vectors (Q, D): floats of unit length. exclude_camids: a camera whose images are left out of the search, one
        for all queries or one for each (Q,), None for none; images from unknown cameras stay in.
        Raises ReidError.
        """
        vectors = self._checked(vectors, "query vectors")
        if top_k < 1:
            raise ReidError(f"gallery {self.path}: top_k is a number of images, at least 1: got {top_k}")
        if exclude_camids is None or isinstance(exclude_camids, (int, np.integer)):
            cameras = [_id(exclude_camids)] * len(vectors)
        else:
            cameras = [_id(camid) for camid in exclude_camids]
        if len(cameras) != len(vectors):
            raise ReidError(
                f"gallery {self.path}: exclude_camids should be one camera or one a query, "
                f"got {len(cameras)} for {len(vectors)} queries"
            )
        keys = np.full((len(vectors), top_k), -1, dtype=np.int64)
        scores = np.full((len(vectors), top_k), -np.inf, dtype=np.float32)
        found = min(top_k, len(self))
        if found:
            for camera in dict.fromkeys(cameras):
                rows = np.array([q for q, own in enumerate(cameras) if own == camera])
                scores[rows, :found], keys[rows, :found] = self._search(vectors[rows], found, camera)
        return Ranking(keys, scores)

    def entry(self, key: int) -> Entry:
        """The image of that key. Raises ReidError where there is none (-1 in a Ranking among them)."""
        if key not in self._by_key:
            raise ReidError(f"gallery {self.path}: no image has the key {key}")
        return self._by_key[key]

    def check_model(self, fingerprint: str) -> None:
        """Raises ReidError unless the gallery's vectors were made by the model of that fingerprint."""
        if fingerprint != self.fingerprint:
            raise ReidError(
                f"gallery {self.path}: was made by the model {self.fingerprint}, the query by {fingerprint}: their "
                "vectors do not compare; use the gallery's model, or index the images again"
            )

    def __len__(self) -> int:
        return self._manifest.count

    def __contains__(self, path: str | os.PathLike[str]) -> bool:
        """Whether an image of that path, spelled so, is in the gallery."""
        return os.fspath(path) in self._paths

    @property
    def entries(self) -> list[Entry]:
        """All images, in order of key. To be read only."""
        return self._entries

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
    def model_path(self) -> Path | None:
        """The model's file, if the gallery has it."""
        return self.path / _MODEL if _MODEL in self._manifest.sha256 else None

    def _load(self) -> None:
        manifest = _read_manifest(self.path)
        while True:
            try:
                index, entries = _read_index(self.path, manifest), _read_entries(self.path, manifest)
                if _MODEL in manifest.sha256:
                    _check_file(self.path, manifest, _MODEL)
                break
            except OSError as error:
                if not isinstance(error, FileNotFoundError):
                    raise ReidError(f"gallery {self.path}: cannot be read, {error.strerror}") from None
                newer = _read_manifest(self.path)
                if newer == manifest:
                    raise _damaged(self.path, f"{Path(error.filename).name} is missing") from None
                manifest = newer  # somebody added in between, and the files that were to be read are gone
        keys = faiss.vector_to_array(index.id_map)
        if not len(entries) == len(keys) == manifest.count or [entry.key for entry in entries] != keys.tolist():
            raise _damaged(self.path, f"{len(keys)} vectors, {len(entries)} entries, {manifest.count} in the manifest")
        self._manifest, self._index = manifest, index
        self._entries, self._by_key, self._paths = [], {}, set()
        self._remember(entries)

    def _remember(self, entries: list[Entry]) -> None:
        self._entries += entries
        self._by_key.update((entry.key, entry) for entry in entries)
        self._paths.update(entry.path for entry in entries)

    def _search(self, vectors: np.ndarray, top_k: int, camera: int | None) -> tuple[np.ndarray, np.ndarray]:
        """(scores, keys), both (Q, top_k), without the images of that camera."""
        parameters = None
        if camera is not None:
            allowed = np.zeros(self._manifest.next_key, dtype=bool)
            allowed[[entry.key for entry in self._entries if entry.camid != camera]] = True
            selector = faiss.IDSelectorBitmap(np.packbits(allowed, bitorder="little"))  # type: ignore
            parameters = faiss.SearchParameters(sel=selector)  # type: ignore
        scores, keys = self._index.search(vectors, top_k, params=parameters)
        scores = np.where(keys < 0, -np.inf, np.clip(scores, -1, 1))
        order = np.lexsort((keys, -scores), axis=1)
        return np.take_along_axis(scores, order, axis=1), np.take_along_axis(keys, order, axis=1)

    def _checked(self, vectors: np.ndarray, what: str) -> np.ndarray:
        """The same as contiguous float32."""
        vectors = np.asarray(vectors)
        norms = row_norms(vectors, f"gallery {self.path}: {what}")
        if vectors.shape[1] != self.dimension:
            raise ReidError(
                f"gallery {self.path}: {what} should have {self.dimension} dimensions, got {vectors.shape[1]}; "
                "embed the images with the gallery's model"
            )
        if not is_unit(norms).all():
            row = int(np.argmin(is_unit(norms)))
            raise ReidError(
                f"gallery {self.path}: {what} should have length 1 within {UNIT_TOLERANCE}, row {row} has "
                f"{norms[row]:.6g}; divide each row by its length"
            )
        return np.ascontiguousarray(vectors, dtype=np.float32)

    def _check_new(self, paths: list[str]) -> None:
        seen: set[str] = set()
        for path in paths:
            if path in self._paths or path in seen:
                where = "in it already" if path in self._paths else "given twice"
                raise ReidError(f"gallery {self.path}: nothing was added, for {path} is {where}; leave it out")
            seen.add(path)

    @contextlib.contextmanager
    def _lock(self) -> Iterator[None]:
        with open(self.path / "lock", "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ReidError(f"gallery {self.path}: another process is adding to it; try again later") from None
            yield


def _commit(folder: Path, manifest: _Manifest, index: Any, entries: list[Entry]) -> None:
    """Writes the data files of that manifest, and then the manifest with their checksums added."""
    with atomic_file(folder / manifest.vectors) as temporary:
        with open(temporary, "wb") as stream:  # by a name of its own, faiss misses it where a disk is full at the end
            faiss.write_index(index, faiss.PyCallbackIOWriter(stream.write))  # type: ignore
        manifest.sha256[manifest.vectors] = _sha256(temporary)
    with atomic_file(folder / manifest.entries) as temporary:
        with open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(_HEADER)
            writer.writerows(entries)
        manifest.sha256[manifest.entries] = _sha256(temporary)
    write_json(folder / "manifest.json", asdict(manifest))


def _sweep(folder: Path, manifest: _Manifest) -> None:
    """Removes the data files of other generations, and what killed writers left. Only under the lock."""
    for pattern in ("vectors-*.faiss", "entries-*.csv", ".*.partial"):
        for file in folder.glob(pattern):
            if file.name not in manifest.sha256:
                with contextlib.suppress(OSError):
                    file.unlink()


def _read_manifest(folder: Path) -> _Manifest:
    file = folder / "manifest.json"
    try:
        values: Any = json.loads(file.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise ReidError(f"gallery {folder}: there is none (no manifest.json); index a folder of images first") from None
    except OSError as error:
        raise ReidError(f"gallery {folder}: cannot be read, {error.strerror}") from None
    except ValueError:
        raise _damaged(folder, "manifest.json is not JSON") from None
    version = values.get("format_version") if isinstance(values, dict) else None
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise ReidError(
            f"gallery {folder}: has format version {version}, this program reads up to {FORMAT_VERSION}; "
            "use a newer version of the program"
        )
    try:
        manifest = _Manifest(**{**values, "input_size": tuple(values["input_size"])})
        numbers = (manifest.generation, manifest.count, manifest.next_key, manifest.dimension, *manifest.input_size)
        sound = (
            version == FORMAT_VERSION
            and all(isinstance(number, int) and number >= 0 for number in numbers)
            and len(manifest.input_size) == 2
            and isinstance(manifest.fingerprint, str)
            and set(manifest.sha256) - {_MODEL} == {manifest.vectors, manifest.entries}
        )
    except (KeyError, TypeError, AttributeError, ValueError):
        sound = False
    if not sound:
        raise _damaged(folder, "manifest.json lacks values or holds wrong ones")
    if manifest.metric != METRIC:
        raise ReidError(f"gallery {folder}: has the metric {manifest.metric!r}, this program knows {METRIC!r} only")
    return manifest


def _read_index(folder: Path, manifest: _Manifest) -> Any:
    file = _check_file(folder, manifest, manifest.vectors)
    try:
        index = faiss.read_index(str(file))
    except RuntimeError as error:
        raise _damaged(folder, f"{file.name} is not a faiss index") from error
    kind = (type(index), index.d, index.metric_type)
    if kind != (faiss.IndexIDMap2, manifest.dimension, faiss.METRIC_INNER_PRODUCT):
        raise _damaged(folder, f"{file.name} does not hold vectors of {manifest.dimension} dimensions with keys")
    return index


def _read_entries(folder: Path, manifest: _Manifest) -> list[Entry]:
    file = _check_file(folder, manifest, manifest.entries)
    with open(file, newline="", encoding="utf-8", errors="surrogateescape") as lines:
        rows = csv.reader(lines)
        try:
            if next(rows, None) != _HEADER:
                raise ValueError("header")
            return [
                Entry(int(key), path, int(pid) if pid else None, int(camid) if camid else None)
                for key, path, pid, camid in rows
            ]
        except (ValueError, csv.Error) as error:
            raise _damaged(folder, f"{file.name} is not a table of {', '.join(_HEADER)}") from error


def _check_file(folder: Path, manifest: _Manifest, name: str) -> Path:
    if _sha256(folder / name) != manifest.sha256[name]:
        raise _damaged(folder, f"{name} is not what was written")
    return folder / name


def _damaged(folder: Path, what: str) -> ReidError:
    return ReidError(f"gallery {folder}: is damaged, {what}; index the images again")


def _sha256(file: Path) -> str:
    digest = hashlib.sha256()
    with open(file, "rb") as stream:
        while chunk := stream.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _id(value: SupportsIndex | None) -> int | None:
    return None if value is None else operator.index(value)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Makes a full disk, a read-only folder and their like one line."""
    try:
        yield
    except OSError as error:
        raise ReidError(
            f"gallery {path}: cannot be written, nothing was changed ({error.strerror or error})"
        ) from error
