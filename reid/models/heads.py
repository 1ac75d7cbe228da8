"""The heads that a backbone may carry. One of one's own is a file with a module that keeps `Head`, and a line in HEADS.

head = make("mgn", source, num_classes=751, options={"branches": [[1, 2]], "dim": 256})
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from torch import Tensor, nn

from mgn import Heads
from reid.core.types import ReidError

if TYPE_CHECKING:
    from reid.models.backbones import BackboneFactory

__all__ = ["HEADS", "Entry", "Head", "Heads", "get", "is_classifier", "make", "options_of"]

FIRST = "mgn"  # the head of a card or a recipe that names none: version 0.1 had no other


class Head(Protocol):
    """What model, losses, training and export know of a head, a `torch.nn.Module` with F features of D values each.

    Called, it gives `Heads`. Its state's names that begin with `classifier` are those of classifiers.
    """

    names: list[str]  # of the F features
    dim: int  # D
    rows: int  # that the highest of its maps has to have
    trunk: nn.Sequential  # images -> the map that the branches share
    branches: nn.ModuleList  # that map -> a map (B, C, h, w) each

    @property
    def global_features(self) -> list[int]:
        """Positions, among the F features, of those that the triplet, circle and center losses compare."""

    def features(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, H, W) normalised pixels -> features before and after the neck, both (B, F, D) float32."""

    def start_from(self, other: Any) -> None:
        """Takes over all but the classifiers of a head of the same options, of which one that is a list may hold more
        there than here."""

    def readout(self, rows: Sequence[int]) -> nn.Module:
        """What follows the branches in evaluation mode, in plain operators and for maps of so many rows: a list of
        maps -> (B, F * D)."""

    def __call__(self, images: Tensor) -> Heads: ...


@dataclass(frozen=True)
class Entry:
    """A row of the table."""

    module: str  # that holds the class, imported where it is asked for
    name: str  # of the class; called with (trunk, make_branch, channels, num_classes, **options)
    options: tuple[str, ...]  # keys of a recipe that shape it; a card keeps them


HEADS: dict[str, Entry] = {
    "mgn": Entry("mgn", "MGN", ("branches", "dim", "pool", "neck", "global_softmax")),
    "bagoftricks": Entry("reid.models.bagoftricks", "BagOfTricks", ("pool", "last_stride")),
}


def get(name: str) -> Entry:
    """The table's entry; ReidError lists the valid names."""
    if name not in HEADS:
        raise ReidError(f"unknown head {name!r}; choose one of {', '.join(HEADS)}")
    return HEADS[name]


def make(name: str, source: BackboneFactory, num_classes: int, options: Mapping[str, Any]) -> Head:
    """A head of that name, which keeps `Head`, over a backbone. Of `options` it takes its own; those that are left out
    have its defaults."""
    entry = get(name)
    build = getattr(importlib.import_module(entry.module), entry.name)
    given = {key: options[key] for key in entry.options if key in options}
    made: Head = build(source.trunk(), source.make_branch, source.backbone.channels, num_classes, **given)
    return made


def options_of(name: str, recipe: Mapping[str, Any]) -> dict[str, Any]:
    """The values of a recipe that shape the head, by name."""
    return {key: recipe[key] for key in get(name).options}


def is_classifier(name: str) -> bool:
    """Whether a tensor of a head's state, by its name there, is of a classifier, on which no embedding depends."""
    return name.startswith("classifier")


def same_options(mine: Mapping[str, Any], theirs: Mapping[str, Any]) -> list[str]:
    """Names of the options that keep one head from starting from the other: those that differ, but a list may be a
    part of the other's."""
    different = []
    for key in mine.keys() & theirs.keys():
        value, there = mine[key], theirs[key]
        part = isinstance(value, list) and isinstance(there, list) and all(item in there for item in value)
        if value != there and not part:
            different.append(key)
    return sorted(different, key=list(mine).index)
