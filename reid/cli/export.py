"""`pack` and `export`."""

from __future__ import annotations

import argparse
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.cli.data import read_data
from reid.cli.options import add_data, add_projection
from reid.cli.readers import Readers
from reid.cli.runs import model_name
from reid.core.types import ReidError, Sample

FEWEST_CROPS = 8  # of int8: the quantisers take so many at a time

if TYPE_CHECKING:
    from reid.export.proof import Proof, Reference
    from reid.export.request import Request
    from reid.models.model import ReidModel


def pack_command(args: argparse.Namespace) -> None:
    """Writes a model file for distribution: half floats, without the classifier of its training identities; on request
    with fewer branches, and with shorter embeddings by a projection fitted to a data set's training images.
    """
    from reid.models.model import load_model, save_model

    if Path(args.output).exists():
        raise ReidError(f"{args.output} exists already: delete it, or name another file")
    if (args.dim is None) != (args.dataset is None):
        raise ReidError("--dim and --dataset go together: shorter embeddings are fitted to its training images")
    model = reduced(args, load_model(args.weights), read_data(args).train if args.dataset else ())
    save_model(model, args.output, classifier=False, half=True)
    if "calibration" in model.card and "calibration" not in load_model(args.output).card:
        print("the calibration was of the whole floats: calibrate what was packed", file=sys.stderr)
    print(f"{args.output}: {Path(args.output).stat().st_size:,} bytes")


def export_command(args: argparse.Namespace) -> None:
    """Writes a model for where it runs, and proves on a data set what it finds there: FILE and FILE.json.

    The file takes RGB uint8 pixels (B, height, width, 3) of the model's input size and gives embeddings of unit length.
    int8 takes its ranges from training crops of the data set.
    """
    from reid.core.images import read_images
    from reid.export.proof import Reference, export
    from reid.export.request import Request
    from reid.models.exported import FORMATS
    from reid.models.model import load_model

    splits = read_data(args)
    model = reduced(args, load_model(args.weights), splits.train)
    precision = args.precision or FORMATS[args.format].precisions[0]
    request = Request(args.format, precision, args.batch, args.flip)
    name = model_name(args.weights) if precision == "fp32" else f"{model_name(args.weights)}-{precision}"
    output = Path(args.output or f"runs/{name}{FORMATS[args.format].suffix}")
    if output.exists():
        raise ReidError(f"{output} exists already: delete it, or name another file")
    count = FORMATS[args.format].crops if args.crops is None else args.crops
    if precision == "int8":
        check_crops(count, len(splits.train), args)
    chosen = np.random.default_rng(0).permutation(len(splits.train))[:count]
    crops = read_images([splits.train[i].path for i in chosen] if precision == "int8" else [], model.input_size)
    query, gallery = splits.query, splits.gallery
    if args.people is not None:
        query, gallery = of_people(query, gallery, args.people)
    known = output.with_name(f".{output.name}-proof")  # PyTorch's embeddings: an interrupted export goes on here

    def reference() -> Reference:
        return Reference(model, query, gallery, splits.name, flip=args.flip, save=known / "model.npy", progress=True)

    if args.format == "rknn":
        proof = compile_rknn(model, output, request, args.platform, crops, reference)
    else:
        proof = export(model, output, request, crops=crops, reference=reference)
    shutil.rmtree(known, ignore_errors=True)
    print(proof.table())
    if not proof.agrees:
        print(
            "its queries lose too much on the model's gallery: it has a fingerprint of its own, and galleries that "
            "it is to query are indexed with it",
            file=sys.stderr,
        )
    print(f"{output}: {output.stat().st_size:,} bytes; proof: {output}.json")


