"""Synthetic people: a person re-identification data set drawn by this file, in Market-1501's layout and names.

    python -m datasets.synthetic --data-root data --ids 2000 --seed 1     draw a larger set into data/synthetic
    python -m datasets.synthetic --data-root data --sheet people.png      a picture of some of its people

A person is a fixed set of measures (body, clothes, hair, bag); each picture of them is a small 3-D skeleton in a walking
pose, drawn as shaded, textured limbs from the camera's side, in a badly cut box, before a scene of that camera, and
then seen through it: light, colour cast, contrast, blur, noise, JPEG. Most people wear black, grey, white or blue, so
many differ only by pattern, shape, hair or bag; cameras differ so much that raw colours do not match across them.

Everything follows from the seed. A person's appearance and pictures depend on the seed, the pid and the cameras'
number alone, not on how many others are drawn. Odd pids are for training and even ones for testing, so the training
people of a large set are never the test people of a smaller one of the same seed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter
from tqdm import tqdm

from reid.files import atomic_file, atomic_folder, write_json
from reid.types import DISTRACTOR, JUNK, ReidError, Sample, Splits

VERSION = 1  # of the drawing; a change of a single pixel raises it
MANIFEST = "synthetic.json"
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")
MAX_PID = 9999  # a file name has four digits for it
THREADS = 2  # more do not help: half of the time is spent holding the interpreter's lock

# What a random stream is for: default_rng([seed, one of these, index]).
_PERSON, _PICTURES, _CAMERA, _PASSER_BY, _STRANGER, _BAD_BOX, _NOISE = range(7)

Array = np.ndarray
_SCALE = 2  # drawn at twice the size, then averaged
_PARTS = ("top", "arm", "leg", "skirt", "head", "hair", "crown", "cloth", "skin", "shoe", "bag")
_ROWS, _COLUMNS = 64, 64  # of a texture: along the limb, and around it (the middle column is the front)

# Colours of clothes: share of people, RGB. Muted, and mostly without a hue, as in a street.
_CLOTHES = (
    (0.24, (30, 30, 33)),
    (0.11, (68, 70, 74)),
    (0.09, (120, 121, 124)),
    (0.05, (172, 172, 170)),
    (0.13, (218, 217, 212)),
    (0.11, (34, 42, 72)),
    (0.05, (62, 86, 138)),
    (0.03, (134, 160, 190)),
    (0.05, (92, 72, 54)),
    (0.04, (178, 158, 124)),
    (0.03, (142, 40, 42)),
    (0.02, (52, 84, 60)),
    (0.02, (94, 96, 62)),
    (0.015, (196, 132, 142)),
    (0.015, (92, 62, 112)),
    (0.01, (202, 170, 70)),
    (0.01, (196, 104, 50)),
)
_TROUSERS = (
    (0.32, (28, 28, 32)),
    (0.20, (48, 62, 96)),
    (0.12, (84, 104, 142)),
    (0.10, (66, 67, 70)),
    (0.07, (116, 116, 118)),
    (0.07, (160, 142, 112)),
    (0.06, (34, 40, 62)),
    (0.03, (206, 204, 198)),
    (0.03, (84, 66, 50)),
)
_SKIN = ((0.5, (214, 172, 146)), (0.25, (190, 142, 110)), (0.15, (142, 98, 72)), (0.1, (88, 60, 46)))
_HAIR = ((0.45, (30, 25, 24)), (0.28, (66, 46, 34)), (0.12, (116, 84, 54)), (0.08, (176, 146, 96)), (0.07, (140, 138, 136)))
_SHOES = ((0.45, (28, 28, 30)), (0.25, (208, 208, 206)), (0.15, (92, 64, 44)), (0.1, (66, 70, 90)), (0.05, (156, 46, 44)))


# ---------------------------------------------------------------------------------------------------------------------
# A person


@dataclass(frozen=True)
class _Person:
    """Lengths in metres; colours and textures are RGB in [0, 1], textures (_ROWS, _COLUMNS, 3) around a limb."""

    height: float
    leg: float  # height of the hip joint
    head: float  # half the head's width
    trunk: Array  # (4, 2) half width and half depth at shoulder, chest, waist, hip
    limb: float  # thickness of arms and legs
    loose: float  # how far trousers stand off below the knee
    hem: float  # how far the upper garment reaches below the hip joint
    skirt: float  # length below the hip joint; 0: none
    bag: str
    bag_side: int  # 1: the person's left
    bag_size: Array  # half width, half depth, height
    long_hair: float  # length below the crown; 0: short
    bun: bool
    brim: bool
    hood: bool
    textures: Array  # (len(_PARTS), _ROWS, _COLUMNS, 3)
    bare_arms: bool


def _choose(rng: np.random.Generator, table: tuple[tuple[float, tuple[int, int, int]], ...], spread: float = 0.05) -> Array:
    """One RGB colour in [0, 1] of the table, moved a little."""
    shares = np.array([share for share, _ in table])
    colour = np.array(table[int(rng.choice(len(table), p=shares / shares.sum()))][1], np.float32) / 255
    moved = colour * np.exp(rng.normal(0, 0.15)) + rng.normal(0, spread / 2, 3)
    return np.clip(moved, 0.05, 0.93).astype(np.float32)


def _around() -> tuple[Array, Array]:
    """Height v in [0, 1) as (_ROWS, 1) and angle as (1, _COLUMNS), 0 at the front, positive to the person's left."""
    v = (np.arange(_ROWS, dtype=np.float32)[:, None] + 0.5) / _ROWS
    angle = (np.arange(_COLUMNS, dtype=np.float32)[None] + 0.5) / _COLUMNS * 2 * np.pi - np.pi
    return v, angle


def _plain(colour: Array) -> Array:
    return np.broadcast_to(colour, (_ROWS, _COLUMNS, 3)).astype(np.float32)


