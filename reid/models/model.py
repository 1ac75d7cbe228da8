"""The whole model: pixels in, embeddings out; mean and std inside; one file that carries its own card.

model = load_model("model.safetensors")
model.embed(pixels)        # uint8 or [0, 1] (B, 3, H, W) -> (B, D)
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reid.core.types import ReidError
from reid.models import checkpoint, foreign, heads
from reid.models.backbones import BackboneFactory


class ReidModel(nn.Module):
    """Backbone and head with the preprocessing inside.

    card: what a saved model says of itself; "architecture", "input_size" (height, width), "mean" and "std" (RGB, of
    pixels in [0, 1]) and "num_classes" build it, the rest (recipe, data, scores, git revision) describes it. An
    architecture with "foreign" is a network of another program, and one with "projection" has a matrix (features x
    values, projection) at its end, which nothing trains.
    weights: of the whole backbone, to start from.
    """

    mean: Tensor
    std: Tensor
    projection: Tensor | None
    head: heads.Head

    def __init__(self, card: dict[str, Any], weights: dict[str, Tensor] | None = None) -> None:
        super().__init__()
        self.card = card
        shape = card["architecture"]
        if "foreign" in shape:
            self.head: Any = foreign.build(shape["foreign"])
        else:
            source = BackboneFactory(shape["backbone"], weights)
            self.head = heads.make(shape.get("head", heads.FIRST), source, card["num_classes"], shape)
        self.register_buffer("mean", torch.tensor(card["mean"]).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(card["std"]).view(1, 3, 1, 1), persistent=False)
        values, kept = len(self.head.names) * self.head.dim, shape.get("projection")
        self.register_buffer("projection", torch.zeros(values, kept) if kept else None)

    @property
    def input_size(self) -> tuple[int, int]:
        height, width = self.card["input_size"]
        return height, width

    @property
    def dimension(self) -> int:
        """Values of an embedding: features x values a feature, or those that a projection leaves of them."""
        if self.projection is not None:
            return self.projection.shape[1]
        return len(self.head.names) * self.head.dim

    @property
    def fingerprint(self) -> str:
        """What tells models apart: of everything that an embedding depends on, so not of the classifier.

        Computed anew at each call (0.02 s for SCGNet-S): the weights may have been trained since.
        """
        depends = {key: self.card[key] for key in ("architecture", "input_size", "mean", "std")}
        described = hashlib.sha256(json.dumps(depends, sort_keys=True).encode())
        described.update(checkpoint.digest(_without_classifier(self.state_dict())).encode())
        return described.hexdigest()[:16]

    def start_from(self, other: ReidModel, name: str) -> None:
        """Takes over every weight but the classifiers', from a model of the same head, or one of more branches.
        A projection stays behind.

        ReidError, which calls it `name`, where it differs otherwise.
        """
        mine, theirs = (_options(model.card["architecture"]) for model in (self, other))
        different = heads.same_options(mine, theirs)
        if different:
            told = ", ".join(f"{key} {theirs[key]} there, {mine[key]} here" for key in different)
            as_theirs = " ".join(f"{key}={json.dumps(theirs[key], separators=(',', ':'))}" for key in different)
            raise ReidError(f"{name} is a model of another architecture ({told}); for its own: --set {as_theirs}")
        self.head.start_from(other.head)

    def with_branches(self, parts: Sequence[int]) -> ReidModel:
        """A model of the branches with that many parts alone, without classifier; it has a fingerprint of its own.

        ReidError where there is no such branch, or a projection of them all.
        """
        if self.projection is not None:
            raise ReidError(
                "the model ends in a projection, of all its branches: choose them of the model that it was made from"
            )
        table = self.card["architecture"].get("branches")
        if table is None:
            raise ReidError("the model's head has no branches to choose from")
        absent = [count for count in parts if count not in [branch[0] for branch in table]]
        if absent or not parts:
            raise ReidError(
                f"the model's branches are of {', '.join(str(b[0]) for b in table)} parts, not "
                f"{', '.join(map(str, absent)) or 'none'}"
            )
        return self._smaller(branches=[branch for branch in table if branch[0] in parts])

    def with_projection(self, matrix: Tensor) -> ReidModel:
        """A model whose embeddings are this one's times a matrix (D, fewer), without classifier; it has a fingerprint
        of its own. ReidError where it ends in one already.
        """
        if self.projection is not None:
            raise ReidError(
                f"the model ends in a projection to {self.dimension} values: give the model that it was made from"
            )
        smaller = self._smaller(projection=matrix.shape[1])
        assert smaller.projection is not None
        smaller.projection.copy_(matrix)
        return smaller

    def _smaller(self, **changes: Any) -> ReidModel:
        card = {key: value for key, value in self.card.items() if key not in ("calibration", "scores")}
        smaller = ReidModel(card | {"architecture": self.card["architecture"] | changes, "num_classes": 0})
        smaller.start_from(self, "the model")
        return smaller.eval()

    def normalise(self, pixels: Tensor) -> Tensor:
        """RGB (B, 3, H, W), uint8 or [0, 1] -> zero mean, unit variance by the card."""
        scale = self.std * (255 if pixels.dtype == torch.uint8 else 1)
        return torch.addcmul(-self.mean / self.std, pixels.float(), 1 / scale)

    def forward(self, pixels: Tensor) -> heads.Heads:
        """RGB (B, 3, H, W), uint8 or [0, 1] -> Heads."""
        return self.head(self.normalise(pixels))

    def features(self, pixels: Tensor) -> Tensor:
        """The same pixels -> each feature after the neck, (B, F, D), in the order of `head.names`."""
        return self.head.features(self.normalise(pixels))[1]

    def embed(self, pixels: Tensor) -> Tensor:
        """The same pixels -> (B, F * D), or what the projection leaves of them, not yet of unit length."""
        vectors = self.features(pixels).flatten(1)
        return vectors if self.projection is None else vectors @ self.projection


def check_input_size(model: ReidModel) -> None:
    """ReidError where the model's input is too small for its strides and stripes."""
    try:
        _embed_blank(model)
    except (ValueError, RuntimeError):
        raise ReidError(
            f"input {'x'.join(map(str, model.input_size))} is too small for the strides of "
            f"{model.card['architecture']['backbone']}: each branch needs a map of at least "
            f"{model.head.rows} rows; try --set height=128 width=64 or more"
        ) from None


