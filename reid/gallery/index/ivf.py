"""An index of inverted lists over a gallery's vectors: the nearest lists are looked through by short codes.

faiss gives the lists' centres (k-means) and looks through the lists; what it finds is multiplied again with the vectors
themselves, so that scores are those of exact search. How many lists a search looks through is found out on the
gallery itself. The index is derived: it can be learnt from the vectors at any time. It is kept as plain arrays and put
together in memory; faiss reads no file.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
from tqdm import tqdm

from reid.gallery.index.sq8 import Codec
from reid.retrieval import knn
from reid.retrieval.vectors import take

TOP_K = (10, 100, 500)  # the recall asked for is of so many; more are searched exactly
_FEW = 10_000  # images are searched exactly
_TRIALS = 500  # searches that find out how many lists to look through
_POINTS = 40  # vectors a list to learn the centres from
_STEP = 16_384  # vectors at a time
_ROUNDS = 10  # of k-means
PATIENCE = 2.0  # seconds, until progress is shown


@dataclass(frozen=True, eq=False)
class Lists:
    """The images of a gallery at one time, n, in lists; those that came later are not in it."""

    codec: Codec
    centres: np.ndarray  # (L, d) float32 of unit length
    sizes: np.ndarray  # (L,) int64, images of each list
    order: np.ndarray  # (n,) int64: which image, list by list; 0 to n - 1
    codes: np.ndarray  # (n, d) uint8, in that order
    keys: np.ndarray  # (n,) int64, ascending: of image 0 to n - 1
    probes: Mapping[int, int] = field(default_factory=dict)  # of TOP_K: how many lists are looked through
    depth: int = 4  # so many times top_k are multiplied again

    @classmethod
    def learn(cls, codec: Codec, keys: np.ndarray, pieces: Iterable[np.ndarray]) -> Lists:
        """pieces: the vectors of those keys, in order, some at a time."""
        import faiss

        encoded = []
        with tqdm(total=len(keys), desc="index: codes", unit="img", delay=PATIENCE) as bar:
            for rows in pieces:
                encoded.append(codec.encode(rows))
                bar.update(len(rows))
        codes = np.concatenate(encoded)
        count = 2 ** max(0, round(np.log2(4 * len(keys) ** 0.5)))  # lists
        count = max(1, min(count, len(keys) // _POINTS))
        chosen = np.sort(np.random.default_rng(0).permutation(len(keys))[: count * _POINTS])
        means = faiss.Kmeans(
            codec.width,
            count,
            niter=1,
            spherical=True,
            seed=0,
            max_points_per_centroid=_POINTS,
            min_points_per_centroid=1,
        )
        points, centres = codec.decode(codes[chosen]), None
        for _ in tqdm(range(_ROUNDS), desc="index: centres", unit="round", delay=PATIENCE):
            means.train(points, init_centroids=centres)
            centres = np.array(means.centroids)
        assert centres is not None
        empty = np.empty(0, np.int64)
        bare = cls(codec, centres, np.zeros(count, np.int64), empty, codes[:0], empty)
        return bare.joined(keys, codes)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray], settings: Mapping[str, Any]) -> Lists:
        """Raises KeyError or ValueError where they are not what `tensors` gives."""
        codec = Codec.from_tensors(tensors)
        names = ("centres", "sizes", "order", "codes", "keys")
        centres, sizes, order, codes, keys = (tensors[name] for name in names)
        lists = cls(
            codec,
            centres,
            sizes,
            order,
            codes,
            keys,
            {int(k): int(v) for k, v in settings["probes"].items()},
            int(settings["depth"]),
        )
        count = len(lists.keys)
        sound = (
            lists.codes.shape == (count, codec.width)
            and lists.codes.dtype == np.uint8
            and lists.centres.shape == (len(lists.sizes), codec.width)
            and lists.centres.dtype == np.float32
            and int(lists.sizes.sum()) == count
            and (lists.sizes >= 0).all()
            and np.array_equal(np.sort(lists.order), np.arange(count))
        )
        if not sound:
            raise ValueError("not an index's tensors")
        return lists

    def tensors(self) -> dict[str, np.ndarray]:
        names = ("centres", "sizes", "order", "codes", "keys")
        return self.codec.tensors() | {name: getattr(self, name) for name in names}

    def joined(self, keys: np.ndarray, codes: np.ndarray, live: np.ndarray | None = None) -> Lists:
        """With further images, of keys above all others, and of its own only those that are live (n,) bool."""
        live = np.ones(len(self.keys), bool) if live is None else live
        new = self._nearest_lists(codes)
        lists = np.repeat(np.arange(len(self.sizes)), self.sizes)
        kept = live[self.order]
        number = np.cumsum(live) - 1
        lists = np.concatenate([lists[kept], new])
        order = np.concatenate([number[self.order[kept]], np.count_nonzero(live) + np.arange(len(keys))])
        by_list = np.argsort(lists, kind="stable")
        return Lists(
            self.codec,
            self.centres,
            np.bincount(lists, minlength=len(self.sizes)),
            order[by_list],
            np.concatenate([self.codes[kept], codes])[by_list],
            np.concatenate([self.keys[live], keys]),
            self.probes,
            self.depth,
        )

    def _nearest_lists(self, codes: np.ndarray) -> np.ndarray:
        import faiss

        quantizer = faiss.IndexFlatIP(self.codec.width)
        quantizer.add(self.centres)
        found = [np.empty(0, np.int64)]
        with tqdm(total=len(codes), desc="index: lists", unit="img", delay=PATIENCE) as bar:
            for start in range(0, len(codes), _STEP):
                part = codes[start : start + _STEP]
                found.append(quantizer.search(self.codec.decode(part), 1)[1][:, 0])
                bar.update(len(part))
        return np.concatenate(found)

    def tuned(self, segments: Sequence[np.ndarray], live: np.ndarray, recall: float) -> tuple[Lists, dict[int, float]]:
        """Looking through as many lists as reach the recall of each of TOP_K, and what was measured.

        segments and live: the gallery's rows, all of which are in the lists. Trials are sums of two vectors of the
        gallery, like nobody in it: vectors themselves lie in the list of their like, and say that far fewer lists do.
        A tenth only of what may be missed is missed by them, or all lists are looked through; the rest is kept for
        real searches. Of 8, 16, 32 and 64 lists of 1,024, 388 images of people unlike the other 50,000 needed 64 for a
        recall of 0.99, the sums 32, the gallery's own vectors 8.
        """
        rows = np.random.default_rng(1).permutation(np.flatnonzero(live))
        first, second = (take(segments, np.sort(rows[start::2][:_TRIALS])) for start in (0, 1))
        count = min(len(first), len(second))
        queries = first[:count] + second[:count]
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.float32(1e-6))
        limit = min(max(TOP_K), len(rows))
        places, _ = knn.nearest(queries, segments, live, limit)
        truth = (np.cumsum(live) - 1)[places]  # their numbers in the lists
        asked, probes, reached = 1 - (1 - recall) / 10, {}, {}
        depth = 4 if recall <= 0.99 else 16
        for top_k in tqdm(TOP_K, desc="index: tuning", unit="depth", delay=PATIENCE):
            k = min(top_k, limit)
            for count in (*_steps(len(self.sizes)), len(self.sizes)):
                found = self.candidates(self.codec.project(queries), max(32, depth * k), count, None)
                hits = [len(np.intersect1d(true[:k], row)) / k for true, row in zip(truth, found)]
                probes[top_k], reached[top_k] = count, float(np.mean(hits))
                if reached[top_k] >= asked:
                    break
        lists = Lists(self.codec, self.centres, self.sizes, self.order, self.codes, self.keys, probes, depth)
        return lists, reached

    @cached_property
    def _index(self) -> Any:
        """As faiss's inverted lists, in memory."""
        import faiss

        width = self.codec.width
        quantizer = faiss.IndexFlatIP(width)
        quantizer.add(np.ascontiguousarray(self.centres))
        kind = faiss.ScalarQuantizer.QT_8bit
        index: Any = faiss.IndexIVFScalarQuantizer(
            quantizer, width, len(self.sizes), kind, faiss.METRIC_INNER_PRODUCT, False
        )
        index.own_fields, index.is_trained = True, True
        quantizer.this.disown()  # type: ignore
        faiss.copy_array_to_vector(np.concatenate([self.codec.low, 255 * self.codec.step]), index.sq.trained)
        codes, order = np.ascontiguousarray(self.codes), np.ascontiguousarray(self.order)
        start = 0
        for number, size in enumerate(self.sizes.tolist()):
            if size:
                part = slice(start, start + size)
                index.invlists.add_entries(number, size, faiss.swig_ptr(order[part]), faiss.swig_ptr(codes[part]))
                start += size
        index.ntotal = start
        return index

    def candidates(self, projected: np.ndarray, count: int, probes: int, chosen: np.ndarray | None) -> np.ndarray:
        """(Q, count) int64, images 0 to n - 1 of the nearest lists by their codes, of the chosen (n,) bool or all; -1
        where there are no more."""
        import faiss

        more: dict[str, Any] = {"nprobe": min(probes, len(self.sizes))}
        if chosen is not None:
            bits = np.packbits(chosen, bitorder="little")
            more["sel"] = faiss.IDSelectorBitmap(bits)  # type: ignore
        found: np.ndarray = self._index.search(projected, count, params=faiss.SearchParametersIVF(**more))[1]
        return found


