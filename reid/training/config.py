"""A recipe: a YAML file that says what differs from the defaults here, read into one dataclass. Each hyper-parameter is
declared once, in this file, with its range, its default and its comment.

config = load("configs/synthetic.yaml", ["epochs=5", "backbone=osnet_x0_25"])
config = load("configs/imagenet.yaml", ["backbone=scgnet_l"], kind=PretrainConfig)

The defaults are the SCGNet paper's recipe (section IV-E: input, SGD, schedule), MGN's head and losses, and where those
are silent BagOfTricks (Luo et al. 2019). A key that is added here gets as its default what the program did before it,
so that the recipes of saved models, checkpoints and runs stay what they were.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
from collections.abc import Mapping, Sequence
from dataclasses import field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, overload

from pydantic import BeforeValidator, ConfigDict, Field, ValidationError
from pydantic.dataclasses import dataclass

from reid.core.types import ReidError
from reid.training import recipe_text


def _as_number(value: Any) -> Any:
    """YAML reads 1e-4 as text."""
    try:
        return value if isinstance(value, bool) else float(value)
    except (ValueError, TypeError, OverflowError):
        return value


Number = Annotated[float, BeforeValidator(_as_number), Field(allow_inf_nan=False)]
Share = Annotated[Number, Field(ge=0, le=1)]
Part = Annotated[Number, Field(ge=0, lt=1)]
Weight = Annotated[Number, Field(ge=0, le=1e6)]
Count = Annotated[int, Field(ge=0, le=10_000)]
Epochs = Annotated[Number, Field(ge=0, le=10_000)]
Pixels = Annotated[int, Field(ge=1, le=2048)]
Positive = Annotated[int, Field(ge=1, le=4096)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]
Text = Annotated[
    str,
    BeforeValidator(lambda value: "" if value is None else value),
    Field(max_length=1000, pattern=r"^[^\x00-\x1f]*$"),
]
Parts = Annotated[list[Annotated[int, Field(ge=1, le=64)]], Field(max_length=64)]
Files = Annotated[
    list[Text],
    BeforeValidator(
        lambda value: [value] if isinstance(value, str) and value else [] if value in ("", None) else value
    ),
    Field(max_length=16),
]
Precision = Literal["auto", "fp32", "bf16", "fp16"]
Branches = Annotated[list[Annotated[list[int], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=8)]

MOST_PARTS = 16  # of a branch
MOST_VALUES = 65_536  # of an embedding
MOST_BATCH_PIXELS = 2**28  # of a batch: 85 times the paper's
STRICT = ConfigDict(strict=True)


@dataclass(frozen=True, config=STRICT)
class Config:
    """Every value that a run on people depends on."""

    # network
    backbone: Text  # key of reid.models.backbones.BACKBONES
    pretrained: Text = ""  # file to start from: weights of the backbone, or a model of this program; "" for none
    wants_pretrained: bool = False  # the scores that the recipe names are from ImageNet weights: a run without says so
    freeze: Count = 0  # first parts of the trunk that keep the weights and statistics they start with
    head: Text = "mgn"  # key of reid.models.heads.HEADS, which says which of the next keys shape it
    branches: Branches = field(default_factory=lambda: [[1, 2], [2, 1], [3, 1]])  # MGN: [parts, last stride] a branch
    dim: Positive = 256  # values a feature; the embedding has features x dim
    pool: Literal["max", "avg", "gem"] = "max"  # MGN: max; BagOfTricks: avg
    neck: Literal["bnneck", "relu"] = "bnneck"  # BagOfTricks; relu is MGN's own
    # what the classifiers of MGN's global features see: their 256 values, or, as in MGN itself, the channels before the
    # reduction (neck relu then; those who tried both measured no gain)
    global_softmax: Literal["reduced", "unreduced"] = "reduced"
    last_stride: Annotated[int, Field(ge=1, le=2)] = 1  # BagOfTricks: of the backbone's last down-sampling
    # input
    height: Pixels = 384  # paper
    width: Pixels = 128  # paper
    pad: Annotated[int, Field(ge=0, le=2048)] = 10  # zero pixels on every side before the random crop, 0 for neither
    flip: Share = 0.5  # probability of the mirror image
    erase: Share = 0.5  # probability of random erasing (BagOfTricks: the paper names erasing and no probability)
    jitter: Part = 0.0  # brightness, contrast, saturation and each colour are scaled by up to 1 +- so much
    mixstyle: Share = 0.0  # probability that the colours' means and deviations move towards another camera's image's
    grey: Share = 0.0  # probability that an image loses its colours
    # MixStyle (Zhou et al. 2021): probability that a batch's feature maps mix their channels' means and deviations
    feature_mixstyle: Share = 0.0
    mixstyle_alpha: Annotated[Number, Field(gt=0, le=100)] = 0.1  # of the shares' Beta distribution
    mixstyle_after: Parts = field(default_factory=list)  # behind these parts of the trunk, from 1 on
    # batch: 64 (paper), as BagOfTricks draws it
    p: Annotated[int, Field(ge=2, le=1024)] = 16  # identities a batch: a triplet needs a second one
    k: Annotated[int, Field(ge=2, le=1024)] = 4  # images of each: a triplet needs a second one
    balance_cameras: bool = False  # the images of an identity come in turn from its cameras
    balance_domains: bool = False  # of several data sets, each gives as many identities to every batch
    # schedule (paper)
    epochs: Count = 90  # an epoch walks nearly every training image once; 0 gives the untrained network
    warmup_epochs: Epochs = 5  # linear from lr_start to lr
    lr_start: Weight = 0.001
    lr: Weight = 0.1
    schedule: Literal["cosine", "steps"] = "cosine"  # after the warm-up: half a cosine to lr_end, or steps down
    lr_end: Weight = 0.0  # of the cosine; lr itself for a constant rate
    milestones: Annotated[list[Epochs], Field(max_length=32)] = field(default_factory=list)  # of the steps: epochs
    gamma: Share = 0.1  # of the steps: the rate is multiplied by it at each milestone
    average_epochs: Count = 0  # the model is the mean of the weights over so many last epochs; 0: the last ones
    optimizer: Literal["sgd", "adam"] = "sgd"
    momentum: Annotated[Number, Field(gt=0, lt=1)] = 0.9  # of sgd; of adam its first beta (the second is 0.999)
    nesterov: bool = False  # of sgd
    weight_decay: Share = 1e-4
    # losses
    smoothing: Share = 0.1  # label smoothing (BagOfTricks)
    margin: Weight = 0.3  # of the batch-hard triplet (BagOfTricks); 0 for the soft margin
    triplet: Weight = 1.0  # weight of the triplet term on the global features (MGN), 0 leaves it out
    triplet_on: Literal["before", "after"] = "before"  # the neck; after it, features of unit length are compared
    circle: Weight = 0.0  # weight of the circle loss on the global features, margin 0.25, scale 64; 0 leaves it out
    contrast: Weight = 0.0  # weight of the contrastive loss on every feature, temperature 0.1; 0 leaves it out
    center: Weight = 0.0  # weight of the center loss on the global features, 0 leaves it out
    center_update: Literal["bagoftricks", "wen"] = "bagoftricks"  # its formula and how centres follow: CenterLoss
    # model files, also exported, whose features of each crop at their own input size are to be matched: of one with
    # this recipe's features each of them, of others and of several the similarities of a batch's images; "" for none
    teacher: Files = field(default_factory=list)
    distill: Weight = 0.0  # weight of the distance to what the teachers say
    cutmix: Part = 0.0  # share of the steps whose images are joined of two people's and only taught
    cached_epochs: Count = 0  # so many epochs of crops are taught, then they come again; 0: always new ones
    # selection
    holdout: Part = 0.0  # share of the training identities kept apart to choose the best checkpoint; 0: the last one
    watch_epochs: Count = 5  # every so many epochs, each head's Rank-1 on held-out (or training) identities; 0: never
    # machine
    sync_batch_norm: bool = False  # statistics of the whole batch where several processes share it
    precision: Precision = "auto"  # of training: fp32, bf16, fp16 (CUDA only), or auto: bf16 where the device has it
    cache: Literal["auto", "memory", "disk"] = "auto"  # decoded images; auto: memory where a quarter of it holds them
    seed: Seed = 0

    def __post_init__(self) -> None:
        self._check_head()
        _check(
            bool(self.teacher) == (self.distill > 0), "teacher", "given with distill above 0, or neither", self.teacher
        )
        after = self.mixstyle_after
        _check(len(set(after)) == len(after), "mixstyle_after", "different numbers", after)
        _check(
            bool(after) == (self.feature_mixstyle > 0),
            "mixstyle_after",
            "given with feature_mixstyle above 0, or neither",
            after,
        )
        for key in ("cached_epochs", "cutmix"):
            _check(bool(self.teacher) or not getattr(self, key), key, "0 without a teacher", getattr(self, key))
        _check(self.pad < self.height, "pad", f"less than the height, {self.height}", self.pad)
        pixels = self.p * self.k * self.height * self.width
        _check(pixels <= MOST_BATCH_PIXELS, "p * k * height * width", f"at most {MOST_BATCH_PIXELS}", pixels)
        self._check_schedule()

    def _check_head(self) -> None:
        from reid.models import heads  # torch takes a second

        mine = heads.get(self.head).options
        for key in sorted({key for entry in heads.HEADS.values() for key in entry.options} - set(mine)):
            default = default_of(Config, key)
            _check(
                getattr(self, key) == default,
                key,
                f"{default} (the default) with the head {self.head}, which has "
                f"no such option: its own are {', '.join(mine)}",
                getattr(self, key),
            )
        fits = all(1 <= parts <= MOST_PARTS and stride in (1, 2) for parts, stride in self.branches)
        _check(fits, "branches", f"a list of [parts in 1 .. {MOST_PARTS}, last stride 1 or 2]", self.branches)
        parts = [parts for parts, _ in self.branches]
        _check(len(set(parts)) == len(parts), "branches", "branches of different numbers of parts", self.branches)
        values = self.dim * sum(count + (count > 1) for count in parts)
        _check(values <= MOST_VALUES, "dim", f"at most {MOST_VALUES} for all features together", values)
        if self.global_softmax == "unreduced":
            _check(
                self.neck == "relu",
                "neck",
                "relu with global_softmax unreduced: bnneck's would not be trained",
                self.neck,
            )
            compared = max(self.triplet, self.circle, self.contrast)
            _check(
                compared > 0,
                "triplet",
                "above 0 with global_softmax unreduced: nothing else trains the global features",
                self.triplet,
            )

    def _check_schedule(self) -> None:
        stones = self.milestones
        if self.schedule == "cosine":
            _check(not stones, "milestones", "[] with schedule cosine", stones)
        else:
            _check(
                bool(stones) and stones == sorted(set(stones)),
                "milestones",
                "rising epochs with schedule steps",
                stones,
            )
            _check(not self.epochs or stones[-1] < self.epochs, "milestones", f"below epochs, {self.epochs}", stones)
            _check(self.lr_end == 0, "lr_end", "0 with schedule steps", self.lr_end)
        _check(self.optimizer == "sgd" or not self.nesterov, "nesterov", "false with optimizer adam", self.nesterov)


@dataclass(frozen=True, config=STRICT)
class PretrainConfig:
    """Every value that the training of a backbone as a classifier depends on. The defaults are ShuffleNetV2's settings
    (see configs/imagenet.yaml)."""

    backbone: Text  # key of reid.models.backbones.BACKBONES
    # input
    size: Annotated[int, Field(ge=32, le=2048)] = 224  # pixels, height and width; at least the networks' stride
    scale: Annotated[Number, Field(gt=0, le=1)] = 0.08  # the random crop shows at least that share of an image's area
    flip: Share = 0.5  # probability of the mirror image
    jitter: Part = 0.4  # brightness, contrast and saturation are scaled by up to 1 +- so much
    resize: Pixels = 256  # the shorter side of a validation image before the central crop
    # schedule
    batch: Annotated[int, Field(ge=2, le=65_536)] = 1024  # images a step, of all processes together
    epochs: Annotated[int, Field(ge=1, le=10_000)] = 240  # each walks every image once, but those that fill no batch
    lr: Weight = 0.5  # for a batch of 1024; falls linearly to 0
    momentum: Annotated[Number, Field(gt=0, lt=1)] = 0.9
    weight_decay: Share = 4e-5  # of convolutions and fully connected layers; not of biases and batch norms
    smoothing: Share = 0.1  # label smoothing
    validate_epochs: Count = 8  # top-1 and top-5 every so many epochs, and after the last; 0: only then
    # machine
    workers: Annotated[int, Field(ge=0, le=256)] = 8  # processes that read images, for each that trains; 0: none more
    sync_batch_norm: bool = False  # statistics of the whole batch where several processes share it
    precision: Precision = "auto"  # of training: fp32, bf16, fp16 (CUDA only), or auto: bf16 where the device has it
    seed: Seed = 0

    def __post_init__(self) -> None:
        _check(self.resize >= self.size, "resize", f"at least the size, {self.size}", self.resize)
        pixels = self.batch * self.size**2
        _check(pixels <= MOST_BATCH_PIXELS, "batch * size * size", f"at most {MOST_BATCH_PIXELS}", pixels)


Recipe = TypeVar("Recipe", Config, PretrainConfig)

RENAMED = {  # key of version 0.1 -> today's
    "joined": "cutmix",
    "restyle": "mixstyle",
    "views": "cached_epochs",
    "frozen": "freeze",
    "triplet_after": "triplet_on",
}
TELLS_ONLY = {"wants_pretrained"}  # keys that change what a run says and nothing that it makes


def _check(fits: bool, key: str, expected: str, value: Any) -> None:
    if not fits:
        raise ReidError(f"config: {key} must be {expected}, not {_shown(value)}")


@overload
def load(path: str | Path, overrides: Sequence[str] = ...) -> Config: ...
@overload
def load(path: str | Path, overrides: Sequence[str] = ..., *, kind: type[Recipe]) -> Recipe: ...
def load(path: str | Path, overrides: Sequence[str] = (), *, kind: Any = Config) -> Any:
    """Reads a recipe of a kind and applies `key=value` overrides (values as in YAML).

    Raises ReidError for a file that cannot be read, an unknown key, or a value of the wrong type or out of its range.
    """
    values = recipe_text.read(Path(path))
    if not isinstance(values, dict):
        raise ReidError(f"{path} must hold `key: value` lines, one a hyper-parameter that differs from its default")
    values = _of_keys(kind, translate(values, str(path)), str(path))
    if not overrides:
        return _made(kind, values, str(path))
    changes: dict[str, Any] = {}
    for override in overrides:
        key, equals, text = (part.strip() for part in override.partition("="))
        if not equals:
            raise ReidError(f"--set takes key=value, not {_shown(override)}")
        if key in RENAMED and kind is Config:
            raise ReidError(f"--set: {key} is called {RENAMED[key]} now")
        try:
            changes[key] = recipe_text.parse(text)
        except ReidError as error:
            raise ReidError(f"--set {key[:40]}: {_shown(text)} is not a YAML value of a recipe ({error})") from None
    _made(kind, values, str(path))  # so that the file is blamed for its own faults
    return _made(kind, values | _of_keys(kind, changes, "--set"), "--set")


def from_dict(kind: type[Recipe], values: Mapping[str, Any], source: str) -> Recipe:
    """The recipe of a mapping, of today's keys or of version 0.1's; `source` is named in errors."""
    return _made(kind, _of_keys(kind, translate(values, source), source), source)


def translate(values: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A recipe's values with the keys of version 0.1, where it has such, under today's names."""
    translated = {RENAMED.get(key, key): value for key, value in values.items()}
    if len(translated) < len(values):
        twice = [f"{old} and {new}" for old, new in RENAMED.items() if old in values and new in values]
        raise ReidError(f"{source} holds {', '.join(twice)}, which are one key by its old and its new name")
    if "triplet_after" in values and isinstance(values["triplet_after"], bool):
        translated["triplet_on"] = "after" if values["triplet_after"] else "before"
    if any(key in values for key in RENAMED) and values.get("center"):
        translated.setdefault("center_update", "wen")  # which that version had
    if isinstance(translated.get("teacher"), str):  # of which there was one at most
        translated["teacher"] = [translated["teacher"]] if translated["teacher"] else []
    return translated


