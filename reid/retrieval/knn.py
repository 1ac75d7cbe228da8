"""Exact search: every vector is looked at, and equal images score equally.

A float32 product finds the candidates, and the few that can be among the nearest are multiplied again on the grid of
`reid.retrieval.evaluate`, where no sum is ever rounded. So the answer depends on the vectors alone: not on the number
of
queries, on where in the gallery an image stands, on threads, or on the processor. The first product is numpy's, at its
speed; `faiss.knn` took 3.5 times as long for 256 queries on 60,000 mapped vectors of 2,048 dimensions (2 cores).

Another kind of index is another function of the signature of `nearest`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from reid.retrieval.vectors import inner, product_error, take

_QUERIES = 1024  # at a time
_PRODUCT = 2**24  # float32 scores at a time: 64 MiB
_FIRST = 2048  # rows of the first block, from which on `least` leaves most of the others out
_VALUES = 2**22  # of vectors in float64 at a time: 32 MiB
_DENSE = 4  # where one of so many images is asked for, all are multiplied exactly


def nearest(
    queries: np.ndarray, segments: Sequence[np.ndarray], chosen: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The top_k chosen rows that are nearest to each query by inner product, equal scores in order of row.

    queries (Q, D) and segments, which are (N_i, D) and N rows in all: float32 of unit length. chosen: (N,) bool, at
    least top_k of them true. Returns rows (Q, top_k) int64 of the N, and scores (Q, top_k) float32 in [-1, 1].
    """
    rows = np.empty((len(queries), top_k), np.int64)
    scores = np.empty((len(queries), top_k), np.float64)
    dense = top_k * _DENSE >= np.count_nonzero(chosen)
    step = max(1, min(_QUERIES, 2 * _VALUES // max(1, len(chosen)))) if dense else _QUERIES
    for start in range(0, len(queries), step):
        part = slice(start, start + step)
        search = _all if dense else _candidates
        rows[part], scores[part] = search(np.ascontiguousarray(queries[part]), segments, chosen, top_k)
    return rows, np.clip(scores, -1, 1).astype(np.float32)


def _all(
    queries: np.ndarray, segments: Sequence[np.ndarray], chosen: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Every chosen row's exact score, sorted."""
    places, scores = [], []
    step = max(1, _VALUES // queries.shape[1])
    for start, rows, vectors in _blocks(segments, chosen, step, step):
        scores.append(inner(queries, vectors if rows is None else vectors[rows]))
        places.append(start + (np.arange(len(vectors)) if rows is None else rows))
    where, values = np.concatenate(places), np.concatenate(scores, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")[:, :top_k]
    return where[order], np.take_along_axis(values, order, axis=1)


def _candidates(
    queries: np.ndarray, segments: Sequence[np.ndarray], chosen: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """Only those rows are multiplied exactly that come within the float32 product's error of the top_k-th."""
    margin = 2 * product_error(queries.shape[1])
    best = np.full((len(queries), top_k), -np.inf, np.float32)  # the top_k scores so far, unsorted
    least = np.full(len(queries), -np.inf, np.float32)  # below it, nothing can be among them
    kept: list[list[tuple[np.ndarray, np.ndarray]]] = [[] for _ in queries]
    for start, rows, vectors in _blocks(segments, chosen, max(_FIRST, 8 * top_k), max(4096, _PRODUCT // len(queries))):
        if rows is not None and len(rows) < len(vectors) // 2:
            vectors, places = vectors[rows], start + rows
        else:
            places = np.arange(start, start + len(vectors))
        product = (vectors @ queries[0])[None] if len(queries) == 1 else queries @ vectors.T
        if rows is not None and len(vectors) != len(rows):
            out = np.ones(len(vectors), bool)
            out[rows] = False
            product[:, out] = -np.inf
        for q in np.flatnonzero(product.max(axis=1) >= least):
            hits = np.flatnonzero(product[q] >= least[q])
            values = product[q, hits]
            joined = np.concatenate([best[q], values])
            best[q] = np.partition(joined, len(joined) - top_k)[-top_k:]
            least[q] = best[q].min() - margin
            near = (values >= least[q]) & (values > -np.inf)
            kept[q].append((places[hits[near]], values[near]))
    found = np.empty((len(queries), top_k), np.int64)
    scores = np.empty((len(queries), top_k), np.float64)
    for i, pieces in enumerate(kept):
        places, values = (np.concatenate(x) for x in zip(*pieces))
        places = places[values >= least[i]]  # ascending
        exact = inner(queries[i : i + 1], take(segments, places))[0]
        order = np.argsort(-exact, kind="stable")[:top_k]
        found[i], scores[i] = places[order], exact[order]
    return found, scores


def order(
    query: np.ndarray, segments: Sequence[np.ndarray], places: np.ndarray, top_k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The top_k nearest of some rows, ascending, to one query (1, D): rows and scores, (top_k,)."""
    vectors = take(segments, places)
    rough = vectors @ query[0]
    least = np.partition(rough, len(rough) - top_k)[-top_k] - 2 * product_error(query.shape[1])
    near = np.flatnonzero(rough >= least)
    scores = inner(query, vectors[near])[0]
    best = np.argsort(-scores, kind="stable")[:top_k]
    return places[near[best]], np.clip(scores[best], -1, 1).astype(np.float32)


def _blocks(
    segments: Sequence[np.ndarray], chosen: np.ndarray, first: int, step: int
) -> Iterator[tuple[int, np.ndarray | None, np.ndarray]]:
    """(row of its first vector, which of its vectors are chosen or None for all, vectors) of blocks with any chosen.

    The first has `first` vectors at most, the others `step`.
    """
    offset, size = 0, min(first, step)
    for vectors in segments:
        start = 0
        while start < len(vectors):
            block = np.asarray(vectors[start : start + size])
            mask = chosen[offset + start : offset + start + len(block)]
            rows = None if mask.all() else np.flatnonzero(mask)
            if rows is None or len(rows):
                yield offset + start, rows, block
                size = step
            start += len(block)
        offset += len(vectors)
