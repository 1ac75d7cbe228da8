"""SCGNet-S, -M and -L: a shifted and cascaded group convolution network for small devices.

    net = scgnet.scgnet_s(num_classes=1000)   # logits (B, 1000), 2,675,536 parameters
    net = scgnet.scgnet_s(num_classes=0)      # features (B, 1024)
    net.stages(images)                        # the outputs of stem, stage5, stage6, stage7, conv8

Source: Zhang et al., "SCGNet: Shifting and Cascaded Group Network", IEEE TCSVT 2023,
doi 10.1109/TCSVT.2023.3246999; "the paper" below. The arguments `cascade`, `shift` and `residual` are its
ablations (Tables III and IV).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Stages(NamedTuple):
    """What each part of the network gives, for an image of H x W pixels (H and W a multiple of 32)."""

    stem: Tensor  # (B, c, H/4, W/4)
    stage5: Tensor  # (B, c, H/8, W/8)
    stage6: Tensor  # (B, c, H/16, W/16)
    stage7: Tensor  # (B, c, H/32, W/32), H/16 and W/16 with last_stride=1
    conv8: Tensor  # (B, 1024, as stage7)


class Shift(nn.Module):
    """The first `channels` channels go to the tail, so that the next group convolution sees its neighbour's (Fig. 3).

    Slice and concat: an NPU takes both. (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels = channels

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat((x[:, self.channels :], x[:, : self.channels]), dim=1)

    def extra_repr(self) -> str:
        return f"channels={self.channels}"


def shift_channels(channels: int, groups: int, kind: str) -> int:
    """How many of `channels` a shift moves: the paper's formula c / 4G, or the 3c / 4G that its Fig. 3 draws."""
    if kind not in ("formula", "figure", "none"):
        raise ValueError(f"shift must be 'formula', 'figure' or 'none', not {kind!r}")
    return {"formula": channels // (4 * groups), "figure": 3 * channels // (4 * groups), "none": 0}[kind]


def conv_bn(n: int, m: int, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True) -> nn.Sequential:
    """Every convolution of the network: no bias, batch norm, and ReLU but after the depthwise one."""
    layers: list[nn.Module] = [
        nn.Conv2d(n, m, kernel, stride, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(m),
    ]
    return nn.Sequential(*layers, nn.ReLU(inplace=True)) if relu else nn.Sequential(*layers)


class _Cascade(nn.Module):
    """What both blocks share: a = 1x1 (x), b = shift (3x3 group conv (a)), c = 3x3 group conv (b)."""

    def __init__(self, n: int, m: int, groups: int, stride: int, cascade: bool, shift: str) -> None:
        super().__init__()
        half = m // 2
        moved = shift_channels(half, groups, shift)
        self.squeeze = conv_bn(n, half, 1)
        self.group1 = conv_bn(half, half, 3, stride, groups)
        self.shift = Shift(moved) if moved else nn.Identity()
        # Table III, without "C-Group": the second group convolution is a plain 1x1
        self.group2 = conv_bn(half, half, 3, groups=groups) if cascade else conv_bn(half, half, 1)

    def cascade(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        a = self.squeeze(x)
        b = self.shift(self.group1(a))
        c = self.group2(b)
        return a, b, c


class Block(_Cascade):
    """Stride 1: concat (a, c). (B, C, h, w) -> (B, C, h, w). `residual` adds x (Table IV)."""

    def __init__(self, channels: int, groups: int, cascade: bool, shift: str, residual: bool) -> None:
        super().__init__(channels, channels, groups, 1, cascade, shift)
        self.residual = residual

    def forward(self, x: Tensor) -> Tensor:
        a, _, c = self.cascade(x)
        out = torch.cat((a, c), dim=1)
        return out + x if self.residual else out


class DownBlock(_Cascade):
    """Down-sampling: concat (b, c) + 1x1 (3x3 depthwise (x)). (B, N, h, w) -> (B, M, h / stride, w / stride)."""

    def __init__(self, n: int, m: int, groups: int, stride: int, cascade: bool, shift: str) -> None:
        super().__init__(n, m, groups, stride, cascade, shift)
        self.skip = nn.Sequential(conv_bn(n, n, 3, stride, groups=n, relu=False), conv_bn(n, m, 1))

    def forward(self, x: Tensor) -> Tensor:
        _, b, c = self.cascade(x)
        skip: Tensor = self.skip(x)
        return torch.cat((b, c), dim=1) + skip


class SCGNet(nn.Module):
    """The network of Table II.

    stem: output channels of conv1 .. conv4. widths, blocks: channels of stages 5, 6, 7 and how many stride-1 blocks
    follow each one's down-sampling block. last_stride: stride of stage7's first block, 1 for the part branches of MGN.
    num_classes: 0 leaves the two fully connected layers out.
    """

    def __init__(
        self,
        stem: tuple[int, int, int, int],
        widths: tuple[int, int, int],
        blocks: tuple[int, int, int],
        groups: int,
        num_classes: int = 1000,
        *,
        cascade: bool = True,
        shift: str = "formula",
        residual: bool = False,
        last_stride: int = 2,
    ) -> None:
        super().__init__()

        def stage(n: int, m: int, count: int, stride: int = 2) -> nn.Sequential:
            return nn.Sequential(
                DownBlock(n, m, groups, stride, cascade, shift),
                *(Block(m, groups, cascade, shift, residual) for _ in range(count)),
            )

        self.stem = nn.Sequential(
            conv_bn(3, stem[0], 3, stride=2),
            conv_bn(stem[0], stem[1], 3),
            conv_bn(stem[1], stem[2], 3, stride=2),
            conv_bn(stem[2], stem[3], 3),
        )
        self.stage5 = stage(stem[3], widths[0], blocks[0])
        self.stage6 = stage(widths[0], widths[1], blocks[1])
        self.stage7 = stage(widths[1], widths[2], blocks[2], last_stride)
        self.conv8 = conv_bn(widths[2], 1024, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        # the paper names two fully connected layers and no function between them; ReLU is chosen here
        self.classifier = (
            nn.Sequential(nn.Linear(1024, 1024), nn.ReLU(inplace=True), nn.Linear(1024, num_classes))
            if num_classes
            else nn.Identity()
        )
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """First convolution N(0, 0.01), others N(0, 1 / c_in), as in the authors' earlier released networks."""
        first = next(module for module in self.stem.modules() if isinstance(module, nn.Conv2d))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                std = 0.01 if module is first else module.in_channels**-0.5
                nn.init.normal_(module.weight, 0.0, std)
            elif isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, 0.0, 0.01)
                nn.init.zeros_(module.bias)

    def stages(self, x: Tensor) -> Stages:
        """Every part's output, for other heads. x: (B, 3, H, W) normalised pixels."""
        stem = self.stem(x)
        stage5 = self.stage5(stem)
        stage6 = self.stage6(stage5)
        stage7 = self.stage7(stage6)
        return Stages(stem, stage5, stage6, stage7, self.conv8(stage7))

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, W) normalised pixels -> (B, num_classes) logits, or (B, 1024) features where num_classes is 0."""
        y: Tensor = self.classifier(self.pool(self.stages(x).conv8).flatten(1))
        return y


def scgnet_s(num_classes: int = 1000, **options: Any) -> SCGNet:
    """SCGNet-S: 2.68 M parameters, 82 M operations at 224x224 (Tables I and II). Options are SCGNet's."""
    return SCGNet((8, 8, 16, 16), (64, 128, 256), (1, 2, 1), 4, num_classes, **options)


def scgnet_m(num_classes: int = 1000, *, conv2: int = 12, **options: Any) -> SCGNet:
    """SCGNet-M: 3.65 M parameters, 240 M operations. Table II prints conv2 = 16; only 12 gives the paper's 240 M."""
    return SCGNet((12, conv2, 24, 24), (120, 240, 480), (2, 4, 1), 6, num_classes, **options)


def scgnet_l(num_classes: int = 1000, **options: Any) -> SCGNet:
    """SCGNet-L: 6.22 M parameters, 613 M operations."""
    return SCGNet((16, 16, 32, 32), (192, 384, 768), (3, 6, 2), 8, num_classes, **options)


def operations(net: nn.Module, height: int = 224, width: int = 224) -> int:
    """Operations for one image by the paper's count: multiply-adds of convolutions and fully connected layers, and
    two for each output element of a batch norm. `net` is run once on zeros, in evaluation mode."""
    total = 0

    def count(module: nn.Module, _: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, nn.Conv2d):
            total += output[0].numel() * module.weight[0].numel()
        elif isinstance(module, nn.Linear):
            total += module.weight.numel()
        else:
            total += 2 * output[0].numel()

    counted = [m for m in net.modules() if isinstance(m, nn.Conv2d | nn.Linear | nn.BatchNorm2d)]
    hooks = [module.register_forward_hook(count) for module in counted]
    training = net.training
    try:
        net.eval()
        with torch.no_grad():
            net(torch.zeros(1, 3, height, width, device=next(net.parameters()).device))
    finally:
        net.train(training)
        for hook in hooks:
            hook.remove()
    return total
