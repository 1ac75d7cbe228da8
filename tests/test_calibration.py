"""Calibration: drawn people whose truth is known, plain loops over the definitions, damaged files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

import reid.retrieval.calibration
from reid.core.types import JUNK, ReidError
from reid.retrieval.calibration import Calibration, achieved, calibrate, check, expected_calibration_error

IMAGES = 4  # of a person, 2 from each of two cameras
Images = tuple[np.ndarray, np.ndarray, np.ndarray]  # features, pids, camids


def drawn(seed: int, people: int, noise: float = 1.0) -> Images:
    rng = np.random.default_rng(seed)
    pids = np.repeat(np.arange(1, people + 1), IMAGES)
    rows = np.repeat(rng.standard_normal((people, 32)), IMAGES, axis=0)
    rows += noise * rng.standard_normal(rows.shape)
    return (
        (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32),
        pids,
        np.tile([1, 1, 2, 2], people),
    )


def learn(images: Images, seed: int = 0) -> Calibration:
    return calibrate(*images, fingerprint="0123456789abcdef", dataset="drawn", seed=seed)


@pytest.fixture(scope="module")
def learnt() -> Calibration:
    return learn(drawn(0, 400))


@pytest.mark.parametrize("rate", [0.01, 0.05, 0.2])
def test_asked_rate_is_achieved_on_other_people(learnt: Calibration, rate: float) -> None:
    found = achieved(learnt, *drawn(1, 400)[:2], rate)
    assert found.low <= rate <= found.high
    assert found.high - found.low < 2.5 * rate


@pytest.mark.parametrize("people", [20, 150, 300, 1200])
def test_rate_holds_for_other_sizes_of_gallery(learnt: Calibration, people: int) -> None:
    """Searched: people that are in no gallery. Beyond 400 people the model may only err to the safe side."""
    rates = []
    for seed in range(2, 6):
        features, pids, _ = drawn(seed, people + 150)
        enrolled = pids <= people
        best = (features[~enrolled] @ features[enrolled].T).max(axis=1)
        rates.append((best >= learnt.threshold(0.1, people * IMAGES)).mean())
    assert 0.06 < np.mean(rates) < 0.14
    unaware = learnt.threshold(0.1, 400 * IMAGES)  # of one size for all: the test can tell them apart at the ends
    if people in (20, 1200):
        assert not 0.06 < (best >= unaware).mean() < 0.14


def test_achieved_equals_a_double_loop(learnt: Calibration) -> None:
    features, pids, _ = drawn(7, 25)
    searched = set(np.random.default_rng(3).permutation(np.arange(1, 26))[:12].tolist())
    threshold = learnt.threshold(0.1, 13 * IMAGES)
    accepted = [
        any(f @ g >= threshold for g, p in zip(features, pids) if p not in searched)
        for f, own in zip(features, pids)
        if own in searched
    ]
    assert 0 < sum(accepted) < len(accepted) == 12 * IMAGES
    with_nobody = np.concatenate([features, features[:2]]), np.append(pids, [0, JUNK])
    for images in ((features, pids), with_nobody):
        assert achieved(learnt, *images, 0.1, seed=3).mean == pytest.approx(np.mean(accepted), abs=1e-12)


def test_thresholds_equal_a_double_loop() -> None:
    """At the whole gallery and at one person each: the score from which on a rate is answered."""
    features, pids, camids = drawn(8, 30)
    found = learn((features, pids, camids))
    scores = np.array(
        [
            [max(float(f @ g) for g in features[pids == pid]) if pid != own else -np.inf for pid in range(1, 31)]
            for f, own in zip(features, pids)
        ]
    )
    assert (found.sizes[0], found.sizes[-1]) == pytest.approx((29 * IMAGES / 30, 29 * IMAGES))
    for line, best in ((found.thresholds[-1], scores.max(axis=1)), (found.thresholds[0], scores[scores > -np.inf])):
        for rate, threshold in zip(found.rates, line, strict=True):
            allowed = int(rate * len(best) + 1e-6)
            assert threshold == pytest.approx(sorted(best, reverse=True)[allowed - 1], abs=1e-6)


def test_threshold_moves_the_right_way(learnt: Calibration) -> None:
    sizes = (1, 3, 10, 100, 1_000, 1_600, 5_000, 20_000)
    by_size = [learnt.threshold(0.2, size) for size in sizes]
    assert by_size == sorted(by_size) and by_size[2] < by_size[3] < by_size[4] < by_size[6] < by_size[7]
    by_rate = [learnt.threshold(rate, 500) for rate in (0.005, 0.01, 0.1, 0.5, 0.999)]
    assert by_rate == sorted(by_rate, reverse=True) and len(set(by_rate)) == 5


def test_larger_gallery_is_many_independent_ones(learnt: Calibration) -> None:
    largest = learnt.sizes[-1]
    rate = 1 - (1 - 0.02) ** 5
    assert learnt.threshold(rate, round(5 * largest)) == pytest.approx(learnt.threshold(0.02, round(largest)), abs=1e-4)


@pytest.mark.parametrize(
    ("rate", "size"), [(0, 100), (1, 100), (-0.1, 100), (np.nan, 100), (0.002, 100), (0.01, 10**6)]
)
def test_rates_that_cannot_be_told(learnt: Calibration, rate: float, size: int) -> None:
    assert learnt.least_false_accept(100) == pytest.approx(1 / 400)
    with pytest.raises(ReidError, match=r"max_false_accept should be a share from .* on 1600 searches for 400 people"):
        learnt.threshold(rate, size)


def test_least_false_accept_can_be_asked_for(learnt: Calibration) -> None:
    for size in (1, 1_596, 2_000, 50_000):
        assert -1 < learnt.threshold(learnt.least_false_accept(size), size) < 1
    with pytest.raises(ReidError, match="at least 1 image"):
        learnt.threshold(0.1, 0)


@pytest.mark.parametrize("method", ["logistic", "isotonic"])
def test_probability_is_that_of_balanced_pairs(learnt: Calibration, method: str) -> None:
    chosen = replace(learnt, **{f"ece_{method}": 0.0, "ece_isotonic" if method == "logistic" else "ece_logistic": 1.0})
    assert chosen.method == method
    features, pids, camids = drawn(9, 300)
    scores = features @ features.T
    other_camera = camids[:, None] != camids
    same = pids[:, None] == pids
    genuine, impostor = scores[same & other_camera], scores[~same & other_camera]
    impostor = np.random.default_rng(0).choice(impostor, len(genuine), replace=False)
    both = np.concatenate([genuine, impostor])
    is_same = np.arange(len(both)) < len(genuine)
    probability = chosen.probability(both)
    for low in np.arange(0, 1, 0.2):
        inside = (probability >= low) & (probability < low + 0.2)
        assert inside.sum() > 30
        assert is_same[inside].mean() == pytest.approx(probability[inside].mean(), abs=0.15)
    line = chosen.probability(np.linspace(-1, 1, 500))
    assert (np.diff(line) >= 0).all() and 0 < line[0] < 0.01 and 0.99 < line[-1] <= 1


def test_calibration_error_is_of_people_not_fitted_to(monkeypatch: pytest.MonkeyPatch) -> None:
    real, asked = reid.retrieval.calibration._pairs, []

    def recorded(features: np.ndarray, pids: np.ndarray, *rest: Any) -> tuple[np.ndarray, np.ndarray]:
        asked.append((set(pids.tolist()), *real(features, pids, *rest)))
        return asked[-1][1:]

    monkeypatch.setattr(reid.retrieval.calibration, "_pairs", recorded)
    found = learn(drawn(10, 100))
    (fitted, _, _), (checked, scores, same) = asked
    assert len(fitted) == len(checked) == 50 and not fitted & checked
    assert same.mean() == 0.5 and len(same) == 50 * 4 * 2
    for name in ("logistic", "isotonic"):
        chosen = replace(found, ece_logistic=float(name != "logistic"), ece_isotonic=float(name != "isotonic"))
        assert getattr(found, f"ece_{name}") == expected_calibration_error(chosen.probability(scores), same)


def test_calibration_error_equals_a_loop() -> None:
    rng = np.random.default_rng(11)
    probabilities = np.append(rng.random(500), [0.0, 1.0])
    same = rng.random(502) < probabilities**2
    total = 0.0
    for i in range(15):
        inside = (probabilities >= i / 15) & ((probabilities < (i + 1) / 15) | (i == 14))
        total += inside.mean() * abs(probabilities[inside].mean() - same[inside].mean())
    assert expected_calibration_error(probabilities, same) == pytest.approx(total, abs=1e-9)
    assert total > 0.1


def test_seed_and_nobody() -> None:
    features, pids, camids = images = drawn(12, 30)
    assert learn(images, seed=1) == learn(images, seed=1) != learn(images, seed=2)
    more = np.concatenate([features, features[:9]]), np.append(pids, [0, JUNK, 0] * 3), np.append(camids, [3] * 9)
    assert learn(more) == learn(images)


def test_many_images_are_drawn_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reid.retrieval.calibration, "_SEARCHES", 300)
    monkeypatch.setattr(reid.retrieval.calibration, "_PAIRS", 50)
    few = learn(drawn(0, 400))
    assert (few.searches, few.images, few.identities) == (300, 1600, 400)
    whole = learn(drawn(13, 400))
    assert few.threshold(0.2, 1000) == pytest.approx(whole.threshold(0.2, 1000), abs=0.03)


def test_json_there_and_back(learnt: Calibration) -> None:
    text = json.dumps(learnt.as_dict(), allow_nan=False)
    assert Calibration.from_dict(json.loads(text)) == learnt
    assert len(text) < 40_000
    assert (learnt.prior, learnt.dataset, learnt.fingerprint) == (0.5, "drawn", "0123456789abcdef")


@pytest.mark.parametrize(
    ("name", "spoil"),
    [
        ("slope", lambda v: None),
        ("slope", lambda v: -v),
        ("slope", lambda v: float("nan")),
        ("slope", lambda v: "1"),
        ("intercept", lambda v: True),
        ("intercept", lambda v: [v]),
        ("identities", lambda v: 400.0),
        ("identities", lambda v: 0),
        ("fingerprint", lambda v: 7),
        ("prior", lambda v: 0.1),
        ("knots", lambda v: []),
        ("knots", lambda v: v[:-1]),
        ("knots", lambda v: v[::-1]),
        ("knots", lambda v: 0.5),
        ("probabilities", lambda v: v[::-1]),
        ("probabilities", lambda v: [*v[:-1], 1.5]),
        ("ece_logistic", lambda v: 2),
        ("sizes", lambda v: [0.0, *v[1:]]),
        ("sizes", lambda v: v[1:]),
        ("rates", lambda v: v[::-1]),
        ("rates", lambda v: v[:-1]),
        ("thresholds", lambda v: v[0]),
        ("thresholds", lambda v: v[1:]),
        ("thresholds", lambda v: [v[0][::-1], *v[1:]]),
        ("thresholds", lambda v: [v[0][1:], *v[1:]]),
    ],
)
def test_damaged_values_are_named(learnt: Calibration, name: str, spoil: Callable[[Any], Any]) -> None:
    values = learnt.as_dict()
    values[name] = spoil(values[name])
    with pytest.raises(ReidError, match="calibrate again") as error:
        Calibration.from_dict(values)
    blamed = {"knots": "knots|probabilities", "sizes": "sizes|thresholds", "rates": "rates|thresholds"}.get(name, name)
    assert any(part in str(error.value) for part in blamed.split("|"))
    assert "\n" not in str(error.value)


def test_damaged_objects(learnt: Calibration) -> None:
    values = learnt.as_dict()
    for damaged in (
        None,
        [],
        [values],
        "x",
        {},
        {**values, "more": 1},
        {k: v for k, v in values.items() if k != "rates"},
    ):
        with pytest.raises(ReidError, match="calibrate again"):
            Calibration.from_dict(damaged)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda f, p, c: (f, p, c * 0), "at least 4 people seen by two cameras, got 0 of 30"),
        (lambda f, p, c: (f[:12], p[:12], c[:12]), "got 3 of 3"),
        (lambda f, p, c: (f, p * 0 + 1, c), "at least 2, got 1"),
        (lambda f, p, c: (f, p * 0, c), "at least 2, got 0"),
        (lambda f, p, c: (f * 2, p, c), "features: feature rows should be of unit length"),
        (lambda f, p, c: (f, p[1:], c), "pids should be 120 integers"),
        (lambda f, p, c: (f, p, c / 2), "camids should be 120 integers"),
        (lambda f, p, c: (f * np.where(c == 1, 1, -1)[:, None].astype(np.float32), p, c), "do not tell people apart"),
    ],
)
def test_bad_input_is_one_line(spoil: Callable[..., Images], message: str) -> None:
    with pytest.raises(ReidError, match=message) as error:
        learn(spoil(*drawn(14, 30)))
    assert "\n" not in str(error.value)


def test_a_rate_needs_four_people(learnt: Calibration) -> None:
    features, pids, _ = drawn(15, 3)
    with pytest.raises(ReidError, match="at least 4 people, got 3"):
        achieved(learnt, features, pids, 0.05)


def test_a_half_of_the_people_checks_the_other() -> None:
    features, pids, camids = drawn(5, 200)
    found = check(features, pids, camids, (1e-6, 0.05, 0.2), fingerprint="f", dataset="d")
    assert list(found) == [0.05, 0.2]  # 1e-6 cannot be learnt from 100 people
    learnt = np.isin(pids, np.random.default_rng(0).permutation(np.unique(pids))[:100])
    half = calibrate(features[learnt], pids[learnt], camids[learnt], fingerprint="f", dataset="d")
    assert found[0.2] == achieved(half, features[~learnt], pids[~learnt], 0.2)
    assert found[0.05].low <= 0.05 <= found[0.05].high
