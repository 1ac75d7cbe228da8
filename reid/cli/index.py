"""`index` and `search`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from reid.cli.data import images_in, read_data, refuse_or_tell
from reid.cli.options import add_common, add_data, add_filter, add_preset, add_rerank, rerank_options
from reid.cli.readers import Readers
from reid.cli.runs import default_weights, load_embedder
from reid.core.files import write_text
from reid.core.images import find_bad
from reid.core.own_images import ImageRecord, read_table
from reid.core.types import ReidError
from reid.core.values import parse_pid, parse_time
from reid.gallery.filter import Filter

if TYPE_CHECKING:
    from reid.gallery.answers import Answer

_LONGEST = 150  # bytes of a query's name in its picture's


def index_command(args: argparse.Namespace) -> None:
    """Embeds images into a gallery: a data set's gallery split, or image files, folders and tables of them."""
    from reid.gallery.add_images import index
    from reid.training import distributed

    if bool(args.images) == bool(args.dataset):
        raise ReidError("index takes either image files, folders and tables, or --dataset NAME")
    world = distributed.join()
    images: list[ImageRecord] = []
    if world.first:
        tables = [place for place in args.images if place.lower().endswith(".csv")]
        others = [place for place in args.images if place not in tables]
        images = [image for table in tables for image in read_table(table)]
        images += [ImageRecord(path) for path in (images_in(others) if others else ())]
        if args.dataset:
            images = [ImageRecord(*sample) for sample in read_data(args).gallery]
    weights = Path(args.weights or default_weights())
    args.device = args.device or distributed.pick_device(world)

    def unreadable(paths: list[str]) -> set[str]:
        bad = find_bad(paths)
        if bad:
            refuse_or_tell(bad, args.skip_bad)
        return set(bad)

    embedder = load_embedder(weights, args)
    done = index(args.gallery, images, embedder, weights, unreadable, world, args.preset, args.recall)
    if done is not None:
        told = [f"{done.added} images added", f"{done.total} in all"]
        told += [f"{done.replaced} of them in the place of older content"] if done.replaced else []
        told += [f"{done.known} were there already by their content"] if done.known else []
        print(f"gallery {args.gallery}: {', '.join(told)}")


def filter_of(args: argparse.Namespace, **more: object) -> Filter:
    """What --camera, --exclude-camera, --after, --before, --pid and --field say, and `remove`'s --key and --path."""
    fields = {}
    for pair in args.field:
        name, equals, value = pair.partition("=")
        if not equals or not name:
            raise ReidError(f"--field takes NAME=VALUE, got {pair!r}")
        fields[name] = value
    return Filter(
        camids=args.camera,
        exclude_camids=args.exclude_camera,
        pids=[person for pid in args.pid if (person := parse_pid(pid)) is not None],
        after=None if args.after is None else parse_time(args.after),
        before=None if args.before is None else parse_time(args.before),
        fields=fields,
        **more,  # type: ignore[arg-type]
    )


def search_command(args: argparse.Namespace) -> None:
    """Finds the images of a gallery that are nearest to one person, or to each image of a folder."""
    from reid.gallery import Gallery, answers
    from reid.retrieval.calibration import calibration_of

    rerank = rerank_options(args)
    gallery = Gallery.open(args.gallery)
    _check_search(args)
    place = answers.moved(args.root)
    weights = args.weights or gallery.model_path
    embedder = load_embedder(weights or default_weights(), args) if weights or args.query else None
    if embedder is not None:
        gallery.check_model(embedder.fingerprint)
    calibration = calibration_of(embedder.card, embedder.fingerprint) if embedder is not None else None
    images = images_in(args.query) if args.output else args.query
    bad = find_bad(images) if args.output else {}
    for path, reason in bad.items():
        print(f"warning: left out {path}: {reason}", file=sys.stderr)
    images = [image for image in images if image not in bad]
    if args.key:
        vectors = answers.fuse(gallery.vectors(args.key))
        images = [place(gallery.entry(args.key[0]).path)]
    else:
        assert embedder is not None
        vectors = embedder.embed(images, progress=bool(args.output))
        vectors = vectors if args.output else answers.fuse(vectors)
    found = answers.search(
        gallery,
        vectors,
        args.top_k,
        filter=filter_of(args, exclude_keys=args.key),
        group_by=args.group_by,
        rerank=rerank if args.rerank else None,
        calibration=calibration,
        max_false_accept=args.max_false_accept,
        place=place,
    )
    if args.output:
        write_text(args.output, answers.as_csv(images, found.answers))
        answered = sum(map(bool, found.answers))
        left = f", {len(bad)} images could not be read" if bad else ""
        return print(f"{len(images)} searches, {answered} with an answer{left}: {args.output}")
    [listed] = found.answers
    if args.json:
        print(json.dumps([answers.as_dict(answer) for answer in listed], indent=2))
    elif not listed and found.searched and args.max_false_accept is not None:
        share = f"{args.max_false_accept:.2%} of the searches for people who are not in a gallery like this one"
        print(
            f"nobody matches: the nearest image scores {found.best:.3f}, below {found.threshold:.3f}, which {share} "
            "reach"
        )
    else:
        print(answers.as_table(listed))
    if not args.no_picture:
        _draw(images[0], listed, args)


