"""Pictures of a run: ranked lists with right and wrong marked, one search's answer, curves, a page of people.

What is shown (`choose_queries`, `ranked_rows`) is decided by pure functions; the drawing only follows them.
"""

from __future__ import annotations

import functools
import html
import io
import math
import os
from base64 import b64encode
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont
from scipy.sparse import csr_array

from reid.core.files import atomic_file, write_text
from reid.core.types import DISTRACTOR, JUNK, Sample, Splits
from reid.retrieval.evaluate import Scores
from reid.retrieval.verification import HISTOGRAM_EDGES, Verification

CROP_W, CROP_H = 72, 128  # pixels that a crop is fitted into, its aspect kept
FRAME = 5  # pixels of colour around a crop
TILE_W, TILE_H = CROP_W + 2 * FRAME, CROP_H + 2 * FRAME
GAP = 8
QUERY_GAP = 22  # sets the query apart from its answers
MARGIN = 16
TITLE_LINE, CAPTION_LINE, TEXT_LINE = 26, 24, 16  # heights of a line of text
MOST_STRIPS, STRIP_CROPS = 300, 24  # on the page of people, and of a person
PER_LINE = 10  # answers beside each other; more go on below
MOST_DRAWN = 200  # answers of a search: a picture of thousands helps nobody and fills the memory

INK = (32, 32, 32)
PALE_INK = (110, 110, 110)
PAPER = (255, 255, 255)
LETTERBOX = (236, 236, 236)
RIGHT = (0, 145, 80)  # green and red differ in lightness too, and each frame also carries a tick or a cross
WRONG = (205, 30, 40)
UNKNOWN = (150, 150, 150)
QUERY = (40, 70, 140)
MISSING = (190, 190, 190)


@dataclass(frozen=True)
class Tile:
    """One crop in a ranked list. None where a value is not known."""

    path: str | os.PathLike[str]
    score: float | None = None  # cosine similarity to the query, in [-1, 1]
    pid: int | str | None = None
    camid: int | str | None = None
    right: bool | None = None  # same person as the query


@dataclass(frozen=True)
class Row:
    """One query and its answers, nearest first, under a line of text."""

    caption: str
    query: Tile
    answers: tuple[Tile, ...]


def choose_queries(average_precision: np.ndarray, *, worst: int = 4, spread: int = 4) -> list[tuple[str, int]]:
    """Queries worth looking at: the `worst` lowest average precisions, then `spread` even quantiles up to the best.

    `average_precision` is (Q,) in [0, 1], NaN for a query without a match (never chosen); equal values keep the order
    of the queries. Returns (label, position) pairs by rising average precision, each query once.
    """
    valid = np.flatnonzero(~np.isnan(average_precision))
    order = valid[np.argsort(average_precision[valid], kind="stable")]
    if not len(order):
        return []
    last = len(order) - 1
    chosen = {last: "best"}
    for place in range(min(worst, last)):
        chosen[place] = f"worst {place + 1}"
    for step in range(1, spread):
        label = "median" if 2 * step == spread else f"better than {100 * step // spread} %"
        chosen.setdefault(round(last * step / spread), label)
    return [(chosen[place], int(order[place])) for place in sorted(chosen)]


