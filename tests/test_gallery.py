"""The gallery: exact search, filters, what survives a kill, what is forgotten, and what it refuses."""

from __future__ import annotations

import json
import os
import random
import signal
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import reid.gallery.folder.gallery
from reid.core.types import JUNK, ReidError
from reid.gallery import Entry, Filter, Gallery, check, export, fuse, hash_file, parse_age, parse_time, repair, to_faiss
from reid.gallery.folder.gallery import FolderGallery
from reid.retrieval.evaluate import evaluate
from tests.forks import Child, Forks

DIMENSION = 16
KILLS = int(os.environ.get("GALLERY_KILLS", "5"))  # of each kind of writing, at random moments


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_unit(count: int, seed: int = 0, dimension: int = DIMENSION) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, dimension)))


def create(path: Path | str, **changes: Any) -> Gallery:
    return Gallery.create(path, **{"dimension": DIMENSION, "fingerprint": "abc", "input_size": (384, 128), **changes})


def digest(number: int) -> str:
    return f"{number:064x}"


def filled(path: Path, count: int = 20) -> FolderGallery:
    gallery = create(path)
    assert isinstance(gallery, FolderGallery)
    return fill(gallery, count)


def fill(gallery: Any, count: int = 20) -> Any:
    """Vectors of seed 0, paths 0.jpg .., pids 0, 1, 2, 0 .., camids 1, 2, 3, 4, 1 .., times 0, 1, .., hashes, lanes."""
    numbers = np.arange(count)
    gallery.add(
        random_unit(count),
        [f"{n}.jpg" for n in numbers],
        numbers % 3,
        numbers % 4 + 1,
        numbers,
        [{"lane": str(n % 2)} for n in numbers],
        [digest(n) for n in range(count)],
    )
    return gallery


def assert_searches(gallery: Gallery, count: int = 20) -> None:
    """It is the gallery that `filled` makes, and answers."""
    assert len(gallery) == count
    keys, scores = gallery.search(random_unit(count), 1)
    assert keys[:, 0].tolist() == list(range(count))
    assert np.allclose(scores, 1, atol=1e-6)


def files_of(folder: Path) -> set[str]:
    return {file.name for file in folder.iterdir()} - {"lock"}


def make_milvus(folder: Path, name: str, options: str = "", **changes: Any) -> Gallery:
    """In Milvus Lite; or on a server, as GALLERY_MILVUS=milvus://localhost:19530 names it."""
    server = os.environ.get("GALLERY_MILVUS")
    place = f"{server}/{name}_{os.getpid()}" if server else f"milvus+lite:{folder}/{name}.db"
    return create(place + options, **changes)


