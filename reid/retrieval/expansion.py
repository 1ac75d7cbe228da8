"""Query expansion: a query, or a gallery image, becomes the mean of itself and its nearest gallery images.

Average query expansion is of Chum, Philbin, Sivic, Isard and Zisserman 2007, "Total Recall: Automatic Query Expansion
with a Generative Feature Model for Object Retrieval"; the weights, a power of the similarity, of Radenovic, Tolias and
Chum 2018, "Fine-tuning CNN Image Retrieval with No Human Annotation". Features alone decide: no pid and no camera.
"""

from __future__ import annotations

import numpy as np

from reid.core.types import ReidError
from reid.retrieval.knn_graph import Neighbours, nearest, nearest_of_each
from reid.retrieval.vectors import Stack, check_pair, check_set

_STEP = 1024  # rows at a time


def expand_queries(
    query: np.ndarray, gallery: np.ndarray, *, k: int, alpha: float = 0.0, progress: bool = False
) -> np.ndarray:
    """The mean of each query and its k nearest gallery rows, of unit length: (Q, D) float32.

    query (Q, D), gallery (G, D): features, float32 of unit length; all G where there are no more than k. The query
    weighs 1, a neighbour its cosine similarity to the power of alpha, 0 where that is negative; alpha 0 weighs all
    others equally.

    Raises ReidError on shapes that do not fit, NaN, rows not of unit length, and options out of range.
    """
    _check_options(k, alpha)
    check_pair(query, gallery)
    queries, base = Stack(query), Stack(gallery)
    return _means(queries, base, nearest(queries, base, k, progress=progress), alpha)


def expand_gallery(gallery: np.ndarray, *, k: int, alpha: float = 0.0, progress: bool = False) -> np.ndarray:
    """The same of each gallery row and its k nearest others: (G, D) float32, the expansion on the database's side.

    Features, options and errors as in `expand_queries`.
    """
    _check_options(k, alpha)
    check_set(gallery, "gallery")
    base = Stack(gallery)
    found = nearest_of_each(base, k + 1, progress=progress)
    return _means(base, base, Neighbours(found.rows[:, 1:], found.scores[:, 1:], found.lowest), alpha)


def _means(own: Stack, base: Stack, found: Neighbours, alpha: float) -> np.ndarray:
    """Of each row of own (N, D) and the rows of base found for it: (N, D) of unit length."""
    weights = np.where(found.scores > 0, np.maximum(found.scores, 0).astype(np.float64) ** alpha, 0)
    means = np.empty((len(own), own.dimension), np.float32)
    for start in range(0, len(own), _STEP):
        part = slice(start, start + _STEP)
        total = own[part].astype(np.float64)
        for rows, weight in zip(found.rows[part].T, weights[part].T):
            total += weight[:, None] * base.take(rows)
        means[part] = total / np.linalg.norm(total, axis=1, keepdims=True)
    return means


def _check_options(k: int, alpha: float) -> None:
    if k < 1:
        raise ReidError(f"expansion takes a number of neighbours, at least 1: got {k}")
    if not 0 <= alpha < np.inf:
        raise ReidError(f"alpha is the power of a neighbour's similarity, finite and at least 0: got {alpha}")
