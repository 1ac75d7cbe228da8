"""Draws synthetic people, and a picture of some of them; `--help` lists the options."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from datasets import synthetic
from reid.core.files import atomic_file
from reid.core.types import ReidError


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m datasets.synthetic",
        description="Draw synthetic people into DIR/synthetic, where there are none.",
    )
    parser.add_argument("--data-root", type=Path, default=Path("data"), metavar="DIR", help="(default: data)")
    parser.add_argument("--ids", type=int, metavar="N", help=f"training people (default: {synthetic.TRAIN_IDS})")
    parser.add_argument("--seed", type=int, metavar="N", help="(default: 0)")
    parser.add_argument("--sheet", type=Path, metavar="FILE", help="also write a picture of some of its people")
    arguments = parser.parse_args()
    wanted = {"train_ids": arguments.ids, "seed": arguments.seed}
    wanted = {key: value for key, value in wanted.items() if value is not None}
    try:
        folder = synthetic.find(arguments.data_root)
        if not folder.exists():
            synthetic.draw(folder, **wanted)
        splits = synthetic.read(folder)
        there = synthetic.read_manifest(folder)
        if any(there[key] != value for key, value in wanted.items()):
            raise ReidError(
                f"{folder} already holds {there['train_ids']} training people of seed {there['seed']}: "
                "delete it, or name another --data-root"
            )
        print(f"{folder}: {len(splits.train)} train, {len(splits.query)} query, {len(splits.gallery)} gallery images")
        if arguments.sheet:
            with atomic_file(arguments.sheet) as temporary:
                synthetic.contact_sheet(folder).save(temporary, "PNG")
    except ReidError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
