"""Recipes: every one of the project's loads, and every mistake in one is told in one line."""

from __future__ import annotations

import dataclasses

import pytest
import yaml

from reid.core.types import ReidError
from reid.training import config as recipes
from reid.training.config import Config, PretrainConfig
from tests.conftest import ROOT

RECIPES = sorted((ROOT / "configs").glob("*.yaml"))
ONE = ROOT / "configs" / "synthetic.yaml"
IMAGENET = ROOT / "configs" / "imagenet.yaml"


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_of_the_project_loads_and_comes_back(tmp_path, path):
    kind = PretrainConfig if path == IMAGENET else Config
    config = recipes.load(path, kind=kind)
    assert type(config) is kind
    (tmp_path / "again.yaml").write_text(recipes.dump(config))
    assert recipes.load(tmp_path / "again.yaml", kind=kind) == config
    assert recipes.from_dict(kind, recipes.as_dict(config), "a checkpoint") == config
    keys = [field.name for field in dataclasses.fields(kind)]
    assert list(yaml.safe_load(path.read_text())) == keys, "the keys stand in the order of the dataclass"


@pytest.mark.parametrize("kind", [Config, PretrainConfig])
def test_every_value_keeps_its_type(kind):
    config = recipes.load(IMAGENET if kind is PretrainConfig else ONE, ["lr=1", "weight_decay=1e-5"], kind=kind)
    for field in dataclasses.fields(kind):
        value = getattr(config, field.name)
        assert type(value) is {"str": str, "int": int, "float": float, "bool": bool}.get(field.type, list), field.name
    assert (config.lr, config.weight_decay) == (1.0, 1e-5)


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


def test_the_last_override_holds():
    assert recipes.load(ONE, ["epochs=5", "epochs=7"]).epochs == 7


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("epocs=5", r"--set: unknown key 'epocs'; the keys are backbone, pretrained, .*, seed"),
        ("epochs", r"--set takes key=value, not 'epochs'"),
        ("epochs=[5", r"--set epochs: '\[5' is not a YAML value"),
        ("epochs=5.5", r"--set: epochs must be of type int, not 5.5"),
        ("epochs=many", r"epochs must be of type int, not 'many'"),
        ("epochs=true", r"epochs must be of type int, not True"),
        ("epochs=", r"epochs must be of type int, not None"),
        ("lr=fast", r"lr must be a number, not 'fast'"),
        ("lr=true", r"lr must be of type float, not True"),
        ("lr=.nan", r"lr must be a number, not nan"),
        ("lr=inf", r"lr must be a number, not 'inf'"),
        ("nesterov=1", r"nesterov must be of type bool, not 1"),
        ("backbone=7", r"backbone must be of type str, not 7"),
        ("branches=3", r"branches must be of type list\[list\[int\]\], not 3"),
        ("branches=[1, 2]", r"branches must be of type list\[int\], not 1"),
        ("branches=[[1, two]]", r"branches must be of type int, not 'two'"),
        # ranges
        ("branches=[]", r"branches must be a list of \[parts"),
        ("branches=[[1, 3]]", r"branches must be a list of \[parts"),
        ("branches=[[0, 1]]", r"branches must be a list of \[parts"),
        ("branches=[[1, 2, 3]]", r"branches must be a list of \[parts"),
        ("branches=[[2, 1], [2, 2]]", r"branches of different numbers of parts"),
        ("precision=fp8", r"precision must be auto, fp32, bf16 or fp16, not 'fp8'"),
        ("cache=tape", r"cache must be auto, memory or disk, not 'tape'"),
        ("pool=min", r"pool must be max, avg or gem, not 'min'"),
        ("neck=long", r"neck must be bnneck or relu, not 'long'"),
        ("holdout=1", r"holdout must be in \[0, 1\), not 1.0"),
        ("holdout=-0.1", r"holdout must be"),
        ("p=1", r"p must be at least 2"),
        ("k=1", r"k must be at least 2"),
        ("height=0", r"height must be at least 1"),
        ("width=-4", r"width must be at least 1"),
        ("dim=0", r"dim must be at least 1"),
        ("flip=1.5", r"flip must be in \[0, 1\], not 1.5"),
        ("erase=-1", r"erase must be in \[0, 1\]"),
        ("smoothing=2", r"smoothing must be in \[0, 1\]"),
        ("epochs=-1", r"epochs must be at least 0"),
        ("watch_epochs=-1", r"watch_epochs must be at least 0"),
        ("lr=-0.1", r"lr must be at least 0"),
        ("margin=-1", r"margin must be at least 0"),
        ("momentum=0", r"momentum must be above 0 and below 1"),
        ("momentum=1", r"momentum must be above 0 and below 1"),
        ("seed=-1", r"seed must be in \[0, 2\^63\), not -1"),
        ("pad=1000", r"pad must be less than the height, \d+, not 1000"),
    ],
)
def test_a_wrong_override_is_one_line(override, message):
    refused_in_one_line(ONE, override, message, Config)


def refused_in_one_line(path, override, message, kind):
    with pytest.raises(ReidError, match=message) as caught:
        recipes.load(path, [override], kind=kind)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no recipe at .*mine.yaml: give one with --config"),
        ("", "must hold `key: value` lines"),
        ("- a\n- b\n", "must hold `key: value` lines"),
        ("a: [1", "mine.yaml cannot be read as YAML"),
        ("a: 1\n", "mine.yaml: unknown key 'a'; the keys are backbone"),
        (
            "backbone: scgnet_s\nepochs: 3\n",
            "mine.yaml lacks pretrained, frozen, .* a recipe is whole in itself",
        ),
        (ONE.read_text().replace("epochs:", "epocs:", 1), "mine.yaml: unknown key 'epocs'"),
        ("seed: x\n", "mine.yaml: seed must be of type int, not 'x'"),
        ("x: !!python/object/apply:os.getcwd []\n", "cannot be read as YAML"),
        (b"\xff\xfe\x00", "cannot be read as YAML"),
    ],
)
def test_a_wrong_recipe_is_one_line(tmp_path, text, message):
    path = tmp_path / "mine.yaml"
    if text is not None:
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ReidError, match=message) as caught:
        recipes.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("p=16", r"--set: unknown key 'p'; the keys are backbone, size, .*, seed"),
        ("batch=8.5", r"batch must be of type int, not 8.5"),
        ("batch=1", r"batch must be at least 2"),
        ("epochs=0", r"epochs must be at least 1"),
        ("size=16", r"size must be at least 32"),
        ("resize=200", r"resize must be at least the size, 224, not 200"),
        ("scale=0", r"scale must be above 0 and at most 1"),
        ("jitter=1", r"jitter must be in \[0, 1\)"),
        ("smoothing=-0.1", r"smoothing must be in \[0, 1\]"),
        ("momentum=1", r"momentum must be above 0 and below 1"),
        ("workers=-1", r"workers must be at least 0"),
        ("precision=int8", r"precision must be auto, fp32, bf16 or fp16"),
    ],
)
def test_a_wrong_override_of_the_other_kind_is_one_line(override, message):
    refused_in_one_line(IMAGENET, override, message, PretrainConfig)


def test_a_recipe_of_one_kind_is_not_taken_for_the_other():
    with pytest.raises(ReidError, match="imagenet.yaml: unknown key 'size'"):
        recipes.load(IMAGENET)
    with pytest.raises(ReidError, match="synthetic.yaml: unknown key 'pretrained'"):
        recipes.load(ONE, kind=PretrainConfig)
