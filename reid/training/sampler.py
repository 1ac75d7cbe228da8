"""P identities x K images a batch, as a pure function of the epoch, so that a resumed run draws the same batches."""

from __future__ import annotations

import numpy as np

from reid.core.types import ReidError


def pk_batches(labels: np.ndarray, p: int, k: int, seed: int, epoch: int) -> np.ndarray:
    """Positions (batches, p * k) int64 of one epoch; the k images of an identity stand together.

    labels: (N,) the identity of each image. The epoch walks nearly every image once: an identity's n images make
    n / k groups of k, rounded down or, by chance, up; where they do not fill a group, others of the same identity
    come again. Groups are dealt to the batches like cards, identity by identity, so that no batch holds an identity
    twice. The number of batches does not depend on the epoch.

    Raises ReidError where there are fewer than p identities, or none with two images.
    """
    identities, counts = np.unique(labels, return_counts=True)
    if len(identities) < 2:
        raise ReidError(f"training needs at least two identities to tell apart, the training set has {len(identities)}")
    if len(identities) < p:
        raise ReidError(
            f"a batch of {p} identities needs as many, the training set has {len(identities)}: "
            f"--set p={len(identities)} or less"
        )
    if counts.max() < 2:
        raise ReidError("every identity of the training set has one image; training needs two or more of most")
    batches = max(1, round(len(labels) / (p * k)))
    groups = np.minimum(counts // k, batches)  # whole ones; an identity gives at most one a batch
    rng = np.random.default_rng([seed, epoch, 0])
    # the rest goes to as many identities as the batches need, those with more images left over more likely
    left = counts - groups * k
    order = np.argsort(-(left + k * rng.random(len(groups))), kind="stable")
    order = np.concatenate((order[groups[order] == 0], order[groups[order] > 0]))
    while (missing := batches * p - groups.sum()) > 0:
        groups[order[groups[order] < batches][:missing]] += 1
    order = np.argsort(-(groups + rng.random(len(groups))), kind="stable")
    groups[order[: groups.sum() - batches * p]] -= 1
    by_identity = np.argsort(labels, kind="stable")
    first = np.concatenate(([0], np.cumsum(counts)))
    dealt = []
    for i in rng.permutation(len(identities)):
        images = by_identity[first[i] : first[i + 1]]
        # walked in a circle, so that a group repeats an image only where the identity has fewer than k
        dealt.append(np.resize(rng.permutation(images), (groups[i], k)))
    cards = np.concatenate(dealt)  # (batches * p, k)
    table = cards.reshape(p, batches, k).transpose(1, 0, 2).reshape(batches, p * k)
    return table[rng.permutation(batches)].astype(np.int64)
