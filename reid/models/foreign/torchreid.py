"""torchreid's networks (Zhou and Xiang, "Torchreid", 2019; PyPI 0.2.5), every one of its table of models."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from reid.core.types import ReidError
from reid.models import torchreid as bridge
from reid.models.foreign import Recognised

_CLASSIFIER = "classifier"
_SIZES = {"hacnn": (160, 64)}  # its regions are of that input; torchreid's own default is 256x128

VALUES = {  # of each network, classifiers and counters left out: by these a file's network is found, then proved
    "resnet18": 11_186_112,
    "resnet34": 21_301_696,
    "resnet50": 23_561_152,
    "resnet101": 42_605_504,
    "resnet152": 58_295_232,
    "resnext50_32x4d": 23_048_128,
    "resnext101_32x8d": 86_945_216,
    "resnet50_fc512": 24_612_288,
    "se_resnet50": 26_092_144,
    "se_resnet50_fc512": 27_143_280,
    "se_resnet101": 47_383_216,
    "se_resnext50_32x4d": 25_579_120,
    "se_resnext101_32x4d": 47_044_272,
    "densenet121": 7_037_504,
    "densenet169": 12_642_880,
    "densenet201": 18_321_984,
    "densenet161": 26_691_936,
    "densenet121_fc512": 7_564_352,
    "inceptionresnetv2": 54_367_008,
    "inceptionv4": 41_205_984,
    "xception": 20_861_480,
    "resnet50_ibn_a": 23_558_912,
    "resnet50_ibn_b": 23_562_560,
    "mobilenetv2_x1_0": 2_259_136,
    "mobilenetv2_x1_4": 4_339_248,
    "shufflenet": 929_208,
    "squeezenet1_0": 735_424,
    "squeezenet1_0_fc512": 1_000_128,
    "squeezenet1_1": 722_496,
    "shufflenet_v2_x0_5": 349_744,
    "shufflenet_v2_x1_0": 1_269_784,
    "shufflenet_v2_x1_5": 2_502_064,
    "shufflenet_v2_x2_0": 5_378_712,
    "mudeep": 134_952_976,
    "resnet50mid": 27_760_576,
    "hacnn": 2_942_468,
    "pcb_p6": 24_086_464,
    "pcb_p4": 24_086_464,
    "mlfn": 32_562_112,
    "osnet_x1_0": 2_192_548,
    "osnet_x0_75": 1_303_290,
    "osnet_x0_5": 642_066,
    "osnet_x0_25": 208_392,
    "osnet_ibn_x1_0": 2_193_444,
    "osnet_ain_x1_0": 2_189_604,
    "osnet_ain_x0_75": 1_301_082,
    "osnet_ain_x0_5": 640_594,
    "osnet_ain_x0_25": 207_656,
    "nasnetamobile": 4_269_716,
}


def recognise(tensors: Mapping[str, Tensor], network: str | None = None) -> Recognised | None:
    """The network whose tensors have these names and shapes, whatever the number of people that it was trained on."""
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not _left_out(name)}
    total = sum(math.prod(shape) for shape in given.values())
    likely = [name for name, values in VALUES.items() if values == total and network in (None, name)]
    fits = [name for name in likely if _shapes(name) == given]
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
