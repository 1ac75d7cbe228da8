"""Exact nearest neighbours by cosine similarity, of one set among another or among itself, in blocks.

Float32 products pick a few candidates a row, whose similarities are then summed dimension by dimension in one fixed
order: so equal rows score equally, and neither blocks nor threads change a neighbour or a score. What the candidates
cannot vouch for (many equal rows, say) is searched again, until nothing outside could have been nearer.

A set among itself needs only half of its square. Where most of the features' energy lies in a few directions, as it
does for a trained network's, the product is taken there, with the lengths of what is left of both rows as one more
dimension: by Cauchy-Schwarz that bounds the similarity from above, and the candidates are as safe as before.
"""

from __future__ import annotations

from typing import NamedTuple, NoReturn

import numpy as np
from tqdm import tqdm

from reid.core.threads import multiply, parallel_map, pieces, threads_of_ours
from reid.retrieval.vectors import Stack

_BLOCK = 2048  # rows of a product, and columns
_PAIRS = 128  # of rows, compared at a time
_JOB = 64 * _PAIRS  # of a thread
_SPARE = 8  # candidates beyond those asked for
_FIRST = 3  # candidates for the lowest that are compared first
_REST = 0.05  # of the energy, at most, outside the directions
_NARROW = 64  # dimensions: below, the whole product is taken
_WIDE = 0.4  # length outside the directions, of a row that bounds settle too little of
_SAMPLE = 2048  # rows that directions are guessed from
_GUESS = 1024  # and floors
_ROUNDING = 2.0**-24


class Neighbours(NamedTuple):
    """Of each of N rows, k others."""

    rows: np.ndarray  # (N, k) int32, the nearest first, equally near ones ascending
    scores: np.ndarray  # (N, k) float32, cosine similarity
    lowest: np.ndarray  # (N,) float32, cosine similarity to the farthest of all


def similarities(left: Stack, right: Stack, left_rows: np.ndarray, right_rows: np.ndarray) -> np.ndarray:
    """Cosine similarities (n,) float32 of the pairs of rows (n,) and (n,)."""
    found = np.empty(len(left_rows), np.float32)
    for left_part, lefts, left_places in left.split(left_rows):
        for right_part, rights, right_places in right.split(right_rows[lefts]):
            pairs, at = lefts[rights], left_places[rights]

            def compare(start: int) -> None:
                for some in (slice(n, n + _PAIRS) for n in range(start, start + _JOB, _PAIRS)):
                    a, b = left_part[at[some]], right_part[right_places[some]]  # noqa: B023
                    found[pairs[some]] = np.einsum("nd,nd->n", a, b)  # noqa: B023

            parallel_map(compare, range(0, len(pairs), _JOB))
    return found


def nearest(query: Stack, base: Stack, k: int, *, progress: bool = False) -> Neighbours:
    """The k nearest rows of base (M, D) to each of query (N, D), or all M where there are no more."""
    with threads_of_ours(), _bar(len(query) * len(base), progress) as bar:
        k = min(k, len(base))
        products = _whole(query, base)
        best, lowest = _scan(products, k + _SPARE, 1, bar, itself=False)
        return _settled(query, base, products, k, best, lowest, itself=False)


