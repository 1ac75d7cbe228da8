"""MixStyle on feature maps: a camera's style, the mean and deviation of each channel, mixed with another camera's.

    mix = MixStyle(model.head.trunk, after=[1, 2], probability=0.5, alpha=0.1)
    with mix.mixing(styles, np.random.default_rng([seed, step])):    # elsewhere, so in evaluation, nothing is mixed
        heads = model(pixels)

Zhou et al., "Domain Generalization with MixStyle", ICLR 2021.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

EPSILON = 1e-6  # of the variance: the authors' own


class MixStyle:
    """Hooks behind parts of a trunk, numbered from 1 on; they hold no weights, so models and exports stay as they are.

    probability: that a part's maps are mixed in a step. alpha: of Beta(alpha, alpha), from which each image's share
    of its own style is drawn.
    """

    def __init__(self, trunk: nn.Sequential, after: Sequence[int], *, probability: float, alpha: float) -> None:
        self.probability, self.alpha = probability, alpha
        self._now: tuple[np.ndarray, np.random.Generator] | None = None
        for number in after:
            trunk[number - 1].register_forward_hook(self._mix)

    @contextlib.contextmanager
    def mixing(self, styles: np.ndarray, rng: np.random.Generator) -> Iterator[None]:
        """Mixes in the forward passes within. styles: (B,) whose style each image has: it takes another's only."""
        self._now = np.asarray(styles), rng
        try:
            yield
        finally:
            self._now = None

    def _mix(self, _module: nn.Module, _inputs: object, maps: Tensor) -> Tensor | None:
        if self._now is None:
            return None
        styles, rng = self._now
        if rng.random() >= self.probability:
            return None
        others, shares = draw(styles, rng, self.alpha)
        own = torch.from_numpy(shares).to(maps.device, torch.float32)
        return mixed(maps, torch.from_numpy(others).to(maps.device), own)


def draw(styles: np.ndarray, rng: np.random.Generator, alpha: float) -> tuple[np.ndarray, np.ndarray]:
    """(B,) styles -> of each image one of another style, itself where there is none, and its own share in [0, 1]."""
    others = np.arange(len(styles))
    for i, pick in enumerate(rng.random(len(styles))):
        strangers = np.flatnonzero(styles != styles[i])
        if len(strangers):
            others[i] = strangers[int(pick * len(strangers))]
    return others, rng.beta(alpha, alpha, len(styles))


def mixed(maps: Tensor, others: Tensor, shares: Tensor) -> Tensor:
    """(B, C, H, W) -> the same, each channel with the share's part of its own mean and deviation and the rest of those
    of the image `others` (B,) names. Statistics are float32 and have no gradient. shares: (B,) in [0, 1]."""
    x = maps.float()
    with torch.no_grad():
        variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
        deviation = (variance + EPSILON).sqrt()
        share = shares.view(-1, 1, 1, 1)
        target_mean = share * mean + (1 - share) * mean[others]
        target_deviation = share * deviation + (1 - share) * deviation[others]
    return ((x - mean) / deviation * target_deviation + target_mean).to(maps.dtype)
