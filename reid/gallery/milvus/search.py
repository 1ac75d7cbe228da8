"""Searches of a collection of Milvus: the nearest images, the nearest groups, and whether a field is in use."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reid.gallery.milvus.client import Collections
from reid.gallery.milvus.rows import group_of, listed, quoted, tag

LIMIT = 16_384  # images that Milvus answers at most (quotaAndLimits)
Hit = tuple[int, float, dict[str, Any]]  # key, score, columns


def nearest(
    at: Collections, queries: np.ndarray, where: str, top_k: int, fields: Sequence[str] = ()
) -> list[list[Hit]]:
    """(key, score, those columns) of the nearest images of each query."""
    found = at.call(
        "search",
        at.images,
        data=list(queries),
        anns_field="vector",
        filter=where,
        limit=top_k,
        output_fields=["key", *fields],
        search_params=at.search_params,
    )
    hits = [[(h["key"], min(1.0, max(-1.0, h["distance"])), h["entity"]) for h in answer] for answer in found]
    return [sorted(answer, key=lambda hit: (-hit[1], hit[0])) for answer in hits]


def nearest_groups(at: Collections, query: np.ndarray, where: str, top_k: int, group_by: str) -> list[Hit]:
    """The nearest image of each of the nearest groups: those found are left out and the next ones asked for."""
    best: dict[object, Hit] = {}
    limit = min(4 * top_k, LIMIT)
    while len(best) < top_k:
        named = [group for group in best if isinstance(group, str)]
        alone = [key for key in best if isinstance(key, int)]
        parts = [where]
        if named and group_by == "pid":
            parts.append(f"pid not in {listed(named)}")
        elif named:
            parts.append(f"not array_contains_any(tags, {listed([tag(group_by, text) for text in named])})")
        if alone:
            parts.append(f"key not in {alone}")
        (hits,) = nearest(at, query, " and ".join(parts), limit, ["pid" if group_by == "pid" else "fields"])
        for hit in hits:
            best.setdefault(group_of(hit, group_by), hit)
        if len(hits) < limit:
            break
    return list(best.values())[:top_k]


def has_field(at: Collections, where: str, name: str) -> bool:
    """Whether one of those images has a field of that name."""
    where = f"{where} and array_contains(tags, {quoted(tag(name))})"
    return bool(at.call("query", at.images, filter=where, output_fields=["key"], limit=1))
