"""Finished runs side by side, with bootstrap intervals over people and paired differences: text and Markdown.

    python run_reid.py compare runs/a docs/results/b.json [--baseline NAME] [--markdown]

A run is its folder or a copy of its metrics.json, which holds what is needed: the scores of every query. Only runs on
the same query and gallery images are compared. Imports neither torch nor matplotlib.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from reid.core.tables import aligned_table, markdown_table
from reid.core.types import ReidError
from reid.retrieval.bootstrap import LEVEL, RESAMPLES, Interval, intervals

# What is measured: name in the tables, key of the mean in metrics.json, key of its values in "queries".
_MEASURES = (
    ("Rank-1", "rank1", "first_rank"),
    ("mAP", "mAP", "average_precision"),
    ("mAP (trapezoid)", "mAP_trapezoid", "trapezoid"),
    ("mINP", "mINP", "inverse_penalty"),
)
MEASURES = tuple(name for name, _, _ in _MEASURES)
PAIRED = MEASURES[:2]  # whose differences to the baseline are given
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
    "images": (dict,),
    "queries": (dict,),
}
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
    image_passes: int | None  # None: not trained by that run
    train_seconds: float | None  # likewise
    num_gallery: int
    images: dict[str, str]  # digests of the "query" and the "gallery" images
    pids: np.ndarray  # (Q,) int64
    values: np.ndarray  # (4, Q) float64 in [0, 1], rows as in MEASURES; NaN where the query has no match


class Compared(NamedTuple):
    """A run beside the baseline. Fractions; the means are over the queries that have a match."""

    result: Result
    measured: dict[str, Interval]  # by MEASURES
    difference: dict[str, Interval]  # this run less the baseline, by PAIRED; empty for the baseline itself


def read_results(places: Sequence[str | os.PathLike[str]]) -> list[Result]:
    """The results of run folders and .json files, each under the name of its folder or file.

    Of equal names the later ones are numbered: "run", "run (2)". Raises ReidError for a place that holds no result,
    for a damaged one, and for one of a version that did not keep the scores of each query.
    """
    results: list[Result] = []
    for place in map(Path, places):
        file = place / "metrics.json" if place.is_dir() else place
        if not file.exists():
            expected = "the run is not finished, or is none" if place.is_dir() else "give a run's folder or .json file"
            raise ReidError(f"no result at {file}: {expected}")
        whole = Path(os.path.abspath(file))  # "." has no name
        plain = _printable(whole.parent.name if whole.name == "metrics.json" else whole.stem)
        name, taken, number = plain, {result.name for result in results}, 1
        while name in taken:
            number += 1
            name = f"{plain} ({number})"
        results.append(_read(file, name))
    return results


def compare(results: Sequence[Result], baseline: str | None = None) -> list[Compared]:
    """The results in their order, each with its intervals and its difference to the baseline, by default the first.

    The resampled people are the same for all runs. Raises ReidError where the runs are on different images, and
    where no run is named `baseline`.
    """
    named = {result.name: result for result in results}
    if baseline is not None and baseline not in named:
        raise ReidError(f"no run is named {baseline!r}: --baseline takes one of {', '.join(named)}")
    base = results[0] if baseline is None else named[baseline]
    _refuse_other_images(results)
    paired = len(PAIRED)
    rows = [np.concatenate([result.values, (result.values - base.values)[:paired]]) for result in results]
    found = intervals(np.concatenate(rows), base.pids)
    per_run = len(MEASURES) + paired
    return [
        Compared(
            result,
            dict(zip(MEASURES, found[i * per_run :])),
            {} if result is base else dict(zip(PAIRED, found[i * per_run + len(MEASURES) :])),
        )
        for i, result in enumerate(results)
    ]


def as_text(compared: Sequence[Compared]) -> str:
    """Tables for a terminal: scores, differences to the baseline, what was run. No newline at the end."""
    names = [run.result.name for run in compared]
    parts = [aligned_table(("run", *MEASURES), [[run.result.name, *_scores(run)] for run in compared])]
    others = [run for run in compared if run.difference]
    if others:
        header = (f"less {_baseline(compared)}", *PAIRED)
        parts.append(aligned_table(header, [[run.result.name, *_differences(run)] for run in others]))
    parts.append(_note(compared))
    facts = [
        [r.name, r.backbone, _input(r), f"{r.parameters:,}", _passes(r), _minutes(r)]
        for r in (run.result for run in compared)
    ]
    parts.append(aligned_table(("run", "backbone", "input", "parameters", "image passes", "minutes"), facts))
    width = max(map(len, names))
    parts.append("\n".join(f"{run.result.name.ljust(width)}  {run.result.command}" for run in compared))
    return "\n\n".join(parts)


def as_markdown(compared: Sequence[Compared]) -> str:
    """One table, a row a run, what its intervals are, and the command of each run. No newline at the end."""
    names = ("run", "backbone", "input", "image passes", "minutes", *MEASURES, f"mAP less {_baseline(compared)}")
    rows = []
    for run in compared:
        facts = [run.result.name, run.result.backbone, _input(run.result), _passes(run.result), _minutes(run.result)]
        difference = _signed(run.difference["mAP"]) if run.difference else "baseline"
        rows.append([*facts, *_scores(run), difference])
    if len(compared) == 1:
        names, rows = names[:-1], [row[:-1] for row in rows]
    commands = [f"    # {run.result.name}\n    {run.result.command}" for run in compared]
    return "\n\n".join([markdown_table(names, rows), _note(compared), "\n".join(commands)])


# ---- reading


def _read(file: Path, name: str) -> Result:
    try:
        kept = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise ReidError(f"{file} is damaged, it holds no JSON: {_DAMAGED}") from None
    if not isinstance(kept, dict) or "rank1" not in kept:
        raise ReidError(f"{file} is no result of a run: give a run's folder, or a copy of its metrics.json")
    if "queries" not in kept:
        raise ReidError(
            f"{file} is of an older version, without the scores of each query: score its model again "
            "(python run_reid.py evaluate --weights ...)"
        )
    for key, kinds in _TYPES.items():
        if not isinstance(kept.get(key, ...), kinds):
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
        image_passes=kept["image_passes"],
        train_seconds=kept["train_seconds"],
        num_gallery=kept["num_gallery"],
        images={part: str(kept["images"].get(part)) for part in ("query", "gallery")},
        pids=pids,
        values=values,
    )


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
            raise ReidError(f"{file} is damaged, its {key} is {kept.get(key)!r:.40} and its queries give {mean:.6f}: "
                            f"{_DAMAGED}")  # fmt: skip
    return pids.astype(np.int64), values


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and abs(value) < 2**63


def _refuse_other_images(results: Sequence[Result]) -> None:
    first = results[0]
    told = []
    for result in results[1:]:
        parts = [part for part in first.images if result.images[part] != first.images[part]]
        if not np.array_equal(result.pids, first.pids) and "query" not in parts:
            parts.insert(0, "query")
        if parts:
            told.append(f"{result.name} ({result.dataset}) has other {' and '.join(parts)} images")
    if told:
        raise ReidError(
            f"runs compare on the same images only, here those of {first.name} ({first.dataset}): {', '.join(told)}; "
            "leave those out, or evaluate their models on its images"
        )


def _printable(text: str) -> str:
    """On one line, and without bytes that are no text: file names and command lines may hold any."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


