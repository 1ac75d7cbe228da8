"""Exact evaluation of person re-identification: CMC, mAP (step and trapezoid) and mINP of feature arrays.

Pure functions on numpy arrays (or np.memmap), cosine similarity. The gallery is read once for a block of queries, no
more than one block of scores is in memory, and only the ranks of the matches are worked out.

The result depends on the features alone, not on blocks, threads or CPU. Unit features are rounded to multiples of 2^-26
and multiplied in float64: every product is a multiple of 2^-52 and no partial sum exceeds 1 (Cauchy-Schwarz), so that
no sum is ever rounded, in whatever order BLAS takes it. A float32 product gives even two equal gallery images different
scores, by their place in a block. The rounding moves a score by about 1e-8, less than float32 arithmetic does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from reid.types import JUNK, ReidError

UNIT_TOLERANCE = 1e-4  # a row whose length is this near to 1 counts as unit and is taken as it is
_MAX_RANK = 50
_GRID = 2.0**26
_STEP = 4096  # gallery rows, and by default queries, at a time: 128 MiB of scores
_MATCHES = 2**22  # of a block of queries, at most: 32 MiB of scores


@dataclass(frozen=True, eq=False)
class Scores:
    """What `evaluate` found. Means are fractions in [0, 1] over the queries that have a match.

    mAP takes the precision at each hit (torchreid, BagOfTricks); mAP_trapezoid is that of the official Market-1501
    and CUHK03-NP scripts, the mean of the precision at each hit and at the rank before it; mINP is Ye et al. 2021,
    "Deep Learning for Person Re-identification: A Survey and Outlook": hits / rank of the last hit.
    """

    rank1: float
    rank5: float
    rank10: float
    mAP: float
    mAP_trapezoid: float
    mINP: float
    num_query: int  # all of them, those without a match too
    num_gallery: int  # all of it, junk too
    num_query_without_match: int
    cmc: np.ndarray  # (min(50, gallery without junk),) float64: cmc[k - 1] is Rank-k
    average_precision: np.ndarray  # (Q,) float64, step; NaN where the query has no match
    trapezoid: np.ndarray  # (Q,) float64, average precision of the official scripts; NaN likewise
    inverse_penalty: np.ndarray  # (Q,) float64, hits / rank of the last hit; NaN likewise
    first_rank: np.ndarray  # (Q,) int64, rank of the first hit, counted from 1; -1 where the query has no match
    valid: np.ndarray  # (Q,) bool: the query has a match


def evaluate(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    block: int | None = None,
    progress: bool = False,
) -> Scores:
    """Ranks the gallery for each query by cosine similarity and scores the rankings by Market-1501's protocol.

    query (Q, D), gallery (G, D): features, floats. Rows are expected of unit length; any other row is divided by its
    length. pids and camids: integers, (Q,) and (G,).

    For a query, gallery rows of its own pid and camid and rows with pid JUNK are dropped; distractors (pid 0) stay,
    as wrong answers. A query without a match in what is left (also one whose own pid is JUNK or DISTRACTOR) is
    counted and left out of every mean. Equal scores rank in gallery order, as in a stable descending sort.

    block: queries scored at a time; by default 4,096, which takes about 0.4 GB beside features of 2,048 dimensions,
    or fewer where a pid has thousands of images. It changes memory and time, never the result.
    progress: shows a bar on stderr.

    Raises ReidError on shapes that do not fit, NaN, infinite or all-zero rows, and where no query has a match.
    """
    query_norms, gallery_norms = row_norms(query, "query"), row_norms(gallery, "gallery")
    if query.shape[1] != gallery.shape[1]:
        raise ReidError(
            f"query and gallery features differ in dimension, {query.shape[1]} and {gallery.shape[1]}: "
            "embed both with the same model"
        )
    num_query, num_gallery = len(query), len(gallery)
    if not num_query or not num_gallery:
        raise ReidError(f"nothing to evaluate: {num_query} query and {num_gallery} gallery features")
    query_pids, query_camids = _ids(query_pids, "query_pids", num_query), _ids(query_camids, "query_camids", num_query)
    index = _Gallery(
        gallery,
        gallery_norms,
        _ids(gallery_pids, "gallery_pids", num_gallery),
        _ids(gallery_camids, "gallery_camids", num_gallery),
    )
    if block is None:
        block = max(1, min(_STEP, _MATCHES // index.most_images()))
    elif block < 1:
        raise ReidError(f"block is a number of queries, at least 1: got {block}")

    average_precision, trapezoid, inverse_penalty = np.full((3, num_query), np.nan)
    first_rank = np.full(num_query, -1, dtype=np.int64)
    with tqdm(
        total=num_query * num_gallery, desc="evaluate", unit="pair", unit_scale=True, disable=not progress
    ) as bar:
        for start in range(0, num_query, block):
            part = slice(start, start + block)
            features = _on_grid(query[part], query_norms[part])
            ranked = _match_ranks(features, query_pids[part], query_camids[part], index, bar)
            for q, ranks in zip(range(start, num_query), ranked):
                if not len(ranks):
                    continue
                hits = np.arange(1, len(ranks) + 1)
                precision = hits / ranks
                precision_before = np.where(ranks > 1, (hits - 1) / np.maximum(ranks - 1, 1), 1.0)
                average_precision[q] = precision.mean()
                trapezoid[q] = ((precision_before + precision) / 2).mean()
                inverse_penalty[q] = precision[-1]
                first_rank[q] = ranks[0]

    valid = first_rank > 0
    if not valid.any():
        raise ReidError(
            f"none of {num_query} queries has a match, a gallery image of the same pid from another camera: "
            "check that query and gallery belong together, and the camera numbers"
        )
    first = first_rank[valid]
    num_ranked = int(np.count_nonzero(index.pids != JUNK))
    return Scores(
        rank1=float((first <= 1).mean()),
        rank5=float((first <= 5).mean()),
        rank10=float((first <= 10).mean()),
        mAP=float(average_precision[valid].mean()),
        mAP_trapezoid=float(trapezoid[valid].mean()),
        mINP=float(inverse_penalty[valid].mean()),
        num_query=num_query,
        num_gallery=num_gallery,
        num_query_without_match=int(num_query - valid.sum()),
        cmc=np.array([(first <= k).mean() for k in range(1, min(_MAX_RANK, num_ranked) + 1)]),
        average_precision=average_precision,
        trapezoid=trapezoid,
        inverse_penalty=inverse_penalty,
        first_rank=first_rank,
        valid=valid,
    )


def row_norms(features: np.ndarray, what: str) -> np.ndarray:
    """Lengths (N,) float64 of the rows of features (N, D).

    Raises ReidError that begins with `what`, unless features are two-dimensional, finite and without a row of zeros.
    """
    if features.ndim != 2 or features.dtype.kind != "f":
        raise ReidError(
            f"{what}: features should be an (N, D) array of floats, got shape {features.shape} of {features.dtype}"
        )
    norms = np.empty(len(features))
    for start in range(0, len(features), _STEP):
        rows = np.asarray(features[start : start + _STEP])
        norms[start : start + _STEP] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        kind = "is all zeros" if norms[bad[0]] == 0 else "holds NaN or infinity"
        raise ReidError(f"{what}: feature row {bad[0]} {kind} ({len(bad)} such rows of {len(norms)}), embed it again")
    return norms


def is_unit(norms: np.ndarray) -> np.ndarray:
    """Which lengths (N,) count as 1, bool (N,)."""
    return np.abs(norms - 1) <= UNIT_TOLERANCE


class _Gallery:
    """The G gallery features beside what is known of them, found by pid."""

    def __init__(self, features: np.ndarray, norms: np.ndarray, pids: np.ndarray, camids: np.ndarray) -> None:
        self.features, self.norms, self.pids, self.camids = features, norms, pids, camids
        self._by_pid = np.argsort(pids, kind="stable")
        self._sorted_pids = pids[self._by_pid]

    def of_pid(self, pid: int) -> np.ndarray:
        """Rows of that person, ascending; none for JUNK and DISTRACTOR, which are nobody."""
        first, last = np.searchsorted(self._sorted_pids, [pid, pid + 1]) if pid > 0 else (0, 0)
        return self._by_pid[first:last]

    def most_images(self) -> int:
        """Of one person."""
        return int(np.unique(self.pids[self.pids > 0], return_counts=True)[1].max(initial=1))

    def on_grid(self, rows: np.ndarray) -> np.ndarray:
        return _on_grid(self.features[rows], self.norms[rows])


def _match_ranks(
    query: np.ndarray, query_pids: np.ndarray, query_camids: np.ndarray, gallery: _Gallery, bar: tqdm
) -> list[np.ndarray]:
    """For each query (Q, D), on the grid: ranks of its matches among the rows that the protocol keeps.

    Ranks (m,) are counted from 1 and ascending. Scores being exact, those of the matches can be known beforehand, and
    what stands above them is counted in one pass over the gallery.
    """
    matches, match_scores, above = [], [], []
    for feature, pid, camid in zip(query, query_pids, query_camids):
        same = gallery.of_pid(pid)
        scores = gallery.on_grid(same) @ feature
        is_match = gallery.camids[same] != camid
        match, score = same[is_match], scores[is_match]
        dropped, dropped_score = same[~is_match, None], scores[~is_match, None]  # the pass below counts them: taken off
        counted = (dropped_score > score) | ((dropped_score == score) & (dropped < match))
        matches.append(match)
        match_scores.append(score)
        above.append(-counted.sum(axis=0))

    for start in range(0, len(gallery.pids), _STEP):
        rows = start + np.flatnonzero(gallery.pids[start : start + _STEP] != JUNK)
        block = query @ gallery.on_grid(rows).T
        for match, score, count, scores in zip(matches, match_scores, above, block):
            if not len(match):
                continue
            ascending = np.sort(scores)
            not_above = np.searchsorted(ascending, score, "right")
            count += len(rows) - not_above
            # equal scores, the match's own too: those earlier in the gallery are above
            for i in np.flatnonzero(np.searchsorted(ascending, score, "left") < not_above):
                earlier = np.searchsorted(rows, match[i])
                count[i] += np.count_nonzero(scores[:earlier] == score[i])
        bar.update(len(query) * min(_STEP, len(gallery.pids) - start))
    return [np.sort(count) + 1 for count in above]


def _on_grid(rows: np.ndarray, norms: np.ndarray) -> np.ndarray:
    """Rows (N, D) at unit length in multiples of 1 / _GRID, as whole numbers, float64."""
    unit = is_unit(norms)
    if not unit.all():
        rows = rows / np.where(unit, 1.0, norms)[:, None]
    scaled = np.multiply(rows, _GRID, dtype=np.float64)
    return np.rint(scaled, out=scaled)


def _ids(values: np.ndarray, name: str, count: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise ReidError(f"{name} should be {count} integers, one a feature: got shape {values.shape} of {values.dtype}")
    return values.astype(np.int64)
