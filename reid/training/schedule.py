"""The learning rate as a pure function of the step: linear warm-up, then half a cosine."""

from __future__ import annotations

import math


def lr_at(step: int, *, steps: int, warmup: int, start: float, peak: float, end: float = 0.0) -> float:
    """Rate of step `step` of `steps` (0-based): from `start` to `peak` over `warmup` steps, then a cosine to `end`.

    >>> [round(lr_at(s, steps=6, warmup=2, start=0.0, peak=1.0), 3) for s in range(6)]
    [0.0, 0.5, 1.0, 0.854, 0.5, 0.146]
    """
    if step < warmup:
        return start + (peak - start) * step / warmup
    return end + (peak - end) * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup))) / 2
