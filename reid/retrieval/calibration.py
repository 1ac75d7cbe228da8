"""When to answer "nobody", and how sure an answer is: estimated from people that the model was not trained on.

calibration = calibrate(features, pids, camids, fingerprint=embedder.fingerprint, dataset="market1501")
calibration.threshold(0.01, gallery_size=20_000)  # the score that 1 % of the searches for absent people reach
calibration.probability(scores)                   # that two crops show one person

A false accept is a search, one crop against a gallery, for a person who is not in the gallery, that is answered with
somebody: the false positive identification rate (FPIR) of Grother, Ngan and Hanaoka, NISTIR 8271, 2019. It grows with
the gallery. It cannot be worked out from the false match rate of single pairs, since the scores of one query depend on
each other: some crops look like many people.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from reid.core.types import ReidError
from reid.retrieval.bootstrap import Interval, intervals
from reid.retrieval.vectors import check_rows
from reid.retrieval.verification import best_per_person

PRIOR = 0.5  # share of pairs of one person that `Calibration.probability` assumes
_KNOTS = 100
_SEARCHES = 20_000
_PAIRS = 100_000  # of one person, and as many of two
_STEP = 4096  # pairs at a time
_BINS = 15  # of the calibration error
_KINDS: dict[str, type] = {"fingerprint": str, "dataset": str, "identities": int, "images": int, "searches": int}
_NESTED = {"knots": 1, "probabilities": 1, "sizes": 1, "rates": 1, "thresholds": 2}  # lists of floats, and of lists


@dataclass(frozen=True)
class Calibration:
    """What `calibrate` found. It holds for embeddings of the one model, and for people and cameras like its own."""

    fingerprint: str  # of the model
    dataset: str
    identities: int
    images: int
    searches: int  # for people who are not in the gallery
    prior: float  # share of pairs of one person that the probability assumes
    slope: float  # logistic: 1 / (1 + exp(-(slope * score + intercept)))
    intercept: float
    knots: tuple[float, ...]  # isotonic: scores, ascending
    probabilities: tuple[float, ...]  # at the knots, never falling
    ece_logistic: float  # expected calibration error in [0, 1], on people that neither curve was fitted to
    ece_isotonic: float
    sizes: tuple[float, ...]  # galleries that were searched, in images, ascending
    rates: tuple[float, ...]  # false accepts a search, in (0, 1], ascending
    thresholds: tuple[tuple[float, ...], ...]  # of each size at each rate, cosine

    @property
    def method(self) -> str:
        """Of the probability, by the smaller calibration error."""
        return "isotonic" if self.ece_isotonic < self.ece_logistic else "logistic"

    def probability(self, scores: np.ndarray) -> np.ndarray:
        """For cosine scores (N,), the probability in [0, 1] that two crops of different cameras show one person.

        It never falls as the score rises. It is that of a pair picked before looking, as often of one person as of two
        (PRIOR): an answer that is the best of a large gallery is right less often.
        """
        scores = np.asarray(scores, np.float64)
        found: np.ndarray
        if self.method == "isotonic":
            found = np.interp(scores, self.knots, self.probabilities)
        else:
            found = _expit(self.slope * scores + self.intercept)
        return found

    def threshold(self, max_false_accept: float, gallery_size: int) -> float:
        """The cosine score from which on a best answer is given, so that false accepts keep to a rate.

        max_false_accept: share in (0, 1) of the searches for people who are not in the gallery.
        gallery_size: images in the gallery. With fewer images a person than the calibration's people had, it holds
        more people, and false accepts are more.

        Between sizes that were searched, the threshold is interpolated over the logarithm of the size; a gallery
        smaller than the smallest is taken for that. Beyond the largest, m images, FPIR is taken to be
        1 - (1 - FPIR_m)^(n / m), as if the searches of one crop in n / m galleries of m images did not depend on each
        other. That never underestimates it: let p be the probability that one query finds nobody in m images; for
        people drawn alike E[p^(n / m)] >= E[p]^(n / m) by Jensen's inequality.

        Raises ReidError for a rate outside (0, 1) or smaller than `least_false_accept`, and a size below 1.
        """
        if gallery_size < 1:
            raise ReidError(f"a gallery has at least 1 image, got gallery_size {gallery_size}")
        least = self.least_false_accept(gallery_size)
        if not least * (1 - 1e-9) <= max_false_accept < 1:
            raise ReidError(
                f"max_false_accept should be a share from {least:.2g} to below 1 for {gallery_size} images: got "
                f"{max_false_accept}; the calibration rests on {self.searches} searches for {self.identities} people, "
                "calibrate on more for a smaller share"
            )
        rate = -math.expm1(math.log1p(-max_false_accept) * min(1, self.sizes[-1] / gallery_size))
        at = [np.interp(math.log(rate), np.log(self.rates), line) for line in self.thresholds]
        return float(np.interp(math.log(gallery_size), np.log(self.sizes), at))

    def least_false_accept(self, gallery_size: int) -> float:
        """The smallest rate that `threshold` can be asked for: at the largest size, one person of all the identities.

        Near it, the threshold rests on a few people, and the rate may be off by a factor of two.
        """
        return -math.expm1(math.log1p(-self.rates[0]) * max(1, gallery_size / self.sizes[-1]))

    def as_dict(self) -> dict[str, Any]:
        """Of plain JSON types; `from_dict` takes it back."""
        return {name: _as_list(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Calibration:
        """Raises ReidError unless the values are what `as_dict` of a calibration gives."""
        if not isinstance(values, Mapping):
            raise ReidError(f"a calibration is a JSON object, got {type(values).__name__}; calibrate again")
        names = [field.name for field in fields(cls)]
        wrong = sorted(set(names).symmetric_difference(values))
        if wrong:
            raise ReidError(f"a calibration holds {', '.join(names)}; missing or unknown: {wrong}; calibrate again")
        made = cls(
            **{name: _typed(name, values[name], _KINDS.get(name, float), _NESTED.get(name, 0)) for name in names}
        )
        broken = [name for name, is_sound in _sound(made).items() if not is_sound]
        if broken:
            raise ReidError(f"the calibration is damaged: {', '.join(broken)} cannot be; calibrate again")
        return made


def calibrate(
    features: np.ndarray, pids: np.ndarray, camids: np.ndarray, *, fingerprint: str, dataset: str, seed: int = 0
) -> Calibration:
    """Learns from images of people that the model was not trained on.

    features (N, D): float32 of unit length. pids and camids: integers, (N,). Rows of nobody (pid 0 or below) are left
    out.

    Threshold: each image, or 20,000 drawn ones, is searched for among all images of all other people, so that its
    person is never in the gallery. Smaller galleries are those of a half of the people, a quarter, down to one person,
    each person being in one of them.

    Probability: of pairs from two cameras, all pairs of one person (100,000 drawn ones where there are more) and as
    many drawn ones of two: the prior is 1:1. A half of the people seen by two cameras is what a logistic curve (Platt
    1999, "Probabilistic Outputs for Support Vector Machines") and an isotonic one (Zadrozny and Elkan 2002) are fitted
    to; on the other half their expected calibration error is measured, and the smaller one decides.

    seed: of all that is drawn.

    Raises ReidError on shapes that do not fit, NaN, rows not of unit length, fewer than 4 people seen by two cameras,
    and features by which a person is less like himself than like others.
    """
    check_rows(features, "features", pids=pids, camids=camids)
    somebody = np.flatnonzero(pids > 0)
    features, pids, camids = features[somebody], pids[somebody], camids[somebody]
    rng = np.random.default_rng(seed)
    searches = np.sort(rng.permutation(len(pids))[:_SEARCHES])
    people, best = _best_of_others(features, pids, searches)
    seen_twice = [pid for pid in people.tolist() if len(np.unique(camids[pids == pid])) > 1]
    if len(seen_twice) < 4:
        raise ReidError(
            f"a calibration needs at least 4 people seen by two cameras, got {len(seen_twice)} of {len(people)}: "
            "take more people, or check the camera numbers"
        )
    sizes, rates, thresholds = _thresholds(best[rng.permutation(len(people))], _others(pids)[searches].mean())

    fit = np.isin(pids, rng.permutation(seen_twice)[: len(seen_twice) // 2])
    check = np.isin(pids, seen_twice) & ~fit
    scores, same = _pairs(features[fit], pids[fit], camids[fit], rng)
    slope, intercept = _logistic(scores, same)
    knots, probabilities = _isotonic(scores, same)
    scores, same = _pairs(features[check], pids[check], camids[check], rng)
    return Calibration(
        fingerprint=fingerprint,
        dataset=dataset,
        identities=len(people),
        images=len(pids),
        searches=len(searches),
        prior=PRIOR,
        slope=slope,
        intercept=intercept,
        knots=_as_tuple(knots),
        probabilities=_as_tuple(probabilities),
        ece_logistic=expected_calibration_error(_expit(slope * scores + intercept), same),
        ece_isotonic=expected_calibration_error(np.interp(scores, knots, probabilities), same),
        sizes=_as_tuple(sizes),
        rates=_as_tuple(rates),
        thresholds=tuple(map(_as_tuple, thresholds)),
    )


def achieved(
    calibration: Calibration, features: np.ndarray, pids: np.ndarray, max_false_accept: float, *, seed: int = 0
) -> Interval:
    """The rate of false accepts in [0, 1] on other people, where `max_false_accept` was asked for.

    features (N, D): float32 of unit length, of the same model, of people that were not calibrated on. pids (N,):
    integers; rows of nobody (pid 0 or below) are left out. All images of a half of the people, drawn with the seed, are
    searched for in the images of the other half: searched both ways, two people who look alike would count twice, and
    the interval would come out too narrow.

    The interval is that of the people who are searched for (`reid.retrieval.bootstrap`). It is too narrow where it
    rests on fewer
    than about ten people with a false accept. It holds neither who is enrolled nor the error of the threshold, which
    is an estimate from people, too: from few, the asked rate is outside more often than 1 time in 20.

    Raises ReidError on shapes that do not fit, fewer than 4 people, and as `Calibration.threshold` does.
    """
    check_rows(features, "features", pids=pids)
    people = np.unique(pids[pids > 0])
    if len(people) < 4:
        raise ReidError(f"a rate of false accepts needs at least 4 people, got {len(people)}: take more data")
    drawn = np.random.default_rng(seed).permutation(people)[: len(people) // 2]
    searched = np.isin(pids, drawn)
    enrolled = (pids > 0) & ~searched
    of, among = pids[searched], pids[enrolled]
    _, best = best_per_person(features[searched], features[enrolled], of, among, of, among)  # whatever the cameras
    accepted = best.max(axis=0) >= calibration.threshold(max_false_accept, len(among))
    return intervals(accepted[None].astype(np.float64), of)[0]


def check(
    features: np.ndarray,
    pids: np.ndarray,
    camids: np.ndarray,
    rates: Sequence[float],
    *,
    fingerprint: str,
    dataset: str,
    seed: int = 0,
) -> dict[float, Interval]:
    """What a calibration from a half of the people, drawn with the seed, achieves on the other half.

    Arguments as in `calibrate`. rates: that are asked for, in (0, 1); those that a half of the people is too few for
    are left out. Raises ReidError as `calibrate` and `achieved` do.
    """
    people = np.unique(pids[pids > 0])
    fitted = np.isin(pids, np.random.default_rng(seed).permutation(people)[: len(people) // 2])
    of = {"fingerprint": fingerprint, "dataset": dataset}
    calibration = calibrate(features[fitted], pids[fitted], camids[fitted], **of, seed=seed)
    rest = ~fitted & (pids > 0)
    size = int(rest.sum())  # larger than what is searched: a rate that is allowed here is allowed there
    return {
        rate: achieved(calibration, features[rest], pids[rest], rate, seed=seed)
        for rate in rates
        if rate >= calibration.least_false_accept(size)
    }


def expected_calibration_error(probabilities: np.ndarray, same: np.ndarray) -> float:
    """Mean distance in [0, 1] between what is predicted and what holds: Guo et al. 2017, "On Calibration of Modern
    Neural Networks", 15 bins of equal width.

    probabilities (N,) in [0, 1]; same (N,) bool: whether the pair is of one person.
    """
    bins = np.minimum((probabilities * _BINS).astype(np.intp), _BINS - 1)
    gaps = np.bincount(bins, probabilities - same, _BINS)
    return float(np.abs(gaps).sum() / len(bins))


def _best_of_others(features: np.ndarray, pids: np.ndarray, searches: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """People (P,), and the best scores (P, S) of the images at `searches` for each; -inf for their own person."""
    camids = np.ones(len(pids), np.int64)  # as if all were of one camera: then a person's own images are dropped
    people, best = best_per_person(features[searches], features, pids[searches], pids, camids[searches], camids)
    if len(people) < 2:
        raise ReidError(f"false accepts are between people, at least 2, got {len(people)}: take more data")
    return people, best


def _others(pids: np.ndarray) -> np.ndarray:
    """For each image (N,), how many there are of other people."""
    _, person, count = np.unique(pids, return_inverse=True, return_counts=True)
    return len(pids) - count[person]


def _thresholds(best: np.ndarray, images: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sizes (S,) of galleries, rates (R,) and thresholds (S, R) from the best scores (P, searches) for each person.

    images: of all others together, mean over the searches.
    """
    rates = np.geomspace(1 / min(best.shape), 1, _KNOTS)  # from one person of all who are searched for
    sizes, thresholds = [], []
    while True:
        found = np.sort(best[best > -np.inf])[::-1]  # a gallery of the own person alone is none
        sizes.append(images / len(best))
        thresholds.append(found[(rates * len(found) + 1e-9).astype(np.intp) - 1])
        if len(best) == 1:
            return np.array(sizes), rates, np.array(thresholds)
        best = np.maximum.reduceat(best, np.arange(0, len(best), 2))  # two galleries become one


