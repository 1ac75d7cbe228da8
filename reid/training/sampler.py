"""P identities x K images a batch, as a pure function of the epoch, so that a resumed run draws the same batches."""

from __future__ import annotations

import numpy as np

from reid.core.types import ReidError


def pk_batches(
    labels: np.ndarray,
    p: int,
    k: int,
    seed: int,
    epoch: int,
    *,
    cameras: np.ndarray | None = None,
    domains: np.ndarray | None = None,
) -> np.ndarray:
    """Positions (batches, p * k) int64 of one epoch; the k images of an identity stand together.

    labels: (N,) the identity of each image. The epoch walks nearly every image once: an identity's n images make
    n / k groups of k, rounded down or, by chance, up; where they do not fill a group, others of the same identity
    come again. Groups are dealt to the batches like cards, identity by identity, so that no batch holds an identity
    twice. The number of batches does not depend on the epoch.

    cameras: (N,) of each image, to have the k images of an identity come in turn from its cameras, as many from each
    as can be; images of a camera that has few of them come more often.
    domains: (N,) the data set of each image, the same for all of an identity, to have every batch hold as many
    identities of each; within a data set an identity comes by the number of its images.

    Raises ReidError where there are fewer than p identities, or none with two images, and where p identities cannot
    be shared by the domains.
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
    rng = np.random.default_rng([seed, epoch, 0])
    if domains is None:
        groups = _groups(counts, batches, p, k, rng)
        decks = [np.arange(len(identities))]
    else:
        decks = _decks(labels, identities, domains, p)
        groups = np.empty(len(identities), int)
        for deck in decks:
            groups[deck] = _shared_groups(counts[deck], batches, batches * p // len(decks), rng)
    by_identity = np.argsort(labels, kind="stable")
    first = np.concatenate(([0], np.cumsum(counts)))
    tables = []
    for deck in decks:
        dealt = []
        for i in rng.permutation(deck):
            images = by_identity[first[i] : first[i + 1]]
            if cameras is not None:
                dealt.append(_in_turn(images, cameras[images], groups[i], k, rng))
            else:  # walked in a circle, so that a group repeats an image only where the identity has fewer than k
                dealt.append(np.resize(rng.permutation(images), (groups[i], k)))
        cards = np.concatenate(dealt)  # (batches * p / decks, k)
        tables.append(cards.reshape(-1, batches, k).transpose(1, 0, 2).reshape(batches, -1))
    return np.concatenate(tables, axis=1)[rng.permutation(batches)].astype(np.int64)


def _groups(counts: np.ndarray, batches: int, p: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """How many groups of k each identity gives, batches * p in all: the whole ones, and of what is left some."""
    groups = np.minimum(counts // k, batches)  # whole ones; an identity gives at most one a batch
    # the rest goes to as many identities as the batches need, those with more images left over more likely
    left = counts - groups * k
    order = np.argsort(-(left + k * rng.random(len(groups))), kind="stable")
    order = np.concatenate((order[groups[order] == 0], order[groups[order] > 0]))
    while (missing := batches * p - groups.sum()) > 0:
        groups[order[groups[order] < batches][:missing]] += 1
    order = np.argsort(-(groups + rng.random(len(groups))), kind="stable")
    groups[order[: groups.sum() - batches * p]] -= 1
    found: np.ndarray = groups
    return found


def _decks(labels: np.ndarray, identities: np.ndarray, domains: np.ndarray, p: int) -> list[np.ndarray]:
    """The identities of each domain, as places in `identities`."""
    of = np.asarray(domains)[np.unique(labels, return_index=True)[1]]  # the domain of each identity
    names = np.unique(of)
    decks = [np.flatnonzero(of == name) for name in names]
    if p % len(decks):
        raise ReidError(
            f"a batch of {p} identities cannot be shared by {len(decks)} data sets: --set p="
            f"{max(len(decks), p - p % len(decks))}, or balance_domains=false"
        )
    for name, deck in zip(names, decks, strict=True):
        if len(deck) < p // len(decks):
            raise ReidError(
                f"a batch of {p} identities takes {p // len(decks)} from each of {len(decks)} data sets, "
                f"{name} has {len(deck)}: --set p={len(decks) * len(deck)} or less"
            )
    return decks


def _shared_groups(counts: np.ndarray, batches: int, total: int, rng: np.random.Generator) -> np.ndarray:
    """How many groups each identity gives, `total` in all: its share by its images, rounded down or, by chance, up.

    An identity gives at most one a batch; what it cannot give is shared by the others.
    """
    full = np.zeros(len(counts), bool)
    share = np.empty(len(counts))
    while True:
        share[full] = batches
        share[~full] = (total - batches * full.sum()) * counts[~full] / max(1, counts[~full].sum())
        if not (share > batches).any():
            break
        full |= share >= batches
    order = rng.permutation(len(counts))
    steps = np.floor(np.cumsum(share[order]) + rng.random()).astype(int)
    steps[-1] = total  # the sum of the shares, whatever the rounding of floats
    groups = np.empty(len(counts), int)
    groups[order] = np.diff(steps, prepend=0)
    found: np.ndarray = groups
    return found


def _in_turn(images: np.ndarray, cameras: np.ndarray, groups: int, k: int, rng: np.random.Generator) -> np.ndarray:
    """(groups, k) of an identity's images: the cameras take turns, and so do the images of each.

    A camera whose images are all in a group is passed over there; images are repeated in it where there are fewer
    than k.
    """
    names = rng.permutation(np.unique(cameras))
    queues = [rng.permutation(images[cameras == name]) for name in names]
    at = [0] * len(queues)  # the next image of each camera, counted on beyond its end
    turn, table = 0, np.empty((groups, k), np.int64)
    for row in table:
        given = [0] * len(queues)
        for place in range(k):
            if place % len(images) == 0:
                given = [0] * len(queues)
            while given[turn % len(queues)] == len(queues[turn % len(queues)]):
                turn += 1
            camera = turn % len(queues)
            row[place] = queues[camera][at[camera] % len(queues[camera])]
            at[camera], given[camera], turn = at[camera] + 1, given[camera] + 1, turn + 1
    return table
