"""The gallery's exact search beside the bare float32 product, a pass over the vectors' memory, and faiss.knn.

    OMP_NUM_THREADS=2 python benchmarks/gallery.py
    OMP_NUM_THREADS=2 python benchmarks/gallery.py --images 1000000 --queries 64 --rounds 3    # 8 GB

Drawn vectors of unit length, without structure: many lie close to the tenth nearest, which is the harder case for a
search that multiplies near ones again. Everything runs on the gallery's own memory-mapped files, in turn for --rounds
rounds; a figure is the median, a ratio that of two medians. The pass reads each value once (numpy's maximum).
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import faiss
import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reid.gallery import Filter, Gallery

CAMERAS, PEOPLE, TOP_K = 8, 1000, 10
_STEP = 20_000  # images added at a time


def build(folder: Path, images: int, dimension: int) -> tuple[Gallery, float]:
    """A gallery of drawn vectors, and the seconds that adding them took."""
    rng = np.random.default_rng(0)
    gallery = Gallery.create(folder, dimension=dimension, fingerprint="drawn", input_size=(256, 128))
    seconds = 0.0
    for start in range(0, images, _STEP):
        count = min(_STEP, images - start)
        rows = rng.standard_normal((count, dimension), dtype=np.float32)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        numbers = range(start, start + count)
        began = time.perf_counter()
        gallery.add(
            rows,
            [f"/crops/{n}.jpg" for n in numbers],
            [n % PEOPLE + 1 for n in numbers],
            [n % CAMERAS + 1 for n in numbers],
            [float(n) for n in numbers],
        )
        seconds += time.perf_counter() - began
    began = time.perf_counter()
    gallery.compact()
    return gallery, seconds + time.perf_counter() - began


def measure(gallery: Gallery, queries: np.ndarray, rounds: int) -> dict[str, float]:
    """Median seconds of each contender."""
    vectors = np.load(next(Path(gallery.place).glob("vectors-*.npy")), mmap_mode="r")
    one, mapped = queries[:1], np.asarray(vectors)
    some = Filter(camids=[1], after=len(vectors) / 2)
    contenders: dict[str, Callable[[], object]] = {
        "open": lambda: Gallery.open(gallery.place),
        "memory pass": lambda: mapped.max(),
        "product of one": lambda: mapped @ one[0],
        "search of one": lambda: gallery.search(one, TOP_K),
        "search of one, filtered": lambda: gallery.search(one, TOP_K, filter=some),
        "product": lambda: queries @ mapped.T,
        "search": lambda: gallery.search(queries, TOP_K),
        "search, a camera left out": lambda: gallery.search(queries, TOP_K, exclude_camids=1),
        "faiss.knn": lambda: faiss.knn(queries, mapped, TOP_K, faiss.METRIC_INNER_PRODUCT),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for call in contenders.values():
        call()
    for _ in range(rounds):
        for name, call in contenders.items():
            began = time.perf_counter()
            call()
            seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=60_000, metavar="N", help="in the gallery (default: 60000)")
    parser.add_argument("--queries", type=int, default=256, metavar="N", help="of a batch (default: 256)")
    parser.add_argument("--dimension", type=int, default=2048, metavar="D", help="(default: 2048)")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="(default: 7)")
    args = parser.parse_args(arguments)
    rng = np.random.default_rng(1)
    queries = rng.standard_normal((args.queries, args.dimension), dtype=np.float32)
    queries /= np.linalg.norm(queries, axis=1, keepdims=True)
    with tempfile.TemporaryDirectory() as folder:
        gallery, added = build(Path(folder) / "g", args.images, args.dimension)
        seconds = measure(gallery, queries, args.rounds)
    print(f"{args.images:,} images, {args.dimension} dimensions, batch of {args.queries}, top {TOP_K}")
    print(f"{'added and compacted':28} {added:9.4f} s   {args.images / added:,.0f} images/s")
    for name, value in seconds.items():
        base = "memory pass" if "one" in name else "product"
        ratio = (
            f"   {value / seconds[base]:.2f} of the {base}" if name not in ("open", "memory pass", "product") else ""
        )
        print(f"{name:28} {value:9.4f} s{ratio}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
