"""Painting: shaded, textured limbs on a canvas of float32 RGB in [0, 1]."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from PIL import Image

Array = np.ndarray
ROWS, COLUMNS = 64, 64  # of a texture: along the limb, and around it (the middle column is the front)


class Limb(NamedTuple):
    """A textured solid of revolution between two points, as it is seen."""

    order: float  # painted from low to high
    start: tuple[float, float]  # x to the right, y down
    end: tuple[float, float]
    widths: Array  # (n,) half widths, evenly spaced from start to end
    texture: int  # its number among the person's
    span: tuple[float, float]  # rows of the texture, as fractions
    flat: bool  # cut straight at both ends, not rounded


def noise(rng: np.random.Generator, rows: int, columns: int, cells: int) -> Array:
    """Smooth noise (rows, columns) of about unit spread, `cells` bumps along the longer side."""
    longer = max(rows, columns)
    grid = rng.standard_normal((max(2, cells * rows // longer), max(2, cells * columns // longer))).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((columns, rows), Image.Resampling.BICUBIC))


def paint(canvas: Array, limbs: list[Limb], textures: Array, turn: float, light: float, folds: Array) -> None:
    """Paints limbs over one another into the canvas (rows, columns, 3), in place.

    textures: (n, ROWS, COLUMNS, 3). turn: of all textures around their limbs, in radians. light: from the left (-) or
    the right. folds: changes of brightness, at least as large as the canvas.
    First each pixel learns which limb it sees and where on it, then all are coloured at once: edges are sharp, so the
    canvas should be larger than the picture that is made of it.
    """
    shape = canvas.shape[:2]
    owner, texel_row, across = np.full(shape, -1, np.int32), np.empty(shape, np.float32), np.empty(shape, np.float32)
    for limb in limbs:
        (ax, ay), (bx, by) = limb.start, limb.end
        length = max(math.hypot(bx - ax, by - ay), 1e-3)
        ux, uy = (bx - ax) / length, (by - ay) / length
        reach = float(limb.widths.max())
        reach_x, reach_y = (reach * abs(uy) + 1, reach * abs(ux) + 1) if limb.flat else (reach, reach)
        left, right = max(int(min(ax, bx) - reach_x), 0), min(int(max(ax, bx) + reach_x) + 2, shape[1])
        top, bottom = max(int(min(ay, by) - reach_y), 0), min(int(max(ay, by) + reach_y) + 2, shape[0])
        if left >= right or top >= bottom:
            continue
        x = np.arange(left, right, dtype=np.float32)[None] - ax
        y = np.arange(top, bottom, dtype=np.float32)[:, None] - ay
        along = x * (ux / length) + y * (uy / length)  # 0 at the start, 1 at the end
        aside = x * uy - y * ux
        t = np.minimum(np.maximum(along, 0), 1)
        beyond = (along - t) * length
        width = limb.widths.take((t * (len(limb.widths) - 1) + 0.5).astype(np.int32))
        if limb.flat:
            inside = (np.abs(aside) < width) & (np.abs(beyond) < 0.5)
        else:
            inside = aside * aside + beyond * beyond < width * width
        box = slice(top, bottom), slice(left, right)
        np.copyto(owner[box], limb.texture, where=inside)
        np.copyto(texel_row[box], limb.span[0] + (limb.span[1] - limb.span[0]) * t, where=inside)
        np.copyto(across[box], aside / width, where=inside)
    pixels = np.flatnonzero(owner >= 0)
    n = np.minimum(np.maximum(across.take(pixels), -1), 1)
    column = ((np.arcsin(n) - turn) * (COLUMNS / (2 * np.pi)) + COLUMNS / 2).astype(np.int32) % COLUMNS
    row = (np.minimum(texel_row.take(pixels), 0.999) * ROWS).astype(np.int32)
    texel = (owner.take(pixels) * ROWS + row) * COLUMNS + column
    shade = 1 - 0.34 * n * n + light * n + folds[: shape[0], : shape[1]].ravel().take(pixels)
    canvas.reshape(-1, 3)[pixels] = textures.reshape(-1, 3).take(texel, axis=0) * shade[:, None]
