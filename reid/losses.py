"""What training minimises: mean of the softmax terms + weight x mean of the batch-hard triplet terms.

All heads in one go: their features and logits come stacked, (B, F, ...).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from mgn import Heads


class Losses(NamedTuple):
    """Every term by head, in float32; `total` is what is minimised."""

    total: Tensor  # ()
    softmax: Tensor  # (F,)
    triplet: Tensor  # (G,) of the G global features


def reid_losses(
    heads: Heads, labels: Tensor, *, global_features: list[int], smoothing: float, margin: float, triplet: float
) -> Losses:
    """heads of B images, labels (B,) in [0, num_classes). Softmax on every feature, triplet on the global ones,
    before the neck (MGN section 3; BagOfTricks section 3.5)."""
    if heads.logits is None:
        raise ValueError("a model without classes cannot be trained: num_classes is 0")
    softmax = softmax_losses(heads.logits.float(), labels, smoothing)
    if triplet:
        hard = batch_hard_triplet(heads.before[:, global_features].float(), labels, margin)
    else:
        hard = softmax.new_zeros(len(global_features))
    return Losses(softmax.mean() + triplet * hard.mean(), softmax, hard)


def softmax_losses(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Cross entropy with label smoothing, mean over the batch. (B, F, C), (B,) -> (F,)."""
    batch, features, classes = logits.shape
    each = F.cross_entropy(
        logits.reshape(batch * features, classes),
        labels.repeat_interleave(features),
        label_smoothing=smoothing,
        reduction="none",
    )
    return each.view(batch, features).mean(0)


def batch_hard_triplet(features: Tensor, labels: Tensor, margin: float) -> Tensor:
    """Farthest positive against nearest negative, of each image, mean over the batch. (B, G, D), (B,) -> (G,).

    Euclidean distances of unnormalised features; margin 0 is the soft margin, log(1 + exp(positive - negative)).
    Hermans et al. 2017, equation 5. Every identity needs two images in the batch, every batch two identities.
    """
    x = features.transpose(0, 1)  # (G, B, D)
    squares = x.square().sum(2)  # (G, B)
    squared = squares[:, :, None] + squares[:, None, :] - 2 * x @ x.transpose(1, 2)
    distances = squared.clamp(min=1e-6).sqrt()  # (G, B, B); the root has no gradient at 0
    same = labels[:, None] == labels[None, :]
    positive = distances.masked_fill(~same, -torch.inf).amax(2)
    negative = distances.masked_fill(same, torch.inf).amin(2)
    gap = positive - negative
    return (F.relu(gap + margin) if margin else F.softplus(gap)).mean(1)
