"""How fast training is: its limit, the whole loop, torchreid's training of the same network, variants of the limit.

    OMP_NUM_THREADS=2 python benchmarks/train.py --dataset cuhk03np_detected --data-root DIR

limit     forward, backward and optimiser step on one batch in memory: MGN on SCGNet-S by configs/cuhk03np_small.yaml.
loop      reid.training.train.train on the same images, after an epoch of warm-up, as a share of the limit. Reading and
          decoding
          every image, which it does once, is spread over the epochs of the recipe. Without the recipe's watching.
peer      torchreid's ImageTripletEngine with OSNet x0.25, against reid.training.train.train with that network and no
          MGN, on
          the same images at 256x128, decoding included on both sides. torchreid's first batches, in which its workers
          start, are left out. Memory is the peak of the training process; torchreid's workers are not counted.
variants  of the limit, each beside the plain one of the same round.

Everything is measured on the CPU, or with --device cuda on a card (limit, loop and variants), each time in a process
of its own, all contenders in turn for --rounds rounds. A figure is the median of the rounds, a ratio that of two
medians.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from reid.training.config import as_dict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from reid.core.types import ReidError, Splits
from reid.training import config as recipes

RECIPE = Path(__file__).resolve().parents[1] / "configs" / "cuhk03np_small.yaml"
SIZES = ((192, 64), (256, 128))
OSNET = ["backbone=osnet_x0_25", "branches=[[1,2]]", "pool=avg", "dim=512", "height=256", "width=128"]
LOOP_GOAL, PEER_GOAL = 0.92, 1.5
WARM_STEPS = 3

# name -> what `limit` is told, and how many processes share the batch
VARIANTS: dict[str, tuple[dict[str, Any], int]] = {
    "fp32": ({"overrides": ["precision=fp32"]}, 1),
    "bf16": ({"overrides": ["precision=bf16"]}, 1),
    "NCHW, not channels_last": ({"channels_last": False}, 1),
    "foreach SGD, not fused": ({"foreach": True}, 1),
    "torch.compile": ({"compiled": True}, 1),
}
ON_CPU: dict[str, tuple[dict[str, Any], int]] = {"2 gloo processes, 1 thread each": ({}, 2)}
ON_CARD: dict[str, tuple[dict[str, Any], int]] = {"fp16": ({"overrides": ["precision=fp16"]}, 1)}

Result = dict[str, float]


# ---- what is measured, in a process of its own: torch is imported there only


def limit(
    splits: Splits,
    config: recipes.Config,
    seconds: float,
    device: str,
    *,
    channels_last: bool = True,
    foreach: bool = False,
    compiled: bool = False,
) -> Result:
    """Forward, backward and optimiser step on the recipe's first batch. Under torchrun each process takes a part."""
    import numpy as np
    import torch

    from reid.core.images import read_images
    from reid.models.card import make_card
    from reid.models.model import ReidModel
    from reid.training import distributed
    from reid.training.loop import amp_type
    from reid.training.sampler import pk_batches
    from reid.training.train import make_loss, make_optimizer

    world = distributed.join()
    classes, all_labels = np.unique([sample.pid for sample in splits.train], return_inverse=True)
    positions = pk_batches(all_labels, config.p, config.k, config.seed, 0)[0]
    labels = torch.from_numpy(all_labels[positions]).to(device)
    part = world.part(len(positions))
    images = read_images([splits.train[i].path for i in positions[part]], (config.height, config.width))
    pixels = torch.from_numpy(images).to(device).permute(0, 3, 1, 2)
    torch.manual_seed(config.seed)
    model = ReidModel(make_card(as_dict(config), len(classes))).to(device).train()
    if channels_last:
        model.to(memory_format=torch.channels_last)
    else:
        pixels = pixels.contiguous()
    network: Any = torch.nn.parallel.DistributedDataParallel(model) if world.size > 1 else model
    network = torch.compile(network) if compiled else network
    # a rate that a batch seen again and again can bear
    optimizer = make_optimizer(model, dataclasses.replace(config, lr=config.lr_start))
    if foreach:
        for group in optimizer.param_groups:
            group.update(foreach=True, fused=False)
    amp = amp_type(config.precision, torch.device(device))
    loss = make_loss(model, config, len(classes)).to(device)
    scaler = torch.amp.GradScaler(device, enabled=amp == torch.float16)

    def step() -> None:
        with torch.autocast(device, amp, enabled=amp is not None):
            heads = network(pixels)
        total, _ = loss(heads, labels[part], gather=world.gather)
        optimizer.zero_grad(set_to_none=True)
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()

    for _ in range(WARM_STEPS):
        began = time.perf_counter()
        step()
        _wait(device)
    steps = world.broadcast(max(1, math.ceil(seconds / (time.perf_counter() - began))))
    began = time.perf_counter()
    for _ in range(steps):
        step()
    _wait(device)
    return _result(steps * len(positions), time.perf_counter() - began)


