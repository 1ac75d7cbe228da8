"""`import`: models of other programs become models of this one."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

from reid.cli.readers import Readers
from reid.core.types import ReidError


def import_command(args: argparse.Namespace) -> None:
    """Takes a model of another program once and writes a model of this one, with a whole card: every command that takes
    --weights takes it.

    FILE is a PyTorch checkpoint of a network that is known here (nothing in it is run: only tensors and plain values
    are read), or anybody's network as ONNX.
    """
    from reid.core.files import atomic_file
    from reid.models.checkpoint import file_digest
    from reid.models.exported import module_of

    path, output = Path(args.file), Path(args.output)
    if output.exists():
        raise ReidError(f"{output} exists already: delete it, or name another file")
    if not path.is_file():
        raise ReidError(f"no file at {path}")
    source = {"file": path.name, "sha256": file_digest(path), "licence": args.licence, "trained_on": args.trained_on}
    if path.suffix == ".onnx":
        if output.suffix != ".onnx":
            raise ReidError(f"--output {output}: an ONNX network becomes a file that ends in .onnx")
        from reid.export.adopt import Network, card_of

        taken = taken_of(args, path)
        network = Network(path, taken, args.vector)
        made = network.wrapped(taken)
        card = card_of(network, taken, made, source)
        with atomic_file(output) as temporary:
            module_of("onnx").save(made, temporary, json.dumps(card))
    elif path.suffix == ".xml":
        raise ReidError(f"{path}: an OpenVINO network is not read yet: give the ONNX file that it was made from")
    else:
        if output.suffix != ".safetensors":
            raise ReidError(f"--output {output}: a PyTorch network becomes a file that ends in .safetensors")
        save_network(args, path, output, source)
    print(f"{output}: {output.stat().st_size:,} bytes")


def save_network(args: argparse.Namespace, path: Path, output: Path, source: dict[str, Any]) -> None:
    """A checkpoint's network, found out by its tensors, as a model of this program."""
    from reid.models import checkpoint, foreign
    from reid.models.foreign.tensors import check_finite, read_tensors
    from reid.models.model import save_model

    if checkpoint.kind(path) is not None:
        raise ReidError(f"{path} is a {checkpoint.kind(path)} of this program already: use it as it is")
    tensors = read_tensors(path)
    check_finite(path, tensors)
    found = foreign.recognise(tensors, args.network, source=str(path))
    changes: dict[str, Any] = {"input_size": args.input_size} if args.input_size else {}
    if args.mean or args.std or args.normalise == "none" or args.channels == "BGR" or args.range or args.layout:
        raise ReidError(
            f"{found.family}'s networks take RGB by ImageNet's mean and deviation, which is in the model: leave "
            "--channels, --range, --normalise, --mean, --std and --layout out"
        )
    found = dataclasses.replace(found, flip=found.flip or args.flip, **changes)
    save_model(foreign.model_of(found, source), output)
    height, width = found.input_size
    print(f"{path}: {found.family}'s {found.name}, images of {height}x{width}")


def taken_of(args: argparse.Namespace, path: Path) -> Any:
    """What the network takes, by the options. ReidError asks for what is not said."""
    from reid.export.adopt import Taken, asked, imagenet

    mean, std = args.mean, args.std
    if args.normalise and (mean or std):
        raise ReidError("--normalise and --mean, --std exclude one another: give the one or the others")
    if args.normalise == "none":
        mean, std = (0.0, 0.0, 0.0), (1.0, 1.0, 1.0)
    elif args.normalise and args.channels and args.range:
        mean, std = imagenet(args.channels, args.range)
    taken = Taken(args.channels, args.range, mean, std, args.layout, args.input_size, args.flip)
    asked(path, taken)
    return taken


def add_import(parser: argparse.ArgumentParser, readers: Readers) -> None:
    def numbers(text: str) -> tuple[float, ...]:
        values = tuple(float(part) for part in text.split(","))
        if len(values) != 3:
            raise ValueError(text)
        return values

    def size(text: str) -> tuple[int, int]:
        height, width = (int(part) for part in text.lower().split("x"))
        if not (1 <= height <= 4096 and 1 <= width <= 4096):
            raise ValueError(text)
        return height, width

    parser.add_argument("file", metavar="FILE", help="a checkpoint (.pth, .pth.tar, .pt, .safetensors), or .onnx")
    parser.add_argument("--output", metavar="MODEL", required=True, help="the file to write")
    parser.add_argument("--channels", choices=("RGB", "BGR"), help="the order that the network takes them in")
    parser.add_argument("--range", choices=("0-1", "0-255", "+-1"), help="of the pixels that the network takes")
    parser.add_argument(
        "--normalise", choices=("imagenet", "none"), help="by ImageNet's mean and deviation, in that range and order"
    )
    parser.add_argument("--mean", type=numbers, metavar="A,B,C", help="subtracted, in that range and order")
    parser.add_argument("--std", type=numbers, metavar="A,B,C", help="divided by afterwards")
    parser.add_argument("--layout", choices=("NCHW", "NHWC"), help="(default: as the file's shapes tell)")
    parser.add_argument("--input-size", type=size, metavar="HxW", help="(default: as the file's shapes tell)")
    parser.add_argument("--flip", action="store_true", help="add the vectors of the mirror images (default: no)")
    parser.add_argument("--vector", metavar="NAME", help="the output that is the embedding, where there are several")
    parser.add_argument("--network", metavar="NAME", help="of a checkpoint whose tensors fit several networks")
    parser.add_argument("--licence", metavar="TEXT", help="that the model is under, for the card")
    parser.add_argument("--trained-on", metavar="TEXT", help="what it was trained on, for the card")
