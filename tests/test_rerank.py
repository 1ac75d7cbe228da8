"""Re-ranking against torchreid's port and plain loops; its neighbours against a full sort."""

from __future__ import annotations

import functools
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from torchreid.reid.utils.rerank import re_ranking

import reid.retrieval.knn_graph
import reid.retrieval.rerank
from reid.core.types import ReidError
from reid.retrieval.cluster import cluster
from reid.retrieval.evaluate import evaluate
from reid.retrieval.knn_graph import nearest, nearest_of_each
from reid.retrieval.rerank import jaccard, rerank
from reid.retrieval.vectors import Stack

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cuhk03-np-p1" / "detected"
OPTIONS = [(20, 6, 0.3), (5, 1, 0.5), (7, 3, 0.1), (1, 1, 0.9), (2, 9, 0.3), (50, 6, 0.3), (20, 6, 1.0)]


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def people(rng: np.random.Generator, count: int, dimension: int = 64, pids: int = 20) -> np.ndarray:
    """Rows around the places of some persons; the places depend on dimension and pids alone."""
    places = np.random.default_rng(pids).standard_normal((pids, dimension))
    return unit(places[rng.integers(0, pids, count)] + 1.3 * rng.standard_normal((count, dimension)))


def final_distance(query: np.ndarray, gallery: np.ndarray, bonus: np.ndarray, lambda_: float) -> np.ndarray:
    """The paper's, (Q, G), from cosine and bonus."""
    q, g = query.astype(float), gallery.astype(float)
    largest = (2 - 2 * q @ np.concatenate([q, g]).T).max(axis=1)[:, None]
    return (1 - lambda_) + 2 * lambda_ / largest * (1 - q @ g.T - bonus)


def torchreids(query: np.ndarray, gallery: np.ndarray, k1: int, k2: int, lambda_: float) -> np.ndarray:
    """torchreid's final distance; it squares what it is given."""

    def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        found = np.sqrt(np.maximum(2 - 2 * a.astype(float) @ b.T.astype(float), 0))
        if a is b:
            np.fill_diagonal(found, 0)
        return found

    qg, qq, gg = distances(query, gallery), distances(query, query), distances(gallery, gallery)
    return np.asarray(re_ranking(qg, qq, gg, k1, k2, lambda_))


def by_loops(features: np.ndarray, k1: int, k2: int) -> np.ndarray:
    """Jaccard similarities (N, N) as the paper's text says, with a stable order and a row first of its own list."""
    count = len(features)
    cosine = features.astype(float) @ features.T.astype(float)
    np.fill_diagonal(cosine, 2)
    ranks = [sorted(range(count), key=lambda j: (-cosine[i, j], j)) for i in range(count)]
    np.fill_diagonal(cosine, 1)

    @functools.cache
    def mutual(i: int, k: int) -> frozenset[int]:
        return frozenset(j for j in ranks[i][: k + 1] if i in ranks[j][: k + 1])

    codes = np.zeros((count, count))
    for i in range(count):
        members = set(mutual(i, k1))
        for j in mutual(i, k1):
            circle = mutual(j, round(k1 / 2))
            if len(circle & mutual(i, k1)) > 2 / 3 * len(circle):
                members |= circle
        for j in members:
            codes[i, j] = np.exp(-(2 - 2 * cosine[i, j]) / (2 - 2 * cosine[i].min()))
        codes[i] /= codes[i].sum()
    codes = np.array([codes[ranks[i][:k2]].mean(axis=0) for i in range(count)])
    common = np.minimum(codes[:, None], codes).sum(axis=2)
    return common / (2 - common)


@pytest.mark.parametrize(("k1", "k2", "lambda_"), OPTIONS)
@pytest.mark.parametrize(("queries", "images"), [(20, 120), (1, 60), (3, 10)])
def test_equals_torchreid(queries: int, images: int, k1: int, k2: int, lambda_: float) -> None:
    rng = np.random.default_rng(queries)
    query, gallery = people(rng, queries), people(rng, images)
    bonus = rerank(query, gallery, k1=k1, k2=k2, lambda_=lambda_)
    assert bonus.shape == (queries, images) and bonus.dtype == np.float32 and (bonus.data >= 0).all()
    found = final_distance(query, gallery, bonus.toarray(), lambda_)
    assert np.abs(found - torchreids(query, gallery, k1, k2, lambda_)).max() < 1e-5


