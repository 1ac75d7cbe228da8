"""`gallery`."""

from __future__ import annotations

import argparse

from reid.cli.options import add_filter, add_preset
from reid.cli.readers import Readers


def gallery_command(args: argparse.Namespace) -> int:
    """What a gallery holds, whether it is whole, and what leaves it."""
    from reid.gallery.commands import GALLERY

    return GALLERY[args.action](args)


def add_gallery(parser: argparse.ArgumentParser, readers: Readers) -> None:
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
