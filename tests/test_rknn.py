"""Rockchip's NPU: forms of equal values, the compiler's table, and a file compiled where its environment is."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
import scgnet
from reid.core.types import ReidError
from reid.export import rockchip
from reid.export.npu import NPU_PIECES
from reid.export.proof import Reference
from reid.export.rknn import export_rknn
from reid.export.rockchip import Compiled, compiled, parse_table
from reid.models.card import NO_FLIP
from reid.models.exported import load
from scgnet.pieces import in_pieces
from tests.conftest import settle

TIME = "D RKNN: [01:02:03.004] "
LOG = f"""\
{TIME}        Network Layer Information Table
{TIME}ID   OpType         DataType Target InputShape               OutputShape Cycles(DDR/NPU/Total)  RW(KB)  FullName
{TIME}0    InputOperator  INT8     CPU    \\                        (1,3,8,8)   0/0/0        0   InputOperator:x
{TIME}1    ConvRelu       INT8     NPU    (1,3,8,8),(4,3,3,3),(4)  (1,4,8,8)   600/900/900  10  Conv:/a/Conv
{TIME}2    Concat         INT8     NPU    (1,4,8,8),(1,4,8,8)      (1,8,8,8)   0/0/0        20  Concat:/b
{TIME}3    ConvReluAdd    INT8     NPU    (1,8,8,8),(8,8,1,1),...  (1,8,8,8)   700/50/700   10  Conv:/c/Conv
{TIME}4    OutputOperator INT8     CPU    (1,8,8,8)                \\           0/0/0        5   OutputOperator:y
I rknn building done.
"""


@pytest.mark.parametrize(("name", "groups"), [("scgnet_s", 4), ("scgnet_m", 6), ("scgnet_l", 8)])
def test_blocks_in_pieces_give_the_values_of_the_plain_network(name: str, groups: int) -> None:
    torch.manual_seed(0)
    network = getattr(scgnet, name)(num_classes=0)
    settle(network)
    network.eval()
    images = torch.randn(2, 3, 64, 32)
    with torch.no_grad():
        plain = network(images)
        for pieces in (1, 2, groups, (0, 1, 2)):
            made = in_pieces(network, pieces)
            assert (made(images) - plain).abs().max() <= 2e-6 * plain.abs().max()
        assert torch.equal(network(images), plain)  # itself it is as it was
    convolutions = [m for m in in_pieces(network, 2).modules() if isinstance(m, torch.nn.Conv2d)]
    assert {m.groups for m in convolutions if m.groups < m.in_channels} == {1}
    with pytest.raises(ValueError, match="cannot be cut into 5 pieces"):
        in_pieces(network, 5)


def test_the_last_table_of_a_log_is_read() -> None:
    operators = parse_table("noise\n" + LOG.replace("900", "1") + LOG)
    assert [(o.type, o.target, o.cycles, o.kilobytes) for o in operators] == [
        ("InputOperator", "CPU", 0, 0),
        ("ConvRelu", "NPU", 900, 10),
        ("Concat", "NPU", 0, 20),
        ("ConvReluAdd", "NPU", 700, 10),
        ("OutputOperator", "CPU", 0, 5),
    ]
    made = Compiled(operators, np.array)
    assert made.cycles == 1600
    assert made.cycles_with_copies == 1600 + 20 * 65  # the median of 60 and 70 cycles a kilobyte
    with pytest.raises(ReidError, match="printed no table"):
        parse_table("E something else\n")


def test_the_form_that_is_exported_is_the_cheapest_that_was_measured() -> None:
    measured = json.loads((rockchip.ROOT / "docs" / "results" / "npu.json").read_text())
    for (platform, precision), chosen in NPU_PIECES.items():
        for name, pieces in chosen.items():
            found = {count: measured.get(f"{name}/{count}/384x128/{platform}/{precision}") for count in range(9)}
            cost = {count: row["with_copies"] for count, row in found.items() if row}
            assert len(cost) > 3
            assert pieces == min(count for count in cost if cost[count] <= 1.01 * min(cost.values()))


def never() -> Reference:
    raise AssertionError("asked before the file was made")


def test_a_precision_that_the_chips_lack_is_refused(make_model, tmp_path: Path) -> None:
    nothing = np.empty((0, 64, 32, 3), np.uint8)
    with pytest.raises(ReidError, match="precision fp16 or int8, not fp32"):
        export_rknn(make_model(), tmp_path / "model.rknn", "rk3588", "fp32", calibration=nothing, reference=never)
    assert not list(tmp_path.iterdir())


def test_without_the_environment_its_command_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(rockchip, "ROOT", tmp_path)
    with pytest.raises(ReidError, match="make rknn-env"), compiled("a.onnx", "a.rknn", "rk3588", "fp16"):
        pass


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], None]:
    """Rockchip's Python, played by a class that one hands the text of."""
    python = tmp_path / ".venv-rknn" / "bin" / "python"
    python.parent.mkdir(parents=True)
    (tmp_path / "rknn").mkdir()
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    monkeypatch.setattr(rockchip, "ROOT", tmp_path)

    def play(text: str) -> None:
        head = f"class RKNN:\n    def __init__(self, verbose): print({LOG!r})\n"
        (tmp_path / "rknn" / "api.py").write_text(f"{head}    def config(self, **_): return 0\n{text}")

    return play


