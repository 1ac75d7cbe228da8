"""torchreid's networks (Zhou and Xiang, "Torchreid", 2019; PyPI 0.2.5), every one of its table of models."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reid.core.types import ReidError
from reid.models import torchreid as bridge
from reid.models.foreign import Recognised

_CLASSIFIER = "classifier"
_SIZES = {"hacnn": (160, 64)}  # its regions are of that input; torchreid's own default is 256x128


def recognise(tensors: Mapping[str, Tensor], network: str | None = None) -> Recognised | None:
    """The network whose tensors have these names and shapes, whatever the number of people that it was trained on."""
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not _left_out(name)}
    fits = [name for name in bridge.networks() if network in (None, name) and _shapes(name) == given]
    if len(fits) > 1:  # PCB's of six parts and of four differ in their classifiers alone
        heads = len({name.split(".")[1] for name in tensors if name.startswith("classifier.")})
        fits = [name for name in fits if name.endswith(f"_p{heads}")] or fits
    if not fits:
        return None
    if len(fits) > 1:
        raise ReidError(f"the tensors are those of torchreid's {' and '.join(fits)}: say which with --network")
    return Recognised("torchreid", fits[0], _weights(fits[0], tensors), input_size=_SIZES.get(fits[0], (256, 128)))


def build(name: str, options: Mapping[str, Any]) -> nn.Module:
    """torchreid's network of that name with random weights, without its classifiers."""
    network = bridge.network(name, 1)
    for part in [part for part, _ in network.named_children() if part.startswith(_CLASSIFIER)]:
        setattr(network, part, nn.Identity())
    return network


def _shapes(name: str) -> dict[str, tuple[int, ...]]:
    with torch.device("meta"):
        state = bridge.network(name, 1).state_dict()
    return {key: tuple(tensor.shape) for key, tensor in state.items() if not _left_out(key)}


def _left_out(name: str) -> bool:
    """Of what an embedding does not depend on: classifiers, and counters that checkpoints of old versions lack."""
    return name.startswith(_CLASSIFIER) or name.endswith("num_batches_tracked")


def _weights(name: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    state = build(name, {}).state_dict()
    return {key: tensors.get(key, value) for key, value in state.items()}
