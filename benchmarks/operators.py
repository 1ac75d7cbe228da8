"""Where OpenVINO's time goes on a CPU, kind by kind of operator, against the machine's own arithmetic and memory rate.

    OMP_NUM_THREADS=2 python benchmarks/operators.py --folder runs/embed --only scgnet_s scgnet_l

The files are those of benchmarks/embed.py: MGN at 384x128, random weights, batch 32, float32 and int8. Each operator's
time is OpenVINO's own measurement, the least of --runs runs. Peak arithmetic is what OpenVINO reaches in one large
product of that precision, the memory rate what a large copy reaches, reading and writing counted; both measured in the
same run. Bytes are those that an operator reads and writes but for its weights. An operator that is near neither rate
is bound by its shape: too few channels a group to fill the processor's registers.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from benchmarks.embed import BACKBONES, SIZE, exported, make
from reid.core.tables import aligned_table

PRECISIONS = ("fp32", "int8")
BATCH = 32


@dataclass
class Kind:
    operators: int = 0
    seconds: float = 0.0
    multiply_adds: int = 0
    bytes: int = 0


def kind_of(node: Any) -> str:
    """Of an operator of the file: a convolution by its kernel and groups, anything else by its type."""
    if node.get_type_name() not in ("Convolution", "GroupConvolution"):
        return str(node.get_type_name())
    shape = list(node.input(1).get_shape())
    kernel, grouped = f"{shape[-2]}x{shape[-1]}", len(shape) == 5
    if not grouped:
        return f"{kernel} convolution"
    return f"{kernel} depthwise" if shape[1] == shape[2] == 1 else f"{kernel} of groups of {shape[2]}"


def multiply_adds(node: Any) -> int:
    """Of a convolution or product of the file, at the shapes that it is compiled for."""
    out = int(np.prod(node.output(0).get_shape()))
    if node.get_type_name() in ("Convolution", "GroupConvolution"):
        return out * int(np.prod(list(node.input(1).get_shape())[-3:]))
    if node.get_type_name() == "MatMul":
        return out * int(node.input(0).get_shape()[-1])
    return 0


def profile(model: Any, feed: np.ndarray, runs: int, threads: int) -> tuple[dict[str, Kind], float]:
    """Kind of operator -> all of it together; and the seconds of a whole run."""
    import openvino as ov

    hints = {"PERF_COUNT": True, "INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = ov.Core().compile_model(model, "CPU", hints)
    request, whole = compiled.create_infer_request(), np.inf
    best: dict[str, float] = {}
    for _ in range(runs + 1):  # the first warms up
        began = time.perf_counter()
        request.infer([feed])
        whole = min(whole, time.perf_counter() - began)
        for info in request.profiling_info:
            best[info.node_name] = min(best.get(info.node_name, np.inf), info.real_time.total_seconds())
    asked = {node.get_friendly_name(): node for node in model.get_ordered_ops()}
    kinds: dict[str, Kind] = defaultdict(Kind)
    for node in compiled.get_runtime_model().get_ordered_ops():
        name, described = node.get_friendly_name(), node.get_rt_info()
        if not best.get(name):
            continue
        names = str(described["originalLayersNames"].value if "originalLayersNames" in described else "").split(",")
        sources = [asked[x] for x in names if x in asked]
        heavy = max(sources, key=multiply_adds, default=None)
        kind = kind_of(heavy) if heavy is not None and multiply_adds(heavy) else str(described["layerType"].value)
        found = kinds[kind]
        found.operators += 1
        found.seconds += best[name]
        found.multiply_adds += multiply_adds(heavy) if heavy is not None else 0
        ports = [*(port.get_source_output() for port in node.inputs()), *node.outputs()]
        found.bytes += sum(
            int(np.prod(port.get_shape())) * port.get_element_type().bitwidth // 8
            for port in ports
            if port.get_node().get_type_name() != "Constant"
        )
    return kinds, whole


def peak(precision: str, threads: int) -> float:
    """Multiply-adds a second of one product of 4,096 x 2,048 by 2,048 x 2,048, the best of many."""
    import openvino as ov
    from openvino import opset13 as ops

    rng = np.random.default_rng(0)
    left = ops.parameter([4096, 2048], np.float32)
    if precision == "int8":
        weights = ops.constant(rng.integers(-127, 128, (2048, 2048)).astype(np.int8))
        right = ops.multiply(ops.convert(weights, "f32"), np.float32(0.01))
        low, high = np.float32(-1), np.float32(1)
        product = ops.matmul(ops.fake_quantize(left, low, high, low, high, 256), right, False, True)
    else:
        product = ops.matmul(left, ops.constant(rng.standard_normal((2048, 2048)).astype(np.float32)), False, True)
    model = ov.Model([product], [left])
    kinds, _ = profile(model, rng.uniform(-1, 1, (4096, 2048)).astype(np.float32), 10, threads)
    return 4096 * 2048 * 2048 / max(kinds.values(), key=lambda kind: kind.seconds).seconds


def memory_rate(threads: int) -> float:
    """Bytes a second, read and written, of copying 256 MiB, the best of many."""
    import torch

    torch.set_num_threads(threads)
    source = torch.ones(64 << 20)
    target, best = torch.empty_like(source), np.inf
    for _ in range(10):
        began = time.perf_counter()
        target.copy_(source)
        best = min(best, time.perf_counter() - began)
    return 2 * 4 * source.numel() / best


def main() -> None:
    import openvino as ov

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where exported files are kept")
    parser.add_argument("--only", nargs="+", choices=BACKBONES, default=("scgnet_s", "scgnet_l"), metavar="BACKBONE")
    parser.add_argument("--runs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    feed = np.random.default_rng(0).integers(0, 256, (BATCH, *SIZE, 3), np.uint8)
    peaks, memory = {name: peak(name, args.threads) for name in PRECISIONS}, memory_rate(args.threads)
    told = ", ".join(f"{name} {value / 1e9:.0f} G multiply-adds a second" for name, value in peaks.items())
    print(f"peak: {told}; memory {memory / 1e9:.1f} GB a second; {args.threads} threads")
    for backbone in args.only:
        files = exported(make(backbone), args.folder, feed)
        for precision in PRECISIONS:
            model = ov.Core().read_model(files[f"OpenVINO {precision}"])
            model.reshape([BATCH, *SIZE, 3])
            kinds, whole = profile(model, feed, args.runs, args.threads)
            show(f"{backbone}, {precision}", kinds, whole, peaks[precision], memory)


def show(name: str, kinds: dict[str, Kind], whole: float, peak: float, memory: float) -> None:
    total = sum(kind.seconds for kind in kinds.values())
    rows = []
    for label, kind in sorted(kinds.items(), key=lambda item: -item[1].seconds):
        if kind.seconds < 0.01 * total:
            continue
        arithmetic, moved = kind.multiply_adds / kind.seconds, kind.bytes / kind.seconds
        rows.append(
            [
                label,
                str(kind.operators),
                f"{1e3 * kind.seconds:.2f}",
                f"{kind.seconds / total:.0%}",
                *((f"{arithmetic / 1e9:.1f}", f"{arithmetic / peak:.0%}") if arithmetic else ("", "")),
                f"{moved / 1e9:.1f}",
                f"{moved / memory:.0%}",
            ]
        )
    print(f"\n{name}, batch {BATCH}: {1e3 * whole:.1f} ms a run, {1e3 * total:.1f} ms in operators")
    print(aligned_table(("", "operators", "ms", "share", "G/s", "of peak", "GB/s", "of memory"), rows))


if __name__ == "__main__":
    main()
