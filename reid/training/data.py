"""Pixels in memory, decoded and resized once, and whatever is made in a thread ahead of its use."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from reid.core.files import atomic_file, identity
from reid.core.images import THREADS, read_images


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
    images: np.ndarray = np.load(file, mmap_mode="r")
    return images


def _fill(pixels: np.ndarray, paths: Sequence[str], size: tuple[int, int], progress: bool) -> np.ndarray:
    step = 64 * THREADS
    with tqdm(total=len(paths), desc="reading images", unit="img", disable=not progress) as bar:
        for start in range(0, len(paths), step):
            read_images(paths[start : start + step], size, pixels[start : start + step])
            bar.update(min(step, len(paths) - start))
    return pixels


def _free_memory() -> int:
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
