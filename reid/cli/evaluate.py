"""`evaluate`, `compare` and `calibrate`."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from reid.cli.data import check_images, check_scorable, ids_of, of_any_camera, read_data, read_sets, refuse_or_tell
from reid.cli.options import add_common, add_data, add_datasets, add_output, add_rerank, rerank_options
from reid.cli.readers import Readers
from reid.cli.runs import RunFile, label_of, load_embedder, model_name, run_lock, run_of
from reid.core.files import write_json, write_text
from reid.core.images import find_bad
from reid.core.types import ReidError, Splits

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from reid.models.embedder import Embedder
    from reid.retrieval.evaluate import Scores
    from reid.retrieval.protocol import Method
    from reid.training.train import Trained


def evaluate_command(args: argparse.Namespace) -> None:
    """Scores models on data sets' query and gallery and writes a report of each; of several, a table of all."""
    from reid.core.tables import aligned_table

    method = read_method(args)
    names = {model_name(weights): weights for weights in args.weights}
    if len(names) < len(args.weights):
        raise ReidError(f"--weights: expected files of different names, got {' '.join(args.weights)}: rename one")
    sets = read_sets(args)  # all, before the first is scored
    if method.distractors:
        sets = {
            name: splits._replace(gallery=[*splits.gallery, *args.readers.distractors(splits)], official_split=None)
            for name, splits in sets.items()
        }
    if method.same_camera:
        sets = {name: of_any_camera(splits) for name, splits in sets.items()}
    for splits in sets.values():
        check_scorable(splits)
    single = len(names) == len(sets) == 1
    rows = []
    for name, weights in names.items():
        rows.append([name])
        for dataset, splits in sets.items():
            if single and args.output:
                output = embedded = Path(args.output)
            else:
                embedded = Path(args.output or "runs") / f"evaluate-{label_of(splits, dataset)}-{name}"
                output = embedded.with_name(embedded.name + method.suffix)
            scores = evaluate_one(
                weights, splits, method, output, output if method.distractors or method.same_camera else embedded, args
            )
            rows[-1].append(f"{scores.rank1:.1%} / {scores.mAP:.1%}")
    if not single:
        print("\n" + aligned_table(("Rank-1 / mAP", *sets), rows))


def evaluate_one(
    weights: str, splits: Splits, method: Method, output: Path, shared: Path, args: argparse.Namespace
) -> Scores:
    """shared: the plain comparison's folder, where embeddings are kept for all methods; or the output itself."""
    from reid.retrieval.protocol import COSINE

    with run_lock(output, run_of("evaluate", splits, args, weights=weights, method=str(method))) as facts:
        with contextlib.ExitStack() as until_embedded:
            kept = facts
            if shared != output:
                plain = run_of("evaluate", splits, args, weights=weights, method=str(COSINE))
                kept = until_embedded.enter_context(run_lock(shared, plain))
            splits = check_images(splits, shared, args.skip_bad, ("query", "gallery"))
            embedder = load_embedder(weights, args)
            query, gallery = embed_splits(embedder, splits, shared, kept)
            if method.multi_query:
                query = join_queries(query, splits, method.multi_query, args.readers, embedder, shared, args.skip_bad)
        facts.keep(embed_images_per_second=kept.values.get("embed_images_per_second"))
        if method.expand:
            query, gallery = expanded(query, gallery, method)
        scores, bonus = score(query, gallery, splits, method)
        report(embedder, splits, scores, query, gallery, output, facts, weights=weights, method=method, bonus=bonus)
    print(f"report: {output}/report.md")
    return scores


def compare_command(args: argparse.Namespace) -> None:
    """Prints finished runs side by side: a row a recipe, with its seeds' mean and deviation, intervals over people and
    seeds, and the difference to the first. Runs on other query or gallery images are in a table of their own."""
    from reid.report.compare import by_images, compare, is_named
    from reid.report.compare_tables import as_latex, as_markdown, as_text
    from reid.report.results import read_results

    results = read_results(args.runs, lambda told: print(told, file=sys.stderr))
    sets = by_images(results)
    base = args.baseline
    if base is not None and len(sets) > 1 and not any(is_named(base, found) for found in sets):
        raise ReidError(f"no run is named {base!r}: --baseline takes one of {', '.join(r.name for r in results)}")
    write = as_latex if args.latex else as_markdown if args.markdown else as_text
    title = "% " if args.latex else "## " if args.markdown else "== "
    if len(sets) > 1:
        print(f"{title}{len(sets)} sets of query and gallery images: runs compare within each\n")
    for number, found in enumerate(sets, 1):
        chosen = base if base is not None and (len(sets) == 1 or is_named(base, found)) else None
        if len(sets) > 1:
            print(f"{title}{number}. {found[0].dataset}\n")
        print(write(compare(found, chosen)) + ("\n" if number < len(sets) else ""))


