"""Caching and prefetching, each against plain numpy."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from reid.core.files import identity
from reid.core.images import read_images
from reid.core.prefetch import prefetch
from reid.core.types import ReidError
from reid.training.data import load_pixels

SIZE = (32, 16)


# ---- the cache


@pytest.fixture
def copies(tmp_path, paths) -> list[str]:
    """Images of one's own, to change."""
    folder = tmp_path / "images"
    folder.mkdir()
    for path in paths[:5]:
        (folder / Path(path).name).write_bytes(Path(path).read_bytes())
    return sorted(str(path) for path in folder.iterdir())


def test_memory_and_disk_hold_the_same(tmp_path, copies):
    folder = tmp_path / "cache"
    expected = read_images(copies, SIZE)
    for cache in ("memory", "disk", "auto"):
        pixels = load_pixels(copies, SIZE, cache=cache, folder=folder, progress=False)
        assert np.array_equal(pixels, expected)
        assert isinstance(pixels, np.memmap) == (cache == "disk")
    assert len(list(folder.iterdir())) == 1


def test_auto_goes_to_disk_where_memory_is_short(tmp_path, copies, monkeypatch):
    size = len(copies) * 32 * 16 * 3
    for free, where in ((4 * size, np.ndarray), (4 * size - 4, np.memmap)):
        monkeypatch.setattr("reid.training.data._free_memory", lambda free=free: free)
        assert type(load_pixels(copies, SIZE, cache="auto", folder=tmp_path, progress=False)) is where


def test_the_file_is_used_again_until_an_image_changes(tmp_path, copies, monkeypatch):
    folder = tmp_path / "cache"

    def load():
        return load_pixels(copies, SIZE, cache="disk", folder=folder, progress=False)

    first = load()
    with monkeypatch.context() as patch:
        patch.setattr("reid.training.data.read_images", lambda *_, **__: pytest.fail("read again"))
        assert np.array_equal(load(), first)
    Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(copies[2])
    changed = load()
    assert not changed[2].any()
    assert np.array_equal(changed[:2], first[:2])


@pytest.mark.parametrize("change", ["content", "time", "order", "fewer", "name"])
def test_identity_changes_with_the_files(copies, change):
    before = identity(copies)
    assert identity(list(copies)) == before
    if change == "content":
        stat = os.stat(copies[0])
        Path(copies[0]).write_bytes(Path(copies[0]).read_bytes() + b"x")
        os.utime(copies[0], ns=(stat.st_atime_ns, stat.st_mtime_ns))
    elif change == "time":
        os.utime(copies[0], ns=(0, 0))
    elif change == "order":
        copies.reverse()
    elif change == "fewer":
        copies.pop()
    else:
        os.rename(copies[0], copies[0] + ".jpg")
        copies[0] += ".jpg"
    assert identity(copies) != before


def test_a_missing_image_is_named(copies):
    os.unlink(copies[3])
    with pytest.raises(ReidError, match=f"no image at {copies[3]}"):
        identity(copies)


@pytest.mark.parametrize("error", [ReidError, KeyboardInterrupt])
def test_an_error_leaves_no_half_file(tmp_path, copies, monkeypatch, error):
    folder = tmp_path / "cache"
    folder.mkdir()
    if error is ReidError:
        Path(copies[3]).write_bytes(Path(copies[3]).read_bytes()[:500])
    else:

        def interrupted(*_):
            raise KeyboardInterrupt

        monkeypatch.setattr("reid.training.data.read_images", interrupted)
    with pytest.raises(error):
        load_pixels(copies, SIZE, cache="disk", folder=folder, progress=False)
    assert not list(folder.iterdir())


# ---- prefetching


def test_prefetching_keeps_the_order_and_runs_ahead():
    ahead = threading.Event()

    def produce(step):
        if step == 3:
            ahead.set()
        return step * step

    results = prefetch(produce, range(2, 9))
    assert next(results) == 4
    assert ahead.wait(10), "the next ones are made while the first is used"
    assert list(results) == [step * step for step in range(3, 9)]


def test_prefetching_is_bounded():
    made = []
    results = prefetch(lambda step: made.append(step), range(100), depth=2)
    next(results)
    time.sleep(0.2)
    assert len(made) <= 5
    results.close()


def test_an_error_of_the_thread_is_raised_in_its_turn():
    def produce(step):
        if step == 2:
            raise ReidError("image 2 is broken")
        return step

    results = prefetch(produce, range(5))
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ReidError, match="image 2 is broken"):
        next(results)


def test_a_consumer_that_leaves_ends_the_thread():
    threads = set()

    def produce(step):
        threads.add(threading.current_thread())
        return step

    for step in prefetch(produce, range(1000)):
        if step == 1:
            break
    (thread,) = threads
    thread.join(5)
    assert not thread.is_alive()
    assert thread is not threading.current_thread()


def test_nothing_to_prefetch():
    assert list(prefetch(lambda step: step, [])) == []
