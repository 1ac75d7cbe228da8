"""A picture of a person: a camera's scene, a pose, a badly cut box, and what stands in the way."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from PIL import Image

from datasets.synthetic.cameras import Camera, background, develop
from datasets.synthetic.figure import draw_pose, figure
from datasets.synthetic.painting import Array, Limb, paint
from datasets.synthetic.people import Person

SCALE = 2  # of a canvas to its picture

# Left, top, right, bottom of a person's frame, as fractions of the canvas: 0, 0, 1, 1 is a perfect box.
Frame = tuple[float, float, float, float]


class World(NamedTuple):
    """What all pictures of a set share."""

    seed: int
    size: tuple[int, int]  # of a picture: height, width
    cameras: list[Camera]
    passers_by: list[Person]  # stand in the way; never an identity
    folds: Array  # creases of cloth, (rows, columns), larger than a canvas
    grain: Array  # noise of a sensor, (rows, columns, 3), larger than a picture


def picture(
    rng: np.random.Generator, world: World, camid: int, person: Person | None, turn: float, *, bad: bool = False
) -> Image.Image:
    """What camera `camid` makes of a person who is turned by `turn` radians, or of nobody; `bad`: a useless box."""
    camera = world.cameras[camid - 1]
    canvas = background(rng, camera, world.size[0] * SCALE, world.size[1] * SCALE)
    if rng.random() < 0.08:  # somebody further away
        x, low, half = rng.uniform(0, 1), rng.uniform(0.7, 0.92), rng.uniform(0.25, 0.38)
        _place_other(rng, world, canvas, camera, (x - half, low - 2 * half, x + half, low))
    if person is not None:
        _place(rng, world, canvas, camera, person, turn, _bad_frame(rng) if bad else _frame(rng))
    if rng.random() < camera.occlusion:
        _obstruct(rng, world, canvas, camera)
    return develop(rng, camera, canvas, world.grain)


def draw_turn(rng: np.random.Generator, camera: Camera) -> float:
    """How somebody walks by: they come and go along the camera's heading, and some cross it."""
    return camera.heading + (np.pi if rng.random() < 0.5 else 0.0) + rng.normal(0, 0.6)


def _side(rng: np.random.Generator) -> int:
    return -1 if rng.random() < 0.5 else 1


def _frame(rng: np.random.Generator) -> Frame:
    """Of a detector's box: mostly near the person, sometimes loose, or cut at feet or head."""
    kind = rng.random()
    high, low = rng.uniform(0.01, 0.07), rng.uniform(0.93, 0.99)
    if kind < 0.06:
        low = rng.uniform(1.05, 1.25)  # feet cut off
    elif kind < 0.09:
        high = rng.uniform(-0.12, -0.04)  # crown cut off
    elif kind < 0.18:
        high, low = rng.uniform(0.05, 0.15), rng.uniform(0.85, 0.95)  # loose
    middle = 0.5 + min(max(rng.normal(0, 0.06), -0.17), 0.17)
    half = 0.5 * (low - high) * rng.uniform(0.9, 1.18)
    return middle - half, high, middle + half, low


def _bad_frame(rng: np.random.Generator) -> Frame:
    """Of a box that shows only a part of the person: far too tight and beside them."""
    half = rng.uniform(0.6, 1.1)
    middle = 0.5 + _side(rng) * rng.uniform(0.2, 0.55)
    high = rng.uniform(-0.9, 0.5)
    return middle - half, high, middle + half, high + 2 * half


def _place(
    rng: np.random.Generator, world: World, canvas: Array, camera: Camera, person: Person, turn: float, frame: Frame
) -> None:
    """Paints a person, and their shadow, so that crown and soles fill the frame's height."""
    rows, columns = canvas.shape[:2]
    left, top, right, bottom = frame
    limbs = figure(person, draw_pose(rng, turn), camera.pitch)
    crown, sole = min(limb.start[1] for limb in limbs) - person.head, 0.04
    scale = (bottom - top) * rows / (sole - crown)  # pixels a metre
    stretch = (right - left) * columns / (0.5 * (bottom - top) * rows)
    x0, y0 = (left + right) / 2 * columns, bottom * rows - sole * scale
    ground = min(max(int(y0 - 0.12 * scale), 0), rows)
    x, y = np.arange(columns, dtype=np.float32) - x0, np.arange(ground, rows, dtype=np.float32) - y0
    shadow = np.exp(-((y / (0.06 * scale)) ** 2))[:, None] * np.exp(-((x / (0.3 * scale)) ** 2))
    canvas[ground:] *= (1 - rng.uniform(0.25, 0.45) * shadow)[..., None]
    seen = [
        limb._replace(
            start=(x0 + limb.start[0] * scale * stretch, y0 + limb.start[1] * scale),
            end=(x0 + limb.end[0] * scale * stretch, y0 + limb.end[1] * scale),
            widths=limb.widths * np.float32(scale * stretch),
        )
        for limb in limbs
    ]
    dy, dx = rng.integers(0, world.folds.shape[0] - rows), rng.integers(0, world.folds.shape[1] - columns)
    paint(canvas, seen, person.textures, turn, camera.light, world.folds[dy:, dx:])


def _place_other(rng: np.random.Generator, world: World, canvas: Array, camera: Camera, frame: Frame) -> None:
    other = world.passers_by[int(rng.integers(len(world.passers_by)))]
    _place(rng, world, canvas, camera, other, rng.uniform(0, 2 * np.pi), frame)


def _obstruct(rng: np.random.Generator, world: World, canvas: Array, camera: Camera) -> None:
    """Puts a pole, a piece of furniture or another person before part of the picture."""
    rows, columns = canvas.shape[:2]
    kind = str(rng.choice(["pole", "furniture", "person"]))
    if kind == "person":
        aside = _side(rng) * rng.uniform(0.42, 0.7)
        low = rng.uniform(0.95, 1.3)
        _place_other(rng, world, canvas, camera, (aside, low - 0.95, 1 + aside, low))
        return
    if kind == "pole":
        x, half, high = rng.uniform(0.05, 0.95), rng.uniform(0.03, 0.09), -0.1
    else:
        x, half, high = rng.uniform(0, 1), rng.uniform(0.3, 0.8), rng.uniform(0.66, 0.85)
    widths = np.full(2, half * columns, np.float32)
    limb = Limb(0, (x * columns, high * rows), (x * columns, 1.1 * rows), widths, 0, (0, 1), True)
    paint(canvas, [limb], camera.obstacle, 0.0, camera.light, world.folds)
