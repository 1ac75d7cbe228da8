"""An export and its proof: what the file's embeddings are to the model's, and what both find on a data set.

reference = Reference(model, query, gallery, "market1501")
proof = export(model, "model.onnx", Request("onnx"), crops=pixels, reference=lambda: reference)
print(proof.table())     # Rank-1, mAP and images a second of the model and of the file
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.files import folder_beside, write_json
from reid.core.tables import aligned_table
from reid.core.types import ReidError, Sample
from reid.export.request import Request
from reid.models.card import NO_FLIP, without_places
from reid.models.embedder import Embedder
from reid.models.encoder import Encoder
from reid.models.exported import FORMATS, Exported, module_of
from reid.models.model import ReidModel
from reid.retrieval.evaluate import evaluate

AGREES = 0.5  # points of mAP that its queries may lose on the model's own gallery, for their vectors to be compared


@dataclass(frozen=True)
class Row:
    """How well queries are answered, in [0, 1]."""

    rank1: float
    mAP: float
    images_per_second: float | None  # decoding included


@dataclass(frozen=True)
class Proof:
    dataset: str
    queries: int
    gallery: int
    cosine_mean: float  # of each crop's two embeddings, over query and gallery
    cosine_min: float
    model: Row  # in PyTorch
    exported: Row
    mixed: Row  # the exported model's queries, the gallery embedded by PyTorch
    digest: str  # of the exported model's embeddings

    @property
    def delta(self) -> float:
        """Points of mAP, exported less PyTorch's."""
        return 100 * (self.exported.mAP - self.model.mAP)

    @property
    def agrees(self) -> bool:
        return 100 * (self.model.mAP - self.mixed.mAP) <= AGREES

    def table(self) -> str:
        rows = []
        for name, row in (("PyTorch", self.model), ("exported", self.exported), ("its queries", self.mixed)):
            speed = "" if row.images_per_second is None else f"{row.images_per_second:.1f}"
            loss = "" if row is self.model else f"{100 * (row.mAP - self.model.mAP):+.3f}"
            rows.append([name, f"{100 * row.rank1:.2f}", f"{100 * row.mAP:.3f}", loss, speed])
        head = (self.dataset, "Rank-1", "mAP", "delta", "img/s")
        return (
            aligned_table(head, rows) + f"\npercent; {self.queries:,} queries, {self.gallery:,} gallery images; cosine "
            f"to PyTorch {self.cosine_mean:.6f}, at least {self.cosine_min:.6f}; its queries: on PyTorch's gallery"
        )


class Reference:
    """What the model finds in PyTorch: embedded once, for the proofs of any number of exports of it."""

    def __init__(
        self,
        model: ReidModel,
        query: Sequence[Sample],
        gallery: Sequence[Sample],
        dataset: str,
        *,
        flip: bool = False,
        save: Path | None = None,
        progress: bool = False,
    ) -> None:
        """flip: with the mirror image, as the exports have it. save: a .npy file where an interrupted call goes on."""
        self.dataset, self.count, self.progress = dataset, len(query), progress
        self.paths = [s.path for s in [*query, *gallery]]
        self.pids, self.camids = (np.array([s[i] for s in [*query, *gallery]]) for i in (1, 2))
        embedder = Embedder(model, flip=flip, device="cpu")
        self.vectors = embedder.embed(self.paths, save=save, progress=progress, desc="embedding in PyTorch")
        self.row = self._row(self.vectors, self.vectors, embedder.images_per_second)

    def prove(self, encoder: Encoder, *, timed: bool = True) -> Proof:
        """Embeds the same crops with another encoder and compares. timed: its speed says something of the file's."""
        n, embedder = self.count, Embedder(encoder)
        vectors = embedder.embed(self.paths, progress=self.progress, desc="embedding as exported")
        cosine = np.einsum("nd,nd->n", vectors, self.vectors, dtype=np.float64)
        return Proof(
            self.dataset,
            n,
            len(self.paths) - n,
            float(cosine.mean()),
            float(cosine.min()),
            self.row,
            self._row(vectors, vectors, embedder.images_per_second if timed else None),
            self._row(vectors, self.vectors, None),
            hashlib.sha256(vectors.tobytes()).hexdigest()[:8],
        )

    def _row(self, queries: np.ndarray, gallery: np.ndarray, speed: float | None) -> Row:
        n, (pids, camids) = self.count, (self.pids, self.camids)
        scores = evaluate(queries[:n], gallery[n:], pids[:n], pids[n:], camids[:n], camids[n:])
        return Row(scores.rank1, scores.mAP, speed)


def export(
    model: ReidModel, path: str | Path, request: Request, *, crops: np.ndarray, reference: Callable[[], Reference]
) -> Proof:
    """Writes the exported model to `path` and its proof beside it, to `path`.json.

    crops: RGB uint8 (N, H, W, 3) of training people, for int8. reference: what the model finds, asked for once the
    file is made, which then has a fingerprint by it (`fingerprint_of`). Raises ReidError.
    """
    path, format = Path(path), FORMATS[request.format]
    if path.suffix != format.suffix:
        raise ReidError(f"{path}: a file of the format {request.format} ends in {format.suffix}: name it so")
    if request.precision not in format.precisions:
        raise ReidError(
            f"{request.format} takes the precision {' or '.join(format.precisions)}, not {request.precision}"
        )
    if request.precision == "int8" and not len(crops):
        raise ReidError("int8 takes its ranges from training crops, the data set has none: give another --dataset")
    module = module_of(request.format)
    built = module.build(model, request, crops)
    with folder_beside(path) as folder:
        file = folder / path.name
        card = card_of(model, request)
        module.save(built, file, json.dumps(card))
        proof = reference().prove(Exported(file, module.load(file)))
        card["fingerprint"] = fingerprint_of(card, proof)
        card["export"]["proof"] = asdict(proof)
        module.save(built, file, json.dumps(card))
        parts = sorted(folder.iterdir(), key=lambda part: part == file)  # the file that names others comes last
        size = sum(part.stat().st_size for part in parts)
        told = {"fingerprint": card["fingerprint"], "bytes": size, **card["export"]}
        write_json(path.with_name(f"{path.name}.json"), told)  # before the model: where that is, its proof is, too
        for part in parts:
            os.replace(part, path.with_name(part.name))
    return proof


def card_of(model: ReidModel, request: Request) -> dict[str, Any]:
    """The card of an export: the model's and what was asked. A calibration is of embeddings with the mirror image."""
    card = {key: value for key, value in model.card.items() if request.flip or key != "calibration"}
    whole: dict[str, Any] = without_places(card)
    return whole | {
        "fingerprint": model.fingerprint + ("" if request.flip else NO_FLIP),
        "export": asdict(request) | {"dimension": model.dimension, "pixels": "RGB uint8 (B, height, width, 3)"},
    }


def fingerprint_of(card: Mapping[str, Any], proof: Proof) -> str:
    """Of an exported file: the model's where its queries keep the model's scores on the model's gallery (AGREES), and
    one of its own where they do not, so that no gallery compares the two."""
    own = f"-{card['export']['format']}-{card['export']['precision']}-{proof.digest}"
    return f"{card['fingerprint']}{'' if proof.agrees else own}"
