"""Files that are whole or not there: written to a temporary name, synced, renamed."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from reid.core.types import ReidError

MAX_TABLE_BYTES = 1 << 28  # of a CSV: some million lines
_UMASK = os.umask(0)  # it can only be read by setting it
os.umask(_UMASK)


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on leaving without an error it is synced and becomes `path`.

    On an error (a full disk, Ctrl-C) the temporary file is removed and what stood at `path` stays as it was.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield temporary
        temporary.chmod(0o666 & ~_UMASK)  # some libraries make files that only their owner may read
        _sync(temporary)
        os.replace(temporary, target)
        _sync(target.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """The same for a new folder: `path` appears whole, or not at all. `path` must not exist yet."""
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_UMASK)
        _sync(temporary)
        os.rename(temporary, target)
        _sync(target.parent)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


@contextlib.contextmanager
def locked(path: str | os.PathLike[str], *, wait: float = 0.0) -> Iterator[int]:
    """Holds the lock file `path`, made if absent, alone among processes, and gives its descriptor.

    wait: seconds to wait for another holder; then BlockingIOError. A link at `path` is not followed (OSError), and the
    file's content stays as it is: a folder that came from elsewhere may hold anything under that name.
    """
    end = time.monotonic() + wait
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.02)
                continue
            if not _is_at(descriptor, path):  # its last holder removed it
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)


def _is_at(descriptor: int, path: str | os.PathLike[str]) -> bool:
    """Whether an open file is the one that lies at `path` now."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def remove_partial(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left half-written in a folder that is this process's alone."""
    for leftover in Path(folder).glob(".*.partial"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def identity(paths: Sequence[str]) -> str:
    """16 hex digits that change when a file of the list does: of their names, sizes and times."""
    try:
        stats = [(path, os.stat(path).st_size, os.stat(path).st_mtime_ns) for path in paths]
    except FileNotFoundError as error:
        raise ReidError(f"no image at {error.filename}") from None
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:16]


def hash_file(*paths: str | os.PathLike[str]) -> str:
    """SHA-256 of a file's content, or of several ones' in turn, hexadecimal."""
    sha = hashlib.sha256()
    for path in paths:
        with open_regular(path) as stream:
            while block := stream.read(1 << 20):
                sha.update(block)
    return sha.hexdigest()


def open_regular(path: str | os.PathLike[str], *, at_most: int | None = None) -> BinaryIO:
    """Opens a file to read its bytes, without waiting for what is none.

    Raises ReidError for a folder, a FIFO or a device, which may hang or never end, and for a file of more than
    `at_most` bytes; OSError as `open` does.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            what = "a folder" if stat.S_ISDIR(about.st_mode) else "a FIFO or a device"
            raise ReidError(f"{os.fspath(path)} is {what}, expected a file")
        if at_most is not None and about.st_size > at_most:
            raise ReidError(f"{os.fspath(path)} has {about.st_size:,} bytes, the most that are read are {at_most:,}")
    except BaseException:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb")


def open_table(path: str | os.PathLike[str]) -> TextIO:
    """Opens a CSV to read its text, UTF-8 with or without a mark. Raises as `open_regular`, MAX_TABLE_BYTES at most."""
    return io.TextIOWrapper(open_regular(path, at_most=MAX_TABLE_BYTES), "utf-8-sig", newline="")


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
