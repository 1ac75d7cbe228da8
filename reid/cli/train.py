"""The main job, `train` and `pretrain`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.cli.data import all_of, check_names, check_scorable, check_sets, read_sets
from reid.cli.evaluate import embed_splits, report, score
from reid.cli.options import add_common, add_datasets, add_output, add_recipe, add_seeds, add_training
from reid.cli.readers import Readers
from reid.cli.runs import RunFile, first_process, first_rank_first, load_embedder, model_name, run_lock, run_of, shipped
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
        with first_rank_first():
            sets = read_sets(args)
        return main_job(args, sets, None, Path(args.output or f"runs/{'+'.join(sets)}-{model_name(args.weights)}"))
    sets, runs = plan(args)
    for output, config in runs.values():
        main_job(args, sets, config, output)
    for name in sets if args.seeds and first_process() else ():
        from reid.report.results import MEASURES, read_results

        found = read_results([places(output, sets)[name] for output, _ in runs.values()])
        scores = np.array([np.nanmean(run.values, axis=1) for run in found])
        of = "" if len(sets) == 1 else name
        tell_seeds(runs, "percent", dict(zip(MEASURES, (100 * scores).T.tolist())), ".1f", of)


def main_job(args: argparse.Namespace, sets: Mapping[str, Splits], config: Config | None, output: Path) -> None:
    where = places(output, sets)
    with run_lock(output, run_of("training", all_of(sets), args, config, weights=args.weights), config) as facts:
        if (output / ("metrics.json" if len(sets) == 1 else "scores.txt")).exists():
            print(f"finished already, nothing to do: {', '.join(f'{place}/report.md' for place in where.values())}")
            return print((output / "scores.txt").read_text(encoding="utf-8"))
        weights, trained = args.weights, None
        for splits in sets.values():
            check_scorable(splits)
        if config is None:
            sets = check_sets(sets, output, args.skip_bad, ("query", "gallery"))
        else:
            sets, trained = train_on(sets, config, output, args)
            weights = trained.path
        if not first_process():
            return
        embedder, scores = load_embedder(weights, args), {}
        for name, splits in sets.items():
            scores[name] = score_set(splits, where[name], embedder, Path(weights), facts, args, trained)
        if trained:
            keep_scores(trained.path, sets, scores)
        if len(sets) > 1:
            table = scores_table(scores)
            write_text(output / "scores.txt", table + "\n")
            print("\n" + table)


def places(output: Path, sets: Mapping[str, Splits]) -> dict[str, Path]:
    """Where the scores, gallery and report of each data set are: of one in the run's folder, else in folders of it."""
    return {name: output if len(sets) == 1 else output / name for name in sets}


def score_set(
    splits: Splits,
    output: Path,
    embedder: Embedder,
    weights: Path,
    facts: RunFile,
    args: argparse.Namespace,
    trained: Trained | None,
) -> Scores:
    """Scores a model on one data set; its gallery and report are written to `output`."""
    output.mkdir(exist_ok=True)
    query, gallery = embed_splits(embedder, splits, output, facts)
    scores, _ = score(query, gallery, splits)
    build_gallery(output / "gallery", embedder, weights, splits.gallery, gallery)
    report(embedder, splits, scores, query, gallery, output, facts, weights=args.weights, trained=trained)
    print(f"searchable gallery: {output}/gallery\nreport: {output}/report.md")
    return scores


