"""Person re-identification: train, embed, evaluate, search. Imports torch only when a name that needs it is used.

>>> import reid
>>> embedder = reid.Embedder("model.safetensors")       # doctest: +SKIP
>>> features = embedder.embed(["a.jpg", "b.jpg"])        # doctest: +SKIP
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {"load_model": "reid.model", "save_model": "reid.model", "Embedder": "reid.extract"}
_MODULES = ("evaluate", "gallery", "train")
__all__ = ["Embedder", "evaluate", "gallery", "load_model", "save_model", "train"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    if name in _MODULES:
        return importlib.import_module(f"reid.{name}")
    raise AttributeError(f"module 'reid' has no attribute {name!r}")
