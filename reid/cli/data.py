"""`check-data`, and the data sets that commands read."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reid.cli.options import add_data
from reid.cli.readers import Readers
from reid.cli.runs import first_process
from reid.core.files import read_object, some, write_json
from reid.core.images import find_bad, find_images
from reid.core.types import ANY_CAMERA, ReidError, Sample, Splits


def check_name(args: argparse.Namespace) -> None:
    """Raises ReidError unless --dataset names a data set, before its recipe is looked for under that name."""
    if args.dataset not in args.readers.DATASETS:
        raise ReidError(f"unknown data set {args.dataset!r}; choose one of {', '.join(args.readers.DATASETS)}")


def read_data(args: argparse.Namespace, dataset: str | None = None, *, warn: bool = True) -> Splits:
    splits = args.readers.read(dataset or args.dataset, args.data_root)
    for line in splits.warnings if warn and first_process() else ():
        print(f"warning: {line}", file=sys.stderr)
    return splits


def check_scorable(splits: Splits) -> None:
    """Raises ReidError where no query has a match by the protocol: before hours of training, not after."""
    if not splits.query or not splits.gallery:
        raise ReidError(
            f"{splits.name} cannot be scored: it has {len(splits.query)} query and {len(splits.gallery)} gallery "
            "images; give both, or use train, which scores nothing"
        )
    cameras: dict[int, set[int]] = {}
    for sample in splits.gallery:
        cameras.setdefault(sample.pid, set()).add(sample.camid)
    if any(cameras.get(query.pid, set()) - {query.camid} for query in splits.query):
        return
    shared = any(query.pid in cameras for query in splits.query)
    why = "the same person by another camera" if shared else "the same person"
    advice = "evaluate --same-camera counts the query's own camera, too" if shared else "see check-data"
    raise ReidError(
        f"{splits.name} cannot be scored: none of its {len(splits.query)} queries has a gallery image of {why}; "
        f"{advice}, and train scores nothing"
    )


def of_any_camera(splits: Splits) -> Splits:
    """The same splits where each query is by no camera of the gallery (ANY_CAMERA), so that its own camera's images
    count; the query images themselves are no gallery then."""
    asked = {sample.path for sample in splits.query}
    return splits._replace(
        query=[sample._replace(camid=ANY_CAMERA) for sample in splits.query],
        gallery=[sample for sample in splits.gallery if sample.path not in asked],
        official_split=False if splits.official_split else splits.official_split,
    )


def check_images(
    splits: Splits, output: Path, skip_bad: bool, names: Sequence[str] = ("train", "query", "gallery")
) -> Splits:
    """Decodes every image once a run. Unreadable ones are an error, or with skip_bad left out and told."""
    from reid.core.files import identity

    paths = [sample.path for name in names for sample in getattr(splits, name)]
    record = output / "images.json"
    of = identity(paths)
    try:
        known = read_object(record)
    except (FileNotFoundError, ReidError):
        known = {}
    if known.get("of") != of or not isinstance(known.get("bad"), dict):
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


def ids_of(samples: Sequence[Sample]) -> tuple[np.ndarray, np.ndarray]:
    """(pids, camids)"""
    return np.array([s.pid for s in samples]), np.array([s.camid for s in samples])


def check_data_command(args: argparse.Namespace) -> int:
    """Examines a data set: counts, broken files, identities and images where they should not be."""
    found = args.readers.examine(read_data(args, warn=False))
    print(json.dumps(found.as_dict(), indent=2) if args.json else "\n".join(found.lines()))
    return 0 if found.ok else 1


def add_check_data(parser: argparse.ArgumentParser, readers: Readers) -> None:
    add_data(parser, readers, "synthetic")
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")


def images_in(places: Sequence[str]) -> list[str]:
    """The image files of those places, with a word about the files beside them that are none."""
    found = find_images(places)
    if found.others and first_process():
        print(
            f"warning: passed over {len(found.others)} files that are no images by their names: "
            f"{some([str(path) for path in found.others])}",
            file=sys.stderr,
        )
    return [str(path) for path in found.images]