def ranked_rows(
    chosen: Sequence[tuple[str, int]],
    splits: Splits,
    scores: Scores,
    query_features: np.ndarray,
    gallery_features: np.ndarray,
    *,
    top_k: int = 10,
    bonus: csr_array | None = None,
) -> list[Row]:
    """The first `top_k` answers to each chosen query, by the evaluation's protocol.

    Features are (Q, D) and (G, D), rows as in `splits.query` and `splits.gallery`. Left out for a query: gallery
    images of its person from its own camera, and junk. Equal scores keep the gallery's order. A bonus (Q, G) is added
    to what ranks them, not to the scores shown. Only the chosen queries are compared, the gallery being read in
    blocks, so a memory-mapped one of any size will do.
    """
    positions = [position for _, position in chosen]
    similarity = _similarity(np.asarray(query_features[positions]), gallery_features)  # (chosen, G)
    pids = np.array([sample.pid for sample in splits.gallery])
    camids = np.array([sample.camid for sample in splits.gallery])
    rows = []
    for (label, position), row_similarity in zip(chosen, similarity, strict=True):
        query = splits.query[position]
        kept = np.flatnonzero((pids != JUNK) & ~((pids == query.pid) & (camids == query.camid)))
        ranked_by = row_similarity if bonus is None else row_similarity + bonus[[position]].toarray()[0]
        nearest = kept[np.argsort(-ranked_by[kept], kind="stable")[:top_k]]
        matches = int((pids[kept] == query.pid).sum())
        caption = (
            f"{label}:  AP {100 * scores.average_precision[position]:.1f} %,  "
            f"first hit at rank {int(scores.first_rank[position])},  {matches} right in the gallery"
        )
        answers = [_tile(splits.gallery[i], query, float(row_similarity[i])) for i in nearest]
        rows.append(Row(caption, Tile(query.path, pid=query.pid, camid=query.camid), tuple(answers)))
    return rows


def _tile(sample: Sample, query: Sample, score: float) -> Tile:
    return Tile(sample.path, score, sample.pid, sample.camid, sample.pid == query.pid)


def _similarity(query: np.ndarray, gallery: np.ndarray, block: int = 8192) -> np.ndarray:
    """Cosine similarity (Q, G) of rows of any length."""
    query = _unit(query)
    blocks = [query @ _unit(np.asarray(gallery[start : start + block])).T for start in range(0, len(gallery), block)]
    return np.concatenate(blocks, axis=1)


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def draw_ranked(rows: Sequence[Row], output: str | os.PathLike[str], *, title: str) -> None:
    """Writes a PNG of ranked lists: the query at the left, each answer framed and marked right or wrong."""
    _save(_sheet(rows, title=title, legend=True), output)


def draw_search(query_path: str | os.PathLike[str], rows: Sequence[Tile], output: str | os.PathLike[str]) -> None:
    """Writes a PNG of one query and its answers `rows`, nearest first; unmarked where `right` is None.

    Of more than MOST_DRAWN answers it shows the nearest MOST_DRAWN, and says so.
    """
    drawn = tuple(rows[:MOST_DRAWN])
    caption = f"{len(drawn)} nearest of the gallery" if drawn else "the gallery gave no answer"
    if len(drawn) < len(rows):
        caption += f" ({len(rows):,} were found)"
    legend = any(tile.right is not None for tile in drawn)
    row = Row(caption, Tile(query_path), drawn)
    _save(_sheet([row], title=os.path.basename(os.fspath(query_path)), legend=legend), output)


def tile_box(rows: Sequence[Row], row: int, answer: int | None) -> tuple[int, int, int, int]:
    """Where a tile stands in the picture of `rows`, frame included: (left, top, right, bottom) in pixels.

    `answer` counts from 0; None is the query.
    """
    top = MARGIN + 2 * TITLE_LINE + sum(_row_height(r) for r in rows[:row]) + CAPTION_LINE + TEXT_LINE
    left = MARGIN
    if answer is not None:
        left += TILE_W + QUERY_GAP + (answer % PER_LINE) * (TILE_W + GAP)
        top += answer // PER_LINE * _line_height()
    return left, top, left + TILE_W, top + TILE_H


def _line_height() -> int:
    return TEXT_LINE + TILE_H + 2 * TEXT_LINE + GAP  # rank, crop, score and camera, pid


def _row_height(row: Row) -> int:
    return CAPTION_LINE + max(1, math.ceil(len(row.answers) / PER_LINE)) * _line_height() + GAP


