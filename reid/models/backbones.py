"""The backbones that carry the head, each cut at the same depth: after the first block at stride 16 (OSNet's conv3[0]
is the analogue, at stride 8).

A backbone is one whole network that is cut in two: a trunk that the branches share and a tail that each branch owns.
`trunk()` and `make_branch(last_stride)` are what a head takes. ResNet-50 is cut as MGN's paper has it. The SCGNet paper
does not say where the others are cut: chosen, the same depth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

import scgnet
from reid.core.types import ReidError
from reid.models.efficientnet_lite import EfficientNetLite0

Parts = tuple[nn.Sequential, nn.Sequential]


@dataclass(frozen=True)
class Backbone:
    """A row of the table: how the network is made, and where it is cut."""

    make: Callable[[int], Any]  # number of classes -> the whole network; 0 leaves its classifier out
    cut: Callable[[Any, int], Parts]  # network, last stride -> its trunk and its tail
    channels: int  # of the tail's map
    stride: int = 32  # of the tail's map with last_stride 2

    def build(self, num_classes: int) -> nn.Module:
        """The whole network as a classifier: normalised pixels (B, 3, H, W) -> logits (B, num_classes)."""
        net: nn.Module = self.make(num_classes)
        return net

    def split(self, last_stride: int) -> tuple[nn.Module, nn.Sequential, nn.Sequential]:
        """A network without its classifier, its trunk and its tail, on the same tensors."""
        net = self.make(0)
        return net, *self.cut(net, last_stride)


def _cut_scgnet(net: Any, last_stride: int) -> Parts:
    _set_stride(last_stride, net.stage7[0].group1[0], net.stage7[0].skip[0][0])
    trunk = nn.Sequential(net.stem, net.stage5, net.stage6[0])
    return trunk, nn.Sequential(*net.stage6[1:], net.stage7, net.conv8)


def _cut_mobilenet_v2(net: Any, last_stride: int) -> Parts:
    _set_stride(last_stride, net.features[14].conv[1][0])
    return net.features[:8], net.features[8:]


def _cut_efficientnet_lite(net: Any, last_stride: int) -> Parts:
    first = net.blocks[11]
    _set_stride(last_stride, first.layers[first.depthwise])
    return nn.Sequential(net.stem, *net.blocks[:6]), nn.Sequential(*net.blocks[6:], net.last)


def _cut_shufflenet_v2(net: Any, last_stride: int) -> Parts:
    first = net.stage4[0]  # stays a down-sampling block at stride 1, too
    _set_stride(last_stride, first.branch1[0], first.branch2[3])
    trunk = nn.Sequential(net.conv1, net.maxpool, net.stage2, net.stage3[0])
    return trunk, nn.Sequential(*net.stage3[1:], net.stage4, net.conv5)


def _cut_resnet50(net: Any, last_stride: int) -> Parts:
    _set_stride(last_stride, net.layer4[0].conv2, net.layer4[0].downsample[0])
    trunk = nn.Sequential(net.conv1, net.bn1, net.relu, net.maxpool, net.layer1, net.layer2, net.layer3[0])
    return trunk, nn.Sequential(*net.layer3[1:], net.layer4)


def _cut_osnet(net: Any, last_stride: int) -> Parts:
    # OSNet's own map is at stride 16, the height that MGN's stripes want: last_stride has nothing to change
    trunk = nn.Sequential(net.conv1, net.maxpool, net.conv2, net.conv3[0])
    return trunk, nn.Sequential(*net.conv3[1:], net.conv4, net.conv5)


def _set_stride(stride: int, *convolutions: Any) -> None:
    for convolution in convolutions:
        convolution.stride = (stride, stride)


def _torchvision(name: str, classifier: str) -> Callable[[int], Any]:
    def make(num_classes: int) -> Any:
        import torchvision.models  # here: it takes as long as torch itself

        net = getattr(torchvision.models, name)(weights=None, num_classes=num_classes or 1000)
        if not num_classes:
            setattr(net, classifier, nn.Identity())
        return net

    return make


def _osnet(name: str) -> Callable[[int], Any]:
    def make(num_classes: int) -> Any:
        from reid.models.torchreid import osnet

        net: Any = osnet(name)
        if not num_classes:
            net.fc, net.classifier = nn.Identity(), nn.Identity()
            return net
        net.classifier = nn.Linear(net.feature_dim, num_classes)
        nn.init.normal_(net.classifier.weight, 0.0, 0.01)  # torchreid's own
        nn.init.zeros_(net.classifier.bias)
        # in evaluation mode torchreid's networks give the features
        net.register_forward_hook(lambda net, _, output: output if net.training else net.classifier(output))
        return net

    return make


BACKBONES: dict[str, Backbone] = {
    "scgnet_s": Backbone(scgnet.scgnet_s, _cut_scgnet, 1024),
    "scgnet_m": Backbone(scgnet.scgnet_m, _cut_scgnet, 1024),
    "scgnet_l": Backbone(scgnet.scgnet_l, _cut_scgnet, 1024),
    # the ablations of the SCGNet paper's Table III, on the smallest
    "scgnet_s_unshifted": Backbone(partial(scgnet.scgnet_s, shift="none"), _cut_scgnet, 1024),
    "scgnet_s_uncascaded": Backbone(partial(scgnet.scgnet_s, cascade=False), _cut_scgnet, 1024),
    "scgnet_s_plain": Backbone(partial(scgnet.scgnet_s, cascade=False, shift="none"), _cut_scgnet, 1024),
    "mobilenet_v2": Backbone(_torchvision("mobilenet_v2", "classifier"), _cut_mobilenet_v2, 1280),
    "efficientnet_lite0": Backbone(EfficientNetLite0, _cut_efficientnet_lite, 1280),
    "shufflenet_v2_x1_5": Backbone(_torchvision("shufflenet_v2_x1_5", "fc"), _cut_shufflenet_v2, 1024),
    "resnet50": Backbone(_torchvision("resnet50", "fc"), _cut_resnet50, 2048),
    "osnet_x1_0": Backbone(_osnet("osnet_x1_0"), _cut_osnet, 512, stride=16),
    "osnet_x0_25": Backbone(_osnet("osnet_x0_25"), _cut_osnet, 128, stride=16),
}


def get(name: str) -> Backbone:
    """The table's entry; ReidError lists the valid names."""
    if name not in BACKBONES:
        raise ReidError(f"unknown backbone {name!r}; choose one of {', '.join(BACKBONES)}")
    return BACKBONES[name]


class BackboneFactory:
    """Gives trunk and branches of one network, from scratch or all from the same pre-trained weights."""

    def __init__(self, name: str, weights: dict[str, Tensor] | None = None) -> None:
        self.backbone = get(name)
        self.weights = weights

    def _parts(self, last_stride: int) -> tuple[nn.Sequential, nn.Sequential]:
        net, trunk, tail = self.backbone.split(last_stride)
        if self.weights is not None:
            net.load_state_dict(self.weights, strict=True)
        return trunk, tail

    def trunk(self) -> nn.Sequential:
        return self._parts(2)[0]

    def make_branch(self, last_stride: int) -> nn.Sequential:
        return self._parts(last_stride)[1]
