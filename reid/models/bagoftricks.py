"""BagOfTricks' head: one feature of the whole map, as wide as the backbone's last map, and the batch norm neck.

Source: Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person Re-identification", CVPRW 2019, figure 2. There
the pool is the average and the last stride 1. The triplet and center losses stand before the neck, the softmax after
it; what comes after it is compared at test time.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.models.heads import Heads


class BagOfTricks(nn.Module):
    """trunk: module, images -> map. make_branch: last_stride -> module, that map -> (B, channels, h, w).

    num_classes: identities of the training set, 0 for a model that only embeds. pool: "avg", "max" or "gem".
    last_stride: of the backbone's last down-sampling, 1 or 2.
    """

    def __init__(
        self,
        trunk: nn.Module,
        make_branch: Callable[[int], nn.Module],
        channels: int,
        num_classes: int,
        *,
        pool: str = "avg",
        last_stride: int = 1,
    ) -> None:
        super().__init__()
        if pool not in ("max", "avg", "gem"):
            raise ValueError(f"pool must be 'max', 'avg' or 'gem', not {pool!r}")
        self.names, self.global_features, self.dim, self.rows = ["global"], [0], channels, 1
        self.pool = pool
        self.trunk = trunk
        self.branches = nn.ModuleList([make_branch(last_stride)])
        self.power = nn.Parameter(torch.tensor(3.0)) if pool == "gem" else None
        self.neck = nn.BatchNorm1d(channels)
        self.neck.bias.requires_grad_(False)
        self.classifier = nn.Linear(channels, num_classes, bias=False) if num_classes else None
        if self.classifier is not None:
            nn.init.normal_(self.classifier.weight, 0.0, 0.001)

    @torch.no_grad()
    def start_from(self, other: nn.Module) -> None:
        """Takes over all but the classifier of a head of the same options."""
        kept = {name: value for name, value in other.state_dict().items() if not name.startswith("classifier")}
        self.load_state_dict(kept, strict=False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised pixels -> the feature before and after the neck, both (B, 1, channels) float32."""
        before = pooled(self.branches[0](self.trunk(images)), self.pool, self.power).float()
        with torch.autocast(before.device.type, enabled=False):
            return before[:, None], self.neck(before)[:, None]

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, channels), not yet of unit length."""
        return self.features(images)[1].flatten(1)

    def forward(self, images: Tensor) -> Heads:
        """(B, 3, H, W) normalised pixels -> Heads, in training and in evaluation alike."""
        before, after = self.features(images)
        if self.classifier is None:
            return Heads(before, after, None)
        with torch.autocast(after.device.type, enabled=False):
            return Heads(before, after, self.classifier(after))

    def readout(self, rows: Sequence[int]) -> nn.Module:
        """What follows the branch in `embed`: its map, of any height -> (B, channels)."""
        return _Readout(self.pool, None if self.power is None else self.power.item(), self.neck)


def pooled(x: Tensor, pool: str, power: Tensor | float | None) -> Tensor:
    """(B, C, h, w) -> (B, C)."""
    if pool == "max":
        return x.amax((2, 3))
    if power is None:
        return x.mean((2, 3))
    return F.adaptive_avg_pool2d(x.float().clamp(min=1e-6).pow(power), 1).pow(1 / power).flatten(1)


class _Readout(nn.Module):
    """Pooling, and the neck as a factor and a sum."""

    scale: Tensor
    shift: Tensor

    def __init__(self, pool: str, power: float | None, neck: nn.BatchNorm1d) -> None:
        super().__init__()
        assert neck.running_mean is not None and neck.running_var is not None
        self.pool, self.power = pool, power
        scale = neck.weight.detach() / (neck.running_var + neck.eps).sqrt()
        self.register_buffer("scale", scale)
        self.register_buffer("shift", neck.bias.detach() - neck.running_mean * scale)

    def forward(self, maps: list[Tensor]) -> Tensor:
        return pooled(maps[0], self.pool, self.power).to(self.scale.dtype) * self.scale + self.shift
