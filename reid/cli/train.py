"""The main job, `train` and `pretrain`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

from reid.cli.data import check_images, read_data
from reid.cli.evaluate import embed_splits, report, score
from reid.cli.options import add_common, add_data, add_output, add_recipe, add_training
from reid.cli.readers import Readers
from reid.cli.runs import claimed, first_process, in_turn, load_embedder, run_of
from reid.core.types import Sample, Splits
from reid.training import config as recipes

if TYPE_CHECKING:
    import numpy as np

    from reid.gallery import Gallery
    from reid.models.embedder import Embedder
    from reid.retrieval.evaluate import Scores
    from reid.training.config import Config
    from reid.training.train import Trained



CONFIGS = Path(__file__).parents[2] / "configs"


def main_command(args: argparse.Namespace) -> None:
    """Data -> training -> embeddings -> scores -> gallery -> report."""
    config = read_recipe(args)  # first: its faults are told at once, a large data set takes a while
    with in_turn():
        splits = read_data(args)
    output = Path(args.output or f"runs/{args.dataset}-{config.backbone}")
    with claimed(output, run_of("training", splits, args, config, weights=args.weights), config) as facts:
        if (output / "metrics.json").exists():
            print(f"finished already, nothing to do: {output}/report.md")
            return print((output / "scores.txt").read_text(encoding="utf-8"))
        weights, trained = args.weights, None
        if weights:
            splits = check_images(splits, output, args.skip_bad)
        else:
            splits, trained = train_on(splits, config, output, args)
            weights = trained.path
        if not first_process():
            return
        embedder = load_embedder(weights, args)
        query, gallery = embed_splits(embedder, splits, output, facts)
        scores, _ = score(query, gallery, splits)
        if trained:
            keep_scores(trained.path, splits, scores)
        build_gallery(output / "gallery", embedder, Path(weights), splits.gallery, gallery)
        report(embedder, splits, scores, query, gallery, output, facts, weights=args.weights, trained=trained)
        print(f"searchable gallery: {output}/gallery\nreport: {output}/report.md")


def train_command(args: argparse.Namespace) -> None:
    """Trains by a recipe and writes OUTPUT/model.safetensors."""
    config = read_recipe(args)
    with in_turn():
        splits = read_data(args)
    output = Path(args.output or f"runs/{args.dataset}-{config.backbone}")
    with claimed(output, run_of("training", splits, args, config), config):
        print(f"model: {train_on(splits, config, output, args)[1].path}")


def pretrain_command(args: argparse.Namespace) -> None:
    """Trains a backbone as a classifier on ImageNet, or a folder of its form, and writes OUTPUT/backbone.safetensors.

    DIR holds train/CLASS/ and val/CLASS/ with the images of each class. `train --pretrained FILE` starts from what it
    writes.
    """
    from reid.models import backbones
    from reid.training.pretrain import pretrain, read_folder

    overrides = list(args.set)
    if args.backbone is not None:
        overrides.append(f"backbone={args.backbone}")
    config = recipes.load(args.config or CONFIGS / "imagenet.yaml", overrides, kind=recipes.PretrainConfig)
    backbones.get(config.backbone)
    folder = read_folder(args.data_root)
    output = Path(args.output or f"runs/pretrain-{config.backbone}")
    run = {"kind": "pretraining", "data_root": folder.root, "data": folder.identity, "recipe": recipes.as_dict(config)}
    with claimed(output, run, config):
        made = pretrain(folder, config, output, device=args.device)
    print(f"backbone: {made.path}, top-1 {made.top1:.1%}, top-5 {made.top5:.1%}")


def read_recipe(args: argparse.Namespace) -> Config:
    overrides = list(args.set)
    if args.backbone is not None:
        overrides.append(f"backbone={args.backbone}")
    if args.pretrained is not None:
        overrides.append(f"pretrained={json.dumps(args.pretrained)}")
    if args.holdout is not None:
        overrides.append(f"holdout={args.holdout}")
    config = recipes.load(args.config or CONFIGS / f"{args.dataset}.yaml", overrides)
    from reid.models import backbones

    backbones.get(config.backbone)
    return config


def train_on(splits: Splits, config: Config, output: Path, args: argparse.Namespace) -> tuple[Splits, Trained]:
    """Trains on what can be read of the data, alone or as one of torchrun's processes."""
    from reid.models.card import start_note
    from reid.training.train import train

    note = start_note(recipes.as_dict(config))
    if note and first_process():
        print(note)
    with in_turn():
        splits = check_images(splits, output, args.skip_bad)
    return splits, train(splits.train, config, output, name=splits.name, device=args.device)


def keep_scores(path: Path, splits: Splits, scores: Scores) -> None:
    """Writes the scores into the card of the model file."""
    from reid.models.model import load_model, save_model

    model = load_model(path)
    keys = ("rank1", "rank5", "rank10", "mAP", "mAP_trapezoid", "mINP")
    named = {"dataset": splits.name, "official_split": splits.official_split}
    model.card["scores"] = named | {key: getattr(scores, key) for key in keys}
    save_model(model, path)


def open_gallery(folder: Path, embedder: Embedder) -> Gallery | None:
    """The gallery in `folder`, which must be of this model; None where there is none."""
    from reid.gallery import Gallery

    if not (folder / "manifest.json").exists():
        return None
    gallery = Gallery.open(folder)
    gallery.check_model(embedder.fingerprint)
    return gallery


def build_gallery(folder: Path, embedder: Embedder, weights: Path, samples: list[Sample], vectors: np.ndarray) -> None:
    from reid.gallery.commands import create

    gallery = open_gallery(folder, embedder)
    if gallery is None:
        gallery = create(folder, embedder, weights)
    if not len(gallery):
        gallery.add(vectors, [s.path for s in samples], [s.pid for s in samples], [s.camid for s in samples])


def add_main(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_data(parser, readers, "synthetic")
    add_training(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors; nothing is trained then")
    add_output(parser, "runs/DATASET-BACKBONE")
    add_common(parser)


def add_train(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_data(parser, readers, "synthetic")
    add_training(parser)
    add_output(parser, "runs/DATASET-BACKBONE")
    add_common(parser)


def add_pretrain(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("--data-root", metavar="DIR", required=True, help="the folder that holds train/ and val/")
    add_recipe(parser, "configs/imagenet.yaml")
    add_output(parser, "runs/pretrain-BACKBONE")
    add_common(parser, images=False)
