"""`gallery`."""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from reid.cli.index import filter_of
from reid.cli.options import add_filter, add_preset
from reid.cli.readers import Readers
from reid.core.types import ReidError
from reid.core.values import parse_age, parse_pid, show_time
from reid.gallery import check, export, repair
from reid.gallery.base import Gallery
from reid.gallery.entry import Info
from reid.gallery.index.sq8 import LEAST

if TYPE_CHECKING:
    from reid.models.encoder import Encoder


def gallery_command(args: argparse.Namespace) -> int:
    """Inspects and maintains a gallery: contents, checks, export, merging, removal and erasure."""
    return GALLERY[args.action](args)


def add_gallery(parser: argparse.ArgumentParser, readers: Readers) -> None:
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")

    def action(name: str, what: str) -> argparse.ArgumentParser:
        made = actions.add_parser(name, help=what, description=what)
        made.add_argument("gallery", metavar="GALLERY", help="what index or the main job made: a folder, or milvus...")
        return made

    info = action("info", "what it holds, and who may query it")
    info.add_argument("--json", action="store_true", help="print it as JSON")
    info.add_argument(
        "--weights",
        nargs="+",
        default=[],
        metavar="FILE",
        help="models or exports: which of them may query it",
    )
    action("check", "verify every byte; exit code 1 where something is wrong").add_argument(
        "--repair", action="store_true", help="keep every vector that is whole, drop the images of the others"
    )
    export = action("export", "write vectors.npy and entries.csv for other programs")
    export.add_argument("--output", required=True, metavar="DIR", help="a new folder")
    export.add_argument("--parquet", action="store_true", help="write one gallery.parquet instead; needs pyarrow")
    export.add_argument("--faiss", action="store_true", help="also write an exact faiss index with the keys as ids")
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


def info(args: argparse.Namespace) -> int:
    """What a gallery holds, and which of the models in --weights may query it."""
    known = Gallery.open(args.gallery).info()
    asked = {}
    if args.weights:
        from reid.models.encoder import open_encoder

        asked = {weights: open_encoder(weights) for weights in args.weights}
    values = known._asdict()
    for name in ("times", "added"):
        span = values[name]
        values[name] = span and [show_time(span[0]), show_time(span[1])]
    if args.json:
        may = {weights: encoder.fingerprint == known.fingerprint for weights, encoder in asked.items()}
        print(json.dumps(values | ({"may_query": may} if may else {}), indent=2))
        return 0
    if values["cameras"]:
        values["cameras"] = ", ".join(f"{camid}: {count:,}" for camid, count in known.cameras.items())
    values["input_size"] = "{}x{}".format(*known.input_size)
    values["learnt"] = _learnt(known)
    for name, value in values.items():
        shown = " to ".join(value) if isinstance(value, list) else f"{value:,}" if isinstance(value, int) else value
        print(f"{name.replace('_', ' '):<15} {'-' if value in (None, {}, '') else shown}")
    for weights, encoder in asked.items():
        print(f"{weights}: {_standing(encoder, known.fingerprint)}")
    return 0


def _learnt(known: Info) -> str:
    """What a quantizer or an index was fitted to, and what was measured."""
    return ", ".join(f"{name.replace('_', ' ')} {_told(x)}" for name, x in (known.learnt or {}).items())


def _told(value: object) -> str:
    if isinstance(value, dict):
        return " / ".join(f"{_told(x)} of top {name}" for name, x in value.items())
    return f"{value:.4f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def preset(args: argparse.Namespace) -> int:
    """How a gallery is kept and searched from now on."""
    gallery = Gallery.open(args.gallery)
    began, before = time.monotonic(), gallery.info()
    gallery.set_preset(args.preset, recall=args.recall)
    after = gallery.info()
    print(
        f"gallery {args.gallery}: {args.preset}, {before.bytes:,} bytes to {after.bytes:,}, in "
        f"{time.monotonic() - began:.0f} s"
    )
    if after.learnt is not None:
        print(_learnt(after))
    elif args.preset in ("compact", "large"):
        print(f"it has {after.images} images: {args.preset} begins with {LEAST:,}")
    return 0