def nearest_of_each(features: Stack, k: int, *, progress: bool = False) -> Neighbours:
    """The k nearest rows to each of features (N, D) among themselves, or all N where there are no more.

    Each row is the first of its own, with similarity 1.
    """
    count = len(features)
    with threads_of_ours(), _bar(count * (count + 1) // 2, progress) as bar:
        others = min(max(k, 2), count) - 1
        bounds = _bounds(features) if count > 2 * _BLOCK and features.dimension >= _NARROW else None
        products, sizes = bounds or _whole(features, features), (others + _SPARE, 1)
        if bounds is not None:
            sizes = others + min(60 + count // 1000, 160), min(16 + count // 3000, 48)  # more, as bounds settle less
        best, lowest = _scan(products, *sizes, bar, itself=True)
        found = _settled(features, features, products, others, best, lowest, itself=True)
    itself = np.arange(count, dtype=np.int32)[:, None]
    rows, scores = np.hstack([itself, found.rows]), np.hstack([np.ones((count, 1), np.float32), found.scores])
    return Neighbours(rows[:, :k], scores[:, :k], found.lowest)


class _Products(NamedTuple):
    """Rows whose products bound the similarities of N rows with M others, but for an error."""

    left: Stack | np.ndarray  # of N
    right: Stack | np.ndarray  # of M
    error: float  # at most; that of the similarities themselves too
    outside: np.ndarray | None  # (N,) of each row, what products leave out where left is right; None: nothing

    def lower(self, scores: np.ndarray, rows: slice | np.ndarray, columns: slice) -> np.ndarray:
        """Bounds from below, of products (n, m) of rows (n,) and columns (m,), which are bounds from above."""
        if self.outside is None:
            return scores
        bounds: np.ndarray = np.multiply.outer(-2 * self.outside[rows], self.outside[columns])
        bounds += scores
        return bounds


def _whole(query: Stack, base: Stack) -> _Products:
    return _Products(query, base, 2 * _error(base.dimension), None)


class _Best:
    """The `size` highest scores above a floor of each of N rows, among those added, and their columns.

    No other score is above the floor, which rises with what is held.
    """

    def __init__(self, floor: np.ndarray, size: int) -> None:
        self.floor = floor
        self.scores = np.full((len(floor), size), -np.inf, np.float32)
        self.columns = np.full((len(floor), size), -1, np.int32)

    def add(self, rows: slice, columns: slice, scores: np.ndarray, *, transposed: bool = False) -> None:
        """scores (n, w) of n rows and w columns; (w, n) where transposed."""
        row, place, values = _hits(scores, self.floor[rows], transposed, np.greater)
        self._hold(rows.start + row, columns.start + place, values)

    def add_lower(
        self, products: _Products, rows: slice, columns: slice, scores: np.ndarray, *, transposed: bool = False
    ) -> None:
        """The negative of products.lower(scores, rows, columns), likewise, worked out where it may be held only."""
        floor = reach = -self.floor[rows]
        if products.outside is not None:
            reach = floor + 2 * products.outside[rows] * products.outside[columns].max() + np.float32(1e-6)
        row, place, values = _hits(scores, reach, transposed, np.less)
        if products.outside is not None:
            values -= 2 * products.outside[rows.start + row] * products.outside[columns.start + place]
            near = values < floor[row]
            row, place, values = row[near], place[near], values[near]
        self._hold(rows.start + row, columns.start + place, -values)

    def _hold(self, rows: np.ndarray, columns: np.ndarray, scores: np.ndarray) -> None:
        """Scores (m,) of rows (m,), ascending, and columns (m,)."""
        if not len(rows):
            return
        size = self.scores.shape[1]
        first = np.flatnonzero(np.append(True, rows[1:] != rows[:-1]))
        touched, counts = rows[first], np.diff(np.append(first, len(rows)))
        position = size + np.arange(len(rows)) - np.repeat(first, counts)
        of_row = np.repeat(np.arange(len(touched)), counts)
        more = counts.max()
        held = np.full((len(touched), size + more), -np.inf, np.float32)
        places = np.full((len(touched), size + more), -1, np.int32)
        held[:, :size], places[:, :size] = self.scores[touched], self.columns[touched]
        held[of_row, position], places[of_row, position] = scores, columns
        kept = np.argpartition(held, more, axis=1)[:, more:]
        self.scores[touched] = np.take_along_axis(held, kept, axis=1)
        self.columns[touched] = np.take_along_axis(places, kept, axis=1)
        self.floor[touched] = np.maximum(self.floor[touched], self.scores[touched].min(axis=1))


def _hits(
    scores: np.ndarray, reach: np.ndarray, transposed: bool, beyond: np.ufunc
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(row, column, score), by row, of scores (n, w), or (w, n) transposed, beyond the reach (n,) of their row."""
    hit = np.flatnonzero(beyond(scores, reach if transposed else reach[:, None]))
    row, place = np.divmod(hit, scores.shape[1])
    if transposed:
        order = np.argsort(place.astype(np.uint16), kind="stable")
        row, place = place[order], row[order]
    return (row, place, scores[place, row]) if transposed else (row, place, scores[row, place])


def _scan(
    products: _Products, size: int, lowest_size: int, bar: tqdm[NoReturn], *, itself: bool
) -> tuple[_Best, _Best]:
    """The highest products of each row of the left, and the lowest bounds from below, negative."""
    query, base = products.left, products.right
    floors = _floors(products, size, lowest_size)
    best, lowest = _Best(floors[0], size), _Best(floors[1], lowest_size)
    for start in range(0, len(base), _BLOCK):
        right = base[start : start + _BLOCK]
        for top in range(0, start + 1 if itself else len(query), _BLOCK):
            left = query[top : top + _BLOCK]
            square = _Square(best, lowest, products, top, left, start, right, itself and top == start)
            parallel_map(square.along_rows, pieces(square.scores.shape[0]))
            if itself and top < start:
                parallel_map(square.along_columns, pieces(square.scores.shape[1]))
            bar.update(square.scores.size)
    return best, lowest


class _Square:
    """Products of some rows of the left, from `top`, and some of the right, from `start`, a piece at a time."""

    def __init__(
        self,
        best: _Best,
        lowest: _Best,
        products: _Products,
        top: int,
        left: np.ndarray,
        start: int,
        right: np.ndarray,
        diagonal: bool,
    ) -> None:
        """diagonal: of the same rows, which are no neighbours of themselves."""
        self.best, self.lowest, self.products = best, lowest, products
        self.top, self.left, self.start, self.right, self.diagonal = top, left, start, right, diagonal
        self.scores = np.empty((len(left), len(right)), np.float32)

    def along_rows(self, piece: slice) -> None:
        """Multiplies, and keeps what is high and low in each row."""
        scores = np.matmul(self.left[piece], self.right.T, out=self.scores[piece])
        rows, columns = _moved(piece, self.top), _moved(slice(0, len(self.right)), self.start)
        self.lowest.add_lower(self.products, rows, columns, scores)
        if self.diagonal:
            scores[np.arange(len(scores)), np.arange(piece.start, piece.stop)] = -np.inf
        self.best.add(rows, columns, scores)

    def along_columns(self, piece: slice) -> None:
        """Keeps what is high and low in each column, once all rows are multiplied."""
        rows, columns = _moved(slice(0, len(self.left)), self.top), _moved(piece, self.start)
        self.lowest.add_lower(self.products, columns, rows, self.scores[:, piece], transposed=True)
        self.best.add(columns, rows, self.scores[:, piece], transposed=True)


def _moved(part: slice, by: int) -> slice:
    return slice(part.start + by, part.stop + by)


def _floors(products: _Products, *sizes: int) -> tuple[np.ndarray, np.ndarray]:
    """Guesses (N,) above which lie about half as many products again, and negative bounds from below, as sizes say."""
    query, base = products.left, products.right
    step = -(-len(base) // _GUESS)
    sample = _take(base, np.arange(0, len(base), step))
    ranks = [max(4, -(-3 * size // (2 * step))) for size in sizes]
    floors = np.full((2, len(query)), -np.inf, np.float32)

    def guess(part: slice) -> None:
        scores = query[part] @ sample.T
        lower = -products.lower(scores, part, slice(None, None, step))
        for floor, values, rank in zip(floors, (scores, lower), ranks):
            floor[part] = np.partition(values, -rank, axis=1)[:, -rank]

    if max(ranks) < len(sample):
        parallel_map(guess, pieces(len(query)))
    return floors[0], floors[1]


def _settled(
    query: Stack, base: Stack, products: _Products, k: int, best: _Best, lowest: _Best, *, itself: bool
) -> Neighbours:
    """The k nearest and the lowest of the candidates, or of everything where these do not settle it."""
    rows, scores = np.empty((len(query), k), np.int32), np.empty((len(query), k), np.float32)
    low = np.empty(len(query), np.float32)
    for start in range(0, len(query), _BLOCK):
        part = np.arange(start, min(start + _BLOCK, len(query)))
        low[part] = -_refined(query, base, part, lowest, _FIRST, 1, products.error, -1)[1].max(axis=1)
        columns, found = _refined(query, base, part, best, k + _SPARE, k, products.error)
        order = np.lexsort((columns, -found))[:, :k]
        rows[part], scores[part] = (np.take_along_axis(values, order, axis=1) for values in (columns, found))
    unsettled = best.floor > -np.inf
    if unsettled.any():
        unsettled &= best.floor + products.error >= scores[:, -1]
    unsettled |= (lowest.floor > -np.inf) & (low > products.error - lowest.floor)
    wide = np.zeros(len(query), bool) if products.outside is None else products.outside > _WIDE
    for these, which in ((products, unsettled & ~wide), (_whole(query, base), unsettled & wide)):
        for start in range(0, which.sum(), _BLOCK):
            part = np.flatnonzero(which)[start : start + _BLOCK]
            known = scores[part, -1], low[part]
            rows[part], scores[part], low[part] = _searched(query, base, these, part, k, *known, itself=itself)
    return Neighbours(rows, scores, low)


def _refined(
    query: Stack, base: Stack, rows: np.ndarray, best: _Best, first: int, k: int, error: float, sign: int = 1
) -> tuple[np.ndarray, np.ndarray]:
    """Candidates (n, m) of rows (n,), and their similarities times sign; -inf for those that bounds rule out.

    The first ones are compared, then those whose bound reaches the k-th of these.
    """
    order = np.argsort(-best.scores[rows], axis=1)
    columns, bounds = (np.take_along_axis(values[rows], order, axis=1) for values in (best.columns, best.scores))
    found = _compared(query, base, rows, columns[:, :first], sign)
    if columns.shape[1] > first:
        reached = np.partition(found, -k, axis=1)[:, -k, None]
        more = np.where(bounds >= reached - error, columns, -1)[:, first:]
        found = np.hstack([found, _compared(query, base, rows, more, sign)])
    return columns, found


def _compared(query: Stack, base: Stack, rows: np.ndarray, columns: np.ndarray, sign: int = 1) -> np.ndarray:
    """Similarities (n, m) float32 of rows (n,) and columns (n, m), times sign; -inf where the column is -1."""
    found = np.full(columns.shape, -np.inf, np.float32)
    row, place = np.nonzero(columns >= 0)
    found[row, place] = sign * similarities(query, base, rows[row], columns[row, place])
    return found


def _searched(
    query: Stack,
    base: Stack,
    products: _Products,
    rows: np.ndarray,
    k: int,
    reach: np.ndarray,
    low: np.ndarray,
    *,
    itself: bool,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Neighbours and the lowest similarity of some rows of query (n,), compared with all that products leave open.

    reach, low (n,): similarities that the k-th nearest has at least, and the farthest at most.
    """
    left, error = _take(products.left, rows), products.error
    found: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
    for start in range(0, len(base), _BLOCK):
        columns = slice(start, start + _BLOCK)
        scores = multiply(left, products.right[columns].T)
        lower = products.lower(scores, rows, columns)
        if not start:
            rank = min(k + itself, scores.shape[1])
            if rank == k + itself:
                reach = np.maximum(reach, np.partition(lower, -rank, axis=1)[:, -rank] - error)
            low = np.minimum(low, scores.min(axis=1) + error)
        is_open = (scores >= reach[:, None] - error) | (lower <= low[:, None] + error)
        row, column = np.divmod(np.flatnonzero(is_open), scores.shape[1])
        column += start
        found.append((row, column, similarities(query, base, rows[row], column)))
    row, column, score = map(np.concatenate, zip(*found))
    low = np.full(len(rows), np.inf, np.float32)
    np.minimum.at(low, row, score)
    if itself:
        other = rows[row] != column
        row, column, score = row[other], column[other], score[other]
    order = np.lexsort((column, -score, row))
    first = np.searchsorted(row[order], np.arange(len(rows)))
    order = order[first[:, None] + np.arange(k)]
    return column[order], score[order], low


def _take(rows: Stack | np.ndarray, which: np.ndarray) -> np.ndarray:
    return rows.take(which) if isinstance(rows, Stack) else rows[which]


def _bounds(features: Stack) -> _Products | None:
    """Rows (N, d + 1) whose products bound the similarities from above, or None where that takes too many d.

    The last is what of a row's length lies outside d orthonormal directions, those of the most energy or about so
    (Halko, Martinsson and Tropp 2011, "Finding Structure with Randomness").
    """
    rng = np.random.default_rng(0)
    sample = features.take(np.sort(rng.choice(len(features), min(_SAMPLE, len(features)), replace=False)))
    for share in (16, 8, 4):
        basis = rng.standard_normal((features.dimension, features.dimension // share), np.float32)
        for _ in range(3):
            basis = _orthonormal(multiply(sample.T, multiply(sample, basis)))
        if ((sample @ basis) ** 2).sum() > (1 - _REST) * (sample**2).sum():
            break
    else:
        return None
    directions = _orthonormal(basis.astype(np.float64))
    bounds = np.empty((len(features), directions.shape[1] + 1), np.float32)

    def fill(part: slice) -> None:
        rows = features[part].astype(np.float64)
        inside = rows @ directions
        rest = np.maximum((rows**2).sum(axis=1) - (inside**2).sum(axis=1), 0)
        bounds[part] = np.column_stack([inside, np.sqrt(rest)])

    parallel_map(fill, pieces(len(features)))
    return _Products(bounds, bounds, _error(bounds.shape[1]) + _error(features.dimension), bounds[:, -1])


def _orthonormal(basis: np.ndarray) -> np.ndarray:
    """(D, m) that spans what basis (D, n) does, up to m <= n."""
    energy, rotation = np.linalg.eigh((basis.T @ basis).astype(np.float64))
    kept = energy > 1e-8 * energy[-1]
    spanning: np.ndarray = basis @ (rotation[:, kept] / np.sqrt(energy[kept])).astype(basis.dtype)
    return spanning


def _error(dimension: int) -> float:
    """Of a float32 sum of products, of rows of about unit length (Higham 2002, section 3.1)."""
    return 1.001 * (dimension + 4) * _ROUNDING


def _bar(total: int, progress: bool) -> tqdm[NoReturn]:
    return tqdm(total=total, desc="neighbours", unit="pair", unit_scale=True, disable=not progress)
