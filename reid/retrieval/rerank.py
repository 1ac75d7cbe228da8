"""Re-ranking by k-reciprocal neighbours, on neighbour lists: memory grows with rows times neighbours, not with the
square of the rows.

Zhong, Zheng, Cao and Li 2017, "Re-ranking Person Re-identification with k-reciprocal Encoding", CVPR: two images are
alike where they have the same neighbours. The paper's distance of query q and gallery image g, to be sorted ascending,
is (1 - lambda) J + lambda d. J is the Jaccard distance of their encoded neighbourhoods, over the union of queries and
gallery. d is the squared Euclidean distance, divided by the largest M that q has in the union; of unit rows it is
(2 - 2 cos) / M. So, divided by 2 lambda / M, the distance is a constant of the query less

    cos + bonus,    bonus = (1 - lambda) (1 - J) M / (2 lambda)

which ranks the same, descending, and of which bonus is zero wherever two neighbourhoods have nothing in common. A row
is its own first neighbour; equally near ones rank by their place, queries before the gallery.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, vstack
from tqdm import tqdm

from reid.core.threads import parallel_map
from reid.core.types import ReidError
from reid.retrieval.knn_graph import Neighbours, nearest_of_each, similarities
from reid.retrieval.vectors import Stack, check_pair, check_set

K1, K2, LAMBDA = 20, 6, 0.3  # the paper's

_ROWS = 1024  # encoded at a time
_PAIRS = 2**19  # of encoded neighbours that are compared at a time
_SUMS = 2**21  # similarities at a time: 16 MiB


def rerank(
    query: np.ndarray,
    gallery: np.ndarray,
    *,
    k1: int = K1,
    k2: int = K2,
    lambda_: float = LAMBDA,
    progress: bool = False,
) -> csr_array:
    """What re-ranking adds to the cosine similarities: (Q, G) float32, at least 0.

    query (Q, D), gallery (G, D): features, float32 of unit length. k1: neighbours that are encoded, k2: of which
    encodings are averaged, lambda_ in (0, 1]: weight of the distance itself; at 1 nothing is added.

    Raises ReidError on shapes that do not fit, NaN, rows not of unit length, and options out of range.
    """
    _check_options(k1, k2, lambda_)
    check_pair(query, gallery)
    features = Stack(query, gallery)
    lists = nearest_of_each(features, max(k1 + 1, k2), progress=progress)
    queries = np.arange(len(query))
    similar = _Encoder(features, lists, k1, k2).jaccard(queries, progress)
    return _bonus(similar[:, len(query) :], lists.lowest[queries], lambda_)


def jaccard(features: np.ndarray, *, k1: int = K1, k2: int = K2, progress: bool = False) -> csr_array:
    """Similarities 1 - J of the encoded neighbourhoods of features (N, D): (N, N) float32 in [0, 1], symmetric.

    Features, options and errors as in `rerank`.
    """
    _check_options(k1, k2, LAMBDA)
    check_set(features, "features")
    stack = Stack(features)
    lists = nearest_of_each(stack, max(k1 + 1, k2), progress=progress)
    similar = _Encoder(stack, lists, k1, k2).jaccard(np.arange(len(features)), progress)
    similar.setdiag(1)
    return similar


class _Encoder:
    """Encodes rows of N features by their k-reciprocal neighbours, and compares the codes.

    lists: at least the k1 + 1 nearest, and the k2 nearest, of each row.
    """

    def __init__(self, features: Stack, lists: Neighbours, k1: int, k2: int) -> None:
        self.features, self.k2, self.count = features, k2, len(features)
        self.near, self.scores = lists.rows[:, : k1 + 1], lists.scores[:, : k1 + 1]
        self.half = lists.rows[:, : round(k1 / 2) + 1]  # to even, as numpy's
        self.mean = lists.rows[:, :k2]
        self.farthest = np.maximum(2 - 2 * lists.lowest.astype(np.float64), 1e-12)

    def jaccard(self, queries: np.ndarray, progress: bool = False) -> csr_array:
        """Similarities (n, N) float32 of the codes of rows `queries` (n,) with those of all rows."""
        known = np.unique(self.mean[queries])
        codes = self._encoded(known, progress)
        wanted = self._averaged(queries, known, codes)
        reached = self.reached(wanted)
        more = np.setdiff1d(self.mean[reached], known)
        codes = vstack([codes, self._encoded(more, progress)], format="csr")
        lists = self._averaged(reached, np.concatenate([known, more]), codes).tocsc()
        return self._compared(wanted, reached, lists, progress)

    def reached(self, codes: csr_array) -> np.ndarray:
        """Rows, ascending, beyond which nothing has a code that overlaps one of `codes` (n, N)."""
        shared = np.unique(codes.indices)
        beside = np.zeros(self.count, bool)
        for start in range(0, len(shared), _ROWS):
            beside[self.near[self.half[shared[start : start + _ROWS]]]] = True
        return np.flatnonzero(beside[self.mean].any(axis=1))

    def _encoded(self, rows: np.ndarray, progress: bool) -> csr_array:
        """Codes (n, N) of rows (n,): exp(-d) over a row's k-reciprocal neighbours and the close ones of these."""
        starts = range(0, len(rows), _ROWS)
        parts: list[csr_array] = [csr_array((0, self.count), dtype=np.float32)] * (len(starts) + 1)
        with tqdm(total=len(rows), desc="encode", disable=not progress) as bar:

            def encode(n: int) -> None:
                part = rows[starts[n] : starts[n] + _ROWS]
                parts[n + 1] = self._encode(part)
                bar.update(len(part))

            parallel_map(encode, range(len(starts)))
        return vstack(parts, format="csr")

    def _encode(self, rows: np.ndarray) -> csr_array:
        near = self.near[rows]
        mutual = _holds(self.near, near, rows)  # (n, k1 + 1)
        owner, place = np.nonzero(mutual)
        members = np.where(mutual, near, -1)

        friends, which = np.unique(near[owner, place], return_inverse=True)
        circle = self.half[friends]
        circle = np.where(_holds(self.half, circle, friends), circle, -1)[which]  # (m, k1 / 2 + 1) of each pair
        inside = circle >= 0
        shared = np.zeros(inside.shape, bool)
        for column in members.T:
            shared |= circle == column[owner, None]
        shared &= inside
        joins = 3 * shared.sum(axis=1) > 2 * inside.sum(axis=1)

        added = inside & joins[:, None] & ~shared
        pair, place_in_circle = np.nonzero(added)
        keys = np.unique(owner[pair] * self.count + circle[pair, place_in_circle])
        more_owner, more = np.divmod(keys, self.count)
        owner = np.concatenate([owner, more_owner])
        column = np.concatenate([near[mutual], more])
        cosine = np.concatenate([self.scores[rows][mutual], self._cosine(rows, near, more_owner, more)])

        weight = np.exp(-np.maximum(2 - 2 * cosine.astype(np.float64), 0) / self.farthest[rows[owner]])
        weight /= np.bincount(owner, weight, minlength=len(rows))[owner]
        return csr_array((weight.astype(np.float32), (owner, column)), shape=(len(rows), self.count))

    def _cosine(self, rows: np.ndarray, near: np.ndarray, owner: np.ndarray, column: np.ndarray) -> np.ndarray:
        """Similarities (m,) of rows[owner] (m,) and rows `column` (m,), from the lists where these hold them."""
        listed = near[owner] == column[:, None]
        found: np.ndarray = self.scores[rows[owner], listed.argmax(axis=1)]
        other = np.flatnonzero(~listed.any(axis=1))
        found[other] = similarities(self.features, self.features, rows[owner[other]], column[other])
        return found

    def _averaged(self, rows: np.ndarray, encoded: np.ndarray, codes: csr_array) -> csr_array:
        """Means (n, N) of the codes of the k2 nearest of rows (n,); codes (m, N) are of the rows `encoded` (m,)."""
        place = np.empty(self.count, np.int64)
        place[encoded] = np.arange(len(encoded))
        near = self.mean[rows]
        starts = np.arange(0, near.size + 1, near.shape[1])
        weights = np.full(near.size, 1 / near.shape[1], np.float32)
        mean = csr_array((weights, place[near].ravel(), starts), shape=(len(rows), len(encoded))) @ codes
        mean.sort_indices()
        return mean

    def _compared(self, codes: csr_array, reached: np.ndarray, lists: csr_array, progress: bool) -> csr_array:
        """m / (2 - m) where m is the sum of the minima of codes (n, N) and those of `reached` rows, `lists` (r, N)."""
        length = np.diff(lists.indptr)
        pairs = np.append(0, np.cumsum(length[codes.indices]))[codes.indptr]  # of the rows before
        starts = [0]
        while starts[-1] < codes.shape[0]:
            start = starts[-1]
            stop = int(np.searchsorted(pairs, pairs[start] + _PAIRS, "right")) - 1
            starts.append(min(max(stop, start + 1), start + max(1, _SUMS // len(reached))))
        parts: list[csr_array] = [csr_array((0, self.count), dtype=np.float32)] * len(starts)
        with tqdm(total=codes.shape[0], desc="compare", disable=not progress) as bar:

            def compare(n: int) -> None:
                parts[n + 1] = self._compare(codes[starts[n] : starts[n + 1]], reached, lists, length)
                bar.update(starts[n + 1] - starts[n])

            parallel_map(compare, range(len(starts) - 1))
        return vstack(parts, format="csr")

    def _compare(self, codes: csr_array, reached: np.ndarray, lists: csr_array, length: np.ndarray) -> csr_array:
        counts = length[codes.indices]
        ends = np.cumsum(counts)
        entry = np.arange(ends[-1]) + np.repeat(lists.indptr[codes.indices] - (ends - counts), counts)
        smaller = np.minimum(lists.data[entry], np.repeat(codes.data, counts))
        owner = np.repeat(np.arange(codes.shape[0]) * len(reached), np.diff(codes.indptr))
        places = lists.indices[entry] + np.repeat(owner, counts)
        sums = np.bincount(places, smaller, minlength=codes.shape[0] * len(reached))
        found = np.flatnonzero(sums)
        row, column = np.divmod(found, len(reached))
        common = np.minimum(sums[found], 1)
        starts = np.searchsorted(row, np.arange(codes.shape[0] + 1))
        values = (common / (2 - common)).astype(np.float32)
        return csr_array((values, reached[column], starts), shape=codes.shape)


def _holds(lists: np.ndarray, rows: np.ndarray, wanted: np.ndarray) -> np.ndarray:
    """Whether the list of each of rows (n, m) has wanted (n,) in it: bool (n, m)."""
    found = np.zeros(rows.shape, bool)
    for column in lists.T:
        found |= column[rows] == wanted[:, None]
    return found


def _bonus(similar: csr_array, lowest: np.ndarray, lambda_: float) -> csr_array:
    """Of Jaccard similarities (Q, G) and the lowest cosine of each query (Q,)."""
    scale = (1 - lambda_) / lambda_ * np.maximum(1 - lowest, 0)
    similar.data *= np.repeat(scale.astype(np.float32), np.diff(similar.indptr))
    return similar


def _check_options(k1: int, k2: int, lambda_: float) -> None:
    if k1 < 1 or k2 < 1:
        raise ReidError(f"k1 and k2 are numbers of neighbours, at least 1: got {k1} and {k2}")
    if not 0 < lambda_ <= 1:
        raise ReidError(f"lambda is the weight of the distance itself, above 0 and at most 1: got {lambda_}")
