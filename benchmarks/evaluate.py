"""The evaluation at Market-1501's size beside the bare matrix product, torchreid's evaluation and a full argsort.

    OMP_NUM_THREADS=2 python benchmarks/evaluate.py
    OMP_NUM_THREADS=2 python benchmarks/evaluate.py --distractors 500000

Drawn features of 2,048 dimensions and unit length with Market-1501's numbers of query and gallery images, persons and
cameras: every person has a place of its own among 100 directions, its images lie around it. --spread is how far; at the
default, mAP is about what a good network has. --random takes directions without persons, where the matches lie among
all others: the worst case. With --distractors the gallery is a memory-mapped file in a temporary folder.

Each contender runs in turn for --rounds rounds; a figure is the median, a ratio that of two medians. Memory is the peak
beside the features, of a run of its own. torchreid and argsort run on fewer queries, all of the gallery: their time is
proportional to the queries and is scaled up, and with distractors they are left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reid.core.types import JUNK
from reid.models import torchreid
from reid.retrieval.evaluate import Scores, evaluate

QUERIES, GOOD, DISTRACTORS, JUNKS, PERSONS, CAMERAS = 3368, 13115, 2798, 3819, 750, 6
DIRECTIONS = 100
FEW = 300
BLOCK = 4096


class Features:
    """Rows (N, DIMENSION) of unit length: of a person a row, pid 0 and JUNK anybody."""

    def __init__(self, dimension: int, spread: float | None, rng: np.random.Generator) -> None:
        self.spread, self.rng = spread, rng
        self.basis = rng.standard_normal((DIRECTIONS, dimension), dtype=np.float32)
        self.places = rng.standard_normal((PERSONS + 1, DIRECTIONS), dtype=np.float32)

    def of(self, pids: np.ndarray) -> np.ndarray:
        if self.spread is None:
            rows = self.rng.standard_normal((len(pids), self.basis.shape[1]), dtype=np.float32)
        else:
            where = self.rng.standard_normal((len(pids), DIRECTIONS), dtype=np.float32)
            where[pids > 0] *= self.spread
            where[pids > 0] += self.places[pids[pids > 0]]
            rows = where @ self.basis
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def by_argsort(query: np.ndarray, gallery: np.ndarray, *ids: np.ndarray) -> float:
    """mAP as first written: every row sorted whole."""
    q_pids, g_pids, q_camids, g_camids = ids
    order = np.argsort(-(query @ gallery.T), axis=1, kind="stable")
    found = []
    for q, ranked in enumerate(order):
        same = g_pids[ranked] == q_pids[q]
        hit = same[~(same & (g_camids[ranked] == q_camids[q]))]
        if hit.any():
            ranks = np.flatnonzero(hit) + 1
            found.append(float((np.arange(1, len(ranks) + 1) / ranks).mean()))
    return statistics.mean(found)


def product(query: np.ndarray, gallery: np.ndarray) -> None:
    """The bare float32 product; of a file, in blocks, each read and thrown away."""
    if not isinstance(gallery, np.memmap):
        query @ gallery.T
        return
    for start in range(0, len(gallery), BLOCK):
        query @ gallery[start : start + BLOCK].T


def peak(run: Callable[[], Any]) -> float:
    """MiB that it allocated at once."""
    tracemalloc.start()
    run()
    found = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()
    return found


def timed(run: Callable[[], Any]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dimension", type=int, default=2048, metavar="D", help="(default: 2048)")
    parser.add_argument("--distractors", type=int, default=0, metavar="N", help="more images of nobody, in a file")
    parser.add_argument("--spread", type=float, default=1.1, help="of a person's images (default: 1.1)")
    parser.add_argument("--random", action="store_true", help="features without persons")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder))


def measure(args: argparse.Namespace, folder: Path) -> None:
    rng = np.random.default_rng(0)
    features = Features(args.dimension, None if args.random else args.spread, rng)
    q_pids = rng.integers(1, PERSONS + 1, QUERIES)
    known = [rng.integers(1, PERSONS + 1, GOOD), np.zeros(DISTRACTORS, np.int64), np.full(JUNKS, JUNK)]
    g_pids = np.concatenate([rng.permutation(np.concatenate(known)), np.zeros(args.distractors, np.int64)])
    q_camids, g_camids = rng.integers(1, CAMERAS + 1, QUERIES), rng.integers(1, CAMERAS + 1, len(g_pids))
    query = features.of(q_pids)
    if args.distractors:
        file = folder / "gallery.npy"
        written = np.lib.format.open_memmap(file, "w+", np.float32, (len(g_pids), args.dimension))
        for start in range(0, len(g_pids), BLOCK):
            written[start : start + BLOCK] = features.of(g_pids[start : start + BLOCK])
        written.flush()
        gallery: np.ndarray = np.load(file, mmap_mode="r")
    else:
        gallery = features.of(g_pids)

    found: list[Scores] = []
    few, kept = slice(FEW), g_pids != JUNK
    small = (q_pids[few], g_pids[kept], q_camids[few], g_camids[kept])

    def ours() -> None:
        found.append(evaluate(query, gallery, q_pids, g_pids, q_camids, g_camids))

    contenders: dict[str, tuple[Callable[[], Any], float]] = {  # with what its time is multiplied
        "bare float32 product": (lambda: product(query, gallery), 1),
        "reid.retrieval.evaluate": (ours, 1),
    }
    if not args.distractors:
        rest = gallery[kept]

        def torchreids() -> tuple[np.ndarray, float]:
            return torchreid.evaluate_rank(-(query[few] @ rest.T), *small)

        contenders["torchreid, Python"] = (torchreids, QUERIES / FEW)
        contenders["argsort"] = (lambda: by_argsort(query[few], rest, *small), QUERIES / FEW)

    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, (run, times) in contenders.items():
            seconds[name].append(timed(run) * times)
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    print(f"{QUERIES} x {len(g_pids)} x {args.dimension}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    for name, (run, times) in contenders.items():
        scaled = f", from {FEW} queries" if times != 1 else ""
        ratio = medians[name] / medians["bare float32 product"]
        memory = peak(run)
        print(f"{name:22}{medians[name]:9.2f} s   ratio {ratio:6.2f}   {memory:7.0f} MiB{scaled}")
    scores = found[0]
    print(f"Rank-1 {scores.rank1:.6f}, mAP {scores.mAP:.9f}, trapezoid {scores.mAP_trapezoid:.6f}")
    if not args.distractors:
        ours_few = evaluate(query[few], gallery, q_pids[few], g_pids, q_camids[few], g_camids)
        cmc, mean = torchreids()
        argsort = by_argsort(query[few], rest, *small)
        print(f"on {FEW} queries: mAP {ours_few.mAP:.9f}, torchreid's {mean:.9f}, argsort's {argsort:.9f}")
        if abs(ours_few.mAP - mean) > 1e-6 or np.abs(ours_few.cmc - cmc).max() > 1e-6:
            sys.exit("the two evaluations differ")


if __name__ == "__main__":
    main()
