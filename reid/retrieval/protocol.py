"""Variants of the evaluation: what a report calls them, several images a query, one camera against another alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.core.types import JUNK, ReidError
from reid.retrieval.evaluate import Scores, evaluate

if TYPE_CHECKING:
    from scipy.sparse import csr_array

POOLS = ("mean", "max")


@dataclass(frozen=True)
class Method:
    """How query and gallery are compared, beyond the cosine similarity of one image with another."""

    same_camera: bool = False  # images by the query's own camera count, too
    distractors: bool = False  # the gallery holds the data set's further images of nobody
    multi_query: str | None = None  # one of POOLS
    expand: int = 0  # nearest gallery images that a query is joined with; 0: none
    alpha: float = 3.0  # weight of each is similarity ** alpha
    expand_gallery: bool = False  # each gallery image likewise
    rerank: bool = False
    k1: int = 20
    k2: int = 6
    lambda_: float = 0.3

    def __str__(self) -> str:
        parts = ["cosine similarity"]
        if self.same_camera:
            parts.append("images by the query's own camera count")
        if self.distractors:
            parts.append("further distractors in the gallery")
        if self.multi_query:
            parts.append(f"multi-query ({self.multi_query})")
        if self.expand:
            whom = "queries and gallery" if self.expand_gallery else "queries"
            parts.append(f"{whom} expanded by {self.expand} neighbours (alpha {self.alpha:g})")
        parts.append(
            f"re-ranked (k1 {self.k1}, k2 {self.k2}, lambda {self.lambda_:g})" if self.rerank else "no re-ranking"
        )
        return ", ".join(parts)

    @property
    def suffix(self) -> str:
        """For the name of a folder: "-multi-query-rerank", or nothing for cosine similarity alone."""
        used = {
            "same-camera": self.same_camera,
            "distractors": self.distractors,
            "multi-query": bool(self.multi_query),
            "expansion": bool(self.expand),
            "rerank": self.rerank,
        }
        return "".join(f"-{name}" for name, is_used in used.items() if is_used)


COSINE = Method()


def pool_queries(
    how: str,
    features: np.ndarray,
    pids: np.ndarray,
    camids: np.ndarray,
    query_pids: np.ndarray,
    query_camids: np.ndarray,
) -> np.ndarray:
    """Multi-query: (Q, D) float32 of unit length, for each query the mean or the maximum of its person's images.

    features (N, D) float32, pids and camids (N,): the images to draw from, with at least one of each query's person by
    its camera. how: "mean" or "max", value by value (Zheng et al. 2015, "Scalable Person Re-identification",
    section 5.3). Raises ReidError for another word, and where a query has no image.
    """
    if how not in POOLS:
        raise ReidError(f"multi-query pools by {' or '.join(POOLS)}, got {how!r}")
    rows_of: dict[tuple[int, int], list[int]] = {}
    for row, key in enumerate(zip(pids.tolist(), camids.tolist())):
        rows_of.setdefault(key, []).append(row)
    pooled = np.empty((len(query_pids), features.shape[1]), np.float32)
    for q, key in enumerate(zip(query_pids.tolist(), query_camids.tolist())):
        if key not in rows_of:
            raise ReidError(f"multi-query: no image of person {key[0]} by camera {key[1]}, whom query {q} shows")
        rows = np.asarray(features[rows_of[key]])
        pooled[q] = rows.mean(axis=0) if how == "mean" else rows.max(axis=0)
    pooled /= np.linalg.norm(pooled, axis=1, keepdims=True)
    return pooled


def evaluate_camera_pairs(
    query: np.ndarray,
    gallery: np.ndarray,
    query_pids: np.ndarray,
    gallery_pids: np.ndarray,
    query_camids: np.ndarray,
    gallery_camids: np.ndarray,
    *,
    bonus: csr_array | None = None,
) -> dict[tuple[int, int], Scores]:
    """`evaluate` for each pair (query camera, gallery camera) by itself, the gallery holding that camera's images only.

    Arguments as there; a bonus is that of the whole gallery. Pairs in which no query has a match are left out.
    """
    found = {}
    for mine in np.unique(query_camids).tolist():
        q = np.flatnonzero(query_camids == mine)
        for other in np.unique(gallery_camids[gallery_pids != JUNK]).tolist():
            g = np.flatnonzero(gallery_camids == other)
            shared = np.intersect1d(query_pids[q], gallery_pids[g])
            if mine != other and (shared > 0).any():
                ids = (query_pids[q], gallery_pids[g], query_camids[q], gallery_camids[g])
                extra = None if bonus is None else bonus[q][:, g]
                found[mine, other] = evaluate(query[q], gallery[g], *ids, bonus=extra)
    return found