@pytest.fixture(scope="module")
def in_milvus(tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    return make_milvus(tmp_path_factory.mktemp("milvus"), "people")


@pytest.fixture(params=["folder", "milvus"])
def empty(request: pytest.FixtureRequest, tmp_path: Path) -> Gallery:
    """A gallery of nothing yet, in a folder and in Milvus (where making one takes a second, so it is emptied)."""
    if request.param == "folder":
        return create(tmp_path / "g")
    gallery = request.getfixturevalue("in_milvus")
    gallery.remove(Filter(exclude_keys=[-1]))
    gallery._at.put("state", json.dumps({"next_key": 0}))
    return gallery


@pytest.fixture(scope="module", params=["folder", "milvus"])
def mixed(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Gallery:
    """For reading only: what `filled` holds, and three images more."""
    folder = tmp_path_factory.mktemp("mixed")
    gallery = fill(create(folder / "g") if request.param == "folder" else make_milvus(folder, "mixed"))
    gallery.add(
        random_unit(3, seed=5),
        ["bad-\udcff.jpg", 'x"\\\n', "bytes:y"],
        ["anna", None, 2],
        [None, 3, 1],
        fields=[{"lane": 1, "speed": 2.5}, {}, {"lane": '1" or 1=1 --'}],
    )
    return gallery


# ---- exact search


@pytest.mark.parametrize("top_k", [1, 7, 300])
@pytest.mark.parametrize("filtered", [False, True])
def test_search_is_exact(tmp_path: Path, top_k: int, filtered: bool) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = random_unit(300), random_unit(40, seed=2)
    camids, own = (rng.integers(1, 4, 300), rng.integers(1, 5, 40))  # nothing is from camera 4
    gallery = create(tmp_path / "g")
    for part in np.array_split(np.arange(300), 3):
        assert gallery.add(vectors[part], [f"{n}.jpg" for n in part], None, camids[part]).tolist() == part.tolist()

    keys, scores = gallery.search(queries, top_k, exclude_camids=own if filtered else None)
    assert (keys.shape, keys.dtype, scores.shape, scores.dtype) == ((40, top_k), np.int64, (40, top_k), np.float32)
    expected = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    if filtered:
        expected[camids == own[:, None]] = -np.inf
    best = -np.sort(-expected, axis=1)[:, :top_k]
    found = np.isfinite(best)
    assert np.allclose(scores[found], best[found], atol=1e-6)
    assert (scores[~found] == -np.inf).all()
    assert (keys[~found] == -1).all()
    assert np.allclose(np.take_along_axis(expected, keys, axis=1)[found], best[found], atol=1e-6)  # the right images
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in keys)


def test_an_answer_does_not_depend_on_how_it_was_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One query or many, one file or several, small blocks or large, some rows or all: the same bits."""
    vectors = unit(random_unit(1, 7, 96) + 1e-4 * random_unit(400, 8, 96))  # scores closer than float32 tells apart
    vectors = np.concatenate([vectors, vectors[::-1]])
    gallery = create(tmp_path / "g", dimension=96)
    gallery.add(vectors[:500], [str(n) for n in range(500)])
    gallery.add(vectors[500:], [str(n) for n in range(500, 800)], None, [1] * 300)
    queries = vectors[:6]
    keys, scores = gallery.search(queries, 50)
    exact = (np.rint(queries.astype(np.float64) * 2**26) @ np.rint(vectors.T.astype(np.float64) * 2**26)) / 2**52
    assert np.array_equal(keys, np.argsort(-exact, axis=1, kind="stable")[:, :50])
    assert np.array_equal(scores, np.take_along_axis(exact, keys, axis=1).clip(-1, 1).astype(np.float32))
    assert np.array_equal(gallery.search(queries, 800).keys[:, :50], keys)
    everything = Filter(before=0)  # no image has a time: nothing is left
    assert (gallery.search(queries, 5, filter=everything).keys == -1).all()
    for q in range(6):
        assert np.array_equal(gallery.search(queries[q : q + 1], 50).keys[0], keys[q])
    monkeypatch.setattr("reid.retrieval.knn._PRODUCT", 1)
    monkeypatch.setattr("reid.retrieval.knn._QUERIES", 4)
    assert np.array_equal(gallery.search(queries, 50).keys, keys)
    gallery.compact()
    assert np.array_equal(gallery.search(queries, 50).keys, keys)
    late = [row[row >= 500] for row in np.argsort(-exact, axis=1, kind="stable")]
    assert np.array_equal(gallery.search(queries, 50, filter=Filter(camids=[1])).keys, [row[:50] for row in late])


def test_one_camera_for_all_queries(empty: Gallery) -> None:
    gallery = fill(empty)
    keys = gallery.search(random_unit(5), 15, exclude_camids=2).keys
    assert {gallery.entry(key).camid for key in keys.ravel()} == {1, 3, 4}
    each = gallery.search(random_unit(5), 15, exclude_camids=[2, None, 2, 2, 2]).keys
    assert np.array_equal(np.delete(each, 1, axis=0), np.delete(keys, 1, axis=0))
    assert 1 in each[1]


@pytest.mark.parametrize(
    ("chosen", "meets"),
    [
        (Filter(), lambda e: True),
        (Filter(camids=[1, 3]), lambda e: e.camid in (1, 3)),
        (Filter(exclude_camids=[1, 3]), lambda e: e.camid not in (1, 3)),
        (Filter(pids=[1, "anna"]), lambda e: e.pid in (1, "anna")),
        (Filter(after=5, before=12), lambda e: e.time is not None and 5 <= e.time < 12),
        (Filter(fields={"lane": "1"}), lambda e: str(e.fields.get("lane")) == "1"),
        (Filter(fields={"lane": 1, "speed": 2.5}), lambda e: e.fields.get("speed") == 2.5),
        (Filter(fields={"lane": "1' OR 1=1 --"}), lambda e: False),
        (Filter(fields={"lane": '1" or 1=1 --'}), lambda e: e.key == 22),
        (Filter(pids=['x"] or key in [1']), lambda e: False),
        (Filter(keys=[3, 4, 99]), lambda e: e.key in (3, 4)),
        (Filter(exclude_keys=[3, 4]), lambda e: e.key not in (3, 4)),
        (Filter(paths=["7.jpg", "bad-\udcff.jpg", "none"]), lambda e: e.path in ("7.jpg", "bad-\udcff.jpg")),
        (Filter(paths=['x"\\\n', "bytes:y"], exclude_camids=[1]), lambda e: e.key == 21),
        (Filter(keys=[]), lambda e: False),
        (Filter(camids=[2], after=3, exclude_keys=[5]), lambda e: e.camid == 2 and e.time >= 3 and e.key != 5),
    ],
)
def test_filters_before_the_search(mixed: Gallery, chosen: Filter, meets: Callable[[Entry], bool]) -> None:
    gallery = mixed
    vectors, queries = np.concatenate([random_unit(20), random_unit(3, seed=5)]), random_unit(4, seed=6)
    expected = [entry for entry in gallery.entries() if meets(entry)]
    assert list(gallery.entries(chosen)) == expected
    assert gallery.count(chosen) == len(expected)
    keys = gallery.search(queries, 6, filter=chosen).keys
    among = np.array([entry.key for entry in expected], int)
    order = np.argsort(-(queries @ vectors[among].T), axis=1)[:, :6]
    assert np.array_equal(keys[:, : len(among)], among[order])  # full as far as there are so many
    assert (keys[:, len(among) :] == -1).all()


def test_groups(empty: Gallery) -> None:
    gallery = empty
    vectors, queries = random_unit(60), random_unit(5, seed=3)
    pids = [None, JUNK, 0, *([1] * 30), *(["anna"] * 20), *range(2, 9)]
    tracks: list[dict[str, str | int | float]] = [{"track": n // 6} for n in range(60)]
    gallery.add(vectors, [str(n) for n in range(60)], pids, fields=tracks)
    order = np.argsort(-(queries @ vectors.T), axis=1)
    for group_by, groups in (
        ("pid", [("nobody", n) if p in (None, JUNK, 0) else p for n, p in enumerate(pids)]),
        ("track", [n // 6 for n in range(60)]),
    ):
        for top_k in (1, 4, 40):
            keys, scores = gallery.search(queries, top_k, group_by=group_by)
            for q in range(5):
                nearest = list({groups[n]: n for n in order[q][::-1]}.values())
                expected = sorted(nearest, key=lambda n: -(queries[q] @ vectors[n]))[:top_k]
                assert keys[q][keys[q] >= 0].tolist() == expected
                assert np.isfinite(scores[q]).sum() == len(expected)


def test_threshold_and_fused_queries(empty: Gallery) -> None:
    gallery = fill(empty)
    keys, scores = gallery.search(random_unit(2, seed=4), 20, threshold=0.2)
    whole = gallery.search(random_unit(2, seed=4), 20)
    assert (scores[scores > -np.inf] >= 0.2).all()
    assert np.array_equal(keys >= 0, whole.scores >= 0.2)
    both = fuse(random_unit(2))
    assert np.allclose(both, unit(random_unit(2).sum(axis=0, keepdims=True)), atol=1e-6)
    assert sorted(gallery.search(both, 2).keys[0]) == [0, 1]
    assert np.array_equal(gallery.vectors([5, 0, 5]), random_unit(20)[[5, 0, 5]])
    for wrong in (random_unit(0), np.concatenate([both, -both])):
        with pytest.raises(ReidError, match="no mean direction"):
            fuse(wrong)


def test_equal_scores_come_in_order_of_key(empty: Gallery) -> None:
    gallery = empty
    gallery.add(np.repeat(random_unit(1), 40, axis=0), [str(n) for n in range(40)])
    assert gallery.search(random_unit(1), 40).keys.tolist() == [list(range(40))]


def test_scores_do_not_exceed_one(empty: Gallery) -> None:
    vectors = random_unit(20) * np.float32(1.00004)  # unit, within what is tolerated
    gallery = empty
    gallery.add(np.concatenate([vectors, -vectors]), [str(n) for n in range(40)])
    scores = gallery.search(vectors, 40).scores
    assert (scores.min(), scores.max()) == (-1, 1)


def test_empty_gallery_and_large_k(empty: Gallery) -> None:
    gallery = empty
    keys, scores = gallery.search(random_unit(2), 3)
    assert keys.tolist() == [[-1] * 3] * 2
    assert (scores == -np.inf).all()
    assert gallery.add(random_unit(0), []).shape == (0,)
    gallery.add(random_unit(1), ["a.jpg"])
    keys, scores = gallery.search(random_unit(1), 3)
    assert keys.tolist() == [[0, -1, -1]]
    assert scores[0, 1:].tolist() == [-np.inf, -np.inf]


def test_rank1_and_map_equal_the_evaluation(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    q_pids, g_pids = rng.integers(1, 20, 60), rng.integers(JUNK, 20, 400)
    q_camids, g_camids = rng.integers(1, 4, 60), rng.integers(1, 4, 400)
    centres = rng.standard_normal((21, DIMENSION))
    queries, vectors = (unit(centres[p] + rng.standard_normal((len(p), DIMENSION))) for p in (q_pids, g_pids))
    gallery = create(tmp_path / "g")
    gallery.add(vectors, [f"{n}.jpg" for n in range(400)], g_pids, g_camids)

    entries = {entry.key: entry for entry in gallery.entries()}
    first, precisions = [], []
    for q, keys in enumerate(gallery.search(queries, len(gallery)).keys):
        ranked = [entries[key] for key in keys]
        kept = [e for e in ranked if e.pid != JUNK and (e.pid, e.camid) != (q_pids[q], q_camids[q])]
        right = np.array([e.pid == q_pids[q] for e in kept])
        hits = np.flatnonzero(right)
        first.append(right[0])
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    scores = evaluate(queries, vectors, q_pids, g_pids, q_camids, g_camids)
    assert scores.num_query_without_match == 0
    assert 0.2 < scores.mAP < 0.9
    assert np.mean(first) == pytest.approx(scores.rank1, abs=1e-12)
    assert np.mean(precisions) == pytest.approx(scores.mAP, abs=1e-12)


# ---- what it keeps


def test_everything_persists(empty: Gallery) -> None:
    gallery = empty
    paths = ["a,b.jpg", 'quo"te\n\rline.jpg', "dämmerung/夜.jpg", " spaces .jpg", "bad-\udcff-utf8.jpg"]
    before = time.time()
    gallery.add(
        random_unit(2), [Path(paths[0]), paths[1]], [5, None], [None, 2], [None, 1.25], hashes=[None, digest(7)]
    )
    gallery.add(random_unit(3, seed=1), paths[2:], np.array([JUNK, 0, 2**40]), fields=[{}, {}, {"ä": 1.5, "b": "c"}])
    gallery.add(random_unit(1, seed=2), ["z"], ["anna"])

    opened = Gallery.open(gallery.place)
    entries = list(opened.entries())
    assert entries == list(gallery.entries())
    assert all(before - 1 <= entry.added <= time.time() + 1 for entry in entries)
    assert [entry._replace(added=0) for entry in entries] == [
        Entry(0, paths[0], 5, None),
        Entry(1, paths[1], None, 2, 1.25, hash=digest(7)),
        Entry(2, paths[2], -1, None),
        Entry(3, paths[3], 0, None),
        Entry(4, paths[4], 2**40, None, fields={"ä": 1.5, "b": "c"}),
        Entry(5, "z", "anna"),
    ]
    assert opened.entry(4) == entries[4]
    assert paths[4] in opened
    assert Path(paths[0]) in opened
    assert "c.jpg" not in opened
    assert (opened.dimension, opened.fingerprint, opened.input_size, len(opened)) == (16, "abc", (384, 128), 6)
    opened.check_model("abc")
    info = opened.info()
    assert (info.images, info.people, info.cameras, info.times) == (6, 3, {2: 1}, (1.25, 1.25))
    assert check(gallery.place) == []


def test_a_gallery_holds_its_model_and_knows_its_size(tmp_path: Path) -> None:
    model = tmp_path / "net.safetensors"
    model.write_bytes(b"weights")
    gallery = create(tmp_path / "g", model=model)
    assert gallery.model_path == tmp_path / "g" / "model.safetensors"
    assert gallery.model_path.read_bytes() == b"weights"
    assert filled(tmp_path / "without").model_path is None
    assert gallery.info().bytes == sum(file.stat().st_size for file in (tmp_path / "g").iterdir())


def test_empty_folder_becomes_a_gallery(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    assert_searches(filled(tmp_path / "g"))
    assert files_of(tmp_path / "g") == {"manifest.json", "gallery.sqlite", "vectors-000001.npy"}


def test_many_small_additions_lie_in_few_files(tmp_path: Path) -> None:
    gallery = create(tmp_path / "g")
    for n in range(20):
        gallery.add(random_unit(20)[n : n + 1], [f"{n}.jpg"])
        assert len(list(gallery.path.glob("vectors-*"))) <= 5
    assert_searches(gallery)
    assert check(gallery.path) == []


def test_an_image_that_changed_takes_its_place(empty: Gallery) -> None:
    gallery = fill(empty)
    assert gallery.known(["3.jpg", "3.jpg", "new.jpg", "new.jpg"], [digest(3), digest(99), digest(4), digest(99)]) == [
        True,
        False,
        True,
        False,
    ]
    changed = random_unit(1, seed=9)
    assert gallery.add(changed, ["3.jpg"], [7], hashes=[digest(99)]).tolist() == [20]
    assert len(gallery) == 20
    assert [(e.key, e.pid) for e in gallery.entries(Filter(paths=["3.jpg"]))] == [(20, 7)]
    assert gallery.search(changed, 1).keys.tolist() == [[20]]
    assert gallery.search(random_unit(20)[3:4], 20).scores.max() < 0.99
    for same in ({"hashes": [digest(99)]}, {}):
        with pytest.raises(ReidError, match=r"3\.jpg is in it already"):
            gallery.add(changed, ["3.jpg"], **same)
    assert check(gallery.place) == []


@pytest.mark.parametrize(
    ("chosen", "left"),
    [
        (Filter(keys=[0, 19, 77]), lambda e: e.key not in (0, 19)),
        (Filter(camids=[1]), lambda e: e.camid != 1),
        (Filter(pids=[0, 2]), lambda e: e.pid == 1),
        (Filter(after=2), lambda e: e.time < 2),
        (Filter(before=25), lambda e: False),
        (Filter(paths=["5.jpg"], camids=[2]), lambda e: e.key != 5),
    ],
)
def test_removed_images_are_gone(tmp_path: Path, chosen: Filter, left: Callable[[Entry], bool]) -> None:
    gallery = filled(tmp_path / "g")
    expected = [entry for entry in gallery.entries() if left(entry)]
    assert gallery.remove(chosen) == 20 - len(expected)
    for when in ("removed", "opened", "compacted", "added"):
        opened = Gallery.open(gallery.path)
        if when == "compacted":
            opened.compact()
            assert opened.info().removed == 0
        if when == "added":
            assert opened.add(random_unit(1, seed=8), ["new.jpg"]).tolist() == [20]
            opened.remove(Filter(keys=[20]))
        assert list(opened.entries()) == expected
        assert sorted(k for k in opened.search(random_unit(1), 30).keys[0] if k >= 0) == [e.key for e in expected]
        assert check(gallery.path) == []
    assert gallery.info().files <= 1


def test_a_removal_takes_a_condition(empty: Gallery) -> None:
    gallery = fill(empty)
    for nothing in (Filter(), Filter(camids=[], pids=[], fields={})):
        with pytest.raises(ReidError, match="takes a condition"):
            gallery.remove(nothing)
    assert gallery.remove(Filter(keys=[])) == 0
    assert_searches(gallery)


def test_removed_expired_and_forgotten_images_are_not_found(empty: Gallery) -> None:
    gallery = fill(empty)
    gallery.add(random_unit(1, seed=9), ["no-time.jpg"], [4])
    assert gallery.remove(Filter(camids=[1], after=16)) == 1
    assert gallery.expire(9) == 9
    assert [entry.key for entry in gallery.entries()] == [*range(9, 16), *range(17, 21)]
    done = gallery.forget(1)
    assert (done.images, gallery.forget(1).images) == (3, 0)
    assert "no " in done.proof
    gallery.compact()
    left = [9, 11, 12, 14, 15, 17, 18, 20]
    assert [entry.key for entry in gallery.entries()] == left
    assert sorted(key for key in gallery.search(random_unit(1), 30).keys[0] if key >= 0) == left
    assert gallery.add(random_unit(1, seed=8), ["new.jpg"]).tolist() == [21]
    assert gallery.expire(time.time() + 5) == 9  # by their time of adding
    assert len(gallery) == 0


def test_expired_images_are_gone_from_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g")
    monkeypatch.setattr(time, "time", lambda: 9.5)
    gallery.add(random_unit(1, seed=9), ["no-time.jpg"])
    assert gallery.expire(9) == 9
    assert [entry.key for entry in gallery.entries()] == list(range(9, 21))
    assert gallery.expire(10) == 2  # 9.jpg, and by its time of adding no-time.jpg
    everything = b"".join(file.read_bytes() for file in gallery.path.iterdir())
    for n, row in enumerate(random_unit(20)):
        assert (row.tobytes() in everything) == (n >= 10)
    assert b"no-time.jpg" not in everything
    assert check(gallery.path) == []


def traces(folder: Path, needles: list[bytes]) -> list[str]:
    data = {file.name: file.read_bytes() for file in folder.iterdir()}
    return [name for name, content in data.items() if any(needle in content for needle in needles)]


def test_forgetting_a_person_leaves_no_trace(tmp_path: Path) -> None:
    gallery = create(tmp_path / "g")
    vectors = random_unit(40)
    names = [f"person-{n % 4}/{n}.jpg" for n in range(40)]
    fields: list[dict[str, str | int | float]] = [{"note": f"secret-{n % 4}-"} for n in range(40)]
    gallery.add(vectors, names, [f"p{n % 4}" for n in range(40)], hashes=[digest(n) for n in range(40)], fields=fields)
    gallery.add(vectors[:1], ["a/person-0/0.jpg"], ["p1"], hashes=[digest(0)])  # another's, with much in common
    gallery.add(random_unit(3, 5), ["old-1.jpg", "old-2.jpg", "kept.jpg"], ["p0", "p0", "p3"])
    gallery.remove(Filter(paths=["old-1.jpg"]))
    theirs = [n for n in range(40) if n % 4 == 0]
    needles = [names[n].encode() for n in theirs[1:]] + [digest(n).encode() for n in theirs[1:]]
    needles += [vectors[n].tobytes() for n in theirs[1:]] + [b"secret-0-", b"old-1.jpg", b"old-2.jpg"]
    needles += [row.tobytes() for row in random_unit(3, 5)[:2]]
    assert set(traces(gallery.path, needles)) == {"gallery.sqlite", *(f.name for f in gallery.path.glob("vectors-*"))}
    done = gallery.forget("p0")
    assert done.images == 11
    assert f"{sum(file.stat().st_size for file in gallery.path.iterdir()):,} bytes searched" in done.proof
    assert traces(gallery.path, needles) == []
    assert gallery.count(Filter(pids=["p0"])) == 0
    assert gallery.count() == 32
    assert gallery.search(vectors[:1], 1).keys.tolist() == [[40]]
    assert check(gallery.path) == []
    assert gallery.forget("p0").images == 0


def test_a_trace_is_named(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    (gallery.path / "notes.txt").write_text("seen on 4.jpg")
    with pytest.raises(ReidError, match=r"notes\.txt hold traces"):
        gallery.forget(1)


def test_merged_galleries(empty: Gallery, tmp_path: Path) -> None:
    ours, theirs = fill(empty), create(tmp_path / "b")
    vectors = random_unit(6, seed=9)
    theirs.add(
        vectors,
        ["n0", "n1", "5.jpg", "n3", "n4", "n5"],
        [1, 2, 3, None, "x", 9],
        [9] * 6,
        [3.0] * 6,
        hashes=[digest(100), digest(2), digest(101), digest(102), digest(102), None],
    )
    theirs.remove(Filter(paths=["n0"]))
    assert ours.merge(theirs) == (2, 3)  # n1 and 5.jpg are here by content or path, n4 is n3's content
    added = [entry for entry in ours.entries() if entry.key >= 20]
    assert [(e.key, e.path, e.pid, e.camid, e.time) for e in added] == [(20, "n3", None, 9, 3), (21, "n5", 9, 9, 3)]
    assert [e.added for e in added] == [e.added for e in theirs.entries() if e.path in ("n3", "n5")]
    assert np.array_equal(ours.vectors([20, 21]), vectors[[3, 5]])
    assert ours.merge(theirs) == (0, 5)
    assert len(theirs) == 5
    assert theirs.merge(ours) == (18, 4)  # all but those of a path or content that it has
    assert np.array_equal(theirs.vectors(range(6, 24)), ours.vectors([n for n in range(20) if n not in (2, 5)]))
    assert check(ours.place) == []
    with pytest.raises(ReidError, match="made by the model abc, .* by other"):
        ours.merge(create(tmp_path / "c", fingerprint="other"))
    with pytest.raises(ReidError, match="to be merged into it"):
        ours.merge(Gallery.open(ours.place))


def test_exports(empty: Gallery, tmp_path: Path) -> None:
    gallery = fill(empty)
    gallery.remove(Filter(keys=[1]))
    gallery.add(random_unit(1, seed=3), ["bad-\udcff,.jpg"])
    export(gallery, tmp_path / "out", faiss=True)
    keys = [0, *range(2, 21)]
    assert np.array_equal(np.load(tmp_path / "out" / "vectors.npy"), gallery.vectors(keys))
    lines = (tmp_path / "out" / "entries.csv").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "key,path,pid,camid,time,added,hash,fields"
    assert lines[3].startswith("3,3.jpg,0,4,1970-01-01T00:00:03+00:00,")
    assert lines[3].endswith(f',{digest(3)},"{{""lane"": ""1""}}"')
    assert lines[-1].startswith('20,"bad-\\udcff,.jpg",,,,')
    import faiss

    expected = gallery.search(random_unit(3, seed=4), 5)
    for index in (faiss.read_index(str(tmp_path / "out" / "gallery.faiss")), to_faiss(gallery)):
        scores, found = index.search(random_unit(3, seed=4), 5)
        assert np.array_equal(found, expected.keys)
        assert np.allclose(scores, expected.scores, atol=1e-6)
    with pytest.raises(ReidError, match="not empty"):
        export(gallery, tmp_path / "out")


def test_export_to_parquet(tmp_path: Path) -> None:
    from pyarrow import parquet

    gallery = filled(tmp_path / "g")
    gallery.add(random_unit(1, seed=3), ["z"], ["anna"])
    export(gallery, tmp_path / "out", parquet=True)
    table = parquet.read_table(tmp_path / "out" / "gallery.parquet")
    assert table.column("path").to_pylist()[-2:] == ["19.jpg", "z"]
    assert table.column("pid").to_pylist()[-2:] == ["1", "anna"]
    assert np.array_equal(np.array(table.column("vector").to_pylist(), np.float32), gallery.vectors(range(21)))


def test_parquet_names_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(ReidError, match="pip install 'pyarrow>=18'"):
        export(filled(tmp_path / "g"), tmp_path / "out", parquet=True)
    assert not (tmp_path / "out").exists()


def test_times_and_ages() -> None:
    assert parse_time("2026-11-26T19:30") == parse_time("2026-11-26T20:30+01:00") == parse_time("2026-11-26 19:30Z")
    assert [parse_age(x) for x in ("90s", "15m", "12h", "1d", "4w")] == [90, 900, 43200, 86400, 28 * 86400]
    for call, text in ((parse_time, "yesterday"), (parse_time, "nan"), (parse_age, "30"), (parse_age, "-1d")):
        with pytest.raises(ReidError, match=r"time is|age is"):
            call(text)


# ---- readers and writers at once


def test_readers_follow_and_a_block_sees_one_state(tmp_path: Path) -> None:
    reader = filled(tmp_path / "g")
    writer = Gallery.open(tmp_path / "g", wait=0.1)
    writer.add(random_unit(2, seed=3), ["x.jpg", "y.jpg"])
    assert len(reader) == 22
    with pytest.raises(ReidError, match=r"x\.jpg is in it already"):
        reader.add(random_unit(1, seed=4), ["x.jpg"])
    with reader.reading():
        keys = reader.search(random_unit(1), 22).keys[0]
        with pytest.raises(ReidError, match="another process is reading or writing"):
            writer.remove(Filter(camids=[1]))
        assert len([reader.entry(key) for key in keys]) == 22
    assert writer.remove(Filter(camids=[1])) == 5
    assert len(reader) == 17
    assert (reader.search(random_unit(1), 22).keys[0] >= 0).sum() == 17


def test_old_files_serve_who_has_them_open(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A search that has read what it will search goes on while the files are swept away."""
    gallery = filled(tmp_path / "g")
    whole = reid.retrieval.knn.nearest

    def overtaken(*arguments: Any) -> Any:
        Gallery.open(tmp_path / "g").remove(Filter(after=5))
        assert files_of(tmp_path / "g") == {"manifest.json", "gallery.sqlite", "vectors-000002.npy"}
        return whole(*arguments)

    monkeypatch.setattr("reid.retrieval.knn.nearest", overtaken)
    assert sorted(gallery.search(random_unit(1), 20).keys[0]) == list(range(20))
    monkeypatch.undo()
    assert (gallery.search(random_unit(1), 20).keys[0] >= 0).sum() == 5


def test_many_readers_and_a_writer(tmp_path: Path) -> None:
    gallery = create(tmp_path / "g")
    gallery.add(random_unit(8), [f"{n}.jpg" for n in range(8)])
    stop, wrong = threading.Event(), []

    def read() -> None:
        mine = Gallery.open(tmp_path / "g") if threading.get_ident() % 2 else gallery
        while not stop.is_set():
            with mine.reading():
                count = len(mine)
                keys = mine.search(random_unit(2), 200).keys
                entries = [mine.entry(key) for key in keys[0] if key >= 0]
            if len(entries) != count or count % 4 or len({entry.key for entry in entries}) != count:
                wrong.append((count, len(entries)))

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    writer = Gallery.open(tmp_path / "g")
    for step in range(8):
        writer.add(random_unit(4, seed=step + 1), [f"{step}-{n}.jpg" for n in range(4)])
        if step % 3 == 2:
            writer.remove(Filter(keys=range(4 * step, 4 * step + 4)))
            writer.compact()
    stop.set()
    for reader in readers:
        reader.join()
    assert wrong == []


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("reid.gallery") as forks:
        yield forks


def test_only_one_writes_at_a_time(tmp_path: Path, forks: Forks) -> None:
    gallery = filled(tmp_path / "g")
    gallery.wait = 0.05
    hold = """
import fcntl, sys, time
lock = open(sys.argv[1])
fcntl.flock(lock, fcntl.LOCK_EX)
print("held", flush=True)
while not __import__("os").path.exists(sys.argv[2]):
    time.sleep(0.01)
"""
    holder = forks.start(hold, gallery.path / "lock", tmp_path / "enough")
    assert holder.output.readline() == "held\n"
    with pytest.raises(ReidError, match="another process is writing to it, for more than 0.05 seconds"):
        gallery.add(random_unit(1, seed=3), ["x.jpg"])
    assert_searches(Gallery.open(tmp_path / "g"))
    (tmp_path / "enough").touch()
    gallery.wait = 10
    assert gallery.add(random_unit(1, seed=3), ["x.jpg"]).tolist() == [20]
    assert holder.finish() == (0, "")


# ---- killed

WRITING = """
import sys, numpy as np
from reid.gallery import Filter, Gallery
def unit(count, seed):
    rows = np.random.default_rng(seed).standard_normal((count, 16))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
gallery = Gallery.open(sys.argv[1])
"""
ENDLESS = {
    "add": """
while True:
    n = gallery.add(unit(10, 1), [f"{len(gallery) + i}.jpg" for i in range(10)])[0]
    print("add", n + 10, flush=True)
""",
    "remove": """
while True:
    keys = [entry.key for entry in gallery.entries()]
    if len(keys) < 20:
        n = gallery.add(unit(100, 1), [f"{keys[-1]}-{i}.jpg" for i in range(100)])[-1]
        print("add", n + 1, flush=True)
    else:
        gallery.remove(Filter(keys=keys[:3]))
        print("remove", keys[2], flush=True)
""",
    "compact": """
while True:
    keys = [entry.key for entry in gallery.entries()]
    n = gallery.add(unit(10, 1), [f"{keys[-1]}-{i}.jpg" for i in range(10)])[-1]
    print("add", n + 1, flush=True)
    gallery.remove(Filter(keys=keys[:9]))
    print("remove", keys[8], flush=True)
    gallery.compact()
""",
    "forget": """
while True:
    keys = [entry.key for entry in gallery.entries()]
    n = gallery.add(unit(10, 1), [f"{keys[-1]}-{i}.jpg" for i in range(10)], [f"p{keys[-1]}"] * 10)[-1]
    print("add", n + 1, flush=True)
    gallery.forget(f"p{keys[-1]}")
    print("forget", n, flush=True)
""",
    "merge": """
import os
while True:
    keys = [entry.key for entry in gallery.entries()]
    folder = sys.argv[1] + "-" + str(keys[-1])
    if not os.path.exists(folder):
        Gallery.create(folder, dimension=16, fingerprint="abc", input_size=(384, 128))
    other = Gallery.open(folder)
    if not len(other):
        other.add(unit(10, 1), [f"{keys[-1]}-{i}.jpg" for i in range(10)])
    gallery.merge(other)
    print("add", keys[-1] + 11, flush=True)
""",
}


def kill(writer: Child, after: float) -> list[tuple[str, int]]:
    """Ends it some time after it first said something; all that it acknowledged."""
    said = writer.output.readline()
    time.sleep(after)
    os.kill(writer.pid, signal.SIGKILL)
    code, rest = writer.finish()
    assert code == -signal.SIGKILL, said + rest
    lines = (said + rest).split("\n")[:-1]
    return [(line.split()[0], int(line.split()[1])) for line in lines]


@pytest.mark.parametrize("what", ENDLESS)
def test_killed_at_random_moments(tmp_path: Path, forks: Forks, what: str) -> None:
    """GALLERY_KILLS=200 runs more of them."""
    gallery, dice = filled(tmp_path / "g"), random.Random(what)
    acknowledged = 0
    for _ in range(KILLS):
        before = {entry.key for entry in gallery.entries()}
        told = kill(forks.start(WRITING + ENDLESS[what], gallery.path), dice.uniform(0, 0.1))
        acknowledged += len(told)
        assert check(gallery.path) == []
        keys = [entry.key for entry in gallery.entries()]
        last = max([n for word, n in told if word == "add"], default=0)
        if what in ("add", "merge"):
            assert keys == list(range(len(keys)))
            assert len(keys) - max(last, len(before)) in (0, 10)  # the last may be written, and not yet told of
        elif what in ("remove", "compact"):
            gone = max([n for word, n in told if word == "remove"], default=-1)
            assert keys == list(range(keys[0], keys[-1] + 1))
            assert gone < keys[0] <= gone + 10 or gone == -1
            assert keys[-1] + 1 >= last
        else:
            assert (len(keys) - len(before)) in (0, 10)
            assert keys[:20] == list(range(20))
        found = gallery.search(random_unit(1), len(keys)).keys[0].tolist()
        assert sorted(found) == keys
    assert acknowledged >= KILLS
    gallery.compact()
    assert files_of(gallery.path) == {"manifest.json", "gallery.sqlite", *(f.name for f in gallery.path.glob("v*"))}
    assert len(list(gallery.path.glob("vectors-*"))) == 1
    assert not list(gallery.path.glob(".*"))


# Kills itself at the N-th step of an addition: before or after a file takes its name, a statement is run or an old file
# is removed.
KILLED_AT = """
import os, signal, sqlite3
steps = iter(range(int(sys.argv[2]) + 1))
def deadly(call):
    def step(*args, **kwargs):
        for moment in "before", "after":
            if next(steps, None) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == "before":
                result = call(*args, **kwargs)
        return result
    return step
class Connection(sqlite3.Connection):
    execute = deadly(sqlite3.Connection.execute)
    executemany = deadly(sqlite3.Connection.executemany)
connect = sqlite3.connect
sqlite3.connect = lambda *args, **kwargs: connect(*args, factory=Connection, **kwargs)
os.replace, os.unlink = deadly(os.replace), deadly(os.unlink)
gallery.add(unit(30, 1), [f"{i}.jpg" for i in range(5, 35)])
print("done", flush=True)
"""


def test_killed_at_every_fifth_step(tmp_path: Path, forks: Forks) -> None:
    """Or at every one: GALLERY_KILL_STEP=1 pytest tests/test_gallery.py -k fifth."""
    sizes = []
    for step in range(0, 400, int(os.environ.get("GALLERY_KILL_STEP", 5))):
        gallery = filled(tmp_path / str(step), 5)
        code, said = forks.start(WRITING + KILLED_AT, gallery.path, step).finish()
        sizes.append(len(gallery))
        assert check(gallery.path) == []
        gallery.add(random_unit(1, seed=9), ["after.jpg"])
        left = files_of(gallery.path) - {"manifest.json", "gallery.sqlite"}
        assert len(left) == gallery.info().files
        if not code:
            assert (said, sizes[-1]) == ("done\n", 35)
            break
        assert (code, said) == (-signal.SIGKILL, "")
    assert code == 0
    assert sizes == sorted(sizes)
    assert set(sizes) == {5, 35}


# ---- what harms it


FULL_DISK = """
import resource, signal
from reid.core.types import ReidError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
try:
    gallery.add(unit(300, 1), [f"x{i}.jpg" for i in range(300)])
except ReidError as error:
    print(error)
    sys.exit(2)
"""


def test_full_disk_changes_nothing(tmp_path: Path, forks: Forks) -> None:
    """Also where only the last bytes find no room."""
    gallery = filled(tmp_path / "g")
    database = (gallery.path / "gallery.sqlite").stat().st_size
    size = 128 + 4 * DIMENSION * 320
    for limit, expected in ((1000, 2), (size - 1, 2), (database, 2), (2**20, 0)):
        code, said = forks.start(WRITING + FULL_DISK, gallery.path, limit).finish()
        assert code == expected, said
        if expected:
            assert "nothing was changed" in said
            assert said.count("\n") == 1
            assert_searches(Gallery.open(gallery.path))
            assert check(gallery.path) == []
            assert files_of(gallery.path) == {"manifest.json", "gallery.sqlite", "vectors-000001.npy"}
    assert len(Gallery.open(gallery.path)) == 320


def test_a_failed_addition_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reid.core.files._sync", fail)
        with pytest.raises(ReidError, match=r"nothing was changed \(No space left"):
            gallery.add(random_unit(3, seed=3), ["x.jpg", "y.jpg", "z.jpg"])
    assert_searches(gallery)
    assert "x.jpg" not in gallery
    assert gallery.search(random_unit(3, seed=3), 20).keys.max() < 20
    assert gallery.add(random_unit(1, seed=3), ["x.jpg"]).tolist() == [20]
    assert Gallery.open(tmp_path / "g").search(random_unit(1, seed=3), 1).keys.tolist() == [[20]]


def test_a_read_only_folder_is_searched_and_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests may run as root, who may write everywhere
    assert_searches(Gallery.open(tmp_path / "g"))
    with pytest.raises(ReidError, match=r"cannot be written, nothing was changed \(attempt to write a readonly"):
        gallery.add(random_unit(1, seed=3), ["x.jpg"])
    monkeypatch.undo()
    assert_searches(gallery)


def edit_manifest(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, **changes}))


