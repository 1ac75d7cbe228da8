"""The report of a finished run: metrics.json, report.md, ranked.png, scores.png and curves.png in the run's folder."""

from __future__ import annotations

import importlib.metadata
import math
import platform
import statistics
import textwrap
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from reid.core.files import write_text
from reid.core.tables import markdown_table, markdown_text
from reid.core.types import DISTRACTOR, JUNK, Sample, Splits
from reid.models.card import start_note
from reid.report.metrics import MAIN_KEYS, ExtraMetrics, RunRecord, extra_metrics, measure_extra, metrics, metrics_text
from reid.report.plots import draw_curves, draw_scores
from reid.report.published import PUBLISHED
from reid.report.sheets import choose_queries, draw_ranked, ranked_rows
from reid.retrieval.bootstrap import LEVEL, RESAMPLES, intervals
from reid.retrieval.evaluate import Scores
from reid.retrieval.protocol import COSINE, Method

if TYPE_CHECKING:
    from scipy.sparse import csr_array


def write_report(
    output: Path,
    *,
    splits: Splits,
    scores: Scores,
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    run: RunRecord,
    history: Sequence[dict[str, Any]] | None = None,
    method: Method = COSINE,
    bonus: csr_array | None = None,
) -> None:
    """Writes ranked.png, scores.png, curves.png (with a `history`), report.md and metrics.json into `output`.

    Features are (Q, D) and (G, D) of unit length, rows as in `splits.query` and `splits.gallery`; memory-mapped ones
    are read in blocks. They, and the `bonus` (see `reid.retrieval.evaluate`), are what `method` says. `history` is
    training's,
    one dict an epoch (see `reid.report.sheets.draw_curves`). Each file is written whole; metrics.json comes last, so
    where it is, the report is complete.
    """
    chosen = choose_queries(scores.average_precision)
    rows = ranked_rows(chosen, splits, scores, query_features, gallery_features, bonus=bonus)
    draw_ranked(
        rows, output / "ranked.png", title=f"{_title(splits, run)}: the worst queries, then better ones up to the best"
    )
    if history:
        draw_curves(history, output / "curves.png")
    further = measure_extra(splits, query_features, gallery_features, bonus)
    draw_scores(scores, further.verification, output / "scores.png", title=_title(splits, run))
    text = report_text(splits, scores, run, history, method, further)
    write_text(output / "report.md", text.encode("utf-8", "backslashreplace").decode())  # paths may hold any bytes
    values = metrics(splits, scores, run, history)
    queries = values.pop("queries")  # last: it is long
    values |= {"method": asdict(method)} | extra_metrics(further) | {"queries": queries}
    write_text(output / "metrics.json", metrics_text(values))


def summary_table(splits: Splits, scores: Scores, run_name: str = "this run") -> str:
    """The scores in percent, aligned for a terminal, and what they were counted on. No newline at the end."""
    columns = {
        "Rank-1": scores.rank1,
        "Rank-5": scores.rank5,
        "Rank-10": scores.rank10,
        "mAP": scores.mAP,
        "mAP (trapezoid)": scores.mAP_trapezoid,
        "mINP": scores.mINP,
    }
    first = max(len(splits.name), len(run_name))
    widths = [max(len(name), len("100.0")) for name in columns]
    names = [name.rjust(width) for name, width in zip(columns, widths, strict=True)]
    values = [_percent(value).rjust(width) for value, width in zip(columns.values(), widths, strict=True)]
    split = " (not the official split)" if splits.official_split is False else ""
    return "\n".join(
        (
            "  ".join((splits.name.ljust(first), *names)),
            "  ".join((run_name.ljust(first), *values)),
            f"percent; {_queries(scores)}{split}",
        )
    )


def report_text(
    splits: Splits,
    scores: Scores,
    run: RunRecord,
    history: Sequence[dict[str, Any]] | None,
    method: Method,
    further: ExtraMetrics,
) -> str:
    """report.md, which links ranked.png, scores.png and, with a `history`, curves.png beside it."""
    parts = [f"# {_title(splits, run)}", *_notice(splits), *_scores(splits, scores, method)]
    parts += _published(splits, scores, run)
    parts += ["## Ranked lists", "![Queries with their ten nearest gallery images](ranked.png)"]
    parts.append(
        "Green with a tick: the same person; red with a cross: another. Images of the query's person from its own "
        "camera, and junk, are left out, as in the scores. Under each image: cosine similarity, camera, person."
    )
    parts += _further(further, method)
    parts += _training(run, history)
    parts += ["## Model", _model(run), "## Data", _data(splits), "## Run", _run(run)]
    return "\n\n".join(parts) + "\n"


def _title(splits: Splits, run: RunRecord) -> str:
    return f"{run.backbone} on {splits.name}" + (" (not the official split)" if splits.official_split is False else "")


def _notice(splits: Splits) -> list[str]:
    if splits.official_split is False:
        first = "**This is not the official split**: published figures are for orientation, not for comparison."
    elif splits.official_split:
        first = "The official split: its counts equal the published ones."
    else:
        first = "There is no official split of this data set: compare only with figures measured on the same files."
    return [
        "\n".join(
            [first, *([""] if splits.warnings else []), *(f"- {markdown_text(warning)}" for warning in splits.warnings)]
        )
    ]


