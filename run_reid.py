#!/usr/bin/env python3
"""Person re-identification: train, evaluate, compare, index, search.

    python run_reid.py                                    the main job on people that the program draws itself
    python run_reid.py --dataset market1501 --data-root DIR
    python run_reid.py COMMAND --help                     train, evaluate, compare, index, search, check-data, pack,
                                                          pretrain

The main job reads and checks a data set, trains by its recipe (configs/), embeds query and gallery, evaluates, builds
a searchable gallery and writes a report. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import fcntl
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

import datasets
from datasets.doctor import examine, find_bad
from reid import config as recipes
from reid.files import write_json, write_text
from reid.types import ReidError, Sample, Splits

if TYPE_CHECKING:  # torch and faiss take seconds to import: --help and check-data do without
    from reid.config import Config, PretrainConfig
    from reid.evaluate import Scores
    from reid.extract import Embedder
    from reid.gallery import Gallery
    from reid.model import ReidModel
    from reid.train import Trained

CONFIGS = Path(__file__).parent / "configs"
DEFAULT_WEIGHTS = Path(__file__).parent / "weights" / "scgnet_s.safetensors"
IMAGE_SUFFIXES = {".jpg", ".jpeg", ".png", ".bmp", ".webp"}


# ---- the commands


def main_job(args: argparse.Namespace) -> None:
    """Data -> training -> embeddings -> scores -> gallery -> report."""
    with in_turn():
        splits = read_data(args)
    config = read_recipe(args)
    output = Path(args.output or f"runs/{args.dataset}-{config.backbone}")
    with claimed(output, run_of("training", splits, args, config), config) as facts:
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
        query, gallery, scores = score(embedder, splits, output, facts)
        if trained:
            keep_scores(embedder.model, trained.path, splits, scores)
        build_gallery(output / "gallery", embedder, Path(weights), splits.gallery, gallery)
        report(embedder, splits, scores, query, gallery, output, args, facts, trained)
        print(f"searchable gallery: {output}/gallery\nreport: {output}/report.md")


def train_command(args: argparse.Namespace) -> None:
    """Trains by a recipe and writes OUTPUT/model.safetensors."""
    with in_turn():
        splits = read_data(args)
    config = read_recipe(args)
    output = Path(args.output or f"runs/{args.dataset}-{config.backbone}")
    with claimed(output, run_of("training", splits, args, config), config):
        print(f"model: {train_on(splits, config, output, args)[1].path}")


def evaluate_command(args: argparse.Namespace) -> None:
    """Scores a model on a data set's query and gallery and writes the report."""
    splits = read_data(args)
    output = Path(args.output or f"runs/evaluate-{args.dataset}-{Path(args.weights).stem}")
    with claimed(output, run_of("evaluate", splits, args)) as facts:
        splits = check_images(splits, output, args.skip_bad, ("query", "gallery"))
        embedder = load_embedder(args.weights, args)
        query, gallery, scores = score(embedder, splits, output, facts)
        report(embedder, splits, scores, query, gallery, output, args, facts)
        print(f"report: {output}/report.md")


def compare_command(args: argparse.Namespace) -> None:
    """Prints finished runs side by side, with bootstrap intervals and their differences to the first."""
    from reid.compare import as_markdown, as_text, compare, read_results

    compared = compare(read_results(args.runs), args.baseline)
    print(as_markdown(compared) if args.markdown else as_text(compared))


def index_command(args: argparse.Namespace) -> None:
    """Embeds images into a gallery: a data set's gallery split, or image files and folders."""
    if bool(args.images) == bool(args.dataset):
        raise ReidError("index takes either image files and folders, or --dataset NAME")
    samples: Sequence[Sample | Path] = read_data(args).gallery if args.dataset else find_images(args.images)
    paths = [os.path.abspath(s.path if isinstance(s, Sample) else s) for s in samples]
    weights = Path(args.weights or default_weights())
    embedder = load_embedder(weights, args)
    gallery = open_gallery(Path(args.gallery), embedder)
    new = [i for i, path in enumerate(paths) if gallery is None or path not in gallery]
    bad = find_bad(paths[i] for i in new)
    if bad:
        refuse_or_tell(bad, args.skip_bad)
        new = [i for i in new if paths[i] not in bad]
    if gallery is None:
        gallery = create_gallery(Path(args.gallery), embedder, weights)
    scratch = gallery.path.with_name(f".{gallery.path.name}-embedding") / "new.npy"  # an interrupted index goes on here
    vectors = embedder.embed([paths[i] for i in new], save=scratch, progress=True)
    chosen = [samples[i] for i in new]
    gallery.add(
        vectors,
        [paths[i] for i in new],
        [s.pid if isinstance(s, Sample) else None for s in chosen],
        [s.camid if isinstance(s, Sample) else None for s in chosen],
    )
    shutil.rmtree(scratch.parent, ignore_errors=True)
    print(f"gallery {args.gallery}: {len(new)} images added, {len(gallery)} in all")


