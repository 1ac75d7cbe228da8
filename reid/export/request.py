"""What an export is asked to be."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Steps:
    """How int8 is reached; the default is the cheapest ladder rung that keeps the scores (benchmarks/quantise.py)."""

    per_channel: bool = True  # a scale for each channel of the weights, or one a layer
    ranges: str = "minmax"  # of activations: "minmax", "percentile" or "entropy" over the crops
    percentile: float = 99.99
    float_layers: tuple[str, ...] = ()  # "first", "reductions": what stays in float


@dataclass(frozen=True)
class Request:
    format: str
    precision: str = "fp32"
    batch: int | None = None  # images a run; None for any number
    flip: bool = False  # the features of the mirror image are added
    steps: Steps = field(default_factory=Steps)
