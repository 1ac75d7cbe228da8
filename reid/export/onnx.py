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
from tqdm import tqdm

from reid.core.types import ReidError
from reid.export import seal
from reid.export.graph import Deployed
from reid.export.request import Request
from reid.models.exported import Runtime, need

if TYPE_CHECKING:
    from reid.models.model import ReidModel

OPSET = 18  # what Rockchip's and other NPU tool chains read
PIXELS, EMBEDDING = "pixels", "embedding"
_MENDING = 64  # crops that biases are mended by


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
            graph,
            (pixels,),
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=[PIXELS],
            output_names=[EMBEDDING],
            external_data=False,
            verbose=False,
        )
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

    steps, size = request.steps, request.batch or 8
    batches = [crops[i : i + size] for i in range(0, len(crops) - size + 1, size)]
    options: dict[str, Any] = {"ActivationSymmetric": False, "QuantizeBias": True}
    if steps.percentile is not None:
        options["CalibPercentile"] = steps.percentile
    with tempfile.TemporaryDirectory() as folder, quiet():
        plain, file = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        onnx.save(made, plain)
        quantize_static(
            plain,
            file,
            _Reader(batches),
            quant_format=QuantFormat.QDQ,
            per_channel=steps.per_channel,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax if steps.percentile is None else CalibrationMethod.Percentile,
            nodes_to_exclude=_float_nodes(made),
            extra_options=options,
        )
        quantised = onnx.load(file)
    if steps.mended:
        mend_biases(made, quantised, batches[: max(1, _MENDING // size)])
    del quantised.metadata_props[:]
    return quantised


def _float_nodes(made: Any) -> list[str]:
    """What stays in float: the pixels before the first convolution and the embedding after the last reduction."""
    nodes = list(made.graph.node)
    kinds = [node.op_type for node in nodes]
    last = len(kinds) - 1 - kinds[::-1].index("Gemm")
    return [node.name for node in [*nodes[: kinds.index("Conv")], *nodes[last + 1 :]]]


def mend_biases(plain: Any, quantised: Any, batches: list[np.ndarray]) -> None:
    """Moves the biases of an int8 model, layer by layer from the first, until each layer's mean is the float model's.

    So what rounding has moved on average is put right before the next layer sees it: the empirical bias correction of
    Nagel et al. 2019, "Data-Free Quantization through Weight Equalization and Bias Correction", ICCV.
    """
    numpy_helper = need("onnx").numpy_helper
    layers = {node.name: node for node in plain.graph.node if node.op_type in ("Conv", "Gemm")}
    makers = {name: node for node in quantised.graph.node for name in node.output}
    held = {tensor.name: tensor for tensor in quantised.graph.initializer}
    with_bias = [n for n in quantised.graph.node if n.name in layers and len(n.input) == 3]  # torch leaves zeros out
    wanted = _means(plain, [layers[node.name] for node in with_bias], batches) if with_bias else []
    for node, mean in zip(tqdm(with_bias, desc="mending biases"), wanted):
        bias, scale = (held[name] for name in makers[node.input[2]].input[:2])
        moved = mean - _means(quantised, [node], batches)[0]
        steps = numpy_helper.to_array(bias) + np.round(moved / numpy_helper.to_array(scale))
        steps = steps.clip(-(2.0**31) + 1, 2.0**31 - 1).astype(np.int32)
        bias.CopyFrom(numpy_helper.from_array(steps, bias.name))


def _means(made: Any, nodes: list[Any], batches: list[np.ndarray]) -> list[np.ndarray]:
    """Of each channel of what each node gives (C,), over the batches.

    By the graph as it is written. Fused, it would run in the int8 kernels of this processor, which without int8 dot
    products saturate, and the biases would mend that, for every processor that the file comes to.
    """
    onnx, ort = need("onnx"), need("onnxruntime")
    part, names = onnx.ModelProto(), [node.output[0] for node in nodes]
    part.CopyFrom(made)
    del part.graph.output[:]
    part.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in names)
    options = _options()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(part.SerializeToString(), options, providers=["CPUExecutionProvider"])
    found = [[x.mean(axis=(0, 2, 3)[: x.ndim - 1]) for x in session.run(names, {PIXELS: batch})] for batch in batches]
    return [np.mean(means, axis=0) for means in zip(*found)]


class _Reader:
    def __init__(self, batches: list[np.ndarray]) -> None:
        self._left = iter(batches)

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self._left, None)
        return None if batch is None else {PIXELS: batch}

    def __len__(self) -> int:
        return 0


def save(built: Any, path: Path, card: str) -> None:
    """Writes the file with the card and a digest of the whole among its metadata."""
    onnx = need("onnx")
    onnx.helper.set_model_props(built, {seal.KEY: ""})
    sealed = seal.sealed(built.SerializeToString(), card)
    onnx.helper.set_model_props(built, {seal.KEY: sealed})
    path.write_bytes(built.SerializeToString())


def load(path: Path) -> Runtime:
    """Opens it with onnxruntime. ReidError where it is no ONNX model."""
    data = path.read_bytes()
    session = session_of(data, path)
    name, shape = session.get_inputs()[0].name, session.get_inputs()[0].shape
    batch = shape[0] if shape else None
    card = seal.opened(data, session.get_modelmeta().custom_metadata_map, path)

    def run(pixels: np.ndarray) -> np.ndarray:
        rows: np.ndarray = session.run(None, {name: pixels})[0]
        return rows

    return Runtime(run, card, batch if isinstance(batch, int) else None)


def session_of(data: bytes, path: Path, *, silent: bool = False) -> Any:
    """onnxruntime's session of a model, on the CPU. ReidError, which names `path`, where it is none.

    silent: a run that fails prints nothing of onnxruntime's own.
    """
    ort, options = need("onnxruntime"), _options()
    options.log_severity_level = 4 if silent else 3
    try:
        return ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has a class for each kind of damage
        raise ReidError(f"{path} is damaged or no ONNX model ({' '.join(str(error).split())[:120]})") from None


def _options() -> Any:
    options = need("onnxruntime").SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    return options


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
