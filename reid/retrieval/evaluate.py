"""Exact evaluation of person re-identification: CMC, mAP (step and trapezoid) and mINP of feature arrays.

Pure functions on numpy arrays (or np.memmap), cosine similarity. The gallery is read once for a block of queries, no
more than one block of scores is in memory, and only the ranks of the matches are worked out; no row is sorted.

The result depends on the features alone, not on blocks, threads or CPU. Unit features are rounded to multiples of 2^-26
in float32. In float64 every product of two is a multiple of 2^-52 and no partial sum exceeds 1 (Cauchy-Schwarz), so
that no sum is ever rounded, in whatever order it is taken: scores are exact, and equal images score equally. The
rounding moves a score by about 1e-8. Exact scores are computed of the matches alone; the rest of the gallery is
multiplied in float32, whose error is bounded, and only what lies within that bound of a match's score is multiplied
again, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, NoReturn

import numpy as np
from tqdm import tqdm

from reid.core.threads import parallel_map
from reid.core.types import JUNK, ReidError
from reid.retrieval.vectors import check_dimensions, round_to_grid, row_norms

if TYPE_CHECKING:
    from scipy.sparse import csr_array

_MAX_RANK = 50
_STEP = 4096  # rows of features at a time, and by default queries
_PIECE = 256  # rows brought onto the grid at a time, in the processor's cache
_TILE = 2**25  # gallery values at a time: 128 MiB
_PRODUCT = 2**25  # scores at a time: 128 MiB
_MATCHES = 2**22  # of a block of queries, at most
_CHUNK = 256  # dimensions that one float32 product sums


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
    bonus: csr_array | None = None,
    block: int | None = None,
    progress: bool = False,
) -> Scores:
    """Ranks the gallery for each query by cosine similarity and scores the rankings by Market-1501's protocol.

    query (Q, D), gallery (G, D): features, floats. Rows are expected of unit length; any other row is divided by its
    length. pids and camids: integers, (Q,) and (G,).

    For a query, gallery rows of its own pid and camid and rows with pid JUNK are dropped; distractors (pid 0) stay,
    as wrong answers. A query without a match in what is left (also one whose own pid is JUNK or DISTRACTOR) is
    counted and left out of every mean. Equal scores rank in gallery order, as in a stable descending sort.

    bonus: (Q, G), added to the similarities: of re-ranking, see `reid.retrieval.rerank`.
    block: queries scored at a time; by default 4,096, which takes about 0.4 GB beside features of 2,048 dimensions,
    or fewer where a pid has thousands of images. It changes memory and time, never the result.
    progress: shows a bar on stderr.

    Raises ReidError on shapes that do not fit, NaN, infinite or all-zero rows, and where no query has a match.
    """
    query_norms, gallery_norms = row_norms(query, "query"), row_norms(gallery, "gallery")
    check_dimensions(query, gallery)
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
    if bonus is not None and bonus.shape != (num_query, num_gallery):
        raise ReidError(f"bonus should be of {num_query} queries and {num_gallery} gallery rows, got {bonus.shape}")
    if block is None:
        block = max(1, min(_STEP, _MATCHES // index.most_images()))
    elif block < 1:
        raise ReidError(f"block is a number of queries, at least 1: got {block}")

    average_precision, trapezoid, inverse_penalty = np.full((3, num_query), np.nan)
    first_rank = np.full(num_query, -1, dtype=np.int64)
    with tqdm(
        total=num_query * len(index.kept), desc="evaluate", unit="pair", unit_scale=True, disable=not progress
    ) as bar:
        for start in range(0, num_query, block):
            part = slice(start, start + block)
            features = round_to_grid(query[part], query_norms[part])
            extra = None if bonus is None else bonus[part]
            ranked = _match_ranks(features, query_pids[part], query_camids[part], index, extra, bar)
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
        cmc=np.array([(first <= k).mean() for k in range(1, min(_MAX_RANK, len(index.kept)) + 1)]),
        average_precision=average_precision,
        trapezoid=trapezoid,
        inverse_penalty=inverse_penalty,
        first_rank=first_rank,
        valid=valid,
    )


class _Gallery:
    """The G gallery features beside what is known of them, found by pid."""

    def __init__(self, features: np.ndarray, norms: np.ndarray, pids: np.ndarray, camids: np.ndarray) -> None:
        self.features, self.norms, self.camids = features, norms, camids
        self.kept = np.flatnonzero(pids != JUNK)
        self._by_pid = np.argsort(pids, kind="stable")
        self._sorted_pids = pids[self._by_pid]

    def of_pid(self, pid: int) -> np.ndarray:
        """Rows of that person, ascending; none for JUNK and DISTRACTOR, which are nobody."""
        first, last = np.searchsorted(self._sorted_pids, [pid, pid + 1]) if pid > 0 else (0, 0)
        return self._by_pid[first:last]

    def most_images(self) -> int:
        """Of one person."""
        people = self._sorted_pids[np.searchsorted(self._sorted_pids, 1) :]
        return int(np.unique(people, return_counts=True)[1].max(initial=1))

    def on_grid(self, rows: np.ndarray) -> np.ndarray:
        return round_to_grid(self.features[rows], self.norms[rows])


class _Wanted:
    """What of the gallery is of the queries' people: the matches, with exact scores, and what the protocol drops.

    Flat arrays, a query's matches side by side, in the order of the queries.
    """

    def __init__(self, query: np.ndarray, pids: np.ndarray, camids: np.ndarray, gallery: _Gallery) -> None:
        order = np.argsort(pids, kind="stable")
        found: list[tuple[np.ndarray, ...]] = []
        for queries in np.split(order, np.flatnonzero(np.diff(pids[order])) + 1):
            rows = gallery.of_pid(pids[queries[0]])
            if len(rows):
                scores = query[queries].astype(np.float64) @ gallery.on_grid(rows).T.astype(np.float64)
                shape = (len(queries), len(rows))
                is_match = camids[queries][:, None] != gallery.camids[rows]
                owners, columns = np.broadcast_to(queries[:, None], shape), np.broadcast_to(rows, shape)
                found.append((owners.ravel(), columns.ravel(), scores.ravel(), is_match.ravel()))
        empty = (np.empty(0, np.int64), np.empty(0, np.int64), np.empty(0), np.empty(0, bool))
        owner, row, score, is_match = map(np.concatenate, zip(empty, *found))
        by_row = np.argsort(row, kind="stable")
        self.row, self.owner = row[by_row], owner[by_row]  # of all, by gallery row
        by_owner = np.argsort(owner[is_match], kind="stable")
        self.match_row, self.score = row[is_match][by_owner], score[is_match][by_owner]  # by query
        self.first = np.searchsorted(owner[is_match][by_owner], np.arange(len(query) + 1))
        self.above = np.zeros(len(self.score), np.int64)  # others that rank above

    def in_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """(queries, gallery rows) of the same people, with start <= row < stop."""
        part = slice(*np.searchsorted(self.row, [start, stop]))
        return self.owner[part], self.row[part]

    def ranks(self, query: int) -> np.ndarray:
        """Of the query's matches, from 1, ascending."""
        part = slice(self.first[query], self.first[query + 1])
        order = np.lexsort((self.match_row[part], -self.score[part]))
        return self.above[part][order] + np.arange(1, len(order) + 1)


