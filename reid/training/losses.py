"""What training minimises: mean of the softmax terms + weighted means of the triplet, center and distillation terms.

All heads in one go: their features and logits come stacked, (B, F, ...).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reid.models.heads import Heads

CIRCLE_MARGIN, CIRCLE_SCALE = 0.25, 64.0  # Sun et al. 2020, section 4.1
TEMPERATURE = 0.1  # Khosla et al. 2020, section 4


class ReidLoss(nn.Module):
    """Every term of a recipe. Softmax on each feature, triplet, circle and center on the global ones, distillation on
    each (MGN section 3; BagOfTricks section 3.5: the triplet stands before the neck, the softmax after it).

    The weights are those of `reid.training.config`; a term of weight 0 is left out.
    """

    def __init__(
        self,
        global_features: list[int],
        classes: int,
        dim: int,
        *,
        smoothing: float,
        margin: float,
        triplet: float = 0.0,
        triplet_on: str = "before",
        circle: float = 0.0,
        contrast: float = 0.0,
        center: float = 0.0,
        center_update: str = "bagoftricks",
        distill: float = 0.0,
    ) -> None:
        super().__init__()
        self.global_features, self.smoothing, self.margin = global_features, smoothing, margin
        self.triplet_on = triplet_on
        self.weights = {
            "triplet": triplet,
            "circle": circle,
            "contrast": contrast,
            "center": center,
            "distill": distill,
        }
        self.center = CenterLoss(classes, len(global_features), dim, center_update) if center else None

    def forward(
        self,
        heads: Heads,
        labels: Tensor,
        *,
        taught: Tensor | None = None,
        gather: Callable[[Tensor], Tensor] = lambda rows: rows,
        known: bool = True,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """(what is minimised (), every term by head in float32: (F,) or, of global features, (G,)).

        heads of B images, labels (B,) in [0, classes). taught: the teacher's features after the neck, (B, F, D), or
        embeddings of any other dimension, (B, E), which teach how alike the images are.
        gather: rows of this process -> those of all; the terms that compare images with each other see them all.
        known: whether the labels are of these images; otherwise only the teacher's term counts.
        """
        if heads.logits is None:
            raise ValueError("a model without classes cannot be trained: num_classes is 0")
        terms = {"softmax": softmax_losses(heads.logits.float(), labels, self.smoothing)}
        if self.weights["triplet"] or self.weights["circle"] or self.center:
            everyone = gather(labels)
            before, after = (gather(x[:, self.global_features].float()) for x in (heads.before, heads.after))
        if self.weights["triplet"]:
            compared = F.normalize(after, dim=2) if self.triplet_on == "after" else before
            terms["triplet"] = batch_hard_triplet(compared, everyone, self.margin)
        if self.weights["circle"]:
            terms["circle"] = circle_losses(after, everyone, CIRCLE_MARGIN, CIRCLE_SCALE)
        if self.weights["contrast"]:
            terms["contrast"] = contrastive_losses(gather(heads.after.float()), gather(labels), TEMPERATURE)
        if self.center:
            terms["center"] = self.center(before, everyone)
            if self.training and known:
                self.center.follow(before.detach(), everyone)
        if taught is not None and taught.dim() == 3:
            terms["distill"] = distillation_losses(heads.after.float(), taught.float())
        elif taught is not None:
            terms["distill"] = similarity_loss(gather(heads.after.float().flatten(1)), gather(taught.float()))
        counts = {name: self.weights.get(name, 1.0) * (known or name == "distill") for name in terms}
        weighted = [counts[name] * values.mean() for name, values in terms.items()]
        return torch.stack(weighted).sum(), terms


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

    Euclidean distances; margin 0 is the soft margin, log(1 + exp(positive - negative)).
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


def circle_losses(features: Tensor, labels: Tensor, margin: float, scale: float) -> Tensor:
    """Circle loss of each image against all others of the batch, mean over the batch. (B, G, D), (B,) -> (G,).

    Cosine similarities; Sun et al. 2020, equation 6 with its self-paced weights: optimum 1 + margin for the same
    person and -margin for another, decision bounds 1 - margin and margin. `scale` is the paper's gamma.
    """
    x = F.normalize(features, dim=2).transpose(0, 1)  # (G, B, D)
    similarity = x @ x.transpose(1, 2)
    same = labels[:, None] == labels[None, :]
    itself = torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    away = F.relu(1 + margin - similarity.detach()) * (1 - margin - similarity)
    near = F.relu(similarity.detach() + margin) * (similarity - margin)
    positive = (scale * away).masked_fill(~same | itself, -torch.inf).logsumexp(2)
    negative = (scale * near).masked_fill(same, -torch.inf).logsumexp(2)
    return F.softplus(positive + negative).mean(1)


def contrastive_losses(features: Tensor, labels: Tensor, temperature: float) -> Tensor:
    """Each image's positives against all negatives of the batch, mean over pairs. (B, F, D), (B,) -> (F,).

    Cosine similarities over a temperature; -log of the softmax of one positive among itself and every negative, so
    that positives do not compete (the supervised contrastive loss of Khosla et al. 2020, equation 2, less the other
    positives in its denominator). Unlike the hardest negative alone, all of the batch pull.
    """
    x = F.normalize(features, dim=2).transpose(0, 1)  # (F, B, D)
    similarity = x @ x.transpose(1, 2) / temperature
    same = labels[:, None] == labels[None, :]
    negatives = similarity.masked_fill(same, -torch.inf).logsumexp(2, keepdim=True)
    positive = same & ~torch.eye(len(labels), dtype=torch.bool, device=labels.device)
    return (F.softplus(negatives - similarity) * positive).sum((1, 2)) / positive.sum()


class CenterLoss(nn.Module):
    """Squared distance of each feature to the centre of its identity, mean over the batch.

    The centres follow by an SGD of their own, rate 0.5, whatever the weight of the loss; they are a buffer, to be kept
    with a checkpoint. `update` is by whom:

    bagoftricks: as its authors' code computes it (github.com/michuanhaohao/reid-strong-baseline): the whole square,
    clamped to 1e-12 .. 1e12, and a step along the loss's own gradient: of a batch of B images, n of them of a person,
    the centre moves n / B of the gap to their mean. Centres start from N(0, 1).
    wen: Wen et al. 2016, equations 2 and 4: half the square, and the centre moves 0.5 n / (1 + n) of the gap. Centres
    start at 0.
    """

    centers: Tensor

    def __init__(self, classes: int, features: int, dim: int, update: str = "bagoftricks") -> None:
        super().__init__()
        if update not in ("bagoftricks", "wen"):
            raise ValueError(f"update must be 'bagoftricks' or 'wen', not {update!r}")
        self.update = update
        start = torch.randn if update == "bagoftricks" else torch.zeros
        self.register_buffer("centers", start(classes, features, dim))

    def forward(self, features: Tensor, labels: Tensor) -> Tensor:
        """(B, G, D), (B,) -> (G,)."""
        squares = (features - self.centers[labels]).square().sum(2)
        if self.update == "wen":
            return squares.mean(0) / 2
        return squares.clamp(1e-12, 1e12).mean(0)

    @torch.no_grad()
    def follow(self, features: Tensor, labels: Tensor, rate: float = 0.5) -> None:
        """Moves the centres of the batch towards its features."""
        towards = torch.zeros_like(self.centers).index_add_(0, labels, features - self.centers[labels])
        if self.update == "bagoftricks":
            self.centers += rate * 2 * towards / len(labels)
            return
        ones = torch.ones(len(labels), device=labels.device)
        count = torch.zeros(len(self.centers), device=labels.device).index_add_(0, labels, ones)
        self.centers += rate * towards / (1 + count)[:, None, None]


def distillation_losses(student: Tensor, teacher: Tensor) -> Tensor:
    """1 - cosine of a feature and the teacher's of the same image, mean over the batch. (B, F, D) twice -> (F,)."""
    return 1 - F.cosine_similarity(student, teacher, dim=2).mean(0)


def similarity_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far the student's cosine similarities of a batch's images are from the teacher's. (B, D), (B, E) -> (1,).

    Mean square difference over all pairs of two images; D and E need not agree. Similarity-preserving knowledge
    distillation (Tung and Mori, ICCV 2019, equation 4), on cosine similarities, which are what a search compares, in
    the place of inner products whose rows are brought to unit length.
    """
    mine, theirs = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (student, teacher))
    apart = ~torch.eye(len(student), dtype=torch.bool, device=student.device)
    return (mine - theirs)[apart].square().mean().view(1)
