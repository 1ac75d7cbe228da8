"""Intervals of means over queries: of the people by bootstrap, and of a recipe's seeds and the people together.

The queries of one person are not independent of each other: intervals that draw queries one by one come out too
narrow. Here people are drawn with replacement, and all queries of a drawn person come along, as often as the person
was drawn: the cluster bootstrap with percentile intervals (Davison and Hinkley 1997, "Bootstrap Methods and their
Application").

Where a recipe was trained with several seeds, its score varies with the people and with the seed. Seeds and people are
crossed, every model meets every person: the case of the readers and the patients of an imaging study, with readers of
its own for each modality (Obuchowski and Rockette 1995, "Hypothesis testing of diagnostic accuracy for multiple readers
and multiple tests"; Hillis 2007, "A comparison of denominator degrees of freedom methods for multiple observer ROC
analysis"; Hillis 2014, "A marginal-mean ANOVA approach for analyzing multireader multicase radiological imaging data").
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from reid.core.types import ReidError

RESAMPLES = 2000
LEVEL = 0.95
_SEED = 0


class Interval(NamedTuple):
    """A mean and the interval around it, in the unit of the values."""

    mean: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


def draw_people(count: int) -> np.ndarray:
    """The resamples (RESAMPLES, count) int64 of `count` people: positions in [0, count), the same at every call."""
    return np.random.default_rng(_SEED).integers(count, size=(RESAMPLES, count))


class Resampled(NamedTuple):
    """The means of R rows over the queries, and of each resample of the people."""

    means: np.ndarray  # (R,) float64
    draws: np.ndarray  # (RESAMPLES, R) float64
    people: int  # drawn from


def resample(values: np.ndarray, pids: np.ndarray) -> Resampled:
    """The rows' means (R, Q) over the queries, as they are and with the people drawn anew.

    pids (Q,) are the queries' people, integers. A query that is NaN in any row is left out of all. The rows, and every
    call on the same people, are resampled alike. Raises ReidError where fewer than two people are left.
    """
    known = ~np.isnan(values).any(axis=0)
    people, person = np.unique(pids[known], return_inverse=True)
    count = len(people)
    if count < 2:
        raise ReidError(
            f"an interval needs queries of at least 2 people that have a match, got {count}: take more data"
        )
    sums = np.array([np.bincount(person, row, count) for row in values[:, known]])  # (R, people)
    drawn = draw_people(count) + count * np.arange(RESAMPLES)[:, None]
    times = np.bincount(drawn.ravel(), minlength=RESAMPLES * count).reshape(RESAMPLES, count).astype(np.float64)
    draws = (times @ sums.T) / (times @ np.bincount(person))[:, None]
    return Resampled(values[:, known].mean(axis=1), draws, count)


def over_people(means: np.ndarray, draws: np.ndarray) -> list[Interval]:
    """The percentile intervals of R means (R,) by their resamples (RESAMPLES, R)."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(draws, [tail, 1 - tail], axis=0)
    return [Interval(*map(float, found)) for found in zip(means, low, high)]


def intervals(values: np.ndarray, pids: np.ndarray) -> list[Interval]:
    """For each row of values (R, Q), its mean over the queries and the mean's 95 % interval, by drawing people.

    See `resample`. The interval of a paired difference is that of the row `a - b`: of a row of zeros exactly [0, 0].
    """
    resampled = resample(values, pids)
    return over_people(resampled.means, resampled.draws)


def over_seeds(resampled: Resampled, ours: Sequence[int], theirs: Sequence[int] = ()) -> Interval:
    """The mean of a recipe over its seeds with its 95 % interval, or its difference to another recipe's.

    ours and theirs: the recipes' rows in `resampled`, a row a seed; one of the two has at least two. Of a recipe with a
    single seed the variance of the seed is taken to be the other's.

    The variance is the sum of two parts. That of the seeds, which holds how seeds and people interact: s^2 / n of each
    recipe, s^2 the sample variance of its n means. That of the people, by bootstrap: the covariance of two seeds of one
    recipe, for each recipe, less twice that of seeds of different recipes; at least 0. The quantile is Student's with
    Satterthwaite's degrees of freedom: with everybody alike this is Welch's interval over the seeds. Where a recipe has
    a single seed each part takes its own quantile instead, which errs towards wide.
    """
    from scipy.special import stdtrit

    groups = [list(rows) for rows in (ours, theirs) if len(rows)]
    repeated = [rows for rows in groups if len(rows) > 1]
    if not repeated:
        raise ReidError("the seeds' variance needs a recipe with at least 2 seeds, got 1 of each")
    weights = np.zeros(len(resampled.means))
    for rows, sign in zip(groups, (1, -1)):
        weights[rows] = sign / len(rows)
    mean = float(weights @ resampled.means)
    covariance = np.atleast_2d(np.cov(resampled.draws, rowvar=False))
    parts: dict[int, float] = {}  # of the variance, by the recipe whose seeds tell it
    people = float(weights @ covariance @ weights)
    for i, rows in enumerate(groups):
        known = i if len(rows) > 1 else 1 - i
        block = covariance[np.ix_(groups[known], groups[known])]
        count = len(block)
        shared = (block.sum() - np.trace(block)) / (count * (count - 1))
        people -= float(np.trace(block) / count - shared) / len(rows)
        parts[known] = parts.get(known, 0.0) + float(resampled.means[groups[known]].var(ddof=1)) / len(rows)
    people = max(0.0, people)
    variance = people + sum(parts.values())
    if not variance:
        return Interval(mean, mean, mean)
    level = (1 + LEVEL) / 2
    if len(groups) > len(repeated):  # with the few degrees of one recipe's seeds Satterthwaite's quantile is too small
        (seeds,), (count,) = parts.values(), map(len, repeated)
        each = stdtrit(np.array([count - 1, resampled.people - 1]), level) * np.sqrt([seeds, people])
        half = math.hypot(*each)
    else:
        spread = sum(part**2 / (len(groups[i]) - 1) for i, part in parts.items()) + people**2 / (resampled.people - 1)
        half = float(stdtrit(variance**2 / spread, level)) * math.sqrt(variance)
    return Interval(mean, mean - half, mean + half)
