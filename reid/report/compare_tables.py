"""What `compare` found, written: for a terminal, as Markdown, as LaTeX."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np

from reid.core.tables import aligned_table, latex_table, latex_text, markdown_table
from reid.report.compare import PAIRED, Compared
from reid.report.results import MEASURES
from reid.retrieval.bootstrap import LEVEL, RESAMPLES, Interval

FACTS = ("backbone", "input", "parameters", "multiply-adds", "image passes", "minutes")


def as_text(compared: Sequence[Compared]) -> str:
    """Tables for a terminal: scores, differences to the baseline, seeds, what was run. No newline at the end."""
    seeds, seeds_of = _seeds(compared)
    parts = [aligned_table(("run", *seeds, *MEASURES), [[c.name, *seeds_of(c), *_scores(c)] for c in compared])]
    others = [c for c in compared if c.difference]
    if others:
        header = (f"less {_baseline(compared)}", *PAIRED)
        parts.append(aligned_table(header, [[c.name, *(_signed(c.difference[m]) for m in PAIRED)] for c in others]))
    parts += _notes(compared)
    if seeds:
        parts.append(aligned_table(("seeds of a recipe", "seed", *MEASURES), _each_seed(compared)))
    parts.append(aligned_table(("run", *FACTS), [[c.name, *_facts(c)] for c in compared]))
    commands = _commands(compared)
    width = max(len(name) for name, _ in commands)
    parts.append("\n".join(f"{name.ljust(width)}  {command}" for name, command in commands))
    return "\n\n".join(parts)


def as_markdown(compared: Sequence[Compared]) -> str:
    """One table, a row a recipe, what its intervals are, and the commands. No newline at the end."""
    header, rows = _whole(compared)
    commands = [f"    # {name}\n    {command}" for name, command in _commands(compared)]
    return "\n\n".join([markdown_table(header, rows), *_notes(compared), "\n".join(commands)])


def as_latex(compared: Sequence[Compared]) -> str:
    """The table of `as_markdown` for LaTeX with the package booktabs, the notes its caption, the commands as comments.

    No newline at the end.
    """
    header, rows = _whole(compared)
    texts = 1 + len(_seeds(compared)[0]) + 2  # the first columns, to the left: name, seeds, backbone, input
    aligned = "l" * texts + "r" * (len(header) - texts)
    caption = latex_text(_minus(" ".join(_notes(compared))))
    return "\n".join(
        [
            r"% \usepackage{booktabs}",
            *(f"% {name}: {command}" for name, command in _commands(compared)),
            r"\begin{table}",
            r"\centering",
            latex_table(header, [[*row[:texts], *map(_minus, row[texts:])] for row in rows], aligned),
            rf"\caption{{{caption}}}",
            r"\end{table}",
        ]
    )


def seeds_table(seeds: Sequence[int], columns: Mapping[str, Sequence[float | None]], form: str) -> str:
    """A row a seed, then the mean and the standard deviation, which leave out None. No newline at the end.

    columns: by their headers, a value a seed. form: of a number, as in f"{value:{form}}".
    """

    def shown(values: Iterable[float | None]) -> list[str]:
        return ["-" if value is None else f"{value:{form}}" for value in values]

    known = [[value for value in column if value is not None] for column in columns.values()]
    rows = [[str(seed), *shown(column[i] for column in columns.values())] for i, seed in enumerate(seeds)]
    rows.append(["mean", *shown(float(np.mean(values)) if values else None for values in known)])
    deviations = [float(np.std(values, ddof=1)) if len(values) > 1 else None for values in known]
    rows.append(["standard deviation", *shown(deviations)])
    return aligned_table(("seed", *columns), rows)


# ---- parts


def _whole(compared: Sequence[Compared]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of the one table that holds all."""
    seeds, seeds_of = _seeds(compared)
    header = ["run", *seeds, *FACTS, *MEASURES]
    rows = [[c.name, *seeds_of(c), *_facts(c), *_scores(c)] for c in compared]
    if len(compared) > 1:
        header.append(f"mAP less {_baseline(compared)}")
        for row, c in zip(rows, compared):
            row.append(_signed(c.difference["mAP"]) if c.difference else "baseline")
    return header, rows


def _seeds(compared: Sequence[Compared]) -> tuple[list[str], Callable[[Compared], list[str]]]:
    """The header of the column of seeds and its cell of a row; both empty where no recipe has several."""
    if not any(c.deviation for c in compared):
        return [], lambda c: []
    return ["seeds"], lambda c: [", ".join("-" if r.seed is None else str(r.seed) for r in c.runs)]


def _each_seed(compared: Sequence[Compared]) -> list[list[str]]:
    several = [run for c in compared if c.deviation for run in c.runs]
    return [[r.name, str(r.seed), *(f"{100 * x:.1f}" for x in np.nanmean(r.values, axis=1))] for r in several]


