"""Verification (are two crops one person?) and open set identification (is this person in the gallery at all?).

Pure functions on numpy arrays (or np.memmap), cosine similarity, float32 products. The gallery is read once, tile by
tile; of the scores of all pairs, one tile is in memory.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from reid.core.types import JUNK, ReidError
from reid.retrieval.vectors import check_dimensions, check_rows

FPIR = (0.01, 0.1)
HISTOGRAM_EDGES = np.linspace(-1, 1, 201)
_FPR_PARTS = (100, 1_000, 10_000, 100_000)  # 1 / FPR, so that ranks are whole numbers
_FALSE_ACCEPTS = 10  # expected at an FPR, or too few to tell a TPR there
_BINS = 20_000  # of the scores from -1 to 1, for the curve
_CURVE = 200
_PRODUCT = 2**23  # scores at a time: 32 MiB


class OperatingPoint(NamedTuple):
    """A pair scored above the threshold is taken for one person."""

    fpr: float  # asked for
    tpr: float | None  # None where fewer than 10 false accepts are expected at this FPR
    threshold: float | None  # cosine; None likewise


@dataclass(frozen=True, eq=False)
class Verification:
    """What `verify` found. Rates are fractions in [0, 1] of the genuine (tpr) or the impostor pairs (fpr)."""

    points: tuple[OperatingPoint, ...]  # at FPR 1e-2, 1e-3, 1e-4 and 1e-5
    auc: float  # area under the curve, at scores to 1e-4
    eer: float  # where fpr and 1 - tpr meet, at scores to 1e-4
    curve_fpr: np.ndarray  # (C,) float64, C <= 200, ascending, about evenly spaced in log FPR
    curve_tpr: np.ndarray  # (C,) float64, the curve at those
    genuine_histogram: np.ndarray  # (200,) int64, pairs by score between HISTOGRAM_EDGES
    impostor_histogram: np.ndarray  # (200,) int64
    num_genuine: int
    num_impostor: int


class OpenSetPoint(NamedTuple):
    """Means over the draws. An answer scored above the threshold is given."""

    fpir: float  # asked for
    tpir: float | None  # None where less than one false answer is expected at this FPIR
    std: float | None  # of tpir over the draws
    threshold: float | None  # cosine


@dataclass(frozen=True)
class OpenSet:
    """What `open_set` found. TPIR and FPIR are fractions in [0, 1] of the mated and the non-mated queries."""

    points: tuple[OpenSetPoint, ...]  # at FPIR 1 % and 10 %
    num_mated: float  # queries, mean over the draws
    num_non_mated: float
    draws: int


def verify(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
) -> Verification:
    """Scores all pairs of a query and a gallery image: genuine ones against impostors.

    query (Q, D), gallery (G, D): features, float32 of unit length. pids and camids: integers, (Q,) and (G,).

    Genuine is a pair of the same pid from two cameras, impostor one of two pids, whatever the cameras. Pairs of the
    same pid and camera count as neither, gallery rows with pid JUNK not at all; distractors (pid 0) are impostors to
    everybody. Queries that are JUNK or DISTRACTOR are left out.

    TPR at an FPR is the largest that a threshold can have whose FPR does not exceed it, exactly: with N impostor pairs,
    the threshold is the impostor score of rank floor(N * FPR) + 1.

    Raises ReidError on shapes that do not fit, NaN, rows not of unit length, and without genuine or impostor pairs.
    """
    _check(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids)
    asked, kept = np.flatnonzero(query_pids > 0), np.flatnonzero(gallery_pids != JUNK)
    query, query_pids, query_camids = query[asked], query_pids[asked], query_camids[asked]
    gallery_pids, gallery_camids = gallery_pids[kept], gallery_camids[kept]
    by_pid = np.sort(gallery_pids)
    same_pid = np.searchsorted(by_pid, query_pids, "right") - np.searchsorted(by_pid, query_pids)
    num_impostor = len(asked) * len(kept) - int(same_pid.sum())

    found: list[np.ndarray] = [np.empty(0, np.float32)]
    impostor_bins = np.zeros(_BINS, np.int64)
    highest = _Highest(num_impostor // min(_FPR_PARTS) + 1)
    for part, scores in _tiles(query, gallery, kept):
        same = gallery_pids[part, None] == query_pids
        found.append(scores[same & (gallery_camids[part, None] != query_camids)])
        others = scores[~same]
        impostor_bins += _binned(others)
        highest.add(others)
    genuine = np.concatenate(found)
    if not len(genuine) or not num_impostor:
        raise ReidError(
            f"verification needs pairs of one person from two cameras and of two people, got {len(genuine)} and "
            f"{num_impostor}: check that query and gallery belong together, and the camera numbers"
        )

    ranked = highest.descending()
    points = []
    for parts in _FPR_PARTS:
        if num_impostor < _FALSE_ACCEPTS * parts:
            points.append(OperatingPoint(1 / parts, None, None))
        else:
            threshold = ranked[num_impostor // parts]
            points.append(OperatingPoint(1 / parts, float((genuine > threshold).mean()), float(threshold)))
    genuine_bins = _binned(genuine)
    fpr, tpr = (np.append(0, bins[::-1].cumsum()) / bins.sum() for bins in (impostor_bins, genuine_bins))
    meet = np.abs(fpr - (1 - tpr)).argmin()
    curve = np.unique(np.searchsorted(fpr, np.geomspace(1 / num_impostor, 1, _CURVE)).clip(max=_BINS))
    return Verification(
        points=tuple(points),
        auc=float(np.trapezoid(tpr, fpr)),
        eer=float((fpr[meet] + 1 - tpr[meet]) / 2),
        curve_fpr=fpr[curve],
        curve_tpr=tpr[curve],
        genuine_histogram=genuine_bins.reshape(len(HISTOGRAM_EDGES) - 1, -1).sum(axis=1),
        impostor_histogram=impostor_bins.reshape(len(HISTOGRAM_EDGES) - 1, -1).sum(axis=1),
        num_genuine=len(genuine),
        num_impostor=num_impostor,
    )


def open_set(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    absent: float = 0.5,
    draws: int = 10,
    seed: int = 0,
) -> OpenSet:
    """TPIR at FPIR 1 % and 10 %, where some of the people searched for are not in the gallery.

    The definitions are those of Grother, Ngan and Hanaoka, "Face Recognition Vendor Test (FRVT) Part 2:
    Identification", NISTIR 8271, 2019, at rank 1: FPIR is the share of non-mated queries that get any answer above the
    threshold, TPIR the share of mated queries whose first answer is the right person and above the threshold. The
    threshold is the lowest at which FPIR does not exceed what is asked.

    Arrays as in `verify`. For each draw, a share `absent` in (0, 1) of the query people is drawn and their gallery
    images are taken out. A query is mated where the protocol leaves it a match (same pid, other camera), else
    non-mated. Its own person's images from its own camera and JUNK are dropped; of two equal scores of right and wrong
    person, the wrong one comes first.

    Holds the best score of each query for each gallery person: (people, Q) float32.

    Raises ReidError on shapes that do not fit, NaN, rows not of unit length, `absent` out of range, and where a draw
    leaves no mated or no non-mated query.
    """
    if not 0 < absent < 1 or draws < 1:
        raise ReidError(f"absent is a share between 0 and 1, draws at least 1: got {absent} and {draws}")
    people, best = best_per_person(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids)
    somebody = query_pids > 0
    pids, best = query_pids[somebody], best[:, somebody]
    columns = np.arange(len(pids))
    row = np.searchsorted(people, pids).clip(max=max(len(people) - 1, 0))
    own = np.where(people[row] == pids, best[row, columns], -np.inf) if len(people) else np.full(len(pids), -np.inf)
    best[people[:, None] == pids] = -np.inf  # only others are left

    rng = np.random.default_rng(seed)
    searched = np.unique(pids)
    tpir, thresholds = np.full((2, draws, len(FPIR)), np.nan)
    num_mated = np.empty(draws)
    for draw in range(draws):
        out = rng.choice(searched, round(absent * len(searched)), replace=False)
        mated = ~np.isin(pids, out) & (own > -np.inf)
        num_mated[draw] = mated.sum()
        if not mated.any() or mated.all():
            raise ReidError(
                f"an open set needs queries of people inside and outside the gallery, got {mated.sum()} and "
                f"{(~mated).sum()} in a draw of {len(searched)} people: take more people, or check the camera numbers"
            )
        other = best[~np.isin(people, out)].max(axis=0, initial=-np.inf)
        ranked = np.sort(other[~mated])[::-1]
        right = own[mated][own[mated] > other[mated]]
        for i, fpir in enumerate(FPIR):
            allowed = int(fpir * len(ranked) + 1e-9)
            if allowed:
                thresholds[draw, i] = ranked[allowed]
                tpir[draw, i] = (right > ranked[allowed]).sum() / mated.sum()

    points = []
    for i, fpir in enumerate(FPIR):
        if np.isnan(tpir[:, i]).any():
            points.append(OpenSetPoint(fpir, None, None, None))
        else:
            found = (tpir[:, i].mean(), tpir[:, i].std(), thresholds[:, i].mean())
            points.append(OpenSetPoint(fpir, *map(float, found)))
    return OpenSet(tuple(points), float(num_mated.mean()), float(len(pids) - num_mated.mean()), draws)


def best_per_person(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
) -> tuple[np.ndarray, np.ndarray]:
    """The people of the gallery, pids (P,) ascending, and each query's best score for each, (P, Q) float32.

    Arrays and errors as in `verify`. JUNK is nobody; all distractors together are one of the people. Images of the
    query's pid from its own camera are dropped: -inf where that leaves none.
    """
    _check(query, gallery, query_pids, gallery_pids, query_camids, gallery_camids)
    order = np.argsort(gallery_pids, kind="stable")
    order = order[gallery_pids[order] != JUNK]
    pids, camids = gallery_pids[order], gallery_camids[order]
    people, person = np.unique(pids, return_inverse=True)
    best = np.full((len(people), len(query)), -np.inf, np.float32)
    for part, scores in _tiles(query, gallery, order):
        scores[(pids[part, None] == query_pids) & (camids[part, None] == query_camids)] = -np.inf
        first = np.flatnonzero(np.diff(person[part], prepend=-1))
        here = slice(person[part.start], person[part.stop - 1] + 1)
        best[here] = np.maximum(best[here], np.maximum.reduceat(scores, first))
    return people, best


class _Highest:
    """The `size` highest of all scores that were added."""

    def __init__(self, size: int) -> None:
        self.size, self.held, self.floor = size, np.empty(0, np.float32), np.float32(-np.inf)

    def add(self, scores: np.ndarray) -> None:
        self.held = np.append(self.held, scores[scores > self.floor])
        if len(self.held) > 2 * self.size:
            self.held = np.partition(self.held, -self.size)[-self.size :]
            self.floor = self.held[0]

    def descending(self) -> np.ndarray:
        return np.sort(self.held)[::-1][: self.size]


def _tiles(query: np.ndarray, gallery: np.ndarray, rows: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yields parts of `rows` of the gallery and their scores, (part, Q) float32."""
    width = max(1, _PRODUCT // max(1, len(query)))
    for start in range(0, len(rows), width):
        part = slice(start, min(start + width, len(rows)))
        yield part, gallery[rows[part]] @ query.T


def _binned(scores: np.ndarray) -> np.ndarray:
    """How many scores lie in each of _BINS bins from -1 to 1."""
    places = ((scores + 1) * (_BINS / 2)).astype(np.intp)
    return np.bincount(places.clip(0, _BINS - 1), minlength=_BINS)


def _check(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
) -> None:
    check_rows(query, "query", query_pids=query_pids, query_camids=query_camids)
    check_rows(gallery, "gallery", gallery_pids=gallery_pids, gallery_camids=gallery_camids)
    check_dimensions(query, gallery)