class Indexed:
    """Lists beside a gallery's rows."""

    def __init__(self, lists: Lists, keys: np.ndarray) -> None:
        """keys: of all rows, (N,) ascending."""
        places = np.searchsorted(keys, lists.keys)
        self.lists = lists
        self.there = np.append(keys, -1)[places] == lists.keys  # (n,) which have a row still
        self.places = np.where(self.there, places, 0)  # (n,) their rows
        self.covered = np.zeros(len(keys), bool)  # (N,) rows that are in the lists
        self.covered[self.places[self.there]] = True

    def nearest(
        self, queries: np.ndarray, segments: Sequence[np.ndarray], chosen: np.ndarray, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `knn.nearest`, but some rows may be missed."""
        lists = self.lists
        listed = chosen[self.places] & self.there
        count = int(np.count_nonzero(listed))
        late = chosen & ~self.covered
        probes = next((lists.probes[k] for k in sorted(lists.probes) if k >= top_k), None)
        probes = probes and -(-probes * len(listed) // max(1, count))  # a filter leaves so much of each list
        if probes is None or count <= max(_FEW, 4 * top_k) or probes > max(len(lists.sizes) // 4, lists.probes[10]):
            return knn.nearest(queries, segments, chosen, top_k)
        among = None if count == len(listed) else listed
        found = lists.candidates(lists.codec.project(queries), max(32, lists.depth * top_k), probes, among)
        further = min(top_k, int(np.count_nonzero(late)))
        tail = knn.nearest(queries, segments, late, further) if further else None
        rows = np.empty((len(queries), top_k), np.int64)
        scores = np.empty((len(queries), top_k), np.float32)
        for q, images in enumerate(found):
            places = np.sort(self.places[images[images >= 0]])
            if len(places) < top_k:  # the lists hold too few of the chosen
                (rows[q],), (scores[q],) = knn.nearest(queries[q : q + 1], segments, chosen, top_k)
                continue
            places, values = knn.order(queries[q : q + 1], segments, places, top_k)
            if tail:
                places, values = np.append(places, tail[0][q]), np.append(values, tail[1][q])
                best = np.lexsort((places, -values))[:top_k]
                places, values = places[best], values[best]
            rows[q], scores[q] = places, values
        return rows, scores


def _steps(limit: int) -> Iterator[int]:
    """1, 2, 3, 4, 6, 8, 12, ... below the limit."""
    step = 1
    while step < limit:
        yield step
        if step > 1 and 3 * step // 2 < limit:
            yield 3 * step // 2
        step *= 2
