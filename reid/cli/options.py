"""Arguments that several commands share."""

from __future__ import annotations

import argparse
from typing import Any

from reid.cli.readers import Readers
from reid.core.types import ReidError


def add_data(parser: argparse.ArgumentParser, readers: Readers, default: str | None = None) -> None:
    names = ", ".join(readers.DATASETS)
    shown = f" (default: {default})" if default else ""
    parser.add_argument("--dataset", default=default, metavar="NAME", help=f"one of {names}{shown}")
    add_data_root(parser)


def add_data_root(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--data-root",
        default="data",
        metavar="DIR",
        help="the data set's own folder, or the folder that holds it (default: data)",
    )


def add_datasets(parser: argparse.ArgumentParser, readers: Readers, default: str, what: str) -> None:
    """One data set or several; `reid.cli.data.read_sets` reads them."""
    names = ", ".join(readers.DATASETS)
    parser.add_argument(
        "--dataset",
        nargs="+",
        default=[default],
        metavar="NAME",
        help=f"one or more of {names} (default: {default}); {what}",
    )
    parser.add_argument(
        "--data-root",
        nargs="+",
        default=["data"],
        metavar="DIR",
        help="a data set's own folder, or "
        "the folder that holds it; one for all data sets, or one for each (default: data)",
    )


def add_common(parser: argparse.ArgumentParser, *, images: bool = True) -> None:
    if images:
        parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out, and say which")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def add_recipe(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--config", metavar="FILE", help=f"the recipe (default: {default})")
    parser.add_argument(
        "--backbone",
        metavar="NAME",
        help="scgnet_s, scgnet_m, scgnet_l, mobilenet_v2, "
        "shufflenet_v2_x1_5, resnet50, osnet_x1_0 or osnet_x0_25 (default: the recipe's)",
    )
    parser.add_argument(
        "--set",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change values of the recipe; the keys are those of the YAML file",
    )


def add_training(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "configs/DATASET.yaml, of several data sets the first one's")
    parser.add_argument(
        "--pretrained",
        metavar="FILE",
        help="start from weights of the backbone (pretrain's, or ImageNet's), or from a model of this program",
    )
    parser.add_argument(
        "--holdout",
        type=float,
        metavar="SHARE",
        help="keep that share of the training identities "
        "apart and take the checkpoint that is best on them (default: the recipe's)",
    )


def add_seeds(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seeds",
        type=int,
        nargs="+",
        metavar="N",
        help="run the recipe with each of these seeds, in "
        "OUTPUT/seed-N, and report their mean and standard deviation (default: its own seed, in "
        "OUTPUT)",
    )


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", metavar="DIR", help=f"where everything is written (default: {default})")


def add_rerank(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--rerank", action="store_true", help=what)
    parser.add_argument("--k1", type=int, metavar="K", help="re-ranking: nearest neighbours considered (default: 20)")
    parser.add_argument("--k2", type=int, metavar="K", help="re-ranking: nearest neighbours averaged (default: 6)")
    parser.add_argument(
        "--lambda",
        type=float,
        dest="lambda_",
        metavar="L",
        help="re-ranking: weight of the original distance, above 0 to 1 (default: 0.3)",
    )


def rerank_options(args: argparse.Namespace) -> dict[str, Any]:
    """Of --k1, --k2 and --lambda those that are given, which takes --rerank."""
    given = {"k1": args.k1, "k2": args.k2, "lambda_": args.lambda_}
    parameters = {name: value for name, value in given.items() if value is not None}
    if parameters and not args.rerank:
        raise ReidError("--k1, --k2 and --lambda belong to re-ranking: add --rerank, or leave them out")
    return parameters


def add_filter(parser: argparse.ArgumentParser) -> None:
    """Which images; each may be repeated, but for the times."""
    for name, metavar, what in (
        ("--camera", "N", "images of that camera only"),
        ("--exclude-camera", "N", "no images of that camera"),
        ("--pid", "P", "images of that person only"),
        ("--field", "NAME=VALUE", "images with that free field only"),
    ):
        kind = int if metavar == "N" else str
        parser.add_argument(name, type=kind, action="append", default=[], metavar=metavar, help=f"{what}; repeatable")
    parser.add_argument("--after", metavar="TIME", help="images captured at that time or later: ISO 8601, UTC")
    parser.add_argument("--before", metavar="TIME", help="images captured before that time")


def add_preset(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(
        name,
        choices=("exact", "compact", "large", "auto"),
        help="exact: every vector is looked at (a "
        "new gallery); compact: codes of a fortieth of their bytes in the vectors' place, for "
        "good; large: besides the vectors an index, tuned to --recall; auto: exact, and large from "
        "100,000 images on",
    )
    parser.add_argument(
        "--recall",
        type=float,
        default=0.99,
        metavar="R",
        help="large: the share of the nearest 10, 100 or 500 images that a search finds (default: 0.99)",
    )


def add_projection(parser: argparse.ArgumentParser) -> None:
    def parts(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument(
        "--branches",
        type=parts,
        metavar="1,2",
        help="keep only the MGN branches with these numbers of parts: faster, less accurate (default: all)",
    )
    parser.add_argument(
        "--dim",
        type=int,
        metavar="N",
        help="shorten embeddings to N values, by a PCA projection fitted "
        "to the training images of --dataset (default: all values)",
    )
