"""The evaluation against plain loops over the rule, scikit-learn and torchreid."""

from __future__ import annotations

import sys
import tracemalloc
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from scipy.sparse import csr_array
from sklearn.metrics import average_precision_score

import reid.retrieval.evaluate
from reid.core.types import DISTRACTOR, JUNK, ReidError
from reid.models import torchreid
from reid.retrieval.evaluate import Scores, evaluate

REAL = Path(__file__).resolve().parents[2] / "shared" / "data" / "cuhk03-np-p1" / "detected"
MEANS = ("rank1", "rank5", "rank10", "mAP", "mAP_trapezoid", "mINP")


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_case(rng: np.random.Generator, *, ties: bool) -> tuple[np.ndarray, ...]:
    """(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids) of a random small size.

    With ties, features have entries of +-1/2 in four dimensions: scores are exact and take five values.
    """
    num_query, num_gallery = int(rng.integers(1, 8)), int(rng.integers(20, 40))
    pids, cameras = rng.integers(2, 6), rng.integers(1, 4)

    def features(count: int) -> np.ndarray:
        if ties:
            return rng.choice(np.array([-0.5, 0.5], dtype=np.float32), (count, 4))
        return unit(rng.standard_normal((count, 16)))

    return (
        features(num_query),
        features(num_gallery),
        rng.integers(1, pids + 1, num_query),
        rng.integers(JUNK, pids, num_gallery),  # nobody of the last pid: no match
        rng.integers(1, cameras + 1, num_query),
        rng.integers(1, cameras + 1, num_gallery),
    )


def kept_ranking(case: tuple[np.ndarray, ...], q: int) -> tuple[list[bool], np.ndarray]:
    """Of one query, by a plain stable sort: whether each kept gallery row is right, nearest first; and those rows."""
    query, gallery, q_pids, g_pids, q_camids, g_camids = case
    scores = gallery.astype(np.float64) @ query[q].astype(np.float64)
    rows = [
        g
        for g in np.argsort(-scores, kind="stable")
        if g_pids[g] != -1 and not (g_pids[g] == q_pids[q] and g_camids[g] == q_camids[q])
    ]
    return [bool(g_pids[g] == q_pids[q]) for g in rows], np.array(rows)


def step_ap(right: list[bool]) -> float:
    hits, total = 0, 0.0
    for rank, is_right in enumerate(right, 1):
        if is_right:
            hits += 1
            total += hits / rank
    return total / hits


def trapezoid_ap(right: list[bool]) -> float:
    """The official Market-1501 rule, as its script walks the ranking."""
    total, old_recall, old_precision, hits = 0.0, 0.0, 1.0, 0
    for rank, is_right in enumerate(right, 1):
        hits += is_right
        recall, precision = hits / sum(right), hits / rank
        total += (recall - old_recall) * (old_precision + precision) / 2
        old_recall, old_precision = recall, precision
    return total


def inverse_negative_penalty(right: list[bool]) -> float:
    last = 0
    for rank, is_right in enumerate(right, 1):
        if is_right:
            last = rank
    return sum(right) / last


@pytest.mark.parametrize("ties", [False, True])
def test_equals_plain_loops(ties: bool) -> None:
    rng = np.random.default_rng(int(ties))
    cases_with_queries_left_out = 0
    for _ in range(500):
        case = random_case(rng, ties=ties)
        rankings = [kept_ranking(case, q)[0] for q in range(len(case[0]))]
        valid = [right for right in rankings if any(right)]
        if not valid:
            continue
        scores = evaluate(*case)
        assert scores.num_query_without_match == len(rankings) - len(valid)
        assert (scores.num_query, scores.num_gallery) == (len(case[0]), len(case[1]))
        assert scores.valid.tolist() == [any(right) for right in rankings]
        assert scores.first_rank.tolist() == [right.index(True) + 1 if any(right) else -1 for right in rankings]
        assert scores.mAP == pytest.approx(np.mean([step_ap(right) for right in valid]), abs=1e-12)
        assert scores.mAP_trapezoid == pytest.approx(np.mean([trapezoid_ap(right) for right in valid]), abs=1e-12)
        assert scores.mINP == pytest.approx(np.mean([inverse_negative_penalty(right) for right in valid]), abs=1e-12)
        for q, right in enumerate(rankings):
            found = [scores.average_precision[q], scores.trapezoid[q], scores.inverse_penalty[q]]
            if any(right):
                expected = [step_ap(right), trapezoid_ap(right), inverse_negative_penalty(right)]
                assert found == pytest.approx(expected, abs=1e-12)
            else:
                assert np.isnan(found).all()
        assert len(scores.cmc) == min(50, np.count_nonzero(case[3] != JUNK))
        for k in (1, 5, 10):
            share = np.mean([any(right[:k]) for right in valid])
            assert scores.cmc[k - 1] == pytest.approx(share, abs=1e-12)
            assert getattr(scores, f"rank{k}") == scores.cmc[k - 1]
        cases_with_queries_left_out += scores.num_query_without_match > 0
    assert cases_with_queries_left_out > 20


