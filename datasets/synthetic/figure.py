"""A figure: a person in a pose, as the limbs that a camera sees."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from datasets.synthetic.painting import Array, Limb
from datasets.synthetic.people import PARTS, Person

_STEPS = np.linspace(0, 1, 48)  # of a limb's profile


class Pose(NamedTuple):
    turn: float  # 0 faces the camera, pi/2 walks to the picture's right
    phase: float  # of the gait, radians
    stride: float  # swing of the thigh, radians
    elbow: float
    spread: float  # of the arms from the body, radians
    phone: bool  # a hand at the ear


def draw_pose(rng: np.random.Generator, turn: float) -> Pose:
    walking = rng.random() < 0.78
    return Pose(
        turn=turn,
        phase=rng.uniform(0, 2 * np.pi),
        stride=rng.uniform(0.22, 0.5) if walking else rng.uniform(0, 0.08),
        elbow=rng.uniform(0.1, 0.7) if rng.random() < 0.8 else rng.uniform(1.0, 1.7),
        spread=rng.uniform(0.04, 0.2),
        phone=bool(rng.random() < 0.05),
    )


def figure(person: Person, pose: Pose, pitch: float) -> list[Limb]:
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
        limbs.append(Limb(layer + (az + bz) / 2, (ax, ay), (bx, by), profile, PARTS.index(texture), span, flat))

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
        add(
            -2,
            knee,
            ankle,
            np.array([0.06 + p.loose / 2, 0.056 + p.loose, 0.042 + p.loose]) * p.limb,
            "leg",
            span=(0.5, 1),
        )
        toe = ankle + np.array([side * 0.03, -0.035, 0.15])
        add(-1.99, ankle + np.array([0.0, -0.03, -0.03]), toe, [0.046, 0.05, 0.036], "shoe")

        # Arms, swinging against the legs.
        shoulder = np.array([side * (p.trunk[0, 0] - 0.045), p.height * 0.805, 0.0])
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
        add(
            layer + 0.01, elbow, hand, np.array([0.043 + sleeve, 0.042 + sleeve, 0.032]) * p.limb, "arm", span=(0.52, 1)
        )
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
        add(
            -0.5,
            start,
            end,
            [hip_wide * 0.9, hip_wide * 1.04, hip_wide * spread],
            "skirt",
            depths=[hip_deep, hip_deep * 1.1, hip_deep * spread * 1.1],
            flat=True,
        )
    w, d, h = p.bag_size
    if p.bag == "backpack":
        back = -p.trunk[1, 1] - d * 0.8
        add(
            3 * cos * -1,
            (0, high - 0.09, back),
            (0, high - 0.09 - h, back),
            [w * 0.75, w, w, w * 0.9],
            "bag",
            depths=[d * 0.6, d, d * 1.1, d],
            flat=True,
        )
    elif p.bag == "shoulder bag":
        x = p.bag_side * (p.trunk[3, 0] + w * 0.8)
        layer = 2.0 if seen(np.array([x, 0, 0]))[2] > -0.1 else -3.0
        add(
            layer,
            (x, p.leg + 0.1, 0),
            (x, p.leg + 0.1 - h, 0),
            [w * 0.9, w, w],
            "bag",
            depths=[d * 0.9, d, d],
            flat=True,
        )
    elif p.bag == "handbag":
        hand, layer = hands[0 if p.bag_side == 1 else 1]
        add(
            layer + 0.02,
            hand - np.array([0, 0.13, 0]),
            hand - np.array([0, 0.13 + h, 0]),
            [w * 0.8, w, w],
            "bag",
            depths=[d * 0.85, d, d],
            flat=True,
        )
        add(layer + 0.015, hand, hand - np.array([0, 0.15, 0]), [0.012, 0.012], "bag")

    # Head.
    crown = p.height
    centre = crown - p.head * 1.45
    add(0.3, (0, high - 0.02, 0), (0, centre, 0.02), [0.055, 0.05], "skin")
    r = p.head
    add(
        0.5,
        (0, crown - r, 0.025),
        (0, crown - 2.05 * r, 0.035),
        [r * 1.02, r, r * 0.78],
        "head",
        depths=[r * 1.15, r * 1.12, r * 0.95],
    )
    if p.hood:
        add(0.4 - 0.3 * cos, (0, high + 0.03, -0.06), (0, high - 0.07, -0.09), [0.085, 0.1, 0.07], "cloth")
    if p.long_hair:
        low = crown - p.long_hair
        add(
            0.45 - cos,
            (0, crown - r * 0.9, -0.035),
            (0, low, -0.07),
            [r, r * 1.12, r * 1.15, r * 0.8],
            "hair",
            depths=[r * 0.8, r * 0.7, r * 0.6, r * 0.5],
        )
    if p.bun:
        add(0.5 - cos * 0.3, (0, crown - 0.04, -r * 1.1), (0, crown - 0.05, -r * 1.3), [r * 0.5, r * 0.5], "hair")
    if p.brim:
        add(
            0.6 if cos > -0.3 else 0.2,
            (0, crown - 0.7 * r, r * 0.9),
            (0, crown - 0.8 * r, r * 2.0),
            [0.06, 0.05],
            "crown",
        )

    shoe = PARTS.index("shoe")
    ground = max(max(limb.start[1], limb.end[1]) for limb in limbs if limb.texture == shoe)
    return [
        limb._replace(start=(limb.start[0], limb.start[1] - ground), end=(limb.end[0], limb.end[1] - ground))
        for limb in sorted(limbs, key=lambda limb: limb.order)
    ]
