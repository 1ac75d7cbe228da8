"""What training changes about images: restyling, mirror image, zero-pad and random crop, colour jitter, erasing.

    draws = draw(len(images), images[0].shape[:2], rng, pad=10, flip=0.5, erase=0.5)
    augment(images, draws, fill=(124, 116, 104))                 # numpy, in the thread that reads ahead: for a CPU
    augment_on(tensor, table.to(tensor.device), fill=...)        # the same with torch, where the images already are

What is random is drawn first, so that the same draws give the same images by either, up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

LUMA = (0.299, 0.587, 0.114)


class Draws(NamedTuple):
    """What is to happen to each of B images of H x W pixels, in this order."""

    styles: np.ndarray  # (B,) int, the image whose colours it takes on: itself for none
    shares: np.ndarray  # (B,) in [0, 1], how much of them
    mirrored: np.ndarray  # (B,) bool
    shifts: np.ndarray  # (B, 2) int, rows and columns by which the window is moved down and to the right
    scales: np.ndarray  # (B, 6), brightness, contrast, saturation (0: grey), red, green, blue: ones for none
    boxes: np.ndarray  # (B, 4) int, top, left, height and width of what is erased: zeros for nothing

    def table(self) -> Tensor:
        """All of it as one (B, 15) float32 tensor, to be moved in one go."""
        columns = [np.asarray(value, np.float32).reshape(len(self.styles), -1) for value in self]
        return torch.from_numpy(np.concatenate(columns, axis=1))


def draw(
    count: int,
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    pad: int,
    flip: float,
    erase: float,
    jitter: float = 0.0,
    mixstyle: float = 0.0,
    camids: Sequence[int] = (),
    grey: float = 0.0,
) -> Draws:
    """The dice of a batch of `count` images of `size` (height, width).

    pad: pixels. flip, erase: probabilities.
    Erasing: Zhong et al. 2020, area 0.02-0.4 of the image, aspect 0.3-3.33, up to 100 tries to place the box.
    jitter: brightness, contrast, saturation and each of the three colours are scaled by 1 +- up to so much.
    mixstyle: probability that an image takes on some of the colours of an image of another camera, see `mixstyled`;
    camids: (B,) the cameras, needed for it.
    grey: probability that an image loses its colours; brightness and contrast are still scaled.
    """
    height, width = size
    shifts = rng.integers(-pad, pad + 1, (count, 2))
    mirrored = rng.random(count) < flip
    erased = rng.random(count) < erase
    scales = rng.uniform(1 - jitter, 1 + jitter, (count, 6)) if jitter else np.ones((count, 6))
    boxes = np.zeros((count, 4), int)
    for i in np.flatnonzero(erased):
        boxes[i] = erasing_box(height, width, rng)
    styles, shares = np.arange(count), np.zeros(count)
    if mixstyle:
        hit, pick, some = rng.random((3, count))
        cameras = np.asarray(camids)
        for i in np.flatnonzero(hit < mixstyle):
            others = np.flatnonzero(cameras != cameras[i])
            if len(others):
                styles[i], shares[i] = others[int(pick[i] * len(others))], some[i]
    if grey:
        scales[rng.random(count) < grey, 2:] = 0, 1, 1, 1
    return Draws(styles, shares, mirrored, shifts, scales, boxes)


def augment(
    images: Sequence[np.ndarray], draws: Draws, *, fill: Sequence[int], part: slice = slice(None)
) -> np.ndarray:
    """(H, W, 3) uint8 each -> (B, H, W, 3) uint8.

    fill: RGB of an erased box: the mean, which normalisation makes zero.
    part: the images to make; draws are of all of them, so that processes which share a batch agree.
    """
    height, width = images[0].shape[:2]
    chosen = range(len(images))[part]
    batch = np.zeros((len(chosen), height, width, 3), np.uint8)
    for out, i in zip(batch, chosen, strict=True):
        whole = images[i]
        if draws.styles[i] != i:
            whole = mixstyled(whole, images[draws.styles[i]], draws.shares[i])
        whole = whole[:, ::-1] if draws.mirrored[i] else whole
        dy, dx = draws.shifts[i]
        # rows and columns of the image that the window shows, and where; none where it is moved beyond the image
        source = whole[max(0, dy) : max(0, height + min(0, dy)), max(0, dx) : max(0, width + min(0, dx))]
        target = out[max(0, -dy) : max(0, height - max(0, dy)), max(0, -dx) : max(0, width - max(0, dx))]
        target[:] = source if (draws.scales[i] == 1).all() else jittered(source, draws.scales[i])
        top, left, h, w = draws.boxes[i]
        if h:
            out[top : top + h, left : left + w] = fill
    return batch


def augment_on(images: Tensor, table: Tensor, *, fill: Sequence[int], part: slice = slice(None)) -> Tensor:
    """`augment` by torch, all images at once: (B, 3, H, W) uint8 and `Draws.table()` on one device -> the same."""
    height, width = images.shape[2:]
    device = images.device
    rows = table[part]
    styles, shares, mirrored, shifts, scales, boxes = torch.split(rows, [1, 1, 1, 2, 6, 4], dim=1)
    x = images.float()
    deviation, mean = torch.std_mean(x, dim=(2, 3), correction=0)  # of all, (B, 3)
    x = x[part]
    own, other = torch.arange(len(images), device=device)[part], styles[:, 0].long()
    gain = 1 + shares * (deviation[other].clamp(min=1) / deviation[own].clamp(min=1) - 1)
    offset = mean[own] * (1 - gain) + shares * (mean[other] - mean[own])
    x = (x * gain[:, :, None, None] + offset[:, :, None, None]).round().clamp(0, 255)
    x = torch.where(mirrored.bool()[:, :, None, None], x.flip(3), x)

    y, y_inside = _moved(height, shifts[:, 0], device)
    column, column_inside = _moved(width, shifts[:, 1], device)
    inside = (y_inside[:, None, :, None] & column_inside[:, None, None, :]).float()
    x = x.gather(2, y[:, None, :, None].expand(-1, 3, -1, width))
    x = x.gather(3, column[:, None, None, :].expand(-1, 3, height, -1)) * inside

    brightness, contrast, saturation = (scales[:, i, None] for i in range(3))
    colours = scales[:, 3:]  # (B, 3)
    luma = torch.tensor(LUMA, device=device)
    average = torch.einsum("bchw,c->b", x, luma)[:, None] / inside.sum((1, 2, 3))[:, None].clamp(min=1)  # of the window
    grey = torch.einsum("bchw,c->bhw", x, luma)[:, None]
    factor = (brightness * contrast * colours)[:, :, None, None]
    offset = (brightness * (1 - contrast) * average * colours)[:, :, None, None]
    mixed = torch.lerp(grey, x, saturation[:, :, None, None])
    x = (mixed * factor + offset).round().clamp(0, 255) * inside

    top, left, h, w = boxes.unsqueeze(2).unbind(1)  # (B, 1) each
    y, column = torch.arange(height, device=device), torch.arange(width, device=device)
    erased = ((y >= top) & (y < top + h))[:, None, :, None] & ((column >= left) & (column < left + w))[:, None, None, :]
    x = torch.where(erased, torch.tensor(fill, device=device, dtype=x.dtype).view(1, 3, 1, 1), x)
    return x.to(torch.uint8, memory_format=torch.channels_last)


def _moved(length: int, shifts: Tensor, device: torch.device) -> tuple[Tensor, Tensor]:
    """Which of `length` rows each row of a window shows, moved by (B,) `shifts`, and whether there is one."""
    places = torch.arange(length, device=device) + shifts.long()[:, None]
    return places.clamp(0, length - 1), (places >= 0) & (places < length)


def jittered(image: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) with its brightness, contrast and saturation and its red, green and blue scaled by (6,)."""
    brightness, contrast, saturation = scales[:3]
    luma = np.array(LUMA, np.float32)
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * luma  # of row vectors: out = rgb @ matrix.T
    matrix = (brightness * contrast * scales[3:, None] * matrix).astype(np.float32)
    mean = image.reshape(-1, 3).mean(0, dtype=np.float32) @ luma if image.size else np.float32(0)
    offset: np.ndarray = (brightness * (1 - contrast) * mean * scales[3:]).astype(np.float32)
    moved: np.ndarray = image.astype(np.float32) @ matrix.T + offset
    return moved.clip(0, 255).round().astype(np.uint8)