def differences(now: Mapping[str, Any], then: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """{key: (value then, value now)} of two runs' recipes, by `as_dict`, where they differ. That of an earlier version
    is taken to have what came later at its default."""
    kind = PretrainConfig if "resize" in now else Config
    then = translate(then, "recipe")
    pairs = {key: (then[key] if key in then else default_of(kind, key), value) for key, value in now.items()}
    return {key: pair for key, pair in pairs.items() if pair[0] != pair[1] and key not in TELLS_ONLY}


def default_of(kind: type[Config] | type[PretrainConfig], key: str) -> Any:
    """None where a recipe has to name the key."""
    (found,) = (one for one in dataclasses.fields(kind) if one.name == key)
    if found.default_factory is not dataclasses.MISSING:
        return found.default_factory()
    return None if found.default is dataclasses.MISSING else found.default


def as_dict(config: Config | PretrainConfig) -> dict[str, Any]:
    """Every value by its key."""
    return dataclasses.asdict(config)


def dump(config: Config | PretrainConfig) -> str:
    """The whole recipe, defaults and all, as YAML text that `load` reads back to an equal one."""
    return recipe_text.dump(as_dict(config))


def _of_keys(kind: type[Config] | type[PretrainConfig], values: dict[str, Any], source: str) -> dict[str, Any]:
    keys = [one.name for one in dataclasses.fields(kind)]
    for key in values:
        if key not in keys:
            near = difflib.get_close_matches(str(key)[:40], keys, n=1, cutoff=0.75)
            meant = f", did you mean {near[0]}?" if near else ";"
            raise ReidError(f"{source}: unknown key {_shown(key)}{meant} the keys are {', '.join(keys)}")
    return values


def _made(kind: type[Recipe], values: dict[str, Any], source: str) -> Recipe:
    try:
        return kind(**values)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = str(first["loc"][0]) + "".join(f"[{i}]" for i in first["loc"][1:])
        if first["type"] == "missing":
            raise ReidError(f"{source} lacks {key}, the one key that has no default") from None
        raise ReidError(f"{source}: {key} must be {_expected(first)}, not {_shown(first['input'])}") from None


def _expected(error: Mapping[str, Any]) -> str:
    """What pydantic wanted, in a few words."""
    limits = error.get("ctx", {})
    for limit, words in (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below")):
        if limit in limits:
            return f"{words} {limits[limit]:{'g' if isinstance(limits[limit], float) else ''}}"
    if error["type"] == "literal_error":
        return str(limits["expected"]).replace("'", "")
    if error["type"] in ("too_long", "too_short"):
        count = limits.get("max_length", limits.get("min_length"))
        return f"a list of {'at most' if error['type'] == 'too_long' else 'at least'} {count}"
    kinds = {
        "bool": "true or false",
        "float": "a number",
        "finite": "a number",
        "int": "a whole number",
        "list": "a list",
        "string": "text of at most 1000 printable characters",
    }
    message: str = error["msg"]
    return kinds.get(error["type"].partition("_")[0], message)


def _shown(value: Any) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value and math.log10(abs(value)) > 30:
        return "a number of more than 30 digits"
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:60]} ... ({len(text):,} characters)"
