"""How a gallery is kept and searched, by size and need.

    exact     float32 vectors, every one looked at
    compact   codes of less than a thirty-second of their bytes (see `codec`) in the vectors' place, every one looked at
    large     the vectors, and an index over them that is tuned to a recall (see `ivf`)
    auto      exact, and large from 100,000 images on

What is learnt is learnt on the gallery itself, once it has 1,000 images; until then every preset is `exact`. Images
that come later get codes at once, and are searched exactly until the index takes them in: when they are more than an
eighth of it.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

from reid.core.types import ReidError
from reid.gallery.folder import quantizers
from reid.gallery.folder.database import Database
from reid.gallery.folder.quantizers import CODEC, INDEX
from reid.gallery.folder.vectors import Damage, Segment
from reid.gallery.index import ivf, sq8
from reid.gallery.index.ivf import Lists
from reid.gallery.index.sq8 import Codec, Coded
from reid.retrieval import knn
from reid.retrieval.vectors import take

PRESETS = ("exact", "compact", "large", "auto")
_AUTO = 100_000  # images, from which on auto is large
_SHARE = 8  # the index takes in what came later when that is more than one in so many of it
_STEP = 4096  # vectors at a time
_TRIALS = 300  # searches that tell how near codes are to vectors


def change(database: Database, db: sqlite3.Connection, preset: str, recall: float) -> None:
    """Within a transaction. Raises ReidError."""
    if preset not in PRESETS:
        raise ReidError(f"gallery {database.path}: the presets are {', '.join(PRESETS)}; there is no {preset!r}")
    if not 0 < recall < 1:
        raise ReidError(f"gallery {database.path}: a recall lies between 0 and 1, such as 0.99: got {recall}")
    now = quantizers.named(db)
    if now and now.kind == CODEC and preset != "compact":
        raise ReidError(
            f"gallery {database.path}: is compact, its vectors are gone: to make it {preset}, index the images again "
            "into another folder"
        )
    db.execute("UPDATE state SET preset = ?, recall = ?", [preset, recall])
    if not (now and now.kind == CODEC):
        learn(database, db)


def learn(database: Database, db: sqlite3.Connection) -> None:
    """Anew what the preset asks for, unless that is a codec, which is learnt once."""
    now = quantizers.named(db)
    if now and now.kind == CODEC:
        return
    preset, recall = db.execute("SELECT preset, recall FROM state").fetchone()
    (count,) = db.execute("SELECT COUNT(*) FROM images").fetchone()
    quantizers.drop(db)
    if count < sq8.LEAST:
        return
    if preset == "compact":
        _learn_codec(database, db)
    elif preset == "large" or (preset == "auto" and count >= _AUTO):
        _learn_index(database, db, recall)


def keep_up(database: Database, db: sqlite3.Connection, *, prune: bool = False) -> None:
    """After images came; prune: after images went, of which no code may stay."""
    now = quantizers.named(db)
    if now is None:
        return learn(database, db)
    if now.kind == CODEC:
        return
    parts = database.segments(db)
    keys = _live_keys(parts)
    late = int(np.count_nonzero(keys > now.settings["last_key"]))
    if not prune and late <= max(sq8.LEAST, now.settings["images"] // _SHARE):
        return
    if len(keys) < sq8.LEAST:
        return quantizers.drop(db)
    try:
        lists = quantizers.load(database.path, now)
    except Damage:
        return learn(database, db)
    assert isinstance(lists, Lists)
    new = keys[keys > now.settings["last_key"]]
    rows = np.flatnonzero(_live(parts))[len(keys) - len(new) :]
    codes = [np.empty((0, lists.codec.width), np.uint8), *map(lists.codec.encode, _taken(parts, rows))]
    lists = lists.joined(new, np.concatenate(codes), np.isin(lists.keys, keys))
    _save_index(database, db, lists, now.settings)


def _learn_codec(database: Database, db: sqlite3.Connection) -> None:
    """And writes all rows as codes into one file."""
    parts = database.segments(db)
    made = _codec_of(database, parts)
    coded = _sample(parts, _TRIALS)
    queries, vectors, live = take(_vectors(parts), coded), _vectors(parts), _live(parts)
    top_k = min(11, int(np.count_nonzero(live)))
    images = int(np.count_nonzero(live))
    with tqdm(total=len(live) + images, desc="codes", unit="img", delay=ivf.PATIENCE) as bar:

        def encode(rows: np.ndarray) -> np.ndarray:
            bar.update(len(rows))
            return made.encode(rows)

        codes = [np.concatenate([encode(v[s : s + _STEP]) for s in range(0, len(v), _STEP)]) for v in vectors]
        truth, _ = knn.nearest(queries, vectors, live, top_k)
        found, _ = Coded(made).nearest(queries, codes, live, top_k)
        database.rewrite(db, parts, encode=encode)
    agreed = [len(np.intersect1d(a[a != own], b[b != own])) / 10 for a, b, own in zip(truth, found, coded)]
    settings = {"images": images, "bytes": made.width, "recall": min(1, float(np.mean(agreed)))}
    quantizers.save(database.path, db, CODEC, made.tensors(), settings)


def _learn_index(database: Database, db: sqlite3.Connection, recall: float) -> None:
    parts = database.segments(db)
    live = _live(parts)
    lists = Lists.learn(
        _codec_of(database, parts), _live_keys(parts), database.pieces(parts, database.checksums(db), None)
    )
    lists, reached = lists.tuned(_vectors(parts), live, recall)
    probes = {str(k): v for k, v in lists.probes.items()}
    settings = {
        "learnt_from": len(lists.keys),
        "lists": len(lists.sizes),
        "probes": probes,
        "depth": lists.depth,
        "recall": {str(k): v for k, v in reached.items()},
    }
    _save_index(database, db, lists, settings)


def _save_index(database: Database, db: sqlite3.Connection, lists: Lists, settings: dict[str, Any]) -> None:
    more = {"images": len(lists.keys), "last_key": int(lists.keys[-1])}
    quantizers.save(database.path, db, INDEX, lists.tensors(), {**settings, **more})


def _codec_of(database: Database, parts: Sequence[Segment]) -> Codec:
    return Codec.learn(_taken(parts, _sample(parts, sq8.SAMPLE)), database.dimension)


def _sample(parts: Sequence[Segment], count: int) -> np.ndarray:
    """Live rows, ascending."""
    rows = np.flatnonzero(_live(parts))
    return np.sort(np.random.default_rng(0).permutation(rows)[:count])


def _taken(parts: Sequence[Segment], rows: np.ndarray) -> list[np.ndarray]:
    return [take(_vectors(parts), rows[start : start + _STEP]) for start in range(0, len(rows), _STEP)]


def _vectors(parts: Sequence[Segment]) -> list[np.ndarray]:
    return [segment.vectors for segment in parts]


def _live(parts: Sequence[Segment]) -> np.ndarray:
    return np.concatenate([segment.live for segment in parts])


def _live_keys(parts: Sequence[Segment]) -> np.ndarray:
    return np.concatenate([np.empty(0, np.int64), *(segment.keys[segment.live] for segment in parts)])
