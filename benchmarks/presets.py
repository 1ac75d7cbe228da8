"""The gallery's presets on real people among synthetic ones, beside other libraries on the same vectors.

    OMP_NUM_THREADS=2 python benchmarks/presets.py --data-root DIR/cuhk03-np-p1 --images 50000
    OMP_NUM_THREADS=2 python benchmarks/presets.py --data-root DIR/cuhk03-np-p1 --images 1000000 --peers   # 10 GB

Query and gallery images of CUHK03-NP-P1 are embedded (once: --features keeps them). A half of the people are searched
for. The gallery, which holds all, is padded to --images with people made of the other half: an image of one person and
one of another, blended about their mean by a share that is drawn for each pair, Beta(1/2, 1/2), and made unit length;
ten images of each. First it is told how near strangers come to the images of the half that is searched for: real
images of the other half, and as many blended ones.

mAP and its loss are of the 100 nearest: precision at each match among them, over all matches. Seconds to build are
those of set_preset, or of adding the vectors. Queries a second: --queries images at once, the median of --rounds, on
OMP_NUM_THREADS threads. A peer, each a graph of 16 links, looks as far as it takes to reach the recall of `large`.
Needs: pip install hnswlib usearch 'pymilvus>=3.0' 'milvus-lite>=3.2'.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reid.gallery import Gallery

IMAGES_EACH, TOP_K, LONG = 10, 10, 100
_STEP = 2000  # synthetic people at a time
QUANTILES = (0.1, 0.5, 0.9, 0.99)


class Images(NamedTuple):
    vectors: np.ndarray  # (N, D) float32 of unit length
    pids: np.ndarray
    camids: np.ndarray


class Row(NamedTuple):
    """A line of the table."""

    name: str
    recall: float
    mean_ap: float
    size: float  # bytes an image
    build: float  # seconds
    rate: float  # queries a second


def real(data_root: str, weights: Path, features: Path) -> tuple[Images, Images]:
    """Query and gallery."""
    import datasets
    import reid

    splits = datasets.read("cuhk03np_detected", Path(data_root))
    embedder = reid.Embedder(reid.load_model(weights))
    parts = []
    for name in ("query", "gallery"):
        samples = getattr(splits, name)
        vectors = embedder.embed([s.path for s in samples], save=features / f"{weights.stem}-{name}.npy", progress=True)
        pids, camids = (np.array([s[i] for s in samples]) for i in (1, 2))
        parts.append(Images(np.array(vectors), pids, camids))
    return parts[0], parts[1]


class Blender:
    """Images of people who are between two real ones."""

    def __init__(self, images: Images, seed: int) -> None:
        self.vectors, self.rng = images.vectors, np.random.default_rng(seed)
        self.mean = images.vectors.mean(axis=0)
        self.of = [np.flatnonzero(images.pids == pid) for pid in np.unique(images.pids)]

    def people(self, count: int) -> np.ndarray:
        first, second = (self._images_of(count) for _ in range(2))
        share = self.rng.beta(0.5, 0.5, count).repeat(IMAGES_EACH)[:, None].astype(np.float32)
        rows = np.sqrt(share) * (self.vectors[first] - self.mean) + np.sqrt(1 - share) * (
            self.vectors[second] - self.mean
        )
        rows += self.mean
        unit: np.ndarray = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return unit

    def _images_of(self, count: int) -> np.ndarray:
        chosen = self.rng.integers(0, len(self.of), count)
        return np.concatenate([self.rng.choice(self.of[person], IMAGES_EACH) for person in chosen])


def halves(images: Images) -> tuple[Images, Images]:
    """Of the people; the same halves whichever of their images these are."""
    first = images.pids % 2 == 0
    return Images(*(x[first] for x in images)), Images(*(x[~first] for x in images))


def tell_strangers(images: Images) -> None:
    """How near the nearest stranger comes to each image, and how near strangers are at all."""
    (ours, _, _), others = halves(images)
    made = Blender(others, 1).people(len(others.vectors) // IMAGES_EACH)
    print(f"{'similarity to strangers, quantiles':36}" + "".join(f"{q:8.0%}" for q in QUANTILES))
    for name, theirs in (("real", others.vectors[: len(made)]), ("synthetic", made)):
        scores = ours @ theirs.T
        for what, values in (("the nearest", scores.max(axis=1)), ("any", scores.ravel())):
            print(f"{what + ', ' + name:36}" + "".join(f"{x:8.3f}" for x in np.quantile(values, QUANTILES)))


def build(folder: Path, images: Images, count: int) -> tuple[Gallery, np.ndarray, float]:
    """A gallery of real images, then synthetic ones up to count; its vectors, and the seconds that adding took."""
    dimension = images.vectors.shape[1]
    vectors = np.lib.format.open_memmap(folder / "vectors.npy", "w+", np.float32, (count, dimension))
    done = min(count, len(images.vectors))
    vectors[:done] = images.vectors[:done]
    blender = Blender(halves(images)[1], 2)
    while done < count:
        rows = blender.people(min(_STEP, -(-(count - done) // IMAGES_EACH)))[: count - done]
        vectors[done : done + len(rows)] = rows
        done += len(rows)
    gallery = Gallery.create(folder / "g", dimension=dimension, fingerprint="bench", input_size=(256, 96))
    began = time.perf_counter()
    gallery.add(vectors, [f"{n}.jpg" for n in range(count)])
    return gallery, vectors, time.perf_counter() - began


def mean_ap(found: np.ndarray, query: Images, images: Images) -> float:
    """Of ranked lists (Q, k), rows of the gallery, the first of which are images; queries without a match left out."""
    known = np.append(images.pids, [-2] * (found.max() + 1 - len(images.pids)))
    cameras = np.append(images.camids, [-2] * (found.max() + 1 - len(images.pids)))
    precisions = []
    for row, pid, camid in zip(found, query.pids, query.camids):
        matches = np.count_nonzero((images.pids == pid) & (images.camids != camid))
        row = row[row >= 0]
        right = known[row] == pid
        right = right[~(right & (cameras[row] == camid))]
        hits = np.flatnonzero(right)
        if matches:
            precisions.append(np.sum(np.arange(1, len(hits) + 1) / (hits + 1)) / matches)
    return float(np.mean(precisions))


def overlap(found: np.ndarray, true: np.ndarray) -> float:
    return float(np.mean([len(np.intersect1d(a, b)) / TOP_K for a, b in zip(found[:, :TOP_K], true[:, :TOP_K])]))


def timed(search: Callable[[], Any], rounds: int) -> float:
    """Median seconds, after one that does not count."""
    search()
    seconds = []
    for _ in range(rounds):
        began = time.perf_counter()
        search()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


class Peer(NamedTuple):
    look: Callable[[int], object]  # sets how far it looks
    search: Callable[[int], np.ndarray]  # rows of the k nearest, (Q, k)
    size: float  # bytes an image; not a number where it does not tell


def hnswlib_of(vectors: np.ndarray, query: np.ndarray, threads: int, folder: Path) -> Peer:
    import hnswlib

    graph = hnswlib.Index("ip", vectors.shape[1])
    graph.init_index(len(vectors), ef_construction=100, M=16)
    graph.set_num_threads(threads)
    graph.add_items(vectors)
    size = 4 * vectors.shape[1] + 136  # the floats, and 2 M links and the label
    return Peer(graph.set_ef, lambda k: graph.knn_query(query, k)[0].astype(np.int64), size)


def usearch_of(vectors: np.ndarray, query: np.ndarray, threads: int, folder: Path) -> Peer:
    from usearch.index import Index

    index = Index(ndim=vectors.shape[1], metric="ip", dtype="f32", connectivity=16, expansion_add=100)
    index.add(np.arange(len(vectors)), vectors, threads=threads)

    def search(k: int) -> np.ndarray:
        found: np.ndarray = index.search(query, k, threads=threads).keys
        return found.astype(np.int64)

    return Peer(lambda ef: setattr(index, "expansion_search", ef), search, index.memory_usage / len(vectors))


def milvus_lite_of(vectors: np.ndarray, query: np.ndarray, threads: int, folder: Path) -> Peer:
    from pymilvus import DataType, MilvusClient

    client = MilvusClient(f"{folder}/peer.db")
    schema, index = client.create_schema(), client.prepare_index_params()
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("vector", DataType.FLOAT_VECTOR, dim=vectors.shape[1])
    index.add_index("vector", index_type="HNSW", metric_type="IP", params={"M": 16, "efConstruction": 100})
    client.create_collection("peer", schema=schema, index_params=index)
    for start in range(0, len(vectors), 1000):
        rows = [{"id": start + n, "vector": row} for n, row in enumerate(vectors[start : start + 1000])]
        client.insert("peer", rows)
    asked: dict[str, Any] = {}

    def search(k: int) -> np.ndarray:
        found = client.search("peer", query, limit=k, search_params={"metric_type": "IP", "params": asked})
        return np.array([[hit["id"] for hit in hits] for hits in found])

    return Peer(lambda ef: asked.update(ef=ef), search, float("nan"))


PEERS = {"hnswlib": hnswlib_of, "usearch": usearch_of, "Milvus Lite": milvus_lite_of}
EFFORTS = (10, 20, 40, 80, 160, 320, 640, 1280, 2560, 5120)


def measure_peer(
    name: str,
    vectors: np.ndarray,
    query: np.ndarray,
    true: np.ndarray,
    least: float,
    rounds: int,
    threads: int,
    folder: Path,
    score: Callable[[np.ndarray], float],
) -> Row:
    began = time.perf_counter()
    peer = PEERS[name](vectors, query, threads, folder)
    took = time.perf_counter() - began
    for effort in EFFORTS:
        peer.look(effort)
        if overlap(peer.search(TOP_K), true) >= least:
            break
    recall = overlap(peer.search(TOP_K), true)
    rate = len(query) / timed(lambda: peer.search(TOP_K), rounds)
    peer.look(max(effort, LONG))
    return Row(f"{name}, ef {effort}", recall, score(peer.search(LONG)), peer.size, took, rate)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", required=True, metavar="DIR")
    parser.add_argument("--weights", type=Path, default=Path(__file__).parents[1] / "weights/scgnet_s.safetensors")
    parser.add_argument("--features", type=Path, default=Path("runs/features"), metavar="DIR", help="kept there")
    parser.add_argument("--images", type=int, default=50_000, metavar="N", help="in the gallery (default: 50000)")
    parser.add_argument("--queries", type=int, default=400, metavar="N", help="at once (default: 400)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="(default: 3)")
    parser.add_argument("--recall", type=float, default=0.99, metavar="R", help="of large (default: 0.99)")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="of the peers (default: 2)")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, metavar="PEER", help=", ".join(PEERS))
    args = parser.parse_args(arguments)
    query, images = real(args.data_root, args.weights, args.features)
    tell_strangers(Images(*(np.concatenate(pair) for pair in zip(query, images))))
    with tempfile.TemporaryDirectory() as name:
        gallery, vectors, took = build(Path(name), images, args.images)
        asked = Images(*(x[: args.queries] for x in halves(query)[0]))
        some = asked.vectors
        true = gallery.search(some, TOP_K).keys
        rows = []

        def score(found: np.ndarray) -> float:
            return mean_ap(found, asked, images)

        for preset in ("exact", "large", "compact"):
            if preset != "exact":
                began = time.perf_counter()
                gallery.set_preset(preset, recall=args.recall)
                took = time.perf_counter() - began
            files = [f for f in Path(gallery.place).iterdir() if f.name.startswith(("vectors-", "codec-", "index-"))]
            found = gallery.search(some, TOP_K).keys
            rate = len(some) / timed(lambda: gallery.search(some, TOP_K), args.rounds)
            one = timed(lambda: gallery.search(some[:1], TOP_K), args.rounds)
            size = sum(f.stat().st_size for f in files) / args.images
            rows.append(Row(preset, overlap(found, true), score(gallery.search(some, LONG).keys), size, took, rate))
            print(f"{preset}: one query {1000 * one:.1f} ms; {gallery.info().learnt or ''}", flush=True)
        for name in args.peers:
            least, folder = rows[1].recall, Path(gallery.place).parent
            rows.append(measure_peer(name, vectors, some, true, least, args.rounds, args.threads, folder, score))
    print(f"\n{args.images:,} images, {vectors.shape[1]} dimensions, {len(some)} queries at once")
    print(
        f"{'':16}{'recall@10':>10}{'mAP@100':>9}{'loss':>7}{'bytes/image':>13}{'float32 /':>11}{'build s':>9}"
        f"{'queries/s':>11}{'of exact':>10}"
    )
    for row in rows:
        print(
            f"{row.name:16}{row.recall:10.4f}{100 * row.mean_ap:9.2f}{100 * (rows[0].mean_ap - row.mean_ap):7.2f}"
            f"{row.size:13,.0f}{4 * vectors.shape[1] / row.size:11.1f}{row.build:9.1f}{row.rate:11,.0f}"
            f"{row.rate / rows[0].rate:10.1f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
