"""Curves of a training, and the distributions of a run's scores."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import numpy as np

from reid.core.files import atomic_file
from reid.report.sheets import RIGHT, WRONG
from reid.retrieval.evaluate import Scores
from reid.retrieval.verification import HISTOGRAM_EDGES, Verification


def draw_curves(history: Sequence[dict[str, Any]], output: str | os.PathLike[str]) -> None:
    """Writes a PNG of a training: loss and its parts, learning rate, and each head's accuracy, Rank-1 and spread.

    `history` has one dict an epoch, at least one: epoch, lr, loss; losses, its parts by name; rank1 of all heads
    together; and heads, a list of name, accuracy, rank1 and spread. accuracy and rank1 are fractions in [0, 1], rank1
    None where it was not measured; spread is in [0, 1].
    """
    from matplotlib.figure import Figure  # lazily: slow to import; Figure without pyplot draws by Agg, with no display

    epochs = [entry["epoch"] for entry in history]
    marker = "o" if len(history) == 1 else None
    figure = Figure(figsize=(12, 9.6), layout="constrained")
    axes = figure.subplots(3, 2).ravel()
    axes[0].plot(epochs, [entry["loss"] for entry in history], color="black", marker=marker, label="loss")
    for part in history[0]["losses"]:
        axes[0].plot(epochs, [entry["losses"][part] for entry in history], marker=marker, label=part)
    axes[0].set(title="Loss", ylabel="loss, mean over the epoch")
    axes[0].legend(frameon=False)
    axes[1].plot(epochs, [entry["lr"] for entry in history], color="black", marker=marker)
    axes[1].set(title="Learning rate", ylabel="learning rate at the epoch's end")

    for i, name in enumerate(dict.fromkeys(head["name"] for entry in history for head in entry["heads"])):
        style: dict[str, Any] = {"color": f"C{i % 10}", "linestyle": ("-", "--", ":")[i % 3], "label": name}
        rows = [(entry["epoch"], head) for entry in history for head in entry["heads"] if head["name"] == name]
        x = [epoch for epoch, _ in rows]
        axes[2].plot(x, [100 * head["accuracy"] for _, head in rows], marker=marker, **style)
        axes[4].plot(x, [head["spread"] for _, head in rows], marker=marker, **style)
        _plot_measured(axes[3], [(epoch, head["rank1"]) for epoch, head in rows], **style)
    together = [(entry["epoch"], entry["rank1"]) for entry in history]
    _plot_measured(axes[3], together, color="black", linewidth=2.5, label="all together (Rank-1)")
    axes[2].set(title="Accuracy of each head on training images", ylabel="accuracy (%)")
    axes[3].set(title="Rank-1 of each head alone, on the identities watched", ylabel="Rank-1 (%)")
    axes[4].set(title="Spread of each head's features", ylabel="spread (0: collapsed to a constant)")
    if not axes[3].lines:
        axes[3].text(0.5, 0.5, "not measured", transform=axes[3].transAxes, ha="center", color="0.4")

    for ax in axes[:5]:
        ax.set(xlabel="epoch", xlim=axes[0].get_xlim())
        ax.set_ylim(bottom=0)
        ax.grid(True, color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    axes[5].axis("off")
    shown = {line.get_label(): line for line in (*axes[2].lines, *axes[3].lines)}
    if shown:
        axes[5].legend(shown.values(), shown.keys(), title="heads", loc="center", ncols=2, frameon=False)
    with atomic_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _plot_measured(ax: Any, points: Sequence[tuple[int, float | None]], **style: Any) -> None:
    """A dot for each (epoch, fraction) that was measured, joined, in percent."""
    measured = [(epoch, 100 * value) for epoch, value in points if value is not None]
    if measured:
        ax.plot(*zip(*measured, strict=True), marker="o", markersize=4, **style)


def draw_scores(
    scores: Scores, verification: Verification | None, output: str | os.PathLike[str], *, title: str
) -> None:
    """Writes a PNG of the CMC curve and, with a verification, of how pairs score and of the ROC curve."""
    from matplotlib.figure import Figure  # lazily, as in `draw_curves`

    figure = Figure(figsize=(15, 4.6), layout="constrained")
    figure.suptitle(_plain(title), fontsize=12)
    cmc, pairs, roc = figure.subplots(1, 3)
    ranks = np.arange(1, len(scores.cmc) + 1)
    cmc.plot(ranks, 100 * scores.cmc, color="black", marker="o", markersize=3)
    cmc.set(title="CMC", xlabel="rank", ylabel="queries with a hit by that rank (%)", ylim=(0, 102))
    if verification is None:
        for ax in (pairs, roc):
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", color="0.4")
    else:
        v = verification
        colours = ([x / 255 for x in RIGHT], [x / 255 for x in WRONG])
        counts = ((v.genuine_histogram, v.num_genuine), (v.impostor_histogram, v.num_impostor))
        for (bins, of), words, colour in zip(counts, ("one person", "two people"), colours):
            pairs.stairs(100 * bins / of, HISTOGRAM_EDGES, fill=True, alpha=0.35, color=colour)
            pairs.stairs(100 * bins / of, HISTOGRAM_EDGES, color=colour, label=f"{words}: {of:,} pairs")
        seen = np.flatnonzero(v.genuine_histogram + v.impostor_histogram)
        pairs.set(
            title="Scores of pairs",
            xlabel="cosine similarity",
            ylabel="share of the pairs (%)",
            xlim=(HISTOGRAM_EDGES[seen[0]], HISTOGRAM_EDGES[seen[-1] + 1]),
        )
        pairs.set_ylim(top=1.3 * pairs.get_ylim()[1])  # room for the legend
        pairs.legend(frameon=False)
        roc.plot(np.maximum(v.curve_fpr, 1 / v.num_impostor), 100 * v.curve_tpr, color="black")
        roc.set(title="ROC", xscale="log", xlabel="FPR", ylabel="TPR (%)", ylim=(0, 102))
        for point in v.points:
            if point.tpr is not None:
                roc.plot(point.fpr, 100 * point.tpr, "o", color="black", markersize=4)
                roc.annotate(
                    f"{100 * point.tpr:.1f}",
                    (point.fpr, 100 * point.tpr),
                    (-5, 5),
                    ha="right",
                    textcoords="offset points",
                )
    for ax in (cmc, pairs, roc):
        ax.set_ylim(bottom=0)
        ax.grid(True, color="0.9")
        ax.set_axisbelow(True)
        ax.spines[["top", "right"]].set_visible(False)
    with atomic_file(output) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _plain(words: str) -> str:
    """For matplotlib, which takes $ for mathematics."""
    return words.replace("$", r"\$")