def _pairs(
    features: np.ndarray, pids: np.ndarray, camids: np.ndarray, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Scores (2 * n,) of pairs from two cameras, and whether they are of one person (2 * n,): n are, n are not."""
    pairs = []
    for pid in np.unique(pids):
        rows = np.flatnonzero(pids == pid)
        first, second = (rows[side] for side in np.triu_indices(len(rows), 1))
        pairs.append(np.stack([first, second])[:, camids[first] != camids[second]])
    genuine = np.concatenate(pairs, axis=1)
    genuine = genuine[:, rng.permutation(genuine.shape[1])[:_PAIRS]]
    impostors = np.empty((2, 0), np.int64)
    while impostors.shape[1] < genuine.shape[1]:
        first, second = drawn = rng.integers(len(pids), size=genuine.shape)
        two = (pids[first] != pids[second]) & (camids[first] != camids[second])
        impostors = np.concatenate([impostors, drawn[:, two]], axis=1)
    both = np.concatenate([genuine, impostors[:, : genuine.shape[1]]], axis=1)
    scores = np.empty(both.shape[1])
    for start in range(0, len(scores), _STEP):
        first, second = both[:, start : start + _STEP]
        scores[start : start + _STEP] = np.einsum("nd,nd->n", features[first], features[second])
    return scores, np.arange(len(scores)) < genuine.shape[1]


def _expit(x: np.ndarray) -> np.ndarray:
    """1 / (1 + exp(-x)), also where exp(-x) is too large for a float."""
    found: np.ndarray = np.exp(-np.logaddexp(0, -x))
    return found


def _logistic(scores: np.ndarray, same: np.ndarray) -> tuple[float, float]:
    from sklearn.linear_model import LogisticRegression

    fitted = LogisticRegression(C=1e6).fit(scores[:, None], same)
    slope, intercept = float(fitted.coef_[0, 0]), float(fitted.intercept_[0])
    if slope <= 0:
        raise ReidError(
            "the features do not tell people apart: two images of one person are no more alike than those of two; "
            "check that pids belong to the images, and the weights"
        )
    return slope, intercept


def _isotonic(scores: np.ndarray, same: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.isotonic import IsotonicRegression

    never = 1 / (len(scores) + 2)  # no number of pairs makes it certain
    fitted = IsotonicRegression(y_min=never, y_max=1 - never).fit(scores, same)
    return fitted.X_thresholds_, fitted.y_thresholds_


def _as_tuple(values: np.ndarray) -> tuple[float, ...]:
    return tuple(np.asarray(values, np.float64).tolist())


def _as_list(value: Any) -> Any:
    return [_as_list(part) for part in value] if isinstance(value, tuple) else value


def _typed(name: str, value: Any, kind: type, nested: int) -> Any:
    """The value as `Calibration` has it: lists as tuples, numbers as finite floats."""
    if nested and isinstance(value, list) and value:
        return tuple(_typed(name, part, kind, nested - 1) for part in value)
    if kind is float and type(value) is int:
        value = float(value)
    if nested or type(value) is not kind or (type(value) is float and not math.isfinite(value)):
        what = "a list" if nested else kind.__name__
        raise ReidError(f"the calibration is damaged: {name} holds {value!r:.50}, expected {what}; calibrate again")
    return value


def _sound(c: Calibration) -> dict[str, bool]:
    """Whether each field's values can be."""
    return {
        "identities": c.identities > 1,
        "images": c.images > 1,
        "searches": c.searches > 1,
        "prior": c.prior == PRIOR,
        "slope": c.slope > 0,
        "knots": _rises(c.knots),
        "probabilities": len(c.probabilities) == len(c.knots)
        and 0 <= c.probabilities[0] <= c.probabilities[-1] <= 1
        and list(c.probabilities) == sorted(c.probabilities),
        "ece_logistic": 0 <= c.ece_logistic <= 1,
        "ece_isotonic": 0 <= c.ece_isotonic <= 1,
        "sizes": c.sizes[0] > 0 and _rises(c.sizes),
        "rates": 0 < c.rates[0] < 1 == c.rates[-1] and _rises(c.rates),
        "thresholds": len(c.thresholds) == len(c.sizes)
        and all(len(t) == len(c.rates) and list(t) == sorted(t, reverse=True) for t in c.thresholds),
    }


def _rises(values: tuple[float, ...]) -> bool:
    return bool((np.diff(values) > 0).all())


def calibration_of(card: Mapping[str, Any], fingerprint: str) -> Calibration | None:
    """What `calibrate` wrote into a model's card; None where it did not. ReidError where it is of another model."""
    values = card.get("calibration")
    if values is None:
        return None
    calibration = Calibration.from_dict(values)
    if calibration.fingerprint != fingerprint:
        raise ReidError(
            f"the model's calibration is of the model {calibration.fingerprint}, this is {fingerprint}: "
            "calibrate it again"
        )
    return calibration