def scores_table(scores: Mapping[str, Scores]) -> str:
    """A row a data set."""
    from reid.core.tables import aligned_table

    rows = [[name, *(f"{x:.1%}" for x in (s.rank1, s.rank5, s.rank10, s.mAP, s.mINP))] for name, s in scores.items()]
    return aligned_table(("data set", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"), rows)


def train_command(args: argparse.Namespace) -> None:
    """Trains by a recipe and writes OUTPUT/model.safetensors; with --seeds a model of each, OUTPUT/seed-N/..."""
    (sets, runs), rows = plan(args), []
    for output, config in runs.values():
        with run_lock(output, run_of("training", all_of(sets), args, config), config):
            trained = train_on(sets, config, output, args)[1]
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


def plan(args: argparse.Namespace) -> tuple[dict[str, Splits], dict[int, tuple[Path, Config]]]:
    """The data sets, and by its seed the folder and the recipe of each run that is asked for.

    With --seeds the folders are claimed here once, so that one of another recipe is refused before hours are spent on
    those before it.
    """
    from reid.report.results import seed_folder

    labels = check_names(args)
    config = read_recipe(args)
    output = Path(args.output or f"runs/{'+'.join(labels)}-{config.backbone}")
    if not args.seeds:
        with first_rank_first():
            return read_sets(args), {config.seed: (output, config)}
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
        sets = read_sets(args)
    for folder, recipe in runs.values():
        with run_lock(folder, run_of("training", all_of(sets), args, recipe), recipe):
            pass
    return sets, runs


def tell_seeds(
    runs: dict[int, tuple[Path, Config]],
    unit: str,
    columns: Mapping[str, Sequence[float | None]],
    form: str,
    dataset: str = "",
) -> None:
    """Prints the table of all seeds, of one of several data sets, which OUTPUT/seeds.txt or OUTPUT/seeds-DATASET.txt
    keeps; see `seeds_table`."""
    from reid.report.compare_tables import seeds_table

    folder = next(iter(runs.values()))[0].parent
    table = seeds_table(list(runs), columns, form)
    write_text(folder / (f"seeds-{dataset}.txt" if dataset else "seeds.txt"), table + "\n")
    print(f"\n{folder} ({dataset + ', ' if dataset else ''}{unit}):\n{table}")


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
    config = recipes.load(args.config or CONFIGS / f"{args.dataset[0]}.yaml", overrides)
    from reid.models import backbones

    backbones.get(config.backbone)
    return config


def train_on(
    sets: Mapping[str, Splits], config: Config, output: Path, args: argparse.Namespace
) -> tuple[dict[str, Splits], Trained]:
    """Trains on what can be read of the data sets, alone or as one of torchrun's processes."""
    from reid.models.card import start_note
    from reid.training.domains import join
    from reid.training.train import train

    note = start_note(recipes.as_dict(config))
    if note and first_process():
        print(note)
    with first_rank_first():
        left = check_sets(sets, output.parent if args.seeds else output, args.skip_bad)  # once for all seeds
    samples, domains = join({name: splits.train for name, splits in left.items()})
    trained = train(
        samples,
        config,
        output,
        name=all_of(left).name,
        domains=domains if len(left) > 1 else None,
        terms={splits.name: splits.terms for splits in left.values() if splits.terms},
        device=args.device,
    )
    return left, trained


def keep_scores(path: Path, sets: Mapping[str, Splits], scores: Mapping[str, Scores]) -> None:
    """Writes the scores into the card of the model file: of several data sets those of each by name."""
    from reid.models.model import load_model, save_model

    model = load_model(path)
    keys = ("rank1", "rank5", "rank10", "mAP", "mAP_trapezoid", "mINP")
    by_name = {
        name: {"dataset": splits.name, "official_split": splits.official_split}
        | {key: getattr(scores[name], key) for key in keys}
        for name, splits in sets.items()
    }
    model.card["scores"] = by_name if len(by_name) > 1 else next(iter(by_name.values()))
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
    add_datasets(parser, readers, "synthetic", "several are trained on together, and each is scored by itself")
    add_training(parser)
    add_seeds(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors; nothing is trained then")
    add_output(parser, "runs/DATASET-BACKBONE, with --weights runs/DATASET-WEIGHTS")
    add_common(parser)


def add_train(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_datasets(parser, readers, "synthetic", "several are trained on together")
    add_training(parser)
    add_seeds(parser)
    add_output(parser, "runs/DATASET-BACKBONE")
    add_common(parser)


def add_pretrain(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("--data-root", metavar="DIR", required=True, help="the folder that holds train/ and val/")
    add_recipe(parser, "configs/imagenet.yaml")
    add_output(parser, "runs/pretrain-BACKBONE")
    add_common(parser, images=False)
