"""Person re-identification: train, embed, evaluate, search.

>>> import reid
>>> embedder = reid.Embedder("model.safetensors")       # doctest: +SKIP
>>> features = embedder.embed(["a.jpg", "b.jpg"])        # (2, D) float32 of unit length  # doctest: +SKIP
>>> scores = reid.evaluate(query, gallery, ids, gallery_ids, cameras, gallery_cameras)    # doctest: +SKIP

What needs torch or faiss is imported when its name is first used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from reid.gallery import Gallery as Gallery
    from reid.models.embedder import Embedder as Embedder
    from reid.models.model import load_model as load_model
    from reid.models.model import save_model as save_model
    from reid.retrieval.evaluate import evaluate as evaluate
    from reid.retrieval.rerank import rerank as rerank

__version__ = "0.2.0"

_HOME = {
    "Embedder": "reid.models.embedder",
    "Gallery": "reid.gallery",
    "evaluate": "reid.retrieval.evaluate",
    "load_model": "reid.models.model",
    "rerank": "reid.retrieval.rerank",
    "save_model": "reid.models.model",
}
__all__ = ["Embedder", "Gallery", "evaluate", "load_model", "rerank", "save_model"]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'reid' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
