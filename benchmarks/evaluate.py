"""The evaluation at Market-1501's size, beside the bare matrix product and torchreid's Python evaluation.

    OMP_NUM_THREADS=2 python benchmarks/evaluate.py

Random unit features of 2,048 dimensions, Market-1501's numbers of query and gallery images, persons and cameras.
torchreid runs on fewer queries, all of the gallery: its time is proportional to the queries and is scaled up.
"""

from __future__ import annotations

import os
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reid import torchreid_bridge
from reid.evaluate import evaluate

QUERIES, GALLERY, PERSONS, CAMERAS, DIMENSION = 3368, 19732, 750, 6, 2048
TORCHREID_QUERIES = 300


def main() -> None:
    rng = np.random.default_rng(0)
    query, gallery = (_unit(rng.standard_normal((n, DIMENSION), dtype=np.float32)) for n in (QUERIES, GALLERY))
    q_pids = rng.integers(1, PERSONS + 1, QUERIES)
    # 13,115 good images, 2,798 distractors, 3,819 junk
    g_pids = rng.permutation(np.concatenate([rng.integers(1, PERSONS + 1, 13115), np.zeros(2798, int), [-1] * 3819]))
    q_camids, g_camids = rng.integers(1, CAMERAS + 1, QUERIES), rng.integers(1, CAMERAS + 1, GALLERY)

    product, _ = _timed(lambda: query @ gallery.T)
    ours, scores = _timed(lambda: evaluate(query, gallery, q_pids, g_pids, q_camids, g_camids))
    tracemalloc.start()  # slows it, so in a run of its own
    evaluate(query, gallery, q_pids, g_pids, q_camids, g_camids)
    peak = tracemalloc.get_traced_memory()[1] / 2**20
    tracemalloc.stop()

    few, kept = slice(TORCHREID_QUERIES), g_pids != -1
    distances = -(query[few] @ gallery[kept].T)
    theirs, (cmc, mean_ap) = _timed(
        lambda: torchreid_bridge.evaluate_rank(distances, q_pids[few], g_pids[kept], q_camids[few], g_camids[kept])
    )
    same = evaluate(query[few], gallery, q_pids[few], g_pids, q_camids[few], g_camids)
    theirs = product + theirs * QUERIES / TORCHREID_QUERIES

    print(f"{QUERIES} x {GALLERY} x {DIMENSION}, {os.environ.get('OMP_NUM_THREADS', 'all')} threads")
    print(f"bare float32 product      {product:7.2f} s   ratio 1.0")
    print(f"reid.evaluate             {ours:7.2f} s   ratio {ours / product:.1f}, {peak:.0f} MiB beside the features")
    print(f"product + torchreid       {theirs:7.2f} s   ratio {theirs / product:.1f}, from {TORCHREID_QUERIES} queries")
    print(f"torchreid / reid.evaluate {theirs / ours:7.1f}")
    print(f"on those {TORCHREID_QUERIES} queries: mAP {same.mAP:.9f}, torchreid's {mean_ap:.9f}")
    print(f"on all: Rank-1 {scores.rank1:.6f}, mAP {scores.mAP:.6f}, trapezoid {scores.mAP_trapezoid:.6f}")
    if abs(same.mAP - mean_ap) > 1e-6 or np.abs(same.cmc - cmc).max() > 1e-6:
        sys.exit("the two evaluations differ")


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def _timed(run: Callable[[], Any]) -> tuple[float, Any]:
    start = time.perf_counter()
    result = run()
    return time.perf_counter() - start, result


if __name__ == "__main__":
    main()
