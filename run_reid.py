#!/usr/bin/env python3
"""Person re-identification: train, evaluate, compare, calibrate, index, search, cluster.

    python run_reid.py                                    the main job on people that the program draws itself
    python run_reid.py --dataset market1501 --data-root DIR
    python run_reid.py COMMAND --help                     train, evaluate, compare, calibrate, index, search, gallery,
                                                          cluster, check-data, pack, export, pretrain

The main job reads and checks a data set, trains by its recipe (configs/), embeds query and gallery, evaluates, builds
a searchable gallery and writes a report. Interrupted, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import contextlib
import csv
import errno
import fcntl
import glob
import io
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
from datasets.folder import camera_of
from reid import config as recipes
from reid.files import write_json, write_text
from reid.types import ReidError, Sample, Splits

if TYPE_CHECKING:  # torch and faiss take seconds to import: --help and check-data do without
    from scipy.sparse import csr_array

    from reid.calibration import Calibration
    from reid.config import Config, PretrainConfig
    from reid.evaluate import Scores
    from reid.export.proof import Proof, Reference
    from reid.export.request import Request
    from reid.extract import Embedder
    from reid.gallery import Gallery
    from reid.model import ReidModel
    from reid.protocol import Method
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
    with in_turn():
        splits = read_data(args)
    config = read_recipe(args)
    output = Path(args.output or f"runs/{args.dataset}-{config.backbone}")
    with claimed(output, run_of("training", splits, args, config), config):
        print(f"model: {train_on(splits, config, output, args)[1].path}")


def evaluate_command(args: argparse.Namespace) -> None:
    """Scores models on data sets' query and gallery and writes a report of each; of several, a table of all."""
    from reid.tables import aligned_table

    method = read_method(args)
    names = {model_name(weights): weights for weights in args.weights}
    if len(names) < len(args.weights):
        raise ReidError(f"--weights: expected files of different names, got {' '.join(args.weights)}: rename one")
    single = len(names) == len(args.dataset) == 1
    rows = []
    for name, weights in names.items():
        rows.append([name])
        for dataset in args.dataset:
            if single and args.output:
                output = embedded = Path(args.output)
            else:
                embedded = Path(args.output or "runs") / f"evaluate-{dataset}-{name}"
                output = embedded.with_name(embedded.name + method.suffix)
            scores = evaluate_one(weights, dataset, method, output, output if method.distractors else embedded, args)
            rows[-1].append(f"{scores.rank1:.1%} / {scores.mAP:.1%}")
    if not single:
        print("\n" + aligned_table(("Rank-1 / mAP", *args.dataset), rows))


def evaluate_one(
    weights: str, dataset: str, method: Method, output: Path, shared: Path, args: argparse.Namespace
) -> Scores:
    """shared: the plain comparison's folder, where embeddings are kept for all methods; or the output itself."""
    from reid.protocol import COSINE

    splits = read_data(args, dataset)
    if method.distractors:
        splits = splits._replace(gallery=[*splits.gallery, *datasets.distractors(splits)], official_split=None)
    with claimed(output, run_of("evaluate", splits, args, weights=weights, method=str(method))) as facts:
        with contextlib.ExitStack() as until_embedded:
            kept = facts
            if shared != output:
                plain = run_of("evaluate", splits, args, weights=weights, method=str(COSINE))
                kept = until_embedded.enter_context(claimed(shared, plain))
            splits = check_images(splits, shared, args.skip_bad, ("query", "gallery"))
            embedder = load_embedder(weights, args)
            query, gallery = embed_splits(embedder, splits, shared, kept)
            if method.multi_query:
                query = join_queries(query, splits, method.multi_query, embedder, shared, args.skip_bad)
        facts.keep(embed_images_per_second=kept.values.get("embed_images_per_second"))
        if method.expand:
            query, gallery = expanded(query, gallery, method)
        scores, bonus = score(query, gallery, splits, method)
        report(embedder, splits, scores, query, gallery, output, facts, weights=weights, method=method, bonus=bonus)
    print(f"report: {output}/report.md")
    return scores


