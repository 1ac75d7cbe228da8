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


# ---- balanced over cameras and over data sets


def evenest(counts: list[int], k: int) -> list[int]:
    """How many of k images come from each camera at best, sorted: poured one by one into the emptiest."""
    given = [0] * len(counts)
    for _ in range(min(k, sum(counts))):
        open_ones = [i for i in range(len(counts)) if given[i] < counts[i]]
        given[min(open_ones, key=lambda i: given[i])] += 1
    return sorted(given)


@pytest.mark.parametrize("name", SETS)
def test_the_images_of_an_identity_come_from_its_cameras_evenly(name):
    labels, p, k = SETS[name]
    cameras = np.random.default_rng(3).choice(6, len(labels), p=[0.5, 0.2, 0.1, 0.1, 0.05, 0.05])
    for epoch in range(2):
        batches = pk_batches(labels, p, k, 0, epoch, cameras=cameras)
        assert batches.shape == pk_batches(labels, p, k, 0, epoch).shape
        for group in batches.reshape(-1, k):
            assert len(set(labels[group])) == 1
            images = np.flatnonzero(labels == labels[group[0]])
            assert len(set(group)) == min(k, len(images)), "repeated only where there are too few"
            names, counts = np.unique(cameras[images], return_counts=True)
            if len(images) >= k:
                given = [int((cameras[group] == name).sum()) for name in names]
                assert sorted(given) == evenest(counts.tolist(), k)


def test_every_camera_and_every_image_of_it_takes_its_turn():
    """Two identities of 12 images by camera 1 and 3 by camera 2, two of each identity a batch."""
    labels, cameras = np.array([0] * 15 + [1] * 15), np.array(([1] * 12 + [2] * 3) * 2)
    times = np.zeros(30, int)
    for epoch in range(40):
        drawn = pk_batches(labels, 2, 2, 0, epoch, cameras=cameras).ravel()
        times += np.bincount(drawn, minlength=30)
    rare, frequent = times[cameras == 2], times[cameras == 1]
    assert rare.sum() == frequent.sum()
    assert rare.max() <= 1.1 * rare.min()
    assert frequent.max() <= 1.6 * frequent.min()


def joint() -> tuple[np.ndarray, np.ndarray]:
    """Labels of a large and of two small data sets, 400, 30 and 12 identities, and the data set of each image."""
    sets = (market_like(400, 6000), 1000 + market_like(30, 500), 2000 + np.repeat(np.arange(12), 3))
    return np.concatenate(sets), np.repeat(["large", "middle", "small"], [len(labels) for labels in sets])


@pytest.mark.parametrize("epoch", [0, 5])
def test_every_batch_holds_as_many_identities_of_each_data_set(epoch):
    labels, domains = joint()
    batches = pk_batches(labels, 12, 4, 0, epoch, domains=domains)
    assert batches.shape == (round(len(labels) / 48), 48)
    of = labels[batches].reshape(len(batches), 12, 4)
    assert (of == of[:, :, :1]).all()
    assert all(len(set(row)) == 12 for row in of[:, :, 0]), "no identity twice in a batch"
    for batch in domains[batches]:
        assert {name: int((batch == name).sum()) for name in set(domains)} == {"large": 16, "middle": 16, "small": 16}
    plain = domains[pk_batches(labels, 12, 4, 0, epoch)]
    assert (plain == "small").sum() < 0.05 * plain.size, "which they do not do by themselves"


def test_within_a_data_set_identities_come_by_their_images():
    labels, domains = joint()
    epochs = 60
    drawn = (
        sum(
            np.bincount(labels[pk_batches(labels, 12, 4, 0, epoch, domains=domains).ravel()], minlength=2012)
            for epoch in range(epochs)
        )
        / epochs
    )
    for name in ("large", "middle", "small"):
        people, counts = np.unique(labels[domains == name], return_counts=True)
        batches = round(len(labels) / 48)
        expected = counts / counts.sum() * batches * 16
        assert expected.max() <= batches * 4, "nobody is held back by one group a batch"
        # whole groups of 4: the mean of so many epochs is off by a fraction of one
        assert np.abs(drawn[people] - expected).max() < 1.5
        assert drawn[people].sum() == pytest.approx(expected.sum())


def test_an_identity_too_large_for_its_share_comes_once_a_batch():
    labels = np.concatenate((np.repeat(np.arange(6), [200, 2, 2, 2, 2, 2]), 100 + np.repeat(np.arange(6), 35)))
    batches = pk_batches(labels, 4, 4, 0, 0, domains=labels >= 100)
    assert ((labels[batches] == 0).sum(1) == 4).all()
    assert ((labels[batches] < 100).sum(1) == 8).all()


def test_balanced_batches_are_a_function_of_seed_and_epoch():
    labels, domains = joint()
    cameras = np.random.default_rng(0).integers(0, 6, len(labels))
    one, again, other = (pk_batches(labels, 12, 4, 3, epoch, cameras=cameras, domains=domains) for epoch in (7, 7, 8))
    assert np.array_equal(one, again)
    assert not np.array_equal(one, other)


def test_data_sets_that_cannot_share_a_batch_are_refused():
    labels, domains = joint()
    with pytest.raises(ReidError, match="a batch of 16 identities cannot be shared by 3 data sets: --set p=15"):
        pk_batches(labels, 16, 4, 0, 0, domains=domains)
    with pytest.raises(ReidError, match="takes 13 from each of 3 data sets, small has 12: --set p=36 or less"):
        pk_batches(labels, 39, 4, 0, 0, domains=domains)
