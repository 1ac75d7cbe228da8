"""`check-data`, and the data sets that commands read."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence, Set
from pathlib import Path

import numpy as np

from reid.cli.options import add_data
from reid.cli.readers import Readers
from reid.cli.runs import first_process
from reid.core.files import read_object, some, write_json
from reid.core.images import find_bad, find_images
from reid.core.types import ANY_CAMERA, ReidError, Sample, Splits


def check_names(args: argparse.Namespace) -> list[str]:
    """What each data set of a command that takes several is called, by --dataset and --data-root: its name, or, where
    that is given several times, with the last part of its root behind it.

    Raises ReidError for a name that is of no data set, before a recipe is looked for under it.
    """
    names, roots = args.dataset, args.data_root
    for name in names:
        if name not in args.readers.DATASETS:
            raise ReidError(f"unknown data set {name!r}; choose one of {', '.join(args.readers.DATASETS)}")
    if len(roots) not in (1, len(names)):
        raise ReidError(
            f"--data-root: expected one folder for all {len(names)} data sets, or {len(names)}, got {len(roots)}"
        )
    labels: list[str] = []
    for name, root in _pairs(args):
        label = name if names.count(name) == 1 else f"{name}-{Path(os.path.abspath(root)).name}"
        if label in labels:
            raise ReidError(
                f"--dataset: {name} is given twice at {root}: give each a --data-root of its own, of different names"
            )
        labels.append(label)
    return labels


def _pairs(args: argparse.Namespace) -> list[tuple[str, str]]:
    """Name and root of each data set."""
    roots = args.data_root * len(args.dataset) if len(args.data_root) == 1 else args.data_root
    return list(zip(args.dataset, roots, strict=True))


def read_sets(args: argparse.Namespace) -> dict[str, Splits]:
    """The data sets of a command that takes several, by what they are called: all read before any is worked on."""
    labels = check_names(args)
    return {label: _read(args.readers, *of, True) for label, of in zip(labels, _pairs(args), strict=True)}


def read_data(args: argparse.Namespace, *, warn: bool = True) -> Splits:
    """The one data set of a command."""
    return _read(args.readers, args.dataset, args.data_root, warn)


def _read(readers: Readers, name: str, root: str, warn: bool) -> Splits:
    splits: Splits = readers.read(name, root)
    for line in splits.warnings if warn and first_process() else ():
        print(f"warning: {line}", file=sys.stderr)
    return splits


def all_of(sets: Mapping[str, Splits]) -> Splits:
    """Data sets as one, for what concerns their images alone: people and cameras are those of each. One is itself."""
    if len(sets) == 1:
        return next(iter(sets.values()))
    every = list(sets.values())
    train, query, gallery = (
        [sample for splits in every for sample in getattr(splits, part)] for part in ("train", "query", "gallery")
    )
    roots = os.pathsep.join(splits.root for splits in every)
    return Splits("+".join(sets), roots, train, query, gallery, None, [])


def check_sets(
    sets: Mapping[str, Splits], output: Path, skip_bad: bool, names: Sequence[str] = ("train", "query", "gallery")
) -> dict[str, Splits]:
    """`check_images` of all data sets of a run."""
    left = check_images(all_of(sets), output, skip_bad, names)
    if len(sets) == 1:
        return dict.fromkeys(sets, left)
    kept = {sample.path for sample in [*left.train, *left.query, *left.gallery]}
    return {name: _without(splits, kept, left.warnings) for name, splits in sets.items()}


def _without(splits: Splits, kept: Set[str], warnings: list[str]) -> Splits:
    """What is kept of a data set; where that is not all, it is not the official split, and the warnings say why."""
    train, query, gallery = (
        [s for s in samples if s.path in kept] for samples in (splits.train, splits.query, splits.gallery)
    )
    if (len(train), len(query), len(gallery)) == (len(splits.train), len(splits.query), len(splits.gallery)):
        return splits
    return splits._replace(
        train=train,
        query=query,
        gallery=gallery,
        official_split=False if splits.official_split else splits.official_split,
        warnings=[*splits.warnings, *warnings],
    )


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
    every = {sample.path for sample in [*splits.train, *splits.query, *splits.gallery]}
    return _without(splits, every - bad.keys(), [line])


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