def _pattern(rng: np.random.Generator, base: Array, second: Array) -> Array:
    v, angle = _around()
    kind = rng.choice(
        ["plain", "across", "down", "checks", "print", "two-tone", "band", "mottled", "dots"],
        p=[0.40, 0.13, 0.05, 0.09, 0.12, 0.08, 0.06, 0.04, 0.03],
    )
    duty = rng.uniform(0.3, 0.55)
    across = (v * rng.integers(4, 11) + rng.random()) % 1 < duty
    down = (angle / (2 * np.pi) * rng.choice([8, 10, 12, 16]) + rng.random()) % 1 < duty
    if kind == "plain":
        cover = np.zeros((1, 1), np.float32)
    elif kind == "across":
        cover = across.astype(np.float32)
    elif kind == "down":
        cover = down.astype(np.float32)
    elif kind == "checks":
        cover = 0.5 * across.astype(np.float32) + 0.5 * down
    elif kind == "print":
        middle, high, wide = rng.uniform(0.3, 0.5), rng.uniform(0.06, 0.18), rng.uniform(0.3, 0.75)
        facing = angle if rng.random() < 0.75 else (angle % (2 * np.pi)) - np.pi
        ellipse = rng.random() < 0.4
        u, w = facing / wide, (v - middle) / high
        inside = u * u + w * w < 1 if ellipse else (np.abs(u) < 1) & (np.abs(w) < 1)
        hole = (np.abs(w) < 0.25) & (np.abs(u) < 0.8) & (rng.random() < 0.5)
        cover = (inside & ~hole).astype(np.float32)
    elif kind == "two-tone":
        cover = (v > rng.uniform(0.3, 0.65)).astype(np.float32)
    elif kind == "band":
        start = rng.uniform(0.2, 0.55)
        cover = ((v > start) & (v < start + rng.uniform(0.08, 0.22))).astype(np.float32)
    elif kind == "mottled":
        cover = (_noise(rng, _ROWS, _COLUMNS, 12) > 0.1).astype(np.float32)
    else:
        n = rng.integers(7, 13)
        u, w = (angle / np.pi * n) % 1 - 0.5, (v * n) % 1 - 0.5
        cover = (u * u + w * w < 0.06).astype(np.float32)
    cover = np.broadcast_to(cover, (_ROWS, _COLUMNS))[..., None]
    return (base * (1 - cover) + second * cover).astype(np.float32)