def _draw(query: str, listed: Sequence[Answer], args: argparse.Namespace) -> None:
    """The ranked list as a picture. Where it cannot be written there is a warning: the answer was given already."""
    from reid.report.sheets import Tile, draw_search

    name = os.fsdecode(os.fsencode(Path(query).stem)[:_LONGEST].decode("utf-8", "ignore").encode())
    picture = Path(args.picture or f"search-{name}.png")
    try:
        draw_search(query, [Tile(e.path, s, e.pid, e.camid) for e, s, _ in listed], picture)
    except OSError as error:
        print(
            f"warning: no picture at {picture} ({error.strerror or error}): name another place with --picture, or "
            "leave it out with --no-picture",
            file=sys.stderr,
        )
    else:
        print(f"picture: {picture}", file=sys.stderr if args.json else sys.stdout)


def _check_search(args: argparse.Namespace) -> None:
    """ReidError for options that do not go together."""
    if bool(args.query) == bool(args.key):
        raise ReidError("search takes either images of one person (QUERY), or --key N of images in the gallery")
    if args.output and (args.key or args.json or args.picture):
        raise ReidError("--output is for a table of many searches: leave --key, --json and --picture out")
    folders = [query for query in args.query if os.path.isdir(query)]
    if folders and not args.output:
        raise ReidError(
            f"{folders[0]} is a folder: name images of one person, or search for each of its images with "
            "--output FILE.csv"
        )


def add_index(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGES",
        help="image files, folders of them, patterns, and "
        "CSV files with a column path and any of pid, camid, time (ISO 8601) and others",
    )
    add_data(parser, readers)
    parser.add_argument(
        "--weights",
        metavar="FILE",
        help="a trained model.safetensors (default: the small one that comes with the program)",
    )
    parser.add_argument(
        "--gallery",
        metavar="GALLERY",
        required=True,
        help="a folder, milvus://HOST:PORT/NAME, or milvus+lite:PATH.db; made if absent, else new images are added",
    )
    add_preset(parser, "--preset")
    add_common(parser)


def add_search(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("gallery", metavar="GALLERY", help="what index or the main job made: a folder, or milvus...")
    parser.add_argument(
        "query",
        nargs="*",
        metavar="QUERY",
        help="images of one person, used as one query; with --output, images and folders, one query each",
    )
    parser.add_argument(
        "--key",
        type=int,
        action="append",
        default=[],
        metavar="N",
        help="query by an image in the gallery, by its key; repeatable, for several of one person",
    )
    parser.add_argument("--top-k", type=int, default=10, metavar="K", help="how many images to show (default: 10)")
    parser.add_argument(
        "--max-false-accept",
        type=float,
        metavar="SHARE",
        help="answer 'nobody matches' unless an "
        "image is as near as that share (0.01: one in a hundred) of the searches for people who are "
        "not in the gallery come to one; needs a calibrated model",
    )
    add_filter(parser)
    parser.add_argument(
        "--group-by",
        metavar="WHAT",
        help="show the nearest image of each person (pid), or of each value of a free field",
    )
    add_rerank(
        parser,
        "order the 500 nearest by k-reciprocal neighbours among them (Zhong et al. 2017); scores stay "
        "cosine similarities",
    )
    parser.add_argument("--weights", metavar="FILE", help="the model (default: the gallery's own copy)")
    parser.add_argument("--root", metavar="OLD=NEW", help="where images lie now that were indexed in the folder OLD")
    parser.add_argument("--picture", metavar="FILE", help="where the ranked list is drawn (default: search-QUERY.png)")
    parser.add_argument("--no-picture", action="store_true", help="draw none")
    parser.add_argument("--json", action="store_true", help="print the list as JSON")
    parser.add_argument("--output", metavar="FILE.csv", help="write the answers of many searches to a table")
    add_common(parser, images=False)
