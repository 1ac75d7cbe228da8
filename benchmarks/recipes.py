"""Recipes that have to earn their place: each trained on the same images for the same image passes, side by side.

    OMP_NUM_THREADS=2 python benchmarks/recipes.py --dataset cuhk03np_detected --data-root DIR --keep docs/results

ladder     MGN on SCGNet-S from scratch, from a plain classifier of one feature upwards, one step at a time
beyond     configs/cuhk03np_small.yaml, and what might beat it, one change each
backbones  other networks by the same recipe, and torchreid's own training of OSNet x0.25
ablations  SCGNet-S without shift, without its second group convolution, without both (Table III of the SCGNet paper)

Every section holds the recipe itself, trained once. A run that is finished is not repeated, one that was interrupted
goes on; each section ends with its table, as `run_reid.py compare` prints it. --only takes sections or single runs
("ladder/erasing").
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from reid.core.files import write_text
from reid.core.types import ReidError
from reid.report.compare import compare
from reid.report.compare_tables import as_markdown
from reid.report.results import read_results
from reid.training import config as recipes
from reid.training.sampler import pk_batches

ROOT = Path(__file__).resolve().parents[1]
RECIPE = "configs/cuhk03np_small.yaml"
SHARED = "recipe"  # the run that every section holds
SHORT = ("warmup_epochs=1",)  # the recipe's three are for four times as many epochs
TORCHREID = "torchreid-osnet_x0_25"

LADDER = (  # name, what it changes for itself and all that follow
    (
        "plain",
        "branches=[[1,2]] neck=relu triplet=0 contrast=0 center=0 smoothing=0 erase=0 lr=0.05 lr_start=0.05 "
        "lr_end=0.05 warmup_epochs=0",
    ),
    ("branches", "branches=[[1,2],[2,1],[3,1]] lr=0.1 lr_start=0.1 lr_end=0.1"),
    ("triplet", "triplet=0.5"),
    ("cosine", "lr=0.3 lr_start=0.01 lr_end=0 warmup_epochs=1"),
    ("smoothing", "smoothing=0.1"),
    ("erasing", "erase=0.3"),
    ("bnneck", "neck=bnneck"),
    ("center", "center=0.0005"),
    (SHARED, "triplet=0 center=0 contrast=0.3"),
)

BEYOND = {
    "seed-1": "seed=1",
    "contrast-1": "contrast=1.0",
    "softmax": "contrast=0",
    "circle": "contrast=0 circle=0.05",
    "triplet": "triplet=0.5",
    "center": "center=0.0005",
    "no-erasing": "erase=0",
    "averaging": "average_epochs=2",
    "gem": "pool=gem",
    "jitter": "jitter=0.1",
    "p8-k8": "p=8 k=8",
    "two-branches": "branches=[[1,2],[3,1]]",
}
BACKBONES = ("scgnet_m", "scgnet_l", "mobilenet_v2", "shufflenet_v2_x1_5", "osnet_x0_25")
ABLATIONS = ("scgnet_s_unshifted", "scgnet_s_uncascaded", "scgnet_s_plain")


def sections() -> dict[str, dict[str, list[str]]]:
    """Section -> run -> what it sets in the recipe; TORCHREID is another program's run and sets nothing."""
    ladder: dict[str, list[str]] = {}
    so_far: dict[str, str] = {}
    for name, words in LADDER:
        so_far |= dict(word.split("=", 1) for word in words.split())
        ladder[name] = [f"{key}={value}" for key, value in so_far.items()]
    recipe = {SHARED: list(SHORT)}
    return {
        "ladder": ladder,
        "beyond": recipe | {name: [*SHORT, *words.split()] for name, words in BEYOND.items()},
        "backbones": recipe | {name: [*SHORT, f"backbone={name}"] for name in BACKBONES} | {TORCHREID: []},
        "ablations": recipe | {name: [*SHORT, f"backbone={name}"] for name in ABLATIONS},
    }


def command(args: argparse.Namespace, run: str, changes: Sequence[str], output: Path) -> list[str]:
    """What trains and scores one run."""
    data = ["--dataset", args.dataset, "--data-root", args.data_root]
    if run == TORCHREID:
        passes = ["--image-passes", str(image_passes(args))]
        return [sys.executable, "benchmarks/torchreid_train.py", *data, *passes, "--output", str(output)]
    changes = [*changes, f"epochs={args.epochs}", "watch_epochs=0", *args.set]
    return [sys.executable, "run_reid.py", *data, "--config", RECIPE, "--set", *changes, "--output", str(output)]


def image_passes(args: argparse.Namespace) -> int:
    """Images that a run of this program sees in its epochs, repeats counted."""
    config = recipes.load(ROOT / RECIPE, args.set)
    labels = np.array([sample.pid for sample in datasets.read(args.dataset, args.data_root).train])
    return pk_batches(labels, config.p, config.k, config.seed, 0).size * int(args.epochs)


def start(words: Sequence[str]) -> int:
    """Runs a command in the root of the repository; its exit code."""
    return subprocess.run(words, cwd=ROOT).returncode


def chosen(only: Sequence[str]) -> dict[str, dict[str, list[str]]]:
    """The sections, or runs of them, that --only names. ReidError for a name that there is not."""
    whole = sections()
    if not only:
        return whole
    found: dict[str, dict[str, list[str]]] = {}
    for name in only:
        section, _, run = name.partition("/")
        runs = whole.get(section, {})
        if not runs or (run and run not in runs):
            known = ", ".join(runs) if runs else ", ".join(whole)
            raise ReidError(f"--only: there is no {name!r}; choose of {known}")
        found.setdefault(section, {}).update({run: runs[run]} if run else runs)
    return found


def keep(output: Path, data_root: str, file: Path) -> None:
    """A copy of a run's result, in which the folder above the data set is called DIR."""
    text = (output / "metrics.json").read_text(encoding="utf-8")
    parent = data_root.rstrip("/").rpartition("/")[0]
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, text.replace(f"{parent}/", "DIR/") if parent else text)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="cuhk03np_detected", metavar="NAME", help="(default: cuhk03np_detected)")
    parser.add_argument("--data-root", required=True, metavar="DIR", help="the data set's folder, or the one above")
    parser.add_argument("--output", type=Path, default=Path("runs"), metavar="DIR", help="of all runs (default: runs)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="copy each result there, as NAME.json")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help="sections, or single runs of them")
    parser.add_argument("--epochs", type=int, default=12, metavar="N", help="of each run (default: 12)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change values of every recipe"
    )
    args = parser.parse_args(arguments)
    try:
        for section, runs in chosen(args.only).items():
            done = []
            for run, changes in runs.items():
                name = run if run == SHARED else f"{section}-{run}"
                output = args.output / name
                if not (output / "metrics.json").exists():
                    failed = start(command(args, run, changes, output))
                    if failed:
                        return failed
                    if args.keep:
                        keep(output, args.data_root, args.keep / f"{name}.json")
                done.append(output)
            print(f"\n## {section}\n\n{as_markdown(compare(read_results(done)))}\n")
    except ReidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