def _match_ranks(
    query: np.ndarray,
    query_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery: _Gallery,
    bonus: csr_array | None,
    bar: tqdm[NoReturn],
) -> list[np.ndarray]:
    """For each query (Q, D), on the grid: ranks of its matches among the rows that the protocol keeps, ascending."""
    wanted = _Wanted(query, query_pids, query_camids, gallery)
    dimension = query.shape[1]
    # n roundings of n products move their sum by n * 2^-24 of the product of the lengths (Higham 2002, section 3.1);
    # lengths exceed 1 by no more than UNIT_TOLERANCE, and float32 thresholds are rounded too
    error = 1.001 * (min(dimension, _CHUNK) + -(-dimension // _CHUNK) + 2) * 2.0**-24
    if bonus is not None:
        owners = np.repeat(np.arange(len(query)), np.diff(wanted.first))
        wanted.score += bonus[owners, wanted.match_row]
        error += (1 + bonus.max()) * 2.0**-22
    width = max(1, _TILE // dimension)
    for start in range(0, len(gallery.kept), width):
        rows = gallery.kept[start : start + width]
        tile = _Tile(gallery, rows)
        owners, same = wanted.in_rows(rows[0], rows[-1] + 1)
        columns = np.searchsorted(rows, same)
        step = max(1, _PRODUCT // len(rows))
        for top in range(0, len(query), step):
            scores = tile.product(query[top : top + step])
            inside = (owners >= top) & (owners < top + step)
            scores[owners[inside] - top, columns[inside]] = -np.inf
            added = None if bonus is None else bonus[top : top + step][:, rows].toarray()
            if added is not None:
                scores += added
            for q, line in enumerate(scores, top):
                part = slice(wanted.first[q], wanted.first[q + 1])
                if part.start < part.stop:
                    counter = _Counter(line, error, tile, query[q], None if added is None else added[q - top])
                    places = np.searchsorted(rows, wanted.match_row[part])
                    wanted.above[part] += counter.above(wanted.score[part], places)
            bar.update(scores.size)
    return [wanted.ranks(q) for q in range(len(query))]


class _Counter(NamedTuple):
    """The scores of a query against a tile, to be counted."""

    scores: np.ndarray  # (G,) float32
    error: float  # of them, at most
    tile: _Tile
    query: np.ndarray  # (D,)
    added: np.ndarray | None  # (G,) float64, to the similarities

    def above(self, thresholds: np.ndarray, places: np.ndarray) -> np.ndarray:
        """How many rank above each of thresholds (m,), which are exact.

        An equal score ranks above where its position is below the threshold's place (m,).
        """
        low, high = ((thresholds + move).astype(np.float32) for move in (-self.error, self.error))
        near = np.sort(self.scores[self.scores > low.min()])
        count = len(near) - np.searchsorted(near, high, "right")  # that are above for certain
        unsettled = np.flatnonzero(len(near) - np.searchsorted(near, low, "right") > count)
        if len(unsettled):
            between = (self.scores > low[unsettled, None]) & (self.scores <= high[unsettled, None])
            columns = np.flatnonzero(between.any(axis=0))
            exact = self.tile.exact(self.query, columns)
            if self.added is not None:
                exact += self.added[columns]
            wanted, earlier = thresholds[unsettled, None], columns < places[unsettled, None]
            above = (exact > wanted) | ((exact == wanted) & earlier)
            count[unsettled] += np.count_nonzero(above & between[:, columns], axis=1)
        return count


class _Tile:
    """Gallery rows (G, D) on the grid, cut into chunks of dimensions."""

    def __init__(self, gallery: _Gallery, rows: np.ndarray) -> None:
        dimension = gallery.features.shape[1]
        self.chunks = [np.empty((len(rows), len(part)), np.float32) for part in _parts(dimension)]

        def fill(start: int) -> None:
            some = rows[start : start + _PIECE]
            in_line = some[-1] - some[0] == len(some) - 1
            features = gallery.features[slice(some[0], some[-1] + 1) if in_line else some]
            for chunk, part in zip(self.chunks, _parts(dimension)):
                round_to_grid(features[:, part.start : part.stop], gallery.norms[some], chunk[start : start + _PIECE])

        parallel_map(fill, range(0, len(rows), _PIECE))

    def product(self, query: np.ndarray) -> np.ndarray:
        """float32 scores (Q, G) of queries (Q, D): a product a chunk, added up by BLAS."""
        from scipy.linalg.blas import sgemm  # here, since searches need the rest of this file and no scipy

        scores = np.empty((len(self.chunks[0]), len(query)), np.float32, order="F")
        for n, (chunk, part) in enumerate(zip(self.chunks, _parts(query.shape[1]))):
            q = query[:, part.start : part.stop]
            scores = sgemm(1.0, chunk.T, q.T, beta=float(n > 0), c=scores, trans_a=True, overwrite_c=True)
        return scores.T

    def exact(self, query: np.ndarray, columns: np.ndarray) -> np.ndarray:
        """Scores (N,) float64 of a query (D,) and the rows at `columns` (N,)."""
        scores = np.zeros(len(columns))
        for chunk, part in zip(self.chunks, _parts(len(query))):
            factor = query[part.start : part.stop].astype(np.float64)
            for start in range(0, len(columns), _STEP):
                some = slice(start, start + _STEP)
                scores[some] += chunk[columns[some]].astype(np.float64) @ factor
        return scores


def _parts(dimension: int) -> list[range]:
    return [range(d, min(d + _CHUNK, dimension)) for d in range(0, dimension, _CHUNK)]


def _ids(values: np.ndarray, name: str, count: int) -> np.ndarray:
    values = np.asarray(values)
    if values.shape != (count,) or values.dtype.kind not in "iu":
        raise ReidError(f"{name} should be {count} integers, one a feature: got shape {values.shape} of {values.dtype}")
    return values.astype(np.int64)
