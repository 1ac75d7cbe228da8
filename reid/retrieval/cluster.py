"""People without labels: groups crops into identities by density over re-ranked distances, and says how good they are.

The distance of two crops is the Jaccard distance of their k-reciprocal neighbourhoods (`reid.retrieval.rerank`), of
which only
the pairs that overlap are held, so that memory grows with the neighbours and not with the square of the crops.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reid.core.types import ReidError

if TYPE_CHECKING:
    from scipy.sparse import csr_array

NOBODY = -1  # label of a crop that is near to too few others
DISTANCE, MIN_IMAGES, K1, K2 = 0.6, 2, 10, 4  # chosen by benchmarks/choose.py, on people with about ten crops each


@dataclass(frozen=True)
class Agreement:
    """How labels agree with known identities; all values are at most 1, for labels that equal them.

    A crop labelled NOBODY counts as a group of its own. Pairs: of all pairs in one group, and of one identity
    (Hubert and Arabie 1985 for the adjusted Rand index). B-cubed: the same a crop, averaged over crops (Amigo et al.
    2009, "A comparison of extrinsic clustering evaluation metrics").
    """

    adjusted_rand: float
    pair_precision: float
    pair_recall: float
    pair_f: float
    bcubed_precision: float
    bcubed_recall: float
    bcubed_f: float


def find_people(
    features: np.ndarray,
    *,
    distance: float = DISTANCE,
    min_images: int = MIN_IMAGES,
    k1: int = K1,
    k2: int = K2,
    progress: bool = False,
) -> np.ndarray:
    """Labels (N,) as `cluster` gives them, of features (N, D), float32 of unit length.

    k1, k2: neighbours, as in `reid.retrieval.rerank`; k1 about as many as a person has crops. progress: shows a bar on
    stderr. Raises ReidError.
    """
    from reid.retrieval.rerank import jaccard

    similarity = jaccard(features, k1=k1, k2=k2, progress=progress)
    return cluster(similarity, distance=distance, min_images=min_images)


def cluster(similarity: csr_array, *, distance: float, min_images: int) -> np.ndarray:
    """Labels (N,) int64 of N crops: groups from 0, the largest first, and NOBODY.

    similarity (N, N): Jaccard, in [0, 1], 0 where it is not held. DBSCAN (Ester et al. 1996): a crop with at least
    `min_images` crops, itself included, within `distance`, in [0, 1), is in one group with all of these.
    Raises ReidError.
    """
    from sklearn.cluster import DBSCAN

    if not 0 <= distance < 1:
        raise ReidError(f"distance is of neighbourhoods, at least 0 and below 1 (nothing in common): got {distance}")
    if min_images < 1:
        raise ReidError(f"min_images is a number of crops, at least 1: got {min_images}")
    distances = similarity.tocsr(copy=True)
    distances.data = np.maximum(1 - distances.data, 0)
    found = DBSCAN(eps=distance, min_samples=min_images, metric="precomputed").fit(distances).labels_
    groups, sizes = np.unique(found[found != NOBODY], return_counts=True)
    place = np.empty(len(groups), np.int64)
    place[np.argsort(-sizes, kind="stable")] = np.arange(len(groups))
    return np.where(found == NOBODY, NOBODY, place[found] if len(groups) else NOBODY)


def agreement(labels: np.ndarray, pids: np.ndarray) -> Agreement:
    """Of labels (N,) as `cluster` gives them with identities (N,), integers."""
    from sklearn.metrics import adjusted_rand_score
    from sklearn.metrics.cluster import contingency_matrix, pair_confusion_matrix

    alone = labels == NOBODY
    labels = np.where(alone, labels.max(initial=0) + 1 + np.cumsum(alone), labels)
    (_, false), (missed, true) = pair_confusion_matrix(pids, labels).astype(float)
    together = contingency_matrix(pids, labels, sparse=True).tocoo()
    of_pid, of_label = np.bincount(together.row, together.data), np.bincount(together.col, together.data)
    squares = together.data.astype(float) ** 2
    bcubed = (float((squares / sizes).sum() / len(pids)) for sizes in (of_label[together.col], of_pid[together.row]))
    bcubed_precision, bcubed_recall = bcubed
    pair_precision = float(true / (true + false)) if true + false else 1.0
    pair_recall = float(true / (true + missed)) if true + missed else 1.0
    return Agreement(
        adjusted_rand=float(adjusted_rand_score(pids, labels)),
        pair_precision=pair_precision,
        pair_recall=pair_recall,
        pair_f=_f(pair_precision, pair_recall),
        bcubed_precision=bcubed_precision,
        bcubed_recall=bcubed_recall,
        bcubed_f=_f(bcubed_precision, bcubed_recall),
    )


def _f(precision: float, recall: float) -> float:
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0
