"""Shorter embeddings: a projection (PCA) fitted to training images, as the model's last layer.

    model = shortened(load_model("model.safetensors"), paths, 512)     # a model like any other, of 512 values

The axes are the principal ones of the embeddings, of unit length and not centred: of all matrices of so many columns
the one whose products lie nearest to the embeddings' own, which is what a search compares.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from reid.core.types import ReidError
from reid.models.embedder import Embedder
from reid.models.model import ReidModel

IMAGES = 8192  # that the axes are fitted to, drawn from those given


def shortened(
    model: ReidModel, paths: Sequence[str], dim: int, *, device: str | None = None, progress: bool = False
) -> ReidModel:
    """The model with a projection to `dim` values, fitted to images of training people. Raises ReidError where there
    are fewer images than that, or fewer values to choose of, and where the model ends in a projection already."""
    if not 0 < dim < model.dimension:
        raise ReidError(
            f"an embedding of the model has {model.dimension:,} values, which cannot be shortened to {dim:,}"
        )
    if len(paths) < dim:
        raise ReidError(
            f"a projection to {dim:,} values takes at least as many training images, got {len(paths):,}: give a "
            "larger data set, or fewer values"
        )
    chosen = np.random.default_rng(0).permutation(len(paths))[:IMAGES]
    embedder = Embedder(model, device=device)
    vectors = embedder.embed([paths[i] for i in np.sort(chosen)], progress=progress, desc="embedding for --dim")
    return model.cpu().with_projection(torch.from_numpy(principal_axes(vectors, dim)))


def principal_axes(vectors: np.ndarray, dim: int) -> np.ndarray:
    """(N, D) -> (D, dim) float32, orthonormal: the eigenvectors of the second moment with the greatest values."""
    _, axes = np.linalg.eigh(vectors.T.astype(np.float64) @ vectors)  # ascending
    return np.ascontiguousarray(axes[:, : -dim - 1 : -1], np.float32)
