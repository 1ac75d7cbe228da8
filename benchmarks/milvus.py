"""A gallery in Milvus beside the same in a folder: seconds to add and to search, and recall@10 of the exact answer.

    OMP_NUM_THREADS=2 python benchmarks/milvus.py                                        # Milvus Lite, embedded
    python benchmarks/milvus.py --gallery milvus://HOST:19530/measured --images 1000000  # the server that you plan for

Drawn vectors around a centre a person, of unit length. The collection must not exist, and is dropped at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reid.gallery import Filter, Gallery
from reid.gallery.milvus.gallery import MilvusGallery

CAMERAS, CROPS, TOP_K = 8, 20, 10  # crops a person
_STEP = 20_000  # images added at a time


def draw(first: int, count: int, dimension: int, seed: int) -> np.ndarray:
    """Crops first, first + 1, ... of people, (count, dimension) float32; the seed draws how crops of one differ."""
    people = (np.arange(first, first + count) // CROPS).tolist()
    centres = {person: np.random.default_rng(person).standard_normal(dimension) for person in set(people)}
    rows = np.stack([centres[person] for person in people])
    rows += np.random.default_rng((seed, first)).standard_normal(rows.shape)
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def fill(gallery: Gallery, images: int) -> float:
    """Adds drawn images; the seconds that it took."""
    seconds = 0.0
    for start in range(0, images, _STEP):
        numbers = np.arange(start, min(start + _STEP, images))
        rows = draw(start, len(numbers), gallery.dimension, 0)
        began = time.perf_counter()
        gallery.add(rows, [f"/crops/{n}.jpg" for n in numbers], numbers // CROPS + 1, numbers % CAMERAS + 1)
        seconds += time.perf_counter() - began
    return seconds


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gallery", metavar="PLACE", help="milvus://HOST:PORT/NAME (default: Milvus Lite)")
    parser.add_argument("--images", type=int, default=20_000, metavar="N", help="in the gallery (default: 20000)")
    parser.add_argument("--queries", type=int, default=64, metavar="N", help="of a batch (default: 64)")
    parser.add_argument("--dimension", type=int, default=1280, metavar="D", help="(default: 1280)")
    args = parser.parse_args(arguments)
    queries = draw(0, args.queries, args.dimension, 1)
    some = Filter(camids=[1])
    answers = []
    with tempfile.TemporaryDirectory() as folder:
        print(f"{args.images:,} images, {args.dimension} dimensions, batch of {args.queries}, top {TOP_K}")
        for name, place in (("folder", f"{folder}/g"), ("Milvus", args.gallery or f"milvus+lite:{folder}/g.db")):
            gallery = Gallery.create(place, dimension=args.dimension, fingerprint="drawn", input_size=(256, 128))
            print(f"{name:8} added               {args.images / fill(gallery, args.images):9,.0f} images a second")
            gallery.search(queries[:1], TOP_K)
            for what, asked, filter in (
                ("one query", queries[:1], None),
                ("one query, filtered", queries[:1], some),
                ("the batch", queries, None),
            ):
                began = time.perf_counter()
                found = gallery.search(asked, TOP_K, filter=filter)
                print(f"{name:8} {what:19} {time.perf_counter() - began:9.4f} s")
            answers.append(found.keys)
            if isinstance(gallery, MilvusGallery):
                gallery.drop()
    shared = [len(set(exact) & set(got)) for exact, got in zip(*(keys.tolist() for keys in answers))]
    print(f"recall@{TOP_K} of Milvus: {np.mean(shared) / min(TOP_K, args.images):.4f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
