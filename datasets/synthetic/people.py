"""A person: what stays the same between two pictures of them (body, clothes, hair, bag)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.painting import COLUMNS, ROWS, Array, noise

PARTS = ("top", "arm", "leg", "skirt", "head", "hair", "crown", "cloth", "skin", "shoe", "bag")

# Colours of clothes: share of people, RGB. Muted, and mostly without a hue, as in a street.
_CLOTHES = (
    (0.19, (30, 30, 33)),
    (0.09, (68, 70, 74)),
    (0.08, (120, 121, 124)),
    (0.05, (172, 172, 170)),
    (0.13, (218, 217, 212)),
    (0.09, (34, 42, 72)),
    (0.06, (58, 84, 148)),
    (0.04, (134, 160, 190)),
    (0.05, (92, 68, 48)),
    (0.05, (184, 160, 118)),
    (0.05, (154, 38, 42)),
    (0.03, (46, 92, 62)),
    (0.02, (94, 96, 56)),
    (0.02, (204, 128, 146)),
    (0.02, (96, 58, 122)),
    (0.02, (206, 172, 62)),
    (0.01, (200, 102, 44)),
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
_HAIR = (
    (0.45, (30, 25, 24)),
    (0.28, (66, 46, 34)),
    (0.12, (116, 84, 54)),
    (0.08, (176, 146, 96)),
    (0.07, (140, 138, 136)),
)
_SHOES = (
    (0.45, (28, 28, 30)),
    (0.25, (208, 208, 206)),
    (0.15, (92, 64, 44)),
    (0.1, (66, 70, 90)),
    (0.05, (156, 46, 44)),
)


@dataclass(frozen=True)
class Person:
    """Lengths in metres; colours and textures are RGB in [0, 1], textures (ROWS, COLUMNS, 3) around a limb."""

    height: float
    leg: float  # height of the hip joint
    head: float  # half the head's width
    trunk: Array  # (4, 2) half width and half depth at shoulder, chest, waist, hip
    limb: float  # thickness of arms and legs
    loose: float  # how far trousers stand off below the knee
    hem: float  # how far the upper garment reaches below the hip joint
    skirt: float  # length below the hip joint; 0: none
    bag: str  # "none", "backpack", "shoulder bag" or "handbag"
    bag_side: int  # 1: the person's left
    bag_size: Array  # half width, half depth, height
    long_hair: float  # length below the crown; 0: short
    bun: bool
    brim: bool
    hood: bool
    bare_arms: bool
    textures: Array  # (len(PARTS), ROWS, COLUMNS, 3)


def _choose(rng: np.random.Generator, table: Sequence[tuple[float, Sequence[int]]], spread: float = 0.05) -> Array:
    """One RGB colour in [0, 1] of the table, moved a little."""
    shares = np.array([share for share, _ in table])
    colour = np.array(table[int(rng.choice(len(table), p=shares / shares.sum()))][1], np.float32) / 255
    moved = colour * np.exp(rng.normal(0, 0.2)) + rng.normal(0, spread / 2, 3)
    clipped: Array = np.clip(moved, 0.05, 0.93)
    return clipped.astype(np.float32)


def _around() -> tuple[Array, Array]:
    """Height v in [0, 1) as (ROWS, 1) and angle as (1, COLUMNS), 0 at the front, positive to the person's left."""
    v = (np.arange(ROWS, dtype=np.float32)[:, None] + 0.5) / ROWS
    angle = (np.arange(COLUMNS, dtype=np.float32)[None] + 0.5) / COLUMNS * 2 * np.pi - np.pi
    return v, angle


def _plain(colour: Array) -> Array:
    return np.broadcast_to(colour, (ROWS, COLUMNS, 3)).astype(np.float32)  # a copy


