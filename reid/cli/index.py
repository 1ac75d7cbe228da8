"""`index` and `search`."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from reid.cli.data import read_data, refuse_or_tell
from reid.cli.options import add_common, add_data, add_filter, add_preset, add_rerank, rerank_options
from reid.cli.readers import Readers
from reid.cli.runs import default_weights, load_embedder
from reid.core.images import find_bad, find_images
from reid.core.types import ReidError

if TYPE_CHECKING:
    from reid.models.embedder import Embedder



def index_command(args: argparse.Namespace) -> None:
    """Embeds images into a gallery: a data set's gallery split, or image files, folders and tables of them."""
    from reid.gallery import commands
    from reid.training import distributed

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
    from reid.retrieval.calibration import calibration_of

    commands.search(
        Gallery.open(args.gallery), args, load, calibration_of, find_images, rerank if args.rerank else None
    )


def add_index(parser: argparse.ArgumentParser, readers: Readers) -> None:
    parser.add_argument("images", nargs="*", metavar="IMAGES", help="image files, folders of them, patterns, and "
                        "CSV files with a column path and any of pid, camid, time (ISO 8601) and others")  # fmt: skip
    add_data(parser, readers)
    parser.add_argument("--weights", metavar="FILE", help="a trained model.safetensors (default: the small one that "
                        "comes with the program)")  # fmt: skip
    parser.add_argument("--gallery", metavar="GALLERY", required=True, help="a folder, milvus://HOST:PORT/NAME, or "
                        "milvus+lite:PATH.db; made if absent, else new images are added")  # fmt: skip
    add_preset(parser, "--preset")
    add_common(parser)


def add_search(parser: argparse.ArgumentParser, readers: Readers) -> None:
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
