"""MGN: a shared trunk, three branches, eight features of one person.

    head = mgn.MGN(trunk, make_branch, channels=1024, num_classes=751)
    heads = head(images)          # heads.before, heads.after (B, 8, 256), heads.logits (B, 8, 751)
    head.embed(images)            # (B, 2048)

Source: Wang et al., "Learning Discriminative Features with Multiple Granularities for Person Re-Identification",
ACM MM 2018; the batch norm neck is Luo et al., "Bag of Tricks and A Strong Baseline for Deep Person
Re-identification", CVPRW 2019. Pooling adapts to the map, so any input size does that the strides allow.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mgn.readout import Readout


class Branch(NamedTuple):
    """One branch: a feature of its whole map and, where parts > 1, one of each horizontal stripe."""

    parts: int  # equal stripes, from head to foot
    last_stride: int  # of the backbone's last down-sampling; 1 keeps the map twice as high for the stripes


BRANCHES = (Branch(1, 2), Branch(2, 1), Branch(3, 1))  # the paper's: 3 global + 2 + 3 part features


class Heads(NamedTuple):
    """What the head says of B images; F features of D values each, in the order of `MGN.names`."""

    before: Tensor  # (B, F, D) before the neck: what the triplet loss compares
    after: Tensor  # (B, F, D) after it: what the classifier sees and what is compared at test time
    logits: Tensor | None  # (B, F, num_classes), None where the model has no classes


class MGN(nn.Module):
    """trunk: module, images -> map. make_branch: last_stride -> module, that map -> (B, channels, h, w).

    num_classes: identities of the training set, 0 for a model that only embeds.
    pool: "max" (the paper's), "avg" or "gem" (generalised mean, a learnt power a branch).
    neck: "bnneck" (batch norm without learnt bias; the triplet stands before it) or "relu" (the original's reduction:
    batch norm and ReLU, and the same feature for every use).
    global_softmax: what the classifiers of the global features see: "reduced", as those of the stripes, or
    "unreduced", the pooled channels (the original's, with its neck "relu").
    Parameters of classifiers, and no others, are named `classifier...`.
    """

    def __init__(
        self,
        trunk: nn.Module,
        make_branch: Callable[[int], nn.Module],
        channels: int,
        num_classes: int,
        *,
        branches: Sequence[Branch] = BRANCHES,
        dim: int = 256,
        pool: str = "max",
        neck: str = "bnneck",
        global_softmax: str = "reduced",
    ) -> None:
        super().__init__()
        if pool not in ("max", "avg", "gem"):
            raise ValueError(f"pool must be 'max', 'avg' or 'gem', not {pool!r}")
        if neck not in ("bnneck", "relu"):
            raise ValueError(f"neck must be 'bnneck' or 'relu', not {neck!r}")
        if global_softmax not in ("reduced", "unreduced"):
            raise ValueError(f"global_softmax must be 'reduced' or 'unreduced', not {global_softmax!r}")
        self.table = tuple(Branch(*branch) for branch in branches)
        self.dim = dim
        self.pool, self.relu_neck = pool, neck == "relu"
        self.trunk = trunk
        self.branches = nn.ModuleList(make_branch(branch.last_stride) for branch in self.table)
        self.power = nn.Parameter(torch.full((len(self.table),), 3.0)) if pool == "gem" else None

        # one reduction, neck and classifier a feature, none shared; stacked, so that all run as one product
        self.names = [name for branch in self.table for name in _names(branch.parts)]
        features = len(self.names)
        self.reduction = nn.Parameter(torch.empty(features, dim, channels))
        self.neck = nn.BatchNorm1d(features * dim)
        self.neck.bias.requires_grad_(self.relu_neck)
        self.reduced = list(range(features))  # the features whose classifier sees them reduced
        if global_softmax == "unreduced":
            self.reduced = [i for i in self.reduced if i not in self.global_features]
        self.unreduced = [i for i in range(features) if i not in self.reduced]
        nn.init.normal_(self.reduction, 0.0, (2.0 / channels) ** 0.5)
        self.classifier = _classifiers(len(self.reduced), num_classes, dim)
        self.classifier_unreduced = _classifiers(len(self.unreduced), num_classes, channels)

    @property
    def global_features(self) -> list[int]:
        """Positions, among the F features, of those of a whole map: the ones that the triplet loss compares."""
        return [i for i, name in enumerate(self.names) if name.endswith("global")]

    @property
    def rows(self) -> int:
        """Rows that the map of the most stripes has to have."""
        return max(branch.parts for branch in self.table)

    @torch.no_grad()
    def start_from(self, other: MGN) -> None:
        """Takes over trunk, branches and features, all but the classifier, of a head that has this one's branches and
        perhaps more, and the same pooling and neck."""
        self.trunk.load_state_dict(other.trunk.state_dict())
        places = [other.table.index(branch) for branch in self.table]
        for mine, place in zip(self.branches, places, strict=True):
            mine.load_state_dict(other.branches[place].state_dict())
        if self.power is not None and other.power is not None:
            self.power.copy_(other.power[places])
        rows = [other.names.index(name) for name in self.names]
        self.reduction.copy_(other.reduction[rows])
        for name, value in other.neck.state_dict().items():
            chosen = value.view(len(other.names), -1)[rows].flatten() if value.dim() else value
            self.neck.state_dict()[name].copy_(chosen)

    def pooled(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, F, channels)."""
        shared = self.trunk(images)
        features = []
        for i, (branch, parts) in enumerate(zip(self.branches, (b.parts for b in self.table), strict=True)):
            x = branch(shared)  # (B, channels, h, w)
            power = self.power[i] if self.power is not None else None
            stripes = self._stripes(x, parts, power)
            if parts > 1:  # the greatest of the whole map is the greatest of its stripes' greatest
                whole = stripes.amax(1, keepdim=True) if self.pool == "max" else self._stripes(x, 1, power)
                features.append(whole)
            features.append(stripes)
        return torch.cat(features, dim=1)

    def _stripes(self, x: Tensor, parts: int, power: Tensor | None) -> Tensor:
        """(B, C, h, w) -> (B, parts, C): one vector a horizontal stripe."""
        if x.shape[2] < parts:
            raise ValueError(f"a map of {x.shape[2]} rows cannot be cut into {parts} parts: give a taller input")
        if self.pool == "max":
            x = F.adaptive_max_pool2d(x, (parts, 1))
        elif power is None:
            x = F.adaptive_avg_pool2d(x, (parts, 1))
        else:
            x = F.adaptive_avg_pool2d(x.float().clamp(min=1e-6).pow(power), (parts, 1)).pow(1 / power)
        return x[..., 0].transpose(1, 2)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised pixels -> features before and after the neck, both (B, F, D) float32."""
        pooled = self.pooled(images).float()
        with torch.autocast(pooled.device.type, enabled=False):  # distances need more than bfloat16's 8 bits
            return self._reduce(pooled)

    def _reduce(self, pooled: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.einsum("bfc,fdc->bfd", pooled, self.reduction)
        after = self.neck(before.flatten(1)).view_as(before)
        if self.relu_neck:
            after = before = F.relu(after)
        return before, after

    def embed(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, F * D), not yet of unit length."""
        return self.features(images)[1].flatten(1)

    def forward(self, images: Tensor) -> Heads:
        """(B, 3, H, W) normalised pixels -> Heads, in training and in evaluation alike."""
        pooled = self.pooled(images).float()
        with torch.autocast(pooled.device.type, enabled=False):
            before, after = self._reduce(pooled)
            return Heads(before, after, self._classify(pooled, after))

    def _classify(self, pooled: Tensor, after: Tensor) -> Tensor | None:
        """(B, F, channels), (B, F, D) -> (B, F, num_classes)."""
        if self.classifier is None and self.classifier_unreduced is None:
            return None
        if self.classifier_unreduced is None:
            return torch.einsum("bfd,fnd->bfn", after, self.classifier)
        whole = torch.einsum("bfc,fnc->bfn", pooled[:, self.unreduced], self.classifier_unreduced)
        if self.classifier is None:  # no stripes
            return whole
        stripes = torch.einsum("bfd,fnd->bfn", after[:, self.reduced], self.classifier)
        logits = dict(zip(self.unreduced, whole.unbind(1))) | dict(zip(self.reduced, stripes.unbind(1)))
        return torch.stack([logits[i] for i in range(len(self.names))], dim=1)

    def readout(self, rows: Sequence[int]) -> Readout:
        """What follows the branches in `embed`, for maps of so many rows: the maps -> (B, F * D)."""
        powers = [None] * len(self.table) if self.power is None else self.power.tolist()
        windows = [(branch.parts, *of_map) for branch, of_map in zip(self.table, zip(rows, powers), strict=True)]
        return Readout(windows, self.pool, self.reduction, self.neck, self.relu_neck)


def _names(parts: int) -> list[str]:
    return [f"b{parts}-global"] + ([f"b{parts}-part{i + 1}" for i in range(parts)] if parts > 1 else [])


def _classifiers(features: int, num_classes: int, dim: int) -> nn.Parameter | None:
    if not features or not num_classes:
        return None
    return nn.Parameter(nn.init.normal_(torch.empty(features, num_classes, dim), 0.0, 0.001))
