"""Tensors out of files of other programs. Of a pickle only tensors, numpy's numbers and plain values are read: nothing
that it names is imported or run."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from reid.core.types import ReidError

_PLACES = ("state_dict", "model", "model_state_dict", "net", "network")  # where programs keep their weights


def read_tensors(path: str | Path) -> dict[str, Tensor]:
    """The state dict of a file: safetensors, or torch's own (also under "state_dict", "model", ...), without "module."
    before its names. ReidError where there is none, or where the file is hostile or damaged."""
    path = Path(path)
    if not path.is_file():
        raise ReidError(f"no weights at {path}")
    value = _load(path)
    for key in _PLACES:
        if isinstance(value, Mapping) and isinstance(value.get(key), Mapping):
            value = value[key]
            break
    named = isinstance(value, Mapping) and {k: v for k, v in value.items() if isinstance(v, Tensor)}
    if not named or len(named) < len(value):
        keys = ", ".join(map(str, list(value)[:6])) if isinstance(value, Mapping) else type(value).__name__
        raise ReidError(
            f"{path} holds no weights ({keys[:120] or 'nothing'}): expected a state dict, names to tensors, by "
            f"itself or under {', '.join(_PLACES)}"
        )
    return {str(key).removeprefix("module."): tensor for key, tensor in named.items()}


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """ReidError where a weight is not a finite number."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ReidError(f"{path}: {name} holds values that are not finite, so it embeds nothing")


def _load(path: Path) -> Any:
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        with torch.serialization.safe_globals(_numpy_numbers()):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever a broken or hostile file makes the readers say
        told = re.search(r"GLOBAL ([\w.]+)", str(error))
        # torch's own message is a page about `weights_only`
        general = str(error).startswith("Weights only load failed")
        other = "it is damaged, or something else" if general else " ".join(str(error).split())[:120]
        reason = f"it asks for {told[1]}" if told else other
        raise ReidError(
            f"{path} is neither safetensors nor a plain PyTorch state dict ({reason}; nothing else is unpickled): save "
            "the state dict alone where it comes from"
        ) from None


def _numpy_numbers() -> list[Any]:
    """What a pickled number of numpy's asks for, by its names in numpy 1 and 2: torchreid's `rank1` is one."""
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [scalar, (scalar, "numpy.core.multiarray.scalar"), np.dtype, *kinds]