def calibrate_command(args: argparse.Namespace) -> None:
    """Calibrates a model: from a data set's query and gallery people, when a search should answer "nobody matches".

    The people must not be among those that the model was trained on. First a half of them, drawn at random, shows
    whether the calibration holds on the other half; then all of them are used, and the model file holds the result.
    """
    from reid.core.tables import aligned_table
    from reid.models import checkpoint
    from reid.retrieval.calibration import calibrate, check

    splits = read_data(args)
    output = Path(args.output or f"runs/calibrate-{label_of(splits)}-{model_name(args.weights)}")
    embedder = load_embedder(args.weights, args)
    if checkpoint.kind(args.weights) != "model":
        raise ReidError(f"{args.weights}: calibrate the .safetensors that it comes from, then export that with --flip")
    with run_lock(output, run_of("calibrate", splits, args, fingerprint=embedder.fingerprint)):
        splits = check_images(splits, output, args.skip_bad, ("query", "gallery"))
        samples = [*splits.query, *splits.gallery]
        features = embedder.embed([s.path for s in samples], save=output / "features" / "all.npy", progress=True)
        pids, camids = ids_of(samples)
        model, name = embedder.fingerprint, splits.name
        checked = check(features, pids, camids, (0.005, 0.01, 0.05, 0.1), fingerprint=model, dataset=name)
        calibration = calibrate(features, pids, camids, fingerprint=model, dataset=name)
        write_json(output / "calibration.json", calibration.as_dict())
        state, card = checkpoint.read(args.weights, "model")
        checkpoint.write(args.weights, "model", state, card | {"calibration": calibration.as_dict()})
    print(
        "false accepts of searches for people who are not in the gallery, calibrated on one half of the people and\n"
        "measured on the other, with the 95 % bootstrap interval over people:"
    )
    rows = [[f"{asked:.1%}", f"{x.mean:.1%}", f"{x.low:.1%} to {x.high:.1%}"] for asked, x in checked.items()]
    print(aligned_table(("asked", "achieved", "interval"), rows))
    print(
        f"probability: {calibration.method}, expected calibration error {calibration.ece_logistic:.4f} logistic, "
        f"{calibration.ece_isotonic:.4f} isotonic"
    )
    print(f"calibrated on all {calibration.identities:,} people, {calibration.images:,} images: {args.weights}")


def read_method(args: argparse.Namespace) -> Method:
    """How to compare, by the options of evaluate."""
    from reid.retrieval.protocol import Method

    parameters = rerank_options(args)
    if (args.alpha is not None or args.expand_gallery) and not args.query_expansion:
        raise ReidError("--alpha and --expand-gallery need --query-expansion K: add it, or leave them out")
    if args.alpha is not None:
        parameters["alpha"] = args.alpha
    if args.same_camera and args.multi_query:
        raise ReidError("--multi-query joins the images that --same-camera asks for: leave one out")
    return Method(
        same_camera=args.same_camera,
        distractors=args.distractors,
        multi_query=args.multi_query,
        expand=args.query_expansion,
        expand_gallery=args.expand_gallery,
        rerank=args.rerank,
        **parameters,
    )


def embed_splits(embedder: Embedder, splits: Splits, folder: Path, facts: RunFile) -> tuple[np.ndarray, np.ndarray]:
    """Embeds query and gallery into FOLDER/features, or opens what is there."""
    query, gallery = (
        embedder.embed(
            [s.path for s in samples], save=folder / "features" / f"{name}.npy", progress=True, desc=f"embedding {name}"
        )
        for name, samples in (("query", splits.query), ("gallery", splits.gallery))
    )
    if embedder.images_per_second is not None:
        facts.keep(embed_images_per_second=embedder.images_per_second)
    return query, gallery


def join_queries(
    query: np.ndarray, splits: Splits, pool: str, readers: Readers, embedder: Embedder, folder: Path, skip_bad: bool
) -> np.ndarray:
    """Of each query all images of its person by its camera, joined as pool says."""
    from reid.retrieval.protocol import pool_queries

    samples = readers.multi_query(splits)
    checked = {s.path for s in [*splits.query, *splits.gallery]}
    bad = find_bad(s.path for s in samples if s.path not in checked)
    if bad:
        refuse_or_tell(bad, skip_bad)
        samples = [s for s in samples if s.path not in bad]
    file = folder / "features" / "multi-query.npy"
    rows = embedder.embed([s.path for s in samples], save=file, progress=True, desc="embedding multi-query")
    return pool_queries(pool, rows, *ids_of(samples), *ids_of(splits.query))


def expanded(query: np.ndarray, gallery: np.ndarray, method: Method) -> tuple[np.ndarray, np.ndarray]:
    from reid.retrieval.expansion import expand_gallery, expand_queries

    larger = expand_gallery(gallery, k=method.expand, alpha=method.alpha) if method.expand_gallery else gallery
    return expand_queries(query, gallery, k=method.expand, alpha=method.alpha), larger


