"""Bootstrap intervals of means over queries, with people drawn instead of queries.

The queries of one person are not independent of each other: intervals that draw queries one by one come out too
narrow. Here people are drawn with replacement, and all queries of a drawn person come along, as often as the person
was drawn: the cluster bootstrap with percentile intervals (Davison and Hinkley 1997, "Bootstrap Methods and their
Application").
"""

from __future__ import annotations

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


def intervals(values: np.ndarray, pids: np.ndarray) -> list[Interval]:
    """For each row of values (R, Q), its mean over the queries and the mean's 95 % interval, by drawing people.

    pids (Q,) are the queries' people, integers. A query that is NaN in any row is left out of all. The rows, and every
    call on the same people, are resampled alike, so that the interval of a paired difference is that of the row
    `a - b`: of a row of zeros exactly [0, 0].

    Raises ReidError where fewer than two people are left.
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
    means = (times @ sums.T) / (times @ np.bincount(person))[:, None]  # (RESAMPLES, R)
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(means, [tail, 1 - tail], axis=0)
    return [Interval(*map(float, found)) for found in zip(values[:, known].mean(axis=1), low, high)]
