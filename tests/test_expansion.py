"""Query and gallery expansion against plain loops."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

import reid.retrieval.expansion
from reid.core.types import ReidError
from reid.retrieval.evaluate import evaluate
from reid.retrieval.expansion import expand_gallery, expand_queries


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def by_loops(query: np.ndarray, gallery: np.ndarray, k: int, alpha: float, *, itself: bool) -> np.ndarray:
    means = []
    for n, row in enumerate(query.astype(float)):
        cosine = gallery.astype(float) @ row
        others = sorted((g for g in range(len(gallery)) if not (itself and g == n)), key=lambda g: -cosine[g])
        for g in others[:k]:
            if cosine[g] > 0:
                row = row + cosine[g] ** alpha * gallery[g]
        means.append(row)
    return unit(np.array(means))


@pytest.mark.parametrize("alpha", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("k", [1, 5, 60])  # of 40: some lie on the other side
def test_equals_loops(k: int, alpha: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reid.retrieval.expansion, "_STEP", 7)
    rng = np.random.default_rng(0)
    query, gallery = unit(rng.standard_normal((9, 16))), unit(rng.standard_normal((40, 16)))
    found = expand_queries(query, gallery, k=k, alpha=alpha)
    assert found.dtype == np.float32
    assert np.allclose(found, by_loops(query, gallery, k, alpha, itself=False), rtol=0, atol=1e-6)
    found = expand_gallery(gallery, k=k, alpha=alpha)
    assert np.allclose(found, by_loops(gallery, gallery, k, alpha, itself=True), rtol=0, atol=1e-6)


def test_a_lone_image_stays_and_so_does_one_without_neighbours_on_its_side() -> None:
    row = unit(np.random.default_rng(1).standard_normal((1, 8)))
    assert np.allclose(expand_gallery(row, k=3), row)
    assert np.allclose(expand_queries(row, -row, k=3), row)


def test_expansion_helps() -> None:
    rng = np.random.default_rng(2)
    places = rng.standard_normal((30, 64))
    q_pids, g_pids = rng.integers(1, 31, 60), rng.integers(1, 31, 400)
    query, gallery = (unit(places[p - 1] + 2.2 * rng.standard_normal((len(p), 64))) for p in (q_pids, g_pids))
    ids = (q_pids, g_pids, np.ones(60, int), np.full(400, 2))
    plain = evaluate(query, gallery, *ids).mAP
    expanded = expand_queries(query, gallery, k=5)
    assert evaluate(expanded, gallery, *ids).mAP > plain + 0.01
    assert evaluate(expanded, expand_gallery(gallery, k=5), *ids).mAP > plain + 0.03


ROWS = unit(np.random.default_rng(3).standard_normal((10, 8)))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: expand_queries(ROWS * np.nan, ROWS, k=1), "query: feature row 0 holds NaN"),
        (lambda: expand_queries(ROWS, 2 * ROWS, k=1), "gallery: feature rows should be of unit length"),
        (lambda: expand_queries(unit(ROWS[:, :5]), ROWS, k=1), "differ in dimension, 5 and 8"),
        (lambda: expand_queries(ROWS, ROWS[:0], k=1), "gallery: there are no features to compare"),
        (lambda: expand_queries(ROWS, ROWS, k=0), "at least 1: got 0"),
        (lambda: expand_queries(ROWS, ROWS, k=1, alpha=-1), "finite and at least 0: got -1"),
        (lambda: expand_gallery(ROWS, k=1, alpha=np.nan), "finite and at least 0: got nan"),
        (lambda: expand_gallery(2 * ROWS, k=1), "gallery: feature rows should be of unit length"),
    ],
)
def test_bad_input_is_one_line(call: Callable[[], object], message: str) -> None:
    with pytest.raises(ReidError, match=message) as error:
        call()
    assert "\n" not in str(error.value)
