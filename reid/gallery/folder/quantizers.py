"""What was learnt on a gallery, in a file: the codec that its rows are in, or an index over them.

The database names the file with its SHA-256, which is compared before anything in it is looked at.
"""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, numpy

from reid.core.files import atomic_file
from reid.gallery.folder.vectors import Damage
from reid.gallery.index.ivf import Lists
from reid.gallery.index.sq8 import Codec

CODEC, INDEX = "codec", "index"


class Learnt(NamedTuple):
    number: int
    kind: str  # CODEC or INDEX
    digest: str
    settings: dict[str, Any]  # what is told of it; of an index what searches it, besides

    @property
    def name(self) -> str:
        return f"{self.kind}-{int(self.number):06d}.safetensors"


def named(db: sqlite3.Connection) -> Learnt | None:
    """What the database names."""
    row = db.execute("SELECT number, kind, digest, settings FROM learnt").fetchone()
    return Learnt(row[0], row[1], row[2], json.loads(row[3])) if row else None


def drop(db: sqlite3.Connection) -> None:
    """The file is swept away after the transaction."""
    db.execute("DELETE FROM learnt")


def save(
    folder: Path, db: sqlite3.Connection, kind: str, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]
) -> None:
    """In place of what was named before."""
    (number,) = db.execute("SELECT next_segment FROM state").fetchone()
    data = numpy.save({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()})
    made = Learnt(number, kind, hashlib.sha256(data).hexdigest(), dict(settings))
    with atomic_file(folder / made.name) as temporary:
        temporary.write_bytes(data)
    drop(db)
    db.execute("INSERT INTO learnt VALUES (?, ?, ?, ?)", [number, kind, made.digest, json.dumps(made.settings)])
    db.execute("UPDATE state SET next_segment = ?", [number + 1])


def load(folder: Path, learnt: Learnt) -> Codec | Lists:
    """Raises Damage where the file is missing or not what was written."""
    try:
        data = (folder / learnt.name).read_bytes()
    except FileNotFoundError:
        raise Damage(f"{learnt.name} is missing") from None
    if hashlib.sha256(data).hexdigest() != learnt.digest:
        raise Damage(f"{learnt.name} is not what was written")
    try:
        tensors = numpy.load(data)
        return Codec.from_tensors(tensors) if learnt.kind == CODEC else Lists.from_tensors(tensors, learnt.settings)
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise Damage(f"{learnt.name} is not what was written") from error