def _wait(device: str) -> None:
    """Until a card has done what it was told."""
    import torch

    if device == "cuda":
        torch.cuda.synchronize()


def loop(splits: Splits, config: recipes.Config, seconds: float, device: str, *, rate: float) -> Result:
    """The whole training loop, an epoch of warm-up and then so many epochs as `seconds` take at `rate` images a second.

    data_wait: share of the time in which it waited for data.
    """
    from reid.training.train import train

    epochs = 1 + max(1, math.ceil(seconds * rate / len(splits.train)))
    short = dataclasses.replace(config, epochs=epochs, watch_epochs=0)
    with tempfile.TemporaryDirectory() as folder:
        rows = train(splits.train, short, Path(folder), device=device, progress=False).history[1:]
    spent = [1 / row["images_per_second"] for row in rows]  # of epochs that have the same images
    waited = sum(row["data_wait"] * part for row, part in zip(rows, spent, strict=True))
    return _result(len(rows), sum(spent)) | {"data_wait": waited / sum(spent)}


def decode(splits: Splits, config: recipes.Config, seconds: float, device: str) -> Result:
    """Reading, decoding and resizing every training image once, whatever `seconds` and `device` say."""
    from reid.training.data import load_pixels

    with tempfile.TemporaryDirectory() as folder:
        began = time.perf_counter()
        load_pixels(
            [sample.path for sample in splits.train],
            (config.height, config.width),
            cache=config.cache,
            folder=Path(folder),
            progress=False,
        )
        return _result(len(splits.train), time.perf_counter() - began)


def torchreid(
    splits: Splits, config: recipes.Config, seconds: float, device: str, *, workers: int | None = None
) -> Result:
    """torchreid's loader and engine on the CPU, from one batch to the next; workers as in `torchreid_train.build`."""
    from benchmarks import torchreid_train

    batch = config.p * config.k
    engine = torchreid_train.build(
        splits,
        image_passes=batch,
        height=config.height,
        width=config.width,
        batch_size=batch,
        loss="triplet",
        workers=workers,
    )
    sampler = engine.train_loader.batch_sampler
    sampler.sampler = itertools.chain.from_iterable(itertools.repeat(sampler.sampler))  # epoch after epoch
    engine.set_model_mode("train")
    ends: list[float] = []
    for data in engine.train_loader:
        engine.forward_backward(data)
        ends.append(time.perf_counter())
        if len(ends) > WARM_STEPS and ends[-1] - ends[WARM_STEPS - 1] >= seconds:
            break
    return _result((len(ends) - WARM_STEPS) * batch, ends[-1] - ends[WARM_STEPS - 1])


MEASURES: dict[str, Callable[..., Result]] = {"limit": limit, "loop": loop, "decode": decode, "torchreid": torchreid}


def _result(images: float, seconds: float) -> Result:
    # not getrusage: its ru_maxrss begins at the peak of the process that started this one
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    peak = next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))  # in KiB
    return {"images_per_second": images / seconds, "peak_mib": int(peak) / 1024}


# ---- the processes