# ---- writing


def _baseline(compared: Sequence[Compared]) -> str:
    return next(run.result.name for run in compared if not run.difference)


def _scores(run: Compared) -> list[str]:
    return [_percent(run.measured[name]) for name in MEASURES]


def _differences(run: Compared) -> list[str]:
    return [_signed(run.difference[name]) for name in PAIRED]


def _percent(interval: Interval) -> str:
    mean, low, high = (f"{100 * value:.1f}" for value in interval)
    return f"{mean} [{low}, {high}]"


def _signed(interval: Interval) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in interval)  # a -0.0 is a little below 0
    return f"{mean} [{low}, {high}]"


def _input(result: Result) -> str:
    return f"{result.input_size[0]}x{result.input_size[1]}"


def _passes(result: Result) -> str:
    return "-" if result.image_passes is None else f"{result.image_passes:,}"


def _minutes(result: Result) -> str:
    return "-" if result.train_seconds is None else f"{result.train_seconds / 60:,.1f}"


def _note(compared: Sequence[Compared]) -> str:
    """On what images, what the intervals are, and which differences they tell from none."""
    base = next(run.result for run in compared if not run.difference)
    known = ~np.isnan(base.values[0])
    datasets = ", ".join(dict.fromkeys(run.result.dataset for run in compared))
    official = any(run.result.official_split is False for run in compared)
    lost = int((~known).sum())
    counts = f"{len(known):,} queries of {len(np.unique(base.pids)):,} people"
    split = " (not the official split)" if official else ""
    left_out = f" ({lost:,} without a match, left out)" if lost else ""
    note = (
        f"Percent; {datasets}{split}, {counts}{left_out}, {base.num_gallery:,} gallery images. In brackets: the "
        f"{LEVEL:.0%} percentile interval of {RESAMPLES:,} bootstrap resamples of the people, each with all of their "
        "queries, the same for every run; the chance of a training's seed is not in it."
    )
    if len(compared) == 1:
        return note
    apart = [
        f"{run.result.name} has the {'higher' if run.difference[name].low > 0 else 'lower'} {name} "
        f"({_signed(run.difference[name])})"
        for run in compared
        for name in run.difference
        if run.difference[name].excludes_zero
    ]
    verdict = f"{'; '.join(apart)}. No other" if apart else "no"
    return f"{note}\n\nAgainst {base.name}: {verdict} difference of Rank-1 or mAP has an interval that excludes 0."