def test_equals_torchreid_on_real_images() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real images at {REAL}")

    def read(folder: str, count: int) -> np.ndarray:
        files = sorted((REAL / folder).glob("*.jpg"))[:count]
        thumbnails = [np.asarray(Image.open(file).convert("RGB").resize((6, 12))).ravel() for file in files]
        return unit(np.array(thumbnails) - 127.5)

    query, gallery = read("query", 100), read("bounding_box_test", 500)
    found = final_distance(query, gallery, rerank(query, gallery).toarray(), 0.3)
    expected = torchreids(query, gallery, 20, 6, 0.3)
    assert np.abs(found - expected).max() < 1e-5
    assert np.array_equal(found.argmin(axis=1), expected.argmin(axis=1))


def test_jaccard_equals_loops_and_groups_people() -> None:
    features = people(np.random.default_rng(1), 45, pids=5)
    for k1, k2 in [(20, 6), (6, 1), (100, 4)]:
        found = jaccard(features, k1=k1, k2=k2)
        assert np.abs(found.toarray() - by_loops(features, k1, k2)).max() < 1e-6
        assert (found != found.T).nnz == 0
        assert (found.diagonal() == 1).all() and found.data.min() > 0 and found.data.max() <= 1
    assert cluster(jaccard(features, k1=10, k2=3), distance=0.6, min_images=3).max() >= 2


def test_equal_features_rank_by_their_place() -> None:
    """Entries of +-1/2 in four dimensions: scores are exact and take five values."""
    rng = np.random.default_rng(2)
    features = rng.choice(np.array([-0.5, 0.5], np.float32), (40, 4))
    for k1, k2 in [(20, 6), (4, 2), (100, 100)]:
        expected = by_loops(features, k1, k2)
        assert np.abs(jaccard(features, k1=k1, k2=k2).toarray() - expected).max() < 1e-6
        bonus = rerank(features[:9], features[9:], k1=k1, k2=k2).toarray()
        assert np.abs(bonus - 0.7 / 0.6 * 4 * expected[:9, 9:]).max() < 1e-5  # M is 4


@pytest.mark.parametrize("count", [1, 2, 30])
def test_copies_of_one_image(count: int) -> None:
    features = np.repeat(people(np.random.default_rng(3), 1), count, axis=0)
    found = jaccard(features, k1=3, k2=2).toarray()
    assert np.isfinite(found).all() and (found.diagonal() == 1).all()
    assert np.isfinite(rerank(features, features).data).all()


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    query, gallery = people(rng, 40), people(rng, 300)
    gallery[100:130] = gallery[0]
    expected = rerank(query, gallery)
    monkeypatch.setattr(reid.retrieval.knn_graph, "_BLOCK", 128)  # so that bounds are made use of, in vain
    for name, size in (("_ROWS", 7), ("_PAIRS", 1000), ("_SUMS", 900)):
        monkeypatch.setattr(reid.retrieval.rerank, name, size)
    found = rerank(query, gallery)
    assert np.array_equal(found.indptr, expected.indptr) and np.array_equal(found.indices, expected.indices)
    assert np.allclose(found.data, expected.data, rtol=0, atol=1e-6)


def sorted_whole(query: np.ndarray, base: np.ndarray, k: int, *, itself: bool) -> tuple[np.ndarray, ...]:
    scores = np.array([np.einsum("nd,nd->n", np.broadcast_to(row, base.shape).copy(), base) for row in query])
    lowest = scores.min(axis=1)
    if itself:
        np.fill_diagonal(scores, 2)
    rows = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return rows, np.minimum(np.take_along_axis(scores, rows, axis=1), 1) if itself else scores[:, :0], lowest