def check_crops(asked: int, there: int, args: argparse.Namespace) -> None:
    """ReidError where int8 would have too few training crops to take its ranges from."""
    least = max(FEWEST_CROPS, args.batch or 1)
    if asked < least:
        fewer = ", or a smaller --batch" if (args.batch or 1) > FEWEST_CROPS else ""
        raise ReidError(
            f"--crops {asked}: int8 takes its ranges from at least {least} crops, a batch's of them at a "
            f"time; give more{fewer}"
        )
    if there < least:
        raise ReidError(
            f"int8 takes its ranges from at least {least} training crops, {args.dataset} has {there}: give "
            "another --dataset"
        )


def reduced(args: argparse.Namespace, model: ReidModel, train: Sequence[Sample]) -> ReidModel:
    """With the branches and the length of embeddings that the command asks for."""
    if args.branches:
        model = model.with_branches(args.branches)
    if args.dim is not None:
        from reid.models.projection import shortened

        model = shortened(model, [sample.path for sample in train], args.dim, progress=True)
    return model


def of_people(query: Sequence[Sample], gallery: Sequence[Sample], count: int) -> tuple[list[Sample], list[Sample]]:
    """What shows `count` people, drawn from those that both have."""
    known = sorted({s.pid for s in query} & {s.pid for s in gallery})
    if not 1 <= count <= len(known):
        raise ReidError(f"--people {count}: expected 1 to {len(known)}, the people of query and gallery")
    drawn = {known[i] for i in np.random.default_rng(0).permutation(len(known))[:count]}
    return [s for s in query if s.pid in drawn], [s for s in gallery if s.pid in drawn]


def compile_rknn(
    model: ReidModel,
    output: Path,
    request: Request,
    platform: str,
    calibration: np.ndarray,
    reference: Callable[[], Reference],
) -> Proof:
    """A .rknn file, proved on the compiler's simulator."""
    from reid.export.rknn import export_rknn

    if request.flip or request.batch not in (None, 1):
        raise ReidError("a .rknn file takes one image a run, without its mirror image: leave --flip and --batch out")
    proof, card = export_rknn(model, output, platform, request.precision, calibration=calibration, reference=reference)
    cpu = sum(operator["target"] == "CPU" for operator in card["operators"])
    print(
        f"{platform}, {request.precision}: estimated cycles {card['estimated_cycles']:,}; {len(card['operators'])} "
        f"operators, {cpu} of them on the CPU; by the compiler's simulator, not on a board:"
    )
    return proof


def add_pack(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("weights", metavar="MODEL", help="a trained model.safetensors")
    parser.add_argument("output", metavar="FILE", help="the file to write")
    add_projection(parser)
    add_data(parser, readers)


def add_export(parser: argparse.ArgumentParser, readers: Readers) -> None:
    from reid.models.exported import FORMATS

    def batch(text: str) -> int | None:
        number = 0 if text == "dynamic" else int(text)
        if number < 1 and text != "dynamic":
            raise ValueError(text)
        return number or None

    parser.add_argument("--weights", metavar="FILE", required=True, help="a trained model.safetensors")
    parser.add_argument(
        "--format", choices=FORMATS, required=True, help="for onnxruntime, OpenVINO, libtorch or Rockchip's NPU"
    )
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="(default: fp32; rknn: fp16)")
    parser.add_argument("--platform", choices=("rk3588", "rk3566"), default="rk3588", help="for rknn (default: rk3588)")
    parser.add_argument(
        "--batch", type=batch, metavar="N|dynamic", help="images a batch (default: dynamic, any number)"
    )
    add_projection(parser)
    parser.add_argument(
        "--people", type=int, metavar="N", help="prove on N of the query people, drawn at random (default: all)"
    )
    parser.add_argument(
        "--flip",
        action="store_true",
        help="sum the features of image and mirror image inside, as the "
        "other commands do with .safetensors; twice the work",
    )
    parser.add_argument("--crops", type=int, metavar="N", help="for int8: training crops (default: 256; rknn: 32)")
    parser.add_argument("--output", metavar="FILE", help="(default: runs/WEIGHTS-PRECISION and the format's suffix)")
    add_data(parser, readers, "synthetic")
