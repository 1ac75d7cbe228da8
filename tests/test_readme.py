"""The examples in Python of README and docs are run as they stand there."""

from __future__ import annotations

import json
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from reid.core.images import read_images
from reid.export import openvino
from reid.export.proof import card_of
from reid.export.request import Request
from reid.models.card import make_card
from reid.models.embedder import Embedder
from reid.models.model import ReidModel
from reid.training import config as recipes
from reid.training.config import as_dict

ROOT = Path(__file__).resolve().parents[1]


def examples(name: str) -> list[str]:
    return re.findall(r"```python\n(.*?)```", (ROOT / name).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture
def model(tiny: Callable[..., recipes.Config]) -> ReidModel:
    torch.manual_seed(0)
    return ReidModel(make_card(as_dict(tiny()), 0)).eval()


@pytest.fixture
def two(paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The crops a.jpg and b.jpg in the folder that the examples run in."""
    monkeypatch.chdir(tmp_path)
    return [shutil.copy(path, tmp_path / name) for path, name in zip(paths[::6], ("a.jpg", "b.jpg"))]


def test_the_example_in_python(
    paths: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (code,) = examples("README.md")
    (tmp_path / "my_crops").mkdir()
    for path in paths[:6]:
        shutil.copy(path, tmp_path / "my_crops")
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {})
    said = capsys.readouterr().out.splitlines()
    assert len(said) == 3
    assert said[0] == f"1.000 my_crops/{Path(paths[0]).name}"


def test_the_example_of_the_api(two: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "weights").symlink_to(ROOT / "weights")
    (code,) = examples("docs/api.md")
    exec(compile(code, "docs/api.md", "exec"), {})
    a, b = Embedder(ROOT / "weights/scgnet_s.safetensors").embed(two)
    assert float(capsys.readouterr().out) == pytest.approx(float(a @ b), abs=1e-5)


def test_the_example_for_openvino(model: ReidModel, two: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    request = Request("openvino")
    card = card_of(model, request)
    openvino.save(openvino.build(model, request, np.empty(0)), Path("model.xml"), json.dumps(card))
    (code,) = (code for code in examples("docs/deploy.md") if "openvino" in code)
    exec(compile(code, "docs/deploy.md", "exec"), {})
    what_it_says(capsys, card["fingerprint"], model, two)


def test_the_example_for_an_npu_with_its_runtime_played_by_pytorch(
    model: ReidModel, two: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class RKNNLite:
        NPU_CORE_AUTO = 0

        def load_rknn(self, path: str) -> int:
            return int(path != "model.rknn")

        def init_runtime(self, core_mask: int) -> int:
            return 0

        def inference(self, inputs: list[np.ndarray], data_format: list[str]) -> list[np.ndarray]:
            assert data_format == ["nhwc"] and inputs[0].shape == (1, *model.input_size, 3)
            with torch.inference_mode():
                vectors: np.ndarray = model.embed(torch.from_numpy(inputs[0].copy()).permute(0, 3, 1, 2)).numpy()
            return [vectors[:, :, None, None].astype(np.float16)]

    played: Any = ModuleType("rknnlite.api")
    played.RKNNLite = RKNNLite
    monkeypatch.setitem(sys.modules, "rknnlite", ModuleType("rknnlite"))
    monkeypatch.setitem(sys.modules, "rknnlite.api", played)
    Path("model.rknn.json").write_text(json.dumps({"fingerprint": "f-rk3588", "input_size": list(model.input_size)}))
    (code,) = (code for code in examples("docs/deploy.md") if "rknnlite" in code)
    exec(compile(code, "docs/deploy.md", "exec"), {})
    what_it_says(capsys, "f-rk3588", model, two)


def what_it_says(capsys: pytest.CaptureFixture[str], fingerprint: str, model: ReidModel, two: list[str]) -> None:
    """The fingerprint, and the cosine of the two crops as this program finds it."""
    a, b = Embedder(model, flip=False, device="cpu").embed_pixels(read_images(two, model.input_size))
    said = capsys.readouterr().out.split()
    assert said[0] == fingerprint and float(said[1]) == pytest.approx(float(a @ b), abs=2e-3)