BUILDS = """\
    def load_onnx(self, model): return 0
    def build(self, do_quantization, dataset): return 0
    def export_rknn(self, path): return open(path, 'w').close() or 0
    def init_runtime(self): return 0
"""


def test_the_simulator_is_asked_batch_after_batch(played: Callable[[str], None], tmp_path: Path) -> None:
    """Whatever the compiler prints meanwhile."""
    played(
        BUILDS
        + """\
    def inference(self, inputs, data_format):
        print("answered")
        return [inputs[0].reshape(1, -1)[:, :4] / 2]
"""
    )
    pixels = np.arange(96, dtype=np.uint8).reshape(2, 4, 4, 3)
    with compiled("a.onnx", tmp_path / "a.rknn", "rk3588", "fp16") as made:
        assert made.cycles == 1600 and (tmp_path / "a.rknn").exists()
        for shift in range(3):
            found = made.simulate(pixels + np.uint8(shift))
            assert np.array_equal(found, (pixels.reshape(2, -1)[:, :4] + shift) / np.float32(2))


def test_a_compiler_that_fails_is_quoted(played: Callable[[str], None], tmp_path: Path) -> None:
    played("    def load_onnx(self, model): print('E RKNN: Error: no such layer'); return -1\n")
    refused = pytest.raises(ReidError, match="could not compile for rk3588: E RKNN: Error: no such layer")
    with refused, compiled("a.onnx", tmp_path / "a.rknn", "rk3588", "fp16"):
        pass
    played(BUILDS + "    def inference(self, inputs, data_format): raise ValueError('Error: out of memory')\n")
    with compiled("a.onnx", tmp_path / "a.rknn", "rk3588", "fp16") as made:
        for _ in range(2):
            with pytest.raises(ReidError, match="could not simulate for rk3588: .*out of memory"):
                made.simulate(np.zeros((1, 4, 4, 3), np.uint8))


def test_a_compiled_model_agrees_with_pytorch(make_model, people: Path, tmp_path: Path) -> None:
    if not (rockchip.ROOT / ".venv-rknn" / "bin" / "python").is_file():
        pytest.skip("Rockchip's compiler is not there: make rknn-env")
    model = make_model()
    splits = datasets.read("market1501", people)
    file = tmp_path / "model.rknn"
    proof, card = export_rknn(
        model,
        file,
        "rk3588",
        "fp16",
        calibration=np.empty((0, *model.input_size, 3), np.uint8),
        reference=lambda: Reference(model, splits.query, splits.gallery, "people"),
    )
    assert card == json.loads((tmp_path / "model.rknn.json").read_text())
    assert proof.cosine_min > 0.9999 and proof.exported.mAP == pytest.approx(proof.model.mAP, abs=1e-3)
    assert card["proof"]["queries"] == len(splits.query) and card["fingerprint"] == model.fingerprint + NO_FLIP
    assert card["bytes"] == file.stat().st_size and card["estimated_cycles"] > 0
    with pytest.raises(ReidError, match="runs on an NPU"):
        load(file)
