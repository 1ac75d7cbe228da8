"""Files that are whole or not there: written to a temporary name, synced, renamed. And files as locks."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import io
import json
import math
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
def locked(path: str | os.PathLike[str], *, wait: float = 0.0) -> Iterator[int]:
    """Holds the lock file `path`, made where it is absent, alone among processes, and gives its descriptor.

    wait: seconds to wait for another holder at most; then BlockingIOError. math.inf waits for as long as it takes. The
    file's content stays as it is, and who holds the lock may remove it. A killed process holds nothing. ReidError where
    the path is a symbolic link or no regular file: a folder that came from elsewhere may hold anything under that name.
    """
    end = time.monotonic() + wait
    while True:
        descriptor = _open_own(path)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait == math.inf else fcntl.LOCK_NB))
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(0.02)
                continue
            if not _stands_at(descriptor, path):  # its last holder removed it
                continue
            yield descriptor
            return
        finally:
            os.close(descriptor)


def _open_own(path: str | os.PathLike[str]) -> int:
    """A descriptor of a regular file; nothing is followed, cut or waited for."""
    what = "a symbolic link"
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        descriptor = os.open(path, flags, 0o666)
    except OSError as error:
        if error.errno == errno.EISDIR:
            what = "a folder"
        elif error.errno != errno.ELOOP:
            raise
    else:
        if stat.S_ISREG(os.fstat(descriptor).st_mode):
            return descriptor
        os.close(descriptor)
        what = "a FIFO or a device"
    raise ReidError(f"{os.fspath(path)} is {what}, expected a file of this program: it was left as it is, remove it")


def _stands_at(descriptor: int, path: str | os.PathLike[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.lstat(path))
    except FileNotFoundError:
        return False


@contextlib.contextmanager
def atomic_file(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Gives a temporary path beside `path`; on leaving without an error it is synced and becomes `path`.

    On an error (a full disk, Ctrl-C) the temporary file is removed and what stood at `path` stays as it was. What
    killed processes left of earlier attempts at `path` is removed, too.
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    temporary = target.with_name(f".{target.name}.{os.getpid()}.partial")
    with locked(temporary, wait=math.inf):  # says to `sweep` that somebody writes it
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
    """The same for a new folder: `path` appears whole, or not at all. `path` must not exist yet, or be empty."""
    target = Path(os.path.abspath(path))
    with folder_beside(target) as temporary:
        yield temporary
        temporary.chmod(0o777 & ~_UMASK)
        _sync(temporary)
        os.rename(temporary, target)
        _sync(target.parent)


@contextlib.contextmanager
def folder_beside(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary folder beside `path`, for what becomes `path` and files that go with it; it is removed at the end.
    What killed processes left of earlier attempts is removed, too.
    """
    target = Path(os.path.abspath(path))
    target.parent.mkdir(parents=True, exist_ok=True)
    sweep(target)
    temporary, descriptor = _locked_folder(target)
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        os.close(descriptor)


def _locked_folder(target: Path) -> tuple[Path, int]:
    """A new temporary folder for `target`, and a descriptor that holds its lock."""
    while True:
        made = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent))
        with contextlib.suppress(FileNotFoundError):  # swept before it was locked
            descriptor = os.open(made, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            if _stands_at(descriptor, made):
                return made, descriptor
            os.close(descriptor)


def sweep(path: str | os.PathLike[str]) -> None:
    """Removes what killed processes left of `atomic_file(path)` and `atomic_folder(path)`; what is being written stays,
    since its writer holds its lock.
    """
    target = Path(os.path.abspath(path))
    with contextlib.suppress(OSError), os.scandir(target.parent) as entries:
        for entry in entries:
            middle = entry.name.removeprefix(f".{target.name}.").removesuffix(".partial")
            if entry.name != f".{target.name}.{middle}.partial" or "." in middle:
                continue
            with contextlib.suppress(OSError):  # BlockingIOError: it is being written
                descriptor = os.open(entry.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(entry.path) if entry.is_dir(follow_symlinks=False) else os.unlink(entry.path)
                finally:
                    os.close(descriptor)


def remove_partial(folder: str | os.PathLike[str]) -> None:
    """Removes what killed processes left half-written in a folder that is this process's alone."""
    for leftover in Path(folder).glob(".*.partial"):
        shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()


def write_text(path: str | os.PathLike[str], text: str) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(path: str | os.PathLike[str], value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


def read_object(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a JSON file holds. Raises ReidError where it is no JSON, or no object; FileNotFoundError."""
    try:
        value = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError) as error:
        raise ReidError(f"{os.fspath(path)} is damaged (no JSON: {' '.join(str(error).split())[:80]})") from None
    if not isinstance(value, dict):
        raise ReidError(f"{os.fspath(path)} is damaged (expected a JSON object)")
    return value


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


def absolute(root: str | os.PathLike[str]) -> Path:
    """`root` without "~" and ".."; links stay as named."""
    return Path(os.path.abspath(Path(root).expanduser()))


def some(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> some(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
