"""`cluster`."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import numpy as np

from reid.cli.data import images_in, read_data, refuse_or_tell
from reid.cli.options import add_common, add_data
from reid.cli.readers import Readers
from reid.cli.runs import default_weights, load_embedder, run_lock, write_csv
from reid.core.images import find_bad
from reid.core.own_images import camera_of
from reid.core.types import ReidError, Sample


def cluster_command(args: argparse.Namespace) -> None:
    """Groups crops that nobody has labelled into people: OUTPUT/people.csv, people.html, and rest.csv.

    people.csv is a data set (--dataset folder --data-root OUTPUT/people.csv); rest.csv names the crops that are like
    too few others. With --dataset, the query and gallery images are grouped and compared with the labels.
    """
    from reid.core.files import identity
    from reid.core.tables import aligned_table
    from reid.report.page import write_people_page
    from reid.report.sheets import Tile
    from reid.retrieval.cluster import NOBODY, agreement, find_people

    if bool(args.images) == bool(args.dataset):
        raise ReidError("cluster takes either image files and folders, or --dataset NAME")
    if args.dataset:
        splits = read_data(args)
        crops = [s for s in [*splits.query, *splits.gallery] if s.pid > 0]
    else:
        paths = [os.path.abspath(path) for path in images_in(args.images)]
        crops = [Sample(path, 0, camera_of(Path(path).stem) or 0) for path in paths]
    weights = args.weights or default_weights()
    output = Path(args.output)
    embedder = load_embedder(weights, args)
    run = {"kind": "cluster", "data": identity([s.path for s in crops]), "fingerprint": embedder.fingerprint}
    with run_lock(output, run):
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
            (
                f"person {n}: {len(of)} crops, cameras {', '.join(map(str, sorted({crops[i].camid for i in of})))}",
                [Tile(crops[i].path, camid=crops[i].camid) for i in of],
            )
            for n, of in enumerate(people, 1)
        ]
        told = f"{len(crops):,} crops: {len(people):,} people of {len(crops) - len(rest):,} crops, {len(rest):,} alone"
        write_people_page(strips, output / "people.html", title="People", text=told)
    print(told)
    if args.dataset:
        found = agreement(labels, np.array([s.pid for s in crops]))
        print(f"labels: {len({s.pid for s in crops}):,} people; adjusted Rand index {found.adjusted_rand:.3f}")
        rows = [
            ["pairs", found.pair_precision, found.pair_recall, found.pair_f],
            ["B-cubed", found.bcubed_precision, found.bcubed_recall, found.bcubed_f],
        ]
        shown = [[str(name), *(f"{value:.1%}" for value in values)] for name, *values in rows]
        print(aligned_table(("", "precision", "recall", "F"), shown))
    print(f"data set: {output}/people.csv\npage: {output}/people.html")


def add_cluster(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files, and folders of them")
    add_data(parser, readers)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a trained model.safetensors (default: the small one that comes with the program)",
    )
    parser.add_argument(
        "--distance",
        type=float,
        metavar="D",
        help="distance of two crops' neighbourhoods, 0: the same, 1: "
        "nothing in common; crops within it are neighbours (default: 0.6)",
    )
    parser.add_argument(
        "--min-images",
        type=int,
        metavar="N",
        help="a crop with N within the distance, itself included, starts a person (default: 2)",
    )
    parser.add_argument(
        "--k1",
        type=int,
        metavar="K",
        help="nearest crops that make a neighbourhood, about as many as a person has crops (default: 10)",
    )
    parser.add_argument("--k2", type=int, metavar="K", help="nearest crops averaged (default: 4)")
    parser.add_argument("--output", default="runs/cluster", metavar="DIR", help="(default: runs/cluster)")
    add_common(parser)