@pytest.mark.parametrize("energy", ["few directions", "all", "two sorts", "ties", "narrow"])
def test_neighbours_equal_a_full_sort(monkeypatch: pytest.MonkeyPatch, energy: str) -> None:
    monkeypatch.setattr(reid.retrieval.knn_graph, "_BLOCK", 200)
    monkeypatch.setattr(reid.retrieval.knn_graph, "_SAMPLE", 150)
    again: list[int] = []
    searched = reid.retrieval.knn_graph._searched
    monkeypatch.setattr(
        reid.retrieval.knn_graph, "_searched", lambda *a, **kw: again.append(len(a[3])) or searched(*a, **kw)
    )
    bounds: list[Any] = []
    bound = reid.retrieval.knn_graph._bounds
    monkeypatch.setattr(reid.retrieval.knn_graph, "_bounds", lambda f: bounds.append(bound(f)) or bounds[-1])
    rng = np.random.default_rng(6)
    few = rng.standard_normal((700, 20)) @ rng.standard_normal((20, 128)) + 0.5 * rng.standard_normal((700, 128))
    if energy == "all":
        few = rng.standard_normal((700, 128))
    if energy == "two sorts":  # the second lies outside the directions of the first
        few[660:] = rng.standard_normal((40, 128))
    features = unit(few)
    if energy == "ties":
        features[300:400] = features[7]
    if energy == "narrow":
        features = rng.choice(np.array([-0.5, 0.5], np.float32), (700, 4))
    stack = Stack(features[:90], features[90:])
    for k in (1, 21):
        found = nearest_of_each(stack, k)
        rows, scores, lowest = sorted_whole(features, features, k, itself=True)
        assert np.array_equal(found.rows, rows) and np.abs(found.scores - scores).max() < 1e-6
        assert np.abs(found.lowest - lowest).max() < 1e-6
        found = nearest(Stack(features[:90]), stack, k)
        assert np.array_equal(found.rows, sorted_whole(features[:90], features, k, itself=False)[0])
    if energy != "narrow":
        assert [made is not None for made in bounds] == [energy != "all"] * 2
    assert (sum(again) > 30) == (energy in ("two sorts", "ties", "narrow"))


def test_memory_grows_with_neighbours_and_not_with_the_square() -> None:
    features = people(np.random.default_rng(7), 6000, dimension=32, pids=500)
    tracemalloc.start()
    try:
        rerank(features[:500], features[500:])
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.6 * 6000 * 6000 * 4


def test_evaluation_takes_it() -> None:
    rng = np.random.default_rng(8)
    places = rng.standard_normal((30, 64))
    q_pids, g_pids = rng.integers(1, 31, 60), rng.integers(1, 31, 400)
    query, gallery = (unit(places[p - 1] + 2.2 * rng.standard_normal((len(p), 64))) for p in (q_pids, g_pids))
    ids = (q_pids, g_pids, np.ones(60, int), np.full(400, 2))
    plain, better = evaluate(query, gallery, *ids), evaluate(query, gallery, *ids, bonus=rerank(query, gallery))
    assert better.mAP > plain.mAP + 0.05


def spoilt(rows: np.ndarray, value: float) -> np.ndarray:
    rows = rows.copy()
    rows[3] = value
    return rows


ROWS = people(np.random.default_rng(9), 10)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: rerank(spoilt(ROWS, np.nan), ROWS), "query: feature row 3 holds NaN or infinity"),
        (lambda: rerank(ROWS, spoilt(ROWS, np.inf)), "gallery: feature row 3 holds NaN or infinity"),
        (lambda: rerank(ROWS, spoilt(ROWS, 1)), "gallery: feature rows should be of unit length, row 3 is 8 long"),
        (lambda: rerank(unit(ROWS[:, :7]), ROWS), "differ in dimension, 7 and 64"),
        (lambda: rerank(ROWS[0], ROWS), "got shape \\(64,\\)"),
        (lambda: rerank(ROWS[:0], ROWS), "query: there are no features to compare"),
        (lambda: rerank(ROWS, ROWS, k1=0), "k1 and k2 are numbers of neighbours, at least 1: got 0 and 6"),
        (lambda: rerank(ROWS, ROWS, k2=-1), "at least 1: got 20 and -1"),
        (lambda: rerank(ROWS, ROWS, lambda_=0), "above 0 and at most 1: got 0"),
        (lambda: rerank(ROWS, ROWS, lambda_=1.5), "above 0 and at most 1: got 1.5"),
        (lambda: rerank(ROWS, ROWS, lambda_=np.nan), "above 0 and at most 1: got nan"),
        (lambda: jaccard(2 * ROWS), "features: feature rows should be of unit length, row 0 is 2 long"),
        (lambda: jaccard(ROWS[:0]), "features: there are no features to compare"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ReidError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
