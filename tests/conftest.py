"""What several test files share: a small drawn data set, a small recipe, a small model as if it were trained."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pymilvus  # noqa: F401 (its import closes every log handler, absl's with the stream that pytest captures)
import pytest
import torch
from PIL import Image
from torch import nn

from reid.models.card import make_card
from reid.models.model import ReidModel
from reid.training import config as recipes
from reid.training.config import as_dict

ROOT = Path(__file__).resolve().parents[1]


def draw_person(pid: int, rng: np.random.Generator) -> np.ndarray:
    """(64, 32, 3) uint8: head, coat and trousers in the person's own colours, on a noisy background."""
    colours = np.random.default_rng(pid).integers(40, 216, (3, 3))
    image = rng.integers(90, 140, (64, 32, 3))
    left = 8 + rng.integers(-2, 3)
    for (top, bottom, inset), colour in zip(((4, 14, 4), (14, 38, 0), (38, 60, 2)), colours, strict=True):
        image[top:bottom, left + inset : left + 16 - inset] = colour + rng.integers(-12, 13, 3)
    return image.clip(0, 255).astype(np.uint8)


CARD = torch.cuda.is_available()
os.environ["CUDA_VISIBLE_DEVICES"] = ""  # for the programs that tests start


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Tests mean the CPU, whose bits they count on, also on a machine that has a card, but where they say `cuda`."""
    wants_card = item.get_closest_marker("cuda") is not None
    if wants_card and not CARD:
        pytest.skip("no CUDA device here")
    torch.cuda.is_available = lambda: wants_card


@pytest.fixture(scope="session")
def people(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Market-1501's names: 6 persons to train on, 4 others as query and gallery; 2 cameras, 2 images in
    each; one distractor and one junk image. For reading only."""
    root = tmp_path_factory.mktemp("people") / "Market-1501-v15.09.15"
    rng = np.random.default_rng(0)

    def put(folder: str, name: str, pid: int) -> None:
        path = root / folder / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw_person(pid, rng)).save(path, quality=95)

    for pid in range(1, 11):
        for camera in (1, 2):
            for i in (1, 2):
                folder = "bounding_box_train" if pid <= 6 else "query" if i == 1 else "bounding_box_test"
                put(folder, f"{pid:04}_c{camera}s1_{i:06}_00", pid)
    put("bounding_box_test", "0000_c1s1_000009_00", 99)
    put("bounding_box_test", "-1_c2s1_000009_00", 98)
    return root


@pytest.fixture(scope="session")
def paths(people: Path) -> list[str]:
    """The 24 training images of `people`."""
    return sorted(str(path) for path in (people / "bounding_box_train").iterdir())


@pytest.fixture(scope="session")
def tiny() -> Callable[..., recipes.Config]:
    """tiny(epochs=3): the recipe of the synthetic data set on the smallest network and input, with changes."""

    def make(**changes: object) -> recipes.Config:
        small = dict(
            backbone="scgnet_s",
            pretrained='""',
            branches=[[1, 2], [2, 1]],
            pool="max",
            dim=8,
            height=64,
            width=32,
            pad=2,
            p=3,
            k=2,
            epochs=1,
            warmup_epochs=0,
            watch_epochs=0,
            holdout=0,
            precision="fp32",
            cache="memory",
        )
        return recipes.load(
            ROOT / "configs" / "synthetic.yaml", [f"{key}={value}" for key, value in (small | changes).items()]
        )

    return make


@pytest.fixture
def make_model(tiny: Callable[..., recipes.Config]) -> Callable[..., ReidModel]:
    """make_model(pool="gem"): a tiny model in evaluation mode, its weights and statistics those of the seed."""

    def make(num_classes: int = 5, seed: int = 0, **changes: object) -> ReidModel:
        torch.manual_seed(seed)
        model = ReidModel(make_card(as_dict(tiny(**changes)), num_classes))
        settle(model)
        return model.eval()

    return make


def settle(network: nn.Module) -> None:
    """Gives every batch norm statistics and scales of its own, so that nothing is checked at 0 and 1 alone."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, 0.0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            if module.bias.requires_grad:
                nn.init.normal_(module.bias, 0.0, 0.1)
