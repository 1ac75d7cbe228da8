"""A recipe: one YAML file, whole in itself, read into one dataclass. Each hyper-parameter is declared once, here.

config = load("configs/synthetic.yaml", ["epochs=5", "backbone=osnet_x0_25"])
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from reid.types import ReidError


@dataclass(frozen=True)
class Config:
    """Every value that a run depends on. A recipe names them all; a missing or unknown key is an error."""

    # network
    backbone: str  # key of reid.backbones.BACKBONES
    pretrained: str  # file of ImageNet weights of the backbone, "" for none
    branches: list[list[int]]  # MGN's table: [parts, last stride] a branch
    dim: int  # values a feature; the embedding has features x dim
    pool: str  # max, avg or gem
    neck: str  # bnneck or relu
    # input
    height: int  # pixels
    width: int  # pixels
    pad: int  # zero pixels on every side before the random crop, 0 for neither
    flip: float  # probability of the mirror image
    erase: float  # probability of random erasing
    # batch
    p: int  # identities a batch
    k: int  # images of each
    # schedule
    epochs: int  # an epoch walks nearly every training image once; 0 gives the untrained network
    warmup_epochs: float  # linear from lr_start to lr
    lr_start: float
    lr: float  # then half a cosine to 0
    momentum: float
    nesterov: bool
    weight_decay: float
    # losses
    smoothing: float  # label smoothing
    margin: float  # of the batch-hard triplet, on unnormalised features; 0 for the soft margin
    triplet: float  # weight of the triplet term, 0 leaves it out
    # selection
    holdout: float  # share of the training identities kept apart to choose the best checkpoint; 0: the last one
    watch_epochs: int  # every so many epochs, each head's Rank-1 on held-out (or training) identities; 0: never
    # machine
    precision: str  # of training: fp32, bf16, fp16 (CUDA only), or auto: bf16 where the device multiplies in it
    cache: str  # decoded images in: memory, disk, or auto (memory where a quarter of what is free holds them)
    seed: int

    def __post_init__(self) -> None:
        precisions = ("auto", "fp32", "bf16", "fp16")
        _check(self.precision in precisions, "precision", "auto, fp32, bf16 or fp16", self.precision)
        _check(self.cache in ("auto", "memory", "disk"), "cache", "auto, memory or disk", self.cache)
        _check(self.pool in ("max", "avg", "gem"), "pool", "max, avg or gem", self.pool)
        _check(self.neck in ("bnneck", "relu"), "neck", "bnneck or relu", self.neck)
        _check(0 <= self.holdout < 1, "holdout", "in [0, 1)", self.holdout)
        _check(self.p >= 2, "p", "at least 2 (a triplet needs a second identity)", self.p)
        _check(self.k >= 2, "k", "at least 2 (a triplet needs a second image)", self.k)
        for key in ("height", "width", "dim"):
            _check(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("flip", "erase", "smoothing"):
            _check(0 <= getattr(self, key) <= 1, key, "in [0, 1]", getattr(self, key))
        for key in ("epochs", "warmup_epochs", "watch_epochs", "pad", "lr_start", "lr", "weight_decay"):
            _check(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        for key in ("margin", "triplet"):
            _check(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        _check(0 < self.momentum < 1, "momentum", "above 0 and below 1", self.momentum)
        _check(0 <= self.seed < 2**63, "seed", "in [0, 2^63)", self.seed)
        _check(self.pad < self.height, "pad", f"less than the height, {self.height}", self.pad)
        table_fits = self.branches and all(len(b) == 2 and b[0] >= 1 and b[1] in (1, 2) for b in self.branches)
        _check(bool(table_fits), "branches", "a list of [parts >= 1, last stride 1 or 2]", self.branches)
        _check(not self.branches or len({b[0] for b in self.branches}) == len(self.branches), "branches",
               "branches of different numbers of parts", self.branches)  # fmt: skip


def _check(fits: bool, key: str, expected: str, value: Any) -> None:
    if not fits:
        raise ReidError(f"config: {key} must be {expected}, not {value!r}")


FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_TYPES = typing.get_type_hints(Config)


def load(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Reads a recipe and applies `key=value` overrides (values as in YAML).

    Raises ReidError for a file that cannot be read, an unknown or a missing key, or a value of the wrong type.
    """
    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ReidError(f"no recipe at {path}: give one with --config (the project's are in configs/)") from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ReidError(f"{path} cannot be read as YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ReidError(f"{path} must hold `key: value` lines, one a hyper-parameter")
    config = from_dict(values, str(path))
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ReidError(f"--set takes key=value, not {override!r}")
        try:
            changes[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ReidError(f"--set {key}: {text!r} is not a YAML value") from None
    return dataclasses.replace(config, **_checked(changes, "--set"))


def from_dict(values: dict[str, Any], source: str) -> Config:
    """The Config of a mapping that names every key; `source` is named in errors."""
    typed = _checked(values, source)
    missing = [key for key in FIELDS if key not in typed]
    if missing:
        raise ReidError(f"{source} lacks {', '.join(missing)}: a recipe is whole in itself")
    return Config(**typed)


def _checked(values: dict[str, Any], source: str) -> dict[str, Any]:
    for key in values:
        if key not in FIELDS:
            raise ReidError(f"{source}: unknown key {key!r}; the keys are {', '.join(FIELDS)}")
    return {key: _typed(key, value, _TYPES[key], source) for key, value in values.items()}


def as_dict(config: Config) -> dict[str, Any]:
    return dataclasses.asdict(config)


def dump(config: Config) -> str:
    """The recipe as YAML text that `load` reads back to an equal Config."""
    return yaml.safe_dump(as_dict(config), sort_keys=False, default_flow_style=None)


def _typed(key: str, value: Any, kind: Any, source: str) -> Any:
    if kind is float and isinstance(value, int | float | str) and not isinstance(value, bool):
        try:  # YAML reads 1e-4 as text
            number = float(value)
        except (ValueError, OverflowError):
            number = math.nan
        if not math.isfinite(number):
            raise ReidError(f"{source}: {key} must be a number, not {value!r}")
        return number
    if isinstance(kind, types.GenericAlias) and isinstance(value, list):
        return [_typed(key, item, typing.get_args(kind)[0], source) for item in value]
    if kind is str and value is None:
        return ""
    if isinstance(value, bool) != (kind is bool) or not isinstance(value, typing.get_origin(kind) or kind):
        name = str(kind) if typing.get_origin(kind) else kind.__name__
        raise ReidError(f"{source}: {key} must be of type {name}, not {value!r}")
    return value