def _standing(encoder: Encoder, fingerprint: str) -> str:
    """Whether a model's queries compare with vectors of that fingerprint, and what was measured of it."""
    if encoder.fingerprint != fingerprint:
        return f"may not query: its vectors are of {encoder.fingerprint}"
    made = encoder.card.get("export")
    if made is None:
        return "may query: the model itself"
    proof = made["proof"]
    return (
        f"may query: {made['format']} {made['precision']}, cosine {proof['cosine_mean']:.4f} to the model, its queries "
        f"on the model's gallery {100 * (proof['mixed']['mAP'] - proof['model']['mAP']):+.2f} points of mAP "
        f"({proof['dataset']})"
    )


def check_files(args: argparse.Namespace) -> int:
    """Verifies every byte of a gallery; 1 where something is wrong and stays so."""
    if args.repair:
        dropped, troubles = repair(args.gallery)
        for entry in dropped:
            print(f"dropped, its vector is lost: {entry.path}")
        print(f"gallery {args.gallery}: {len(dropped)} images dropped, {len(Gallery.open(args.gallery))} remain")
    else:
        troubles = check(args.gallery)
    for trouble in troubles:
        print(trouble)
    if not troubles:
        print(f"gallery {args.gallery}: no problems found")
    elif not args.repair:
        print("gallery check --repair keeps every vector that is whole")
    return 1 if troubles else 0


def export_files(args: argparse.Namespace) -> int:
    """Writes a gallery's vectors and what is known of its images for other programs."""
    names = export(Gallery.open(args.gallery), args.output, parquet=args.parquet, faiss=args.faiss)
    print(f"{args.output}: {', '.join(names)}")
    return 0


def merge(args: argparse.Namespace) -> int:
    """Adds the images of other galleries of the same model."""
    gallery = Gallery.open(args.gallery)
    for other in args.others:
        added, left = gallery.merge(Gallery.open(other))
        print(f"{other}: {added} images added, {left} were there already")
    print(f"gallery {args.gallery}: {len(gallery)} images in all")
    return 0


def compact(args: argparse.Namespace) -> int:
    """Writes all vectors into one file, without those of removed images, and packs the database."""
    gallery = Gallery.open(args.gallery)
    before = gallery.info()
    gallery.compact()
    after = gallery.info()
    if before.files is None or before.bytes is None or after.bytes is None:
        print(f"gallery {args.gallery}: Milvus was asked to merge its files")
    else:
        print(
            f"gallery {args.gallery}: {before.files} files of vectors to {after.files}, {before.bytes:,} bytes to "
            f"{after.bytes:,}"
        )
    return 0


def remove(args: argparse.Namespace) -> int:
    """Removes the images that meet every condition given."""
    gallery = Gallery.open(args.gallery)
    paths = [os.path.abspath(path) for path in args.path]
    chosen = filter_of(args, keys=args.key or None, paths=[*paths, *args.path] if paths else None)
    print(f"gallery {args.gallery}: {gallery.remove(chosen)} images removed, {len(gallery)} remain")
    return 0


def forget(args: argparse.Namespace) -> int:
    """Deletes every trace of one person, and says what proves it."""
    gallery = Gallery.open(args.gallery)
    person = parse_pid(args.person)
    if person is None:
        raise ReidError("--pid takes a person's number or name")
    done = gallery.forget(person)
    print(f"gallery {args.gallery}: {done.images} images of {person} deleted, {len(gallery)} remain; {done.proof}")
    return 0


def expire(args: argparse.Namespace) -> int:
    """Deletes images older than that, by time of capture or where that is unknown of adding, from the files."""
    gallery = Gallery.open(args.gallery)
    count = gallery.expire(time.time() - parse_age(args.older_than))
    print(f"gallery {args.gallery}: {count} images deleted, {len(gallery)} remain")
    return 0


GALLERY: dict[str, Callable[[argparse.Namespace], int]] = {
    "info": info,
    "check": check_files,
    "export": export_files,
    "merge": merge,
    "compact": compact,
    "remove": remove,
    "forget": forget,
    "expire": expire,
    "preset": preset,
}
