"""Trained models where they run: ONNX, OpenVINO, TorchScript, each with the model's card and its proof.

    made = export(load_model("model.safetensors"), "model.onnx", Request("onnx", "int8"), crops=pixels, prove=...)
    encoder = load("model.onnx")     # an `Encoder`: pixels -> embeddings, card, fingerprint

A format is a module here, with `build`, `save` and `load`, and a line of FORMATS. Each needs libraries of its own,
which the extra "export" installs; this module imports none.
"""

from __future__ import annotations

import importlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from reid.core.types import ReidError


class Format(NamedTuple):
    module: str
    suffix: str
    precisions: tuple[str, ...]
    encodes: bool = True  # whether `load` gives an encoder, for every command that takes --weights
    crops: int = 256  # of training people, that int8 takes its ranges from


FORMATS = {
    "onnx": Format("reid.export.onnx", ".onnx", ("fp32", "fp16", "int8")),
    "openvino": Format("reid.export.openvino", ".xml", ("fp32", "fp16", "int8")),
    # its files hold programs, so this program writes them and never loads one that somebody hands in
    "torchscript": Format("reid.export.torchscript", ".torchscript", ("fp32",), encodes=False),
    # for an NPU, by a compiler in an environment of its own: `export_rknn` there
    "rknn": Format("reid.export.rknn", ".rknn", ("fp16", "int8"), encodes=False, crops=32),
}
INSTALL = "pip install 'onnx>=1.19' 'onnxscript>=0.5' 'onnxruntime>=1.22' 'openvino>=2025.3' 'nncf>=2.18'"


class Runtime(NamedTuple):
    """A file as its format's module opens it."""

    run: Callable[[np.ndarray], np.ndarray]  # RGB uint8 (B, H, W, 3) -> (B, D) float32
    card: str | None  # the text that the file carries
    batch: int | None  # images a run, None for any number


class Exported:
    """An exported file in its runtime: an `Encoder`, on the CPU."""

    def __init__(self, path: str | Path, runtime: Runtime) -> None:
        self._run, self._batch = runtime.run, runtime.batch
        try:
            self.card: Mapping[str, Any] = json.loads(runtime.card or "")
            self.fingerprint: str = self.card["fingerprint"]
            height, width = self.card["input_size"]
            self.input_size: tuple[int, int] = (height, width)
            self.dimension: int = self.card["export"]["dimension"]
        except (ValueError, KeyError, TypeError):
            raise ReidError(
                f"{path} carries no card, so it is no model of this program: make one with python run_reid.py export"
            ) from None

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """RGB uint8 (B, height, width, 3) -> (B, dimension) float32 of unit length. A fixed batch is filled up."""
        if self._batch is None:
            return self._run(np.ascontiguousarray(pixels)) if len(pixels) else np.empty((0, self.dimension), np.float32)
        rows = np.empty((len(pixels), self.dimension), np.float32)
        for start in range(0, len(pixels), self._batch):
            part = pixels[start : start + self._batch]
            filled = np.zeros((self._batch, *part.shape[1:]), np.uint8)
            filled[: len(part)] = part
            rows[start : start + len(part)] = self._run(filled)[: len(part)]
        return rows


def format_of(path: str | Path) -> str | None:
    """The format whose files end so; None for any other file."""
    return next((name for name, format in FORMATS.items() if format.suffix == Path(path).suffix), None)


def is_exported(path: str | Path) -> bool:
    return format_of(path) is not None


def load(path: str | Path) -> Exported:
    """The exported model of a file. Raises ReidError where it is missing, damaged, not ours, or of a format that is
    not loaded, and where its runtime is not installed."""
    name = format_of(path)
    if name is None or not FORMATS[name].encodes:
        loaded = ", ".join(format.suffix for format in FORMATS.values() if format.encodes)
        raise ReidError(
            f"{path} is not loaded: such a file holds a program, or runs on an NPU; give the "
            f".safetensors it comes from, or one of {loaded}"
        )
    if not Path(path).is_file():
        raise ReidError(f"no model at {path}")
    return Exported(path, module_of(name).load(Path(path)))


def module_of(name: str) -> ModuleType:
    """The module of a format."""
    return importlib.import_module(FORMATS[name].module)


def need(library: str) -> ModuleType:
    """Imports a library of the extra "export"; ReidError says how to install it."""
    try:
        return importlib.import_module(library)
    except ImportError as error:
        raise ReidError(f"this needs {library}, which cannot be imported ({error}): {INSTALL}") from None
