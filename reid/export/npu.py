"""The form of a network that costs least on an NPU."""

from __future__ import annotations

from torch import nn

from scgnet.pieces import in_pieces

# The pieces that cost least under MGN by the compiler of each of Rockchip's chips, its uncounted copies charged; of two
# within 1 %, the fewer (docs/npu.md). Other backbones have one form.
NPU_PIECES = {
    ("rk3588", "int8"): {"scgnet_s": 0, "scgnet_m": 2, "scgnet_l": 4},
    ("rk3566", "int8"): {"scgnet_s": 4, "scgnet_m": 3, "scgnet_l": 8},
    ("rk3588", "fp16"): {"scgnet_s": 4, "scgnet_m": 6, "scgnet_l": 8},
    ("rk3566", "fp16"): {"scgnet_s": 4, "scgnet_m": 6, "scgnet_l": 8},
}


def for_npu(name: str, network: nn.Module, platform: str, precision: str) -> tuple[nn.Module, int]:
    """A network that holds backbone `name`, in the form of equal values that costs least on that chip, and its pieces;
    0 and a copy where that is the plain form."""
    pieces = NPU_PIECES[platform, precision].get(name, 0)
    return in_pieces(network, pieces), pieces
