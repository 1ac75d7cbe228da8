"""Files whole or not there, what killed writers left, and locks."""

from __future__ import annotations

import fcntl
import math
import os
import threading
import time
from pathlib import Path

import pytest

from reid.core.files import atomic_file, atomic_folder, locked, read_object, sweep
from reid.core.types import ReidError


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_what_killed_writers_left_goes_with_the_next_write(tmp_path: Path) -> None:
    (tmp_path / ".a.json.123.partial").write_text("half")
    (tmp_path / ".a.json.abc_.partial").mkdir()
    (tmp_path / ".a.json.abc_.partial" / "model").write_text("half")
    others = [".b.json.123.partial", ".a.json.b.123.partial", ".a.json.partial", "a.json.123.partial"]
    for name in others:
        (tmp_path / name).write_text("another's")
    with atomic_file(tmp_path / "a.json") as temporary:
        temporary.write_text("whole")
    assert names(tmp_path) == sorted([*others, "a.json"])
    (tmp_path / ".new.123.partial").write_text("half")
    with atomic_folder(tmp_path / "new") as folder:
        (folder / "x").write_text("whole")
    assert names(tmp_path) == sorted([*others, "a.json", "new"])


def test_what_is_being_written_is_not_swept(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "a") as file, atomic_folder(tmp_path / "b") as folder:
        file.write_text("whole")
        (folder / "x").write_text("whole")
        sweep(tmp_path / "a")
        sweep(tmp_path / "b")
    assert names(tmp_path) == ["a", "b"]
    assert (tmp_path / "a").read_text() == (tmp_path / "b" / "x").read_text() == "whole"


def test_an_error_leaves_what_stood_there(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("old")

    def write() -> None:
        with atomic_file(tmp_path / "a") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert names(tmp_path) == ["a"] and (tmp_path / "a").read_text() == "old"


def test_a_lock_is_held_by_one_and_its_file_is_never_cut(tmp_path: Path) -> None:
    file = tmp_path / "lock"
    file.write_text("something")
    with locked(file) as descriptor:
        assert os.read(descriptor, 100) == b"something"
        with pytest.raises(BlockingIOError), locked(file):
            pass
        began = time.monotonic()
        with pytest.raises(BlockingIOError), locked(file, wait=0.1):
            pass
        assert time.monotonic() - began >= 0.1
    with locked(file):
        assert file.read_text() == "something"


def test_a_lock_whose_file_was_removed_is_taken_on_the_new_file(tmp_path: Path) -> None:
    file, order = tmp_path / "lock", []

    def wait() -> None:
        with locked(file, wait=math.inf) as mine:
            order.append(os.path.samestat(os.fstat(mine), file.stat()))

    with locked(file):
        other = threading.Thread(target=wait)
        other.start()
        time.sleep(0.05)
        file.unlink()
        assert order == []
    other.join(10)
    assert order == [True]


@pytest.mark.parametrize("kind", ["link", "dangling", "folder", "fifo"])
def test_what_is_no_file_of_its_own_is_no_lock(tmp_path: Path, kind: str) -> None:
    victim, lock = tmp_path / "victim", tmp_path / "lock"
    if kind == "link":
        victim.write_text("years of work")
    if kind in ("link", "dangling"):
        lock.symlink_to(victim)
    elif kind == "folder":
        lock.mkdir()
    else:
        os.mkfifo(lock)
    what = {"folder": "a folder", "fifo": "a FIFO"}.get(kind, "a symbolic link")
    with pytest.raises(ReidError, match=f"lock is {what}.*remove it"), locked(lock):
        pass
    assert victim.exists() == (kind == "link")
    if kind == "link":
        assert victim.read_text() == "years of work"
        with victim.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)  # nor was it locked


@pytest.mark.parametrize("text", [b"", b"{", b"[1]", b"\xff\xfe\x00", b"[" * 100_000, b"null"])
def test_what_is_no_object_is_one_line(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "a.json").write_bytes(text)
    with pytest.raises(ReidError, match=r"a\.json is damaged") as error:
        read_object(tmp_path / "a.json")
    assert "\n" not in str(error.value)
