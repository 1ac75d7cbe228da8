"""An outside reference: torchreid's OSNet x0.25, trained by torchreid's own engine from scratch, scored like ours.

    python benchmarks/torchreid_train.py --dataset cuhk03np_detected --data-root DIR --image-passes 51200 --output OUT
    python run_reid.py compare RUN OUT

torchreid (PyPI 0.2.5) decodes, augments, samples, trains and embeds. Of this program are the list of images, the
stopping after exactly so many image passes, the checkpoint after each epoch, and the scores. The settings are those
that torchreid publishes for OSNet (see `SETTINGS`), less what only pre-trained weights need: no frozen first epochs.
--loss softmax is what they train it by; --loss triplet is torchreid's ImageTripletEngine, of persons times 4 images.
Features are one forward pass of the image, without its mirror image, as torchreid does it; the scores compare them by
cosine similarity as for every other run, torchreid's default by Euclidean distance.

Interrupted, the same command goes on after the last whole epoch and ends with the same weights.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import datasets
from reid.core.files import identity, write_text
from reid.core.images import find_bad
from reid.core.types import ReidError, Sample, Splits
from reid.models import checkpoint
from reid.models.card import git_revision
from reid.report.markdown import summary_table
from reid.report.metrics import RunRecord, metrics, metrics_text
from reid.retrieval.evaluate import evaluate

with warnings.catch_warnings():
    warnings.filterwarnings("ignore", message="Cython evaluation")
    from torchreid.reid.data import ImageDataManager, ImageDataset, register_image_dataset
    from torchreid.reid.engine import Engine as TorchreidEngine
    from torchreid.reid.engine import ImageSoftmaxEngine, ImageTripletEngine
    from torchreid.reid.models import build_model
    from torchreid.reid.optim import build_lr_scheduler, build_optimizer
    from torchreid.reid.utils import set_random_seed

SETTINGS: dict[str, Any] = {
    "backbone": "osnet_x0_25",
    # torchreid's configs/im_osnet_x1_0_softmax_256x128_amsgrad_cosine.yaml
    "optim": "amsgrad",
    "lr": 0.0015,
    "lr_scheduler": "cosine",  # a step an epoch
    "label_smooth": True,
    # its scripts/default_config.py, for what that file leaves out
    "weight_decay": 5e-4,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "batch_size_test": 100,
}
LOSSES: dict[str, dict[str, Any]] = {
    "softmax": {},
    "triplet": {
        "num_instances": 4,
        "margin": 0.3,
        # the example in ImageTripletEngine's documentation: the only setting there that weighs both losses
        "weight_t": 0.7,
        "weight_x": 1.0,
    },
}
# with that file in torchreid's README; what --transforms may name is all that its build_transforms knows
TRANSFORMS = ("random_flip", "random_erase")
KNOWN_TRANSFORMS = ("random_flip", "random_crop", "random_patch", "color_jitter", "random_erase")
KIND = "torchreid_checkpoint"


class SplitsDataset(ImageDataset):
    """Our lists of samples as a data set of torchreid's. `root` carries them: ImageDataManager hands it through."""

    def __init__(self, root: Splits, **kwargs: Any) -> None:
        labels = {pid: i for i, pid in enumerate(sorted({sample.pid for sample in root.train}))}
        train = [(s.path, labels[s.pid], s.camid) for s in root.train]
        query, gallery = ([(s.path, s.pid, s.camid) for s in part] for part in (root.query, root.gallery))
        super().__init__(train, query, gallery, **kwargs)


register_image_dataset("splits", SplitsDataset)


class Engine(TorchreidEngine):
    """A part of torchreid's engines: the images of each epoch are drawn beforehand, and there is a progress bar.

    epochs: positions in the training set, those of a batch together.
    """

    epochs: list[list[int]]
    bar: tqdm[Any] | None = None

    def forward_backward(self, data: dict[str, Any]) -> dict[str, float]:
        summary: dict[str, float] = super().forward_backward(data)
        if self.bar is not None:
            self.bar.set_postfix({name: f"{value:.2f}" for name, value in summary.items()}, refresh=False)
            self.bar.update(len(data["pid"]))
        return summary


class SoftmaxEngine(Engine, ImageSoftmaxEngine):
    """Of images in random order."""


class TripletEngine(Engine, ImageTripletEngine):
    """Of persons times 4 images."""


