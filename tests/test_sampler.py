"""P x K batches over identities of many sizes."""

from __future__ import annotations

import numpy as np
import pytest

from reid.core.types import ReidError
from reid.training.sampler import pk_batches


def market_like(identities: int = 751, images: int = 12_936) -> np.ndarray:
    """Labels whose images an identity vary as Market-1501's do: 2 to 80 or so, 17 on average, in mixed order."""
    rng = np.random.default_rng(0)
    weights = rng.lognormal(0, 0.55, identities)
    counts = np.maximum(2, np.round(weights / weights.sum() * images)).astype(int)
    return rng.permutation(np.repeat(np.arange(identities), counts))


SETS = {
    "market": (market_like(), 16, 4),
    "even": (np.repeat(np.arange(10), 4), 5, 4),
    "sparse labels": (np.repeat([7, 3, 900, -5, 44], [9, 5, 2, 30, 1]), 3, 4),
    "mostly single images": (np.concatenate((np.arange(30), [30] * 8, [31] * 3)), 8, 2),
    "one giant": (np.repeat(np.arange(6), [200, 2, 2, 2, 2, 2]), 4, 4),
    "two identities": (np.repeat([0, 1], [7, 2]), 2, 4),
    "fewer images than a batch": (np.repeat(np.arange(4), 2), 4, 4),
}


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("epoch", [0, 5])
def test_a_batch_is_k_images_of_each_of_p_identities(name, epoch):
    labels, p, k = SETS[name]
    batches = pk_batches(labels, p, k, 0, epoch)
    assert batches.dtype == np.int64
    assert batches.shape == (max(1, round(len(labels) / (p * k))), p * k)
    of = labels[batches].reshape(len(batches), p, k)
    assert (of == of[:, :, :1]).all(), "the images of an identity stand together"
    assert all(len(set(row)) == p for row in of[:, :, 0]), "no identity twice in a batch"


@pytest.mark.parametrize("name", SETS)
def test_a_group_repeats_an_image_only_where_there_are_too_few(name):
    labels, p, k = SETS[name]
    counts = dict(zip(*np.unique(labels, return_counts=True), strict=True))
    for epoch in range(3):
        for group in pk_batches(labels, p, k, 0, epoch).reshape(-1, k):
            assert len(set(group)) == min(k, counts[labels[group[0]]])


def test_batches_are_a_function_of_seed_and_epoch():
    labels, p, k = SETS["market"]
    first = pk_batches(labels, p, k, 3, 7)
    assert np.array_equal(first, pk_batches(labels, p, k, 3, 7))
    assert not np.array_equal(first, pk_batches(labels, p, k, 3, 8))
    assert not np.array_equal(first, pk_batches(labels, p, k, 4, 7))


def test_every_epoch_has_as_many_batches():
    for labels, p, k in SETS.values():
        assert len({pk_batches(labels, p, k, seed, epoch).shape for epoch in range(6) for seed in range(2)}) == 1


def test_an_epoch_walks_nearly_every_image_once_and_a_few_epochs_all():
    labels, p, k = SETS["market"]
    walked = np.zeros(len(labels), int)
    for epoch in range(4):
        batches = pk_batches(labels, p, k, 0, epoch)
        times = np.bincount(batches.ravel(), minlength=len(labels))
        assert (times > 0).mean() > 0.95
        assert batches.size == pytest.approx(len(labels), rel=0.01)
        walked += times
    assert (walked > 0).mean() > 0.995
    assert walked.max() <= 8, "no image is drawn more than twice as often as it should be"


def test_each_identity_is_drawn_about_as_often_as_it_has_images():
    labels, p, k = SETS["market"]
    drawn = sum(np.bincount(labels[pk_batches(labels, p, k, 0, epoch).ravel()]) for epoch in range(12)) / 12
    counts = np.bincount(labels)
    assert np.abs(drawn - counts)[counts >= k].max() <= k


def test_identities_with_one_image_come_too():
    labels, p, k = SETS["mostly single images"]
    seen = set()
    for epoch in range(20):
        seen |= set(labels[pk_batches(labels, p, k, 0, epoch)].ravel().tolist())
    assert seen == set(labels.tolist())


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([], "at least two identities to tell apart, the training set has 0"),
        ([4, 4, 4], "at least two identities to tell apart, the training set has 1"),
        ([1, 1, 2, 2], "a batch of 3 identities needs as many, the training set has 2: --set p=2 or less"),
        ([1, 2, 3, 4], "every identity of the training set has one image"),
    ],
)
def test_a_training_set_that_fits_no_batch_is_refused(labels, message):
    with pytest.raises(ReidError, match=message):
        pk_batches(np.array(labels, int), 3, 2, 0, 0)