def edit_database(folder: Path, sql: str) -> None:
    with closing(sqlite3.connect(folder / "gallery.sqlite", isolation_level=None)) as db:
        db.execute(sql)


VECTORS, DATABASE, MANIFEST = "vectors-000001.npy", "gallery.sqlite", "manifest.json"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda g: (g / VECTORS).write_bytes((g / VECTORS).read_bytes()[:-1]), "vectors-000001.npy is not what was"),
        (lambda g: (g / VECTORS).write_bytes(b"not numpy"), "vectors-000001.npy is not what was written"),
        (lambda g: np.save(g / VECTORS, random_unit(19)), r"should hold 20 vectors of 16 dimensions, not \(19, 16\)"),
        (lambda g: np.save(g / VECTORS, random_unit(20).astype(">f4")), "should hold 20 vectors"),
        (lambda g: np.save(g / VECTORS, np.array([{}] * 20), allow_pickle=True), "not what was written"),
        (lambda g: (g / VECTORS).unlink(), "vectors-000001.npy is missing"),
        (lambda g: (g / DATABASE).unlink(), "gallery.sqlite is missing"),
        (lambda g: (g / DATABASE).write_bytes(b"not a database, " * 999), "gallery.sqlite is not what was written"),
        (lambda g: (g / DATABASE).write_bytes(b""), "gallery.sqlite is not what was written"),
        (lambda g: edit_database(g, "DELETE FROM images WHERE key = 3"), "19 images, 20 vectors"),
        (lambda g: (g / MANIFEST).unlink(), "no manifest.json"),
        (lambda g: (g / MANIFEST).write_text('{"format_ver'), "not JSON"),
        (lambda g: (g / MANIFEST).write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda g: (g / MANIFEST).write_text("[]"), "lacks values"),
        (lambda g: edit_manifest(g, dimension="16"), "lacks values"),
        (lambda g: edit_manifest(g, input_size=5), "lacks values"),
        (lambda g: edit_manifest(g, surprise=1), "lacks values"),
        (lambda g: edit_manifest(g, format_version=4, surprise=1), "format version 4.*up to 3; use a newer version"),
        (lambda g: edit_manifest(g, format_version=2), "format version 2, .*index the images again"),
        (lambda g: edit_manifest(g, metric="euclidean"), "metric 'euclidean'"),
        (lambda g: edit_manifest(g, dimension=17), "vectors of 17 dimensions"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    filled(tmp_path / "g")
    harm(tmp_path / "g")
    with pytest.raises(ReidError, match=message) as error:
        Gallery.open(tmp_path / "g")
    assert "\n" not in str(error.value)


def test_a_path_in_the_manifest_or_database_leads_nowhere(tmp_path: Path) -> None:
    """Files are named by numbers and never by what a gallery says."""
    gallery = filled(tmp_path / "g")
    edit_manifest(gallery.path, model="../../etc/passwd")
    with pytest.raises(ReidError, match=r"model\.safetensors is missing"):
        _ = Gallery.open(gallery.path).model_path
    edit_database(gallery.path, "UPDATE segments SET number = '../../etc/passwd' WHERE number IS NULL")
    with pytest.raises(sqlite3.IntegrityError):
        edit_database(gallery.path, "UPDATE segments SET number = '../../etc/passwd'")


def test_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b"weights")
    gallery = create(tmp_path / "g", model=tmp_path / "net")
    (tmp_path / "g" / "model.safetensors").write_bytes(b"weight")
    assert check(tmp_path / "g") == ["model.safetensors is not what was written"]
    with pytest.raises(ReidError, match=r"model\.safetensors is not what was written"):
        _ = gallery.model_path