def test_scores_closer_than_float32_can_tell_are_ranked_exactly() -> None:
    rng = np.random.default_rng(5)
    base = unit(rng.standard_normal((1, 600)))
    gallery = unit(base + 3e-8 * rng.standard_normal((300, 600)))
    gallery[::7] = gallery[0]  # and some the same
    query = unit(base + 0.02 * rng.standard_normal((4, 600)))
    pids, camids = rng.integers(0, 3, 300), np.full(300, 2)
    scores = evaluate(query, gallery, np.array([1, 2, 1, 2]), pids, np.ones(4, int), camids)

    q, g = ((np.rint(rows.astype(np.float64) * 2**26)).astype(int).astype(object) for rows in (query, gallery))
    exact = q @ g.T  # of Python's integers
    assert len(np.unique((query @ gallery.T)[0])) < len(set(exact[0])) / 5, "float32 sees a handful"
    for i, pid in enumerate([1, 2, 1, 2]):
        right = [bool(pids[row] == pid) for row in sorted(range(300), key=lambda row: (-exact[i, row], row))]
        assert scores.average_precision[i] == pytest.approx(step_ap(right), abs=1e-12)


def test_a_bonus_moves_images_up_as_in_a_sort_of_the_sums() -> None:
    rng = np.random.default_rng(6)
    moved = 0
    for _ in range(100):
        case = random_case(rng, ties=False)
        query, gallery, q_pids, g_pids, q_camids, g_camids = case
        bonus = rng.random((len(query), len(gallery))) * (rng.random((len(query), len(gallery))) < 0.2)
        try:
            plain, scores = evaluate(*case), evaluate(*case, bonus=csr_array(bonus))
        except ReidError:
            continue
        sums = query.astype(np.float64) @ gallery.T.astype(np.float64) + bonus
        for q in np.flatnonzero(scores.valid):
            drop = (g_pids == JUNK) | ((g_pids == q_pids[q]) & (g_camids == q_camids[q]))
            rows = [row for row in np.argsort(-sums[q], kind="stable") if not drop[row]]
            right = [bool(g_pids[row] == q_pids[q]) for row in rows]
            assert scores.average_precision[q] == pytest.approx(step_ap(right), abs=1e-12)
            moved += scores.average_precision[q] != plain.average_precision[q]
    assert moved > 100


def test_equals_scikit_learn() -> None:
    rng = np.random.default_rng(2)
    compared = 0
    for _ in range(100):
        case = random_case(rng, ties=False)
        try:
            scores = evaluate(*case)
        except ReidError:
            continue
        for q in np.flatnonzero(scores.valid).tolist():
            right, rows = kept_ranking(case, q)
            expected = average_precision_score(right, case[1][rows].astype(np.float64) @ case[0][q])
            assert scores.average_precision[q] == pytest.approx(expected, abs=1e-9)
            compared += 1
    assert compared > 100