class Bench:
    """What all measurements share: data, recipe, seconds."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.images = len(datasets.read(args.dataset, args.data_root).train)  # draws the synthetic set, once
        self.config = recipes.load(RECIPE, args.set)

    def measure(self, name: str, overrides: Sequence[str] = (), *, processes: int = 1, **options: Any) -> Result:
        """Runs MEASURES[name] in a process, or several, of its own. RuntimeError with the last line that it said."""
        args = self.args
        task = {
            "name": name,
            "dataset": args.dataset,
            "data_root": args.data_root,
            "seconds": args.seconds,
            "device": args.device,
            "overrides": [*args.set, *overrides],
            "options": options,
        }
        command, environment = [sys.executable], dict(os.environ)
        if args.device == "cpu":
            environment["CUDA_VISIBLE_DEVICES"] = ""
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
            environment["OMP_NUM_THREADS"] = "1"
        command += [str(Path(__file__).resolve()), "--measure", json.dumps(task)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        answers = [line for line in done.stdout.splitlines() if line.startswith('{"images_per_second"')]
        if done.returncode or not answers:
            said = [line for line in done.stderr.splitlines() if line.strip()]
            raise RuntimeError(said[-1].strip() if said else f"it ended with {done.returncode}")
        result: Result = json.loads(answers[0])
        told = " ".join([name, *overrides, *(f"{key}={value}" for key, value in options.items() if key != "rate")])
        print(f"    {told}: {result['images_per_second']:.1f} images a second", file=sys.stderr)
        return result


def answer(task: dict[str, Any]) -> None:
    """Does a task of `Bench.measure` and prints its result: the whole of a measuring process."""
    splits = datasets.read(task["dataset"], task["data_root"])
    config = recipes.load(RECIPE, task["overrides"])
    result = MEASURES[task["name"]](splits, config, task["seconds"], task["device"], **task["options"])
    if os.environ.get("RANK", "0") == "0":
        print("\n" + json.dumps(result))


# ---- the sections


def sized(height: int, width: int) -> list[str]:
    return [f"height={height}", f"width={width}"]


def limit_section(bench: Bench, *, whole: bool) -> None:
    """The limit at both sizes and, with `whole`, the loop beside it."""
    limits: dict[tuple[int, int], list[Result]] = {size: [] for size in SIZES}
    loops: dict[tuple[int, int], list[Result]] = {size: [] for size in SIZES}
    for _ in range(bench.args.rounds):
        for size in SIZES:
            limits[size].append(bench.measure("limit", sized(*size)))
            if whole:
                rate = limits[size][-1]["images_per_second"]
                loops[size].append(bench.measure("loop", sized(*size), rate=rate))
    for size in SIZES:
        print(line(f"limit {size[0]}x{size[1]}", limits[size]))
        if whole:
            print(line(f"loop {size[0]}x{size[1]}", loops[size]))
            rate, told = with_decoding(bench, loops[size], sized(*size))
            share = rate / middle(limits[size])
            print(
                f"    {told}: {share:.1%} of the limit, goal {LOOP_GOAL:.0%} {met(share, LOOP_GOAL)}; "
                f"{middle(loops[size], 'data_wait'):.1%} of the time waiting for data"
            )


def peer_section(bench: Bench) -> None:
    """torchreid's training of OSNet x0.25 beside ours."""
    theirs: list[Result] = []
    ours: list[Result] = []
    for _ in range(bench.args.rounds):
        theirs.append(bench.measure("torchreid", OSNET))
        ours.append(bench.measure("loop", OSNET, rate=theirs[-1]["images_per_second"]))
    for name, results in (("torchreid, OSNet x0.25", theirs), ("reid.training.train, OSNet x0.25", ours)):
        print(f"{line(name, results)}  {middle(results, 'peak_mib'):6.0f} MiB")
    rate, told = with_decoding(bench, ours, OSNET)
    times = rate / middle(theirs)
    print(
        f"    {told}: {times:.2f} times torchreid, goal {PEER_GOAL} {met(times, PEER_GOAL)}; "
        f"memory {middle(ours, 'peak_mib') / middle(theirs, 'peak_mib'):.2f} of torchreid's"
    )


