"""New images into a gallery, by their content.

    index("people", images, embedder, Path("model.safetensors"))

A vector is bound to the content that it was made from: rows under way lie in a file that is named after the model and
the content of every image in it, which one process at a time may hold. So two that index at once never mix, and one
that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from reid.core.files import hash_file, identity
from reid.core.own_images import ImageRecord
from reid.core.types import ReidError
from reid.gallery.base import RECALL, Gallery
from reid.gallery.places import scratch_of

if TYPE_CHECKING:
    from reid.models.embedder import Embedder

_OLD = 7 * 86400.0  # seconds after which what a killed process left is swept


class Processes(Protocol):
    """The processes that embed together; see `reid.training.distributed.World`."""

    @property
    def rank(self) -> int: ...
    @property
    def size(self) -> int: ...
    def broadcast(self, value: Any) -> Any: ...
    def barrier(self) -> None: ...


class Alone:
    """This process, on its own."""

    rank, size = 0, 1

    def broadcast(self, value: Any) -> Any:
        return value

    def barrier(self) -> None: ...


class Added(NamedTuple):
    """What `index` did."""

    added: int  # images
    replaced: int  # of them, in the place of other content under their path
    known: int  # that were there already by their content
    total: int  # in the gallery now


def index(
    place: str | os.PathLike[str],
    images: Sequence[ImageRecord],
    embedder: Embedder,
    weights: Path,
    find_bad: Callable[[list[str]], set[str]],
    processes: Processes | None = None,
    preset: str | None = None,
    recall: float = RECALL,
) -> Added | None:
    """Embeds the images that are new, by their content, into the gallery, which is made if it is absent.

    find_bad: of paths, those to leave out, since they cannot be read; it raises ReidError where they may not be.
    preset, recall: see `Gallery.set_preset`; None leaves it. Interrupted, it goes on where it was. Several processes
    embed a part each; the first one, whose `images` count, writes, and the others return None. They share the folder
    of the gallery, or the first one embeds what it does not find there.

    Raises ReidError where the gallery is of another model, where another process embeds the same images, and where an
    image changes meanwhile.
    """
    world = processes or Alone()
    scratch = scratch_of(place)
    if world.rank:
        name, paths = world.broadcast(None)
        embedder.embed(_part(paths, world.rank, world.size), save=_rows_file(scratch, name, world.rank, world.size))
        world.barrier()
        return None
    gallery = Gallery.open(place) if Gallery.exists(place) else None
    if gallery is not None:
        gallery.check_model(embedder.fingerprint)
    by_path = {os.path.abspath(image.path): image for image in reversed(images)}
    paths = sorted(by_path)
    with ThreadPoolExecutor(8) as pool:
        hashes = dict(zip(paths, pool.map(_hash, paths)))
    known = gallery.known(paths, [hashes[path] for path in paths]) if gallery is not None else [False] * len(paths)
    first: dict[str, str] = {}  # of the images of equal content, the one that is taken
    new = []
    for path, is_known in zip(paths, known):
        if not is_known and first.setdefault(hashes[path] or path, path) == path:
            new.append(path)
    bad = find_bad(new)
    new = [path for path in new if path not in bad]
    if gallery is None:
        gallery = create(place, embedder, weights)
    before = identity(new)
    told = repr((embedder.fingerprint, before, [(path, hashes[path]) for path in new]))
    name = hashlib.sha256(told.encode("utf-8", "surrogateescape")).hexdigest()[:16]
    world.broadcast((name, new))
    embedder.embed(_part(new, 0, world.size), save=_rows_file(scratch, name, 0, world.size), progress=bool(new))
    world.barrier()
    parts = [
        embedder.embed(_part(new, rank, world.size), save=_rows_file(scratch, name, rank, world.size))
        for rank in range(world.size)
    ]
    if identity(new) != before:
        raise ReidError(f"gallery {place}: images changed while they were embedded, and none was added: run it again")
    vectors = parts[0] if len(parts) == 1 else np.concatenate(parts)
    added = _add(gallery, vectors, new, hashes, by_path)
    del parts, vectors
    for rank in range(world.size):
        for suffix in (".npy", ".json"):
            _rows_file(scratch, name, rank, world.size).with_suffix(suffix).unlink(missing_ok=True)
    _sweep(scratch)
    if preset is not None:
        gallery.set_preset(preset, recall=recall)
    return added._replace(known=len(paths) - added.added - len(bad))


def _add(
    gallery: Gallery, vectors: np.ndarray, paths: list[str], hashes: dict[str, str], by_path: dict[str, ImageRecord]
) -> Added:
    """Adds those that are still new: another process may have added some of them meanwhile."""
    while True:
        known = gallery.known(paths, [hashes[path] for path in paths])
        rows = [row for row, is_known in enumerate(known) if not is_known]
        new = [paths[row] for row in rows]
        chosen = [by_path[path] for path in new]
        before = len(gallery)
        try:
            gallery.add(
                vectors if len(rows) == len(paths) else vectors[rows],
                new,
                [image.pid for image in chosen],
                [image.camid for image in chosen],
                [image.time for image in chosen],
                [image.fields for image in chosen],
                [hashes[path] for path in new],
            )
        except ReidError:
            if gallery.known(paths, [hashes[path] for path in paths]) == known:
                raise
            continue  # between the question and the addition others came in
        total = len(gallery)
        return Added(len(new), max(0, before + len(new) - total), 0, total)


def create(place: str | os.PathLike[str], embedder: Embedder, weights: Path) -> Gallery:
    """An empty gallery for this model's vectors, with a copy of the model; the one that another process makes at the
    same time will do, where it is of this model."""
    try:
        return Gallery.create(
            place,
            dimension=embedder.dimension,
            fingerprint=embedder.fingerprint,
            input_size=embedder.input_size,
            model=weights,
        )
    except ReidError:
        if not Gallery.exists(place):
            raise
    gallery = Gallery.open(place)
    gallery.check_model(embedder.fingerprint)
    return gallery


def _part(paths: list[str], rank: int, size: int) -> list[str]:
    """What that process embeds."""
    start, end = (len(paths) * n // size for n in (rank, rank + 1))
    return paths[start:end]


def _rows_file(scratch: Path, name: str, rank: int, size: int) -> Path:
    """An interrupted index of the same images goes on there."""
    return scratch / f"{name}-{rank + 1}-of-{size}.npy"


def _sweep(scratch: Path) -> None:
    """Removes what killed processes left long ago, and the folder where nothing else is in it."""
    for file in list(scratch.glob("*")):
        try:
            if file.stat().st_mtime < time.time() - _OLD:
                shutil.rmtree(file) if file.is_dir() else file.unlink()
        except FileNotFoundError:
            continue
    try:
        scratch.rmdir()
    except OSError:  # somebody else's rows are in it, or it is gone
        pass


def _hash(path: str) -> str:
    """ "" where the file cannot be read."""
    try:
        return hash_file(path)
    except (OSError, ValueError, ReidError):
        return ""
