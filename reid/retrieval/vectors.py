"""Vectors: what every comparison asks of them, unit length, exact inner products and their rounding bound."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

from reid.core.types import ReidError

GRID = np.float32(2.0**26)
STEP = 4096  # rows of features at a time


UNIT_TOLERANCE = 1e-4  # a row whose length is this near to 1 counts as unit and is taken as it is


def check_dimensions(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raises ReidError unless query (Q, D) and gallery (G, D) are of one dimension."""
    if query.shape[1] != gallery.shape[1]:
        raise ReidError(
            f"query and gallery features differ in dimension, {query.shape[1]} and {gallery.shape[1]}: "
            "embed both with the same model"
        )


def row_norms(features: np.ndarray, what: str) -> np.ndarray:
    """Lengths (N,) float64 of the rows of features (N, D).

    Raises ReidError that begins with `what`, unless features are two-dimensional, finite and without a row of zeros.
    """
    if features.ndim != 2 or features.dtype.kind != "f":
        raise ReidError(
            f"{what}: features should be an (N, D) array of floats, got shape {features.shape} of {features.dtype}"
        )
    norms = np.empty(len(features))
    for start in range(0, len(features), STEP):
        rows = np.asarray(features[start : start + STEP])
        norms[start : start + STEP] = np.sqrt(np.einsum("nd,nd->n", rows, rows, dtype=np.float64))
    bad = np.flatnonzero(~np.isfinite(norms) | (norms == 0))
    if len(bad):
        kind = "is all zeros" if norms[bad[0]] == 0 else "holds NaN or infinity"
        raise ReidError(f"{what}: feature row {bad[0]} {kind} ({len(bad)} such rows of {len(norms)}), embed it again")
    return norms


def is_unit(norms: np.ndarray) -> np.ndarray:
    """Which lengths (N,) count as 1, bool (N,)."""
    close: np.ndarray = np.abs(norms - 1) <= UNIT_TOLERANCE
    return close


def round_to_grid(rows: np.ndarray, norms: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Rows (N, D), or some of their columns, at unit length in multiples of 1 / GRID; norms (N,) are the rows'."""
    unit = is_unit(norms)
    if not unit.all():
        rows = rows / np.where(unit, 1.0, norms)[:, None]
    found: np.ndarray = np.multiply(rows, GRID, out=out, dtype=np.float32, casting="same_kind")
    np.rint(found, out=found)
    found *= 1 / GRID
    return found


def check_rows(features: np.ndarray, what: str, **ids: np.ndarray) -> None:
    """Raises ReidError unless features (N, D) are finite rows of unit length, and each of `ids` is of (N,) integers."""
    norms = row_norms(features, what)
    other = np.flatnonzero(~is_unit(norms))
    if len(other):
        raise ReidError(
            f"{what}: feature rows should be of unit length, row {other[0]} is {norms[other[0]]:.4g} long "
            f"({len(other)} such rows of {len(norms)}): divide each row by its length"
        )
    for name, values in ids.items():
        if values.shape != (len(features),) or values.dtype.kind not in "iu":
            raise ReidError(
                f"{name} should be {len(features)} integers, one a feature: got shape {values.shape} of {values.dtype}"
            )


def check_pair(query: np.ndarray, gallery: np.ndarray) -> None:
    """Raises ReidError unless query (Q, D) and gallery (G, D) hold finite rows of unit length, at least one each."""
    check_set(query, "query")
    check_set(gallery, "gallery")
    check_dimensions(query, gallery)


def check_set(features: np.ndarray, what: str) -> None:
    """Raises ReidError unless features (N, D) are finite rows of unit length, at least one."""
    check_rows(features, what)
    if not len(features):
        raise ReidError(f"{what}: there are no features to compare")


class Stack:
    """Features of several arrays, (n, D) each, read as if they lay in one of (N, D)."""

    def __init__(self, *parts: np.ndarray) -> None:
        self.parts = parts
        self.starts = np.cumsum([0, *map(len, parts)])
        self.dimension = parts[0].shape[1]

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, rows: slice) -> np.ndarray:
        """(n, D) of the rows at a slice without a step."""
        start, stop, _ = rows.indices(len(self))
        found = [part[max(start - at, 0) : max(stop - at, 0)] for part, at in zip(self.parts, self.starts)]
        return np.concatenate([part for part in found if len(part)])

    def split(self, rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each array: it, which of rows (N,) lie in it, and where."""
        of_part = np.searchsorted(self.starts, rows, "right") - 1
        for n, part in enumerate(self.parts):
            which = np.flatnonzero(of_part == n)
            yield part, which, rows[which] - self.starts[n]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """(n, D) of the rows at indices (n,)."""
        found = np.empty((len(rows), self.dimension), np.float32)
        for part, which, places in self.split(rows):
            found[which] = part[places]
        return found


def inner(queries: np.ndarray, vectors: np.ndarray) -> np.ndarray:
    """(Q, n) float64 products, the same in whatever order they are summed: see `reid.retrieval.evaluate`."""
    product: np.ndarray = _counted(queries) @ _counted(vectors).T
    return product / float(GRID) ** 2


def _counted(vectors: np.ndarray) -> np.ndarray:
    """Multiples of 2^-26, counted: whole numbers in float64."""
    return np.rint(vectors * GRID).astype(np.float64)


def product_error(dimension: int) -> float:
    """How far a float32 product of two unit vectors, summed in any order, may lie from the exact score.

    n u |x| |y| of the sum (u = 2^-24), and n values that the grid moved by 2^-27 each on both sides.
    """
    unit = (1 + UNIT_TOLERANCE) ** 2
    return 1.01 * unit * (dimension * 2.0**-24 + math.sqrt(dimension) * 2.0**-26)


def take(segments: Sequence[np.ndarray], rows: np.ndarray) -> np.ndarray:
    """Those rows, ascending, of the segments' rows counted through: (n, D) float32."""
    bounds = np.searchsorted(rows, np.cumsum([0, *map(len, segments)]))
    start, pieces = 0, []
    for vectors, low, high in zip(segments, bounds[:-1], bounds[1:]):
        pieces.append(vectors[rows[low:high] - start])
        start += len(vectors)
    return np.concatenate(pieces)


def fuse(vectors: np.ndarray) -> np.ndarray:
    """(n, D) unit vectors of one person -> (1, D) float32, their mean, of unit length. Raises ReidError."""
    mean = np.asarray(vectors, np.float64).sum(axis=0, keepdims=True)
    norm = np.linalg.norm(mean)
    if norm < 1e-6:
        raise ReidError(f"{len(vectors)} vectors have no mean direction: give images of one person")
    fused: np.ndarray = (mean / norm).astype(np.float32)
    return fused
