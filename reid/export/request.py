"""What an export is asked to be."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Steps:
    """How int8 is reached in an ONNX file; the default keeps the scores (benchmarks/quantise.py)."""

    per_channel: bool = True  # a scale for each channel of the weights, or one a layer
    percentile: float | None = 99.999  # of activations over the crops, that their ranges reach to; None: all
    mended: bool = True  # biases, until each layer's mean over the crops is the float network's


@dataclass(frozen=True)
class Request:
    format: str
    precision: str = "fp32"
    batch: int | None = None  # images a run; None for any number
    flip: bool = False  # the features of the mirror image are added
    steps: Steps = field(default_factory=Steps)
