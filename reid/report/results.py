"""What metrics.json keeps of finished runs, read and checked."""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.types import ReidError

# What is measured: name in the tables, key of the mean in metrics.json, key of its values in "queries".
_MEASURES = (
    ("Rank-1", "rank1", "first_rank"),
    ("mAP", "mAP", "average_precision"),
    ("mAP (trapezoid)", "mAP_trapezoid", "trapezoid"),
    ("mINP", "mINP", "inverse_penalty"),
)
MEASURES = tuple(name for name, _, _ in _MEASURES)
_NONE = type(None)
_TYPES: dict[str, tuple[type, ...]] = {
    "command": (str,),
    "dataset": (str,),
    "official_split": (bool, _NONE),
    "backbone": (str,),
    "input_size": (list,),
    "parameters": (int,),
    "image_passes": (int, _NONE),
    "train_seconds": (int, float, _NONE),
    "num_gallery": (int,),
    "multiply_adds": (int, _NONE),
    "method": (dict, _NONE),
    "trained_on": (dict, _NONE),
    "recipe": (dict, _NONE),
    "images": (dict,),
    "queries": (dict,),
}
_LATER = ("multiply_adds", "method", "trained_on", "recipe")  # that files of earlier versions may lack
_SEED = re.compile(r"seed-(\d+)")  # a seed's folder in that of a recipe
_DAMAGED = "copy it again from its run"


@dataclass(frozen=True, eq=False)
class Result:
    """What metrics.json keeps of a run, as far as it is compared."""

    name: str
    command: str
    dataset: str
    official_split: bool | None
    backbone: str
    input_size: tuple[int, int]  # (height, width) in pixels
    parameters: int
    multiply_adds: int | None  # for one image of input_size
    image_passes: int | None  # None: not trained by that run
    train_seconds: float | None  # likewise
    num_gallery: int
    images: dict[str, str]  # digests of the "query" and the "gallery" images
    pids: np.ndarray  # (Q,) int64
    values: np.ndarray  # (4, Q) float64 in [0, 1], rows as in MEASURES; NaN where the query has no match
    seed: int | None  # of the training
    kin: str | None  # equal of runs that differ in the seed alone; None where that is not known


class _NoResult(ReidError):
    """A file that is whole, and of something else."""


def seed_folder(output: Path, seed: int) -> Path:
    """Where a recipe's run with that seed lies."""
    return output / f"seed-{seed}"


def read_results(
    places: Sequence[str | os.PathLike[str]], pass_over: Callable[[str], None] | None = None
) -> list[Result]:
    """The results of run folders, of folders of `--seeds`, and of .json files, each under its folder's or file's name.

    The name of a seed's run is "RECIPE/seed-0". Of equal names the later ones are numbered: "run", "run (2)".
    pass_over: is told, in one line each, of the .json files that are no results and of the seeds that are not finished,
    which are left out as long as there is a result; without it a file that is no result is an error.

    Raises ReidError for a place that holds no result, for a damaged one, and for one of a version that did not keep the
    scores of each query.
    """
    results: list[Result] = []
    left_out: list[str] = []
    for file in [file for place in places for file in _files(Path(place), left_out)]:
        whole = Path(os.path.abspath(file))  # "." has no name
        plain = whole.parent.name if whole.name == "metrics.json" else whole.stem
        if whole.name == "metrics.json" and _SEED.fullmatch(plain):
            plain = f"{whole.parent.parent.name}/{plain}"
        try:
            results.append(_read(file, unused(_printable(plain), {result.name for result in results})))
        except _NoResult as error:
            if pass_over is None or len(places) == 1:
                raise
            left_out.append(f"{error}; it is passed over")
    if not results:
        raise ReidError(f"none of the {len(places)} files is a result: give runs' folders, or copies of metrics.json")
    if pass_over is not None:
        for told in left_out:
            pass_over(told)
    return results


def unused(name: str, taken: Container[str]) -> str:
    """The name, numbered where it is taken."""
    found, number = name, 1
    while found in taken:
        number += 1
        found = f"{name} ({number})"
    return found


# ---- reading


def _files(place: Path, left_out: list[str]) -> list[Path]:
    """The metrics.json files of a place; seeds that are not finished are added to `left_out`."""
    if not place.is_dir():
        if not place.exists():
            raise ReidError(f"no result at {place}: give a run's folder or .json file")
        return [place]
    file = place / "metrics.json"
    if file.exists():
        return [file]
    seeds = sorted((int(found[1]), folder) for folder in place.iterdir() if (found := _SEED.fullmatch(folder.name)))
    files = [folder / "metrics.json" for _, folder in seeds]
    done = [file for file in files if file.exists()]
    if not done:
        raise ReidError(f"no result at {file}: the run is not finished, or is none")
    left_out += [f"{file.parent} is not finished; it is passed over" for file in files if file not in done]
    return done


