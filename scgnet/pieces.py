"""Other forms of the shifted group convolutions, of equal values: for compilers to which the plain one is dear.

    network = in_pieces(scgnet_l(num_classes=0).eval(), 2)

The shift is a permutation of the first group convolution's output channels, so it is an order of that convolution's
filters. Where the convolution stays one (`pieces` 1, the zeros between groups written out), the filters are simply laid
in that order. Where it is cut into several, the first piece's filters are cut in two, the moved ones last, and the
concatenation's order is the shift. One grouped convolution cannot hold it: the moved channels would have to come from
the first group's input and stand in the last group's output.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from scgnet.scgnet import Shift, _Cascade


class Pieces(nn.Module):
    """A group convolution and what follows as `pieces` plain convolutions side by side, each over a run of groups;
    the first `shift` output channels come last. (B, C, h, w) -> (B, C, h', w')."""

    def __init__(self, conv: nn.Conv2d, pieces: int, shift: int, relu: bool) -> None:
        super().__init__()
        if conv.groups % pieces:
            raise ValueError(f"{conv.groups} groups cannot be cut into {pieces} pieces of equal width")
        inputs, outputs = conv.in_channels // pieces, conv.out_channels // pieces
        if pieces == 1:
            rows = [torch.arange(outputs).roll(-shift)]
        else:
            rows = [torch.arange(i * outputs, (i + 1) * outputs) for i in range(pieces)]
            if shift:
                rows = [rows[0][shift:], *rows[1:], rows[0][:shift]]
        self.starts = [int(r[0]) // outputs * inputs if pieces > 1 else 0 for r in rows]
        self.width = inputs
        weight = _dense(conv)
        self.convs = nn.ModuleList()
        for start, r in zip(self.starts, rows):
            made = nn.Conv2d(inputs, len(r), conv.kernel_size, conv.stride, conv.padding, bias=conv.bias is not None)  # type: ignore[arg-type]
            made.weight = nn.Parameter(weight[r, start : start + inputs].clone())
            if conv.bias is not None:
                made.bias = nn.Parameter(conv.bias.detach()[r])
            self.convs.append(made)
        self.relu = nn.ReLU() if relu else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        if len(self.convs) == 1:
            one: Tensor = self.relu(self.convs[0](x))
            return one
        parts = [self.relu(conv(x[:, s : s + self.width])) for s, conv in zip(self.starts, self.convs)]
        return torch.cat(parts, dim=1)


def _dense(conv: nn.Conv2d) -> Tensor:
    """A group convolution's filters over all input channels, zeros outside their group."""
    outputs, inputs = conv.out_channels // conv.groups, conv.in_channels // conv.groups
    weight = conv.weight.new_zeros(conv.out_channels, conv.in_channels, *conv.kernel_size)
    for g in range(conv.groups):
        rows, columns = slice(g * outputs, (g + 1) * outputs), slice(g * inputs, (g + 1) * inputs)
        weight[rows, columns] = conv.weight.detach()[rows]
    return weight


def in_pieces(network: nn.Module, pieces: int | Sequence[int]) -> nn.Module:
    """A copy of a network in evaluation mode, every SCGNet block in it cut into that many pieces; 0 leaves it.

    pieces: one number, or one a width in ascending order (stages 5, 6, 7). Batch norms are folded where a block is cut.
    ValueError where a number does not divide the groups. Networks without such blocks come back as they are.
    """
    network = copy.deepcopy(network).eval()
    blocks = [module for module in network.modules() if isinstance(module, _Cascade)]
    width_of = {block: int(block.group1[0].out_channels) for block in blocks}  # type: ignore[arg-type]
    widths = sorted(set(width_of.values()))
    counts = [pieces] * len(widths) if isinstance(pieces, int) else list(pieces)
    for block in blocks:
        count = counts[widths.index(width_of[block])]
        if count:
            shift = block.shift.channels if isinstance(block.shift, Shift) else 0
            block.group1 = _cut(block.group1, count, shift)
            block.group2 = _cut(block.group2, count, 0)
            block.shift = nn.Identity()
    return network


def _cut(layers: nn.Sequential, pieces: int, shift: int) -> nn.Sequential:
    conv, norm = layers[0], layers[1]
    assert isinstance(conv, nn.Conv2d)
    if isinstance(norm, nn.BatchNorm2d):
        conv = fuse_conv_bn_eval(conv, norm)
    if conv.groups == 1:  # the ablation without a second group convolution
        pieces = 1
    return nn.Sequential(Pieces(conv, pieces, shift, isinstance(layers[-1], nn.ReLU)))
