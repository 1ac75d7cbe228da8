"""Grouping of crops without labels, and its figures against loops over all pairs."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.sparse import csr_array
from sklearn.metrics import rand_score

from reid.core.types import ReidError
from reid.retrieval.cluster import NOBODY, agreement, cluster


def test_groups_are_what_is_chained_by_enough_neighbours() -> None:
    """0-1-2-3-4 a chain, 5-6 a pair, 7 alone."""
    similarity = np.eye(8)
    for a, b in [(5, 6), (0, 1), (1, 2), (2, 3), (3, 4)]:
        similarity[a, b] = similarity[b, a] = 0.6
    similarity[0, 7] = similarity[7, 0] = 0.3
    held = csr_array(similarity)
    assert cluster(held, distance=0.5, min_images=2).tolist() == [0, 0, 0, 0, 0, 1, 1, NOBODY]
    assert cluster(held, distance=0.5, min_images=3).tolist() == [0, 0, 0, 0, 0, NOBODY, NOBODY, NOBODY]
    assert cluster(held, distance=0.7, min_images=2).tolist() == [0, 0, 0, 0, 0, 1, 1, 0]
    assert cluster(held, distance=0.3, min_images=2).tolist() == [NOBODY] * 8


def test_the_largest_group_is_the_first() -> None:
    similarity = np.zeros((9, 9))
    similarity[:3, :3] = similarity[3:, 3:] = 1
    assert cluster(csr_array(similarity), distance=0.1, min_images=2).tolist() == [1] * 3 + [0] * 6


def test_agreement_equals_loops_over_pairs() -> None:
    rng = np.random.default_rng(0)
    for _ in range(20):
        pids, labels = rng.integers(1, 6, 30), rng.integers(NOBODY, 5, 30)
        found = agreement(labels, pids)
        mates = [
            [j for j in range(30) if j == i or (labels[i] == labels[j] and labels[i] != NOBODY)] for i in range(30)
        ]
        same = [[j for j in range(30) if pids[i] == pids[j]] for i in range(30)]
        hits = [len(set(a) & set(b)) for a, b in zip(mates, same)]
        assert found.bcubed_precision == pytest.approx(np.mean([h / len(m) for h, m in zip(hits, mates)]))
        assert found.bcubed_recall == pytest.approx(np.mean([h / len(s) for h, s in zip(hits, same)]))
        pairs = sum(h - 1 for h in hits)
        assert found.pair_precision == pytest.approx(pairs / sum(len(m) - 1 for m in mates))
        assert found.pair_recall == pytest.approx(pairs / sum(len(s) - 1 for s in same))
        p, r = found.pair_precision, found.pair_recall
        assert found.pair_f == pytest.approx(2 * p * r / (p + r))
        assert found.adjusted_rand < rand_score(pids, labels)


def test_agreement_of_equal_and_of_no_groups() -> None:
    pids = np.repeat([4, 7, 9], 5)
    whole = agreement(np.repeat([2, 0, 1], 5), pids)
    assert (whole.adjusted_rand, whole.pair_f, whole.bcubed_f) == (1, 1, 1)
    nobody = agreement(np.full(15, NOBODY), pids)
    assert (nobody.pair_precision, nobody.pair_recall, nobody.pair_f) == (1, 0, 0)
    assert nobody.bcubed_recall == pytest.approx(1 / 5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"distance": 1.0, "min_images": 2}, "below 1 \\(nothing in common\\): got 1.0"),
        ({"distance": 0.5, "min_images": 0}, "at least 1: got 0"),
    ],
)
def test_bad_parameters_are_one_line(options: dict, message: str) -> None:
    with pytest.raises(ReidError, match=message):
        cluster(csr_array(np.eye(3)), **options)
