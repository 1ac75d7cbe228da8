"""The learning rate as a pure function of the step: linear warm-up, then half a cosine, or steps down."""

from __future__ import annotations

import math
from collections.abc import Sequence


def lr_at(step: int, *, steps: int, warmup: int, start: float, peak: float, end: float = 0.0) -> float:
    """Rate of step `step` of `steps` (0-based): from `start` to `peak` over `warmup` steps, then a cosine to `end`.

    >>> [round(lr_at(s, steps=6, warmup=2, start=0.0, peak=1.0), 3) for s in range(6)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return _warm(step, warmup, start, peak)
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2


def lr_in_steps(
    step: int, *, warmup: int, start: float, peak: float, milestones: Sequence[float], gamma: float
) -> float:
    """The same warm-up, then `peak` times `gamma` for each of the milestones, in steps, that is reached.

    >>> [round(lr_in_steps(s, warmup=2, start=0.0, peak=1.0, milestones=[3, 5], gamma=0.1), 3) for s in range(6)]
    [0.0, 0.5, 1.0, 0.1, 0.1, 0.01]
    """
    reached = sum(step >= milestone for milestone in milestones)
    return (_warm(step, warmup, start, peak) if step < warmup else peak) * gamma**reached


def _warm(step: int, warmup: int, start: float, peak: float) -> float:
    return start + (peak - start) * step / warmup
