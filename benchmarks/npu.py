"""Estimated cycles on Rockchip's NPUs, by their compiler: SCGNet's forms, and SCGNet beside its peers.

    make rknn-env && python benchmarks/npu.py forms peers --precision int8 --output docs/results/npu.json

"forms": the plain graph (groups as they are, the shift as slice and concatenation) and each block cut into 1, 2, 4, ..
pieces of equal values (scgnet/pieces.py). "peers": each network in its plain form, SCGNet also in its cheapest, with
the frames a second that the paper's Tables I and V report for another chip (RK3399Pro). The compiler counts no cycles
for concatenation, split and pooling; "with copies" charges these for the memory they move, at the median rate of the
counted operators: our estimate. All are estimates of a compiler, in millions; nothing ran on a board. Weights are
random: no cycle depends on them. What is in --output already is not compiled again.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
import torchvision
from scipy.stats import spearmanr
from torch import nn

from reid.training.config import as_dict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import scgnet
from reid.core.files import write_json
from reid.core.tables import aligned_table
from reid.export.rknn import Embedding, write_onnx
from reid.export.rockchip import PLATFORMS, compiled
from reid.models.card import make_card
from reid.models.model import ReidModel
from reid.training.config import load
from scgnet.pieces import in_pieces

IMAGENET: dict[str, Callable[[], nn.Module]] = {
    "scgnet_s": scgnet.scgnet_s,
    "scgnet_m": scgnet.scgnet_m,
    "scgnet_l": scgnet.scgnet_l,
    "mobilenet_v2": torchvision.models.mobilenet_v2,
    "mobilenet_v2_x1_4": lambda: torchvision.models.mobilenet_v2(width_mult=1.4),
    "shufflenet_v2_x1_5": torchvision.models.shufflenet_v2_x1_5,
    "resnet18": torchvision.models.resnet18,
    "resnet50": torchvision.models.resnet50,
    "regnet_x_400mf": torchvision.models.regnet_x_400mf,
    "regnet_x_800mf": torchvision.models.regnet_x_800mf,
}
PAPER = {"scgnet_s": 735, "scgnet_m": 405, "scgnet_l": 211, "mobilenet_v2_x1_4": 101.5, "resnet18": 200}
GROUPS = {"scgnet_s": 4, "scgnet_m": 6, "scgnet_l": 8}
UNDER_MGN = ("scgnet_s", "scgnet_m", "scgnet_l", "mobilenet_v2", "shufflenet_v2_x1_5", "resnet50")


def networks(name: str, size: tuple[int, int]) -> nn.Module | None:
    """The network at 224x224 (ImageNet's classifier) or under MGN; None where there is none under MGN."""
    torch.manual_seed(0)
    if size == (224, 224):
        return IMAGENET[name]().eval()
    if name not in UNDER_MGN:
        return None
    config = load(Path(__file__).resolve().parents[1] / "configs" / "market1501.yaml", [f"backbone={name}"])
    assert (config.height, config.width) == size
    return Embedding(ReidModel(make_card(as_dict(config), 0)))


def forms(name: str) -> Iterator[tuple[str, int]]:
    """The plain form and each number of pieces that divides the groups."""
    yield "plain", 0
    groups = GROUPS[name]
    for count in range(1, groups + 1):
        if groups % count == 0:
            yield f"{count} pieces", count


def measure(name: str, pieces: int, size: tuple[int, int], platform: str, precision: str) -> dict[str, float] | None:
    network = networks(name, size)
    if network is None:
        return None
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "network.onnx"
        write_onnx(in_pieces(network, pieces), size, file)
        noise = np.random.default_rng(0).integers(0, 256, (1, *size, 3), dtype=np.uint8)
        file_to = Path(folder) / "network.rknn"
        with compiled(file, file_to, platform, precision, calibration=noise, algorithm="normal") as found:
            return {
                "cycles": found.cycles,
                "with_copies": found.cycles_with_copies,
                "operators": len(found.operators),
                "cpu": sum(o.target == "CPU" for o in found.operators),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=("forms", "peers"))
    parser.add_argument("--size", nargs="+", default=["224x224", "384x128"])
    parser.add_argument("--platform", nargs="+", default=list(PLATFORMS))
    parser.add_argument("--precision", nargs="+", default=["int8", "fp16"])
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON; goes on where it is")
    args = parser.parse_args()
    values = json.loads(args.output.read_text()) if args.output.exists() else {}

    def cost(name: str, pieces: int, setting: tuple[str, str, str]) -> dict[str, float] | None:
        key = "/".join((name, str(pieces), *setting))
        if key not in values:
            size = tuple(int(side) for side in setting[0].split("x"))
            values[key] = measure(name, pieces, size, setting[1], setting[2])  # type: ignore[arg-type]
            write_json(args.output, values)
        return values[key]

    settings = [(s, c, p) for p in args.precision for s in args.size for c in args.platform]
    for setting in settings:
        rows = {(name, form): cost(name, n, setting) for name in GROUPS for form, n in forms(name)}
        if "forms" in args.tables:
            print("\n" + ", ".join(setting))
            print(aligned_table(HEAD, [_row(f"{name}, {form}", row) for (name, form), row in rows.items() if row]))
        if "peers" in args.tables:
            plain = {name: cost(name, 0, setting) for name in IMAGENET}
            best = {n: min((r for (m, _), r in rows.items() if r and m == n), key=_copies) for n in GROUPS}
            found = {name: row for name, row in (plain | best).items() if row}
            print("\n" + ", ".join(setting) + "; SCGNet in its cheapest form")
            paper = PAPER if setting[0] == "224x224" else {}  # where the paper measured
            body = [(*_row(name, row), str(paper.get(name, ""))) for name, row in found.items()]
            print(aligned_table((*HEAD, "paper, frames/s"), body))
            for title, chosen in (("plain", {n: r for n, r in plain.items() if r}), ("cheapest", found)):
                if paper:
                    print(correlation(title, chosen))


HEAD = ("network", "cycles", "with copies", "operators")


def _copies(row: dict[str, float]) -> float:
    return row["with_copies"]


def _row(name: str, row: dict[str, float]) -> tuple[str, ...]:
    return name, f"{row['cycles'] / 1e6:.3f}", f"{row['with_copies'] / 1e6:.3f}", f"{row['operators']:.0f}"


def correlation(title: str, rows: dict[str, dict[str, float]]) -> str:
    """Spearman's, of frames a second and the inverse of cycles, over the networks that the paper measured."""
    names = [name for name in PAPER if name in rows]
    parts = [
        f"{key} {spearmanr([PAPER[n] for n in names], [-rows[n][key] for n in names]).statistic:.2f}"
        for key in ("cycles", "with_copies")
    ]
    return f"{title}: rank correlation with the paper's frames a second, {len(names)} networks: {', '.join(parts)}"


if __name__ == "__main__":
    main()