def calibrate_command(args: argparse.Namespace) -> None:
    """Learns from a data set's query and gallery people when a model should answer "nobody", and writes it into it.

    The people must not be among those that the model was trained on. First a half of them, drawn at random, shows
    whether what is learnt holds on the other half; then all of them are learnt from.
    """
    from reid import tensors
    from reid.calibration import calibrate, check
    from reid.tables import aligned_table

    splits = read_data(args)
    output = Path(args.output or f"runs/calibrate-{args.dataset}-{model_name(args.weights)}")
    embedder = load_embedder(args.weights, args)
    if tensors.kind(args.weights) != "model":
        raise ReidError(f"{args.weights}: calibrate the .safetensors that it comes from, then export that with --flip")
    with claimed(output, run_of("calibrate", splits, args, fingerprint=embedder.fingerprint)):
        splits = check_images(splits, output, args.skip_bad, ("query", "gallery"))
        samples = [*splits.query, *splits.gallery]
        features = embedder.embed([s.path for s in samples], save=output / "features" / "all.npy", progress=True)
        pids, camids = ids_of(samples)
        model, name = embedder.fingerprint, splits.name
        checked = check(features, pids, camids, (0.005, 0.01, 0.05, 0.1), fingerprint=model, dataset=name)
        learnt_from = calibrate(features, pids, camids, fingerprint=model, dataset=name)
        write_json(output / "calibration.json", learnt_from.as_dict())
        state, card = tensors.read(args.weights, "model")
        tensors.write(args.weights, "model", state, card | {"calibration": learnt_from.as_dict()})
    print("false accepts of searches for people who are not in the gallery, learnt from a half of the people and\n"
          "measured on the other, with the 95 % bootstrap interval over people:")  # fmt: skip
    rows = [[f"{asked:.1%}", f"{x.mean:.1%}", f"{x.low:.1%} to {x.high:.1%}"] for asked, x in checked.items()]
    print(aligned_table(("asked", "achieved", "interval"), rows))
    print(f"probability: {learnt_from.method}, expected calibration error {learnt_from.ece_logistic:.4f} logistic, "
          f"{learnt_from.ece_isotonic:.4f} isotonic")  # fmt: skip
    print(f"calibrated on all {learnt_from.identities:,} people, {learnt_from.images:,} images: {args.weights}")


def compare_command(args: argparse.Namespace) -> None:
    """Prints finished runs side by side, with bootstrap intervals and their differences to the first."""
    from reid.compare import as_markdown, as_text, compare, read_results

    compared = compare(read_results(args.runs), args.baseline)
    print(as_markdown(compared) if args.markdown else as_text(compared))


def index_command(args: argparse.Namespace) -> None:
    """Embeds images into a gallery: a data set's gallery split, or image files, folders and tables of them."""
    from reid import distributed
    from reid.gallery import commands

    if bool(args.images) == bool(args.dataset):
        raise ReidError("index takes either image files, folders and tables, or --dataset NAME")
    world = distributed.join()
    images: list[commands.Image] = []
    if world.first:
        tables = [place for place in args.images if place.lower().endswith(".csv")]
        others = [place for place in args.images if place not in tables]
        images = [image for table in tables for image in commands.read_table(table)]
        images += [commands.Image(str(path)) for path in (find_images(others) if others else ())]
        if args.dataset:
            images = [commands.Image(*sample) for sample in read_data(args).gallery]
    weights = Path(args.weights or default_weights())
    args.device = args.device or distributed.pick_device(world)

    def unreadable(paths: list[str]) -> set[str]:
        bad = find_bad(paths)
        if bad:
            refuse_or_tell(bad, args.skip_bad)
        return set(bad)

    embedder = load_embedder(weights, args)
    print(commands.index(args.gallery, images, embedder, weights, unreadable, world, args.preset, args.recall))


def search_command(args: argparse.Namespace) -> None:
    """Finds the images of a gallery that are nearest to one person, or to each image of a folder."""
    from reid.gallery import Gallery, commands

    def load(weights: str | Path | None) -> Embedder:
        return load_embedder(weights or default_weights(), args)

    rerank = rerank_options(args)
    commands.search(
        Gallery.open(args.gallery), args, load, calibration_of, find_images, rerank if args.rerank else None
    )


def gallery_command(args: argparse.Namespace) -> int:
    """What a gallery holds, whether it is whole, and what leaves it."""
    from reid.gallery.commands import GALLERY

    return GALLERY[args.action](args)