def search_command(args: argparse.Namespace) -> None:
    """Finds the images of a gallery that are nearest to one image."""
    from reid.gallery import Gallery
    from reid.pictures import Tile, draw_search

    gallery = Gallery.open(args.gallery)
    embedder = load_embedder(args.weights or gallery.model_path or default_weights(), args)
    gallery.check_model(embedder.fingerprint)
    ranking = gallery.search(embedder.embed([args.query]), args.top_k, exclude_camids=args.exclude_camera)
    found = [
        (gallery.entry(key), score)
        for key, score in zip(ranking.keys[0].tolist(), ranking.scores[0].tolist(), strict=True)
        if key >= 0
    ]
    if args.json:
        print(json.dumps([{"path": e.path, "score": s, "pid": e.pid, "camid": e.camid} for e, s in found], indent=2))
    else:
        print(f"{'rank':>4}  {'score':>6}  {'pid':>6}  {'camera':>6}  path")
        for rank, (entry, value) in enumerate(found, 1):
            pid, camid = ("-" if x is None else x for x in (entry.pid, entry.camid))
            print(f"{rank:4}  {value:6.3f}  {pid:>6}  {camid:>6}  {entry.path}")
    picture = Path(args.picture or f"search-{Path(args.query).stem}.png")
    draw_search(args.query, [Tile(e.path, s, e.pid, e.camid) for e, s in found], picture)
    print(f"picture: {picture}", file=sys.stderr if args.json else sys.stdout)