def compare_with_torchreid(case: tuple[np.ndarray, ...], max_rank: int) -> None:
    query, gallery, q_pids, g_pids, q_camids, g_camids = case
    scores = evaluate(*case)
    kept = g_pids != JUNK  # torchreid does not know junk
    distances = -(query.astype(np.float64) @ gallery[kept].T.astype(np.float64))
    cmc, mean_ap = torchreid.evaluate_rank(distances, q_pids, g_pids[kept], q_camids, g_camids[kept], max_rank)
    assert scores.mAP == pytest.approx(mean_ap, abs=1e-9)
    assert np.allclose(scores.cmc[:max_rank], cmc, atol=1e-6)  # torchreid's CMC is float32


def test_equals_torchreid() -> None:
    rng = np.random.default_rng(3)
    compared = 0
    while compared < 100:
        case = random_case(rng, ties=False)
        if all(not any(kept_ranking(case, q)[0]) for q in range(len(case[0]))):
            continue
        compare_with_torchreid(case, max_rank=5)
        compared += 1


def test_equals_torchreid_on_real_images() -> None:
    if not REAL.is_dir():
        pytest.skip(f"no real images at {REAL}")

    def read(folder: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        files = sorted((REAL / folder).glob("*.jpg"))[:count]
        thumbnails = [np.asarray(Image.open(file).convert("RGB").resize((4, 8))).ravel() for file in files]
        names = [file.name.split("_") for file in files]
        return (
            unit(np.array(thumbnails) - 127.5),
            np.array([int(n[0]) for n in names]),
            np.array([int(n[1][1]) for n in names]),
        )

    query, q_pids, q_camids = read("query", 150)
    gallery, g_pids, g_camids = read("bounding_box_test", 600)
    compare_with_torchreid((query, gallery, q_pids, g_pids, q_camids, g_camids), max_rank=50)


def test_worked_example() -> None:
    """Right answers at ranks 1 and 3; own camera, junk and a distractor among the gallery."""
    angles = np.radians([0, 5, 10, 20, 30, 40])
    gallery = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    g_pids, g_camids = (np.array([7, JUNK, 7, DISTRACTOR, 7, 8]), np.array([1, 2, 2, 2, 3, 2]))
    scores = evaluate(gallery[:1], gallery, np.array([7]), g_pids, np.array([1]), g_camids)
    assert scores.rank1 == 1
    assert scores.mAP == pytest.approx((1 + 2 / 3) / 2)
    assert scores.mAP_trapezoid == pytest.approx(((1 + 1) / 2 + (1 / 2 + 2 / 3) / 2) / 2)
    assert scores.mINP == pytest.approx(2 / 3)
    assert len(scores.cmc) == 5


def clustered(rng: np.random.Generator, queries: int = 100, gallery: int = 700) -> tuple[np.ndarray, ...]:
    pids = rng.integers(1, 30, queries), rng.integers(JUNK, 30, gallery)
    centres = rng.standard_normal((31, 64))
    features = [unit(centres[p] + 1.5 * rng.standard_normal((len(p), 64))) for p in pids]
    return (*features, *pids, rng.integers(1, 5, queries), rng.integers(1, 5, gallery))


def assert_identical(a: Scores, b: Scores) -> None:
    assert [getattr(a, name) for name in MEANS] == [getattr(b, name) for name in MEANS]
    for name in ("average_precision", "trapezoid", "inverse_penalty", "first_rank"):
        assert np.array_equal(getattr(a, name), getattr(b, name), equal_nan=True), name


def test_blocks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    case = clustered(np.random.default_rng(4))
    case[1][300:600] = case[1][:300]  # equal features under other pids, which float32 products tell apart
    expected = evaluate(*case)
    assert 0.1 < expected.mAP < 0.9
    assert_identical(expected, evaluate(*case, block=1))
    assert_identical(expected, evaluate(*case, block=33))
    monkeypatch.setattr(reid.retrieval.evaluate, "_STEP", 57)
    assert_identical(expected, evaluate(*case, block=64))


def test_equal_features_rank_in_gallery_order() -> None:
    feature = unit(np.random.default_rng(5).standard_normal((1, 2048)))
    gallery = np.repeat(feature, 101, axis=0)
    for position in (0, 3, 98, 100):
        g_pids = np.where(np.arange(101) == position, 1, 2)
        scores = evaluate(feature, gallery, np.array([1]), g_pids, np.array([1]), np.full(101, 2))
        assert scores.first_rank.tolist() == [position + 1]


def test_memory_stays_within_a_block(tmp_path: Path) -> None:
    """30,000 x 400 scores would take 92 MiB; the gallery is a memory-mapped file."""
    rng = np.random.default_rng(6)
    gallery = np.lib.format.open_memmap(tmp_path / "gallery.npy", "w+", np.float32, (30_000, 16))
    gallery[:] = unit(rng.standard_normal(gallery.shape))
    g_pids, g_camids = rng.integers(0, 10_000, 30_000), rng.integers(1, 7, 30_000)
    tracemalloc.start()
    try:
        scores = evaluate(gallery[:400], gallery, np.arange(1, 401), g_pids, np.ones(400, int), g_camids, block=100)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16 << 20
    assert 0 < scores.mAP < 0.1


def test_rows_of_any_length() -> None:
    case = clustered(np.random.default_rng(7))
    rng = np.random.default_rng(8)
    longer = [rows * rng.uniform(0.01, 100, (len(rows), 1)) for rows in case[:2]]
    assert evaluate(*longer, *case[2:]).mAP == pytest.approx(evaluate(*case).mAP, abs=1e-9)


def test_nobodies_have_no_match() -> None:
    """A query that is junk or a distractor does not find its like."""
    features = unit(np.random.default_rng(9).standard_normal((3, 8)))
    pids = np.array([1, DISTRACTOR, JUNK])
    scores = evaluate(features, features, pids, pids, np.full(3, 1), np.full(3, 2))
    assert scores.valid.tolist() == [True, False, False]


def spoilt(case: tuple[np.ndarray, ...], part: int, value: float) -> tuple[np.ndarray, ...]:
    case[part][3] = value
    return case


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda c: spoilt(c, 0, np.nan), "query: feature row 3 holds NaN or infinity"),
        (lambda c: spoilt(c, 1, np.inf), "gallery: feature row 3 holds NaN or infinity"),
        (lambda c: spoilt(c, 1, 0), "gallery: feature row 3 is all zeros"),
        (lambda c: (c[0][:, :7], *c[1:]), "differ in dimension, 7 and 64"),
        (lambda c: (c[0][0], *c[1:]), "got shape \\(64,\\)"),
        (lambda c: (*c[:3], c[3][:-1], *c[4:]), "gallery_pids should be 700 integers"),
        (lambda c: (*c[:4], c[4] / 2, c[5]), "query_camids should be 100 integers"),
        (lambda c: (c[0][:0], c[1], c[2][:0], c[3], c[4][:0], c[5]), "nothing to evaluate: 0 query"),
        (lambda c: (*c[:4], c[4] * 0, c[5] * 0), "none of 100 queries has a match"),
    ],
)
def test_bad_input_is_one_line(spoil: Callable[[tuple[np.ndarray, ...]], tuple[np.ndarray, ...]], message: str) -> None:
    case = spoil(clustered(np.random.default_rng(10)))
    with pytest.raises(ReidError, match=message) as error:
        evaluate(*case)
    assert "\n" not in str(error.value)


def test_torchreid_is_quiet(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Its evaluation is imported without the warning that it has no Cython part."""
    monkeypatch.delitem(sys.modules, "torchreid.reid.metrics.rank", raising=False)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torchreid.evaluate_rank(-np.eye(2), np.array([1, 2]), np.array([1, 2]), np.zeros(2), np.ones(2))
    assert (caught, *capfd.readouterr()) == ([], "", "")


def test_missing_torchreid_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchreid.reid.models.osnet", None)
    monkeypatch.setitem(sys.modules, "torchreid.reid.models", None)
    with pytest.raises(ReidError, match=r"pip install torchreid==0\.2\.5 opencv-python-headless"):
        torchreid.osnet("osnet_x1_0")


def test_unknown_osnet_lists_the_names() -> None:
    with pytest.raises(ReidError, match="osnet_x1_0, osnet_x0_25"):
        torchreid.osnet("osnet")