def flip(file: Path, place: int) -> None:
    data = bytearray(file.read_bytes())
    data[place] ^= 1
    file.write_bytes(data)


@pytest.mark.parametrize(
    ("harm", "lost"),
    [
        (lambda file: flip(file, 128 + 64 * 7 + 5), [7]),
        (lambda file: file.write_bytes(file.read_bytes()[: 128 + 64 * 15 - 1]), list(range(14, 20))),
        (lambda file: flip(file, 3), []),
        (lambda file: file.unlink(), list(range(20))),
        (lambda file: edit_database(file.parent, "DELETE FROM segments WHERE number = 1"), list(range(20))),
    ],
)
def test_repair_keeps_every_vector_that_is_whole(
    tmp_path: Path, harm: Callable[[Path], object], lost: list[int]
) -> None:
    gallery = filled(tmp_path / "g")
    gallery.add(random_unit(5, seed=3), [f"late-{n}" for n in range(5)])
    gallery.remove(Filter(keys=[2]))
    file = gallery.path / VECTORS
    assert file.is_file()
    harm(file)
    assert check(gallery.path) != []
    dropped, left = repair(gallery.path)
    assert [entry.key for entry in dropped] == [key for key in lost if key != 2]
    assert left == [] == check(gallery.path)
    kept = [key for key in range(25) if key not in (*lost, 2)]
    opened = Gallery.open(gallery.path)
    assert [entry.key for entry in opened.entries()] == kept
    assert np.array_equal(opened.vectors(kept), np.concatenate([random_unit(20), random_unit(5, seed=3)])[kept])
    assert opened.add(random_unit(1, seed=4), ["after"]).tolist() == [25]