def _sheet(rows: Sequence[Row], *, title: str, legend: bool) -> Image.Image:
    columns = max((min(len(row.answers), PER_LINE) for row in rows), default=0)
    # Never narrower than five answers, so that title, captions and legend have room.
    width = 2 * MARGIN + TILE_W + QUERY_GAP + max(columns, 5) * (TILE_W + GAP) - GAP
    height = 2 * MARGIN + 2 * TITLE_LINE + sum(_row_height(row) for row in rows)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    _text(draw, (MARGIN, MARGIN), title, 17, INK, width - 2 * MARGIN)
    if legend:
        x = MARGIN
        for right, words in ((True, "same person"), (False, "another person")):
            sheet.paste(_badge(right), (x, MARGIN + TITLE_LINE), _badge(right))
            _text(draw, (x + 24, MARGIN + TITLE_LINE + 1), words, 14, PALE_INK, 120)
            x += 140
    for i, row in enumerate(rows):
        left, top, _, _ = tile_box(rows, i, None)
        draw.line(
            (MARGIN, top - CAPTION_LINE - TEXT_LINE - 4, width - MARGIN, top - CAPTION_LINE - TEXT_LINE - 4), LETTERBOX
        )
        _text(draw, (left, top - CAPTION_LINE - TEXT_LINE), row.caption, 15, INK, width - 2 * MARGIN)
        _place(sheet, draw, (left, top), row.query, "query")
        for j, answer in enumerate(row.answers):
            _place(sheet, draw, tile_box(rows, i, j)[:2], answer, str(j + 1))
    return sheet


_NOBODY: dict[int | str, str] = {DISTRACTOR: "distractor", JUNK: "junk"}


