"""Multi-query pooling and camera pairs, against loops."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array

from reid.core.types import JUNK, ReidError
from reid.retrieval.evaluate import evaluate
from reid.retrieval.protocol import COSINE, Method, evaluate_camera_pairs, pool_queries


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.mark.parametrize("how", ["mean", "max"])
def test_a_query_becomes_all_images_of_its_person_by_its_camera(how: str) -> None:
    rng = np.random.default_rng(0)
    features = unit(rng.standard_normal((60, 8)))
    pids, camids = rng.integers(1, 4, 60), rng.integers(1, 3, 60)
    pooled = pool_queries(how, features, pids, camids, np.array([1, 3, 1]), np.array([2, 1, 1]))
    assert pooled.dtype == np.float32
    for row, (pid, camid) in zip(pooled, [(1, 2), (3, 1), (1, 1)]):
        own = [f for f, p, c in zip(features.tolist(), pids, camids) if (p, c) == (pid, camid)]
        values = [sum(v) / len(v) if how == "mean" else max(v) for v in zip(*own)]
        assert row == pytest.approx(np.array(values) / np.linalg.norm(values), abs=1e-6)


def test_more_images_of_a_person_are_found_more_easily() -> None:
    rng = np.random.default_rng(1)
    places = rng.standard_normal((40, 16))

    def images(camid: int, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        pids = np.repeat(np.arange(1, 41), count)
        return unit(places[pids - 1] + 1.5 * rng.standard_normal((len(pids), 16))), pids, np.full(len(pids), camid)

    query, gallery, more = images(1, 1), images(2, 2), images(1, 6)
    single = evaluate(query[0], gallery[0], query[1], gallery[1], query[2], gallery[2])
    pooled = pool_queries("mean", *more, query[1], query[2])
    several = evaluate(pooled, gallery[0], query[1], gallery[1], query[2], gallery[2])
    assert several.mAP > single.mAP + 0.1


def test_pooling_refuses_what_it_cannot_do() -> None:
    one = np.ones((1, 2), np.float32), np.array([1]), np.array([1])
    with pytest.raises(ReidError, match="pools by mean or max, got 'median'"):
        pool_queries("median", *one, np.array([1]), np.array([1]))
    with pytest.raises(ReidError, match="no image of person 1 by camera 2, whom query 0 shows"):
        pool_queries("mean", *one, np.array([1]), np.array([2]))


def test_each_camera_pair_is_an_evaluation_of_its_own() -> None:
    rng = np.random.default_rng(2)
    query, gallery = unit(rng.standard_normal((80, 12))), unit(rng.standard_normal((300, 12)))
    q_pids, g_pids = rng.integers(1, 12, 80), rng.integers(JUNK, 12, 300)
    q_camids, g_camids = rng.integers(1, 4, 80), rng.integers(1, 4, 300)
    g_pids[g_camids == 3] = np.where(g_pids[g_camids == 3] > 0, 99, 0)  # camera 3 sees nobody of the queries
    pairs = evaluate_camera_pairs(query, gallery, q_pids, g_pids, q_camids, g_camids)
    assert list(pairs) == [(1, 2), (2, 1), (3, 1), (3, 2)]
    for (mine, other), scores in pairs.items():
        q, first = q_camids == mine, []
        for feature, pid in zip(query[q], q_pids[q]):
            rows = [row for row in range(300) if g_camids[row] == other and g_pids[row] != JUNK]
            right = [g_pids[row] == pid for row in sorted(rows, key=lambda row: -float(gallery[row] @ feature))]
            first += [right.index(True) + 1] if any(right) else []
        assert scores.rank1 == pytest.approx(np.mean([rank == 1 for rank in first]))
        assert scores.num_query == q.sum()


def test_a_bonus_counts_in_each_camera_pair() -> None:
    rng = np.random.default_rng(3)
    query, gallery = unit(rng.standard_normal((30, 12))), unit(rng.standard_normal((90, 12)))
    q_pids, g_pids, q_camids = rng.integers(1, 6, 30), rng.integers(1, 6, 90), np.ones(30, np.int64)
    g_camids = rng.integers(2, 4, 90)
    right = csr_array((q_pids[:, None] == g_pids) * 3.0)  # lifts all of the right ones above all of the wrong ones
    pairs = evaluate_camera_pairs(query, gallery, q_pids, g_pids, q_camids, g_camids, bonus=right)
    assert [(pair, scores.mAP) for pair, scores in pairs.items()] == [((1, 2), 1.0), ((1, 3), 1.0)]


def test_a_method_says_what_it_does() -> None:
    assert (str(COSINE), COSINE.suffix) == ("cosine similarity, no re-ranking", "")
    method = Method(distractors=True, multi_query="mean", expand=3, alpha=0, expand_gallery=True, rerank=True)
    assert method.suffix == "-distractors-multi-query-expansion-rerank"
    assert str(method) == (
        "cosine similarity, further distractors in the gallery, multi-query (mean), queries and gallery expanded by 3 "
        "neighbours (alpha 0), re-ranked (k1 20, k2 6, lambda 0.3)"
    )