def build(
    splits: Splits,
    *,
    image_passes: int,
    height: int,
    width: int,
    batch_size: int = 64,
    loss: str = "softmax",
    transforms: Sequence[str] = TRANSFORMS,
    workers: int | None = None,
    seed: int = 1,
) -> Engine:
    """torchreid's data manager, model, optimiser, schedule and engine, as its own training script puts them together.

    image_passes: rounded to whole batches; the last epoch ends where they do. height, width: of the input, in pixels.
    loss: of `LOSSES`. workers: processes that decode, by default torchreid's 4, or as many as there are cores.
    Raises ReidError where the training set has too few images or identities for a batch.
    """
    settings = LOSSES[loss]
    instances = settings.get("num_instances", 1)
    identities = len({sample.pid for sample in splits.train})
    if loss == "triplet" and identities < batch_size // instances:
        raise ReidError(
            f"a batch of {batch_size} images, {instances} a person, needs {batch_size // instances} persons, "
            f"the training set has {identities}: give another --batch-size"
        )
    if batch_size < 2 * instances or len(splits.train) < batch_size:
        raise ReidError(
            f"a batch of {batch_size} images is too small or more than the training set's "
            f"{len(splits.train):,}: give another --batch-size"
        )
    set_random_seed(seed)
    with _quiet():
        data = ImageDataManager(
            root=splits,
            sources="splits",
            height=height,
            width=width,
            transforms=list(transforms),
            batch_size_train=batch_size,
            batch_size_test=SETTINGS["batch_size_test"],
            workers=min(4, os.cpu_count() or 1) if workers is None else workers,
            num_instances=instances,
            train_sampler="RandomIdentitySampler" if loss == "triplet" else "RandomSampler",
        )
        model = build_model(SETTINGS["backbone"], data.num_train_pids, loss=loss, pretrained=False)
    if torch.cuda.is_available():
        model = model.cuda()
    epochs = []
    left = max(1, round(image_passes / batch_size)) * batch_size
    while left:
        images = list(data.train_loader.sampler)
        epochs.append(images[: min(left, len(images) // batch_size * batch_size)])
        left -= len(epochs[-1])
    chosen = ("optim", "lr", "weight_decay", "adam_beta1", "adam_beta2")
    optimizer = build_optimizer(model, **{key: SETTINGS[key] for key in chosen})
    engine = (TripletEngine if loss == "triplet" else SoftmaxEngine)(
        data,
        model,
        optimizer,
        scheduler=build_lr_scheduler(optimizer, SETTINGS["lr_scheduler"], max_epoch=len(epochs)),
        label_smooth=SETTINGS["label_smooth"],
        **{key: value for key, value in settings.items() if key != "num_instances"},
    )
    engine.epochs = epochs
    return engine


def train(engine: Engine, file: Path, of: dict[str, Any], seed: int) -> float:
    """Trains to the end, from the checkpoint `file` where there is one; the seconds of all parts together.

    of: what the run is of. Raises ReidError where the checkpoint is of another one.
    """
    first, seconds = _resume(engine, file, of) if file.exists() else (0, 0.0)
    engine.max_epoch = len(engine.epochs)
    sizes = [len(epoch) for epoch in engine.epochs]
    with tqdm(total=sum(sizes), initial=sum(sizes[:first]), desc="torchreid", unit="img") as engine.bar:
        for epoch in range(first, engine.max_epoch):
            engine.epoch = epoch
            began = time.monotonic()
            set_random_seed(seed + 1 + epoch)  # so that a resumed run augments as one that never stopped
            engine.train_loader.batch_sampler.sampler = engine.epochs[epoch]
            engine.train(print_freq=len(engine.train_loader) + 1)
            seconds += time.monotonic() - began
            _checkpoint(engine, file, {"of": of, "epoch": epoch + 1, "seconds": seconds})
    return seconds


def _checkpoint(engine: Engine, file: Path, text: dict[str, Any]) -> None:
    optimizer = engine.optimizer.state_dict()
    state = {f"model.{name}": value for name, value in engine.model.state_dict().items()}
    for index, values in optimizer["state"].items():
        state |= {f"optimizer.{index}.{name}": value for name, value in values.items()}
    schedule = {"groups": optimizer["param_groups"], "scheduler": engine.scheduler.state_dict()}
    checkpoint.write(file, KIND, state, {**text, **schedule})


def _resume(engine: Engine, file: Path, of: dict[str, Any]) -> tuple[int, float]:
    """(epochs done, seconds)."""
    state, text = checkpoint.read(file, KIND)
    changed = [key for key, value in of.items() if text["of"].get(key) != value]
    if changed:
        told = ", ".join(f"{key} {text['of'].get(key)!r} there, {of[key]!r} now" for key in changed)
        raise ReidError(f"{file} is of another run ({told}): give another --output")
    values: dict[int, dict[str, Tensor]] = {}
    for key, value in state.items():
        part, _, name = key.partition(".")
        if part == "optimizer":
            index, _, name = name.partition(".")
            values.setdefault(int(index), {})[name] = value
    engine.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
    engine.optimizer.load_state_dict({"state": values, "param_groups": text["groups"]})
    engine.scheduler.load_state_dict(text["scheduler"])
    return text["epoch"], text["seconds"]


@torch.inference_mode()
def embed(engine: Engine, part: str) -> np.ndarray:
    """(N, 512) float32 of the "query" or "gallery" images, in their order; not of unit length."""
    engine.set_model_mode("eval")
    device = next(engine.model.parameters()).device
    loader = engine.test_loader["splits"][part]
    batches = tqdm(loader, desc=f"embedding {part}", unit="batch")
    return torch.cat([engine.extract_features(batch["img"].to(device)).cpu() for batch in batches]).numpy()


@torch.inference_mode()
def multiply_adds(engine: Engine, height: int, width: int) -> int:
    """Multiply-adds of embedding one image: convolutions and fully connected layers."""
    engine.set_model_mode("eval")
    with FlopCounterMode(display=False) as counter:
        engine.model(torch.zeros(1, 3, height, width, device=next(engine.model.parameters()).device))
    return counter.get_total_flops() // 2


def run(args: argparse.Namespace, command: str) -> None:
    """Data -> training -> features -> OUTPUT/metrics.json."""
    output = Path(args.output)
    file = output / "checkpoint.safetensors"
    if output.exists() and not file.exists() and any(output.iterdir()):
        raise ReidError(f"{output} holds other files and no run of this program: give another --output")
    splits = datasets.read(args.dataset, args.data_root)
    for line in splits.warnings:
        print(f"warning: {line}", file=sys.stderr)
    paths = [sample.path for part in (splits.train, splits.query, splits.gallery) for sample in part]
    bad = find_bad(paths)  # torchreid would try to read such a file for ever
    if bad:
        path, reason = next(iter(bad.items()))
        raise ReidError(f"{len(bad)} unreadable image(s): {path} {reason}; mend them, or take them away")
    options = {
        key: getattr(args, key)
        for key in ("height", "width", "batch_size", "loss", "transforms", "image_passes", "seed")
    }
    engine = build(splits, **options, workers=args.workers)
    settings = SETTINGS | LOSSES[args.loss] | options
    seconds = train(engine, file, settings | {"data": identity(paths)}, args.seed)
    began = time.monotonic()
    query, gallery = embed(engine, "query"), embed(engine, "gallery")
    speed = (len(query) + len(gallery)) / (time.monotonic() - began)
    scores = evaluate(query, gallery, *_columns(splits.query, splits.gallery))
    weights = {k: v for k, v in engine.model.state_dict().items() if not k.startswith("classifier.")}
    facts = RunRecord(
        command=command,
        backbone=f"torchreid {SETTINGS['backbone']}",
        parameters=sum(p.numel() for name, p in engine.model.named_parameters() if not name.startswith("classifier.")),
        input_size=(args.height, args.width),
        fingerprint=checkpoint.digest(weights)[:16],
        embed_images_per_second=speed,
        multiply_adds=multiply_adds(engine, args.height, args.width),
        train_seconds=seconds,
        git_revision=git_revision(),
        recipe=settings | {"epochs": len(engine.epochs)},
    )
    passes = sum(len(epoch) for epoch in engine.epochs)
    write_text(output / "metrics.json", metrics_text(metrics(splits, scores, facts, [{"images": passes}])))
    print(summary_table(splits, scores, "torchreid"))
    print(f"{passes:,} image passes in {seconds / 60:.1f} minutes; result: {output}/metrics.json")


def _columns(query: Sequence[Sample], gallery: Sequence[Sample]) -> tuple[np.ndarray, ...]:
    """Query pids, gallery pids, query camids, gallery camids."""
    parts = (query, gallery)
    return *(np.array([s.pid for s in part]) for part in parts), *(np.array([s.camid for s in part]) for part in parts)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the tables that torchreid prints of what it was given."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dataset", default="synthetic", metavar="NAME", help=f"one of {', '.join(datasets.DATASETS)}")
    parser.add_argument("--data-root", default="data", metavar="DIR", help="the data set's folder, or the one above")
    parser.add_argument(
        "--image-passes",
        type=int,
        default=51200,
        metavar="N",
        help="images to train on, repeats counted, rounded to whole batches (default: 51200)",
    )
    parser.add_argument("--height", type=int, default=256, metavar="PIXELS")
    parser.add_argument("--width", type=int, default=128, metavar="PIXELS")
    parser.add_argument("--batch-size", type=int, default=64, metavar="N", help="images a step (default: 64)")
    parser.add_argument(
        "--loss",
        default="softmax",
        choices=list(LOSSES),
        help="softmax, OSNet's published recipe, or triplet, with it (default: softmax)",
    )
    parser.add_argument(
        "--transforms",
        nargs="*",
        default=list(TRANSFORMS),
        choices=KNOWN_TRANSFORMS,
        metavar="NAME",
        help=f"torchreid's augmentations, of {', '.join(KNOWN_TRANSFORMS)} (default: {' '.join(TRANSFORMS)})",
    )
    parser.add_argument("--seed", type=int, default=1, metavar="N", help="default: torchreid's, 1")
    parser.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="processes that decode images (default: 4, or as many as there are cores)",
    )
    parser.add_argument("--output", required=True, metavar="DIR", help="where checkpoint and metrics.json are written")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    args = build_parser().parse_args(words)
    try:
        run(args, shlex.join(["python", "benchmarks/torchreid_train.py", *words]))
        return 0
    except ReidError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on after the last whole epoch", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
