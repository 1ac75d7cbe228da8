"""Networks of other programs: found out by the names and shapes of their tensors, built again, one vector an image.

    found = recognise(read_tensors("model.pth.tar-60"))      # which network that is, and its weights
    model = model_of(found, {"file": "model.pth.tar-60"})    # a ReidModel: from here on like one of this program

A family is a module here that keeps `Family`, and a line of FAMILIES.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol, cast

import torch
from torch import Tensor, nn

from reid.core.types import ReidError
from reid.models.card import MEAN, STD
from reid.models.heads import Heads

if TYPE_CHECKING:
    from reid.models.model import ReidModel

FAMILIES = {
    "torchreid": "reid.models.foreign.torchreid",
}


@dataclass(frozen=True)
class Recognised:
    """A network of another program and its weights."""

    family: str  # a key of FAMILIES
    name: str  # of the network, in its own program's words
    weights: Mapping[str, Tensor]  # all that the network of `build` holds, by its names: no classifier
    options: Mapping[str, Any] = field(default_factory=dict)  # what `build` needs beside the name; JSON takes it
    input_size: tuple[int, int] = (256, 128)  # (height, width) that it was trained at, as far as that is known
    mean: Sequence[float] = MEAN  # of RGB in [0, 1]
    std: Sequence[float] = STD
    flip: bool = False  # whether its program adds the features of the mirror image


class Family(Protocol):
    """What a module of FAMILIES holds."""

    def recognise(self, tensors: Mapping[str, Tensor], network: str | None = None) -> Recognised | None:
        """The network that these are the tensors of; None where they are of another family. network: the name that the
        user gives, to choose by where tensors do not tell. "module." is gone from the names already."""

    def build(self, name: str, options: Mapping[str, Any]) -> nn.Module:
        """That network without its classifier. In evaluation mode: normalised RGB (B, 3, H, W) -> (B, D)."""


def family(name: str) -> Family:
    """ReidError lists the valid names."""
    if name not in FAMILIES:
        raise ReidError(f"unknown family of networks {name!r}; expected one of {', '.join(FAMILIES)}")
    return cast(Family, importlib.import_module(FAMILIES[name]))


def recognise(tensors: Mapping[str, Tensor], network: str | None = None, *, source: str = "the file") -> Recognised:
    """The network that these are the tensors of. ReidError, which calls them `source`, where no family knows them.

    network: its name, where the tensors fit several.
    """
    plain = {name.removeprefix("module."): tensor for name, tensor in tensors.items()}
    for name in FAMILIES:
        found = family(name).recognise(plain, network)
        if found is not None:
            return found
    first = next(iter(plain), None)
    raise ReidError(
        f"{source}: its {len(plain)} tensors ({first!r} {tuple(plain[first].shape) if first else ''} the first) are of "
        f"no network that is known here ({', '.join(FAMILIES)}): export it as ONNX in its own program and import that"
    )


class Whole(nn.Module):
    """A whole network in a head's place: the embedding is what it gives. It is not trained: always in evaluation mode.

    Keeps `reid.models.heads.Head`, with one feature of `dim` values.
    """

    rows = 1
    memory_format = torch.contiguous_format  # networks of other programs may take views of it

    def __init__(self, network: nn.Module, dim: int) -> None:
        super().__init__()
        self.names, self.global_features, self.dim = ["embedding"], [0], dim
        self.trunk = nn.Sequential(network)
        self.branches = nn.ModuleList([nn.Identity()])
        self.eval()

    def train(self, mode: bool = True) -> Whole:
        return super().train(False)

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised pixels -> the embedding, twice, (B, 1, dim) float32."""
        found = self.trunk(images.contiguous()).float().view(-1, 1, self.dim)
        return found, found

    def forward(self, images: Tensor) -> Heads:
        return Heads(*self.features(images), None)

    @torch.no_grad()
    def start_from(self, other: nn.Module) -> None:
        """Takes over all weights of the same network."""
        self.load_state_dict(other.state_dict())

    def readout(self, rows: Sequence[int]) -> nn.Module:
        return _First()


class _First(nn.Module):
    def forward(self, maps: list[Tensor]) -> Tensor:
        return maps[0]


def model_of(found: Recognised, source: Mapping[str, Any]) -> ReidModel:
    """A model of this program with its weights. source: where it comes from, for the card. ReidError where it gives
    anything but one finite vector an image."""
    from reid.models.card import git_revision
    from reid.models.model import ReidModel

    card = {
        "architecture": architecture(found, dimension_of(found)),
        "input_size": list(found.input_size),
        "mean": list(found.mean),
        "std": list(found.std),
        "flip": found.flip,
        "num_classes": 0,
        "recipe": {},
        "source": dict(source),
        "git_revision": git_revision(),
    }
    model = ReidModel(card)
    model.head.trunk[0].load_state_dict(dict(found.weights), strict=True)
    return model.eval()


def build(spec: Mapping[str, Any]) -> Whole:
    """The network of a card's `architecture["foreign"]`: family, name, options, dimension."""
    network = family(spec["family"]).build(spec["name"], spec["options"])
    return Whole(network, spec["dimension"])


def architecture(found: Recognised, dimension: int) -> dict[str, Any]:
    """What a card says of it."""
    spec = {"family": found.family, "name": found.name, "options": dict(found.options), "dimension": dimension}
    return {"backbone": f"{found.family}:{found.name}", "head": "whole", "foreign": spec}


def dimension_of(found: Recognised) -> int:
    """Values of its embedding. ReidError where it gives anything but one vector an image."""
    network = family(found.family).build(found.name, found.options).eval()
    try:
        with torch.no_grad():
            vectors = network(torch.zeros(2, 3, *found.input_size))
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:120]
        raise ReidError(
            f"{found.family}'s {found.name} does not take images of {found.input_size[0]}x{found.input_size[1]} "
            f"({reason}): give the size that it was trained at with --input-size HxW"
        ) from None
    if not isinstance(vectors, Tensor) or vectors.dim() != 2 or len(vectors) != 2:
        shape = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ReidError(f"{found.family}'s {found.name} gives {shape} of 2 images: expected one vector an image")
    return vectors.shape[1]
