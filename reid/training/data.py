"""From image files to pixels in memory: decode and resize once, and whatever is made in a thread ahead of its use."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps
from tqdm import tqdm

from reid.core.files import atomic_file, identity
from reid.core.types import ReidError

THREADS = min(16, os.cpu_count() or 1)
BESIDE = max(1, THREADS // 4)  # beside a network on the same cores: more would wait for one another, and it for them


def read_image(path: str, size: tuple[int, int]) -> np.ndarray:
    """RGB uint8 (height, width, 3) of an image file, resized with bilinear filtering. `size` is (height, width).

    Raises ReidError that names a file which cannot be read as a whole image.
    """
    return np.asarray(open_image(path).resize((size[1], size[0]), Image.Resampling.BILINEAR))


def open_image(path: str) -> Image.Image:
    """RGB, upright. ReidError names a file that cannot be read as a whole image."""
    try:
        with Image.open(path) as image:
            ImageOps.exif_transpose(image, in_place=True)  # telephones say which way is up beside the pixels
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError:
        raise ReidError(f"no image at {path}") from None
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ReidError(f"{path} is not a whole image ({error}): leave it out, or mend it") from None


def read_images(
    paths: Sequence[str], size: tuple[int, int], out: np.ndarray | None = None, *, threads: int = THREADS
) -> np.ndarray:
    """(N, height, width, 3) uint8, read by several threads."""
    images = np.empty((len(paths), *size, 3), np.uint8) if out is None else out
    with ThreadPoolExecutor(threads) if threads > 1 else contextlib.nullcontext() as pool:
        read = map if pool is None else pool.map
        for i, image in enumerate(read(lambda path: read_image(path, size), paths)):
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


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
