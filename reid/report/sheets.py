"""Pictures of a run: ranked lists with right and wrong marked, one search's answer, curves, a page of people.

What is shown (`choose_queries`, `ranked_rows`) is decided by pure functions; the drawing only follows them.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageDraw

from reid.core.files import atomic_file
from reid.core.images import open_image
from reid.core.types import ANY_CAMERA, DISTRACTOR, JUNK, ReidError, Sample, Splits
from reid.report.fonts import in_a_font

if TYPE_CHECKING:
    from scipy.sparse import csr_array

    from reid.retrieval.evaluate import Scores

CROP_W, CROP_H = 72, 128  # pixels that a crop is fitted into, its aspect kept
FRAME = 5  # pixels of colour around a crop
TILE_W, TILE_H = CROP_W + 2 * FRAME, CROP_H + 2 * FRAME
GAP = 8
QUERY_GAP = 22  # sets the query apart from its answers
MARGIN = 16
TITLE_LINE, CAPTION_LINE, TEXT_LINE = 26, 24, 16  # heights of a line of text
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
    unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return unit


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
    sheet.paste(crop_of(tile.path), (left + FRAME, top + FRAME))
    if tile.right is not None:
        badge = _badge(tile.right)
        sheet.paste(badge, (left + TILE_W - badge.width, top), badge)
    score = "" if tile.score is None else f"{tile.score:.2f}"
    camera = "" if tile.camid in (None, ANY_CAMERA) else f"c{tile.camid}"
    person = "" if tile.pid is None else _NOBODY.get(tile.pid, f"pid {tile.pid}")
    lines = [(heading, top - TEXT_LINE, PALE_INK), (f"{score}  {camera}".strip(), top + TILE_H + 1, INK)]
    lines.append((person, top + TILE_H + 1 + TEXT_LINE, PALE_INK))
    for words, y, ink in lines:
        _text(draw, (left + TILE_W // 2, y), words, 13, ink, TILE_W + GAP - 2, anchor="ma")


def crop_of(path: str | os.PathLike[str]) -> Image.Image:
    """The image fitted into (CROP_W, CROP_H); a grey tile with a cross where it cannot be read."""
    crop = Image.new("RGB", (CROP_W, CROP_H), LETTERBOX)
    try:
        image = open_image(path)
    except ReidError:
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
    words, font = in_a_font(words, size)
    if font.getlength(words) > room:
        while words and font.getlength(words + "...") > room:
            words = words[:-1]
        words += "..."
    draw.text(corner, words, ink, font, anchor=anchor)


def _save(image: Image.Image, output: str | os.PathLike[str]) -> None:
    with atomic_file(output) as temporary:
        image.save(temporary, format="PNG")