def score(
    query: np.ndarray, gallery: np.ndarray, splits: Splits, method: Method | None = None
) -> tuple[Scores, csr_array | None]:
    """Scores, and what re-ranking added to the similarities, where the method asks for it."""
    from reid.retrieval.evaluate import evaluate

    bonus = None
    if method and method.rerank:
        from reid.retrieval.rerank import rerank

        bonus = rerank(query, gallery, k1=method.k1, k2=method.k2, lambda_=method.lambda_, progress=True)
    (query_pids, query_camids), (gallery_pids, gallery_camids) = ids_of(splits.query), ids_of(splits.gallery)
    ids = query_pids, gallery_pids, query_camids, gallery_camids
    return evaluate(query, gallery, *ids, bonus=bonus, progress=True), bonus


def report(
    embedder: Embedder,
    splits: Splits,
    scores: Scores,
    query: np.ndarray,
    gallery: np.ndarray,
    output: Path,
    facts: RunFile,
    *,
    weights: str | None,
    trained: Trained | None = None,
    method: Method | None = None,
    bonus: csr_array | None = None,
) -> None:
    from reid.models.card import git_revision
    from reid.models.model import ReidModel, size_of
    from reid.report.markdown import summary_table, write_report
    from reid.report.metrics import RunRecord
    from reid.retrieval.protocol import COSINE

    card = dict(embedder.card)
    size = card.get("size") or size_of(ReidModel(card | {"num_classes": 0}))
    program = ["python", "run_reid.py"] if Path(sys.argv[0]).name == "run_reid.py" else ["reid"]
    run = RunRecord(
        command=shlex.join([*program, *sys.argv[1:]]),
        backbone=card["architecture"]["backbone"],
        parameters=size["parameters"],
        input_size=embedder.input_size,
        fingerprint=embedder.fingerprint,
        embed_images_per_second=facts.values.get("embed_images_per_second"),
        multiply_adds=size["multiply_adds"],
        train_seconds=trained.seconds if trained else None,
        weights=weights,
        git_revision=git_revision(),
        recipe=card["recipe"],
        trained_on=card.get("data"),
    )
    table = summary_table(splits, scores)
    write_text(output / "scores.txt", table + "\n")
    write_report(
        output,
        splits=splits,
        scores=scores,
        query_features=query,
        gallery_features=gallery,
        run=run,
        history=trained.history if trained else None,
        method=method or COSINE,
        bonus=bonus,
    )
    print(table)


def add_evaluate(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_datasets(parser, readers, "synthetic", "each is scored by itself")
    parser.add_argument(
        "--weights",
        nargs="+",
        metavar="FILE",
        required=True,
        help="trained model.safetensors, one or more; with several of these or of data sets a table of all is printed",
    )
    parser.add_argument(
        "--same-camera",
        action="store_true",
        help="count images by the query's own camera, too: for data of one camera, or where views of one camera matter",
    )
    parser.add_argument(
        "--distractors",
        action="store_true",
        help="add the data set's distractor images to the gallery (Market-1501's 500,000 in images/)",
    )
    parser.add_argument(
        "--multi-query",
        choices=("mean", "max"),
        help="average the features of all images of a query's person by its camera, or take their maximum",
    )
    parser.add_argument(
        "--query-expansion",
        type=int,
        default=0,
        metavar="K",
        help="average a query with its K nearest gallery images",
    )
    parser.add_argument(
        "--alpha",
        type=float,
        metavar="A",
        help="query expansion: weight each image by its "
        "similarity to the power of A, 0 for the plain average (default: 3)",
    )
    parser.add_argument("--expand-gallery", action="store_true", help="query expansion: the gallery's images, too")
    add_rerank(parser, "re-rank by k-reciprocal neighbours (Zhong et al. 2017)")
    add_output(parser, "runs/evaluate-DATASET-WEIGHTS; of several the folder that holds theirs: runs")
    add_common(parser)


def add_compare(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument(
        "runs",
        nargs="+",
        metavar="RUN",
        help="a run's folder, the folder of --seeds that holds a run a seed, or a copy of a metrics.json",
    )
    parser.add_argument(
        "--baseline",
        metavar="NAME",
        help="the recipe that the others are compared with, by its name "
        "in the table: its folder's or file's (default: the first)",
    )
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--markdown", action="store_true", help="print a Markdown table and the runs' commands")
    form.add_argument("--latex", action="store_true", help="print a LaTeX table with the rules of booktabs")


def add_calibrate(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_data(parser, readers, "synthetic")
    parser.add_argument(
        "--weights",
        metavar="FILE",
        required=True,
        help="a trained model.safetensors; the calibration is written into it, and into galleries built with it",
    )
    add_output(parser, "runs/calibrate-DATASET-WEIGHTS")
    add_common(parser)