def _read(file: Path, name: str) -> Result:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ReidError(f"{file} is damaged, it holds no JSON: {_DAMAGED}") from None
    if not isinstance(kept, dict) or "rank1" not in kept:
        raise _NoResult(f"{file} is no result of a run: give a run's folder, or a copy of its metrics.json")
    if "queries" not in kept:
        raise ReidError(
            f"{file} is of an older version, without the scores of each query: score its model again "
            "(python run_reid.py evaluate --weights ...)"
        )
    for key, kinds in _TYPES.items():
        if not isinstance(kept.get(key, None if key in _LATER else ...), kinds):
            expected = " or ".join("null" if kind is _NONE else kind.__name__ for kind in kinds)
            raise ReidError(f"{file} is damaged, {key} should be {expected}, got {kept.get(key)!r:.40}: {_DAMAGED}")
    if len(kept["input_size"]) != 2 or not all(isinstance(side, int) for side in kept["input_size"]):
        raise ReidError(f"{file} is damaged, input_size should be two integers, got {kept['input_size']}: {_DAMAGED}")
    height, width = kept["input_size"]
    pids, values = _queries(kept, file)
    return Result(
        name=name,
        command=_printable(kept["command"]),
        dataset=_printable(kept["dataset"]),
        official_split=kept["official_split"],
        backbone=_printable(kept["backbone"]),
        input_size=(height, width),
        parameters=kept["parameters"],
        multiply_adds=kept.get("multiply_adds"),
        image_passes=kept["image_passes"],
        train_seconds=kept["train_seconds"],
        num_gallery=kept["num_gallery"],
        images={part: str(kept["images"].get(part)) for part in ("query", "gallery")},
        pids=pids,
        values=values,
        seed=_seed(kept),
        kin=_kin(kept),
    )


def _seed(kept: dict[str, Any]) -> int | None:
    seed = (kept.get("recipe") or {}).get("seed")
    return seed if isinstance(seed, int) else None


def _kin(kept: dict[str, Any]) -> str | None:
    """What runs of one recipe share: all values but the seed, what they were trained on, how they were scored.

    None where the recipe has no seed, and for a model that was given to a version which did not keep what it was
    trained on. Of held-out identities the seed decides how many images are left, so only their share is compared.
    """
    trained_here, data = kept["train_seconds"] is not None, kept.get("trained_on")
    if _seed(kept) is None or not (data or trained_here):
        return None
    recipe = {key: value for key, value in kept["recipe"].items() if key != "seed"}
    if data:
        data = {key: data.get(key) for key in ("name", "images", "identities", "held_out")}
        if data["held_out"]:
            del data["images"]
    method = kept.get("method") or {}
    plain = not any(method.get(key) for key in ("distractors", "multi_query", "expand", "rerank"))
    shared = [
        recipe,
        None if trained_here else data,
        None if plain else method,
        kept["dataset"],
        kept["backbone"],
        kept["input_size"],
        kept["parameters"],
    ]
    return json.dumps(shared, sort_keys=True)


def _queries(kept: dict[str, Any], file: Path) -> tuple[np.ndarray, np.ndarray]:
    """pids (Q,) and the values (4, Q) of a file, found to agree with each other and with the file's means."""
    columns = {}
    for key in ("pid", *(key for _, _, key in _MEASURES)):
        column = kept["queries"].get(key)
        if not isinstance(column, list) or not all(x is None or _is_number(x) for x in column):
            raise ReidError(f"{file} is damaged, queries.{key} should be a list of numbers: {_DAMAGED}")
        columns[key] = np.array([math.nan if x is None else float(x) for x in column])
    lengths = {key: len(column) for key, column in columns.items()}
    if len(set(lengths.values())) > 1:
        raise ReidError(f"{file} is damaged, its lists of queries differ in length, {lengths}: {_DAMAGED}")
    pids = columns.pop("pid")
    first = columns["first_rank"]
    columns["first_rank"] = np.where(np.isnan(first), math.nan, first == 1)
    values = np.array(list(columns.values()))
    none = np.isnan(values)
    within = (none | ((values >= 0) & (values <= 1))).all()
    if not within or not np.isfinite(pids).all() or (none != none[0]).any() or none.all():
        raise ReidError(f"{file} is damaged, its queries hold values that are not scores: {_DAMAGED}")
    for (_, key, _), row in zip(_MEASURES, values):
        mean = float(np.nanmean(row))
        if not _is_number(kept.get(key)) or not math.isclose(kept[key], mean, abs_tol=1e-5):
            raise ReidError(
                f"{file} is damaged, its {key} is {kept.get(key)!r:.40} and its queries give {mean:.6f}: {_DAMAGED}"
            )
    return pids.astype(np.int64), values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63


def _printable(text: str) -> str:
    """On one line, and without bytes that are no text: file names and command lines may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
