"""ONNX files of other programs, made into files of this program's kind: RGB uint8 pixels in, unit length out.

    taken = Taken(channels="BGR", range="0-255", mean=(0, 0, 0), std=(1, 1, 1))
    network = Network(Path("theirs.onnx"), taken)    # asks, by ReidError, for what neither says
    made = network.wrapped(taken)                    # the ONNX model, for reid.export.onnx.save with `card_of` it

What the network wants of its pixels (layout, order of channels, range, mean and deviation) becomes part of the graph,
before it; the mirror image and the length of the embedding after it. So whatever reads exports reads these.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.types import ReidError
from reid.export.onnx import EMBEDDING, PIXELS, session_of
from reid.models.card import MEAN, STD
from reid.models.exported import need

RANGES = {"0-1": (0.0, 1.0), "0-255": (0.0, 255.0), "+-1": (-1.0, 1.0)}
LAYOUTS, CHANNELS = ("NCHW", "NHWC"), ("RGB", "BGR")


@dataclass(frozen=True)
class Taken:
    """What a network takes. None where it is not known."""

    channels: str | None = None  # of CHANNELS
    range: str | None = None  # of RANGES
    mean: tuple[float, ...] | None = None  # in that range and in the order of the network's channels
    std: tuple[float, ...] | None = None
    layout: str | None = None  # of LAYOUTS
    input_size: tuple[int, int] | None = None  # (height, width)
    flip: bool = False  # the vectors of image and mirror image are added

    def affine(self) -> tuple[np.ndarray, np.ndarray]:
        """(scale, shift), (3,) float32 each, in the order of the network's channels: pixel * scale + shift."""
        assert self.range is not None and self.mean is not None and self.std is not None
        low, high = RANGES[self.range]
        mean, std = np.array(self.mean), np.array(self.std)
        return ((high - low) / 255 / std).astype(np.float32), ((low - mean) / std).astype(np.float32)


