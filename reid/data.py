"""From image files to batches: decode and resize once, keep the pixels, augment in a thread during training."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from reid.files import atomic_file
from reid.types import ReidError

T = TypeVar("T")
THREADS = min(16, os.cpu_count() or 1)


def read_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 (height, width, 3) of an image file, resized with bilinear filtering. `size` is (height, width).

    Raises ReidError that names a file which cannot be read as a whole image.
    """
    return np.asarray(open_image(path).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def open_image(path: str) -> Image.Image:
    """RGB, upright. ReidError names a file that cannot be read as a whole image."""
    try:
        with Image.open(path) as image:
            return ImageOps.exif_transpose(image).convert("RGB")  # telephones say which way is up beside the pixels
    except FileNotFoundError:
        raise ReidError(f"no image at {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ReidError(f"{path} is not a whole image ({error}): leave it out, or mend it") from None


def read_images(paths: Sequence[str], size: tuple[int, int], out: np.ndarray | None = None) -> np.ndarray:
    """(N, height, width, 3) uint8, read by several threads."""
    images = np.empty((len(paths), *size, 3), np.uint8) if out is None else out
    with ThreadPoolExecutor(THREADS) as pool:
        for i, image in enumerate(pool.map(lambda path: read_image(path, size), paths)):
            images[i] = image
    return images


def load_pixels(
    paths: Sequence[str], size: tuple[int, int], *, cache: str, folder: Path, progress: bool = True
) -> np.ndarray:
    """All images decoded and resized, (N, height, width, 3) uint8: in memory, or in a memory-mapped file in `folder`.

    cache: "memory", "disk", or "auto" (memory where a quarter of what is free holds them). The file is written whole
    and named after the images, their sizes and times, so that a resumed run finds it and a changed set does not.
    """
    shape = (len(paths), *size, 3)
    if cache == "auto":
        cache = "memory" if np.prod(shape, dtype=np.int64) <= _free_memory() // 4 else "disk"
    if cache == "memory":
        return _fill(np.empty(shape, np.uint8), paths, size, progress)
    file = folder / f"pixels-{size[0]}x{size[1]}-{identity(paths)}.npy"
    if not file.exists():
        with atomic_file(file) as temporary:
            mapped = np.lib.format.open_memmap(temporary, "w+", np.uint8, shape)
            with temporary.open("r+b") as whole:  # a full disk says so here, and not as a fault while it is filled
                os.posix_fallocate(whole.fileno(), 0, os.fstat(whole.fileno()).st_size)
            _fill(mapped, paths, size, progress)
            mapped.flush()
    return np.load(file, mmap_mode="r")


def _fill(pixels: np.ndarray, paths: Sequence[str], size: tuple[int, int], progress: bool) -> np.ndarray:
    step = 64 * THREADS
    with tqdm(total=len(paths), desc="reading images", unit="img", disable=not progress) as bar:
        for start in range(0, len(paths), step):
            read_images(paths[start : start + step], size, pixels[start : start + step])
            bar.update(min(step, len(paths) - start))
    return pixels


def identity(paths: Sequence[str]) -> str:
    """16 hex digits that change when a file of the list does: of their names, sizes and times."""
    try:
        stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    except FileNotFoundError as error:
        raise ReidError(f"no image at {error.filename}") from None
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def augment(
    images: Sequence[np.ndarray],
    rng: np.random.Generator,
    *,
    pad: int,
    flip: float,
    erase: float,
    jitter: float = 0.0,
    restyle: float = 0.0,
    camids: Sequence[int] = (),
    fill: Sequence[int],
    part: slice = slice(None),
) -> np.ndarray:
    """Restyling, zero-pad and random crop, mirror, colour jitter, random erasing. (H, W, 3) uint8 each -> (B, H, W, 3)
    uint8.

    pad: pixels. flip, erase: probabilities. fill: RGB of an erased box: the mean, which normalisation makes zero.
    Erasing: Zhong et al. 2020, area 0.02-0.4 of the image, aspect 0.3-3.33, up to 100 tries to place the box.
    jitter: brightness, contrast, saturation and each of the three colours are scaled by 1 +- up to so much.
    restyle: probability that an image takes on some of the colours of an image of another camera, see `restyled`;
    camids: (B,) the cameras, needed for it.
    part: the images to make; what is random is drawn for all of them, so that processes which share a batch agree.
    """
    height, width = images[0].shape[:2]
    count = len(images)
    shifts = rng.integers(-pad, pad + 1, (count, 2))
    mirrored = rng.random(count) < flip
    erased = rng.random(count) < erase
    scales = rng.uniform(1 - jitter, 1 + jitter, (count, 6)) if jitter else None
    boxes = [erasing_box(height, width, rng) if hit else None for hit in erased]
    styles = _draw_styles(camids, restyle, rng) if restyle else {}
    chosen = range(count)[part]
    batch = np.zeros((len(chosen), height, width, 3), np.uint8)
    for out, i in zip(batch, chosen, strict=True):
        whole = images[i]
        if i in styles:
            other, share = styles[i]
            whole = restyled(whole, images[other], share)
        whole = whole[:, ::-1] if mirrored[i] else whole
        dy, dx = shifts[i]
        # rows and columns of the image that the window shows, and where; none where it is moved beyond the image
        source = whole[max(0, dy) : max(0, height + min(0, dy)), max(0, dx) : max(0, width + min(0, dx))]
        target = out[max(0, -dy) : max(0, height - max(0, dy)), max(0, -dx) : max(0, width - max(0, dx))]
        target[:] = source if scales is None else jittered(source, scales[i])
        if (box := boxes[i]) is not None:
            top, left, h, w = box
            out[top : top + h, left : left + w] = fill
    return batch


def jittered(image: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """RGB uint8 (H, W, 3) with its brightness, contrast and saturation and its red, green and blue scaled by (6,)."""
    brightness, contrast, saturation = scales[:3]
    luma = np.array([0.299, 0.587, 0.114], np.float32)
    matrix = saturation * np.eye(3, dtype=np.float32) + (1 - saturation) * luma  # of row vectors: out = rgb @ matrix.T
    matrix = (brightness * contrast * scales[3:, None] * matrix).astype(np.float32)
    mean = image.reshape(-1, 3).mean(0, dtype=np.float32) @ luma
    offset = (brightness * (1 - contrast) * mean * scales[3:]).astype(np.float32)
    return (image.astype(np.float32) @ matrix.T + offset).clip(0, 255).round().astype(np.uint8)


def _draw_styles(camids: Sequence[int], probability: float, rng: np.random.Generator) -> dict[int, tuple[int, float]]:
    """position -> (position of an image of another camera, share of its style), for those that the dice choose."""
    hit, pick, shares = rng.random((3, len(camids)))
    cameras, styles = np.asarray(camids), {}
    for i in np.flatnonzero(hit < probability):
        others = np.flatnonzero(cameras != cameras[i])
        if len(others):
            styles[int(i)] = int(others[int(pick[i] * len(others))]), float(shares[i])
    return styles


def restyled(image: np.ndarray, other: np.ndarray, share: float) -> np.ndarray:
    """RGB uint8 (H, W, 3) whose three means and deviations are moved by `share` in [0, 1] to those of `other`.

    MixStyle (Zhou et al., ICLR 2021) on pixels: what a camera and its light do to colours is no longer telling.
    """
    (mean, deviation), (mean2, deviation2) = ((x.mean((0, 1)), x.std((0, 1))) for x in (image, other))
    gain = 1 + share * (deviation2.clip(1) / deviation.clip(1) - 1)
    values = np.arange(256)[:, None]
    table = ((values - mean) * gain + mean + share * (mean2 - mean)).round().clip(0, 255).astype(np.uint8)  # (256, 3)
    return np.stack([table[image[..., c], c] for c in range(3)], axis=-1)


def erasing_box(height: int, width: int, rng: np.random.Generator) -> tuple[int, int, int, int] | None:
    """(top, left, height, width) in pixels of a random box of 0.02-0.4 of the area, aspect 0.3-3.33."""
    for _ in range(100):
        area = rng.uniform(0.02, 0.4) * height * width
        aspect = rng.uniform(0.3, 1 / 0.3)
        h, w = round((area * aspect) ** 0.5), round((area / aspect) ** 0.5)
        if 0 < h < height and 0 < w < width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    return None


def prefetch(produce: Callable[[int], T], steps: Sequence[int], depth: int = 3) -> Iterator[T]:
    """produce(step) for each step, in order, made by one thread ahead of the consumer.

    A thread, not a process: the pixels are in memory, and a child forked after torch has used threads hangs.
    """
    ready: queue.Queue[tuple[T | None, BaseException | None]] = queue.Queue(depth)
    stop = threading.Event()

    def put(item: tuple[T | None, BaseException | None]) -> None:
        while not stop.is_set():
            try:
                return ready.put(item, timeout=0.1)
            except queue.Full:
                continue

    def work() -> None:
        try:
            for step in steps:
                if stop.is_set():
                    return
                put((produce(step), None))
        except BaseException as error:  # handed to the consumer, who raises it
            put((None, error))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        for _ in steps:
            value, error = ready.get()
            if error is not None:
                raise error
            yield value  # type: ignore[misc]
    finally:
        stop.set()
        thread.join()
