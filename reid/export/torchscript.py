"""TorchScript, for programs in C++ that link libtorch: one file, the card among its extra files as card.json.

This program writes such files and never loads one that is handed in: a TorchScript file is a program.
"""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from reid.export.graph import Deployed
from reid.export.request import Request
from reid.models.exported import Runtime

if TYPE_CHECKING:
    from reid.models.model import ReidModel

CARD = "card.json"


def build(model: ReidModel, request: Request, crops: np.ndarray) -> Any:
    """The traced graph, its batch as it was asked for."""
    graph = Deployed(model, flip=request.flip)
    pixels = torch.zeros(request.batch or 2, *graph.input_size, 3, dtype=torch.uint8)
    with warnings.catch_warnings(), torch.inference_mode():
        warnings.simplefilter("ignore")  # torch calls TorchScript's successor by its name
        return torch.jit.freeze(torch.jit.trace(graph, (pixels,)))


def save(built: Any, path: Path, card: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(built, str(path), _extra_files={CARD: card})


def load(path: Path) -> Runtime:
    """Opens a file that this process wrote, for its proof."""
    extra = {CARD: ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network = torch.jit.load(str(path), map_location="cpu", _extra_files=extra)
    card: Any = extra[CARD]

    @torch.inference_mode()
    def run(pixels: np.ndarray) -> np.ndarray:
        rows: torch.Tensor = network(torch.from_numpy(pixels))
        return rows.numpy()

    return Runtime(run, card.decode() if isinstance(card, bytes) else card, None)
