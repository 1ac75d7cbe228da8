"""EfficientNet-Lite0 (Tan and Le, ICML 2019; the Lite variants are their authors' release of 2020 for small devices).

EfficientNet-B0 without squeeze-and-excitation, and with ReLU6 in place of SiLU: nothing but convolutions, batch norms
and clamps, which NPUs and int8 take well. 4,652,008 parameters with the 1,000 classes of ImageNet, as published.
Convolutions are padded by (k - 1) / 2 on every side; the release pads those of stride 2 as TensorFlow does, on the
right and at the bottom first, so features of its weights are moved by a pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

STAGES = (  # kernel, stride of the first block, expansion, channels, blocks
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
STEM, FEATURES = 32, 1280
EPSILON = 1e-3  # of the batch norms, as the weights were trained


def convolution(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """A convolution without bias, and its batch norm."""
    padding = (kernel - 1) // 2
    return [
        nn.Conv2d(inputs, outputs, kernel, stride, padding, groups=groups, bias=False),
        nn.BatchNorm2d(outputs, eps=EPSILON),
    ]


class MBConv(nn.Module):
    """1x1 expansion, k x k depthwise convolution, linear 1x1 projection; the input is added where shapes agree."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = expansion * inputs
        layers: list[nn.Module] = []
        if expansion > 1:
            layers += [*convolution(inputs, middle, 1), nn.ReLU6(inplace=True)]
        self.depthwise = len(layers)  # place of the convolution that has the block's stride
        layers += [*convolution(middle, middle, kernel, stride, middle), nn.ReLU6(inplace=True)]
        layers += convolution(middle, outputs, 1)
        self.layers = nn.Sequential(*layers)
        self.adds_input = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layers(x)
        return x + y if self.adds_input else y


class EfficientNetLite0(nn.Module):
    """Normalised pixels (B, 3, H, W) -> logits (B, num_classes), or with num_classes 0 the features (B, 1280)."""

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self.stem = nn.Sequential(*convolution(3, STEM, 3, 2), nn.ReLU6(inplace=True))
        blocks, inputs = [], STEM
        for kernel, stride, expansion, outputs, count in STAGES:
            for i in range(count):
                blocks.append(MBConv(inputs, outputs, kernel, 1 if i else stride, expansion))
                inputs = outputs
        self.blocks = nn.Sequential(*blocks)  # strides 4, 8, 16, 32 begin at blocks 1, 3, 5, 11
        self.last = nn.Sequential(*convolution(inputs, FEATURES, 1), nn.ReLU6(inplace=True))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(FEATURES, num_classes)) if num_classes else None
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out")
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0, 0.01)
                nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        features = torch.flatten(nn.functional.adaptive_avg_pool2d(self.last(self.blocks(self.stem(x))), 1), 1)
        return features if self.classifier is None else self.classifier(features)
