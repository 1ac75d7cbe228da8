"""ONNX files, run by onnxruntime: one file with the weights inside, opset 18.

int8 is static quantisation in QDQ form (pairs of QuantizeLinear and DequantizeLinear, which onnxruntime and the tool
chains of NPUs read): its ranges are those of training crops.
"""

from __future__ import annotations

import contextlib
import io
import logging
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reid.export import Runtime, need
from reid.export.graph import Deployed
from reid.export.request import Request
from reid.types import ReidError

if TYPE_CHECKING:
    from reid.model import ReidModel

OPSET = 18  # what Rockchip's and other NPU tool chains read
CARD = "reid_card"  # the key among the file's metadata
PIXELS, EMBEDDING = "pixels", "embedding"


def build(model: ReidModel, request: Request, crops: np.ndarray) -> Any:
    """The ONNX model. crops: RGB uint8 (N, H, W, 3) of training people, which int8 takes its ranges from."""
    made = to_onnx(Deployed(model, flip=request.flip, half=request.precision == "fp16"), request.batch)
    return quantise(made, crops, request) if request.precision == "int8" else made


def to_onnx(graph: Deployed, batch: int | None) -> Any:
    """The graph by torch's exporter; batch: a fixed number of images, None for any."""
    onnx = need("onnx")
    need("onnxscript")
    pixels = torch.zeros(batch or 2, *graph.input_size, 3, dtype=torch.uint8)
    shapes = {PIXELS: {0: torch.export.Dim("batch", min=1)}} if batch is None else None
    with quiet():
        program = torch.onnx.export(
            graph, (pixels,), dynamo=True, opset_version=OPSET, dynamic_shapes=shapes, input_names=[PIXELS],
            output_names=[EMBEDDING], external_data=False, verbose=False,
        )  # fmt: skip
    assert program is not None
    made = program.model_proto
    for part in (made.graph, *made.graph.node, *made.graph.value_info, *made.graph.input, *made.graph.output):
        del part.metadata_props[:]  # where in the sources each came from
    del made.metadata_props[:]
    onnx.checker.check_model(made)
    return made


def quantise(made: Any, crops: np.ndarray, request: Request) -> Any:
    """int8 weights and activations, by the request's steps."""
    onnx = need("onnx")
    need("onnxruntime")
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    steps = request.steps
    size = request.batch or 8
    batches = [crops[i : i + size] for i in range(0, len(crops) - size + 1, size)]
    options: dict[str, Any] = {"ActivationSymmetric": False, "QuantizeBias": True}
    if steps.ranges == "percentile":
        options["CalibPercentile"] = steps.percentile
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(made, plain)
        quantize_static(
            plain, file, _Reader(batches), quant_format=QuantFormat.QDQ, per_channel=steps.per_channel,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8,
            calibrate_method=getattr(CalibrationMethod, {"minmax": "MinMax"}.get(steps.ranges, steps.ranges.title())),
            nodes_to_exclude=_float_nodes(made, steps.float_layers), extra_options=options,
        )  # fmt: skip
        made = onnx.load(file)
    del made.metadata_props[:]
    return made


def _float_nodes(made: Any, layers: tuple[str, ...]) -> list[str]:
    """What stays in float: the pixels before the first convolution and the embedding after the last reduction, and the
    chosen layers: "first" convolutions (of the image), the "reductions"."""
    nodes = list(made.graph.node)
    kinds = [node.op_type for node in nodes]
    first = kinds.index("Conv")
    last = len(kinds) - 1 - kinds[::-1].index("Gemm")
    kept = [*nodes[:first], *nodes[last + 1 :]]
    if "first" in layers:
        kept.append(nodes[first])
    if "reductions" in layers:
        kept += [node for node in nodes if node.op_type == "Gemm"]
    return [node.name for node in kept]


class _Reader:
    def __init__(self, batches: list[np.ndarray]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {PIXELS: batch}

    def __len__(self) -> int:
        return 0


def save(built: Any, path: Path, card: str) -> None:
    """Writes the file with the card among its metadata."""
    onnx = need("onnx")
    onnx.helper.set_model_props(built, {CARD: card})
    onnx.save(built, path)


def load(path: Path) -> Runtime:
    """Opens it with onnxruntime. ReidError where it is no ONNX model."""
    ort = need("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each kind of damage
        raise ReidError(f"{path} is damaged or no ONNX model ({' '.join(str(error).split())[:120]})") from None
    (batch, *_), card = session.get_inputs()[0].shape, session.get_modelmeta().custom_metadata_map.get(CARD)
    name = session.get_inputs()[0].name

    def run(pixels: np.ndarray) -> np.ndarray:
        return session.run(None, {name: pixels})[0]

    return Runtime(run, card, batch if isinstance(batch, int) else None)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without what the exporters print of their progress."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
