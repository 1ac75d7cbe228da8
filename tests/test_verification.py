"""Verification against scikit-learn, open set identification against plain loops over the definition."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve

import reid.retrieval.verification
from reid.core.types import JUNK, ReidError
from reid.retrieval.verification import FPIR, HISTOGRAM_EDGES, best_per_person, open_set, verify

Case = tuple[np.ndarray, ...]  # query, gallery, query_pids, gallery_pids, query_camids, gallery_camids


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def drawn(seed: int, queries: int = 150, gallery: int = 400, *, people: int = 30, noise: float = 1.2) -> Case:
    """Junk and distractors among both; the last 3 people have no gallery image."""
    rng = np.random.default_rng(seed)
    pids = rng.integers(JUNK, people + 1, queries), rng.integers(JUNK, people - 2, gallery)
    centres = rng.standard_normal((people + 2, 32))
    features = [unit(centres[p] + noise * rng.standard_normal((len(p), 32))) for p in pids]
    return (*features, *pids, rng.integers(1, 4, queries), rng.integers(1, 4, gallery))


def with_ties(case: Case) -> Case:
    """Features have entries of +-1/2 in four dimensions: scores are exact and take five values."""
    return (*(np.where(rows[:, :4] > 0, np.float32(0.5), np.float32(-0.5)) for rows in case[:2]), *case[2:])


def pairs(case: Case) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the pairs that count, and whether they are genuine, by a double loop."""
    query, gallery, q_pids, g_pids, q_camids, g_camids = case
    products = query @ gallery.T
    scores, genuine = [], []
    for q in range(len(query)):
        for g in range(len(gallery)):
            same = q_pids[q] == g_pids[g]
            if q_pids[q] > 0 and g_pids[g] != -1 and not (same and q_camids[q] == g_camids[g]):
                scores.append(products[q, g])
                genuine.append(same)
    return np.array(scores), np.array(genuine)


@pytest.mark.parametrize("change", [lambda c: c, with_ties])
@pytest.mark.parametrize("tile", [2**23, 1000])
def test_equals_scikit_learn(monkeypatch: pytest.MonkeyPatch, change: Callable[[Case], Case], tile: int) -> None:
    monkeypatch.setattr(reid.retrieval.verification, "_PRODUCT", tile)
    case = change(drawn(0))
    found = verify(*case)
    scores, genuine = pairs(case)
    assert (found.num_genuine, found.num_impostor) == (genuine.sum(), (~genuine).sum())
    fpr, tpr, _ = roc_curve(genuine, scores, drop_intermediate=False)
    for point, asked in zip(found.points, (1e-2, 1e-3), strict=False):
        assert point.fpr == asked
        assert point.tpr == pytest.approx(tpr[fpr <= asked].max(), abs=1e-12)
        assert point.threshold is not None
        assert (scores[~genuine] > point.threshold + 1e-6).mean() <= asked
    assert 0 <= found.points[0].tpr < 1
    assert found.auc == pytest.approx(roc_auc_score(genuine, scores), abs=1e-4)
    assert found.eer == pytest.approx(((fpr + 1 - tpr) / 2)[np.abs(fpr - 1 + tpr).argmin()], abs=5e-3)


def test_too_few_impostors_for_an_fpr() -> None:
    case = drawn(1)
    found = verify(*case)
    assert 10_000 < found.num_impostor < 100_000
    assert [point.tpr is None for point in found.points] == [False, False, True, True]
    few = verify(*(part[:20] for part in case[:6]))
    assert [point.threshold for point in few.points] == [None] * 4


def test_curve_and_histograms() -> None:
    case = drawn(2)
    found = verify(*case)
    scores, genuine = pairs(case)
    expected, _ = np.histogram(scores[genuine], HISTOGRAM_EDGES)
    assert np.abs(found.genuine_histogram - expected).sum() <= 2  # on an edge, by float32
    assert found.impostor_histogram.sum() == found.num_impostor
    middle = HISTOGRAM_EDGES[:-1] + 0.005
    assert found.impostor_histogram @ middle / found.num_impostor == pytest.approx(scores[~genuine].mean(), abs=1e-3)

    assert 50 < len(found.curve_fpr) <= 200
    assert (np.diff(found.curve_fpr) > 0).all() and found.curve_fpr[-1] == found.curve_tpr[-1] == 1
    ranked = np.sort(scores[~genuine])[::-1]
    for fpr, tpr in zip(found.curve_fpr[:-1:10], found.curve_tpr[:-1:10]):
        low, high = ranked[round(fpr * len(ranked))], ranked[round(fpr * len(ranked)) - 1]
        assert (scores[genuine] > high + 1e-6).mean() <= tpr <= (scores[genuine] > low - 1e-6).mean()


def test_best_per_person_equals_a_double_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case = drawn(3, 40, 90, people=8)
    monkeypatch.setattr(reid.retrieval.verification, "_PRODUCT", 40 * 7)  # people lie across tiles
    people, best = best_per_person(*case)
    assert people.tolist() == sorted(set(g_pids.tolist()) - {JUNK})
    for i, pid in enumerate(people.tolist()):
        for q in range(len(query)):
            rows = [g for g in range(90) if g_pids[g] == pid and not (q_pids[q] == pid and q_camids[q] == g_camids[g])]
            expected = max((float(gallery[g] @ query[q]) for g in rows), default=-np.inf)
            assert best[i, q] == pytest.approx(expected, abs=1e-6)


