"""Vectors on disk: immutable .npy files of float32 rows, memory-mapped, with a checksum of every row."""

from __future__ import annotations

import io
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from reid.files import atomic_file

_STEP = 2**22  # values at a time: 16 MiB


class Damage(Exception):
    """What is wrong with a segment's file."""


@dataclass(frozen=True, eq=False)
class Segment:
    """One file, open. `live` says which rows are images of the gallery still."""

    number: int
    keys: np.ndarray  # (n,) int64, ascending
    vectors: np.ndarray  # (n, D) float32, mapped: the bytes stay there while this is held, whoever unlinks the file
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


def write(folder: Path, number: int, pieces: Iterable[np.ndarray], count: int, dimension: int) -> np.ndarray:
    """Writes `count` rows, whole or not at all, and returns their checksums."""
    sums = []
    with atomic_file(folder / name_of(number)) as temporary, open(temporary, "wb") as stream:
        _write_header(stream, count, dimension)
        for rows in pieces:
            whole = np.ascontiguousarray(rows, np.float32)
            stream.write(whole.data)
            sums.append(checksums(whole))
    assert sum(map(len, sums)) == count
    return np.concatenate(sums)


def load(folder: Path, number: int, count: int, dimension: int) -> np.ndarray:
    """The rows of a file, mapped: (count, dimension) float32. Raises Damage."""
    name = name_of(number)
    try:
        rows: np.ndarray = np.load(folder / name, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise Damage(f"{name} is missing") from None
    except (ValueError, EOFError, SyntaxError) as error:
        raise Damage(f"{name} is not what was written") from error
    if rows.shape != (count, dimension) or rows.dtype != np.dtype("<f4") or not rows.flags.c_contiguous:
        raise Damage(f"{name} should hold {count} vectors of {dimension} dimensions, not {rows.shape} {rows.dtype}")
    return rows


def salvage(folder: Path, number: int, sums: np.ndarray, dimension: int) -> tuple[np.ndarray, np.ndarray]:
    """Of the n rows that a file should hold: those that stand where they should (m <= n, D), and which are whole (n,).

    The header is not looked at: its length follows from its contents.
    """
    header = io.BytesIO()
    _write_header(header, len(sums), dimension)
    start = len(header.getvalue())
    whole = np.zeros(len(sums), bool)
    path = folder / name_of(number)
    size = path.stat().st_size if path.is_file() else 0
    count = min(len(sums), (size - start) // (4 * dimension))
    if count < 1:
        return np.empty((0, dimension), np.float32), whole
    rows = np.memmap(path, "<f4", "r", start, (count, dimension))
    step = max(1, _STEP // dimension)
    for first in range(0, count, step):
        part = slice(first, min(first + step, count))
        whole[part] = checksums(rows[part]) == sums[part]
    return rows, whole


def _write_header(stream: IO[bytes], count: int, dimension: int) -> None:
    header = {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)}
    np.lib.format.write_array_header_1_0(stream, header)
