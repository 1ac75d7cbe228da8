"""A search of a gallery as lists of answers. Prints nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from reid.core.tables import columns, csv_text
from reid.core.types import ReidError
from reid.core.values import show_time
from reid.gallery.base import Gallery
from reid.gallery.entry import Entry
from reid.gallery.filter import Filter
from reid.retrieval.vectors import fuse as fuse

if TYPE_CHECKING:
    from reid.retrieval.calibration import Calibration


class Answer(NamedTuple):
    """One image that was found."""

    entry: Entry
    score: float
    probability: float | None  # that it shows the query's person; None where the model is not calibrated


class Found(NamedTuple):
    """What `search` found."""

    answers: list[list[Answer]]  # of each query, nearest first
    searched: int  # images that met the filter
    threshold: float  # scores below it are no answers; -inf where none was asked for
    best: float  # score of any image to any query; -inf where nothing was searched


def search(
    gallery: Gallery,
    vectors: np.ndarray,
    top_k: int,
    *,
    filter: Filter | None = None,
    group_by: str | None = None,
    rerank: Mapping[str, Any] | None = None,
    calibration: Calibration | None = None,
    max_false_accept: float | None = None,
    place: Callable[[str], str] = str,
) -> Found:
    """The top_k images nearest to each of vectors (Q, D), of one state of the gallery; see `Gallery.search`.

    rerank: k1, k2 and lambda_ of `search_reranked`, None for plain cosine similarity. max_false_accept: the share of
    searches for people who are not in the gallery that may come to an answer, by the calibration. place: where an
    image of that path lies now. Raises ReidError.
    """
    with gallery.reading():
        searched = gallery.count(filter)
        threshold = _threshold(calibration, max_false_accept, searched)
        options: dict[str, Any] = {"filter": filter, "group_by": group_by}
        top_k = min(top_k, max(searched, 1))  # there are no more to be found
        if rerank is None:
            ranking = gallery.search(vectors, top_k, **options)
        else:
            from reid.gallery.rerank import search_reranked

            ranking = search_reranked(gallery, vectors, top_k, **rerank, **options)
        found = [
            [
                Answer(
                    (entry := gallery.entry(key))._replace(path=place(entry.path)),
                    score,
                    float(calibration.probability(np.array(score))) if calibration else None,
                )
                for key, score in zip(keys, scores)
                if key >= 0 and score >= threshold
            ]
            for keys, scores in zip(ranking.keys.tolist(), ranking.scores.tolist())
        ]
    return Found(found, searched, threshold, float(ranking.scores.max(initial=-np.inf)))


def _threshold(calibration: Calibration | None, rate: float | None, searched: int) -> float:
    """The score below which nobody matches."""
    if rate is None:
        return -np.inf
    if calibration is None:
        raise ReidError(
            "--max-false-accept needs a calibrated model, this one is not: calibrate it (python run_reid.py "
            "calibrate --weights FILE --dataset NAME) and search with --weights FILE"
        )
    return calibration.threshold(rate, max(searched, 1))


def moved(root: str | None) -> Callable[[str], str]:
    """Where an image lies now: OLD=NEW says that the folder OLD, of which the gallery knows, is at NEW."""
    if root is None:
        return lambda path: path
    old, equals, new = root.partition("=")
    if not old or not equals or not new:
        raise ReidError(
            f"--root takes OLD=NEW, the folder that images were indexed from and where it is now, got {root!r}"
        )
    before, after = Path(os.path.abspath(old)), os.path.abspath(new)

    def place(path: str) -> str:
        plain = Path(os.path.normpath(path))  # so that no .. leads out of NEW
        return os.path.join(after, plain.relative_to(before)) if plain.is_relative_to(before) else path

    return place


def as_dict(answer: Answer) -> dict[str, object]:
    entry, score, probability = answer
    return {
        "key": entry.key,
        "path": entry.path,
        "score": score,
        "probability": probability,
        "pid": entry.pid,
        "camid": entry.camid,
        "time": show_time(entry.time) or None,
        "fields": entry.fields,
    }


def as_table(answers: Sequence[Answer]) -> str:
    lines = [["rank", "score", "prob.", "pid", "camera", "path"]]
    for rank, (entry, score, probability) in enumerate(answers, 1):
        pid, camid = ("-" if x is None else str(x) for x in (entry.pid, entry.camid))
        sure = "-" if probability is None else f"{probability:.3f}"
        lines.append([str(rank), f"{score:.3f}", sure, pid, camid, entry.path])
    return columns(lines, ">>>>><")


def as_csv(queries: Sequence[str], found: Sequence[Sequence[Answer]]) -> str:
    """A line an answer; one with nothing but the query where nobody matches."""
    rows: list[list[object]] = []
    for query, answers in zip(queries, found):
        if not answers:
            rows.append([query, *[""] * 8])
        for rank, (e, score, probability) in enumerate(answers, 1):
            rows.append([query, rank, score, probability, *e[:4], show_time(e.time)])
    return csv_text(["query", "rank", "score", "probability", "key", "path", "pid", "camid", "time"], rows)
