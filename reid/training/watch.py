"""What a training looks at beside its losses: Rank-1 of identities that are held out, the spread of features."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from reid.core.types import ReidError, Sample
from reid.models.encoder import TorchEncoder
from reid.models.model import ReidModel
from reid.retrieval.evaluate import Scores, evaluate
from reid.training.config import Config

WATCH_BATCH = 64
WATCHED_IDENTITIES = 64  # of the training set, where none are held out


def spread(features: Tensor) -> Tensor:
    """How much each head's features differ within a batch, in [0, 1]: root mean variance over root mean square.

    (B, F, D) -> (F,). 0 is a head that has collapsed to a constant.
    """
    return (features.var(0, unbiased=False).mean(-1) / features.square().mean((0, 2)).clamp(min=1e-12)).sqrt()


def watch(model: ReidModel, samples: Sequence[Sample], pixels: np.ndarray, device: torch.device) -> dict[str, float]:
    """Rank-1 of each head by name, and "rank1" and "mAP" of all together, on identities of one's own.

    The first image of each person and camera is a query, the others the gallery. Empty where no query has a match.
    """
    encoder = TorchEncoder(model, flip=False, device=device)
    batches = [pixels[i : i + WATCH_BATCH] for i in range(0, len(pixels), WATCH_BATCH)]
    features = np.concatenate([encoder.features(batch).cpu().numpy() for batch in batches])
    pids, camids = np.array([s.pid for s in samples]), np.array([s.camid for s in samples])
    is_query = np.zeros(len(samples), bool)
    is_query[np.unique(np.stack((pids, camids)), axis=1, return_index=True)[1]] = True

    def scores(x: np.ndarray) -> Scores:
        return evaluate(x[is_query], x[~is_query], pids[is_query], pids[~is_query], camids[is_query], camids[~is_query])

    try:
        whole = scores(features.reshape(len(samples), -1))
    except ReidError:
        return {}
    heads = {name: scores(features[:, i]).rank1 for i, name in enumerate(model.head.names)}
    return {**heads, "rank1": whole.rank1, "mAP": whole.mAP}


def divide(samples: Sequence[Sample], config: Config) -> tuple[list[Sample], list[Sample]]:
    """(what is trained on, what is watched): identities held out by the seed, or some of the training ones."""
    pids = sorted({sample.pid for sample in samples})
    shuffled = [pids[i] for i in np.random.default_rng([config.seed, 2]).permutation(len(pids))]
    if not config.holdout:
        some = set(shuffled[:WATCHED_IDENTITIES])
        return list(samples), [sample for sample in samples if sample.pid in some] if config.watch_epochs else []
    count = max(2, math.ceil(config.holdout * len(pids)))
    if not config.watch_epochs or not config.epochs:
        raise ReidError(
            "holdout chooses the best checkpoint while training is watched: --set epochs and watch_epochs to 1 or more"
        )
    if count >= len(pids) - 1:
        raise ReidError(f"holding out {count} of {len(pids)} identities leaves too few to train on")
    held = set(shuffled[:count])
    return [s for s in samples if s.pid not in held], [s for s in samples if s.pid in held]