def calibration_of(embedder: Embedder) -> Calibration | None:
    """What `calibrate` wrote into the model; None where it did not. ReidError where it is of another model."""
    from reid.calibration import Calibration

    values = embedder.card.get("calibration")
    if values is None:
        return None
    calibration = Calibration.from_dict(values)
    if calibration.fingerprint != embedder.fingerprint:
        raise ReidError(f"the model's calibration is of the model {calibration.fingerprint}, this is "
                        f"{embedder.fingerprint}: calibrate it again")  # fmt: skip
    return calibration


def cluster_command(args: argparse.Namespace) -> None:
    """Groups crops that nobody has labelled into people: OUTPUT/people.csv, people.html, and rest.csv.

    people.csv is a data set (--dataset folder --data-root OUTPUT/people.csv); rest.csv names the crops that are like
    too few others. Of a data set the query and gallery images are grouped, and held against its labels.
    """
    from reid.cluster import NOBODY, agreement, find_people
    from reid.data import identity
    from reid.pictures import Tile, write_people_page
    from reid.tables import aligned_table

    if bool(args.images) == bool(args.dataset):
        raise ReidError("cluster takes either image files and folders, or --dataset NAME")
    if args.dataset:
        splits = read_data(args)
        crops = [s for s in [*splits.query, *splits.gallery] if s.pid > 0]
    else:
        paths = [os.path.abspath(path) for path in find_images(args.images)]
        crops = [Sample(path, 0, camera_of(Path(path).stem) or 0) for path in paths]
    weights = args.weights or default_weights()
    output = Path(args.output)
    embedder = load_embedder(weights, args)
    run = {"kind": "cluster", "data": identity([s.path for s in crops]), "fingerprint": embedder.fingerprint}
    with claimed(output, run):
        bad = find_bad(s.path for s in crops)
        if bad:
            refuse_or_tell(bad, args.skip_bad)
            crops = [s for s in crops if s.path not in bad]
        features = embedder.embed([s.path for s in crops], save=output / "features" / "crops.npy", progress=True)
        given = {key: getattr(args, key) for key in ("distance", "min_images", "k1", "k2")}
        chosen = {key: value for key, value in given.items() if value is not None}
        labels = find_people(features, **chosen, progress=True)
        people = [np.flatnonzero(labels == label) for label in range(labels.max(initial=NOBODY) + 1)]
        rest = np.flatnonzero(labels == NOBODY)
        width = len(str(len(people)))
        named = [(crops[i].path, f"person-{n:0{width}}", crops[i].camid) for n, of in enumerate(people, 1) for i in of]
        write_csv(output / "people.csv", ("path", "pid", "camid"), named)
        write_csv(output / "rest.csv", ("path", "camid"), [(crops[i].path, crops[i].camid) for i in rest])
        strips = [
            (f"person {n}: {len(of)} crops, cameras {', '.join(map(str, sorted({crops[i].camid for i in of})))}",
             [Tile(crops[i].path, camid=crops[i].camid) for i in of])
            for n, of in enumerate(people, 1)
        ]  # fmt: skip
        told = f"{len(crops):,} crops: {len(people):,} people of {len(crops) - len(rest):,} crops, {len(rest):,} alone"
        write_people_page(strips, output / "people.html", title="People", text=told)
    print(told)
    if args.dataset:
        found = agreement(labels, np.array([s.pid for s in crops]))
        print(f"labels: {len({s.pid for s in crops}):,} people; adjusted Rand index {found.adjusted_rand:.3f}")
        rows = [["pairs", found.pair_precision, found.pair_recall, found.pair_f],
                ["B-cubed", found.bcubed_precision, found.bcubed_recall, found.bcubed_f]]  # fmt: skip
        shown = [[str(name), *(f"{value:.1%}" for value in values)] for name, *values in rows]
        print(aligned_table(("", "precision", "recall", "F"), shown))
    print(f"data set: {output}/people.csv\npage: {output}/people.html")


