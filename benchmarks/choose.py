"""Parameters of clustering and of query expansion, chosen on a half of the people and reported on the other half.

    python benchmarks/choose.py --dataset cuhk03np_detected --data-root DIR --weights weights/*.safetensors

Query and gallery people, none of whom the models were trained on, are drawn into two halves. Of the grid, the first
half's best five are shown for each model, and what the defaults of the program give on the other half. Features are
kept in runs/choose, so that a second call takes seconds.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import product
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from reid.core.tables import aligned_table
from reid.core.types import ReidError
from reid.models.embedder import Embedder
from reid.models.model import load_model
from reid.retrieval.cluster import DISTANCE, K1, K2, MIN_IMAGES, agreement, cluster
from reid.retrieval.evaluate import evaluate
from reid.retrieval.expansion import expand_gallery, expand_queries
from reid.retrieval.protocol import COSINE
from reid.retrieval.rerank import jaccard

CLUSTERS = tuple(product((10, 15, 20, 30), (1, 4, 6), (0.4, 0.5, 0.55, 0.6, 0.65, 0.7), (2, 3, 4)))
EXPANSIONS = tuple(product((1, 2, 3, 5, 8), (0.0, 1.0, 3.0, 5.0), (False, True)))
EXPANSION = (5, COSINE.alpha, True)


class Half:
    """Query and gallery of some of the people."""

    def __init__(
        self,
        features: Sequence[np.ndarray],
        pids: Sequence[np.ndarray],
        camids: Sequence[np.ndarray],
        people: np.ndarray,
    ) -> None:
        mine = [np.isin(ids, people) for ids in pids]
        self.query, self.gallery = (np.asarray(f[m]) for f, m in zip(features, mine))
        self.pids, self.camids = ([x[m] for x, m in zip(ids, mine)] for ids in (pids, camids))
        self.similar: dict[tuple[int, int], object] = {}

    def clusters(self, k1: int, k2: int, distance: float, min_images: int) -> list[float]:
        if (k1, k2) not in self.similar:
            self.similar[k1, k2] = jaccard(np.concatenate([self.query, self.gallery]), k1=k1, k2=k2)
        labels = cluster(self.similar[k1, k2], distance=distance, min_images=min_images)
        pids = np.concatenate(self.pids)
        found = agreement(labels, pids)
        return [found.bcubed_f, found.pair_f, found.adjusted_rand, labels.max() + 1, len(np.unique(pids))]

    def expanded(self, k: int, alpha: float, both: bool) -> list[float]:
        query, gallery = self.query, self.gallery
        if k:
            gallery = expand_gallery(gallery, k=k, alpha=alpha) if both else gallery
            query = expand_queries(query, self.gallery, k=k, alpha=alpha)
        scores = evaluate(query, gallery, *self.pids, *self.camids)
        return [scores.mAP, scores.rank1]


def table(header: Sequence[str], rows: Sequence[tuple[str, Sequence[float]]]) -> str:
    """Fractions in percent, counts as they are."""
    shown = [
        [name, *(f"{v:,}" if isinstance(v, int | np.integer) else f"{100 * v:.1f}" for v in values)]
        for name, values in rows
    ]
    return aligned_table(header, shown)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cuhk03np_detected", metavar="NAME", help="(default: cuhk03np_detected)")
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the data set's folder, or the one above")
    parser.add_argument("--weights", nargs="+", required=True, metavar="FILE", help="trained model.safetensors")
    parser.add_argument("--seed", type=int, default=0, help="of the halves (default: 0)")
    args = parser.parse_args()
    try:
        splits = datasets.read(args.dataset, args.data_root)
        parts = {"query": splits.query, "gallery": [s for s in splits.gallery if s.pid > 0]}
        pids, camids = ([np.array([s[i] for s in part]) for part in parts.values()] for i in (1, 2))
        people = np.random.default_rng(args.seed).permutation(np.unique(pids[0]))
        sides = people[: len(people) // 2], people[len(people) // 2 :]
        for weights in args.weights:
            embedder, folder = Embedder(load_model(weights)), Path("runs/choose") / Path(weights).stem
            features = [
                embedder.embed([s.path for s in part], save=folder / f"{name}.npy", progress=True)
                for name, part in parts.items()
            ]
            first, second = (Half(features, pids, camids, side) for side in sides)
            print(f"\n## {Path(weights).stem}: {len(sides[0])} people to choose on, {len(sides[1])} others")
            header = ("clustering", "B-cubed F", "pair F", "adjusted Rand", "groups", "people")
            grid = {
                f"k1 {k1}, k2 {k2}, distance {d}, min images {n}": first.clusters(k1, k2, d, n)
                for k1, k2, d, n in CLUSTERS
            }
            rows = sorted(grid.items(), key=lambda row: -row[1][0])[:5]
            default = (K1, K2, DISTANCE, MIN_IMAGES)
            rows += [("the defaults", first.clusters(*default)), ("the others by it", second.clusters(*default))]
            print(f"\n{table(header, rows)}")
            columns = ("query expansion", "mAP", "Rank-1")
            grid = {
                f"k {k}, alpha {a:g}{', gallery too' if both else ''}": first.expanded(k, a, both)
                for k, a, both in EXPANSIONS
            }
            rows = sorted(grid.items(), key=lambda row: -row[1][0])[:5]
            for name, half in (("", first), ("the others ", second)):
                rows += [
                    (f"{name}without", half.expanded(0, 0, False)),
                    (f"{name}with the defaults, gallery too", half.expanded(*EXPANSION)),
                ]
            print(f"\n{table(columns, rows)}")
    except ReidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
