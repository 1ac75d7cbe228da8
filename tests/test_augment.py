"""What training does to images, against plain numpy; by torch against the same."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from reid.training.augment import augment, augment_on, cutmix, draw, erasing_box, mixstyled

SIZE = (32, 16)
FILL = (124, 116, 104)


def drawn(count: int = 8, size: tuple[int, int] = SIZE) -> list[np.ndarray]:
    return list(np.random.default_rng(1).integers(1, 256, (count, *size, 3), dtype=np.uint8))


def run(images, seed=0, *, pad=0, flip=0.0, erase=0.0):
    draws = draw(len(images), images[0].shape[:2], np.random.default_rng(seed), pad=pad, flip=flip, erase=erase)
    return augment(images, draws, fill=FILL)


def test_without_augmentation_nothing_changes():
    images = drawn()
    batch = run(images)
    assert np.array_equal(batch, images)
    assert batch.dtype == np.uint8
    batch[:] = 0
    assert np.array_equal(images, drawn()), "the images are copied"


def test_mirroring():
    images = drawn()
    assert np.array_equal(run(images, flip=1.0), np.stack(images)[:, :, ::-1])
    mirrored = (run(drawn(400), flip=0.3) != np.stack(drawn(400))).any((1, 2, 3))
    assert mirrored.mean() == pytest.approx(0.3, abs=0.08)


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_a_crop_is_a_window_of_the_padded_image(flip):
    """Of the mirrored one, where it is mirrored: moved and not only cut. Every place in the window comes up."""
    pad, image = 2, drawn(1)[0]
    padded = np.pad(image[:, ::-1] if flip else image, ((pad, pad), (pad, pad), (0, 0)))
    windows = {(y, x): padded[y : y + SIZE[0], x : x + SIZE[1]] for y in range(2 * pad + 1) for x in range(2 * pad + 1)}
    found = set()
    for out in run([image] * 400, pad=pad, flip=flip):
        places = [place for place, window in windows.items() if np.array_equal(out, window)]
        assert len(places) == 1
        found.add(places[0])
    assert found == set(windows)


def test_a_crop_may_miss_the_image():
    pad, image = 20, drawn(1)[0]
    padded = np.pad(image, ((pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (*SIZE, 3)).reshape(-1, *SIZE, 3)
    batch = run([image] * 60, pad=pad)
    assert all((windows == out).all((1, 2, 3)).any() for out in batch)
    assert not batch.any((1, 2, 3)).all(), "one of them shows nothing of it"


def test_erasing_fills_one_box_of_the_mean():
    images = drawn(400, (64, 32))
    changed = (run(images, erase=0.5) != np.stack(images)).any(3)
    hit = changed.any((1, 2))
    assert hit.mean() == pytest.approx(0.5, abs=0.08)
    for out, mask in zip(run(images, erase=0.5)[hit], changed[hit], strict=True):
        rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
        box = out[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert (box == FILL).all()
    assert (run(images, erase=1.0) != np.stack(images)).any((1, 2, 3)).all()


@pytest.mark.parametrize(("height", "width"), [(256, 128), (64, 32)])
def test_erased_boxes_have_the_stated_areas_and_aspects(height, width):
    rng = np.random.default_rng(0)
    boxes = np.array([erasing_box(height, width, rng) for _ in range(2000)], float)
    top, left, h, w = boxes.T
    assert (top >= 0).all()
    assert (left >= 0).all()
    assert (top + h <= height).all()
    assert (left + w <= width).all()
    # a side is off by half a pixel at most
    assert ((h + 0.5) * (w + 0.5) >= 0.02 * height * width).all()
    assert ((h - 0.5) * (w - 0.5) <= 0.4 * height * width).all()
    assert ((h + 0.5) / (w - 0.5) >= 0.3).all()
    assert ((h - 0.5) / (w + 0.5) <= 1 / 0.3).all()
    area = h * w / (height * width)
    assert area.min() < 0.04
    assert area.max() > 0.36
    assert 0.17 < area.mean() < 0.23
    assert (top + h / 2).mean() / height == pytest.approx(0.5, abs=0.03)


def test_augmentation_is_a_function_of_its_generator():
    options = dict(pad=3, flip=0.5, erase=0.5)
    first = run(drawn(), 5, **options)
    assert np.array_equal(run(drawn(), 5, **options), first)
    assert not np.array_equal(run(drawn(), 6, **options), first)


def test_restyling_moves_means_and_deviations_to_the_others():
    rng = np.random.default_rng(0)
    image, other = (rng.normal(mean, deviation, (64, 32, 3)) for mean, deviation in ((90, 12), ((140, 120, 100), 20)))
    image, other = (x.clip(0, 255).astype(np.uint8) for x in (image, other))
    whole = mixstyled(image, other, 1.0)
    np.testing.assert_allclose(whole.mean((0, 1)), other.mean((0, 1)), atol=0.6)  # pixels are rounded
    np.testing.assert_allclose(whole.std((0, 1)), other.std((0, 1)), rtol=0.03)
    half = (image.mean((0, 1)) + other.mean((0, 1))) / 2
    np.testing.assert_allclose(mixstyled(image, other, 0.5).mean((0, 1)), half, atol=0.6)
    assert np.array_equal(mixstyled(image, other, 0.0), image)
    assert np.array_equal(mixstyled(np.zeros_like(image), image, 0.0), np.zeros_like(image)), "one flat colour"


def test_images_take_the_style_of_another_camera_only():
    """Dark images of camera 1, bright ones of camera 2: what is mixstyled lies between; one camera alone stays."""
    images = [np.full((*SIZE, 3), value, np.uint8) for value in (40, 40, 200, 200)] * 50
    cameras = [1, 1, 2, 2] * 50

    def mixstyle(probability, camids):
        rng = np.random.default_rng(0)
        draws = draw(200, SIZE, rng, pad=0, flip=0.0, erase=0.0, mixstyle=probability, camids=camids)
        return augment(images, draws, fill=FILL).mean((1, 2, 3))

    moved = mixstyle(1.0, cameras) - np.mean(images, (1, 2, 3))
    assert (moved[np.array(cameras) == 1] >= 0).all() and (moved[np.array(cameras) == 2] <= 0).all()
    assert np.abs(moved).mean() == pytest.approx(80, abs=10), "half of the way on average"
    assert (mixstyle(0.3, cameras) != np.mean(images, (1, 2, 3))).mean() == pytest.approx(0.3, abs=0.08)
    assert np.array_equal(mixstyle(1.0, [1] * 200), np.mean(images, (1, 2, 3)))


def test_grey_images_are_pils_and_come_as_often_as_asked():
    images = drawn(400)
    draws = draw(400, SIZE, np.random.default_rng(0), pad=0, flip=0.0, erase=0.0, grey=0.3)
    batch = augment(images, draws, fill=FILL)
    grey = (batch == batch[..., :1]).all((1, 2, 3))
    assert grey.mean() == pytest.approx(0.3, abs=0.08)
    for found, image in zip(batch[grey], np.stack(images)[grey], strict=True):
        expected = np.asarray(Image.fromarray(image).convert("L"), int)
        assert np.abs(found[..., 0] - expected).max() <= 1, "two roundings"
    assert np.array_equal(batch[~grey], np.stack(images)[~grey])


def test_grey_is_grey_whatever_the_jitter_and_leaves_the_other_dice_alone():
    options = dict(pad=3, flip=0.5, erase=0.5, jitter=0.3)
    without = draw(64, SIZE, np.random.default_rng(0), **options)
    draws = draw(64, SIZE, np.random.default_rng(0), **options, grey=1.0)
    window = augment(drawn(64), draws._replace(boxes=np.zeros((64, 4), int)), fill=FILL)
    assert (window == window[..., :1]).all()
    assert np.array_equal(draws.scales[:, :2], without.scales[:, :2]), "brightness and contrast"
    for name in ("styles", "shares", "mirrored", "shifts", "boxes"):
        assert np.array_equal(getattr(draws, name), getattr(without, name)), name


# ---- by torch

ALL = dict(pad=3, flip=0.5, erase=0.5, jitter=0.3, mixstyle=0.5, camids=[1, 2] * 32)


@pytest.mark.parametrize(
    "options",
    [
        dict(pad=0, flip=0.0, erase=0.0),
        dict(pad=3, flip=0.5, erase=0.5),
        dict(pad=40, flip=0.5, erase=0.0, jitter=0.2),
        dict(pad=0, flip=0.0, erase=0.0, mixstyle=1.0, camids=[1, 2] * 32),
        dict(pad=3, flip=0.5, erase=0.5, jitter=0.3, grey=0.5),
        ALL,
    ],
)
@pytest.mark.parametrize("part", [slice(None), slice(16, 32)])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_torch_does_to_images_what_numpy_does(options, part, device):
    rng = np.random.default_rng(1)
    smooth = rng.integers(0, 256, (64, 8, 4, 3)).repeat(4, 1).repeat(4, 2)
    images = (smooth * rng.uniform(0.3, 1, (64, 1, 1, 3)) + rng.normal(0, 5, smooth.shape)).clip(0, 255)
    images = images.astype(np.uint8)
    draws = draw(64, SIZE, rng, **options)
    expected = augment(list(images), draws, fill=FILL, part=part)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2).to(device)
    found = augment_on(pixels, draws.table().to(device), fill=FILL, part=part)
    assert found.is_contiguous(memory_format=torch.channels_last)
    difference = np.abs(found.permute(0, 2, 3, 1).cpu().numpy().astype(int) - expected)
    assert difference.max() <= 2, "two roundings"
    assert (difference > 0).mean() < 1e-3


def test_joined_images_are_one_above_a_cut_and_another_below():
    images = torch.from_numpy(np.stack(drawn())).permute(0, 3, 1, 2)
    found = cutmix(images, np.random.default_rng(3))
    height = images.shape[2]
    cuts, shifts = set(), set()
    for i, image in enumerate(found):
        own = (image == images[i]).all(2).all(0)  # by row
        cut = int(own.sum())
        assert own[:cut].all() and 0.3 * height <= cut <= 0.7 * height + 1
        below = [j for j in range(len(images)) if torch.equal(image[:, cut:], images[j][:, cut:])]
        cuts.add(cut)
        shifts.add((below[0] - i) % len(images))
    assert len(cuts) > 1
    assert len(shifts) == 1 and 0 not in shifts