def _scores(splits: Splits, scores: Scores, method: Method) -> list[str]:
    header = ("Rank-1", "Rank-5", "Rank-10", "mAP (step)", "mAP (trapezoid)", "mINP")
    values = (scores.rank1, scores.rank5, scores.rank10, scores.mAP, scores.mAP_trapezoid, scores.mINP)
    rules = (
        "- mAP (step) is the mean of the precision at each hit: the rule of torchreid, fastreid and BagOfTricks.",
        "- mAP (trapezoid) is the rule of the official Market-1501 and CUHK03-NP scripts.",
        "- mINP is the mean of hits / rank of the last hit.",
    )
    rows, note = [[_percent(value) for value in values]], f"In percent, {_queries(scores)}; {method}."
    ranks = [np.where(scores.valid, scores.first_rank <= rank, np.nan) for rank in (1, 5, 10)]
    measured = np.array([*ranks, scores.average_precision, scores.trapezoid, scores.inverse_penalty])
    pids = np.array([sample.pid for sample in splits.query])
    if len(np.unique(pids[scores.valid])) > 1:
        rows.append([f"{_percent(x.low)} to {_percent(x.high)}" for x in intervals(measured, pids)])
        note += (
            f" Below the scores: the {LEVEL:.0%} percentile interval of {RESAMPLES:,} bootstrap resamples of the query "
            "people, each with all of their queries."
        )
    return ["## Scores", markdown_table(header, rows), note, "\n".join(rules)]


def _further(further: ExtraMetrics, method: Method) -> list[str]:
    parts = []
    if further.camera_pairs:
        mine, others = (sorted({pair[side] for pair in further.camera_pairs}) for side in (0, 1))
        rows = []
        for camera in mine:
            found = [further.camera_pairs.get((camera, other)) for other in others]
            rows.append(
                [f"{camera}", *("" if s is None else f"{_percent(s.rank1)} / {_percent(s.mAP)}" for s in found)]
            )
        parts += [
            "## Camera by camera",
            markdown_table(("query camera", *(f"gallery camera {other}" for other in others)), rows),
            "Rank-1 / mAP (step) of the queries of one camera, where the gallery holds one other camera's images only.",
        ]
    parts += ["## Same person or not", "![CMC, scores of pairs of one person and of two, ROC](scores.png)"]
    if further.verification:
        v = further.verification
        rows = [[f"{p.fpr:g}", _percent(p.tpr), "-" if p.threshold is None else f"{p.threshold:.4f}"] for p in v.points]
        parts += [
            markdown_table(("FPR", "TPR (%)", "above cosine"), rows),
            f"Verification: all {v.num_genuine:,} pairs of a query and a gallery image of one person from two cameras, "
            f"and all {v.num_impostor:,} of two people. Area under the ROC curve {v.auc:.4f}, equal error rate "
            f"{_percent(v.eer)} %. A dash: fewer than 10 false accepts are expected at that FPR.",
        ]
    if further.open_set:
        o = further.open_set
        rows = [
            [
                f"{p.fpir:.0%}",
                "-" if p.tpir is None or p.std is None else f"{_percent(p.tpir)} ± {_percent(p.std)}",
                "-" if p.threshold is None else f"{p.threshold:.4f}",
            ]
            for p in o.points
        ]
        parts += [
            markdown_table(("FPIR", "TPIR at rank 1 (%)", "above cosine"), rows),
            f"Open set: a half of the query people is taken out of the gallery, {o.draws} times; mean and standard "
            f"deviation over the draws, each of about {o.num_mated:,.0f} queries for people in the gallery and "
            f"{o.num_non_mated:,.0f} for people who are not (NISTIR 8271).",
        ]
    if method.rerank and (further.verification or further.open_set):
        parts.append("Both go by the cosine similarity; re-ranked scores compare within one query only.")
    return parts + further.missing


def _published(splits: Splits, scores: Scores, run: RunRecord) -> list[str]:
    published = PUBLISHED.get(splits.name)
    if not published:
        return ["## Beside published figures", f"There are no published figures for {splits.name}."]
    name = "**this run**" + (" (not the official split)" if splits.official_split is False else "")
    network = f"{run.backbone}, {_size(run)}"
    rows = [[name, network, f"**{_percent(scores.rank1)}**", f"**{_percent(scores.mAP)}**", "step", ""]]
    rows += [[name, network, f"**{_percent(scores.rank1)}**", f"**{_percent(scores.mAP_trapezoid)}**", "trapezoid", ""]]
    rows += [[p.method, p.backbone, _digits(p.rank1), _digits(p.mAP), p.rule, p.source] for p in published]
    return [
        "## Beside published figures",
        markdown_table(("method", "backbone", "Rank-1", "mAP", "mAP rule", "source"), rows),
    ]


