"""Rockchip's .rknn files, for the NPU of an RK3588 or RK3566, made by their compiler (reid/export/rockchip.py).

    made = export_rknn(load_model("model.safetensors"), "model.rknn", "rk3588", "fp16", crops=pixels, calibration=[])

The file takes RGB uint8 pixels and gives an embedding that is not yet of unit length: the program on the board divides.
SCGNet's blocks are cut into as many pieces as cost least by the compiler's estimate (docs/npu.md).
"""

from __future__ import annotations

import os
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid import backbones
from reid.export import FORMATS
from reid.export.graph import Deployed
from reid.export.onnx import OPSET, need, quiet
from reid.export.rockchip import PLATFORMS, Compiled, compile_onnx, compiler
from reid.files import write_json
from reid.model import NO_FLIP, ReidModel
from reid.types import ReidError


class Embedding(nn.Module):
    """Normalised pixels (B, 3, H, W) -> (B, D), not of unit length: what the NPU computes of a model."""

    def __init__(self, model: ReidModel) -> None:
        super().__init__()
        self.deployed = Deployed(model)

    def forward(self, images: Tensor) -> Tensor:
        return self.deployed.embed(images)


def write_onnx(network: nn.Module, size: tuple[int, int], path: Path) -> None:
    """Of one image of `size`, at the opset that the compiler reads."""
    need("onnx")
    need("onnxscript")
    with quiet():
        torch.onnx.export(network, (torch.zeros(1, 3, *size),), path, dynamo=True, opset_version=OPSET,
                          external_data=False, verbose=False)  # fmt: skip


def export_rknn(
    model: ReidModel, path: str | Path, platform: str, precision: str, *, crops: np.ndarray, calibration: np.ndarray
) -> dict[str, Any]:
    """Writes the file, and beside it, to `path`.json, its card: cosine to PyTorch on the compiler's simulator, the
    operators with where each runs and its estimated cycles. Gives that card.

    crops: RGB uint8 (N, H, W, 3) that the simulator is asked. calibration: of training people, for int8.
    """
    path = Path(path)
    if path.suffix != ".rknn" or platform not in PLATFORMS:
        raise ReidError(f"a .rknn file is made for {' or '.join(PLATFORMS)}, not {path} for {platform}")
    if precision not in FORMATS["rknn"].precisions:
        raise ReidError(f"rknn takes the precision {' or '.join(FORMATS['rknn'].precisions)}, not {precision}")
    compiler()
    model = model.cpu().eval()
    mean, std = (tuple((255 * values).flatten().tolist()) for values in (model.mean, model.std))
    network, pieces = backbones.for_npu(model.card["architecture"]["backbone"], Embedding(model), platform, precision)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        onnx, file = Path(folder) / "model.onnx", Path(folder) / path.name
        write_onnx(network, model.input_size, onnx)
        made = compile_onnx(onnx, file, platform, precision, mean=mean, std=std, calibration=calibration, pixels=crops)
        card = card_of(model, made, platform, precision, pieces, cosines(model, crops, made.outputs), file)
        os.replace(file, path)
    write_json(path.with_name(f"{path.name}.json"), card)
    return card


def cosines(model: ReidModel, crops: np.ndarray, outputs: np.ndarray | None) -> np.ndarray:
    """Of each crop's embedding in PyTorch and the simulator's: (N,)."""
    assert outputs is not None
    with torch.inference_mode():
        ours = model.embed(torch.from_numpy(crops.copy()).permute(0, 3, 1, 2))
    return torch.cosine_similarity(ours, torch.from_numpy(outputs).reshape(len(crops), -1).float()).numpy()


def card_of(
    model: ReidModel, made: Compiled, platform: str, precision: str, pieces: int, cosine: np.ndarray, file: Path
) -> dict[str, Any]:
    """A file of its own fingerprint: what its vectors find has been measured on a simulator and few crops only."""
    return {
        "fingerprint": f"{model.fingerprint}{NO_FLIP}-rknn-{platform}-{precision}",
        "input_size": list(model.input_size), "dimension": model.dimension, "platform": platform,
        "precision": precision, "pieces": pieces, "bytes": file.stat().st_size,
        "simulator": {"crops": len(cosine), "cosine_mean": float(cosine.mean()), "cosine_min": float(cosine.min())},
        "estimated_cycles": made.cycles, "estimated_cycles_with_copies": round(made.cycles_with_copies),
        "operators": [asdict(operator) for operator in made.operators],
    }  # fmt: skip