def _place(sheet: Image.Image, draw: ImageDraw.ImageDraw, corner: tuple[int, int], tile: Tile, heading: str) -> None:
    left, top = corner
    colour = QUERY if heading == "query" else UNKNOWN if tile.right is None else RIGHT if tile.right else WRONG
    draw.rectangle((left, top, left + TILE_W - 1, top + TILE_H - 1), colour)
    sheet.paste(_crop(tile.path), (left + FRAME, top + FRAME))
    if tile.right is not None:
        badge = _badge(tile.right)
        sheet.paste(badge, (left + TILE_W - badge.width, top), badge)
    score = "" if tile.score is None else f"{tile.score:.2f}"
    camera = "" if tile.camid is None else f"c{tile.camid}"
    person = "" if tile.pid is None else _NOBODY.get(tile.pid, f"pid {tile.pid}")
    lines = [(heading, top - TEXT_LINE, PALE_INK), (f"{score}  {camera}".strip(), top + TILE_H + 1, INK)]
    lines.append((person, top + TILE_H + 1 + TEXT_LINE, PALE_INK))
    for words, y, ink in lines:
        _text(draw, (left + TILE_W // 2, y), words, 13, ink, TILE_W + GAP - 2, anchor="ma")


def _crop(path: str | os.PathLike[str]) -> Image.Image:
    """The image fitted into (CROP_W, CROP_H); a grey tile with a cross where it cannot be read."""
    crop = Image.new("RGB", (CROP_W, CROP_H), LETTERBOX)
    try:
        with Image.open(path) as opened:
            image = opened.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        crop.paste(MISSING, (0, 0, CROP_W, CROP_H))
        draw = ImageDraw.Draw(crop)
        draw.line((0, 0, CROP_W - 1, CROP_H - 1), PALE_INK, 2)
        draw.line((0, CROP_H - 1, CROP_W - 1, 0), PALE_INK, 2)
        return crop
    scale = min(CROP_W / image.width, CROP_H / image.height)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    crop.paste(image.resize(size, Image.Resampling.LANCZOS), ((CROP_W - size[0]) // 2, (CROP_H - size[1]) // 2))
    return crop


@functools.cache
def _badge(right: bool) -> Image.Image:
    """A disc with a tick or a cross, (20, 20) RGBA: tells right from wrong without colour."""
    large = Image.new("RGBA", (80, 80), (*(RIGHT if right else WRONG), 0))
    draw = ImageDraw.Draw(large)
    draw.ellipse((0, 0, 79, 79), (*PAPER, 255))
    draw.ellipse((5, 5, 74, 74), (*(RIGHT if right else WRONG), 255))
    strokes = [((22, 41), (35, 54), (58, 27))] if right else [((26, 26), (54, 54)), ((54, 26), (26, 54))]
    for stroke in strokes:
        draw.line(stroke, (*PAPER, 255), 10, joint="curve")
    return large.resize((20, 20), Image.Resampling.LANCZOS)


@functools.cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size=size)


def _text(
    draw: ImageDraw.ImageDraw,
    corner: tuple[int, int],
    words: str,
    size: int,
    ink: tuple[int, int, int],
    room: int,
    *,
    anchor: str = "la",
) -> None:
    """One line of text, cut with dots where it would be wider than `room` pixels."""
    font = _font(size)
    words = words.replace("\n", " ").encode("utf-8", "replace").decode()  # a file name may hold bytes that are no text
    if font.getlength(words) > room:
        while words and font.getlength(words + "...") > room:
            words = words[:-1]
        words += "..."
    draw.text(corner, words, ink, font, anchor=anchor)


def _save(image: Image.Image, output: str | os.PathLike[str]) -> None:
    with atomic_file(output) as temporary:
        image.save(temporary, format="PNG")


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
        pairs.set(title="Scores of pairs", xlabel="cosine similarity", ylabel="share of the pairs (%)",
                  xlim=(HISTOGRAM_EDGES[seen[0]], HISTOGRAM_EDGES[seen[-1] + 1]))  # fmt: skip
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


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px system-ui, sans-serif; color: #202020; margin: 1.5em; }}
section {{ border-top: 1px solid #ddd; padding: .4em 0; }}
h2 {{ font-size: 1em; margin: .3em 0; }}
figure {{ display: inline-block; margin: 0 6px 4px 0; vertical-align: top; }}
figcaption {{ color: #6e6e6e; font-size: 12px; text-align: center; }}
</style></head><body><h1>{title}</h1><p>{text}</p>
{strips}
</body></html>
"""


def write_people_page(
    strips: Sequence[tuple[str, Sequence[Tile]]], output: str | os.PathLike[str], *, title: str, text: str
) -> None:
    """Writes an HTML page that stands alone, with a strip of pictures a person: a heading and its crops.

    The first MOST_STRIPS are shown, and of each the first STRIP_CROPS, and how many more there are. Hovering over a
    crop names its file.
    """
    parts = []
    for heading, tiles in strips[:MOST_STRIPS]:
        figures = [_figure(tile) for tile in tiles[:STRIP_CROPS]]
        more = f"<p>and {len(tiles) - STRIP_CROPS:,} more</p>" if len(tiles) > STRIP_CROPS else ""
        parts.append(f"<section><h2>{html.escape(heading)}</h2>{''.join(figures)}{more}</section>")
    if len(strips) > MOST_STRIPS:
        parts.append(f"<p>and {len(strips) - MOST_STRIPS:,} more like these</p>")
    page = _PAGE.format(title=html.escape(title), text=html.escape(text), strips="\n".join(parts))
    write_text(output, page.encode("utf-8", "replace").decode())


def _figure(tile: Tile) -> str:
    held = io.BytesIO()
    _crop(tile.path).save(held, "JPEG", quality=80)
    name = html.escape(os.fspath(tile.path).encode("utf-8", "replace").decode(), quote=True)
    image = (
        f'<img width="{CROP_W}" height="{CROP_H}" src="data:image/jpeg;base64,{b64encode(held.getvalue()).decode()}"'
    )
    words = "" if tile.camid is None else f"camera {tile.camid}"
    return f'<figure title="{name}">{image} alt="{name}"><figcaption>{words}</figcaption></figure>'