def test_what_is_damaged_is_never_copied_as_if_it_were_whole(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    flip(gallery.path / VECTORS, 128 + 64 * 7 + 5)
    other = create(tmp_path / "other")
    for call in (
        lambda: gallery.add(random_unit(30, seed=3), [str(n) for n in range(30)]),
        lambda: gallery.remove(Filter(exclude_keys=[7, 8])),
        lambda: other.merge(gallery),
        lambda: gallery.forget(2),
    ):
        with pytest.raises(ReidError, match=r"vectors-000001\.npy is not what was written; see gallery check --repair"):
            call()
    assert len(gallery) == 20
    assert len(other) == 0
    assert check(gallery.path) == ["vectors-000001.npy is not what was written: 1 of its 20 vectors are lost"]


def test_a_damaged_database_is_refused(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g", 500)
    data = bytearray((gallery.path / DATABASE).read_bytes())
    data[4096 * 3 : 4096 * 12] = os.urandom(4096 * 9)
    (gallery.path / DATABASE).write_bytes(data)
    assert any(DATABASE in line for line in check(gallery.path))
    with pytest.raises(ReidError, match="cannot be repaired"):
        repair(gallery.path)
    assert (gallery.path / DATABASE).read_bytes() == data


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.add(random_unit(2) * np.nan, ["x", "y"]), "row 0 holds NaN"),
        (lambda g: g.add(random_unit(2) * 2, ["x", "y"]), "length 1 within 0.0001, row 0 has 2"),
        (lambda g: g.add(random_unit(2) * 0, ["x", "y"]), "row 0 is all zeros"),
        (lambda g: g.add(random_unit(2)[:, :9], ["x", "y"]), "should have 16 dimensions, got 9"),
        (lambda g: g.add(random_unit(2)[0], ["x", "y"]), r"got shape \(16,\)"),
        (lambda g: g.add(random_unit(2), ["x"]), "2 vectors, 1 paths, 1 pids"),
        (lambda g: g.add(random_unit(2), ["x", "y"], [1]), "2 paths, 1 pids"),
        (lambda g: g.add(random_unit(2), ["x", "3.jpg"]), "3.jpg is in it already"),
        (lambda g: g.add(random_unit(2), ["x", "x"]), "x is given twice"),
        (lambda g: g.add(random_unit(1), ["x"], [""]), "a pid is a number or a name"),
        (lambda g: g.add(random_unit(1), ["x"], [2**63]), "64 bits"),
        (lambda g: g.add(random_unit(1), ["x"], times=[np.nan]), "a time is a finite number"),
        (lambda g: g.add(random_unit(1), ["x"], hashes=["abc"]), "a hash is a SHA-256"),
        (lambda g: g.add(random_unit(1), ["x"], fields=[{"a": [1]}]), "free fields are text and finite numbers"),
        (lambda g: g.search(random_unit(2), 0), "at least 1: got 0"),
        (lambda g: g.search(random_unit(2) * 0.5, 1), "query vectors should have length 1"),
        (lambda g: g.search(random_unit(2)[:, :9], 1), "query vectors should have 16 dimensions"),
        (lambda g: g.search(random_unit(2), 1, exclude_camids=[1, 2, 3]), "got 3 for 2 queries"),
        (lambda g: g.search(random_unit(2), 1, group_by="track"), "no image has the field 'track'"),
        (lambda g: g.entry(-1), "no image has the key -1"),
        (lambda g: g.vectors([0, 23]), "no image has the key 23"),
        (lambda g: g.check_model("def"), "made by the model abc, the query by def"),
        (lambda g: create(g.place), "exists already"),
        (lambda g: create(new_beside(g), dimension=0), "at least 1, got 0"),
        (lambda g: create(new_beside(g), model="none.safetensors"), "no model file none.safetensors"),
        (lambda g: Gallery.open(new_beside(g)), "there is none"),
    ],
)
def test_refusals_change_nothing(mixed: Gallery, call: Callable[[Gallery], object], message: str) -> None:
    before = list(mixed.entries())
    with pytest.raises(ReidError, match=message) as error:
        call(mixed)
    assert "\n" not in str(error.value)
    assert list(mixed.entries()) == before
    assert mixed.search(random_unit(20), 1).keys[:, 0].tolist() == list(range(20))
    assert not Gallery.exists(new_beside(mixed))


