"""What of MGN is needed at test time: every choice of branches, and shorter embeddings by a PCA projection.

    OMP_NUM_THREADS=2 python benchmarks/projection.py --weights weights/scgnet_s.safetensors \\
        --dataset cuhk03np_detected --data-root DIR --features runs/projection

A row is a model: parameters, multiply-adds and time of one crop (OpenVINO, float32, batch 1, the best of many runs),
bytes of a vector (float32), Rank-1 and mAP on the data set, without the mirror image, as exports are by default.
Query, gallery and training images are embedded once: a model of fewer branches gives a part of the whole one's
embedding, and a projection is a product. --features keeps them for the next call.
"""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from reid.core.types import Splits
from reid.export import openvino
from reid.export.proof import card_of
from reid.export.request import Request
from reid.models.embedder import Embedder
from reid.models.exported import Exported
from reid.models.model import ReidModel, load_model, multiply_adds
from reid.models.projection import principal_axes
from reid.retrieval.evaluate import Scores, evaluate

DIMS = (1024, 512, 256, 128, 64)


def columns(model: ReidModel, parts: Sequence[int]) -> np.ndarray:
    """Places, in the whole embedding, of the values of the branches with so many parts."""
    dim = model.card["architecture"]["dim"]
    names = [name.partition("-")[0] in {f"b{count}" for count in parts} for name in model.head.names]
    return np.flatnonzero(np.repeat(names, dim))


def normalised(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def score(vectors: np.ndarray, splits: Splits) -> Scores:
    """vectors: of the query images and then those of the gallery."""
    n = len(splits.query)
    pids, camids = (np.array([s[i] for s in [*splits.query, *splits.gallery]]) for i in (1, 2))
    return evaluate(vectors[:n], vectors[n:], pids[:n], pids[n:], camids[:n], camids[n:])


def milliseconds(model: ReidModel, seconds: float) -> float:
    """Of one crop, in OpenVINO at float32; the best run, since other work only ever slows one down."""
    request = Request("openvino", batch=1)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.xml"
        openvino.save(openvino.build(model, request, np.empty(0)), file, json.dumps(card_of(model, request)))
        encoder = Exported(file, openvino.load(file))
        pixels = np.random.default_rng(0).integers(0, 256, (1, *model.input_size, 3), np.uint8)
        end, best = time.perf_counter() + seconds, np.inf
        while time.perf_counter() < end:
            began = time.perf_counter()
            encoder.encode(pixels)
            best = min(best, time.perf_counter() - began)
    return 1000 * best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--features", type=Path, required=True, help="the folder that keeps the embeddings")
    parser.add_argument(
        "--dims", type=int, nargs="*", default=list(DIMS), help=f"(default: {' '.join(map(str, DIMS))})"
    )
    parser.add_argument("--seconds", type=float, default=5.0, help="that each model is timed for (default: 5)")
    args = parser.parse_args()
    splits, model = datasets.read(args.dataset, args.data_root), load_model(args.weights)
    embedder, name = Embedder(model, flip=False, device="cpu"), Path(args.weights).stem
    train, test = (
        embedder.embed([s.path for s in part], save=args.features / f"{name}-{kind}.npy", progress=True)
        for kind, part in (("train", splits.train), ("test", [*splits.query, *splits.gallery]))
    )
    table = [count for count, _ in model.card["architecture"]["branches"]]
    choices = [parts for many in range(1, len(table) + 1) for parts in itertools.combinations(table, many)]
    head = ("branches", "values", "parameters", "multiply-adds", "ms", "bytes", "Rank-1", "mAP")
    print(f"| {' | '.join(head)} |\n{'|---' * len(head)}|")
    for parts in choices:
        kept = columns(model, parts)
        whole = model.with_branches(parts)
        rows, fitted_on = (normalised(vectors[:, kept]) for vectors in (test, train))
        for dim in (0, *(dim for dim in args.dims if dim < min(len(kept), len(fitted_on)))):
            candidate, vectors = whole, rows
            if dim:
                axes = principal_axes(fitted_on, dim)
                candidate, vectors = whole.with_projection(torch.from_numpy(axes)), normalised(rows @ axes)
            found = score(vectors, splits)
            weights = sum(x.numel() for x in candidate.parameters()) + (whole.dimension * dim)
            row = (
                ", ".join(map(str, parts)),
                f"{candidate.dimension:,}",
                f"{weights / 1e6:.2f} M",
                f"{multiply_adds(candidate) / 1e6:.1f} M",
                f"{milliseconds(candidate, args.seconds):.2f}",
                f"{4 * candidate.dimension:,}",
                f"{100 * found.rank1:.1f}",
                f"{100 * found.mAP:.2f}",
            )
            print(f"| {' | '.join(row)} |", flush=True)


if __name__ == "__main__":
    main()
