"""A recipe: one YAML file, whole in itself, read into one dataclass. Each hyper-parameter is declared once, here.

config = load("configs/synthetic.yaml", ["epochs=5", "backbone=osnet_x0_25"])
config = load("configs/imagenet.yaml", ["backbone=scgnet_l"], kind=PretrainConfig)
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, overload

import yaml

from reid.core.types import ReidError


@dataclass(frozen=True)
class Config:
    """Every value that a run depends on. A recipe names them all; a missing or unknown key is an error."""

    # network
    backbone: str  # key of reid.models.backbones.BACKBONES
    pretrained: str  # file to start from: weights of the backbone, or a model of this program; "" for none
    frozen: int  # first parts of the trunk that keep the weights and statistics they start with
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
    jitter: float  # brightness, contrast, saturation and each colour are scaled by up to 1 +- so much
    restyle: float  # probability that the colours' means and deviations move towards those of another camera's image
    # batch
    p: int  # identities a batch
    k: int  # images of each
    # schedule
    epochs: int  # an epoch walks nearly every training image once; 0 gives the untrained network
    warmup_epochs: float  # linear from lr_start to lr
    lr_start: float
    lr: float  # then half a cosine to lr_end
    lr_end: float  # lr itself for a constant rate
    average_epochs: int  # the model is the mean of the weights over so many last epochs; 0: the last ones
    momentum: float
    nesterov: bool
    weight_decay: float
    # losses
    smoothing: float  # label smoothing
    margin: float  # of the batch-hard triplet; 0 for the soft margin
    triplet: float  # weight of the triplet term, 0 leaves it out
    triplet_after: bool  # the triplet compares features of unit length after the neck, not those before it
    circle: float  # weight of the circle loss on the global features, margin 0.25, scale 64; 0 leaves it out
    contrast: float  # weight of the contrastive loss on every feature, temperature 0.1; 0 leaves it out
    center: float  # weight of the center loss on the global features, 0 leaves it out
    teacher: str  # model file whose features of each crop, at its own input size, are to be matched; "" for none
    distill: float  # weight of the distance to the teacher's features
    joined: float  # share of the steps whose images are joined of two people's and only taught
    views: int  # so many epochs of crops are taught, then they come again; 0: the teacher sees new ones to the end
    # selection
    holdout: float  # share of the training identities kept apart to choose the best checkpoint; 0: the last one
    watch_epochs: int  # every so many epochs, each head's Rank-1 on held-out (or training) identities; 0: never
    # machine
    sync_batch_norm: bool  # statistics of the whole batch where several processes share it
    precision: str  # of training: fp32, bf16, fp16 (CUDA only), or auto: bf16 where the device multiplies in it
    cache: str  # decoded images in: memory, disk, or auto (memory where a quarter of what is free holds them)
    seed: int

    def __post_init__(self) -> None:
        _check_shared(self)
        _check(self.cache in ("auto", "memory", "disk"), "cache", "auto, memory or disk", self.cache)
        _check(self.pool in ("max", "avg", "gem"), "pool", "max, avg or gem", self.pool)
        _check(self.neck in ("bnneck", "relu"), "neck", "bnneck or relu", self.neck)
        _check(0 <= self.holdout < 1, "holdout", "in [0, 1)", self.holdout)
        _check(self.p >= 2, "p", "at least 2 (a triplet needs a second identity)", self.p)
        _check(self.k >= 2, "k", "at least 2 (a triplet needs a second image)", self.k)
        _check(0 <= self.joined < 1, "joined", "in [0, 1)", self.joined)
        for key in ("height", "width", "dim"):
            _check(getattr(self, key) >= 1, key, "at least 1", getattr(self, key))
        for key in ("erase", "restyle"):
            _check(0 <= getattr(self, key) <= 1, key, "in [0, 1]", getattr(self, key))
        for key in ("frozen", "views", "epochs", "warmup_epochs", "watch_epochs", "average_epochs", "pad", "lr_start",
                    "lr_end", "triplet", "circle", "contrast", "center", "distill", "margin"):  # fmt: skip
            _check(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))
        _check(bool(self.teacher) == (self.distill > 0), "teacher", "given with distill above 0, or neither",
               self.teacher)  # fmt: skip
        for key in ("views", "joined"):
            _check(bool(self.teacher) or not getattr(self, key), key, "0 without a teacher", getattr(self, key))
        _check(self.pad < self.height, "pad", f"less than the height, {self.height}", self.pad)
        table_fits = self.branches and all(len(b) == 2 and b[0] >= 1 and b[1] in (1, 2) for b in self.branches)
        _check(bool(table_fits), "branches", "a list of [parts >= 1, last stride 1 or 2]", self.branches)
        _check(not self.branches or len({b[0] for b in self.branches}) == len(self.branches), "branches",
               "branches of different numbers of parts", self.branches)  # fmt: skip


@dataclass(frozen=True)
class PretrainConfig:
    """Every value that the training of a backbone as a classifier depends on."""

    backbone: str  # key of reid.models.backbones.BACKBONES
    # input
    size: int  # pixels, height and width
    scale: float  # the random crop shows at least that share of an image's area
    flip: float  # probability of the mirror image
    jitter: float  # brightness, contrast and saturation are scaled by up to 1 +- so much
    resize: int  # pixels, the shorter side of a validation image before the central crop
    # schedule
    batch: int  # images a step, of all processes together
    epochs: int  # an epoch walks every training image once, but for the last ones that fill no batch
    lr: float  # falls linearly to 0
    momentum: float
    weight_decay: float  # of convolutions and fully connected layers; not of biases and batch norms
    smoothing: float  # label smoothing
    validate_epochs: int  # top-1 and top-5 every so many epochs, and after the last; 0: only then
    # machine
    workers: int  # processes that read images, for each that trains; 0: none but that one
    sync_batch_norm: bool  # statistics of the whole batch where several processes share it
    precision: str  # of training: fp32, bf16, fp16 (CUDA only), or auto: bf16 where the device multiplies in it
    seed: int

    def __post_init__(self) -> None:
        _check_shared(self)
        _check(self.size >= 32, "size", "at least 32, the stride of the networks", self.size)
        _check(self.resize >= self.size, "resize", f"at least the size, {self.size}", self.resize)
        _check(0 < self.scale <= 1, "scale", "above 0 and at most 1", self.scale)
        _check(self.batch >= 2, "batch", "at least 2 (a batch norm needs a second image)", self.batch)
        _check(self.epochs >= 1, "epochs", "at least 1", self.epochs)
        for key in ("validate_epochs", "workers"):
            _check(getattr(self, key) >= 0, key, "at least 0", getattr(self, key))


Recipe = TypeVar("Recipe", Config, PretrainConfig)


def _check_shared(config: Config | PretrainConfig) -> None:
    """The ranges of the keys that every recipe has."""
    precisions = ("auto", "fp32", "bf16", "fp16")
    _check(config.precision in precisions, "precision", "auto, fp32, bf16 or fp16", config.precision)
    for key in ("flip", "smoothing"):
        _check(0 <= getattr(config, key) <= 1, key, "in [0, 1]", getattr(config, key))
    for key in ("lr", "weight_decay"):
        _check(getattr(config, key) >= 0, key, "at least 0", getattr(config, key))
    _check(0 <= config.jitter < 1, "jitter", "in [0, 1)", config.jitter)
    _check(0 < config.momentum < 1, "momentum", "above 0 and below 1", config.momentum)
    _check(0 <= config.seed < 2**63, "seed", "in [0, 2^63)", config.seed)


def _check(fits: bool, key: str, expected: str, value: Any) -> None:
    if not fits:
        raise ReidError(f"config: {key} must be {expected}, not {value!r}")


@overload
def load(path: str | Path, overrides: Sequence[str] = ...) -> Config: ...
@overload
def load(path: str | Path, overrides: Sequence[str] = ..., *, kind: type[Recipe]) -> Recipe: ...
def load(path: str | Path, overrides: Sequence[str] = (), *, kind: Any = Config) -> Any:
    """Reads a recipe of a kind and applies `key=value` overrides (values as in YAML).

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
    config = from_dict(kind, values, str(path))
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals:
            raise ReidError(f"--set takes key=value, not {override!r}")
        try:
            changes[key.strip()] = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ReidError(f"--set {key}: {text!r} is not a YAML value") from None
    return dataclasses.replace(config, **_checked(kind, changes, "--set"))


def from_dict(kind: type[Recipe], values: dict[str, Any], source: str) -> Recipe:
    """The recipe of a mapping that names every key; `source` is named in errors."""
    typed = _checked(kind, values, source)
    missing = [key for key in _keys(kind) if key not in typed]
    if missing:
        raise ReidError(f"{source} lacks {', '.join(missing)}: a recipe is whole in itself")
    return kind(**typed)


def _keys(kind: type[Config] | type[PretrainConfig]) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)]


def _checked(kind: type[Config] | type[PretrainConfig], values: dict[str, Any], source: str) -> dict[str, Any]:
    keys, hints = _keys(kind), typing.get_type_hints(kind)
    for key in values:
        if key not in keys:
            raise ReidError(f"{source}: unknown key {key!r}; the keys are {', '.join(keys)}")
    return {key: _typed(key, value, hints[key], source) for key, value in values.items()}


def as_dict(config: Config | PretrainConfig) -> dict[str, Any]:
    return dataclasses.asdict(config)


def dump(config: Config | PretrainConfig) -> str:
    """The recipe as YAML text that `load` reads back to an equal one."""
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
