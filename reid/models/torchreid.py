"""Where the program meets torchreid (PyPI 0.2.5): its OSNet networks, and its `evaluate_rank` to compare with."""

from __future__ import annotations

import importlib
import warnings
from typing import Any

import numpy as np
from torch import nn

from reid.core.types import ReidError

OSNETS = ("osnet_x1_0", "osnet_x0_25")
# torchreid's package declares none of the packages that it imports
_INSTALL = "pip install torchreid==0.2.5 opencv-python-headless gdown tensorboard six h5py imageio scipy"


def osnet(name: str) -> nn.Module:
    """torchreid's OSNet (Zhou et al., ICCV 2019) with random weights, `name` one of OSNETS. Nothing is downloaded."""
    if name not in OSNETS:
        raise ReidError(f"no OSNet is called {name!r}: valid names are {', '.join(OSNETS)}")
    network: nn.Module = getattr(_torchreid("models.osnet"), name)(num_classes=1, pretrained=False)
    return network


def networks() -> list[str]:
    """The names of all networks that torchreid has."""
    return [name for name in _factory() if name != "nasnsetmobile"] + ["nasnetamobile"]


def network(name: str, num_classes: int) -> nn.Module:
    """torchreid's network of that name, one of `networks()`, with random weights. Nothing is downloaded. In evaluation
    mode it gives the features before its classifiers: normalised RGB (B, 3, H, W) -> (B, D)."""
    made: nn.Module = _factory()[{"nasnetamobile": "nasnsetmobile"}.get(name, name)](
        num_classes=num_classes, loss="softmax", pretrained=False, use_gpu=False
    )
    return made


def _factory() -> dict[str, Any]:
    return _torchreid("models").__dict__["__model_factory"]  # type: ignore[no-any-return]


def evaluate_rank(
    distmat: np.ndarray,
    q_pids: np.ndarray,
    g_pids: np.ndarray,
    q_camids: np.ndarray,
    g_camids: np.ndarray,
    max_rank: int = 50,
) -> tuple[np.ndarray, float]:
    """torchreid's own evaluation, in its Python version: CMC (min(max_rank, G),) and mAP (step), in [0, 1].

    distmat (Q, G): distances, lower is nearer. Leave junk out beforehand: torchreid does not know it.
    """
    rank = _torchreid("metrics.rank")
    max_rank = min(max_rank, distmat.shape[1])
    cmc, mean_ap = rank.evaluate_rank(distmat, q_pids, g_pids, q_camids, g_camids, max_rank, use_cython=False)
    return cmc, float(mean_ap)


def _torchreid(module: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Cython evaluation")
            return importlib.import_module(f"torchreid.reid.{module}")
    except ImportError as error:
        raise ReidError(f"torchreid or a package that it needs is missing ({error}): run `{_INSTALL}`") from error