def imagenet(channels: str, range: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """ImageNet's mean and deviation in a range and in an order of channels."""
    low, high = RANGES[range]
    step = 1 if channels == "RGB" else -1
    mean = tuple(low + (high - low) * value for value in MEAN[::step])
    return mean, tuple((high - low) * value for value in STD[::step])


def asked(path: Path, taken: Taken) -> None:
    """ReidError in one line that names the options for what is not known."""
    options = []
    if taken.channels is None:
        options.append("--channels RGB or BGR")
    if taken.range is None:
        options.append(f"--range {', '.join(RANGES)}")
    if taken.mean is None or taken.std is None:
        options.append("--normalise imagenet or none (or --mean and --std, three numbers each)")
    if options:
        raise ReidError(f"{path} does not say how it takes its pixels: give {'; '.join(options)}")


class Network:
    """A foreign ONNX graph, read: one image input, one output of a vector an image.

    vector: the name of that output, where there are several. ReidError in one line for everything else.
    """

    def __init__(self, path: Path, taken: Taken, vector: str | None = None) -> None:
        onnx = need("onnx")
        self.path = path
        try:
            self.made = onnx.load(path)
        except Exception as error:  # protobuf, a missing file of weights: a class for each
            raise ReidError(f"{path} is damaged or no ONNX model ({' '.join(str(error).split())[:120]})") from None
        graph = self.made.graph
        held = {tensor.name for tensor in graph.initializer}
        inputs = [value for value in graph.input if value.name not in held]
        if len(inputs) != 1:
            names = ", ".join(value.name for value in inputs) or "none"
            raise ReidError(f"{path} takes {len(inputs)} inputs ({names}): expected one, an image")
        outputs = [value.name for value in graph.output]
        if vector is None and len(outputs) > 1:
            raise ReidError(f"{path} gives {', '.join(outputs)}: say with --vector which of them is the embedding")
        self.vector = vector or outputs[0]
        if self.vector not in outputs:
            raise ReidError(f"{path} gives no {vector!r}: --vector takes one of {', '.join(outputs)}")
        self._check_weights()
        self.input = inputs[0]
        dims = [dim.dim_value or None for dim in self.input.type.tensor_type.shape.dim]
        self.batch, self.layout, self.input_size = sizes(path, dims, taken)
        self.dimension = self._dimension()

    def _check_weights(self) -> None:
        numpy_helper = need("onnx").numpy_helper
        for tensor in self.made.graph.initializer:
            values = numpy_helper.to_array(tensor)
            if values.dtype.kind == "f" and not np.isfinite(values).all():
                raise ReidError(f"{self.path}: {tensor.name} holds values that are not finite, so it embeds nothing")

    def _dimension(self) -> int:
        """Values of an embedding, by running it."""
        batch = self.batch or 2
        session = session_of(self.made.SerializeToString(), self.path)
        shape = (batch, 3, *self.input_size) if self.layout == "NCHW" else (batch, *self.input_size, 3)
        kind = need("onnx").helper.tensor_dtype_to_np_dtype(self.input.type.tensor_type.elem_type)
        blank = np.random.default_rng(0).random(shape).astype(kind)
        try:
            found = np.asarray(session.run([self.vector], {self.input.name: blank})[0])
        except Exception as error:
            reason = " ".join(str(error).split())[-160:]
            raise ReidError(f"{self.path} does not run on images of {shape}: {reason}") from None
        wide = [size for size in found.shape[1:] if size != 1]
        if found.ndim < 2 or found.shape[0] != batch or len(wide) != 1 or found.dtype.kind != "f":
            raise ReidError(
                f"{self.path} gives {found.dtype} {found.shape} of {batch} image{'s' * (batch > 1)}: expected one "
                "vector an image, so it is no re-identification network, or --vector names another output"
            )
        return int(wide[0])

    def wrapped(self, taken: Taken) -> Any:
        """The ONNX model of this program's kind: PIXELS (B, H, W, 3) uint8 -> EMBEDDING (B, D) of unit length. Its
        batch is free where the network computes the same of one image and of several."""
        fixed = self._wrap(taken, self.batch)
        if self.batch is None:
            return fixed
        for freed in (self._wrap(taken, None), self._wrap(taken, None, reshapes=True)):
            if self._same(freed, fixed):
                return freed
        return fixed

    def _same(self, freed: Any, fixed: Any) -> bool:
        assert self.batch is not None
        pixels = np.random.default_rng(0).integers(0, 256, (3 * self.batch, *self.input_size, 3), np.uint8)
        try:
            found = session_of(freed.SerializeToString(), self.path, silent=True).run(None, {PIXELS: pixels})[0]
        except Exception:  # a batch that is written into the graph
            return False
        one = session_of(fixed.SerializeToString(), self.path)
        parts = [one.run(None, {PIXELS: pixels[i : i + self.batch]})[0] for i in range(0, len(pixels), self.batch)]
        return found.shape == (len(pixels), self.dimension) and np.allclose(np.concatenate(parts), found, atol=1e-4)

    def _wrap(self, taken: Taken, batch: int | None, *, reshapes: bool = False) -> Any:
        onnx = need("onnx")
        helper, numpy_helper, kinds = onnx.helper, onnx.numpy_helper, onnx.TensorProto
        made = onnx.ModelProto()
        made.CopyFrom(self.made)
        if batch is None:
            _free_batch(made, self.input.name, self.batch, reshapes)
        made = onnx.compose.add_prefix(made, "net/")
        graph, opset = made.graph, next(o.version for o in made.opset_import if o.domain in ("", "ai.onnx"))
        held = {tensor.name for tensor in graph.initializer}
        kind = self.input.type.tensor_type.elem_type
        before: list[Any] = []
        after: list[Any] = []

        def constant(name: str, values: np.ndarray) -> str:
            graph.initializer.append(numpy_helper.from_array(values, name))
            return name

        def add(nodes: list[Any], op: str, inputs: list[str], output: str, **attributes: Any) -> str:
            nodes.append(helper.make_node(op, inputs, [output], name=f"reid/{output}", **attributes))
            return output

        scale, shift = taken.affine()
        height, width = self.input_size
        constant("reid/scale", scale)
        constant("reid/shift", shift)
        copies = [("net/", "")] + [("mirror/net/", "mirror/")] * taken.flip
        network, vectors = list(graph.node), []
        for prefix, name in copies:
            images = PIXELS
            if name:
                turned = constant("reid/turned", np.arange(width - 1, -1, -1, dtype=np.int64))
                images = add(before, "Gather", [images, turned], f"{name}turned", axis=2)
            if taken.channels == "BGR":
                order = "reid/order"
                if not name:
                    constant(order, np.array([2, 1, 0], np.int64))
                images = add(before, "Gather", [images, order], f"{name}ordered", axis=3)
            images = add(before, "Cast", [images], f"{name}floats", to=kinds.FLOAT)
            images = add(before, "Mul", [images, "reid/scale"], f"{name}scaled")
            images = add(before, "Add", [images, "reid/shift"], f"{name}normalised")
            if self.layout == "NCHW":
                images = add(before, "Transpose", [images], f"{name}channels_first", perm=[0, 3, 1, 2])
            add(before, "Cast", [images], f"{prefix}{self.input.name}", to=kind)
        if taken.flip:
            other = onnx.compose.add_prefix_graph(graph, "mirror/", rename_initializers=False)
            network += list(other.node)
        shape = constant("reid/shape", np.array([-1, self.dimension], np.int64))
        for prefix, name in copies:
            vector = add(after, "Cast", [f"{prefix}{self.vector}"], f"{name}vector", to=kinds.FLOAT)
            vectors.append(add(after, "Reshape", [vector, shape], f"{name}flat"))
        whole = add(after, "Add", vectors, "sum") if taken.flip else vectors[0]
        squares = add(after, "Mul", [whole, whole], "squares")
        if opset < 13:
            total = add(after, "ReduceSum", [squares], "total", axes=[1], keepdims=1)
        else:
            axes = constant("reid/axes", np.array([1], np.int64))
            total = add(after, "ReduceSum", [squares, axes], "total", keepdims=1)
        length = add(after, "Sqrt", [total], "length")
        least = constant("reid/least", np.array([1e-12], np.float32))
        add(after, "Div", [whole, add(after, "Max", [length, least], "divisor")], EMBEDDING)
        del graph.node[:], graph.input[:], graph.output[:], made.metadata_props[:]
        graph.node.extend([*before, *network, *after])
        count = "batch" if batch is None else batch
        graph.input.append(helper.make_tensor_value_info(PIXELS, kinds.UINT8, [count, height, width, 3]))
        graph.output.append(helper.make_tensor_value_info(EMBEDDING, kinds.FLOAT, [count, self.dimension]))
        del graph.value_info[:]
        assert held
        return made


def sizes(path: Path, dims: list[int | None], taken: Taken) -> tuple[int | None, str, tuple[int, int]]:
    """(batch, layout, (height, width)) of an image input, by its dimensions (None: free) and what the user says."""
    if len(dims) != 4:
        raise ReidError(f"{path} takes {shown(dims)}: expected images, (B, 3, H, W) or (B, H, W, 3)")
    fits = [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if dims[axis] in (3, None)]
    named = [layout for layout, axis in (("NCHW", 1), ("NHWC", 3)) if dims[axis] == 3]
    layout = taken.layout or (named[0] if len(named) == 1 else None)
    if not fits or (taken.layout and taken.layout not in fits):
        raise ReidError(f"{path} takes {shown(dims)}: expected 3 channels, (B, 3, H, W) or (B, H, W, 3)")
    if layout is None:
        raise ReidError(f"{path} takes {shown(dims)}, which does not say its layout: give --layout NCHW or NHWC")
    inside = dims[2:] if layout == "NCHW" else dims[1:3]
    if None in inside and taken.input_size is None:
        raise ReidError(f"{path} takes images of any size: give the one that it was trained at, --input-size HxW")
    size = tuple(there or here for there, here in zip(inside, taken.input_size or (0, 0)))
    if taken.input_size is not None and size != taken.input_size:
        raise ReidError(
            f"{path} takes images of {shown(inside, 'x')}, --input-size says {shown(list(taken.input_size), 'x')}: "
            "leave it out"
        )
    return dims[0], layout, (size[0], size[1])


def shown(dims: list[int | None], between: str = ", ") -> str:
    return between.join("?" if dim is None else str(dim) for dim in dims)


def _free_batch(made: Any, input: str, batch: int | None, reshapes: bool) -> None:
    """Lets the batch be any number, in place. reshapes: also in constants of Reshape that begin with it."""
    numpy_helper = need("onnx").numpy_helper
    graph = made.graph
    for value in [*graph.output, *(value for value in graph.input if value.name == input)]:
        if value.type.tensor_type.shape.dim:
            value.type.tensor_type.shape.dim[0].dim_param = "batch"
    del graph.value_info[:]
    if reshapes:
        used = {node.input[1] for node in graph.node if node.op_type == "Reshape"}
        for tensor in graph.initializer:
            if tensor.name in used:
                shape = numpy_helper.to_array(tensor).copy()
                if len(shape) > 1 and shape[0] == batch:
                    shape[0] = 0 if -1 in shape else -1  # 0: as the input has it
                    tensor.CopyFrom(numpy_helper.from_array(shape, tensor.name))


def size_of(made: Any) -> dict[str, int | None]:
    """How large it is: "parameters", and "multiply_adds" of one image in convolutions and in products of matrices with
    weights, None where the shapes cannot be worked out."""
    onnx = need("onnx")
    shapes = {tensor.name: list(tensor.dims) for tensor in made.graph.initializer}
    parameters = sum(math.prod(shape) for shape in shapes.values() if shape)
    one = onnx.ModelProto()
    one.CopyFrom(made)
    one.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    del one.graph.output[0].type.tensor_type.shape.dim[:]
    inferred = onnx.shape_inference.infer_shapes(one).graph
    for value in [*inferred.value_info, *inferred.output]:
        shapes[value.name] = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
    total = 0
    for node in made.graph.node:
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            weights, out = shapes.get(node.input[1]), shapes.get(node.output[0])
            if not weights or not out or not all(out):
                return {"parameters": parameters, "multiply_adds": None}
            turned = node.op_type == "Gemm" and any(a.name == "transB" and a.i for a in node.attribute)
            each = math.prod(weights[1:]) if node.op_type == "Conv" else weights[1 if turned else -2]
            total += math.prod(out) * each
    return {"parameters": parameters, "multiply_adds": total}


def card_of(network: Network, taken: Taken, made: Any, source: Mapping[str, Any]) -> dict[str, Any]:
    """The card of an adopted network: source says where it comes from."""
    batch = made.graph.input[0].type.tensor_type.shape.dim[0].dim_value or None
    height, width = network.input_size
    card = {
        "architecture": {"backbone": f"onnx:{network.path.stem}", "head": "whole", "runtime": "onnx"},
        "input_size": [height, width],
        "takes": {
            "layout": network.layout,
            "channels": taken.channels,
            "range": taken.range,
            "mean": list(taken.mean or ()),
            "std": list(taken.std or ()),
        },
        "flip": taken.flip,
        "num_classes": 0,
        "recipe": {},
        "source": dict(source),
        "size": size_of(made),
        "export": {
            "format": "onnx",
            "precision": "fp32",
            "batch": batch,
            "flip": taken.flip,
            "dimension": network.dimension,
            "pixels": "RGB uint8 (B, height, width, 3)",
        },
    }
    described = hashlib.sha256(made.SerializeToString(deterministic=True)).hexdigest()
    return card | {"fingerprint": described[:16]}
