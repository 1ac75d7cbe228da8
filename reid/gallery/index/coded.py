"""Search of a gallery that holds codes: exact, but for what the codes are.

A few queries are looked for by faiss, straight through the codes; for many at once the codes are decoded block by
block and multiplied as `exact` does. Both end with the same exact products, so that an answer does not depend on how
it was asked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from reid.gallery.index.sq8 import Codec
from reid.retrieval import knn

_MANY = 16  # queries, from which on decoding pays
_MORE = 16  # candidates beyond top_k, so that one look is mostly enough


class Decoded:
    """Codes (n, d) as the array of what they stand for: what is sliced or picked is decoded."""

    def __init__(self, codec: Codec, codes: np.ndarray) -> None:
        self.codec, self.codes = codec, codes

    def __len__(self) -> int:
        return len(self.codes)

    def __getitem__(self, rows: slice | np.ndarray) -> np.ndarray:
        return self.codec.decode(self.codes[rows])


class Coded:
    """A codec, and faiss's copies of the codes that were searched by it."""

    def __init__(self, codec: Codec) -> None:
        self.codec = codec
        self._scans: list[tuple[np.ndarray, Any]] = []

    def nearest(
        self, queries: np.ndarray, segments: Sequence[np.ndarray], chosen: np.ndarray, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """As `knn.nearest`, of what the codes stand for. segments: (N_i, d) uint8."""
        projected = self.codec.project(queries)
        decoded: Any = [Decoded(self.codec, codes) for codes in segments]
        if len(queries) >= _MANY or 8 * top_k >= np.count_nonzero(chosen):
            return knn.nearest(projected, decoded, chosen, top_k)
        return self._scanned(projected, segments, decoded, chosen, top_k)

    def _scanned(
        self, queries: np.ndarray, segments: Sequence[np.ndarray], decoded: Any, chosen: np.ndarray, top_k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        import faiss

        self._scans = [(codes, self._scan(codes)) for codes in segments]
        places, values, start = [], [], 0
        for codes, scan in self._scans:
            mask = chosen[start : start + len(codes)]
            count = min(top_k + _MORE, int(np.count_nonzero(mask)))
            if count:
                bits = np.packbits(mask, bitorder="little")
                more = {} if mask.all() else {"sel": faiss.IDSelectorBitmap(bits)}  # type: ignore
                score, row = scan.search(queries, count, params=faiss.SearchParameters(**more))
                places.append(row + start)
                values.append(score)
            start += len(codes)
        rows, rough = np.concatenate(places, axis=1), np.concatenate(values, axis=1)
        found = np.empty((len(queries), top_k), np.int64)
        scores = np.empty((len(queries), top_k), np.float32)
        margin = 2.0**-14  # float32 sums, and values that faiss decodes with other roundings: at most half of it
        for q in range(len(queries)):
            least = np.sort(rough[q])[-top_k] - margin
            if any(value.shape[1] == top_k + _MORE and value[q, -1] >= least for value in values):  # more may be near
                (found[q],), (scores[q],) = knn.nearest(queries[q : q + 1], decoded, chosen, top_k)
            else:
                near = np.sort(rows[q][rough[q] >= least])
                found[q], scores[q] = knn.order(queries[q : q + 1], decoded, near, top_k)
        return found, scores

    def _scan(self, codes: np.ndarray) -> Any:
        """faiss's copy of them, made once."""
        for known, scan in self._scans:
            if known is codes:
                return scan
        import faiss

        index = faiss.IndexScalarQuantizer(codes.shape[1], faiss.ScalarQuantizer.QT_8bit, faiss.METRIC_INNER_PRODUCT)
        faiss.copy_array_to_vector(np.concatenate([self.codec.low, 255 * self.codec.step]), index.sq.trained)
        faiss.copy_array_to_vector(np.ascontiguousarray(codes).ravel(), index.codes)
        index.is_trained, index.ntotal = True, len(codes)
        return index
