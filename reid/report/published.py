"""Results that papers print, to stand beside a run's."""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """One published result, in percent as printed, without re-ranking."""

    method: str
    backbone: str
    rank1: float
    mAP: float
    rule: str  # step, trapezoid, or "not stated"
    source: str


_PAPER = "SCGNet (Zhang et al. 2023), Tables IX and X"
_MGN = "MGN (Wang et al. 2018)"
_LUO = "BagOfTricks (Luo et al. 2019)"
_LIGHT = "LightMBN (Herzog et al. 2021)"
# Table IX and X of the paper, and the named peers. The rule of the average precision only where its code shows it.
PUBLISHED: dict[str, tuple[Published, ...]] = {
    "market1501": (
        Published("MGN", "SCGNet-L", 95.9, 88.1, "not stated", _PAPER),
        Published("MGN", "MobileNetV2", 95.3, 87.0, "not stated", _PAPER),
        Published("MGN", "ShuffleNetV2 1.5x", 94.9, 87.6, "not stated", _PAPER),
        Published("MGN", "ResNet-50", 95.7, 86.9, "not stated", _MGN),
        Published("BagOfTricks", "ResNet-50", 94.5, 85.9, "step", _LUO),
        Published("LightMBN", "OSNet", 96.3, 91.5, "not stated", _LIGHT),
        Published("MGN", "ResNet-50-ibn", 95.8, 89.8, "step", "fastreid"),
        Published("OSNet", "OSNet x1.0", 94.2, 82.6, "step", "torchreid"),
        Published("OSNet", "OSNet x0.25", 91.2, 75.0, "step", "torchreid"),
    ),
    "dukemtmc": (
        Published("MGN", "SCGNet-L", 89.4, 79.4, "not stated", _PAPER),
        Published("MGN", "MobileNetV2", 88.5, 77.7, "not stated", _PAPER),
        Published("MGN", "ShuffleNetV2 1.5x", 89.3, 78.6, "not stated", _PAPER),
        Published("MGN", "ResNet-50", 88.7, 78.4, "not stated", _MGN),
        Published("BagOfTricks", "ResNet-50", 86.4, 76.4, "step", _LUO),
        Published("LightMBN", "OSNet", 92.1, 83.7, "not stated", _LIGHT),
        Published("MGN", "ResNet-50-ibn", 91.1, 82.0, "step", "fastreid"),
        Published("OSNet", "OSNet x1.0", 87.0, 70.2, "step", "torchreid"),
        Published("OSNet", "OSNet x0.25", 82.0, 61.4, "step", "torchreid"),
    ),
    "cuhk03np_labeled": (
        Published("MGN", "SCGNet-L", 77.57, 74.27, "not stated", _PAPER),
        Published("MGN", "MobileNetV2", 75.57, 72.02, "not stated", _PAPER),
        Published("MGN", "ShuffleNetV2 1.5x", 74.57, 70.86, "not stated", _PAPER),
        Published("MGN", "ResNet-50", 68.20, 67.40, "not stated", _MGN),
        Published("LightMBN", "OSNet", 87.2, 85.1, "not stated", _LIGHT),
    ),
    "cuhk03np_detected": (
        Published("MGN", "SCGNet-L", 75.29, 71.58, "not stated", _PAPER),
        Published("MGN", "MobileNetV2", 74.21, 69.09, "not stated", _PAPER),
        Published("MGN", "ShuffleNetV2 1.5x", 72.93, 68.69, "not stated", _PAPER),
        Published("MGN", "ResNet-50", 66.80, 66.00, "not stated", _MGN),
        Published("LightMBN", "OSNet", 85.4, 82.6, "not stated", _LIGHT),
    ),
}
