"""The words that every room of the house shares: samples, splits, rankings, a user's mistake.

Numpy and the standard library only, so that `datasets` can import it without torch.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

JUNK = -1  # pid of a gallery image that the protocol ignores (a bad box of somebody)
ANY_CAMERA = -1  # camid of a query that images by its own camera may answer
DISTRACTOR = 0  # pid of a gallery image that is nobody of the query set: always a wrong answer


class ReidError(Exception):
    """A mistake that the user can mend: shown as one line, without a traceback, with exit code 2.

    The message says what was expected, what came, and what to do.
    """


class Sample(NamedTuple):
    """One crop of one person."""

    path: str  # of the image file
    pid: int  # person: > 0 somebody, DISTRACTOR, or JUNK
    camid: int  # camera as the file name counts it: "c1" is 1


FOLDERS = {"train": "bounding_box_train", "query": "query", "gallery": "bounding_box_test"}  # of Market-1501, by split


class Splits(NamedTuple):
    """A data set as its protocol divides it. Every list is sorted by path."""

    name: str  # key of datasets.DATASETS
    root: str  # the folder that was found
    train: list[Sample]
    query: list[Sample]
    gallery: list[Sample]
    official_split: bool | None  # counts equal the published ones; None where none are published
    warnings: list[str]  # what a run should say aloud, e.g. which counts differ
    terms: str = ""  # on which the data may be used, as its authors say; a model trained on it carries them


class Ranking(NamedTuple):
    """The answer to Q queries, nearest first."""

    keys: np.ndarray  # (Q, k) int64, keys of gallery entries; -1 where there is none
    scores: np.ndarray  # (Q, k) float32, cosine similarity in [-1, 1], higher is nearer; -inf where there is none