def _training(run: RunRecord, history: Sequence[dict[str, Any]] | None) -> list[str]:
    rows: list[list[str]] = []
    if run.weights is not None:
        rows.append(["weights given", markdown_text(run.weights)])
    if run.train_seconds is not None:
        rows.append(["time", _duration(run.train_seconds)])
    if history:
        last = history[-1]
        rows.append(["length", f"{len(history)} epochs, {last['step']:,} steps, {last['images']:,} image passes"])
        speed = statistics.median(entry["images_per_second"] for entry in history)
        wait = statistics.median(entry["data_wait"] for entry in history)
        rows.append(["speed, median epoch", f"{speed:,.0f} images a second, {wait:.1%} of the time waiting for data"])
        parts = ", ".join(f"{name} {value:.3f}" for name, value in last["losses"].items())
        rows.append(["loss, last epoch", f"{last['loss']:.3f} ({parts})"])
    main = [
        f"{key} {markdown_text(str(run.recipe[key]))}" for key in MAIN_KEYS if run.recipe.get(key) not in (None, "", [])
    ]
    if main:
        rows.append(["recipe", f"{', '.join(main)} (all of it: {'metrics.json' if run.weights else 'config.yaml'})"])
    if start_note(run.recipe):
        rows.append(["start", start_note(run.recipe) or ""])
    for name, terms in ((run.trained_on or {}).get("terms") or {}).items():
        rows.append([f"terms of {name}, on which the model was trained", terms])
    section = ["## Training", markdown_table(("", ""), rows) if rows else "Nothing is known of the training."]
    if history:
        section.append("![Loss, learning rate, and each head's accuracy, Rank-1 and spread](curves.png)")
        section.append(_heads(history, "held-out" if run.recipe.get("holdout") else "training"))
    return section


def _heads(history: Sequence[dict[str, Any]], watched: str) -> str:
    """Each head at the end of the training; Rank-1 as last measured, on `watched` identities."""
    heads = history[-1]["heads"]
    if not heads:
        return "No head was watched."
    rank1 = {head["name"]: head["rank1"] for entry in history for head in entry["heads"] if head["rank1"] is not None}
    together = [entry["rank1"] for entry in history if entry["rank1"] is not None]
    rows = [
        [head["name"], _percent(head["accuracy"]), f"{head['spread']:.2f}", _percent(rank1.get(head["name"]))]
        for head in heads
    ]
    rows.append(["all together", "", "", _percent(together[-1] if together else None)])
    names = ("head", "accuracy on training images (%)", "spread", f"Rank-1 alone, {watched} identities (%)")
    return markdown_table(names, rows) + "\n\nA spread near 0 is a head that has collapsed to a constant."


def _model(run: RunRecord) -> str:
    rows = [["backbone", run.backbone], ["input", _size(run)], ["parameters", f"{run.parameters:,}"]]
    if run.multiply_adds is not None:
        rows.append(["multiply-adds an image", f"{run.multiply_adds:,}"])
    if run.embed_images_per_second is not None:
        rows.append(["embedding speed", f"{run.embed_images_per_second:,.1f} images a second"])
    rows.append(["fingerprint of the weights", f"`{run.fingerprint}`"])
    return markdown_table(("", ""), rows)


def _data(splits: Splits) -> str:
    rows = [[name, *_counts(getattr(splits, name))] for name in ("train", "query", "gallery")]
    return markdown_table(("", "images", "people", "cameras", "distractors", "junk"), rows)


def _counts(samples: Sequence[Sample]) -> list[str]:
    people = {s.pid for s in samples} - {JUNK, DISTRACTOR}
    nobody = [sum(s.pid == pid for s in samples) for pid in (DISTRACTOR, JUNK)]
    return [f"{n:,}" for n in (len(samples), len(people), len({s.camid for s in samples}), *nobody)]


def _run(run: RunRecord) -> str:
    versions = [f"python {platform.python_version()}"]
    versions += [f"{name} {_version(*names)}" for name, names in _PACKAGES.items()]
    revision = f"git revision `{run.git_revision}`" if run.git_revision else "git revision not known"
    return f"{textwrap.indent(run.command, '    ', lambda _: True)}\n\n{', '.join(versions)}; {revision}."


_PACKAGES = {"torch": ("torch",), "faiss": ("faiss-cpu", "faiss-gpu"), "numpy": ("numpy",)}


def _version(*distributions: str) -> str:
    for distribution in distributions:
        try:
            return importlib.metadata.version(distribution)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "not installed"


def _queries(scores: Scores) -> str:
    lost = scores.num_query_without_match
    left_out = f" ({lost:,} without a match, left out of the means)" if lost else " (each with a match)"
    return f"{scores.num_query:,} queries{left_out}, {scores.num_gallery:,} gallery images"


def _size(run: RunRecord) -> str:
    return f"{run.input_size[0]}x{run.input_size[1]}"


def _percent(fraction: float | None) -> str:
    return "-" if fraction is None or math.isnan(fraction) else f"{100 * fraction:.1f}"


def _digits(percent: float) -> str:
    """As printed in the papers: one decimal, or two where they give two."""
    return f"{percent:.1f}" if math.isclose(percent, round(percent, 1)) else f"{percent:.2f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s" if minutes else f"{seconds:.1f} s"