def _baseline(compared: Sequence[Compared]) -> str:
    return next(c.name for c in compared if c.is_baseline)


def _scores(c: Compared) -> list[str]:
    cells = []
    for name, interval in c.measured.items():
        mean, low, high = (f"{100 * value:.1f}" for value in interval)
        spread = f" ± {100 * c.deviation[name]:.1f}" if c.deviation else ""
        cells.append(f"{mean}{spread} [{low}, {high}]")
    return cells


def _signed(interval: Interval) -> str:
    mean, low, high = (f"{100 * value:+.1f}" for value in interval)  # a -0.0 is a little below 0
    return f"{mean} [{low}, {high}]"


def _minus(text: str) -> str:
    """With the sign in place of the hyphen that stands before a number."""
    return re.sub(r"(?<![\w.-])-(?=\d)", "−", text)


def _facts(c: Compared) -> list[str]:
    first = c.runs[0]
    passes, seconds = _mean(r.image_passes for r in c.runs), _mean(r.train_seconds for r in c.runs)
    return [
        first.backbone,
        f"{first.input_size[0]}x{first.input_size[1]}",
        f"{first.parameters:,}",
        "-" if first.multiply_adds is None else f"{first.multiply_adds:,}",
        "-" if passes is None else f"{passes:,.0f}",
        "-" if seconds is None else f"{seconds / 60:,.1f}",
    ]


def _mean(values: Iterable[float | None]) -> float | None:
    known = list(values)
    return None if None in known else float(np.mean([value for value in known if value is not None]))


def _commands(compared: Sequence[Compared]) -> list[tuple[str, str]]:
    """(name, command) of each run; once where the runs of a recipe are of one command."""
    found = []
    for c in compared:
        alike = len({run.command for run in c.runs}) == 1
        found += [(c.name, c.runs[0].command)] if alike else [(run.name, run.command) for run in c.runs]
    return found


def _notes(compared: Sequence[Compared]) -> list[str]:
    """On what images, what the intervals are, and which differences they tell from none."""
    runs = [run for c in compared for run in c.runs]
    base = next(c for c in compared if c.is_baseline)
    first = base.runs[0]
    known = ~np.isnan(first.values[0])
    datasets = ", ".join(dict.fromkeys(run.dataset for run in runs))
    split = " (not the official split)" if any(run.official_split is False for run in runs) else ""
    lost = int((~known).sum())
    left_out = f" ({lost:,} without a match, left out)" if lost else ""
    single = (
        f"the {LEVEL:.0%} percentile interval of {RESAMPLES:,} bootstrap resamples of the people, each with all of "
        "their queries, the same for every run; the variance of a training's seed is not in it"
    )
    several = (
        f"mean ± standard deviation over the seeds, and the {LEVEL:.0%} interval over seeds and people together "
        f"(Obuchowski and Rockette's, the people's part by {RESAMPLES:,} bootstrap resamples)"
    )
    kinds = {bool(c.deviation) for c in compared}
    meaning = {
        (False,): f"In brackets: {single}.",
        (True,): f"Shown: {several}.",
        (False, True): f"With several seeds: {several}. With one, in brackets: {single}.",
    }[tuple(sorted(kinds))]
    notes = [
        f"Percent; {datasets}{split}, {len(known):,} queries of {len(np.unique(first.pids)):,} people{left_out}, "
        f"{first.num_gallery:,} gallery images. {meaning}"
    ]
    others = [c for c in compared if c.difference]
    with_seeds, without = [c for c in others if c.knows_seeds], [c for c in others if not c.knows_seeds]
    if with_seeds:
        borrowed = [c.name for c in (base, *with_seeds) if not c.deviation]
        taken = f" Of {', '.join(borrowed)} with one seed its variance is taken to be the other's." if borrowed else ""
        notes.append(f"Against {base.name}, seeds and people counted: {_verdict(with_seeds)}{taken}")
    if without:
        unknown = "one seed each, so that the seed's variance is unknown and another seed may turn the order"
        notes.append(f"Against {base.name}, {unknown}; by the people alone: {_verdict(without)}")
    if len(others) > 1:
        notes[-1] += " Each interval is of one comparison, not corrected for their number."
    return notes


def _verdict(others: Sequence[Compared]) -> str:
    apart = [
        f"{c.name} has the {'higher' if found.low > 0 else 'lower'} {name} ({_signed(found)})"
        for c in others
        for name, found in c.difference.items()
        if found.excludes_zero
    ]
    said = f"{'; '.join(apart)}. No other" if apart else "no"
    return f"{said} difference of Rank-1 or mAP has an interval that excludes 0."
