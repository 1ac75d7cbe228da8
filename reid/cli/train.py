"""The main job, `train` and `pretrain`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.cli.data import check_images, check_name, check_scorable, read_data
from reid.cli.evaluate import embed_splits, report, score
from reid.cli.options import add_common, add_data, add_output, add_recipe, add_seeds, add_training
from reid.cli.readers import Readers
from reid.cli.runs import first_process, first_rank_first, load_embedder, model_name, run_lock, run_of, shipped
from reid.core.files import write_text
from reid.core.types import ReidError, Sample, Splits
from reid.training import config as recipes

if TYPE_CHECKING:
    from reid.gallery import Gallery
    from reid.models.embedder import Embedder
    from reid.retrieval.evaluate import Scores
    from reid.training.config import Config
    from reid.training.train import Trained


CONFIGS = shipped("configs")


def main_command(args: argparse.Namespace) -> None:
    """Data -> training -> embeddings -> scores -> gallery -> report; with --seeds once with each."""
    if args.seeds and args.weights:
        raise ReidError("--seeds are of training, and with --weights nothing is trained: leave one of them out")
    if args.weights:
        check_name(args)
        splits = read_data(args)
        return main_job(args, splits, None, Path(args.output or f"runs/{args.dataset}-{model_name(args.weights)}"))
    splits, runs = plan(args)
    for output, config in runs.values():
        main_job(args, splits, config, output)
    if args.seeds and first_process():
        from reid.report.results import MEASURES, read_results

        scores = np.array([np.nanmean(run.values, axis=1) for run in read_results([o for o, _ in runs.values()])])
        tell_seeds(runs, "percent", dict(zip(MEASURES, (100 * scores).T.tolist())), ".1f")


def main_job(args: argparse.Namespace, splits: Splits, config: Config | None, output: Path) -> None:
    with run_lock(output, run_of("training", splits, args, config, weights=args.weights), config) as facts:
        if (output / "metrics.json").exists():
            print(f"finished already, nothing to do: {output}/report.md")
            return print((output / "scores.txt").read_text(encoding="utf-8"))
        weights, trained = args.weights, None
        if config is None:
            splits = check_images(splits, output, args.skip_bad, ("query", "gallery"))
        else:
            check_scorable(splits)
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
    """Trains by a recipe and writes OUTPUT/model.safetensors; with --seeds a model of each, OUTPUT/seed-N/..."""
    (splits, runs), rows = plan(args), []
    for output, config in runs.values():
        with run_lock(output, run_of("training", splits, args, config), config):
            trained = train_on(splits, config, output, args)[1]
            print(f"model: {trained.path}")
            if first_process():
                rows.append(summary(trained, config))
    if args.seeds and first_process():
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        tell_seeds(runs, "minutes of training, loss of the last epoch, percent", columns, ".2f")


def summary(trained: Trained, config: Config) -> dict[str, float | None]:
    """What a training says of itself without the query and gallery: with a holdout the best score on it, percent."""
    history = trained.history
    found = {"minutes": trained.seconds / 60, "loss": history[-1]["loss"] if history else None}
    if config.holdout:
        best = max(history, key=lambda row: -1.0 if row["mAP"] is None else row["mAP"])  # the checkpoint that is kept
        found |= {"held-out Rank-1": 100 * best["rank1"], "held-out mAP": 100 * best["mAP"]}
    return found


def plan(args: argparse.Namespace) -> tuple[Splits, dict[int, tuple[Path, Config]]]:
    """The data, and by its seed the folder and the recipe of each run that is asked for.

    With --seeds the folders are claimed here once, so that one of another recipe is refused before hours are spent on
    those before it.
    """
    from reid.report.results import seed_folder

    check_name(args)
    config = read_recipe(args)
    output = Path(args.output or f"runs/{args.dataset}-{config.backbone}")
    if not args.seeds:
        with first_rank_first():
            return read_data(args), {config.seed: (output, config)}
    if any(override.partition("=")[0].strip() == "seed" for override in args.set):
        raise ReidError("--seeds and --set seed=N both give the seed: leave --set seed=N out")
    if len(set(args.seeds)) < len(args.seeds):
        raise ReidError(f"--seeds: expected different seeds, got {' '.join(map(str, args.seeds))}: give each once")
    if (output / "run.json").exists():
        raise ReidError(
            f"{output} holds a single run, and with --seeds the runs lie in {output}/seed-N: give another --output"
        )
    runs = {
        seed: (
            seed_folder(output, seed),
            recipes.from_dict(recipes.Config, recipes.as_dict(config) | {"seed": seed}, "--seeds"),
        )
        for seed in args.seeds
    }
    with first_rank_first():
        splits = read_data(args)
    for folder, recipe in runs.values():
        with run_lock(folder, run_of("training", splits, args, recipe), recipe):
            pass
    return splits, runs


def tell_seeds(
    runs: dict[int, tuple[Path, Config]],
    unit: str,
    columns: Mapping[str, Sequence[float | None]],
    form: str,
) -> None:
    """Prints the table of all seeds, which OUTPUT/seeds.txt keeps; see `seeds_table`."""
    from reid.report.compare_tables import seeds_table

    folder = next(iter(runs.values()))[0].parent
    table = seeds_table(list(runs), columns, form)
    write_text(folder / "seeds.txt", table + "\n")
    print(f"\n{folder} ({unit}):\n{table}")


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
    with run_lock(output, run, config):
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
    with first_rank_first():
        splits = check_images(splits, output.parent if args.seeds else output, args.skip_bad)  # once for all seeds
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
    from reid.gallery.add_images import create

    gallery = open_gallery(folder, embedder)
    if gallery is None:
        gallery = create(folder, embedder, weights)
    if not len(gallery):
        gallery.add(vectors, [s.path for s in samples], [s.pid for s in samples], [s.camid for s in samples])


def add_main(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_data(parser, readers, "synthetic")
    add_training(parser)
    add_seeds(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors; nothing is trained then")
    add_output(parser, "runs/DATASET-BACKBONE, with --weights runs/DATASET-WEIGHTS")
    add_common(parser)


def add_train(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_data(parser, readers, "synthetic")
    add_training(parser)
    add_seeds(parser)
    add_output(parser, "runs/DATASET-BACKBONE")
    add_common(parser)


def add_pretrain(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("--data-root", metavar="DIR", required=True, help="the folder that holds train/ and val/")
    add_recipe(parser, "configs/imagenet.yaml")
    add_output(parser, "runs/pretrain-BACKBONE")
    add_common(parser, images=False)