def check_data_command(args: argparse.Namespace) -> int:
    """Examines a data set: counts, broken files, identities and images where they should not be."""
    found = examine(read_data(args, warn=False))
    print(json.dumps(found.as_dict(), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.ok else 1


def pack_command(args: argparse.Namespace) -> None:
    """Writes a model as it is given away: half floats, without the classifier of its training identities; on request
    with fewer branches, and with shorter embeddings by a projection that is learnt on a data set's training images.
    """
    from reid.model import load_model, save_model

    if Path(args.output).exists():
        raise ReidError(f"{args.output} exists already: delete it, or name another file")
    if (args.dim is None) != (args.dataset is None):
        raise ReidError("--dim and --dataset go together: shorter embeddings are learnt on its training images")
    model = slimmed(args, load_model(args.weights), read_data(args).train if args.dataset else ())
    save_model(model, args.output, classifier=False, half=True)
    if "calibration" in model.card and "calibration" not in load_model(args.output).card:
        print("the calibration was of the whole floats: calibrate what was packed", file=sys.stderr)
    print(f"{args.output}: {Path(args.output).stat().st_size:,} bytes")


def export_command(args: argparse.Namespace) -> None:
    """Writes a model for where it runs, and proves on a data set what it finds there: FILE and FILE.json.

    The file takes RGB uint8 pixels (B, height, width, 3) of the model's input size and gives embeddings of unit length.
    int8 takes its ranges from training crops of the data set.
    """
    from reid.data import read_images
    from reid.export import FORMATS
    from reid.export.proof import Reference, export
    from reid.export.request import Request
    from reid.model import load_model

    splits = read_data(args)
    model = slimmed(args, load_model(args.weights), splits.train)
    precision = args.precision or FORMATS[args.format].precisions[0]
    request = Request(args.format, precision, args.batch, args.flip)
    name = model_name(args.weights) if precision == "fp32" else f"{model_name(args.weights)}-{precision}"
    output = Path(args.output or f"runs/{name}{FORMATS[args.format].suffix}")
    if output.exists():
        raise ReidError(f"{output} exists already: delete it, or name another file")
    count = FORMATS[args.format].crops if args.crops is None else args.crops
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
        print("its queries lose too much on the model's gallery: it has a fingerprint of its own, and galleries that "
              "it is to query are indexed with it", file=sys.stderr)  # fmt: skip
    print(f"{output}: {output.stat().st_size:,} bytes; proof: {output}.json")


def slimmed(args: argparse.Namespace, model: ReidModel, train: Sequence[Sample]) -> ReidModel:
    """With the branches and the length of embeddings that the command asks for."""
    if args.branches:
        model = model.with_branches(args.branches)
    if args.dim is not None:
        from reid.slim import shortened

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


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    held = io.StringIO(newline="")
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(header)
    writer.writerows(rows)
    write_text(file, held.getvalue().encode("utf-8", "backslashreplace").decode())  # paths may hold any bytes


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


def read_data(args: argparse.Namespace, dataset: str | None = None, *, warn: bool = True) -> Splits:
    splits = datasets.read(dataset or args.dataset, args.data_root)
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


def read_method(args: argparse.Namespace) -> Method:
    """How to compare, by the options of evaluate."""
    from reid.protocol import Method

    parameters = rerank_options(args)
    if (args.alpha is not None or args.expand_gallery) and not args.query_expansion:
        raise ReidError("--alpha and --expand-gallery are of the expansion: add --query-expansion K, or leave them out")
    if args.alpha is not None:
        parameters["alpha"] = args.alpha
    return Method(
        distractors=args.distractors,
        multi_query=args.multi_query,
        expand=args.query_expansion,
        expand_gallery=args.expand_gallery,
        rerank=args.rerank,
        **parameters,
    )


def rerank_options(args: argparse.Namespace) -> dict[str, Any]:
    """Of --k1, --k2 and --lambda those that are given, which takes --rerank."""
    given = {"k1": args.k1, "k2": args.k2, "lambda_": args.lambda_}
    parameters = {name: value for name, value in given.items() if value is not None}
    if parameters and not args.rerank:
        raise ReidError("--k1, --k2 and --lambda are of re-ranking: add --rerank, or leave them out")
    return parameters


def model_name(weights: str) -> str:
    """For a folder's name: the file's, or of a run's model.safetensors the run's."""
    path = Path(os.path.abspath(weights))
    return path.parent.name if path.stem == "model" else path.stem


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
    if first_process():
        print(f"model: weights/{DEFAULT_WEIGHTS.name}, since no --weights is given", file=sys.stderr)
    return DEFAULT_WEIGHTS


def load_embedder(weights: str | Path, args: argparse.Namespace) -> Embedder:
    from reid.extract import Embedder

    embedder = Embedder(weights, device=args.device)
    wanted, found = getattr(args, "backbone", None), embedder.card["architecture"]["backbone"]
    if wanted and found != wanted:
        raise ReidError(
            f"{weights} holds {found}, --backbone asks for {wanted}: leave --backbone out, or give other weights"
        )
    return embedder


def embed_splits(embedder: Embedder, splits: Splits, folder: Path, facts: Facts) -> tuple[np.ndarray, np.ndarray]:
    """Embeds query and gallery into FOLDER/features, or opens what is there."""
    query, gallery = (
        embedder.embed([s.path for s in samples], save=folder / "features" / f"{name}.npy", progress=True,
                       desc=f"embedding {name}")
        for name, samples in (("query", splits.query), ("gallery", splits.gallery))
    )  # fmt: skip
    if embedder.images_per_second is not None:
        facts.keep(embed_images_per_second=embedder.images_per_second)
    return query, gallery


def join_queries(
    query: np.ndarray, splits: Splits, pool: str, embedder: Embedder, folder: Path, skip_bad: bool
) -> np.ndarray:
    """Of each query all images of its person by its camera, joined as pool says."""
    from reid.protocol import pool_queries

    samples = datasets.multi_query(splits)
    checked = {s.path for s in [*splits.query, *splits.gallery]}
    bad = find_bad(s.path for s in samples if s.path not in checked)
    if bad:
        refuse_or_tell(bad, skip_bad)
        samples = [s for s in samples if s.path not in bad]
    file = folder / "features" / "multi-query.npy"
    rows = embedder.embed([s.path for s in samples], save=file, progress=True, desc="embedding multi-query")
    return pool_queries(pool, rows, *ids_of(samples), *ids_of(splits.query))


def expanded(query: np.ndarray, gallery: np.ndarray, method: Method) -> tuple[np.ndarray, np.ndarray]:
    from reid.expansion import expand_gallery, expand_queries

    larger = expand_gallery(gallery, k=method.expand, alpha=method.alpha) if method.expand_gallery else gallery
    return expand_queries(query, gallery, k=method.expand, alpha=method.alpha), larger


def score(
    query: np.ndarray, gallery: np.ndarray, splits: Splits, method: Method | None = None
) -> tuple[Scores, csr_array | None]:
    """Scores, and what re-ranking added to the similarities, where the method asks for it."""
    from reid.evaluate import evaluate

    bonus = None
    if method and method.rerank:
        from reid.rerank import rerank

        bonus = rerank(query, gallery, k1=method.k1, k2=method.k2, lambda_=method.lambda_, progress=True)
    (query_pids, query_camids), (gallery_pids, gallery_camids) = ids_of(splits.query), ids_of(splits.gallery)
    ids = query_pids, gallery_pids, query_camids, gallery_camids
    return evaluate(query, gallery, *ids, bonus=bonus, progress=True), bonus


def ids_of(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(pids, camids)"""
    return np.array([s.pid for s in samples]), np.array([s.camid for s in samples])


def keep_scores(path: Path, splits: Splits, scores: Scores) -> None:
    """Writes the scores into the card of the model file."""
    from reid.model import load_model, save_model

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


def report(
    embedder: Embedder,
    splits: Splits,
    scores: Scores,
    query: np.ndarray,
    gallery: np.ndarray,
    output: Path,
    facts: Facts,
    *,
    weights: str | None,
    trained: Trained | None = None,
    method: Method | None = None,
    bonus: csr_array | None = None,
) -> None:
    from reid.model import ReidModel, git_revision, multiply_adds
    from reid.protocol import COSINE
    from reid.report import RunFacts, summary_table, write_report

    card = dict(embedder.card)
    model = ReidModel(card | {"num_classes": 0})
    run = RunFacts(
        command=shlex.join(["python", "run_reid.py", *sys.argv[1:]]),
        backbone=card["architecture"]["backbone"],
        parameters=sum(p.numel() for p in model.parameters()),
        input_size=embedder.input_size,
        fingerprint=embedder.fingerprint,
        embed_images_per_second=facts.values.get("embed_images_per_second"),
        multiply_adds=multiply_adds(model),
        train_seconds=trained.seconds if trained else None,
        weights=weights,
        git_revision=git_revision(),
        recipe=card["recipe"],
    )
    table = summary_table(splits, scores)
    write_text(output / "scores.txt", table + "\n")
    write_report(output, splits=splits, scores=scores, query_features=query, gallery_features=gallery, run=run,
                 history=trained.history if trained else None, method=method or COSINE, bonus=bonus)  # fmt: skip
    print(table)


def find_images(places: Sequence[str]) -> list[Path]:
    """Image files: those named (also by patterns), and those in the named folders and below, sorted."""
    found: set[Path] = set()
    matched = [[p] if os.path.exists(p) else sorted(glob.glob(p, recursive=True)) or [p] for p in places]
    for place in (Path(path) for paths in matched for path in paths):
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


def run_of(
    kind: str,
    splits: Splits,
    args: argparse.Namespace,
    config: Config | None = None,
    *,
    weights: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What makes a run on people this one and not another."""
    from reid.data import identity
    from reid.tensors import file_digest

    return {
        "kind": kind,
        "dataset": splits.name,
        "data_root": splits.root,
        "data": identity([s.path for s in [*splits.train, *splits.query, *splits.gallery]]),
        "skip_bad": args.skip_bad,
        "weights": file_digest(weights) if weights else None,
        "recipe": recipes.as_dict(config) if config and not weights else None,
        **more,
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
    add_data_root(parser)


def add_data_root(parser: argparse.ArgumentParser) -> None:
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
    names = ", ".join(datasets.DATASETS)
    parser.add_argument("--dataset", nargs="+", default=["synthetic"], metavar="NAME",
                        help=f"one or more of {names} (default: synthetic)")  # fmt: skip
    add_data_root(parser)
    parser.add_argument("--weights", nargs="+", metavar="FILE", required=True, help="trained model.safetensors, one or "
                        "more; with several of these or of data sets a table of all is printed")  # fmt: skip
    parser.add_argument("--distractors", action="store_true", help="add the data set's further images of nobody to "
                        "the gallery (Market-1501's 500,000 in images/)")  # fmt: skip
    parser.add_argument("--multi-query", choices=("mean", "max"), help="join all images of a query's person by its "
                        "camera: their mean, or their maximum value by value")  # fmt: skip
    parser.add_argument("--query-expansion", type=int, default=0, metavar="K", help="join each query with its K "
                        "nearest gallery images")  # fmt: skip
    parser.add_argument("--alpha", type=float, metavar="A", help="of the expansion: weight each image by its "
                        "similarity to the power of A, 0 for the plain average (default: 3)")  # fmt: skip
    parser.add_argument("--expand-gallery", action="store_true", help="of the expansion: the gallery's images too")
    add_rerank(parser, "re-rank by k-reciprocal neighbours (Zhong et al. 2017)")
    add_output(parser, "runs/evaluate-DATASET-WEIGHTS; of several the folder that holds theirs: runs")
    add_common(parser)


def add_rerank(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("--rerank", action="store_true", help=what)
    parser.add_argument("--k1", type=int, metavar="K", help="of re-ranking: neighbours (default: 20)")
    parser.add_argument("--k2", type=int, metavar="K", help="of re-ranking: neighbours averaged over (default: 6)")
    parser.add_argument("--lambda", type=float, dest="lambda_", metavar="L", help="of re-ranking: weight of the "
                        "original distance, above 0 to 1 (default: 0.3)")  # fmt: skip


def add_calibrate(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "synthetic")
    parser.add_argument("--weights", metavar="FILE", required=True, help="a trained model.safetensors, to be written "
                        "to; galleries built with it from then on hold what was learnt")  # fmt: skip
    add_output(parser, "runs/calibrate-DATASET-WEIGHTS")
    add_common(parser)


def add_compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a copy of its metrics.json")
    parser.add_argument("--baseline", metavar="NAME", help="the run that the others are held against, by its name in "
                        "the table: its folder's or file's (default: the first)")  # fmt: skip
    parser.add_argument("--markdown", action="store_true", help="print a Markdown table and the runs' commands")


def add_index(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files, folders of them, patterns, and "
                        "CSV files with a column path and any of pid, camid, time (ISO 8601) and others")  # fmt: skip
    add_data(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors (default: the small one that "
                        "comes with the program)")  # fmt: skip
    parser.add_argument("--gallery", metavar="GALLERY", required=True, help="a folder, milvus://HOST:PORT/NAME, or "
                        "milvus+lite:PATH.db; made if absent, else new images are added")  # fmt: skip
    add_preset(parser, "--preset")
    add_common(parser)


def add_search(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gallery", metavar="GALLERY", help="what index or the main job made: a folder, or milvus...")
    parser.add_argument("query", nargs="*", metavar="QUERY", help="images of one person, joined into one search; with "
                        "--output images and folders of them, a search each")  # fmt: skip
    parser.add_argument("--key", type=int, action="append", default=[], metavar="N", help="instead of QUERY an image "
                        "in the gallery; may be repeated, of one person")  # fmt: skip
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="how many images to show (default: 10)")
    parser.add_argument("--max-false-accept", type=float, metavar="SHARE", help="answer 'nobody matches' unless an "
                        "image is as near as that share (0.01: one in a hundred) of the searches for people who are "
                        "not in the gallery come to one; needs a calibrated model")  # fmt: skip
    add_filter(parser)
    parser.add_argument("--group-by", metavar="WHAT", help="show the nearest image of each person (pid), or of each "
                        "value of a free field")  # fmt: skip
    add_rerank(parser, "order the 500 nearest by k-reciprocal neighbours among them (Zhong et al. 2017); scores stay "
               "cosine similarities")  # fmt: skip
    parser.add_argument("--weights", metavar="FILE", help="the model (default: the gallery's own copy)")
    parser.add_argument("--root", metavar="OLD=NEW", help="where images lie now that were indexed in the folder OLD")
    parser.add_argument("--picture", metavar="FILE", help="where the ranked list is drawn (default: search-QUERY.png)")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.add_argument("--output", metavar="FILE.csv", help="write the answers of many searches to a table")
    add_common(parser, images=False)


def add_cluster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files, and folders of them")
    add_data(parser)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors (default: the small one that "
                        "comes with the program)")  # fmt: skip
    parser.add_argument("--distance", type=float, metavar="D", help="of two crops' neighbourhoods, 0: the same, 1: "
                        "nothing in common; crops within it are neighbours (default: 0.6)")  # fmt: skip
    parser.add_argument("--min-images", type=int, metavar="N", help="a crop with N within the distance, itself "
                        "included, starts a person (default: 2)")  # fmt: skip
    parser.add_argument("--k1", type=int, metavar="K", help="nearest crops that make a neighbourhood, about as many as "
                        "a person has crops (default: 10)")  # fmt: skip
    parser.add_argument("--k2", type=int, metavar="K", help="of those, how many are averaged over (default: 4)")
    parser.add_argument("--output", default="runs/cluster", metavar="DIR", help="(default: runs/cluster)")
    add_common(parser)


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


def add_gallery(parser: argparse.ArgumentParser) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, what: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=what, description=what)
        made.add_argument("gallery", metavar="GALLERY", help="what index or the main job made: a folder, or milvus...")
        return made

    info = action("info", "what it holds, and who may query it")
    info.add_argument("--json", action="store_true", help="print it as JSON")
    info.add_argument("--weights", nargs="+", default=[], metavar="FILE", help="models, also exported: which of "
                      "them may query it")  # fmt: skip
    action("check", "verify every byte; exit code 1 where something is wrong").add_argument(
        "--repair", action="store_true", help="keep every vector that is whole, drop the images of the others"
    )
    export = action("export", "write vectors.npy and entries.csv for other programs")
    export.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    export.add_argument("--parquet", action="store_true", help="one gallery.parquet instead; needs pyarrow")
    export.add_argument("--faiss", action="store_true", help="besides, an exact faiss index with the keys as ids")
    merge = action("merge", "add the images of other galleries of the same model")
    merge.add_argument("others", nargs="+", metavar="OTHER", help="galleries, which stay as they are")
    action("compact", "one file of vectors, without those of removed images")
    remove = action("remove", "remove the images that meet every condition given")
    remove.add_argument("--key", type=int, action="append", default=[], metavar="N", help="by key; repeatable")
    remove.add_argument("--path", action="append", default=[], metavar="FILE", help="by path; repeatable")
    add_filter(remove)
    forget = action("forget", "delete every trace of one person from the files, and prove it")
    forget.add_argument("--pid", dest="person", required=True, metavar="P", help="the person")
    add_preset(action("preset", "how it is kept and searched from now on"), "preset")
    expire = action("expire", "delete old images, by time of capture or where that is unknown of adding")
    expire.add_argument("--older-than", required=True, metavar="AGE", help="12h, 30d, 8w, ...")


def add_preset(parser: argparse.ArgumentParser, name: str) -> None:
    parser.add_argument(name, choices=("exact", "compact", "large", "auto"), help="exact: every vector is looked at (a "
                        "new gallery); compact: codes of a fortieth of their bytes in the vectors' place, for "
                        "good; large: besides the vectors an index, tuned to --recall; auto: exact, and large from "
                        "100,000 images on")  # fmt: skip
    parser.add_argument("--recall", type=float, default=0.99, metavar="R", help="of large: the share of the nearest "
                        "10, 100 or 500 images that a search finds (default: 0.99)")  # fmt: skip


def add_check_data(parser: argparse.ArgumentParser) -> None:
    add_data(parser, "synthetic")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def add_pack(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("weights", metavar="MODEL", help="a trained model.safetensors")
    parser.add_argument("output", metavar="FILE", help="the file to write")
    add_slim(parser)
    add_data(parser)


def add_slim(parser: argparse.ArgumentParser) -> None:
    def parts(text: str) -> list[int]:
        return [int(part) for part in text.split(",")]

    parser.add_argument("--branches", type=parts, metavar="1,2", help="keep only the branches of so many parts, which "
                        "are smaller, faster and find less (default: all)")  # fmt: skip
    parser.add_argument("--dim", type=int, metavar="N", help="shorten embeddings to N values, by a projection learnt "
                        "on the training images of --dataset (default: all values)")  # fmt: skip


def add_export(parser: argparse.ArgumentParser) -> None:
    from reid.export import FORMATS

    def batch(text: str) -> int | None:
        number = 0 if text == "dynamic" else int(text)
        if number < 1 and text != "dynamic":
            raise ValueError(text)
        return number or None

    parser.add_argument("--weights", metavar="FILE", required=True, help="a trained model.safetensors")
    parser.add_argument("--format", choices=FORMATS, required=True, help="for onnxruntime, OpenVINO, libtorch or "
                        "Rockchip's NPU")  # fmt: skip
    parser.add_argument("--precision", choices=("fp32", "fp16", "int8"), help="(default: fp32, of rknn fp16)")
    parser.add_argument("--platform", choices=("rk3588", "rk3566"), default="rk3588", help="of rknn (default: rk3588)")
    parser.add_argument("--batch", type=batch, metavar="N|dynamic", help="images a run (default: dynamic, any number)")
    add_slim(parser)
    parser.add_argument("--people", type=int, metavar="N", help="prove on so many of the query's people, drawn "
                        "(default: all)")  # fmt: skip
    parser.add_argument("--flip", action="store_true", help="sum the features of image and mirror image inside, as the "
                        "other commands do with .safetensors; twice the work")  # fmt: skip
    parser.add_argument("--crops", type=int, metavar="N", help="of int8: training crops (default: 256, of rknn 32)")
    parser.add_argument("--output", metavar="FILE", help="(default: runs/WEIGHTS-PRECISION and the format's suffix)")
    add_data(parser, "synthetic")


def add_pretrain(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--data-root", metavar="DIR", required=True, help="the folder that holds train/ and val/")
    add_recipe(parser, "configs/imagenet.yaml")
    add_output(parser, "runs/pretrain-BACKBONE")
    add_common(parser, images=False)


COMMANDS: dict[str, tuple[Callable[[argparse.Namespace], int | None], Callable[[argparse.ArgumentParser], None]]] = {
    "train": (train_command, add_train),
    "evaluate": (evaluate_command, add_evaluate),
    "compare": (compare_command, add_compare),
    "calibrate": (calibrate_command, add_calibrate),
    "index": (index_command, add_index),
    "search": (search_command, add_search),
    "cluster": (cluster_command, add_cluster),
    "gallery": (gallery_command, add_gallery),
    "check-data": (check_data_command, add_check_data),
    "pack": (pack_command, add_pack),
    "export": (export_command, add_export),
    "pretrain": (pretrain_command, add_pretrain),
}

SHARED_BY_PROCESSES = (None, "train", "pretrain", "index")  # under torchrun the other commands run in its first process


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