def _pattern(rng: np.random.Generator, base: Array, second: Array) -> Array:
    v, angle = _around()
    kind = rng.choice(
        ["plain", "across", "down", "checks", "print", "two-tone", "band", "mottled", "dots"],
        p=[0.32, 0.14, 0.06, 0.10, 0.14, 0.09, 0.07, 0.04, 0.04],
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
        cover = (noise(rng, ROWS, COLUMNS, 12) > 0.1).astype(np.float32)
    else:
        n = rng.integers(4, 7)
        dot = ((angle / np.pi * n) % 1 - 0.5) ** 2 + ((v * n) % 1 - 0.5) ** 2 < 0.06
        cover = dot.astype(np.float32)
    cover = np.broadcast_to(cover, (ROWS, COLUMNS))[..., None]
    return (base * (1 - cover) + second * cover).astype(np.float32)


def draw_person(rng: np.random.Generator) -> Person:
    """Chooses all that stays the same between two pictures of one person."""
    woman = bool(rng.random() < 0.48)
    height = min(max(rng.normal(1.65 if woman else 1.77, 0.07), 1.42), 1.98)
    girth = float(np.exp(rng.normal(0, 0.14)))
    shoulder = (0.185 if woman else 0.215) * girth**0.6
    waist, hip = (0.135 if woman else 0.155) * girth, (0.175 if woman else 0.165) * girth
    depth = 0.115 * girth
    trunk = np.array(
        [(shoulder, 0.085), (shoulder * 0.9, depth * 1.05), (waist * 1.08, depth * girth**0.8), (hip, depth * 1.05)]
    )
    skin, hair = _choose(rng, _SKIN, 0.03), _choose(rng, _HAIR, 0.03)
    base, second = _choose(rng, _CLOTHES), _choose(rng, _CLOTHES)
    while np.abs(base - second).max() < 0.2:
        second = _choose(rng, _CLOTHES)

    kind = str(rng.choice(["t-shirt", "long sleeve", "open jacket", "coat", "hoodie"], p=[0.32, 0.24, 0.2, 0.12, 0.12]))
    sleeve = rng.uniform(0.2, 0.45) if kind == "t-shirt" else 0.99
    top = _top(rng, kind, base, second)
    arm = _arm(rng, top, base, second, skin, sleeve)
    lower = str(rng.choice(["trousers", "shorts", "skirt"], p=[0.58, 0.24, 0.18] if woman else [0.76, 0.24, 0.0]))
    below = _choose(rng, _TROUSERS)
    leg = _leg(rng, lower, below, skin)
    skirt = _pattern(rng, below, second) if rng.random() < 0.4 else _plain(below)
    if rng.random() < 0.4:  # a dress
        skirt = np.concatenate([top[ROWS // 2 :]] * 2)
    hat = bool(rng.random() < 0.15)
    crown = _choose(rng, _CLOTHES) if hat else hair

    bag = str(rng.choice(["none", "backpack", "shoulder bag", "handbag"], p=[0.46, 0.26, 0.16, 0.12]))
    bag_side = 1 if rng.random() < 0.5 else -1
    leather = _choose(rng, _CLOTHES)
    bag_texture = _plain(leather)
    if rng.random() < 0.5:
        v, _ = _around()
        bag_texture[(v[:, 0] > 0.5) & (v[:, 0] < rng.uniform(0.6, 0.95))] = _choose(rng, _CLOTHES)
    size = {"backpack": (0.14, 0.085, 0.40), "shoulder bag": (0.06, 0.15, 0.26), "handbag": (0.05, 0.15, 0.26)}

    textures = {
        "top": _with_straps(rng, top, bag, bag_side, leather * 0.85),
        "arm": arm,
        "leg": leg,
        "skirt": skirt,
        "head": _head(rng, woman, crown, hair, skin, hat),
        "hair": _plain(hair),
        "crown": _plain(crown),
        "cloth": _plain(base * 0.9),
        "skin": _plain(skin),
        "shoe": _plain(_choose(rng, _SHOES)),
        "bag": bag_texture,
    }
    return Person(
        height=height,
        leg=height * rng.uniform(0.465, 0.515),
        head=0.076 * float(np.exp(rng.normal(0, 0.06))),
        trunk=trunk,
        limb=girth**0.6 * (0.92 if woman else 1.0),
        loose=rng.uniform(0.0, 0.035) if lower == "trousers" else 0.0,
        hem=rng.uniform(0.2, 0.5) if kind == "coat" else rng.uniform(0.02, 0.12),
        skirt=rng.uniform(0.28, 0.68) if lower == "skirt" else 0.0,
        bag=bag,
        bag_side=bag_side,
        bag_size=np.array(size.get(bag, (0.0, 0.0, 0.0))) * rng.uniform(0.8, 1.25),
        long_hair=rng.uniform(0.24, 0.5) if rng.random() < (0.62 if woman else 0.05) else 0.0,
        bun=bool(woman and not hat and rng.random() < 0.25),
        brim=bool(hat and rng.random() < 0.6),
        hood=kind == "hoodie",
        bare_arms=kind == "t-shirt",
        textures=np.stack([textures[part] for part in PARTS]).astype(np.float32),
    )


def _top(rng: np.random.Generator, kind: str, base: Array, second: Array) -> Array:
    """The trunk's texture, from the neck (v = 0) to the hem."""
    v, angle = _around()
    if kind == "open jacket":
        shirt = _pattern(rng, _choose(rng, _CLOTHES), second)
        open_to = rng.uniform(0.2, 0.6) * (0.4 + 0.6 * v)
        return np.where((np.abs(angle) < open_to)[..., None], shirt, _plain(base))
    if kind != "coat":
        return _pattern(rng, base, second)
    coat = _plain(base)
    coat[:, COLUMNS // 2] *= 0.6  # where it closes
    if rng.random() < 0.4:
        belt = rng.uniform(0.45, 0.6)
        coat[(v[:, 0] > belt) & (v[:, 0] < belt + 0.05)] = second
    return coat


def _arm(rng: np.random.Generator, top: Array, base: Array, second: Array, skin: Array, sleeve: float) -> Array:
    """From the shoulder over the elbow (v = 0.52) to the hand; `sleeve`: the share that is covered."""
    v, _ = _around()
    cloth = _plain(second if rng.random() < 0.12 else base)
    stripes_go_round = np.ptp(top, axis=1).max() < 1e-6 < np.ptp(top, axis=0).max()
    if stripes_go_round and rng.random() < 0.7:
        cloth = top
    return np.where((v < sleeve)[..., None], cloth, _plain(skin))


def _leg(rng: np.random.Generator, lower: str, below: Array, skin: Array) -> Array:
    """From the hip joint over the knee (v = 0.5) to the ankle."""
    v, angle = _around()
    leg = _plain(below)
    if lower == "trousers":
        trim = rng.random()
        if trim < 0.1:  # a stripe along the seam
            leg[:, np.abs(np.abs(angle[0]) - np.pi / 2) < 0.25] = _choose(rng, _CLOTHES)
        elif trim < 0.3:  # worn over the thigh
            leg *= 1 + 0.35 * np.exp(-(((v - 0.3) / 0.15) ** 2))[..., None]
        leg[v[:, 0] > rng.uniform(0.88, 1.1)] = skin
    elif lower == "shorts":
        leg[v[:, 0] > rng.uniform(0.3, 0.5)] = skin
        if rng.random() < 0.3:
            leg[v[:, 0] > rng.uniform(0.82, 0.92)] = _choose(rng, _SHOES)  # socks
    else:
        leg[:] = _choose(rng, _TROUSERS[:1]) if rng.random() < 0.35 else skin
    return leg


def _head(rng: np.random.Generator, woman: bool, crown: Array, hair: Array, skin: Array, hat: bool) -> Array:
    """From the crown (v = 0) to the chin."""
    v, angle = _around()
    bald = not hat and not woman and rng.random() < 0.08
    face = (np.abs(angle) < rng.uniform(0.9, 1.3)) & (v > (0.38 if hat else rng.uniform(0.2, 0.34)))
    neck = v > rng.uniform(0.68, 0.95)
    head = np.where((face | neck)[..., None], skin, skin * 0.95 if bald else hair)
    if hat:
        head = np.where((v < 0.36)[..., None], crown, head)
    eyes = (np.abs(np.abs(angle) - 0.36) < 0.16) & (np.abs(v - 0.52) < 0.035)
    head = np.where(eyes[..., None], head * 0.45, head)
    if not woman and rng.random() < 0.2:
        beard = (np.abs(angle) < 0.8) & (v > 0.72)
        head = np.where(beard[..., None], hair, head)
    return head


def _with_straps(rng: np.random.Generator, top: Array, bag: str, bag_side: int, colour: Array) -> Array:
    """The trunk's texture with what holds a bag: two straps over the shoulders, or one across chest and back."""
    v, angle = _around()
    if bag == "backpack":
        straps = (np.abs(np.abs(angle) - 0.62) < 0.13) & (v < 0.5)
    elif bag == "shoulder bag" and rng.random() < 0.7:
        front = bag_side * 0.9 * (2 * v - 1)  # from the other shoulder down to the bag
        back = np.pi - front
        straps = (np.abs(angle - front) < 0.11) | (np.abs((angle - back + np.pi) % (2 * np.pi) - np.pi) < 0.11)
    else:
        return top
    return np.where(straps[..., None], colour, top)