def multiply_adds(model: ReidModel) -> int:
    """Multiply-adds of embedding one image of the model's input size: convolutions and reductions."""
    from torch.utils.flop_counter import FlopCounterMode

    with FlopCounterMode(display=False) as counter:
        _embed_blank(model)
    flops: int = counter.get_total_flops()
    return flops // 2


def size_of(model: ReidModel) -> dict[str, int]:
    """How large it is: "parameters", and "multiply_adds" of one image."""
    shorter = 0 if model.projection is None else model.projection.numel()  # at its end, though nothing trains it
    parameters = sum(p.numel() for p in model.parameters()) + shorter
    return {"parameters": parameters, "multiply_adds": multiply_adds(model)}


def _embed_blank(model: ReidModel) -> None:
    training = model.training
    try:
        with torch.no_grad():
            model.eval().embed(torch.zeros(1, 3, *model.input_size, device=model.mean.device))
    finally:
        model.train(training)


def save_model(model: ReidModel, path: str | Path, *, classifier: bool = True, half: bool = False) -> None:
    """Writes weights and card as one safetensors file. Without the classifier the model still embeds as before.

    half: matrices and kernels in float16, half the size; vectors, batch norms' among them, stay as they are.
    Raises ReidError for weights that are not finite, or not in float16: the training ran away, though its losses may
    have looked sound, since a batch norm divides any size out.
    """
    state, card = model.state_dict(), dict(model.card)
    if not classifier:
        state, card["num_classes"] = _without_classifier(state), 0
    if half:
        state = {name: tensor.half() if tensor.dim() > 1 else tensor for name, tensor in state.items()}
        kept = ReidModel(card)
        kept.load_state_dict(state)
        if kept.fingerprint != model.fingerprint:  # rounded weights have one of their own, and other scores
            card.pop("calibration", None)
        model = kept
    for name, tensor in state.items():
        if not tensor.isfinite().all():
            raise ReidError(
                f"{path}: {name} holds values that are not finite{' in float16' if half else ''}: the training ran "
                "away; train again with a smaller rate (--set lr=...)"
            )
    checkpoint.write(path, "model", state, {**card, "fingerprint": model.fingerprint})


def is_model(path: str | Path) -> bool:
    """Whether a file is a model of this program, rather than weights of a backbone."""
    return checkpoint.kind(path) == "model"


def load_model(path: str | Path) -> ReidModel:
    """The model of a file that `save_model` wrote, in evaluation mode, in float32, on the CPU.

    Raises ReidError where the file is missing, damaged, a pickle, without a card, or does not hold what its card says.
    """
    state, card = checkpoint.read(path, "model")
    try:
        model = ReidModel(card)
        model.load_state_dict(state, strict=True)
        _ = model.input_size  # the one part of the card that the network itself does not ask for
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = " ".join(str(error).split())[:160]
        raise ReidError(f"{path}: weights and card do not agree, so it is of another architecture ({reason})") from None
    return model.eval()


def _without_classifier(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x for name, x in state.items() if not heads.is_classifier(name.removeprefix("head."))}


def _options(architecture: Mapping[str, Any]) -> dict[str, Any]:
    """What two models have to share for one to start from the other; a card of version 0.1 leaves some to the head."""
    return {"head": heads.FIRST, **{key: value for key, value in architecture.items() if key != "projection"}}