def looped_open_set(case: Case, absent: float, draws: int, seed: int) -> tuple[list[list[float]], float]:
    """TPIR of each draw at each FPIR, and the mean of mated queries: whole rankings, one query after the other."""
    query, gallery, q_pids, g_pids, q_camids, g_camids = case
    products = query @ gallery.T
    rng = np.random.default_rng(seed)
    searched = np.unique(q_pids[q_pids > 0])
    tpir, num_mated = [], []
    for _ in range(draws):
        out = set(rng.choice(searched, round(absent * len(searched)), replace=False).tolist())
        mated, non_mated = [], []
        for q in range(len(query)):
            if q_pids[q] <= 0:
                continue
            rows = [
                (products[q, g], bool(g_pids[g] == q_pids[q]))
                for g in range(len(gallery))
                if g_pids[g] != JUNK
                and g_pids[g] not in out
                and not (g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q])
            ]
            first = max(rows, key=lambda row: (row[0], not row[1]))
            (mated if any(right for _, right in rows) else non_mated).append(first)
        at = []
        for fpir in FPIR:
            # the lowest threshold on a grid of all scores at which no more than fpir are answered
            candidates = sorted({score for score, _ in non_mated} | {-2.0})
            t = next(t for t in candidates if sum(s > t for s, _ in non_mated) <= fpir * len(non_mated))
            at.append(sum(right and score > t for score, right in mated) / len(mated))
        tpir.append(at)
        num_mated.append(len(mated))
    return tpir, float(np.mean(num_mated))


@pytest.mark.parametrize("change", [lambda c: c, with_ties])
def test_open_set_equals_loops(change: Callable[[Case], Case]) -> None:
    case = change(drawn(4, 300, 200))
    found = open_set(*case, absent=0.4, draws=3, seed=7)
    tpir, num_mated = looped_open_set(case, 0.4, 3, 7)
    for point, values in zip(found.points, np.transpose(tpir), strict=True):
        assert point.tpir == pytest.approx(values.mean(), abs=1e-12)
        assert point.std == pytest.approx(values.std(), abs=1e-12)
    assert found.num_mated == num_mated
    assert found.num_mated + found.num_non_mated == (case[2] > 0).sum()


def test_open_set_in_order() -> None:
    """More false answers, more right ones; better features, better scores; without non-mated enough, None."""
    good, bad = (open_set(*drawn(5, 400, 300, noise=noise)) for noise in (1.0, 1.8))
    for found in (good, bad):
        assert 0 < found.points[0].tpir < found.points[1].tpir <= 1
        assert found.points[0].threshold > found.points[1].threshold
    assert good.points[0].tpir > bad.points[0].tpir + 0.2
    few = open_set(*drawn(5, 60, 300)).points
    assert few[0].tpir is None and few[1].tpir is not None


def test_a_wrong_answer_that_scores_equally_comes_first() -> None:
    """40 people, the first of whom also has a distractor with his feature: mated, he is the one who is not found."""
    features, pids, cameras = np.eye(40, dtype=np.float32), np.arange(1, 41), np.ones(40, int)
    gallery = np.concatenate([features, features[:1]])
    found = open_set(features, gallery, pids, np.append(pids, 0), cameras, np.append(cameras + 1, 2), draws=10)
    rng = np.random.default_rng(0)
    mated = sum(1 not in rng.choice(pids, 20, replace=False) for _ in range(10))
    assert 0 < mated < 10
    assert found.points[1].tpir == pytest.approx(1 - mated / 10 / 20)


def test_perfect_features() -> None:
    features = np.eye(8, dtype=np.float32)
    pids, cameras = np.arange(1, 9), np.ones(8, int)
    found = verify(features, features, pids, pids, cameras, cameras + 1)
    assert (found.auc, found.eer, found.num_genuine, found.num_impostor) == (1, 0, 8, 56)
    assert found.genuine_histogram[-1] == 8 and found.impostor_histogram[100] == 56


def people_of(case: Case, *pids: int) -> Case:
    q, g = np.isin(case[2], pids), np.isin(case[3], pids)
    return tuple(part[rows] for part, rows in zip(case, (q, g, q, g, q, g)))


@pytest.mark.parametrize(
    ("measure", "spoil", "message"),
    [
        (verify, lambda c: people_of(c, 5), "of two people, got [1-9][0-9]* and 0"),
        (verify, lambda c: (*c[:4], c[4] * 0, c[5] * 0), "got 0 and [1-9]"),
        (verify, lambda c: people_of(c, 0), "got 0 and 0"),
        (verify, lambda c: (c[0] * 2, *c[1:]), "query: feature rows should be of unit length, row 0 is 2 long"),
        (verify, lambda c: (c[0], c[1][:, :7] / np.linalg.norm(c[1][:, :7], axis=1)[:, None], *c[2:]), "32 and 7"),
        (verify, lambda c: (*c[:3], c[3][1:], *c[4:]), "gallery_pids should be 400 integers"),
        (verify, lambda c: (*c[:4], c[4] / 2, c[5]), "query_camids should be 150 integers"),
        (verify, lambda c: (c[0] * np.float32(np.nan), *c[1:]), "query: feature row 0 holds NaN"),
        (open_set, lambda c: people_of(c, 5), "got 0 and|and 0 in a draw"),
        (open_set, lambda c: (*c[:4], c[4] * 0, c[5] * 0), "got 0 and [1-9][0-9]* in a draw"),
        (lambda *c: open_set(*c, absent=1.0), lambda c: c, "absent is a share between 0 and 1"),
    ],
)
def test_bad_input_is_one_line(measure: Callable, spoil: Callable[[Case], Case], message: str) -> None:
    with pytest.raises(ReidError, match=message) as error:
        measure(*spoil(drawn(6)))
    assert "\n" not in str(error.value)
