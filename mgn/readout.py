"""MGN for one size of input, in operators that small devices take: windows are fixed, the neck is folded away."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Readout(nn.Module):
    """Each branch's map (B, C, h, w) -> (B, F * D), as `MGN.embed` gives in evaluation mode.

    windows: (parts, rows of the map, power of the generalised mean or None) a branch.
    weight: (F, D, C) of the reductions. neck: the batch norm after them. relu: whether one stands after it.
    """

    def __init__(
        self,
        windows: list[tuple[int, int, float | None]],
        pool: str,
        weight: Tensor,
        neck: nn.BatchNorm1d,
        relu: bool,
    ) -> None:
        super().__init__()
        self.pools = nn.ModuleList(Stripes(rows, parts, pool, power) for parts, rows, power in windows)
        self.reductions = nn.ModuleList(_reductions(weight, neck))
        self.relu = relu

    def forward(self, maps: list[Tensor]) -> Tensor:
        pooled = [x for pool, map in zip(self.pools, maps) for x in pool(map)]
        features = torch.cat([reduce(x) for reduce, x in zip(self.reductions, pooled)], dim=1)
        return features.relu() if self.relu else features


class Stripes(nn.Module):
    """(B, C, h, w) -> the pooled whole map and, of several parts, each horizontal stripe: (B, C) each.

    The stripes are those of adaptive pooling, cut by slices: of h rows, part i of n has floor(i h / n) to
    ceil((i + 1) h / n).
    """

    def __init__(self, rows: int, parts: int, pool: str, power: float | None) -> None:
        super().__init__()
        self.pool, self.power = pool, power
        stripes = [(i * rows // parts, -(-(i + 1) * rows // parts)) for i in range(parts)]
        self.windows = stripes if parts == 1 else [(0, rows), *stripes]

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.power is None:
            return [self._reduce(x[:, :, start:end]) for start, end in self.windows]
        raised = x.float().clamp(min=1e-6).pow(self.power)
        return [self._reduce(raised[:, :, a:b]).pow(1 / self.power).to(x.dtype) for a, b in self.windows]

    def _reduce(self, x: Tensor) -> Tensor:
        return x.amax((2, 3)) if self.pool == "max" else x.mean((2, 3))


def _reductions(weight: Tensor, neck: nn.BatchNorm1d) -> list[nn.Linear]:
    """One linear layer a feature, with the neck's batch norm folded in."""
    features, dim, channels = weight.shape
    assert neck.running_mean is not None and neck.running_var is not None
    scale = neck.weight / (neck.running_var + neck.eps).sqrt()
    bias = (neck.bias - neck.running_mean * scale).view(features, dim)
    layers = []
    for i, factor in enumerate(scale.view(features, dim, 1)):
        layer = nn.Linear(channels, dim)
        layer.weight, layer.bias = nn.Parameter((weight[i] * factor).contiguous()), nn.Parameter(bias[i])
        layers.append(layer)
    return layers
