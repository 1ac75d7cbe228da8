"""Recipes: every one of the project's loads, and every mistake in one is told in one line."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import pytest
import yaml

from reid.core.types import ReidError
from reid.training import config as recipes
from reid.training.config import Config, PretrainConfig
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
ONE = ROOT / "configs" / "synthetic.yaml"
IMAGENET = ROOT / "configs" / "imagenet.yaml"


OF_0_1 = """backbone: scgnet_s
pretrained: ''
frozen: 2
branches:
- [1, 2]
- [2, 1]
dim: 16
pool: avg
neck: bnneck
height: 64
width: 32
pad: 4
flip: 0.5
erase: 0.0
jitter: 0.0
restyle: 0.25
p: 4
k: 2
epochs: 2
warmup_epochs: 1.0
lr_start: 0.01
lr: 0.02
lr_end: 0.0
average_epochs: 2
momentum: 0.9
nesterov: true
weight_decay: 0.0005
smoothing: 0.1
margin: 0.3
triplet: 1.0
triplet_after: true
circle: 0.0
contrast: 0.0
center: 0.01
teacher: t.safetensors
distill: 1.0
joined: 0.5
views: 8
holdout: 0.0
watch_epochs: 1
sync_batch_norm: false
precision: fp32
cache: memory
seed: 0
"""  # the config.yaml of a run, as version 0.1 wrote it


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_says_what_differs_and_comes_back_whole(tmp_path, path):
    kind = PretrainConfig if path == IMAGENET else Config
    config = recipes.load(path, kind=kind)
    assert type(config) is kind
    (tmp_path / "again.yaml").write_text(recipes.dump(config))
    assert recipes.load(tmp_path / "again.yaml", kind=kind) == config
    assert recipes.from_dict(kind, recipes.as_dict(config), "a checkpoint") == config
    keys = [field.name for field in dataclasses.fields(kind)]
    assert list(yaml.safe_load(recipes.dump(config))) == keys
    named = list(yaml.safe_load(path.read_text()))
    assert named == [key for key in keys if key in named], "the keys stand in the order of the dataclass"
    for_the_reader = {
        "bagoftricks": {"pool", "last_stride", "gamma", "center_update"},
        "imagenet": {"size", "batch"},  # by which no other command takes it for its own
    }
    for key in set(named) - for_the_reader.get(path.stem, set()):
        assert getattr(config, key) != recipes.default_of(kind, key), f"{key} is at its default"


@pytest.mark.parametrize("kind", [Config, PretrainConfig])
def test_every_value_keeps_its_type_and_has_bounds(kind):
    config = recipes.load(IMAGENET if kind is PretrainConfig else ONE, ["lr=1", "weight_decay=1e-5"], kind=kind)
    assert (config.lr, config.weight_decay) == (1.0, 1e-5)
    assert type(config.lr) is type(config.flip) is float
    for key, value in recipes.as_dict(config).items():
        if type(value) in (int, float):
            for far in (10**30, -(10**30)):
                with pytest.raises(ReidError, match=rf"mine: {key} must be (at|above|below)") as caught:
                    recipes.from_dict(kind, recipes.as_dict(config) | {key: far}, "mine")
                assert len(str(caught.value)) < 120


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "cuhk03np_labeled", "cuhk03np_detected"])
def test_the_papers_recipe_is_the_papers(name):
    """Section IV-E, and BagOfTricks' and MGN's values where it is silent."""
    config = recipes.load(ROOT / "configs" / f"{name}.yaml")
    assert (config.backbone, config.head, config.branches, config.dim) == (
        "scgnet_l",
        "mgn",
        [[1, 2], [2, 1], [3, 1]],
        256,
    )
    assert (config.height, config.width, config.pad, config.flip, config.erase) == (384, 128, 10, 0.5, 0.5)
    assert (config.optimizer, config.momentum, config.weight_decay, config.nesterov) == ("sgd", 0.9, 1e-4, False)
    assert (config.schedule, config.epochs, config.warmup_epochs) == ("cosine", 90, 5)
    assert (config.lr_start, config.lr, config.lr_end) == (0.001, 0.1, 0)
    assert (config.p, config.k, config.smoothing, config.margin, config.triplet) == (16, 4, 0.1, 0.3, 1.0)
    assert (config.neck, config.pool, config.triplet_on, config.center) == ("bnneck", "max", "before", 0)
    assert config.wants_pretrained and not config.pretrained


def test_bagoftricks_is_bagoftricks():
    config = recipes.load(ROOT / "configs" / "bagoftricks.yaml")
    assert (config.backbone, config.head, config.pool, config.last_stride) == ("resnet50", "bagoftricks", "avg", 1)
    assert (config.height, config.width, config.pad, config.flip, config.erase) == (256, 128, 10, 0.5, 0.5)
    assert (config.p, config.k, config.epochs, config.warmup_epochs) == (16, 4, 120, 10)
    assert (config.optimizer, config.lr_start, config.lr, config.weight_decay) == ("adam", 3.5e-5, 3.5e-4, 5e-4)
    assert (config.schedule, config.milestones, config.gamma) == ("steps", [40, 70], 0.1)
    assert (config.smoothing, config.margin, config.triplet, config.triplet_on) == (0.1, 0.3, 1.0, "before")
    assert (config.center, config.center_update, config.wants_pretrained) == (5e-4, "bagoftricks", True)


# ---- recipes of version 0.1


def test_a_runs_config_of_0_1_is_read_under_todays_names(tmp_path):
    (tmp_path / "config.yaml").write_text(OF_0_1)
    config = recipes.load(tmp_path / "config.yaml")
    assert (config.freeze, config.mixstyle, config.cutmix, config.cached_epochs) == (2, 0.25, 0.5, 8)
    assert (config.triplet_on, config.center_update) == ("after", "wen"), "what it did then"
    assert (config.head, config.optimizer, config.schedule) == ("mgn", "sgd", "cosine")
    values = yaml.safe_load(OF_0_1)
    assert recipes.from_dict(Config, values, "a card") == config
    assert recipes.differences(recipes.as_dict(config), values) == {}
    assert recipes.differences(
        recipes.as_dict(dataclasses.replace(config, cutmix=0.25, wants_pretrained=True)), values
    ) == {"cutmix": (0.5, 0.25)}
    before = recipes.from_dict(Config, values | {"triplet_after": False, "center": 0.0}, "a card")
    assert (before.triplet_on, before.center_update) == ("before", "bagoftricks")


def test_an_old_and_a_new_name_of_one_key_are_refused(tmp_path):
    (tmp_path / "mine.yaml").write_text("backbone: scgnet_s\nfrozen: 1\nfreeze: 2\n")
    with pytest.raises(ReidError, match=r"mine.yaml holds frozen and freeze, which are one key"):
        recipes.load(tmp_path / "mine.yaml")


@pytest.mark.parametrize(("old", "new"), recipes.RENAMED.items())
def test_an_old_name_in_set_is_refused_by_the_new_one(old, new):
    refused_in_one_line(ONE, f"{old}=1", f"^--set: {old} is called {new} now$", Config)


# ---- overrides


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("epochs=5", "epochs", 5),
        (" epochs = 5", "epochs", 5),
        ("lr=1e-4", "lr", 1e-4),
        ("lr=1", "lr", 1.0),
        ("lr=.05", "lr", 0.05),
        ("backbone=osnet_x0_25", "backbone", "osnet_x0_25"),
        ("pretrained=", "pretrained", ""),
        ("pretrained=a=b.pth", "pretrained", "a=b.pth"),
        ("nesterov=false", "nesterov", False),
        ("branches=[[1, 2]]", "branches", [[1, 2]]),
        ("seed=18446744073709551", "seed", 18446744073709551),
    ],
)
def test_overrides(override, key, value):
    changed = recipes.load(ONE, [override])
    assert getattr(changed, key) == value
    assert dataclasses.replace(changed, **{key: getattr(recipes.load(ONE), key)}) == recipes.load(ONE)


def test_one_teacher_needs_no_brackets():
    assert recipes.load(ONE).teacher == recipes.load(ONE, ["teacher="]).teacher == []
    assert recipes.load(ONE, ["teacher=a.onnx", "distill=1"]).teacher == ["a.onnx"]
    assert recipes.load(ONE, ["teacher=[a.onnx, b.safetensors]", "distill=1"]).teacher == ["a.onnx", "b.safetensors"]


def test_the_last_override_holds():
    assert recipes.load(ONE, ["epochs=5", "epochs=7"]).epochs == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epocs=5", r"--set: unknown key 'epocs', did you mean epochs\? the keys are backbone, pretrained, .*, seed"),
        ("zzz=5", r"--set: unknown key 'zzz'; the keys are backbone, pretrained, .*, seed"),
        ("epochs", r"--set takes key=value, not 'epochs'"),
        ("epochs=[5", r"--set epochs: '\[5' is not a YAML value of a recipe"),
        ("epochs=5.5", r"--set: epochs must be a whole number, not 5.5"),
        ("epochs=many", r"epochs must be a whole number, not 'many'"),
        ("epochs=true", r"epochs must be a whole number, not True"),
        ("epochs=", r"epochs must be a whole number, not None"),
        ("lr=fast", r"lr must be a number, not 'fast'"),
        ("lr=true", r"lr must be a number, not True"),
        ("lr=.nan", r"lr must be a number, not nan"),
        ("lr=inf", r"lr must be a number, not 'inf'"),
        ("nesterov=1", r"nesterov must be true or false, not 1"),
        ("backbone=7", r"backbone must be text of at most 1000 printable characters, not 7"),
        ("branches=3", r"branches must be a list, not 3"),
        ("branches=[1, 2]", r"branches\[0\] must be a list, not 1"),
        ("branches=[[1, two]]", r"branches\[0\]\[1\] must be a whole number, not 'two'"),
        # ranges
        ("branches=[]", r"branches must be a list of at least 1, not \[\]"),
        ("branches=[[1, 3]]", r"branches must be a list of \[parts"),
        ("branches=[[0, 1]]", r"branches must be a list of \[parts"),
        ("branches=[[1, 2, 3]]", r"branches\[0\] must be a list of at most 2"),
        ("branches=[[2, 1], [2, 2]]", r"branches of different numbers of parts"),
        ("precision=fp8", r"precision must be auto, fp32, bf16 or fp16, not 'fp8'"),
        ("cache=tape", r"cache must be auto, memory or disk, not 'tape'"),
        ("pool=min", r"pool must be max, avg or gem, not 'min'"),
        ("neck=long", r"neck must be bnneck or relu, not 'long'"),
        ("holdout=1", r"holdout must be below 1, not 1"),
        ("holdout=-0.1", r"holdout must be"),
        ("p=1", r"p must be at least 2"),
        ("k=1", r"k must be at least 2"),
        ("height=0", r"height must be at least 1"),
        ("width=-4", r"width must be at least 1"),
        ("dim=0", r"dim must be at least 1"),
        ("flip=1.5", r"flip must be at most 1, not 1.5"),
        ("erase=-1", r"erase must be at least 0, not -1"),
        ("smoothing=2", r"smoothing must be at most 1"),
        ("epochs=-1", r"epochs must be at least 0"),
        ("watch_epochs=-1", r"watch_epochs must be at least 0"),
        ("lr=-0.1", r"lr must be at least 0"),
        ("margin=-1", r"margin must be at least 0"),
        ("momentum=0", r"momentum must be above 0, not 0"),
        ("momentum=1", r"momentum must be below 1, not 1"),
        ("seed=-1", r"seed must be at least 0, not -1"),
        ("pad=1000", r"pad must be less than the height, \d+, not 1000"),
        ("dim=1000000000", r"^--set: dim must be at most 4096, not 1000000000$"),
        ("height=1000000", r"^--set: height must be at most 2048, not 1000000$"),
        (
            "seed=" + "9" * 5000,
            r"^--set seed: '9+ ... \(5,002 characters\) is not a YAML value of a recipe \(a value of",
        ),
        ("seed=" + "9" * 900, r"^--set: seed must be below \d+, not a number of more than 30 digits$"),
        ("seed=2026-99-99", r"seed must be a whole number, not '2026-99-99'"),
        ("seed=2026-11-27", r"seed must be a whole number, not '2026-11-27'"),
        ("seed=" + "[" * 5000, r"not a YAML value of a recipe \(lists or mappings nested deeper than 8\)"),
        ("seed=[&a [1, 1], *a]", r"not a YAML value of a recipe \(\*a: aliases are not taken"),
        ("pretrained=" + "x" * 1001, r"not a YAML value of a recipe \(a value of 1,001 characters"),
        ('pretrained="a\\0b"', r"pretrained must be text of at most 1000 printable characters"),
        # options that belong together
        ("head=bags", r"^unknown head 'bags'; choose one of mgn, bagoftricks$"),
        ("last_stride=2", r"last_stride must be 1 \(the default\) with the head mgn, which has no such option"),
        ("global_softmax=unreduced", r"neck must be relu with global_softmax unreduced"),
        ("milestones=[1]", r"milestones must be \[\] with schedule cosine, not \[1.0\]"),
        ("schedule=steps", r"milestones must be rising epochs with schedule steps, not \[\]"),
        ("schedule=wave", r"schedule must be cosine or steps, not 'wave'"),
        ("optimizer=adam", r"nesterov must be false with optimizer adam"),
        ("center_update=mine", r"center_update must be bagoftricks or wen, not 'mine'"),
        ("triplet_on=unit", r"triplet_on must be before or after, not 'unit'"),
    ],
)
def test_a_wrong_override_is_one_line(override, message):
    refused_in_one_line(ONE, override, message, Config)


def refused_in_one_line(path, override, message, kind):
    with pytest.raises(ReidError, match=message) as caught:
        recipes.load(path, [override], kind=kind)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < (1000 if "the keys are" in message else 250)


def test_what_is_large_only_together_is_refused():
    for overrides, message in (
        (
            ["branches=[[15, 1], [16, 1]]", "dim=4096"],
            "dim must be at most 65536 for all features together, not 135168",
        ),
        (["p=1000", "k=1000", "height=2048"], r"p \* k \* height \* width must be at most 268435456, not"),
        (["schedule=steps", "milestones=[40, 70]", "epochs=60"], r"milestones must be below epochs, 60, not"),
        (["schedule=steps", "milestones=[70, 40]", "epochs=90"], "milestones must be rising epochs"),
        (["global_softmax=unreduced", "neck=relu", "triplet=0"], "triplet must be above 0 with global_softmax"),
    ):
        with pytest.raises(ReidError, match=f"^config: {message}"):
            recipes.load(ONE, overrides)


LAUGHS = "a: &a [ha, ha]\n" + "".join(
    f"{y}: &{y} [{', '.join([f'*{x}'] * 9)}]\n" for x, y in zip("abcdefgh", "bcdefghi")
)


def test_what_is_no_file_is_no_recipe(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path, tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(ReidError, match="is not a file: a recipe is a YAML file"):
            recipes.load(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no recipe at .*mine.yaml: give one with --config"),
        ("", "must hold `key: value` lines"),
        ("- a\n- b\n", "must hold `key: value` lines"),
        ("a: [1", "mine.yaml cannot be read as a YAML recipe"),
        ("a: 1\n", "mine.yaml: unknown key 'a'; the keys are backbone"),
        ("epochs: 3\n", "mine.yaml lacks backbone, the one key that has no default"),
        ("backbone: scgnet_s\nepocs: 3\n", "mine.yaml: unknown key 'epocs', did you mean epochs[?] the keys are"),
        ("backbone: scgnet_s\nseed: x\n", "mine.yaml: seed must be a whole number, not 'x'"),
        ("seed: 1\nlr: 1\nseed: 2\n", "mine.yaml cannot be read as a YAML recipe: seed is there twice"),
        ("x: !!python/object/apply:os.getcwd []\n", "cannot be read as a YAML recipe"),
        (b"\xff\xfe\x00", "cannot be read as a YAML recipe"),
        (LAUGHS, r"cannot be read as a YAML recipe: \*a: aliases are not taken"),
        ("branches: " + "[" * 30000, "cannot be read as a YAML recipe: lists or mappings nested deeper than 8"),
        ("seed: " + "7" * 5000, "cannot be read as a YAML recipe: a value of 5,000 characters"),
        ("backbone: scgnet_s\nlr: 2026-11-27\n", "lr must be a number, not '2026-11-27'"),
        ("backbone: scgnet_s\nlr: !!timestamp 2026-99-27\n", "cannot be read as a YAML recipe"),
        ("# " + "x" * 70000, "cannot be read as a YAML recipe: larger than 64 kB"),
        ("? [1]\n: 2\n", "cannot be read as a YAML recipe"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ReidError, match=message) as caught:
        recipes.load(path)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) - len(str(path)) < (1000 if "the keys are" in message else 320)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("p=16", r"--set: unknown key 'p'; the keys are backbone, size, .*, seed"),
        ("batch=8.5", r"batch must be a whole number, not 8.5"),
        ("batch=1", r"batch must be at least 2"),
        ("epochs=0", r"epochs must be at least 1"),
        ("size=16", r"size must be at least 32"),
        ("resize=200", r"resize must be at least the size, 224, not 200"),
        ("scale=0", r"scale must be above 0, not 0"),
        ("jitter=1", r"jitter must be below 1"),
        ("smoothing=-0.1", r"smoothing must be at least 0"),
        ("momentum=1", r"momentum must be below 1"),
        ("workers=-1", r"workers must be at least 0"),
        ("precision=int8", r"precision must be auto, fp32, bf16 or fp16"),
    ],
)
def test_a_wrong_override_of_the_other_kind_is_one_line(override, message):
    refused_in_one_line(IMAGENET, override, message, PretrainConfig)


def test_a_recipe_of_one_kind_is_not_taken_for_the_other():
    with pytest.raises(ReidError, match="imagenet.yaml: unknown key 'size'"):
        recipes.load(IMAGENET)
    with pytest.raises(ReidError, match="synthetic.yaml: unknown key 'branches'; the keys are backbone, size"):
        recipes.load(ONE, kind=PretrainConfig)
