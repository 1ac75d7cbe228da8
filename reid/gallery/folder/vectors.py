"""Vectors on disk: immutable .npy files of float32 rows, or of codes, memory-mapped, with a checksum of every row."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, NamedTuple

import numpy as np

from reid.core.files import atomic_file

_STEP = 2**22  # values at a time: 16 MiB of float32


class Damage(Exception):
    """What is wrong with a gallery's file."""


class Layout(NamedTuple):
    """Of a file's rows."""

    width: int
    kind: str = "<f4"  # or "|u1"

    @property
    def bytes(self) -> int:
        return self.width * np.dtype(self.kind).itemsize


@dataclass(frozen=True, eq=False)
class Segment:
    """One file, open. `live` says which rows are images of the gallery still."""

    number: int
    keys: np.ndarray  # (n,) int64, ascending
    vectors: np.ndarray  # (n, D) float32 or (n, d) uint8; mapped: the bytes stay while this is held, whoever unlinks it
    live: np.ndarray  # (n,) bool

    @property
    def name(self) -> str:
        return name_of(self.number)

    @property
    def count(self) -> int:
        """Of live rows."""
        return int(np.count_nonzero(self.live))

    def pieces(self, sums: np.ndarray) -> Iterator[np.ndarray]:
        """The live rows, some at a time. Raises Damage where one is not what was written."""
        step = max(1, _STEP // self.vectors.shape[1])
        for start in range(0, len(self.keys), step):
            part = slice(start, start + step)
            rows = self.vectors[part][self.live[part]]
            if not np.array_equal(checksums(rows), sums[part][self.live[part]]):
                raise Damage(f"{self.name} is not what was written")
            yield rows


def name_of(number: int) -> str:
    return f"vectors-{number:06d}.npy"


def checksums(rows: np.ndarray) -> np.ndarray:
    """CRC-32 of each row's bytes, (n,) uint32."""
    return np.fromiter((zlib.crc32(row) for row in np.ascontiguousarray(rows)), np.uint32, len(rows))


def write(folder: Path, number: int, pieces: Iterable[np.ndarray], count: int, layout: Layout) -> np.ndarray:
    """Writes `count` rows, whole or not at all, and returns their checksums."""
    sums = []
    with atomic_file(folder / name_of(number)) as temporary, open(temporary, "wb") as stream:
        _write_header(stream, count, layout)
        for rows in pieces:
            whole = np.ascontiguousarray(rows, layout.kind)
            stream.write(whole.data)
            sums.append(checksums(whole))
    assert sum(map(len, sums)) == count
    return np.concatenate(sums)


def load(folder: Path, number: int, count: int, layout: Layout) -> np.ndarray:
    """The rows of a file, mapped: (count, width). Raises Damage."""
    name = name_of(number)
    try:
        rows: np.ndarray = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise Damage(f"{name} is missing") from None
    except (ValueError, EOFError, SyntaxError) as error:
        raise Damage(f"{name} is not what was written") from error
    if rows.shape != (count, layout.width) or rows.dtype != np.dtype(layout.kind) or not rows.flags.c_contiguous:
        raise Damage(f"{name} should hold {count} vectors of {layout.width} dimensions, not {rows.shape} {rows.dtype}")
    return rows


def salvage(folder: Path, number: int, sums: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Of the n rows that a file should hold: those that stand where they should (m <= n, width), and which of the n are
    whole.

    The header is not looked at: its length follows from its contents.
    """
    header = io.BytesIO()
    _write_header(header, len(sums), layout)
    start = len(header.getvalue())
    whole = np.zeros(len(sums), bool)
    path = folder / name_of(number)
    size = path.stat().st_size if path.is_file() else 0
    count = min(len(sums), (size - start) // layout.bytes)
    if count < 1:
        return np.empty((0, layout.width), layout.kind), whole
    rows = np.memmap(path, layout.kind, "r", start, (count, layout.width))
    step = max(1, _STEP // layout.width)
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        whole[part] = checksums(rows[part]) == sums[part]
    return rows, whole


def _write_header(stream: IO[bytes], count: int, layout: Layout) -> None:
    header = {"descr": layout.kind, "fortran_order": False, "shape": (count, layout.width)}
    np.lib.format.write_array_header_1_0(stream, header)
