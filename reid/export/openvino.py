"""OpenVINO's two files: model.xml, the graph, and model.bin, the weights beside it.

fp16 stores half floats; OpenVINO computes in what its hardware has. int8 is NNCF's post-training quantisation, its
ranges those of training crops.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reid.core.types import ReidError
from reid.export.graph import Deployed
from reid.export.onnx import to_onnx
from reid.export.request import Request
from reid.models.exported import Runtime, need

if TYPE_CHECKING:
    from reid.models.model import ReidModel

CARD = ["reid", "card"]  # the place in the model's rt_info
PRECISION = ["reid", "precision"]


def build(model: ReidModel, request: Request, crops: np.ndarray) -> Any:
    """OpenVINO's model. crops: RGB uint8 (N, H, W, 3) of training people, which int8 takes its ranges from."""
    need("openvino")
    made = from_onnx(to_onnx(Deployed(model, flip=request.flip), request.batch))
    if request.precision == "int8":
        made = quantise(made, crops, request.batch or 8)
    made.set_rt_info(request.precision, PRECISION)
    return made


def from_onnx(made: Any) -> Any:
    """As OpenVINO's own converter makes it: shapes are worked out, so that NNCF sees weights and biases as such."""
    onnx, ov = need("onnx"), need("openvino")
    with tempfile.TemporaryDirectory() as folder:
        onnx.save(made, f"{folder}/model.onnx")
        return ov.convert_model(f"{folder}/model.onnx")


def quantise(made: Any, crops: np.ndarray, batch: int) -> Any:
    """int8 by NNCF: per-channel weights, activations asymmetric, biases mended layer by layer.

    By NNCF's accurate correction, which takes a minute: its fast one costs MobileNetV2 points of mAP.
    """
    nncf = need("nncf")
    logging.getLogger("nncf").setLevel(logging.ERROR)
    batches = [crops[i : i + batch] for i in range(0, len(crops) - batch + 1, batch)]
    tail = nncf.IgnoredScope(types=["Power", "ReduceSum", "Sqrt", "Divide"])  # the length of an embedding is exact
    return nncf.quantize(
        made,
        nncf.Dataset(batches),
        preset=nncf.QuantizationPreset.MIXED,
        subset_size=len(batches),
        ignored_scope=tail,
        fast_bias_correction=False,
    )


def save(built: Any, path: Path, card: str) -> None:
    """Writes both files, with the card in the model's rt_info."""
    ov = need("openvino")
    built.set_rt_info(card, CARD)
    half = built.has_rt_info(PRECISION) and built.get_rt_info(PRECISION).value == "fp16"
    ov.save_model(built, path, compress_to_fp16=half)


def load(path: Path, precision: str = "f32") -> Runtime:
    """Compiles it for the CPU. precision: of what is not int8; "bf16", which OpenVINO itself would choose on a CPU that
    has it, is not what was proved. ReidError where it is no OpenVINO model."""
    ov = need("openvino")
    core = ov.Core()
    try:
        made = core.read_model(path)
        hints = {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": torch.get_num_threads()}
        compiled = core.compile_model(made, "CPU", hints)
    except RuntimeError as error:
        raise ReidError(
            f"{path} is damaged, lacks its .bin beside it, or is no OpenVINO model "
            f"({' '.join(str(error).split())[-120:]})"
        ) from None
    card = str(getattr(made.get_rt_info(CARD), "value", "")) if made.has_rt_info(CARD) else None
    batch = made.input(0).partial_shape[0]

    def run(pixels: np.ndarray) -> np.ndarray:
        return np.array(compiled([pixels])[0])  # the runtime uses its own memory again

    return Runtime(run, card, None if batch.is_dynamic else batch.get_length())
