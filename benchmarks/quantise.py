"""What each step of int8 costs in retrieval, and what mends it: a ladder, one change a row.

    python benchmarks/quantise.py --weights weights/scgnet_s.safetensors --dataset cuhk03np_detected --data-root DIR

Every row is embedded anew, query and gallery, and held against PyTorch's float32: cosine of the two embeddings of a
crop, Rank-1 and mAP of the row's own, and of its queries on PyTorch's gallery. Those of rknn are by the compiler's
simulator, where there is the compiler (make rknn-env).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from reid.core.images import read_images
from reid.core.types import ReidError
from reid.export.proof import Reference, export
from reid.export.request import Request, Steps
from reid.export.rknn import export_rknn
from reid.export.rockchip import compiler
from reid.models.exported import FORMATS
from reid.models.model import load_model

LADDER = {
    "onnx fp32": Request("onnx"),
    "onnx fp16": Request("onnx", "fp16"),
    "onnx int8: a scale a layer": Request("onnx", "int8", steps=Steps(False, None, False)),
    "+ a scale a channel": Request("onnx", "int8", steps=Steps(True, None, False)),
    "+ ranges to the percentile 99.999": Request("onnx", "int8", steps=Steps(mended=False)),
    "+ bias correction": Request("onnx", "int8"),
    "openvino fp32": Request("openvino"),
    "openvino fp16": Request("openvino", "fp16"),
    "openvino int8": Request("openvino", "int8"),
    "rknn fp16": Request("rknn", "fp16"),
    "rknn int8: ranges that hold all": Request("rknn", "int8"),
    "rknn int8: ranges of least squared error": Request("rknn", "int8"),
}
RKNN = {"rknn int8: ranges that hold all": "normal"}  # the compiler's algorithm, where it is not ours


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--dataset", default="synthetic")
    parser.add_argument("--data-root", default="data")
    parser.add_argument("--crops", type=int, default=256, help="training crops that the ranges are of")
    parser.add_argument("--only", nargs="+", default=[""], help="rows whose name holds one of these words")
    parser.add_argument("--features", type=Path, help="a .npy file that keeps PyTorch's embeddings between calls")
    args = parser.parse_args()
    splits, model = datasets.read(args.dataset, args.data_root), load_model(args.weights)
    chosen = np.random.default_rng(0).permutation(len(splits.train))[: args.crops]
    crops = read_images([splits.train[i].path for i in chosen], model.input_size)
    reference = Reference(model, splits.query, splits.gallery, splits.name, save=args.features)
    rank1, mean = 100 * reference.row.rank1, 100 * reference.row.mAP
    print(f"{Path(args.weights).name}: PyTorch fp32 Rank-1 {rank1:.2f}, mAP {mean:.3f}")
    print("| | cosine, mean | least | Rank-1 | mAP | delta mAP | its queries on PyTorch's gallery |")
    print("|---|---|---|---|---|---|---|", flush=True)
    rows = {name: request for name, request in LADDER.items() if any(word in name for word in args.only)}
    try:
        compiler()
    except ReidError as error:
        print(f"without rknn: {error}", file=sys.stderr)
        rows = {name: request for name, request in rows.items() if request.format != "rknn"}
    for name, request in rows.items():
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / f"model{FORMATS[request.format].suffix}"
            if request.format == "rknn":
                few = crops[: FORMATS["rknn"].crops]
                proof, _ = export_rknn(
                    model,
                    file,
                    "rk3588",
                    request.precision,
                    calibration=few,
                    reference=lambda: reference,
                    algorithm=RKNN.get(name, "mmse"),
                )
            else:
                proof = export(model, file, request, crops=crops, reference=lambda: reference)
        mixed = 100 * proof.mixed.mAP - mean
        print(
            f"| {name} | {proof.cosine_mean:.5f} | {proof.cosine_min:.5f} | {100 * proof.exported.rank1:.2f} | "
            f"{100 * proof.exported.mAP:.3f} | {proof.delta:+.3f} | {mixed:+.3f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
