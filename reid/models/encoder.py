"""What turns pixels into embeddings: a model in PyTorch, or an exported file in its runtime.

encoder = open_encoder("model.onnx")
encoder.encode(pixels)     # RGB uint8 (B, H, W, 3) -> (B, D) float32 of unit length
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from reid.core.memory import keep_freed_memory
from reid.core.types import ReidError
from reid.models import exported
from reid.models.card import NO_FLIP
from reid.models.model import ReidModel, load_model


class Encoder(Protocol):
    """All that embedding, galleries and evaluation need to know of a model."""

    @property
    def card(self) -> Mapping[str, Any]:
        """What the model says of itself: "architecture", "input_size", the recipe, scores."""

    @property
    def fingerprint(self) -> str:
        """Of the model and of how it is used: embeddings compare only where this is equal."""

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the images in pixels."""

    @property
    def dimension(self) -> int:
        """Values of an embedding."""

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        """RGB uint8 (B, height, width, 3) -> (B, dimension) float32 of unit length."""


class TorchEncoder:
    """A model of this program in PyTorch: evaluation mode, channels-last, float32.

    flip: the features of the image and of its mirror image are summed (MGN section 4.1); None: as the card says, which
    asks for it unless the network is another program's.
    """

    def __init__(self, model: ReidModel, *, flip: bool | None = None, device: str | torch.device | None = None) -> None:
        self.device = device if isinstance(device, torch.device) else pick_device(device)
        if self.device.type == "cpu":
            keep_freed_memory()
        layout = getattr(model.head, "memory_format", torch.channels_last)
        self.model: ReidModel = model.to(self.device, memory_format=layout).eval()  # type: ignore[call-overload]
        self.flip = bool(model.card.get("flip", True)) if flip is None else flip

    @property
    def card(self) -> Mapping[str, Any]:
        return self.model.card

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint + ("" if self.flip else NO_FLIP)

    @property
    def input_size(self) -> tuple[int, int]:
        return self.model.input_size

    @property
    def dimension(self) -> int:
        return self.model.dimension

    @torch.inference_mode()
    def features(self, pixels: np.ndarray) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, F, D) on the device, summed over image and mirror image, not of unit length."""
        return self._of(self.model.features, pixels)

    @torch.inference_mode()
    def encode(self, pixels: np.ndarray) -> np.ndarray:
        return torch.nn.functional.normalize(self._of(self.model.embed, pixels), dim=1).cpu().numpy()

    def _of(self, function: Callable[[Tensor], Tensor], pixels: np.ndarray) -> Tensor:
        images = torch.from_numpy(np.array(pixels)).to(self.device).permute(0, 3, 1, 2)  # a copy: they may be read-only
        found = function(images)
        return found + function(images.flip(3)) if self.flip else found


def open_encoder(path: str | Path, *, flip: bool | None = None, device: str | torch.device | None = None) -> Encoder:
    """The model of a file: safetensors in PyTorch, or an exported file (.onnx, .xml) in its runtime, on the CPU.

    flip: of a model in PyTorch, None as its card says; an exported file has it inside or not. Raises ReidError where
    the file is missing, damaged or no model of this program, where its runtime is not installed, and for an exported
    file on a device.
    """
    if not exported.is_exported(path):
        return TorchEncoder(load_model(path), flip=flip, device=device)
    if device is not None and str(device) != "cpu":
        raise ReidError(f"{path} runs on the CPU: leave --device {device} out, or use the .safetensors it comes from")
    return exported.load(path)


def pick_device(name: str | None = None) -> torch.device:
    """The device of that name; without one, CUDA where there is one, else the CPU."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ReidError(f"device {name!r} cannot be used ({reason}); try --device cpu") from None
    return device
