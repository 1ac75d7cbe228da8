"""Rockchip's .rknn files, for the NPU of an RK3588 or RK3566, made by their compiler (reid/export/rockchip.py).

    export_rknn(load_model("model.safetensors"), "model.rknn", "rk3588", "int8", calibration=pixels, reference=...)

The file takes RGB uint8 pixels and gives an embedding that is not yet of unit length: the program on the board divides.
SCGNet's blocks are cut into as many pieces as cost least by the compiler's estimate (docs/npu.md).
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reid.core.files import folder_beside, write_json
from reid.core.types import ReidError
from reid.export.graph import Deployed
from reid.export.npu import for_npu
from reid.export.onnx import OPSET, quiet
from reid.export.proof import Proof, Reference, card_of, fingerprint_of
from reid.export.request import Request
from reid.export.rockchip import PLATFORMS, compiled, compiler
from reid.models.exported import FORMATS, Exported, Runtime, need
from reid.models.model import ReidModel


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
        torch.onnx.export(
            network,
            (torch.zeros(1, 3, *size),),
            path,
            dynamo=True,
            opset_version=OPSET,
            external_data=False,
            verbose=False,
        )


def export_rknn(
    model: ReidModel,
    path: str | Path,
    platform: str,
    precision: str,
    *,
    calibration: np.ndarray,
    reference: Callable[[], Reference],
    algorithm: str = "mmse",
) -> tuple[Proof, dict[str, Any]]:
    """Writes the file, and beside it, to `path`.json, its card: what the compiler's simulator finds of the data set
    beside PyTorch, the operators with where each runs and its estimated cycles. Gives the proof and that card.

    calibration, algorithm: of int8, RGB uint8 (N, H, W, 3) of training people, see `compiled`. reference: what the
    model finds, asked for once the file is made. Fingerprints are as in `reid.export.proof.export`.
    """
    path = Path(path)
    if path.suffix != ".rknn" or platform not in PLATFORMS:
        raise ReidError(f"a .rknn file is made for {' or '.join(PLATFORMS)}, not {path} for {platform}")
    if precision not in FORMATS["rknn"].precisions:
        raise ReidError(f"rknn takes the precision {' or '.join(FORMATS['rknn'].precisions)}, not {precision}")
    compiler()
    model = model.cpu().eval()
    mean, std = (tuple((255 * values).flatten().tolist()) for values in (model.mean, model.std))
    network, pieces = for_npu(model.card["architecture"]["backbone"], Embedding(model), platform, precision)
    card = card_of(model, Request("rknn", precision, 1))
    with folder_beside(path) as folder:
        onnx, file = folder / "model.onnx", folder / path.name
        write_onnx(network, model.input_size, onnx)
        with compiled(
            onnx, file, platform, precision, mean=mean, std=std, calibration=calibration, algorithm=algorithm
        ) as made:

            def run(pixels: np.ndarray) -> np.ndarray:
                rows = made.simulate(pixels)
                rows /= np.linalg.norm(rows, axis=1, keepdims=True)
                return rows

            proof = reference().prove(Exported(file, Runtime(run, json.dumps(card), None)), timed=False)
        told = {
            "fingerprint": fingerprint_of(card, proof),
            "input_size": list(model.input_size),
            "dimension": model.dimension,
            "platform": platform,
            "precision": precision,
            "pieces": pieces,
            "bytes": file.stat().st_size,
            "proof": asdict(proof),
            "proved_on": "the compiler's simulator",
            "estimated_cycles": made.cycles,
            "estimated_cycles_with_copies": round(made.cycles_with_copies),
            "operators": [asdict(operator) for operator in made.operators],
        }
        write_json(path.with_name(f"{path.name}.json"), told)  # before the model: where that is, its proof is, too
        os.replace(file, path)
    return proof, told