def _person(rng: np.random.Generator) -> _Person:
    """Draws all that stays the same between two pictures of one person."""
    v, angle = _around()
    woman = rng.random() < 0.48
    height = float(np.clip(rng.normal(1.65 if woman else 1.77, 0.07), 1.42, 1.98))
    girth = float(np.exp(rng.normal(0, 0.14)))
    shoulder = (0.185 if woman else 0.215) * girth**0.6
    waist, hip = (0.135 if woman else 0.155) * girth, (0.175 if woman else 0.165) * girth
    depth = 0.115 * girth
    trunk = np.array(
        [(shoulder, 0.085), (shoulder * 0.9, depth * 1.05), (waist * 1.08, depth * girth**0.8), (hip, depth * 1.05)]
    )
    skin = _choose(rng, _SKIN, 0.03)

    # Upper garment.
    base, second, inner = _choose(rng, _CLOTHES), _choose(rng, _CLOTHES), _choose(rng, _CLOTHES)
    while np.abs(base - second).max() < 0.2:
        second = _choose(rng, _CLOTHES)
    kind = str(rng.choice(["t-shirt", "long sleeve", "open jacket", "coat", "hoodie"], p=[0.32, 0.24, 0.2, 0.12, 0.12]))
    top = _pattern(rng, base, second)
    sleeve = 0.99  # share of the arm that it covers, the rest is skin
    hem = rng.uniform(0.02, 0.12)
    if kind == "t-shirt":
        sleeve = rng.uniform(0.2, 0.45)
    elif kind == "open jacket":
        shirt = _pattern(rng, inner, second)
        open_to = rng.uniform(0.2, 0.6) * (0.4 + 0.6 * v)
        top = np.where((np.abs(angle) < open_to)[..., None], shirt, _plain(base))
    elif kind == "coat":
        hem = rng.uniform(0.2, 0.5)
        top = _plain(base).copy()
        top[:, _COLUMNS // 2] *= 0.6
        if rng.random() < 0.4:
            belt = rng.uniform(0.45, 0.6)
            top[(v[:, 0] > belt) & (v[:, 0] < belt + 0.05)] = second
    arm_base = second if rng.random() < 0.12 else base
    arm_v = np.broadcast_to((v < sleeve)[..., None], (_ROWS, _COLUMNS, 3))
    ringed = bool(np.ptp(top, axis=1).max() < 1e-6 and np.ptp(top) > 0.1) and rng.random() < 0.7  # stripes go round
    arm = np.where(arm_v, top if ringed else _plain(arm_base), _plain(skin))

    # Lower garment: v runs from the hip joint (0) over the knee (0.5) to the ankle (1).
    below = _choose(rng, _TROUSERS)
    leg = _plain(below).copy()
    lower = str(rng.choice(["trousers", "shorts", "skirt"], p=[0.58, 0.24, 0.18] if woman else [0.76, 0.24, 0.0]))
    skirt = 0.0
    if lower == "trousers":
        trim = rng.random()
        if trim < 0.10:
            leg[:, np.abs(np.abs(angle[0]) - np.pi / 2) < 0.25] = _choose(rng, _CLOTHES)
        elif trim < 0.3:
            leg *= 1 + 0.35 * np.exp(-(((v - 0.3) / 0.15) ** 2))[..., None]  # worn over the thigh
        leg[v[:, 0] > rng.uniform(0.88, 1.1)] = skin
    elif lower == "shorts":
        leg[v[:, 0] > rng.uniform(0.3, 0.5)] = skin
        if rng.random() < 0.3:
            leg[v[:, 0] > rng.uniform(0.82, 0.92)] = _choose(rng, _SHOES)  # socks
    else:
        leg[:] = _choose(rng, _TROUSERS[:1]) if rng.random() < 0.35 else skin
        skirt = rng.uniform(0.28, 0.68)
    dress = skirt > 0 and rng.random() < 0.4
    below_pattern = _pattern(rng, below, second) if rng.random() < 0.4 else _plain(below)
    skirt_texture = np.concatenate([top[_ROWS // 2 :]] * 2) if dress else below_pattern

    # Head: v runs from the crown (0) to the chin (1).
    hair = _choose(rng, _HAIR, 0.03)
    hat = rng.random() < 0.15
    crown = _choose(rng, _CLOTHES) if hat else hair
    bald = not hat and not woman and rng.random() < 0.08
    face = (np.abs(angle) < rng.uniform(0.9, 1.3)) & (v > (0.38 if hat else rng.uniform(0.2, 0.34)))
    neck = v > rng.uniform(0.68, 0.95)
    head = np.where((face | neck)[..., None], skin, skin * 0.95 if bald else hair)
    if hat:
        head = np.where((v < 0.36)[..., None], crown, head)
    eyes = (np.abs(np.abs(angle) - 0.36) < 0.16) & (np.abs(v - 0.52) < 0.035)
    head = np.where(eyes[..., None], head * 0.45, head)
    if not woman and rng.random() < 0.2:
        head = np.where(((np.abs(angle) < 0.8) & (v > 0.72))[..., None], hair, head)  # a beard

    # Bag.
    bag = str(rng.choice(["none", "backpack", "shoulder bag", "handbag"], p=[0.46, 0.26, 0.16, 0.12]))
    bag_side = 1 if rng.random() < 0.5 else -1
    bag_colour = _choose(rng, _CLOTHES)
    bag_texture = _plain(bag_colour).copy()
    if rng.random() < 0.5:
        bag_texture[(v[:, 0] > 0.5) & (v[:, 0] < rng.uniform(0.6, 0.95))] = _choose(rng, _CLOTHES)
    size = {"backpack": (0.14, 0.085, 0.40), "shoulder bag": (0.06, 0.15, 0.26), "handbag": (0.05, 0.15, 0.26)}
    bag_size = np.array(size.get(bag, (0.0, 0.0, 0.0))) * rng.uniform(0.8, 1.25)
    if bag == "backpack":
        straps = (np.abs(np.abs(angle) - 0.62) < 0.13) & (v < 0.5)
        top = np.where(straps[..., None], bag_colour * 0.85, top)
    elif bag == "shoulder bag" and rng.random() < 0.7:  # the strap crosses the chest and the back
        high = -bag_side * 0.9 * (1 - 2 * v)
        front = np.abs(angle - high) < 0.11
        back = np.abs((angle + np.pi) % (2 * np.pi) - np.pi - (np.sign(-high) * np.pi - high)) < 0.11
        top = np.where((front | back)[..., None], bag_colour * 0.85, top)

    textures = {
        "top": top,
        "arm": arm,
        "leg": leg,
        "skirt": skirt_texture,
        "head": head,
        "hair": _plain(hair),
        "crown": _plain(crown),
        "cloth": _plain(base * 0.9),
        "skin": _plain(skin),
        "shoe": _plain(_choose(rng, _SHOES)),
        "bag": bag_texture,
    }
    return _Person(
        height=height,
        leg=height * rng.uniform(0.465, 0.515),
        head=0.076 * float(np.exp(rng.normal(0, 0.06))),
        trunk=trunk,
        limb=girth**0.6 * (0.92 if woman else 1.0),
        loose=rng.uniform(0.0, 0.035) if lower == "trousers" else 0.0,
        hem=hem,
        skirt=skirt,
        bag=bag,
        bag_side=bag_side,
        bag_size=bag_size,
        long_hair=rng.uniform(0.24, 0.5) if rng.random() < (0.62 if woman else 0.05) else 0.0,
        bun=bool(woman and not hat and rng.random() < 0.25),
        brim=bool(hat and rng.random() < 0.6),
        hood=kind == "hoodie",
        bare_arms=sleeve < 0.5,
        textures=np.stack([textures[part] for part in _PARTS]).astype(np.float32),
    )


# ---------------------------------------------------------------------------------------------------------------------
# Painting


class _Limb(NamedTuple):
    """A textured solid of revolution between two points, as it is seen."""

    order: float  # painted from low to high
    start: tuple[float, float]
    end: tuple[float, float]
    widths: Array  # half widths, evenly spaced from start to end
    texture: int  # its number among the person's
    span: tuple[float, float]  # rows of the texture, as fractions
    flat: bool  # cut straight at both ends, not rounded


_STEPS = np.linspace(0, 1, 48)  # of a limb's profile


def _noise(rng: np.random.Generator, rows: int, columns: int, cells: int) -> Array:
    """Smooth noise (rows, columns) of about unit spread, `cells` bumps along the longer side."""
    longer = max(rows, columns)
    grid = rng.standard_normal((max(2, cells * rows // longer), max(2, cells * columns // longer))).astype(np.float32)
    return np.asarray(Image.fromarray(grid).resize((columns, rows), Image.Resampling.BICUBIC))


def _paint(canvas: Array, limbs: list[_Limb], textures: Array, turn: float, light: float, folds: Array) -> None:
    """Paints limbs over one another into the canvas (rows, columns, 3), shaded round; `turn` of the textures in radians.

    First each pixel learns which limb it sees and where on it, then all are coloured at once.
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
    column = ((np.arcsin(n) - turn) * (_COLUMNS / (2 * np.pi)) + _COLUMNS / 2).astype(np.int32) % _COLUMNS
    row = (np.minimum(texel_row.take(pixels), 0.999) * _ROWS).astype(np.int32)
    texel = (owner.take(pixels) * _ROWS + row) * _COLUMNS + column
    shade = 1 - 0.34 * n * n + light * n + folds[: shape[0], : shape[1]].ravel().take(pixels)
    canvas.reshape(-1, 3)[pixels] = textures.reshape(-1, 3).take(texel, axis=0) * shade[:, None]


class _Pose(NamedTuple):
    turn: float  # 0 faces the camera, pi/2 walks to the picture's right
    phase: float  # of the gait, radians
    stride: float  # swing of the thigh, radians
    elbow: float
    spread: float  # of the arms from the body, radians
    phone: bool  # a hand at the ear


def _pose(rng: np.random.Generator, turn: float) -> _Pose:
    walking = rng.random() < 0.78
    return _Pose(
        turn=turn,
        phase=rng.uniform(0, 2 * np.pi),
        stride=rng.uniform(0.22, 0.5) if walking else rng.uniform(0, 0.08),
        elbow=rng.uniform(0.1, 0.7) if rng.random() < 0.8 else rng.uniform(1.0, 1.7),
        spread=rng.uniform(0.04, 0.2),
        phone=bool(rng.random() < 0.05),
    )


def _figure(person: _Person, pose: _Pose, pitch: float) -> list[_Limb]:
    """The limbs of a person in a pose, in metres, x to the right and y down from the lower ankle, in painting order."""
    p, limbs = person, []
    cos, sin, cos_pitch, sin_pitch = math.cos(pose.turn), math.sin(pose.turn), math.cos(pitch), math.sin(pitch)

    def seen(point: Array) -> tuple[float, float, float]:
        """(x, y, depth towards the camera) of a body point: x to the person's left, y up, z forward."""
        x, y, z = point
        depth = z * cos - x * sin
        return float(x * cos + z * sin), float(-y * cos_pitch + depth * sin_pitch), float(depth)

    def add(
        layer: float,
        start: Any,
        end: Any,
        widths: Any,
        texture: str,
        *,
        depths: Any = None,
        span: tuple[float, float] = (0.0, 1.0),
        flat: bool = False,
    ) -> None:
        """`depths`: half depths where the section is not round. `layer` goes before the depth in the order."""
        (ax, ay, az), (bx, by, bz) = seen(np.asarray(start, float)), seen(np.asarray(end, float))
        profile = np.asarray(widths, float)
        if depths is not None:
            profile = np.hypot(profile * cos, np.asarray(depths, float) * sin)
        knots = np.arange(len(profile)) / (len(profile) - 1)
        profile = np.interp(_STEPS, knots, profile).astype(np.float32)
        limbs.append(_Limb(layer + (az + bz) / 2, (ax, ay), (bx, by), profile, _PARTS.index(texture), span, flat))

    # Legs.
    thigh, shin = p.leg * 0.5, p.leg * 0.455
    hands = []
    for side in (1, -1):
        swing = side * math.sin(pose.phase) * pose.stride
        bend = 0.08 + pose.stride * 1.3 * max(0.0, side * math.cos(pose.phase))
        hip = np.array([side * p.trunk[3, 0] * 0.5, p.leg, 0.0])
        knee = hip + thigh * np.array([0.0, -math.cos(swing), math.sin(swing)])
        ankle = knee + shin * np.array([0.0, -math.cos(swing - bend), math.sin(swing - bend)])
        add(-2, hip, knee, np.array([0.088, 0.08, 0.062 + p.loose / 2]) * p.limb, "leg", span=(0, 0.5))
        add(-2, knee, ankle, np.array([0.06 + p.loose / 2, 0.056 + p.loose, 0.042 + p.loose]) * p.limb, "leg", span=(0.5, 1))
        toe = ankle + np.array([side * 0.03, -0.035, 0.15])
        add(-1.99, ankle + np.array([0.0, -0.03, -0.03]), toe, [0.046, 0.05, 0.036], "shoe")

        # Arms, swinging against the legs.
        shoulder = np.array([side * (p.trunk[0, 0] - 0.035), p.height * 0.812, 0.0])
        lift = -swing * 0.9
        out = side * math.sin(pose.spread)
        phone = pose.phone and side == p.bag_side
        elbow = shoulder + p.height * 0.175 * np.array([out, -math.cos(lift), math.sin(lift)])
        fore = 2.5 if phone else lift + pose.elbow
        hand = elbow + p.height * 0.15 * np.array([out * (-1.5 if phone else 0.3), -math.cos(fore), math.sin(fore)])
        depth = seen(shoulder)[2]
        layer = -4.0 if depth < -0.06 else 1.0
        sleeve = 0.0 if p.bare_arms else 0.008
        add(layer, shoulder, elbow, np.array([0.058, 0.053, 0.044 + sleeve]) * p.limb, "arm", span=(0, 0.52))
        add(layer + 0.01, elbow, hand, np.array([0.043 + sleeve, 0.042 + sleeve, 0.032]) * p.limb, "arm", span=(0.52, 1))
        add(layer, hand, hand + (hand - elbow) * 0.25, [0.036, 0.03], "skin")
        hands.append((hand, layer))

    # Trunk, skirt and what hangs on them.
    high = p.height * 0.853
    waist_to_hem = p.leg - p.hem
    keys = [high, high - 0.035, high - 0.075, high - 0.2, (high + p.leg) / 2 - 0.04, p.leg, waist_to_hem]
    flare = 1 + 0.25 * p.hem
    wide = np.array([0.06, p.trunk[0, 0] * 0.72, *p.trunk[:, 0], p.trunk[3, 0] * flare])
    deep = np.array([0.06, 0.075, *p.trunk[:, 1], p.trunk[3, 1] * flare])
    steps = np.linspace(high, waist_to_hem, 48)[::-1]
    wide, deep = np.interp(steps, keys[::-1], wide[::-1])[::-1], np.interp(steps, keys[::-1], deep[::-1])[::-1]
    add(0, (0, high, -0.01), (0, waist_to_hem, 0), wide, "top", depths=deep, flat=True)
    if p.skirt:
        hip_wide, hip_deep = p.trunk[3]
        spread = 1.05 + 0.5 * p.skirt
        start, end = (0, p.leg + 0.08, 0), (0, p.leg - p.skirt, 0)
        add(-0.5, start, end, [hip_wide * 0.9, hip_wide * 1.04, hip_wide * spread], "skirt",
            depths=[hip_deep, hip_deep * 1.1, hip_deep * spread * 1.1], flat=True)  # fmt: skip
    w, d, h = p.bag_size
    if p.bag == "backpack":
        back = -p.trunk[1, 1] - d * 0.8
        add(3 * cos * -1, (0, high - 0.09, back), (0, high - 0.09 - h, back), [w * 0.75, w, w, w * 0.9], "bag",
            depths=[d * 0.6, d, d * 1.1, d], flat=True)  # fmt: skip
    elif p.bag == "shoulder bag":
        x = p.bag_side * (p.trunk[3, 0] + w * 0.8)
        layer = 2.0 if seen(np.array([x, 0, 0]))[2] > -0.1 else -3.0
        add(layer, (x, p.leg + 0.1, 0), (x, p.leg + 0.1 - h, 0), [w * 0.9, w, w], "bag", depths=[d * 0.9, d, d], flat=True)
    elif p.bag == "handbag":
        hand, layer = hands[0 if p.bag_side == 1 else 1]
        add(layer + 0.02, hand - np.array([0, 0.13, 0]), hand - np.array([0, 0.13 + h, 0]), [w * 0.8, w, w], "bag",
            depths=[d * 0.85, d, d], flat=True)  # fmt: skip
        add(layer + 0.015, hand, hand - np.array([0, 0.15, 0]), [0.012, 0.012], "bag")

    # Head.
    crown = p.height
    centre = crown - p.head * 1.45
    add(0.3, (0, high - 0.02, 0), (0, centre, 0.02), [0.055, 0.05], "skin")
    r = p.head
    add(0.5, (0, crown - r, 0.025), (0, crown - 2.05 * r, 0.035), [r * 1.02, r, r * 0.78], "head",
        depths=[r * 1.15, r * 1.12, r * 0.95])  # fmt: skip
    if p.hood:
        add(0.4 - 0.3 * cos, (0, high + 0.03, -0.06), (0, high - 0.07, -0.09), [0.085, 0.1, 0.07], "cloth")
    if p.long_hair:
        low = crown - p.long_hair
        add(0.45 - cos, (0, crown - r * 0.9, -0.035), (0, low, -0.07), [r, r * 1.12, r * 1.15, r * 0.8], "hair",
            depths=[r * 0.8, r * 0.7, r * 0.6, r * 0.5])  # fmt: skip
    if p.bun:
        add(0.5 - cos * 0.3, (0, crown - 0.04, -r * 1.1), (0, crown - 0.05, -r * 1.3), [r * 0.5, r * 0.5], "hair")
    if p.brim:
        add(0.6 if cos > -0.3 else 0.2, (0, crown - 0.7 * r, r * 0.9), (0, crown - 0.8 * r, r * 2.0), [0.06, 0.05], "crown")

    shoe = _PARTS.index("shoe")
    ground = max(max(limb.start[1], limb.end[1]) for limb in limbs if limb.texture == shoe)
    return [
        limb._replace(start=(limb.start[0], limb.start[1] - ground), end=(limb.end[0], limb.end[1] - ground))
        for limb in sorted(limbs, key=lambda limb: limb.order)
    ]


# ---------------------------------------------------------------------------------------------------------------------
# A camera


@dataclass(frozen=True)
class _Camera:
    """How a camera stands, what is behind its people, and what it does to colours."""

    scenes: list[tuple[Image.Image, float]]  # and the row where the floor begins, a fraction of its height
    pitch: float  # it looks down by so much, radians
    heading: float  # people walk along this direction, one way or the other
    light: float  # from the side: -1 left to 1 right
    gain: Array  # (3,) brightness and colour cast
    gradient: tuple[float, float]  # change of light over half the width and height
    saturation: float
    gamma: float
    contrast: float
    haze: float  # share of white veil
    sharpness: float  # share of the resolution that is left
    blur: float  # pixels
    noise: float  # of 255
    jpeg: int  # quality inside the camera
    occlusion: float  # share of its pictures with something before the person
    obstacle: Array  # texture of what stands in the way


def _scene(rng: np.random.Generator) -> tuple[Image.Image, float]:
    """A wall and a floor with their textures, 640 x 384, and the height of the line between them."""
    rows, columns = 384, 640
    floor = rng.uniform(0.42, 0.6)
    line = int(rows * floor)
    wall = np.array(rng.choice([(150, 140, 128), (120, 76, 62), (176, 172, 160), (96, 104, 112), (70, 92, 62)]), float)
    ground = np.array(rng.choice([(112, 110, 108), (142, 134, 122), (84, 86, 90), (88, 108, 66), (160, 156, 150)]), float)
    wall, ground = wall * rng.uniform(0.7, 1.25), ground * rng.uniform(0.75, 1.2)
    picture = Image.new("RGB", (columns, rows))
    pen = ImageDraw.Draw(picture)

    def colour(base: Array, factor: float = 1.0) -> tuple[int, int, int]:
        r, g, b = (np.clip(base * factor, 0, 255)).astype(int).tolist()
        return r, g, b

    pen.rectangle((0, 0, columns, line), colour(wall))
    pen.rectangle((0, line, columns, rows), colour(ground))
    kind = rng.choice(["bricks", "windows", "shutters", "plants", "panels"])
    if kind == "bricks":
        high = int(rng.integers(10, 22))
        for k, y in enumerate(range(0, line, high)):
            pen.line((0, y, columns, y), colour(wall, 0.75), 2)
            for x in range(k % 2 * high, columns, 2 * high):
                pen.line((x, y, x, y + high), colour(wall, 0.75), 2)
    elif kind == "windows":
        step = int(rng.integers(90, 170))
        for x in range(int(rng.integers(0, step)), columns, step):
            pane = wall * 0.35 + rng.uniform(0, 120)
            pen.rectangle((x, line // 5, x + step // 2, line - line // 8), colour(pane), colour(wall, 1.3), 4)
            pen.line((x + step // 4, line // 5, x + step // 4, line - line // 8), colour(wall, 1.25), 4)
    elif kind == "shutters":
        for y in range(0, line, int(rng.integers(8, 16))):
            pen.line((0, y, columns, y), colour(wall, 0.7), 3)
    elif kind == "panels":
        x = 0
        while x < columns:
            wide = int(rng.integers(40, 200))
            pen.rectangle((x, 0, x + wide, line - 8), colour(wall, rng.uniform(0.5, 1.4)))
            x += wide
    if rng.random() < 0.6:  # paving, narrower with distance
        middle, n = rng.uniform(0, columns), int(rng.integers(5, 12))
        for k in range(-3 * n, 3 * n):
            pen.line((middle + k * 40, line, middle + k * 160, rows), colour(ground, 0.82), 2)
        y = float(line)
        gap = rng.uniform(4, 9)
        while y < rows:
            pen.line((0, y, columns, y), colour(ground, 0.82), 2)
            y += gap
            gap *= 1.35
    elif rng.random() < 0.4:  # a crossing
        for x in range(0, columns, 90):
            pen.polygon([(x, line + 50), (x + 45, line + 50), (x + 25, rows), (x - 40, rows)], colour(ground, 1.6))
    for _ in range(int(rng.integers(1, 5))):  # cars, bins, doors
        x, wide, high = rng.uniform(0, columns), rng.uniform(40, 170), rng.uniform(40, 120)
        thing = rng.uniform(20, 210, 3) * 0.5 + rng.uniform(10, 110)
        pen.rounded_rectangle((x, line - high * 0.7, x + wide, line + high * 0.3), 12, colour(thing))
        pen.rectangle((x + 10, line - high * 0.6, x + wide - 10, line - high * 0.3), colour(thing, 0.5))
    scene = np.asarray(picture.filter(ImageFilter.GaussianBlur(1.2)), np.float32) / 255
    rough = 0.05 * _noise(rng, rows, columns, 220) + 0.05 * _noise(rng, rows, columns, 60) + 0.07 * _noise(rng, rows, columns, 6)
    leaves = 0.3 * np.abs(_noise(rng, rows, columns, 90)) - 0.2 if kind == "plants" else 0.0
    above = (np.arange(rows)[:, None] < line).astype(np.float32)
    scene = np.clip(scene * (1 + rough + above * leaves)[..., None], 0, 1)
    return Image.fromarray((scene * 255).astype(np.uint8)), floor


def _camera(seed: int, number: int) -> _Camera:
    """Camera `number`, from 1. Casts and brightness step around by the golden ratio, so that cameras lie far apart."""
    rng = np.random.default_rng([seed, _CAMERA, number])
    start = np.random.default_rng([seed, _CAMERA, 0]).random(2)
    hue = (start[0] + number * 0.618034) % 1 * 2 * np.pi
    cast = np.exp(rng.uniform(0.1, 0.2) * np.cos(hue - np.array([0, 2, 4]) * np.pi / 3))
    brightness = 0.6 + 0.75 * ((start[1] + number * 0.754878) % 1)
    scenes = [_scene(rng) for _ in range(3)]
    grey = rng.uniform(0.15, 0.7) * rng.uniform(0.8, 1.2, 3)
    obstacle = np.clip(grey * (1 + 0.15 * _noise(rng, _ROWS, _COLUMNS, 30))[..., None], 0, 1)
    return _Camera(
        scenes=scenes,
        pitch=rng.uniform(0.05, 0.42),
        heading=rng.uniform(0, np.pi),
        light=rng.uniform(-0.22, 0.22),
        gain=(brightness * cast).astype(np.float32),
        gradient=(rng.uniform(-0.2, 0.2), rng.uniform(-0.15, 0.15)),
        saturation=rng.uniform(0.5, 1.3),
        gamma=rng.uniform(0.75, 1.35),
        contrast=rng.uniform(0.75, 1.2),
        haze=rng.uniform(0, 0.16),
        sharpness=rng.uniform(0.45, 1.0),
        blur=rng.uniform(0, 0.8),
        noise=rng.uniform(1.5, 8),
        jpeg=int(rng.integers(35, 85)),
        occlusion=rng.uniform(0.04, 0.22),
        obstacle=obstacle.astype(np.float32),
    )


class _World(NamedTuple):
    """What all pictures of a set share."""

    seed: int
    size: tuple[int, int]  # height, width
    cameras: list[_Camera]
    passers_by: list[_Person]  # stand in the way; never an identity
    folds: Array  # creases of cloth, (rows, columns), larger than a canvas
    grain: Array  # noise of a sensor, (rows, columns, 3), larger than a picture


def _background(rng: np.random.Generator, camera: _Camera, rows: int, columns: int) -> Array:
    """A part of one of the camera's scenes, so that the floor begins somewhere in the picture's middle."""
    scene, floor = camera.scenes[int(rng.integers(len(camera.scenes)))]
    high = scene.height * rng.uniform(0.55, 0.85)
    wide = high * columns / rows
    top = float(np.clip(floor * scene.height - rng.uniform(0.3, 0.75) * high, 0, scene.height - high))
    left = rng.uniform(0, scene.width - wide)
    part = scene.resize((columns, rows), Image.Resampling.NEAREST, (left, top, left + wide, top + high))
    if rng.random() < 0.5:
        part = part.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(part, np.float32) / 255


def _develop(rng: np.random.Generator, world: _World, camera: _Camera, canvas: Array) -> Image.Image:
    """What the camera makes of the light: (2h, 2w, 3) in [0, 1] -> an RGB picture (h, w)."""
    image = canvas[0::2] + canvas[1::2]
    image = (image[:, 0::2] + image[:, 1::2]) * 0.25
    rows, columns = image.shape[:2]
    across = camera.gradient[0] * np.linspace(-1, 1, columns, dtype=np.float32)[None]
    down = camera.gradient[1] * np.linspace(-1, 1, rows, dtype=np.float32)[:, None]
    gain = camera.gain * np.exp(rng.normal(0, 0.1) + rng.normal(0, 0.025, 3)).astype(np.float32)
    image *= (1 + across + down)[..., None] * gain
    grey = image @ np.array([0.299, 0.587, 0.114], np.float32)
    image = grey[..., None] + np.float32(camera.saturation) * (image - grey[..., None])
    image = np.clip(image, 0, 1) ** np.float32(camera.gamma)
    image = 0.45 + camera.contrast * (image - 0.45)
    image = image * (1 - camera.haze) + camera.haze * 0.85
    picture = Image.fromarray((np.clip(image, 0, 1) * 255).astype(np.uint8))
    sharpness = camera.sharpness * rng.uniform(0.8, 1.1)
    if sharpness < 0.95:
        small = (max(8, int(columns * sharpness)), max(16, int(rows * sharpness)))
        picture = picture.resize(small, Image.Resampling.BOX).resize((columns, rows), Image.Resampling.BILINEAR)
    if rng.random() < 0.1:  # moved while the shutter was open
        picture = picture.filter(ImageFilter.BoxBlur((rng.uniform(0.8, 2), 0)))
    elif camera.blur > 0.3:
        picture = picture.filter(ImageFilter.BoxBlur(camera.blur))
    y, x = rng.integers(0, world.grain.shape[0] - rows), rng.integers(0, world.grain.shape[1] - columns)
    noisy = np.asarray(picture) + np.float32(camera.noise) * world.grain[y : y + rows, x : x + columns]
    encoded = io.BytesIO()
    Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8)).save(encoded, "JPEG", quality=camera.jpeg)
    return Image.open(encoded).convert("RGB")


# ---------------------------------------------------------------------------------------------------------------------
# A picture


def _place(
    rng: np.random.Generator,
    world: _World,
    canvas: Array,
    camera: _Camera,
    person: _Person,
    turn: float,
    box: tuple[float, float, float, float],
) -> None:
    """Paints a person. `box`: left, top, right, bottom as fractions of the canvas that the figure's frame fills."""
    rows, columns = canvas.shape[:2]
    limbs = _figure(person, _pose(rng, turn), camera.pitch)
    head = min(limb.start[1] for limb in limbs) - person.head
    scale = (box[3] - box[1]) * rows / (0.04 - head)
    stretch = (box[2] - box[0]) * columns / (0.5 * (box[3] - box[1]) * rows)
    x0, y0 = (box[0] + box[2]) / 2 * columns, box[3] * rows - 0.04 * scale
    dark = 0.55 + 0.2 * rng.random()
    ground = max(int(y0 - 0.1 * scale), 0)
    y, x = np.ogrid[ground:rows, 0:columns]
    shadow = (1 - dark) * np.exp(-(((x - x0) / (0.3 * scale)) ** 2) - ((y - y0) / (0.06 * scale)) ** 2)
    canvas[ground:] *= (1 - shadow)[..., None].astype(np.float32)
    seen = [
        limb._replace(
            start=(x0 + limb.start[0] * scale * stretch, y0 + limb.start[1] * scale),
            end=(x0 + limb.end[0] * scale * stretch, y0 + limb.end[1] * scale),
            widths=limb.widths * np.float32(scale * stretch),
        )
        for limb in limbs
    ]
    dy, dx = rng.integers(0, world.folds.shape[0] - rows), rng.integers(0, world.folds.shape[1] - columns)
    _paint(canvas, seen, person.textures, turn, camera.light, world.folds[dy:, dx:])


def _obstruct(rng: np.random.Generator, world: _World, canvas: Array, camera: _Camera) -> None:
    """Puts a pole, a piece of furniture or another person before part of the picture."""
    rows, columns = canvas.shape[:2]
    kind = rng.choice(["pole", "furniture", "person"])
    if kind == "person":
        other = world.passers_by[int(rng.integers(len(world.passers_by)))]
        aside = rng.choice([-1, 1]) * rng.uniform(0.42, 0.7)
        low = rng.uniform(0.95, 1.3)
        _place(rng, world, canvas, camera, other, rng.uniform(0, 2 * np.pi), (aside, low - 0.95, 1 + aside, low))
        return
    if kind == "pole":
        x, half = rng.uniform(0.05, 0.95) * columns, rng.uniform(0.03, 0.09) * columns
        start, end = (x, -4.0), (x, rows + 4.0)
    else:
        x, half = rng.uniform(0, 1) * columns, rng.uniform(0.3, 0.8) * columns
        start, end = (x, rng.uniform(0.66, 0.85) * rows), (x, rows + 4.0)
    limb = _Limb(0, start, end, np.full(2, half, np.float32), 0, (0.0, 1.0), True)
    _paint(canvas, [limb], camera.obstacle, 0.0, camera.light, world.folds)


def _box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """Where the person's frame lies in a detector's picture: mostly near it, sometimes loose or cut at head or feet."""
    kind = rng.random()
    high, low = rng.uniform(0.01, 0.07), rng.uniform(0.93, 0.99)
    if kind < 0.08:
        low = rng.uniform(1.05, 1.25)  # feet cut off
    elif kind < 0.12:
        high = rng.uniform(-0.12, -0.04)  # crown cut off
    elif kind < 0.24:
        high, low = rng.uniform(0.05, 0.15), rng.uniform(0.85, 0.95)  # loose
    middle = 0.5 + np.clip(rng.normal(0, 0.06), -0.17, 0.17)
    half = 0.5 * (low - high) * rng.uniform(0.9, 1.18)
    return middle - half, high, middle + half, low


def _bad_box(rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box that holds less than half of the person: enlarged or shifted."""
    half = rng.uniform(0.6, 1.1)
    middle = 0.5 + rng.choice([-1, 1]) * rng.uniform(0.2, 0.55)
    high = rng.uniform(-0.9, 0.5)
    return middle - half, high, middle + half, high + 2 * half


def _picture(
    rng: np.random.Generator, world: _World, camid: int, person: _Person | None, turn: float, *, bad: bool = False
) -> Image.Image:
    camera = world.cameras[camid - 1]
    rows, columns = world.size[0] * _SCALE, world.size[1] * _SCALE
    canvas = _background(rng, camera, rows, columns)
    if rng.random() < 0.12:  # somebody further away
        other = world.passers_by[int(rng.integers(len(world.passers_by)))]
        x, low, high = rng.uniform(0, 1), rng.uniform(0.7, 0.92), rng.uniform(0.5, 0.75)
        _place(rng, world, canvas, camera, other, rng.uniform(0, 2 * np.pi), (x - high / 2, low - high, x + high / 2, low))
    if person is not None:
        _place(rng, world, canvas, camera, person, turn, _bad_box(rng) if bad else _box(rng))
    if rng.random() < camera.occlusion:
        _obstruct(rng, world, canvas, camera)
    return _develop(rng, world, camera, canvas)


def _turn(rng: np.random.Generator, camera: _Camera) -> float:
    """People come and go along the camera's heading, some cross it."""
    return camera.heading + (np.pi if rng.random() < 0.5 else 0.0) + rng.normal(0, 0.6)


# ---------------------------------------------------------------------------------------------------------------------
# A set on disk


def _name(pid: int, camid: int, frame: int) -> str:
    return f"{pid if pid == JUNK else f'{pid:04d}'}_c{camid}s1_{frame:06d}_01.jpg"


def _draw_identity(folder: Path, world: _World, pid: int, images: tuple[int, int], seen_by: tuple[int, int]) -> None:
    """All pictures of one person: odd pids to the training folder; of even ones, 2 or 3 cameras give a query each."""
    person = _person(np.random.default_rng([world.seed, _PERSON, pid]))
    rng = np.random.default_rng([world.seed, _PICTURES, pid])
    n = len(world.cameras)
    count = int(rng.integers(min(seen_by[0], n), min(seen_by[1], n) + 1))
    camids = rng.permutation(n)[:count] + 1
    asking = set(camids[: min(int(rng.integers(2, 4)), count)].tolist()) if pid % 2 == 0 else set()
    for camid in sorted(camids.tolist()):
        turn = _turn(rng, world.cameras[camid - 1])
        frame = int(rng.integers(0, 990_000))
        for k in range(int(rng.integers(images[0], images[1] + 1))):
            picture = _picture(rng, world, camid, person, turn + rng.normal(0, 0.25))
            where = FOLDERS[0] if pid % 2 else FOLDERS[1] if k == 0 and camid in asking else FOLDERS[2]
            picture.save(folder / where / _name(pid, camid, frame + 25 * k), quality=90)


def _draw_stranger(folder: Path, world: _World, index: int) -> None:
    """A distractor: somebody who is in no query, or a box around nobody."""
    rng = np.random.default_rng([world.seed, _STRANGER, index])
    camid = int(rng.integers(len(world.cameras))) + 1
    person = _person(rng) if rng.random() < 0.85 else None
    picture = _picture(rng, world, camid, person, _turn(rng, world.cameras[camid - 1]))
    picture.save(folder / FOLDERS[2] / _name(DISTRACTOR, camid, index), quality=90)


def _draw_junk(folder: Path, world: _World, index: int, pid: int) -> None:
    """A bad box of a test person."""
    person = _person(np.random.default_rng([world.seed, _PERSON, pid]))
    rng = np.random.default_rng([world.seed, _BAD_BOX, index])
    camid = int(rng.integers(len(world.cameras))) + 1
    picture = _picture(rng, world, camid, person, _turn(rng, world.cameras[camid - 1]), bad=True)
    picture.save(folder / FOLDERS[2] / _name(JUNK, camid, index), quality=90)


def draw(
    folder: Path,
    *,
    seed: int = 0,
    train_ids: int = 240,
    test_ids: int = 160,
    cameras: int = 6,
    cameras_per_person: tuple[int, int] = (3, 6),
    images_per_camera: tuple[int, int] = (2, 3),
    distractors: int = 300,
    junk: int = 100,
    size: tuple[int, int] = (128, 64),
) -> None:
    """Draws a whole set into a new folder, which appears when it is complete. `size`: height, width in pixels.

    The default set: about 4,300 images, of which about 400 are queries. A larger set of the same seed and cameras
    holds the same people with the same pictures, and more. The two ranges are inclusive. ReidError for numbers that
    make no data set or where `folder` exists.
    """
    parameters = {key: value for key, value in locals().items() if key != "folder"}
    if min(train_ids, test_ids) < 2 or 2 * max(train_ids, test_ids) > MAX_PID:
        raise ReidError(f"expected 2 to {MAX_PID // 2} training and test people, got {train_ids} and {test_ids}")
    low, high = cameras_per_person
    if not (2 <= cameras <= 9 and 2 <= low <= high and 2 <= images_per_camera[0] <= images_per_camera[1]):
        raise ReidError(
            f"expected 2 to 9 cameras, at least 2 of them a person and at least 2 images each, got {cameras} cameras, "
            f"{cameras_per_person} a person, {images_per_camera} images"
        )
    if min(distractors, junk, seed) < 0 or min(size) < 32:
        raise ReidError(
            f"expected a seed and numbers of distractors and junk of at least 0 and a size of at least 32, got "
            f"{seed}, {distractors}, {junk}, {size}"
        )
    if Path(folder).exists():
        raise ReidError(f"{folder} exists already: name a new folder or delete it")
    noise = np.random.default_rng([seed, _NOISE])
    side = 2 * _SCALE * max(size)
    world = _World(
        seed=seed,
        size=size,
        cameras=[_camera(seed, number) for number in range(1, cameras + 1)],
        passers_by=[_person(np.random.default_rng([seed, _PASSER_BY, k])) for k in range(48)],
        folds=0.06 * _noise(noise, side, side, side // 10) + 0.05 * _noise(noise, side, side, side // 28),
        grain=noise.standard_normal((3 * size[0], 3 * size[1], 3), dtype=np.float32),
    )
    with atomic_folder(folder) as fresh:
        for name in FOLDERS:
            (fresh / name).mkdir()
        jobs: list[Callable[[], None]] = []
        for pid in [*range(1, 2 * train_ids, 2), *range(2, 2 * test_ids + 1, 2)]:
            jobs.append(lambda pid=pid: _draw_identity(fresh, world, pid, images_per_camera, cameras_per_person))
        jobs += [lambda k=k: _draw_stranger(fresh, world, k) for k in range(distractors)]
        jobs += [lambda k=k: _draw_junk(fresh, world, k, 2 + 2 * (k % test_ids)) for k in range(junk)]
        _work(jobs)
        files = {name: len(list((fresh / name).iterdir())) for name in FOLDERS}
        write_json(fresh / MANIFEST, {"generator": VERSION, **parameters, "files": files})


def _work(jobs: list[Callable[[], None]]) -> None:
    """Runs all jobs on a few threads; the first error, or Ctrl-C, stops them."""
    with ThreadPoolExecutor(THREADS) as pool:
        try:
            for _ in tqdm(pool.map(lambda job: job(), jobs), total=len(jobs), desc="drawing people", unit="job"):
                pass
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise


_NAME = re.compile(r"(-1|\d{4})_c(\d)s\d_\d{6}_\d\d\.jpg")


def _samples(folder: Path) -> Iterator[Sample]:
    for path in sorted(folder.iterdir()):
        match = _NAME.fullmatch(path.name)
        if not match:
            raise ReidError(f"expected names like 0002_c1s1_000451_01.jpg in {folder}, found {path.name}: delete it")
        yield Sample(str(path), int(match[1]), int(match[2]))


def read(root: Path) -> Splits:
    """The set in `root` or in `root`/synthetic; where there is none, the default one is drawn to the latter first.

    ReidError where what is there was drawn by another version of this program, or is not whole.
    """
    folder = root if (root / MANIFEST).is_file() else root / "synthetic"
    if not folder.exists():
        draw(folder)
    manifest = _manifest(folder)
    for name in FOLDERS:
        found = len(list((folder / name).iterdir())) if (folder / name).is_dir() else 0
        if found != manifest["files"][name]:
            raise ReidError(
                f"{folder / name} should hold {manifest['files'][name]} images and holds {found}: "
                f"delete {folder} and it is drawn anew"
            )
    train, query, gallery = (list(_samples(folder / name)) for name in FOLDERS)
    return Splits("synthetic", str(folder), train, query, gallery, None, [])


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["generator"], manifest["files"]
        whole = set(files) == set(FOLDERS)
    except (OSError, ValueError, KeyError, TypeError):
        version, whole = None, False
    if version != VERSION or not whole:
        raise ReidError(
            f"expected synthetic people of generator version {VERSION} in {folder}, found "
            f"{f'version {version}' if version is not None else f'no readable {MANIFEST}'}: delete the folder and it is drawn anew"
        )
    return manifest


def contact_sheet(root: Path, people: int = 8, images: int = 10) -> Image.Image:
    """A row a person of the test set, pictures in the order of the cameras."""
    splits = read(root)
    rows: dict[int, list[Sample]] = {}
    for sample in [*splits.query, *splits.gallery]:
        if sample.pid > 0:
            rows.setdefault(sample.pid, []).append(sample)
    chosen = sorted(rows)[:people]
    width, height = Image.open(splits.query[0].path).size
    sheet = Image.new("RGB", (images * (width + 2), len(chosen) * (height + 2)), "white")
    for y, pid in enumerate(chosen):
        for x, sample in enumerate(sorted(rows[pid], key=lambda sample: (sample.camid, sample.path))[:images]):
            sheet.paste(Image.open(sample.path), (x * (width + 2), y * (height + 2)))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m datasets.synthetic", description="Draw synthetic people.")
    parser.add_argument("--data-root", type=Path, default=Path("data"), help="holds, or gets, the folder synthetic")
    parser.add_argument("--ids", type=int, default=240, help="training people of a new set")
    parser.add_argument("--seed", type=int, default=0, help="of a new set")
    parser.add_argument("--sheet", type=Path, help="also write a picture of some people to this file")
    arguments = parser.parse_args()
    try:
        if not (arguments.data_root / "synthetic").exists():
            draw(arguments.data_root / "synthetic", seed=arguments.seed, train_ids=arguments.ids)
        splits = read(arguments.data_root)
        print(f"{splits.root}: {len(splits.train)} train, {len(splits.query)} query, {len(splits.gallery)} gallery images")
        if arguments.sheet:
            with atomic_file(arguments.sheet) as temporary:
                contact_sheet(arguments.data_root).save(temporary, "PNG")
    except ReidError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