def new_beside(gallery: Gallery) -> str:
    """Where no gallery is."""
    return f"{gallery.place.removesuffix('.db')}_new{'.db' if gallery.place.endswith('.db') else ''}"


def test_a_folder_of_other_files_does_not_become_a_gallery(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    for path in (gallery.path, gallery.path / "manifest.json"):
        with pytest.raises(ReidError, match="exists already and is not empty"):
            create(path)
    assert_searches(gallery)


def test_the_hash_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


@pytest.mark.parametrize("name", ["manifest.json", "gallery.sqlite"])
def test_what_cannot_be_repaired_does_not_send_one_to_the_repair(tmp_path: Path, name: str) -> None:
    gallery = filled(tmp_path / "g")
    (gallery.path / name).write_bytes(b"not what was written" * 100)
    for look in (Gallery.open, repair):
        with pytest.raises(ReidError, match="cannot be repaired") as told:
            look(gallery.path)
        assert "check --repair" not in str(told.value)


def test_of_two_who_make_a_gallery_one_is_told_of_the_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, model = tmp_path / "g", tmp_path / "m.safetensors"
    model.touch()

    def meanwhile(*_: object) -> str:
        monkeypatch.undo()
        filled(path)
        return "0" * 64

    monkeypatch.setattr(reid.gallery.folder.gallery, "copy_model", meanwhile)
    with pytest.raises(ReidError, match="another process made one there meanwhile"):
        create(path, model=model)
    assert len(Gallery.open(path)) == 20 and sorted(p.name for p in tmp_path.iterdir()) == ["g", "m.safetensors"]
