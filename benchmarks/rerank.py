"""Re-ranking at Market-1501's size beside torchreid's.

    OMP_NUM_THREADS=2 python benchmarks/rerank.py
    OMP_NUM_THREADS=2 python benchmarks/rerank.py --distractors 500000 --rounds 1

The features are those of benchmarks/evaluate.py, without junk, and with --noise: the length of what is added in all
dimensions alike, for directions that most of the energy lies in help the search for neighbours. At the default, an
eighth of the dimensions leaves out about as much of it as of weights/scgnet_s on CUHK03-NP, 3 %.

torchreid's port takes distances: their products and roots are part of its time and memory. Each runs in turn for
--rounds rounds; a figure is the median, a ratio that of two medians. Memory is the peak beside the features, of a run
of its own. torchreid's needs about five times the square of all images in float32: --scale takes a share of them. With
--distractors the gallery is a memory-mapped file in a temporary folder, and torchreid is left out.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from pathlib import Path

import numpy as np
from scipy.sparse import csr_array
from torchreid.reid.utils.rerank import re_ranking

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.evaluate import BLOCK, DISTRACTORS, GOOD, PERSONS, QUERIES, Features, peak, timed
from reid.retrieval import rerank

GOAL_SECONDS, GOAL_MEMORY = 20, 10  # times torchreid's


def distances(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    found = a @ b.T
    np.multiply(found, -2, out=found)
    found += 2
    return np.sqrt(np.maximum(found, 0, out=found), out=found)


def torchreids(query: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    return re_ranking(distances(query, gallery), distances(query, query), distances(gallery, gallery))


def final_distance(query: np.ndarray, gallery: np.ndarray, bonus: csr_array) -> np.ndarray:
    """The paper's, of cosine and bonus."""
    cosine = query @ gallery.T
    lowest = np.minimum(cosine.min(axis=1), (query @ query.T).min(axis=1))[:, None]
    return (1 - rerank.LAMBDA) + rerank.LAMBDA * (1 - cosine - bonus.toarray()) / (1 - lowest)


def draw(args: argparse.Namespace, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = Features(args.dimension, None if args.random else args.spread, rng)

    def rows(pids: np.ndarray) -> np.ndarray:
        found = features.of(pids)
        found += args.noise * args.dimension**-0.5 * rng.standard_normal(found.shape, np.float32)
        return found / np.linalg.norm(found, axis=1, keepdims=True)

    queries, good, nobody = (round(args.scale * count) for count in (QUERIES, GOOD, DISTRACTORS))
    query = rows(rng.integers(1, PERSONS + 1, queries))
    pids = rng.permutation(np.append(rng.integers(1, PERSONS + 1, good), np.zeros(nobody, np.int64)))
    if not args.distractors:
        return query, rows(pids)
    pids = np.append(pids, np.zeros(args.distractors, np.int64))
    file = folder / "gallery.npy"
    written = np.lib.format.open_memmap(file, "w+", np.float32, (len(pids), args.dimension))
    for start in range(0, len(pids), BLOCK):
        written[start : start + BLOCK] = rows(pids[start : start + BLOCK])
    written.flush()
    return query, np.load(file, mmap_mode="r")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scale", type=float, default=1, metavar="S", help="share of the images (default: 1)")
    parser.add_argument("--dimension", type=int, default=2048, metavar="D", help="(default: 2048)")
    parser.add_argument("--distractors", type=int, default=0, metavar="N", help="more images of nobody, in a file")
    parser.add_argument("--spread", type=float, default=1.1, help="of a person's images (default: 1.1)")
    parser.add_argument("--noise", type=float, default=0.19, help="(default: 0.19)")
    parser.add_argument("--random", action="store_true", help="features without persons")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        measure(args, *draw(args, Path(folder)))


def measure(args: argparse.Namespace, query: np.ndarray, gallery: np.ndarray) -> None:
    bonus: list[csr_array] = []
    expected: list[np.ndarray] = []

    def ours() -> None:
        bonus[:] = [rerank.rerank(query, gallery, progress=bool(args.distractors))]

    def theirs() -> None:
        expected[:] = [torchreids(query, gallery)]

    contenders = {"reid.retrieval.rerank": ours}
    if not args.distractors:
        contenders["torchreid"] = theirs
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(args.rounds):
        for name, run in contenders.items():
            seconds[name].append(timed(run))
    print(f"{len(query)} x {len(gallery)} x {args.dimension}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    medians = {name: statistics.median(times) for name, times in seconds.items()}
    if args.distractors:
        print(f"reid.retrieval.rerank {medians['reid.retrieval.rerank']:9.1f} s")
    else:
        memory = {name: peak(run) for name, run in contenders.items()}
        for name in contenders:
            print(f"{name:12}{medians[name]:9.2f} s   {memory[name]:7.0f} MiB")
        faster, smaller = (of["torchreid"] / of["reid.retrieval.rerank"] for of in (medians, memory))
        print(f"{faster:.1f} times faster, goal {GOAL_SECONDS}; {smaller:.1f} times smaller, goal {GOAL_MEMORY}")
        difference = np.abs(final_distance(query, gallery, bonus[0]) - expected[0])
        print(
            f"final distances differ by {difference.max():.2e} at most, {(difference > 1e-5).sum()} by more than 1e-5"
        )
    stored, reached = bonus[0].nnz / len(query), len(np.unique(bonus[0].indices))
    print(f"{stored:.0f} gallery images a query, {reached} in all, have something in common with it")


if __name__ == "__main__":
    main()