def mixstyled(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """RGB uint8 (H, W, 3) whose three means and deviations are moved by `share` in [0, 1] to those of `other`.

    MixStyle (Zhou et al., ICLR 2021) on pixels: what a camera and its light do to colours is no longer telling.
    """
    (mean, deviation), (mean2, deviation2) = ((x.mean((0, 1)), x.std((0, 1))) for x in (image, other))
    gain = 1 + share * (deviation2.clip(1) / deviation.clip(1) - 1)
    values = np.arange(256)[:, None]
    table = ((values - mean) * gain + mean + share * (mean2 - mean)).round().clip(0, 255).astype(np.uint8)  # (256, 3)
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)


def cutmix(images: Tensor, rng: np.random.Generator) -> Tensor:
    """(B, 3, H, W) -> the same, of B people that there are not: above a cut one image, below it another of the batch.

    The cut lies at 0.3 to 0.7 of the height. CutMix (Yun et al., ICCV 2019) by rows; no label says who that is, but a
    teacher can tell how the image looks to it.
    """
    count, height = len(images), images.shape[2]
    other = images.roll(int(rng.integers(1, max(2, count))), 0)
    cuts = torch.from_numpy(rng.uniform(0.3, 0.7, (count, 1)) * height).to(images.device)
    below = torch.arange(height, device=images.device) >= cuts
    return torch.where(below[:, None, :, None], other, images).contiguous(memory_format=torch.channels_last)


def erasing_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) in pixels of a random box of 0.02-0.4 of the area, aspect 0.3-3.33; zeros where no
    try fits the image."""
    for _ in range(100):
        area = rng.uniform(0.02, 0.4) * height * width
        aspect = rng.uniform(0.3, 1 / 0.3)
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < h < height and 0 < w < width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return 0, 0, 0, 0
