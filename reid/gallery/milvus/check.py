"""What is wrong with the rows of a gallery in Milvus."""

from __future__ import annotations

import collections
import zlib

import numpy as np

from reid.gallery.milvus.client import Collections
from reid.gallery.milvus.rows import where


def troubles_of(at: Collections, next_key: int) -> list[str]:
    """A line each: every vector is compared with its checksum."""
    paths: collections.Counter[str] = collections.Counter()
    lost, unfinished = lost_vectors(at, next_key), 0
    for row in at.rows("", ["key", "path"]):
        paths[row["path"]] += row["key"] < next_key
        unfinished += row["key"] >= next_key
    twice = sum(count > 1 for count in paths.values())
    troubles = [f"{len(lost)} vectors are not what was written"] if lost else []
    troubles += [f"{twice} paths are there twice, since a writer was killed"] if twice else []
    troubles += [f"{unfinished} images of an addition that was not finished"] if unfinished else []
    return troubles


def lost_vectors(at: Collections, next_key: int) -> list[int]:
    """Keys, below `next_key`, of the images whose vectors are not what was written."""
    rows = at.rows(where(None, next_key), ["key", "vector", "checksum"])
    return [row["key"] for row in rows if zlib.crc32(np.array(row["vector"], "<f4").tobytes()) != row["checksum"]]
