"""Presets of the gallery against exact numpy: what they find, what they keep, and what a kill or damage leaves."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.core.types import ReidError
from reid.gallery import Filter, Gallery, check, export, repair
from tests.forks import Forks
from tests.test_gallery import KILLS, WRITING, create, files_of, flip, kill, random_unit, unit

COUNT, WIDE = 1500, 256  # 256 values, 128 bytes of a code


def people(count: int, seed: int = 0, dimension: int = WIDE) -> np.ndarray:
    """Five images each of people who differ in 40 directions."""
    rng, places = np.random.default_rng(seed), np.random.default_rng(99).standard_normal((40, dimension))
    whose = rng.standard_normal((count // 5 + 1, 40)).repeat(5, axis=0)[:count]
    return unit(
        (whose + 0.3 * rng.standard_normal((count, 40))) @ places + 0.3 * rng.standard_normal((count, dimension))
    )


def nearest(queries: np.ndarray, vectors: np.ndarray, top_k: int) -> np.ndarray:
    return np.argsort(-(queries.astype(np.float64) @ vectors.T), axis=1, kind="stable")[:, :top_k]


def recall(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / len(b) for a, b in zip(found, true)]))


@pytest.fixture(autouse=True)
def _lists_are_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reid.gallery.index.ivf._FEW", 50)
    monkeypatch.setattr("reid.gallery.index.ivf._TRIALS", 100)
    monkeypatch.setattr("reid.gallery.index.ivf.TOP_K", (10,))


def built(path: Path, preset: str, count: int = COUNT) -> Gallery:
    gallery = create(path, dimension=WIDE)
    gallery.add(
        people(count),
        [f"{n}.jpg" for n in range(count)],
        [n // 5 + 1 for n in range(count)],
        [n % 4 + 1 for n in range(count)],
        [float(n) for n in range(count)],
    )
    gallery.set_preset(preset)
    return gallery


@pytest.mark.parametrize(("preset", "least"), [("exact", 1), ("compact", 0.9), ("large", 0.97), ("auto", 1)])
def test_every_preset_against_numpy(tmp_path: Path, preset: str, least: float) -> None:
    gallery, vectors = built(tmp_path / "g", preset), people(COUNT)
    queries = unit(vectors[::15] + 0.02 * random_unit(100, 5, WIDE))
    for among, chosen in ((np.arange(COUNT), None), (np.arange(COUNT)[::4], Filter(camids=[1]))):
        keys, scores = gallery.search(queries, 10, filter=chosen)
        assert recall(keys, among[nearest(queries, vectors[among], 10)]) >= least
        true = np.take_along_axis(queries @ vectors.T, keys, axis=1)
        assert np.allclose(scores, true, atol=0.03 if preset == "compact" else 1e-6)
        assert (np.diff(scores, axis=1) <= 0).all()
    rare = gallery.search(queries, 10, filter=Filter(before=12.0, camids=[1])).keys
    assert np.array_equal(np.sort(rare[:, :3], axis=1), np.tile([0, 4, 8], (100, 1)))  # full as far as there are such
    assert (rare[:, 3:] == -1).all()
    assert np.allclose(gallery.vectors([5, 7]), vectors[[5, 7]], atol=0.03 if preset == "compact" else 0)
    everything = gallery.search(queries[:2], COUNT).keys
    assert np.array_equal(np.sort(everything, axis=1), np.tile(np.arange(COUNT), (2, 1)))
    assert gallery.info().preset == preset
    assert check(gallery.path) == []


def test_codes_are_answered_alike_however_they_are_asked(tmp_path: Path) -> None:
    gallery = built(tmp_path / "g", "compact")
    gallery.add(people(40, seed=3), [f"late-{n}" for n in range(40)])  # a second file
    gallery.add(np.repeat(people(1, seed=4), 30, axis=0), [f"same-{n}" for n in range(30)])
    queries = np.concatenate([people(30, seed=3), people(1, seed=4)])
    together = gallery.search(queries, 20)
    for q, query in enumerate(queries):
        alone = gallery.search(query[None], 20)
        assert np.array_equal(alone.keys[0], together.keys[q])
        assert np.array_equal(alone.scores[0], together.scores[q])
    assert together.keys[-1].tolist() == list(range(COUNT + 40, COUNT + 60))  # equal scores in order of key


def test_a_compact_gallery_is_small_and_stays_compact(tmp_path: Path) -> None:
    gallery = built(tmp_path / "g", "compact")
    (file,) = gallery.path.glob("vectors-*")
    assert file.stat().st_size == 128 + COUNT * 128
    assert gallery.info().learnt is not None
    with pytest.raises(ReidError, match="is compact, its vectors are gone"):
        gallery.set_preset("exact")
    other = create(tmp_path / "other", dimension=WIDE)
    other.add(people(20, seed=8), [f"o{n}" for n in range(20)])
    assert gallery.merge(other) == (20, 0)
    assert other.merge(gallery) == (COUNT, 20)
    assert np.allclose(other.vectors([25]), people(COUNT)[[5]], atol=0.05)
    export(gallery, tmp_path / "out")
    assert np.allclose(np.load(tmp_path / "out" / "vectors.npy")[:COUNT], people(COUNT), atol=0.05)
    flip(file, 128 + 128 * 7)
    dropped, left = repair(gallery.path)
    assert [entry.key for entry in dropped] == [7] and left == []
    flip(next(gallery.path.glob("codec-*")), 5000)
    for call in (lambda: Gallery.open(gallery.path), lambda: check(gallery.path), lambda: repair(gallery.path)):
        with pytest.raises(ReidError, match=r"codec-\d+.safetensors is not what was written, and nothing else says"):
            call()


def test_what_came_and_went_since_an_index_was_learnt(tmp_path: Path) -> None:
    gallery = built(tmp_path / "g", "large")
    reader, queries = Gallery.open(gallery.path), people(COUNT)[:50]
    reader.search(queries, 5)
    (index,) = gallery.path.glob("index-*")
    new = unit(queries + 0.01 * random_unit(50, 7, WIDE))
    gallery.add(new, [f"new-{n}" for n in range(50)])
    assert index.exists()  # not taken in yet
    assert gallery.remove(Filter(keys=range(20))) == 20
    vectors = np.concatenate([people(COUNT), new])
    for step in ("searched beside it", "taken in", "compacted"):
        if step == "taken in":
            more = people(1100, seed=11)
            gallery.add(more, [f"more-{n}" for n in range(1100)])
            vectors = np.concatenate([vectors, more])
            assert not index.exists()
            info = gallery.info().learnt
            assert info is not None and info["images"] == COUNT + 1130
        if step == "compacted":
            gallery.compact()
        left = np.arange(20, len(vectors))
        for each in (reader, Gallery.open(gallery.path)):
            assert recall(each.search(queries, 5).keys, left[nearest(queries, vectors[20:], 5)]) > 0.97, step
        assert check(gallery.path) == []
    gallery.set_preset("exact")
    assert not list(gallery.path.glob("index-*"))
    assert np.array_equal(reader.search(queries, 5).keys, left[nearest(queries, vectors[20:], 5)])


@pytest.mark.parametrize("preset", ["compact", "large"])
def test_a_small_gallery_is_searched_exactly_until_it_has_grown(tmp_path: Path, preset: str) -> None:
    gallery = create(tmp_path / "g", dimension=WIDE)
    gallery.set_preset(preset)
    gallery.add(people(900), [str(n) for n in range(900)])
    assert gallery.info().learnt is None
    assert np.array_equal(gallery.vectors([3]), people(900)[[3]])
    gallery.add(people(200, seed=1), [f"b{n}" for n in range(200)])
    learnt = gallery.info().learnt
    assert learnt is not None and learnt["images"] == 1100
    assert check(gallery.path) == []


@pytest.mark.parametrize("preset", ["compact", "large"])
def test_forgetting_and_expiring_reach_codes(tmp_path: Path, preset: str) -> None:
    from reid.gallery.folder import quantizers

    gallery = built(tmp_path / "g", preset, 1500)

    def codes() -> tuple[Any, np.ndarray]:
        with gallery.reading() as db:
            named = quantizers.named(db)
            assert named is not None
            what: Any = quantizers.load(gallery.path, named)
        if preset == "large":
            return what.codec, what.codes
        return what, np.load(next(gallery.path.glob("vectors-*")))

    codec, rows = codes()
    theirs = {row.tobytes() for row in codec.encode(people(1500)[:5])}
    assert theirs <= {row.tobytes() for row in rows}
    assert gallery.forget(1).images == 5
    codec, rows = codes()
    assert len(rows) == 1495
    assert not {row.tobytes() for row in codec.encode(people(1500)[:5])} & {row.tobytes() for row in rows}
    assert not any(code in file.read_bytes() for file in gallery.path.iterdir() for code in theirs)
    assert gallery.expire(100) == 95
    codec, rows = codes()
    assert len(rows) == 1400
    assert not {row.tobytes() for row in codec.encode(people(1500)[:100])} & {row.tobytes() for row in rows}
    assert check(gallery.path) == []


@pytest.mark.parametrize(
    "harm", [lambda file: flip(file, 5000), lambda file: file.unlink(), lambda file: file.write_bytes(b"\xff" * 99)]
)
def test_a_damaged_index_is_named_and_learnt_anew(tmp_path: Path, harm: Any) -> None:
    gallery = built(tmp_path / "g", "large")
    harm(next(gallery.path.glob("index-*")))
    opened, queries = Gallery.open(gallery.path), people(COUNT)[:20]
    with pytest.warns(UserWarning, match=r"index-\d+.safetensors is .*; searched exactly, without it"):
        assert np.array_equal(opened.search(queries, 5).keys, nearest(queries, people(COUNT), 5))
    (told,) = check(gallery.path)
    assert told.startswith("index-")
    assert repair(gallery.path) == ([], [])
    assert recall(Gallery.open(gallery.path).search(queries, 5).keys, nearest(queries, people(COUNT), 5)) > 0.97


def test_wrong_presets(tmp_path: Path) -> None:
    gallery = create(tmp_path / "g")
    with pytest.raises(ReidError, match="the presets are exact, compact, large, auto; there is no 'huge'"):
        gallery.set_preset("huge")
    with pytest.raises(ReidError, match="a recall lies between 0 and 1"):
        gallery.set_preset("large", recall=1)


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("reid.gallery", "faiss") as forks:
        yield forks


TURNS = """
import reid.gallery.index.sq8, reid.gallery.index.ivf
reid.gallery.index.sq8.LEAST, reid.gallery.index.ivf.TOP_K, reid.gallery.index.ivf._TRIALS = 20, (10,), 20
turn = 0
while True:
    keys = [entry.key for entry in gallery.entries()]
    n = gallery.add(unit(30, 1), [f"{keys[-1]}-{i}.jpg" for i in range(30)])[-1]
    gallery.remove(Filter(keys=keys[:10]))
    gallery.set_preset(sys.argv[2] if turn % 2 or sys.argv[2] == "compact" else "exact")
    print("add", n + 1, flush=True)
    turn += 1
"""


@pytest.mark.parametrize("preset", ["compact", "large"])
def test_killed_while_presets_change(tmp_path: Path, forks: Forks, preset: str) -> None:
    """GALLERY_KILLS=200 runs more of them."""
    gallery, dice = create(tmp_path / "g"), random.Random(preset)
    gallery.add(random_unit(60), [f"{n}.jpg" for n in range(60)])
    for _ in range(KILLS):
        told = kill(forks.start(WRITING + TURNS, gallery.path, preset), dice.uniform(0, 0.2))
        assert check(gallery.path) == []
        keys = [entry.key for entry in gallery.entries()]
        assert keys[-1] + 1 >= told[-1][1]
        assert sorted(gallery.search(random_unit(1), len(keys)).keys[0]) == keys
    gallery.compact()
    learnt = {file.name for pattern in ("codec-*", "index-*") for file in gallery.path.glob(pattern)}
    assert len(learnt) <= 1
    vectors = {file.name for file in gallery.path.glob("vectors-*")}
    assert files_of(gallery.path) == {"manifest.json", "gallery.sqlite"} | vectors | learnt
