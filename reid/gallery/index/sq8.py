"""A code of one byte a value for vectors: a projection learnt on a gallery, then 8 bits for each of what remains.

The projection is that of principal components about the origin, so that inner products stay inner products; what is
projected has unit length again, and each value is one of 256 steps about its mean. Everything learnt is a mean over
many vectors, none a value of any single one. The codes are those of faiss.ScalarQuantizer, QT_8bit.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from reid.retrieval import knn
from reid.retrieval.vectors import inner

LEAST = 1000  # vectors to learn from: fewer say too little of those to come
SAMPLE = 50_000  # at most so many are learnt from
_LEVELS, _WIDTH = 256, 9  # standard deviations that the levels cover
_BYTES = 128  # a code's least length, where the vectors have as many values


def width_of(dimension: int) -> int:
    """Bytes of a code: one for 40 of a float32 vector, but 128 at least. So with the codec's own file it stays below a
    thirty-second in a gallery of some ten thousand images.

    >>> [width_of(d) for d in (2048, 1280, 512, 64)]
    [204, 128, 128, 64]
    """
    return min(dimension, max(_BYTES, dimension // 10))


@dataclass(frozen=True, eq=False)
class Codec:
    projection: np.ndarray  # (D, d) float32, orthonormal columns
    low: np.ndarray  # (d,) float32: code c stands for low + (c + 1/2) step
    step: np.ndarray  # (d,) float32

    @property
    def width(self) -> int:
        """Bytes of a code, d."""
        return len(self.low)

    @classmethod
    def learn(cls, pieces: Iterable[np.ndarray], dimension: int) -> Codec:
        """From rows of unit length, some at a time, each (n, D) float32; LEAST of them at least."""
        kept, moment = [], np.zeros((dimension, dimension))
        for rows in pieces:
            kept.append(rows)
            moment += rows.T @ rows
        _, directions = np.linalg.eigh(moment)
        projection = np.ascontiguousarray(directions[:, : -width_of(dimension) - 1 : -1], dtype=np.float32)
        projected = np.concatenate([_unit(rows @ projection) for rows in kept])
        deviation = np.maximum(projected.std(axis=0, dtype=np.float64), 1e-4)
        step = (_WIDTH * deviation / _LEVELS).astype(np.float32)
        low = (projected.mean(axis=0, dtype=np.float64) - _LEVELS / 2 * step).astype(np.float32)
        return cls(projection, low, step)

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, np.ndarray]) -> Codec:
        """Raises KeyError or ValueError where they are not what `tensors` gives."""
        codec = cls(*(tensors[name] for name in ("projection", "low", "step")))
        shapes = [codec.projection.shape[1:], codec.low.shape, codec.step.shape]
        if shapes != [(codec.width,)] * 3 or any(x.dtype != np.float32 for x in codec.tensors().values()):
            raise ValueError("not a codec's tensors")
        return codec

    def tensors(self) -> dict[str, np.ndarray]:
        return {"projection": self.projection, "low": self.low, "step": self.step}

    def encode(self, vectors: np.ndarray) -> np.ndarray:
        """(n, D) float32 -> (n, d) uint8."""
        steps = np.floor((_unit(vectors @ self.projection) - self.low) / self.step)
        codes: np.ndarray = np.clip(steps, 0, _LEVELS - 1).astype(np.uint8)
        return codes

    def decode(self, codes: np.ndarray) -> np.ndarray:
        """(n, d) uint8 -> (n, d) float32 of about unit length, to be multiplied with what `project` gives."""
        values = codes.astype(np.float32)
        values += np.float32(0.5)
        values *= self.step
        values += self.low
        return values

    def restore(self, codes: np.ndarray) -> np.ndarray:
        """(n, d) uint8 -> (n, D) float32 of unit length, nearly the vectors."""
        return _unit(self.decode(codes) @ self.projection.T)

    def project(self, queries: np.ndarray) -> np.ndarray:
        """(Q, D) float32 of unit length -> (Q, d) float32: a query's product with a decoded code is nearly that with
        the vector. The same whatever the other queries are."""
        return inner(queries, self.projection.T).astype(np.float32)


def _unit(rows: np.ndarray) -> np.ndarray:
    unit: np.ndarray = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.float32(1e-12))
    return unit


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
