"""Recipes side by side: runs of one recipe are one row, and a difference counts what another seed would change.

    python run_reid.py compare runs/a docs/results/b.json [--baseline NAME] [--markdown | --latex]

A run is its folder or a copy of its metrics.json, which holds what is needed: the scores of every query. Only runs on
the same query and gallery images are compared. Imports neither torch nor matplotlib.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from reid.core.types import ReidError
from reid.report.results import MEASURES, Result, unused
from reid.retrieval.bootstrap import Interval, over_people, over_seeds, resample

PAIRED = MEASURES[:2]  # whose differences to the baseline are given


@dataclass(frozen=True, eq=False)
class Compared:
    """A recipe beside the baseline: one run, or several that differ in the seed. Fractions; the means are over the
    queries that have a match, and over the seeds."""

    name: str
    runs: tuple[Result, ...]
    measured: dict[str, Interval]  # by MEASURES; of several seeds the interval counts seeds and people, else people
    deviation: dict[str, float]  # by MEASURES: the standard deviation over the seeds; empty with one seed
    is_baseline: bool = False
    difference: dict[str, Interval] = field(default_factory=dict)  # this recipe less the baseline, by PAIRED
    knows_seeds: bool = False  # whether the difference counts the seeds: this recipe or the baseline has several


def by_images(results: Sequence[Result]) -> list[list[Result]]:
    """The results that are on the same query and gallery images together, in the order in which they come."""
    sets: dict[tuple[str, str, bytes], list[Result]] = {}
    for result in results:
        key = (result.images["query"], result.images["gallery"], result.pids.tobytes())
        sets.setdefault(key, []).append(result)
    return list(sets.values())


def recipes_of(results: Sequence[Result]) -> dict[str, list[Result]]:
    """The runs of each recipe, by rising seed, under its name: the folder's that holds them, or its lowest seed's.

    Runs are of one recipe where they differ in the seed alone (`Result.kin`). A recipe has a seed once: the same seed
    again is a row of its own, since it tells nothing of what another seed changes.
    """
    groups: list[list[Result]] = []
    for result in results:
        for group in groups:
            if result.kin is not None and group[0].kin == result.kin and result.seed not in {r.seed for r in group}:
                group.append(result)
                break
        else:
            groups.append([result])
    named: dict[str, list[Result]] = {}
    for group in groups:
        group.sort(key=lambda result: result.seed or 0)
        folders = {result.name.rpartition("/")[0] for result in group}
        folder = folders.pop() if len(group) > 1 and len(folders) == 1 else ""
        named[unused(folder or group[0].name, named)] = group
    return named


def compare(results: Sequence[Result], baseline: str | None = None) -> list[Compared]:
    """The recipes of the results, in their order, each with its intervals and its difference to the baseline.

    baseline: the name of a recipe or of one of its runs; by default the first. The resampled people are the same for
    all. Of two recipes with one seed each the difference's interval is of the people alone; otherwise it counts the
    seeds too, see `reid.retrieval.bootstrap.over_seeds`. Raises ReidError where the runs are on different images, and
    where nothing is named `baseline`.
    """
    _refuse_other_images(results)
    named = recipes_of(results)
    base = next(iter(named)) if baseline is None else _find(baseline, named)
    runs = [result for group in named.values() for result in group]
    at, rows = {}, 0
    for name, group in named.items():
        at[name] = range(rows, rows := rows + len(group))
    resampled = [resample(np.array([run.values[m] for run in runs]), runs[0].pids) for m in range(len(MEASURES))]
    compared = []
    for name, group in named.items():
        mine, theirs = at[name], at[base]
        several = len(group) > 1
        measured, difference = {}, {}
        for measure, found in zip(MEASURES, resampled):
            if several:
                measured[measure] = _within(over_seeds(found, mine))
            else:
                (measured[measure],) = over_people(found.means[mine], found.draws[:, mine])
            if name == base or measure not in PAIRED:
                continue
            if several or len(theirs) > 1:
                difference[measure] = over_seeds(found, mine, theirs)
            else:
                less = found.draws[:, mine] - found.draws[:, theirs]
                (difference[measure],) = over_people(found.means[mine] - found.means[theirs], less)
        deviation = {m: float(found.means[mine].std(ddof=1)) for m, found in zip(MEASURES, resampled) if several}
        knows = name != base and (several or len(theirs) > 1)
        compared.append(Compared(name, tuple(group), measured, deviation, name == base, difference, knows))
    return compared


def is_named(name: str, results: Sequence[Result]) -> bool:
    """Whether `compare` of these results takes the name for a baseline."""
    named = recipes_of(results)
    return name in named or any(result.name == name for result in results)


def _find(baseline: str, named: dict[str, list[Result]]) -> str:
    if baseline in named:
        return baseline
    for name, group in named.items():
        if any(result.name == baseline for result in group):
            return name
    raise ReidError(f"no run is named {baseline!r}: --baseline takes one of {', '.join(named)}")


def _within(interval: Interval) -> Interval:
    """Of scores: Student's interval may pass 0 or 1."""
    return Interval(interval.mean, max(0.0, interval.low), min(1.0, interval.high))


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