def check_data_command(args: argparse.Namespace) -> int:
    """Examines a data set: counts, broken files, identities and images where they should not be."""
    found = examine(read_data(args, warn=False))
    print(json.dumps(found.as_dict(), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.ok else 1


def pack_command(args: argparse.Namespace) -> None:
    """Writes a model as it is given away: half floats, without the classifier of its training identities."""
    from reid.model import load_model, save_model

    if Path(args.output).exists():
        raise ReidError(f"{args.output} exists already: delete it, or name another file")
    save_model(load_model(args.weights), args.output, classifier=False, half=True)
    print(f"{args.output}: {Path(args.output).stat().st_size:,} bytes")


def pretrain_command(args: argparse.Namespace) -> None:
    """Trains a backbone as a classifier on ImageNet, or a folder of its form, and writes OUTPUT/backbone.safetensors.

    DIR holds train/CLASS/ and val/CLASS/ with the images of each class. `train --pretrained FILE` starts from what it
    writes.
    """
    from reid import backbones
    from reid.pretrain import pretrain, read_folder

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


# ---- the steps that commands share


def first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started: the one that writes and tells."""
    return int(os.environ.get("RANK", "0")) == 0


@contextlib.contextmanager
def in_turn() -> Iterator[None]:
    """Of several processes the first does it, then the others, who find what it wrote."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    from reid import distributed

    with distributed.join().first_goes_first():
        yield


def read_data(args: argparse.Namespace, *, warn: bool = True) -> Splits:
    splits = datasets.read(args.dataset, args.data_root)
    for line in splits.warnings if warn and first_process() else ():
        print(f"warning: {line}", file=sys.stderr)
    return splits


def read_recipe(args: argparse.Namespace) -> Config:
    overrides = list(args.set)
    if args.backbone is not None:
        overrides.append(f"backbone={args.backbone}")
    if args.pretrained is not None:
        overrides.append(f"pretrained={json.dumps(args.pretrained)}")
    if args.holdout is not None:
        overrides.append(f"holdout={args.holdout}")
    config = recipes.load(args.config or CONFIGS / f"{args.dataset}.yaml", overrides)
    from reid import backbones

    backbones.get(config.backbone)
    return config


def train_on(splits: Splits, config: Config, output: Path, args: argparse.Namespace) -> tuple[Splits, Trained]:
    """Trains on what can be read of the data, alone or as one of torchrun's processes."""
    from reid.train import train

    with in_turn():
        splits = check_images(splits, output, args.skip_bad)
    return splits, train(splits.train, config, output, name=splits.name, device=args.device)


def check_images(
    splits: Splits, output: Path, skip_bad: bool, names: Sequence[str] = ("train", "query", "gallery")
) -> Splits:
    """Decodes every image once a run. Unreadable ones are an error, or with skip_bad left out and told."""
    from reid.data import identity

    paths = [sample.path for name in names for sample in getattr(splits, name)]
    record = output / "images.json"
    of = identity(paths)
    try:
        known = json.loads(record.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        known = {}
    if known.get("of") != of:
        known = {"of": of, "bad": find_bad(paths)}
        write_json(record, known)
    bad = known["bad"]
    if not bad:
        return splits
    line = refuse_or_tell(bad, skip_bad)
    train, query, gallery = (
        [s for s in samples if s.path not in bad] for samples in (splits.train, splits.query, splits.gallery)
    )
    return splits._replace(
        train=train,
        query=query,
        gallery=gallery,
        official_split=False if splits.official_split else splits.official_split,
        warnings=[*splits.warnings, line],
    )


def refuse_or_tell(bad: dict[str, str], skip_bad: bool) -> str:
    some = "; ".join(f"{path} {reason}" for path, reason in list(bad.items())[:3])
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    if not skip_bad:
        raise ReidError(f"{len(bad)} unreadable image(s): {some}{more}; mend them, or leave them out with --skip-bad")
    line = f"left out {len(bad)} unreadable image(s): {some}{more}"
    print(f"warning: {line}", file=sys.stderr)
    return line


def default_weights() -> Path:
    """The small model that comes with the program."""
    print(f"model: weights/{DEFAULT_WEIGHTS.name}, since no --weights is given", file=sys.stderr)
    return DEFAULT_WEIGHTS


def load_embedder(weights: str | Path, args: argparse.Namespace) -> Embedder:
    from reid.extract import Embedder
    from reid.model import load_model

    model = load_model(weights)
    wanted = getattr(args, "backbone", None)
    if wanted and model.card["architecture"]["backbone"] != wanted:
        raise ReidError(
            f"{weights} holds {model.card['architecture']['backbone']}, --backbone asks for {wanted}: "
            "leave --backbone out, or give other weights"
        )
    return Embedder(model, device=args.device)


def score(embedder: Embedder, splits: Splits, output: Path, facts: Facts) -> tuple[np.ndarray, np.ndarray, Scores]:
    """Embeds query and gallery into OUTPUT/features and evaluates them."""
    from reid.evaluate import evaluate

    parts = {}
    for name, samples in (("query", splits.query), ("gallery", splits.gallery)):
        file = output / "features" / f"{name}.npy"
        parts[name] = embedder.embed([s.path for s in samples], save=file, progress=True, desc=f"embedding {name}")
    if embedder.images_per_second is not None:
        facts.keep(embed_images_per_second=embedder.images_per_second)
    scores = evaluate(
        parts["query"],
        parts["gallery"],
        np.array([s.pid for s in splits.query]),
        np.array([s.pid for s in splits.gallery]),
        np.array([s.camid for s in splits.query]),
        np.array([s.camid for s in splits.gallery]),
        progress=True,
    )
    return parts["query"], parts["gallery"], scores


def keep_scores(model: ReidModel, path: Path, splits: Splits, scores: Scores) -> None:
    """Writes the scores into the card of the model file."""
    from reid.model import save_model

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


def create_gallery(folder: Path, embedder: Embedder, weights: Path) -> Gallery:
    """An empty gallery for this model's vectors, with a copy of the model."""
    from reid.gallery import Gallery

    return Gallery.create(
        folder,
        dimension=embedder.dimension,
        fingerprint=embedder.fingerprint,
        input_size=embedder.model.input_size,
        model=weights,
    )


def build_gallery(folder: Path, embedder: Embedder, weights: Path, samples: list[Sample], vectors: np.ndarray) -> None:
    gallery = open_gallery(folder, embedder)
    if gallery is None:
        gallery = create_gallery(folder, embedder, weights)
    if not len(gallery):
        gallery.add(vectors, [s.path for s in samples], [s.pid for s in samples], [s.camid for s in samples])


def report(
    embedder: Embedder,
    splits: Splits,
    scores: Scores,
    query: np.ndarray,
    gallery: np.ndarray,
    output: Path,
    args: argparse.Namespace,
    facts: Facts,
    trained: Trained | None = None,
) -> None:
    from reid.model import git_revision, multiply_adds
    from reid.report import RunFacts, summary_table, write_report

    model = embedder.model
    run = RunFacts(
        command=shlex.join(["python", "run_reid.py", *sys.argv[1:]]),
        backbone=model.card["architecture"]["backbone"],
        parameters=sum(p.numel() for name, p in model.named_parameters() if name != "head.classifier"),
        input_size=model.input_size,
        fingerprint=embedder.fingerprint,
        embed_images_per_second=facts.values.get("embed_images_per_second"),
        multiply_adds=multiply_adds(model),
        train_seconds=trained.seconds if trained else None,
        weights=args.weights,
        git_revision=git_revision(),
        recipe=model.card["recipe"],
    )
    table = summary_table(splits, scores)
    write_text(output / "scores.txt", table + "\n")
    write_report(output, splits=splits, scores=scores, query_features=query, gallery_features=gallery, run=run,
                 history=trained.history if trained else None)  # fmt: skip
    print(table)


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files: those named, and those in the named folders and below, sorted."""
    found: set[Path] = set()
    for place in map(Path, places):
        if not place.exists():
            raise ReidError(f"no image or folder at {place}")
        inside = place.rglob("*") if place.is_dir() else [place]
        images = [p for p in inside if p.is_file() and (p == place or p.suffix.lower() in IMAGE_SUFFIXES)]
        if not images:
            raise ReidError(f"no images in {place}: looked for {', '.join(sorted(IMAGE_SUFFIXES))} in it and below")
        found.update(images)
    return sorted(found)


class Facts:
    """What an output folder says of its run: OUTPUT/run.json."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self.file, self.values = file, values

    def keep(self, **values: Any) -> None:
        self.values |= values
        write_json(self.file, self.values)


def run_of(kind: str, splits: Splits, args: argparse.Namespace, config: Config | None = None) -> dict[str, Any]:
    """What makes a run on people this one and not another."""
    from reid.data import identity
    from reid.tensors import file_digest

    weights = getattr(args, "weights", None)
    return {
        "kind": kind,
        "dataset": splits.name,
        "data_root": splits.root,
        "data": identity([s.path for s in [*splits.train, *splits.query, *splits.gallery]]),
        "skip_bad": args.skip_bad,
        "weights": file_digest(weights) if weights else None,
        "recipe": recipes.as_dict(config) if config and not weights else None,
    }


@contextlib.contextmanager
def claimed(output: Path, now: dict[str, Any], config: Config | PretrainConfig | None = None) -> Iterator[Facts]:
    """The output folder, this process's alone for now; ReidError where it is of a different run.

    It is the same run where its kind, data, recipe and weights are, which `now` says; then work goes on where it was.
    `train` and the main job are of one kind: the one goes on where the other ended. Of several processes the first one
    claims it.
    """
    if not first_process():
        yield Facts(output / "run.json", {})
        return
    if output.exists() and not output.is_dir():
        raise ReidError(f"{output} is a file: give a folder with --output")
    output.mkdir(parents=True, exist_ok=True)
    facts = Facts(output / "run.json", now)
    with (output / ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ReidError(f"another process works in {output}: wait for it, or give another --output") from None
        if facts.file.exists():
            try:
                then = json.loads(facts.file.read_text(encoding="utf-8"))
            except ValueError:
                raise ReidError(f"{facts.file} is damaged: give another --output") from None
            refuse_other_run(now, then, output)
            facts.values = then
        elif {path.name for path in output.iterdir()} - {".lock"}:
            raise ReidError(f"{output} holds other files and no run of this program: give another --output")
        else:
            facts.keep()
            if config:
                write_text(output / "config.yaml", recipes.dump(config))
        yield facts


def refuse_other_run(now: dict[str, Any], then: dict[str, Any], output: Path) -> None:
    def flat(values: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in values.items() if k != "recipe"} | (values.get("recipe") or {})

    mine, theirs = flat(now), flat(then)
    changed = [key for key in mine if theirs.get(key) != mine[key]]
    if changed:
        told = ", ".join(f"{key} {theirs.get(key)!r} there, {mine[key]!r} now" for key in changed[:4])
        raise ReidError(f"{output} holds a different run ({told}): give another --output, or delete it")


# ---- arguments


def build_parser(command: str | None) -> argparse.ArgumentParser:
    """The parser of one command, or with None of the main job."""
    function, add_arguments = COMMANDS[command] if command else (main_job, add_main)
    parser = argparse.ArgumentParser(
        prog="run_reid.py" + (f" {command}" if command else ""),
        description=(__doc__ or "").strip() if not command else function.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_arguments(parser)
    parser.set_defaults(function=function)
    return parser


def add_data(parser: argparse.ArgumentParser, default: str | None = None) -> None:
    names = ", ".join(datasets.DATASETS)
    shown = f" (default: {default})" if default else ""
    parser.add_argument("--dataset", default=default, metavar="NAME", help=f"one of {names}{shown}")
    parser.add_argument("--data-root", default="data", metavar="DIR",
                        help="the data set's own folder, or the folder that holds it (default: data)")  # fmt: skip


def add_common(parser: argparse.ArgumentParser, *, images: bool = True) -> None:
    if images:
        parser.add_argument("--skip-bad", action="store_true", help="leave unreadable images out, and say which")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, ... (default: cuda where there is one)")


def add_recipe(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--config", metavar="FILE", help=f"the recipe (default: {default})")
    parser.add_argument("--backbone", metavar="NAME", help="scgnet_s, scgnet_m, scgnet_l, mobilenet_v2, "
                        "shufflenet_v2_x1_5, resnet50, osnet_x1_0 or osnet_x0_25 (default: the recipe's)")  # fmt: skip
    parser.add_argument("--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE",
                        help="change values of the recipe; the keys are those of the YAML file")  # fmt: skip


def add_training(parser: argparse.ArgumentParser) -> None:
    add_recipe(parser, "configs/DATASET.yaml")
    parser.add_argument("--pretrained", metavar="FILE", help="start from weights of the backbone (pretrain's, or "
                        "ImageNet's), or from a model of this program")  # fmt: skip
    parser.add_argument("--holdout", type=float, metavar="SHARE", help="keep that share of the training identities "
                        "apart and take the checkpoint that is best on them (default: the recipe's)")  # fmt: skip


def add_output(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument("--output", metavar="DIR", help=f"where everything is written (default: {default})")


def add_main(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "synthetic")
    add_training(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors; nothing is trained then")
    add_output(parser, "runs/DATASET-BACKBONE")
    add_common(parser)


def add_train(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "synthetic")
    add_training(parser)
    add_output(parser, "runs/DATASET-BACKBONE")
    add_common(parser)


def add_evaluate(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "synthetic")
    parser.add_argument("--weights", metavar="FILE", required=True, help="a trained model.safetensors")
    add_output(parser, "runs/evaluate-DATASET-WEIGHTS")
    add_common(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a copy of its metrics.json")
    parser.add_argument("--baseline", metavar="NAME", help="the run that the others are held against, by its name in "
                        "the table: its folder's or file's (default: the first)")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table and the runs' commands")


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files, and folders of them")
    add_data(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors (default: the small one that "
                        "comes with the program)")  # fmt: skip
    parser.add_argument("--gallery", metavar="DIR", required=True, help="made if absent; else new images are added")
    add_common(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", metavar="GALLERY", help="folder that index or the main job made")
    parser.add_argument("query", metavar="QUERY", help="image of one person")
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="how many images to show (default: 10)")
    parser.add_argument("--exclude-camera", type=int, metavar="N", help="leave images of that camera out of the search")
    parser.add_argument("--weights", metavar="FILE", help="the model (default: the gallery's own copy)")
    parser.add_argument("--picture", metavar="FILE", help="where the ranked list is drawn (default: search-QUERY.png)")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    add_common(parser, images=False)


def add_check_data(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "synthetic")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="MODEL", help="a trained model.safetensors")
    parser.add_argument("output", metavar="FILE", help="the file to write")


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", metavar="DIR", required=True, help="the folder that holds train/ and val/")
    add_recipe(parser, "configs/imagenet.yaml")
    add_output(parser, "runs/pretrain-BACKBONE")
    add_common(parser, images=False)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], Callable[[argparse.ArgumentParser], None]]] = {
    "train": (train_command, add_train),
    "evaluate": (evaluate_command, add_evaluate),
    "compare": (compare_command, add_compare),
    "index": (index_command, add_index),
    "search": (search_command, add_search),
    "check-data": (check_data_command, add_check_data),
    "pack": (pack_command, add_pack),
    "pretrain": (pretrain_command, add_pretrain),
}

SHARED_BY_PROCESSES = (None, "train", "pretrain")  # under torchrun the other commands run in its first process


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs a command; its exit code: 0 done, 1 problems found in the data, 2 a user's mistake, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    command = words.pop(0) if words and not words[0].startswith("-") else None
    if command is not None and command not in COMMANDS:
        print(f"error: unknown command {command!r}; choose one of {', '.join(COMMANDS)}, "
              "or none for the main job", file=sys.stderr)  # fmt: skip
        return 2
    args = build_parser(command).parse_args(words)
    if not first_process():
        if command not in SHARED_BY_PROCESSES:
            return 0
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (for as long as the process runs)
    try:
        return args.function(args) or 0
    except ReidError as error:
        where = "" if first_process() else f" (process {os.environ['RANK']})"
        print(f"error{where}: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        full = "; nothing that was whole is lost" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        where = f" ({error.filename})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}{full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        told = f": {stop}" if str(stop) else ""
        print(f"\ninterrupted{told}; the same command goes on from there", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
