"""What is measured of a run, and metrics.json, which holds it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reid.core.types import ReidError, Sample, Splits
from reid.retrieval.evaluate import Scores
from reid.retrieval.protocol import evaluate_camera_pairs
from reid.retrieval.verification import OpenSet, Verification, open_set, verify

if TYPE_CHECKING:
    from scipy.sparse import csr_array


@dataclass(frozen=True)
class RunRecord:
    """What a run knows of itself beside its scores. None where it does not apply or is not known."""

    command: str  # as typed
    backbone: str
    parameters: int  # of the network as saved
    input_size: tuple[int, int]  # (height, width) in pixels
    fingerprint: str  # of the weights
    embed_images_per_second: float | None  # None: the features were there already
    multiply_adds: int | None = None  # for one image of input_size
    train_seconds: float | None = None  # None: not trained by this run
    weights: str | None = None  # the file given instead of training
    git_revision: str | None = None
    recipe: Mapping[str, Any] = field(default_factory=dict)  # reid.training.config keys
    trained_on: Mapping[str, Any] | None = None  # the card's "data": name, images, identities, held_out, terms ...


class ExtraMetrics(NamedTuple):
    """What a report tells beside the scores of the ranking. None where the data does not allow it."""

    camera_pairs: dict[tuple[int, int], Scores]  # (query camera, gallery camera)
    verification: Verification | None
    open_set: OpenSet | None
    missing: list[str]  # why


# The rest of the recipe is in metrics.json, and in config.yaml where the run trained.
MAIN_KEYS = (
    "pretrained",
    "pool",
    "neck",
    "p",
    "k",
    "epochs",
    "warmup_epochs",
    "lr",
    "weight_decay",
    "smoothing",
    "margin",
    "triplet",
    "pad",
    "flip",
    "erase",
    "holdout",
    "precision",
    "seed",
)


def measure_extra(
    splits: Splits, query_features: np.ndarray, gallery_features: np.ndarray, bonus: csr_array | None = None
) -> ExtraMetrics:
    """Camera pairs, verification and open set of what `write_report` is given."""
    ids = [np.array([s[i] for s in samples]) for i in (1, 2) for samples in (splits.query, splits.gallery)]
    pairs = evaluate_camera_pairs(query_features, gallery_features, *ids, bonus=bonus)
    verification, opened, missing = None, None, []
    try:
        verification = verify(query_features, gallery_features, *ids)
    except ReidError as error:
        missing.append(f"Verification is left out: {error}.")
    try:
        opened = open_set(query_features, gallery_features, *ids)
    except ReidError as error:
        missing.append(f"Open set identification is left out: {error}.")
    return ExtraMetrics(pairs, verification, opened, missing)


def extra_metrics(further: ExtraMetrics) -> dict[str, Any]:
    """The values of metrics.json that come of `further`: fractions in [0, 1], thresholds cosine."""
    v, o = further.verification, further.open_set
    return {
        "camera_pairs": [
            {"query": mine, "gallery": other, "rank1": s.rank1, "mAP": s.mAP, "queries": int(s.valid.sum())}
            for (mine, other), s in further.camera_pairs.items()
        ],
        "verification": v
        and {
            "points": [point._asdict() for point in v.points],
            "auc": v.auc,
            "eer": v.eer,
            "num_genuine": v.num_genuine,
            "num_impostor": v.num_impostor,
        },
        "open_set": o
        and {
            "points": [point._asdict() for point in o.points],
            "num_mated": o.num_mated,
            "num_non_mated": o.num_non_mated,
            "draws": o.draws,
        },
    }


def metrics(
    splits: Splits, scores: Scores, run: RunRecord, history: Sequence[Mapping[str, Any]] | None = None
) -> dict[str, Any]:
    """The values of metrics.json, which `reid.report.compare` reads; the file stands alone, without the run's folder.

    Scores are fractions in [0, 1], unrounded; seconds; images a second. image_passes counts the images that training
    saw, the "images" of the last epoch in `history`: 0 of an empty history, None without one. "queries" holds a list
    a key over the Q queries in their order, fractions rounded to 6 digits to keep the file small, None where the query
    has no match; first_rank counts from 1. "images" names the query and gallery images, whatever folder they lie in
    (see `images_digest`).
    """
    found = scores.valid.tolist()

    def rounded(values: np.ndarray) -> list[float | None]:
        return [round(value, 6) if has else None for value, has in zip(values.tolist(), found, strict=True)]

    passes = history[-1]["images"] if history else 0
    return {
        "command": run.command,
        "dataset": splits.name,
        "official_split": splits.official_split,
        "rank1": float(scores.rank1),
        "rank5": float(scores.rank5),
        "rank10": float(scores.rank10),
        "mAP": float(scores.mAP),
        "mAP_trapezoid": float(scores.mAP_trapezoid),
        "mINP": float(scores.mINP),
        "num_query": int(scores.num_query),
        "num_gallery": int(scores.num_gallery),
        "num_query_without_match": int(scores.num_query_without_match),
        "image_passes": None if history is None else passes,
        "train_seconds": run.train_seconds,
        "embed_images_per_second": run.embed_images_per_second,
        "backbone": run.backbone,
        "input_size": list(run.input_size),
        "parameters": run.parameters,
        "multiply_adds": run.multiply_adds,
        "fingerprint": run.fingerprint,
        "git_revision": run.git_revision,
        "recipe": dict(run.recipe),
        "trained_on": None if run.trained_on is None else dict(run.trained_on),
        "images": {"query": images_digest(splits.query), "gallery": images_digest(splits.gallery)},
        "queries": {
            "pid": [int(sample.pid) for sample in splits.query],
            "camid": [int(sample.camid) for sample in splits.query],
            "average_precision": rounded(scores.average_precision),
            "trapezoid": rounded(scores.trapezoid),
            "inverse_penalty": rounded(scores.inverse_penalty),
            "first_rank": [rank if rank > 0 else None for rank in scores.first_rank.tolist()],
        },
    }


def metrics_text(values: Mapping[str, Any]) -> str:
    """JSON with a line a key, so that the lists of "queries" take a line each. Ends in a newline."""

    def write(value: Any, margin: str) -> str:
        if not isinstance(value, Mapping):
            return json.dumps(value)  # ASCII: a command line may hold any bytes
        lines = [f"{margin}{json.dumps(key)}: {write(inner, margin + '  ')}" for key, inner in value.items()]
        return "\n".join(["{", ",\n".join(lines), margin[2:] + "}"])

    return write(values, "  ") + "\n"


def images_digest(samples: Sequence[Sample]) -> str:
    """16 hex digits of the samples in their order: of their pids, camids and the names of their files, not folders."""
    named = [[Path(sample.path).name, int(sample.pid), int(sample.camid)] for sample in samples]
    return hashlib.sha256(json.dumps(named).encode()).hexdigest()[:16]