def with_decoding(bench: Bench, loops: Sequence[Result], overrides: Sequence[str]) -> tuple[float, str]:
    """Images a second of the loop where decoding each image once is spread over the recipe's epochs; in words."""
    decoding, epochs = bench.measure("decode", overrides)["images_per_second"], max(1, bench.config.epochs)
    rate = 1 / (1 / middle(loops) + 1 / (decoding * epochs))
    return rate, f"{rate:.1f} img/s with decoding, {decoding:.0f} img/s once in {epochs} epochs"


def variants_section(bench: Bench) -> None:
    """The limit at the recipe's size by other means."""
    variants = VARIANTS | (ON_CPU if bench.args.device == "cpu" else ON_CARD)
    plain: list[Result] = []
    found: dict[str, list[Result]] = {name: [] for name in variants}
    failed: dict[str, str] = {}
    for _ in range(bench.args.rounds):
        plain.append(bench.measure("limit"))
        for name, (options, processes) in variants.items():
            if name in failed:
                continue
            try:
                found[name].append(bench.measure("limit", processes=processes, **options))
            except RuntimeError as error:  # no compiler for torch.compile, say: a result, too
                failed[name] = str(error)
    print(f"{line('limit, plain', plain)}  ratio 1.00")
    for name, results in found.items():
        if name in failed:
            print(f"{name:32}  failed: {failed[name]}")
        else:
            print(f"{line(name, results)}  ratio {middle(results) / middle(plain):.2f}")


def middle(results: Iterable[Result], key: str = "images_per_second") -> float:
    return statistics.median(result[key] for result in results)


def line(name: str, results: Sequence[Result]) -> str:
    rates = [result["images_per_second"] for result in results]
    return f"{name:32}  {middle(results):7.1f} img/s ({min(rates):.1f} to {max(rates):.1f})"


def met(value: float, goal: float) -> str:
    return "met" if value >= goal else "missed"


def main(arguments: Sequence[str] | None = None) -> int:
    sections: dict[str, Callable[[Bench], None]] = {
        "limit": lambda bench: limit_section(bench, whole=False),
        "loop": lambda bench: limit_section(bench, whole=True),
        "peer": peer_section,
        "variants": variants_section,
    }
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", metavar="NAME", help=f"one of {', '.join(datasets.DATASETS)}")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="the data set's folder, or the one above")
    parser.add_argument(
        "--seconds",
        type=float,
        default=30.0,
        metavar="S",
        help="of each measurement (default: 30); a loop takes whole epochs, two or more",
    )
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="(default: cpu)")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="times each is measured (default: 3)")
    parser.add_argument("--only", metavar="LIST", help="of limit,loop,peer,variants (default: all; on a card no peer)")
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], metavar="KEY=VALUE", help="change values of the recipe"
    )
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.measure:
        answer(json.loads(args.measure))
        return 0
    try:
        chosen = args.only.split(",") if args.only else [s for s in sections if s != "peer" or args.device == "cpu"]
        unknown = [name for name in chosen if name not in sections]
        if unknown or args.rounds < 1 or args.seconds <= 0:
            raise ReidError(
                f"--only takes {', '.join(sections)}, --rounds 1 or more, --seconds above 0; "
                f"not {args.only}, {args.rounds}, {args.seconds}"
            )
        if args.device == "cuda" and "peer" in chosen:
            raise ReidError("the peer is measured on the CPU only: name the other sections with --device cuda")
        bench = Bench(args)
        print(
            f"{args.dataset}: {bench.images:,} training images, {bench.config.p * bench.config.k} a batch, "
            f"{os.environ.get('OMP_NUM_THREADS', 'all')} threads"
        )
        if "loop" in chosen and "limit" in chosen:
            chosen.remove("limit")  # the loop is measured beside it
        for name in chosen:
            sections[name](bench)
    except (ReidError, RuntimeError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
