"""Training: a recipe and a list of samples -> one model file. Interrupted, the same call goes on where it was.

    train(splits.train, config, Path("runs/market1501"))

Everything random is a pure function of the seed and the step, so a run that was stopped after any step and resumed
gives, on a CPU, the same weights bit for bit as one that never stopped.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from reid import tensors
from reid.backbones import read_pretrained
from reid.config import Config, as_dict
from reid.data import augment, identity, load_pixels, prefetch
from reid.evaluate import Scores, evaluate
from reid.extract import Embedder, pick_device
from reid.files import write_text
from reid.losses import Losses, reid_losses
from reid.model import MEAN, ReidModel, check_input_size, load_model, make_card, save_model
from reid.sampler import pk_batches
from reid.schedule import lr_at
from reid.types import ReidError, Sample

CHECKPOINT_SECONDS = 60.0
WATCHED_IDENTITIES = 64  # of the training set, where none are held out
READ_STEPS = 10  # the losses are read from the device, and checked, every so many steps


class Interrupted(KeyboardInterrupt):
    """Ctrl-C came; a checkpoint is written. The message says how far the run is."""


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `train` made."""

    path: Path  # of the model file
    seconds: float  # of training, all parts of an interrupted run together
    history: list[dict[str, Any]]  # an entry an epoch; see `_Log.row`


def train(
    samples: Sequence[Sample],
    config: Config,
    output: Path,
    *,
    name: str = "",
    device: str | None = None,
    progress: bool = True,
    stop_after: int | None = None,
) -> Trained:
    """Trains on `samples` and writes OUTPUT/model.safetensors, the last of the whole schedule or, with
    `config.holdout`, the best on the identities kept apart.

    Beside it: history.jsonl (an entry an epoch), tensorboard/, and, until it is done, checkpoint.safetensors.
    name: what the model's card calls the data.
    stop_after: ends with Interrupted after that many steps in all, as Ctrl-C does.
    Raises ReidError for a training set that fits no batch, an input too small, a checkpoint of another run, or a
    loss that is no longer finite.
    """
    run = _Run(samples, config, output, name, pick_device(device), progress)
    return run.finished() or run.go(stop_after)


class _Run:
    """One training run: its data, model and optimiser, and how far it is."""

    def __init__(
        self,
        samples: Sequence[Sample],
        config: Config,
        output: Path,
        name: str,
        device: torch.device,
        progress: bool,
    ) -> None:
        self.name = name
        self.config, self.output, self.device, self.progress = config, output, device, progress
        self.model_file, self.checkpoint_file = output / "model.safetensors", output / "checkpoint.safetensors"
        self.history_file = output / "history.jsonl"
        self.samples, self.watched = _divide(samples, config)
        self.classes = sorted({sample.pid for sample in self.samples})
        self.labels = np.searchsorted(self.classes, [sample.pid for sample in self.samples])
        self.of = {
            "recipe": as_dict(config),
            "data": identity([sample.path for sample in samples]),
            "pids": _digest([sample.pid for sample in samples]),
        }
        self.step, self.seconds, self.best_mAP = 0, 0.0, -1.0
        self._epoch_batches: tuple[int, np.ndarray] = (-1, np.empty(0))  # an epoch, and its batches

    def finished(self) -> Trained | None:
        if not self.model_file.exists():
            return None
        card = load_model(self.model_file).card
        _check_same(self.of, card["run"], self.model_file)
        return Trained(self.model_file, card["train_seconds"], self._history())

    def go(self, stop_after: int | None) -> Trained:
        config = self.config
        self._build()
        self.epoch_steps = len(self._batches(0))
        self.steps = self.epoch_steps * config.epochs
        if self.checkpoint_file.exists():
            self._resume()
        paths = sorted({sample.path for sample in [*self.samples, *self.watched]})
        self.row = {path: i for i, path in enumerate(paths)}
        size = (config.height, config.width)
        self.pixels = load_pixels(paths, size, cache=config.cache, folder=self.output, progress=self.progress)
        if self.step < self.steps:
            with _interruptible() as interrupted:
                self._loop(interrupted, stop_after)
        self._save_model(self.model_file) if config.holdout == 0 else self._keep_best()
        for leftover in (self.checkpoint_file, *self.output.glob("pixels-*.npy")):
            leftover.unlink(missing_ok=True)
        return Trained(self.model_file, self.seconds, self._history())

    # ---- the parts of a run

    def _build(self) -> None:
        config = self.config
        weights = None
        if config.pretrained:
            weights, matched = read_pretrained(config.backbone, config.pretrained)
            print(matched)
        torch.manual_seed(config.seed)
        self.model = ReidModel(make_card(config, len(self.classes)), weights)
        check_input_size(self.model)
        self.model.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            [p for _, p in self.trained],
            lr=config.lr,
            momentum=config.momentum,
            nesterov=config.nesterov,
            weight_decay=config.weight_decay,
            fused=True,
        )
        self.amp = amp_type(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)

    def _batches(self, epoch: int) -> np.ndarray:
        return pk_batches(self.labels, self.config.p, self.config.k, self.config.seed, epoch)

    def _make_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Pixels (B, 3, H, W) uint8 in channels-last memory and labels (B,), of one step: called in a thread."""
        config = self.config
        epoch, i = divmod(step, self.epoch_steps)
        if self._epoch_batches[0] != epoch:
            self._epoch_batches = (epoch, self._batches(epoch))
        positions = self._epoch_batches[1][i]
        rng = np.random.default_rng([config.seed, step, 1])
        images = augment(
            [self.pixels[self.row[self.samples[p].path]] for p in positions],
            rng,
            pad=config.pad,
            flip=config.flip,
            erase=config.erase,
            fill=[round(255 * value) for value in MEAN],
        )
        pixels, labels = torch.from_numpy(images), torch.from_numpy(self.labels[positions])
        if self.device.type == "cuda":
            pixels, labels = pixels.pin_memory(), labels.pin_memory()
        return pixels.permute(0, 3, 1, 2), labels

    def _loop(self, interrupted: threading.Event, stop_after: int | None) -> None:
        log = _Log(self)
        last = time.monotonic()
        saved = last
        bar = tqdm(total=self.steps, initial=self.step, desc="training", unit="step", disable=not self.progress)
        with bar, log:
            for pixels, labels in prefetch(self._make_batch, range(self.step, self.steps)):
                log.waited(time.monotonic() - last)
                self._step(pixels, labels, log)
                self.step += 1
                bar.update()
                ends_epoch = self.step % self.epoch_steps == 0
                stops = interrupted.is_set() or self.step == stop_after
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                if ends_epoch or stops or due or self.step % READ_STEPS == 0:
                    total = log.read()
                    bar.set_postfix(loss=f"{total:.3f}", wait=f"{log.wait_share:.0%}", refresh=False)
                now = time.monotonic()
                self.seconds += now - last
                last = now
                if ends_epoch:
                    epoch = self.step // self.epoch_steps
                    watched = self._watch(epoch)
                    bar.write(log.epoch(epoch, watched)) if self.progress else log.epoch(epoch, watched)
                    last = time.monotonic()
                if stops or due:
                    self._checkpoint()
                    saved = last = time.monotonic()
                if stops and self.step < self.steps:
                    raise Interrupted(f"stopped after step {self.step} of {self.steps}")

    def _step(self, pixels: Tensor, labels: Tensor, log: _Log) -> None:
        config = self.config
        rate = lr_at(
            self.step,
            steps=self.steps,
            warmup=round(config.warmup_epochs * self.epoch_steps),
            start=config.lr_start,
            peak=config.lr,
        )
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        pixels, labels = pixels.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        with torch.autocast(self.device.type, self.amp, enabled=self.amp is not None):
            heads = self.model(pixels)
        losses = reid_losses(
            heads,
            labels,
            global_features=self.model.head.global_features,
            smoothing=config.smoothing,
            margin=config.margin,
            triplet=config.triplet,
        )
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(losses.total).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        log.add(rate, losses, heads.before.detach(), heads.logits.detach(), labels)

    # ---- watching

    def _watch(self, epoch: int) -> dict[str, float] | None:
        """Rank-1 of each head and of all together on the watched identities, and the choice of the best checkpoint."""
        every = self.config.watch_epochs
        last = epoch == self.config.epochs
        if not self.watched or not every or (epoch % every and not last):
            return None
        pixels = self.pixels[[self.row[sample.path] for sample in self.watched]]
        scores = watch(self.model, self.watched, pixels, self.device)
        self.model.train()
        if self.config.holdout and not scores:
            raise ReidError(
                "no held-out identity was seen by two cameras, so no checkpoint can be chosen on them: "
                "train without --holdout, or on a set of several cameras"
            )
        if self.config.holdout and scores["mAP"] > self.best_mAP:
            self.best_mAP = scores["mAP"]
            self._save_model(self.output / "best.safetensors")
        return scores

    def _keep_best(self) -> None:
        best = self.output / "best.safetensors"
        model = load_model(best)
        model.card["train_seconds"] = self.seconds
        save_model(model, self.model_file)
        best.unlink()

    # ---- what is kept

    def _save_model(self, path: Path) -> None:
        self.model.card.update(
            run=self.of,
            train_seconds=self.seconds,
            data={
                "name": self.name,
                "images": len(self.samples),
                "identities": len(self.classes),
                "held_out": self.config.holdout,
            },
            step=self.step,
        )
        save_model(self.model, path)

    def _checkpoint(self) -> None:
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.trained:
            state[f"momentum.{name}"] = self.optimizer.state[parameter]["momentum_buffer"]
        text = {"run": self.of, "step": self.step, "seconds": self.seconds, "best_mAP": self.best_mAP,
                "scaler": self.scaler.state_dict(), "steps": self.steps}  # fmt: skip
        tensors.write(self.checkpoint_file, "checkpoint", state, text)

    def _resume(self) -> None:
        state, text = tensors.read(self.checkpoint_file, "checkpoint")
        _check_same(self.of, text["run"], self.checkpoint_file)
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for name, parameter in self.trained:
            buffer = torch.empty_like(parameter).copy_(state[f"momentum.{name}"])  # in the parameter's memory format
            self.optimizer.state[parameter]["momentum_buffer"] = buffer
        self.step, self.seconds, self.best_mAP = text["step"], text["seconds"], text["best_mAP"]
        self.scaler.load_state_dict(text["scaler"])
        kept = [row for row in self._history() if row["step"] <= self.step]
        write_text(self.history_file, "".join(json.dumps(row) + "\n" for row in kept))
        print(f"going on from step {self.step} of {self.steps}")

    def _history(self) -> list[dict[str, Any]]:
        if not self.history_file.exists():
            return []
        rows = []
        for line in self.history_file.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except json.JSONDecodeError:  # the last line of a run that was killed while it wrote it
                break
        return rows


class _Log:
    """Sums over an epoch, on the device; read every READ_STEPS steps, so that a GPU is not waited for at each."""

    def __init__(self, run: _Run) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = run
        self.board = SummaryWriter(str(run.output / "tensorboard"), purge_step=run.step)
        self.names = run.model.head.names
        self._clear()

    def __enter__(self) -> _Log:
        return self

    def __exit__(self, *_: object) -> None:
        self.board.close()

    def _clear(self) -> None:
        self.pending: list[tuple[int, float, Tensor]] = []
        self.sums: np.ndarray | None = None
        self.steps, self.images = 0, 0
        self.wait, self.start = 0.0, time.monotonic()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    @property
    def wait_share(self) -> float:
        """Share of the epoch's time so far that training waited for data."""
        return self.wait / max(1e-9, time.monotonic() - self.start)

    def add(self, rate: float, losses: Losses, before: Tensor, logits: Tensor, labels: Tensor) -> None:
        with torch.no_grad():
            accuracy = (logits.argmax(2) == labels[:, None]).float().mean(0)
            values = (losses.total[None], losses.softmax, losses.triplet, accuracy, spread(before))
            self.pending.append((self.run.step, rate, torch.cat([value.detach().float() for value in values])))
        self.steps += 1
        self.images += len(labels)

    def read(self) -> float:
        """Moves what is pending off the device; the last total loss. ReidError where a term is not finite."""
        rows = torch.stack([row for _, _, row in self.pending]).double().cpu().numpy()
        for (step, rate, _), row in zip(self.pending, rows, strict=True):
            total, softmax, triplet, _, _ = self._split(row)
            parts = {"softmax": softmax, "triplet": triplet}
            for part, values in parts.items():
                if not np.isfinite(values).all():
                    head = int(np.flatnonzero(~np.isfinite(values))[0])
                    names = self.names if part == "softmax" else self._global_names()
                    raise ReidError(
                        f"the {part} loss of {names[head]} is {values[head]} at step {step + 1}: training stopped, the "
                        f"last checkpoint is whole; try a smaller rate (--set lr={self.run.config.lr / 2:g}) "
                        "in another --output"
                    )
            for name, value in (("total", total), ("softmax", softmax.mean()), ("triplet", triplet.mean())):
                self.board.add_scalar(f"loss/{name}", float(value), step)
            self.board.add_scalar("lr", rate, step)
            self.sums = row if self.sums is None else self.sums + row
        self.rate = self.pending[-1][1]
        self.pending = []
        return float(rows[-1][0])

    def _global_names(self) -> list[str]:
        return [self.names[i] for i in self.run.model.head.global_features]

    def _split(self, row: np.ndarray) -> tuple[float, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        heads, hard = len(self.names), len(self._global_names())
        bounds = np.cumsum([1, heads, hard, heads])
        total, softmax, triplet, accuracy, spreads = np.split(row, bounds)
        return float(total[0]), softmax, triplet, accuracy, spreads

    def epoch(self, epoch: int, watched: dict[str, float] | None) -> str:
        """Writes the epoch's row to history.jsonl and TensorBoard, and gives its lines for the terminal."""
        assert self.sums is not None
        total, softmax, triplet, accuracy, spreads = self._split(self.sums / self.steps)
        seconds = time.monotonic() - self.start
        watched = watched or {}
        heads: list[dict[str, Any]] = [
            {"name": name, "accuracy": float(a), "spread": float(s), "rank1": watched.get(name)}
            for name, a, s in zip(self.names, accuracy, spreads, strict=True)
        ]
        row = {
            "epoch": epoch,
            "step": self.run.step,
            "images": self.run.step * self.run.config.p * self.run.config.k,
            "lr": self.rate,
            "loss": total,
            "softmax": float(softmax.mean()),
            "triplet": float(triplet.mean()),
            "images_per_second": self.images / seconds,
            "data_wait": self.wait_share,
            "rank1": watched.get("rank1"),
            "mAP": watched.get("mAP"),
            "heads": heads,
        }
        for head in heads:
            for key in ("accuracy", "spread", "rank1"):
                if head[key] is not None:
                    self.board.add_scalar(f"{key}/{head['name']}", head[key], epoch)
        with self.run.history_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        self._clear()
        return self._lines(row)

    def _lines(self, row: dict[str, Any]) -> str:
        where = "held-out" if self.run.config.holdout else "training"
        lines = [
            f"epoch {row['epoch']}/{self.run.config.epochs}  lr {row['lr']:.4f}  loss {row['loss']:.3f} "
            f"(softmax {row['softmax']:.3f}, triplet {row['triplet']:.3f})  "
            f"{row['images_per_second']:.0f} img/s, {row['data_wait']:.1%} waiting for data"
            + ("" if row["rank1"] is None else f"  {where} Rank-1 {row['rank1']:.1%}")
        ]
        for key, form in (("accuracy", ".0%"), ("spread", ".2f"), ("rank1", ".0%")):
            if row["heads"][0][key] is not None:
                lines.append(f"  {key:9}" + "  ".join(f"{head['name']} {head[key]:{form}}" for head in row["heads"]))
        return "\n".join(lines)


def spread(features: Tensor) -> Tensor:
    """How much each head's features differ within a batch, in [0, 1]: root mean variance over root mean square.

    (B, F, D) -> (F,). 0 is a head that has collapsed to a constant.
    """
    return (features.var(0, unbiased=False).mean(-1) / features.square().mean((0, 2)).clamp(min=1e-12)).sqrt()


def watch(model: ReidModel, samples: Sequence[Sample], pixels: np.ndarray, device: torch.device) -> dict[str, float]:
    """Rank-1 of each head by name, and "rank1" and "mAP" of all together, on identities of one's own.

    The first image of each person and camera is a query, the others the gallery. Empty where no query has a match.
    """
    embedder = Embedder(model, flip=False, device=device)
    starts = range(0, len(pixels), embedder.batch_size)
    batches = [np.ascontiguousarray(pixels[i : i + embedder.batch_size]) for i in starts]
    features = np.concatenate([embedder.features(batch).cpu().numpy() for batch in batches])
    pids, camids = np.array([s.pid for s in samples]), np.array([s.camid for s in samples])
    is_query = np.zeros(len(samples), bool)
    is_query[np.unique(np.stack((pids, camids)), axis=1, return_index=True)[1]] = True

    def scores(x: np.ndarray) -> Scores:
        return evaluate(x[is_query], x[~is_query], pids[is_query], pids[~is_query], camids[is_query], camids[~is_query])

    try:
        whole = scores(features.reshape(len(samples), -1))
    except ReidError:
        return {}
    heads = {name: scores(features[:, i]).rank1 for i, name in enumerate(model.head.names)}
    return {**heads, "rank1": whole.rank1, "mAP": whole.mAP}


def amp_type(precision: str, device: torch.device) -> torch.dtype | None:
    """The reduced type that training uses on this device, None for float32."""
    if precision == "fp32":
        return None
    if precision == "fp16":
        if device.type != "cuda":
            raise ReidError("precision=fp16 needs a CUDA device; on this one use --set precision=bf16 or fp32")
        return torch.float16
    if precision == "auto" and device.type == "cuda" and not torch.cuda.is_bf16_supported():
        return torch.float16
    if precision == "auto" and device.type == "cpu" and not _multiplies_bf16():
        return None
    return torch.bfloat16


def _multiplies_bf16() -> bool:
    """Whether this processor has bfloat16 arithmetic; without, it is emulated, at half the speed of float32."""
    able: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return any(able.get(name) for name in ("amx_bf16", "avx512_bf16", "bf16"))


def _divide(samples: Sequence[Sample], config: Config) -> tuple[list[Sample], list[Sample]]:
    """(what is trained on, what is watched): identities held out by the seed, or some of the training ones."""
    pids = sorted({sample.pid for sample in samples})
    shuffled = [pids[i] for i in np.random.default_rng([config.seed, 2]).permutation(len(pids))]
    if not config.holdout:
        some = set(shuffled[:WATCHED_IDENTITIES])
        return list(samples), [sample for sample in samples if sample.pid in some] if config.watch_epochs else []
    count = max(2, math.ceil(config.holdout * len(pids)))
    if not config.watch_epochs or not config.epochs:
        raise ReidError(
            "holdout chooses the best checkpoint while training is watched: --set epochs and watch_epochs to 1 or more"
        )
    if count >= len(pids) - 1:
        raise ReidError(f"holding out {count} of {len(pids)} identities leaves too few to train on")
    held = set(shuffled[:count])
    return [s for s in samples if s.pid not in held], [s for s in samples if s.pid in held]


def _digest(pids: list[int]) -> str:
    return hashlib.sha256(repr(pids).encode()).hexdigest()[:16]


def _check_same(now: dict[str, Any], then: dict[str, Any], path: Path) -> None:
    """ReidError where a file in the output folder is of another recipe or other data."""
    changed = [key for key, value in now["recipe"].items() if then["recipe"].get(key) != value]
    if changed:
        values = ", ".join(f"{key} {then['recipe'].get(key)!r} there, {now['recipe'][key]!r} now" for key in changed)
        raise ReidError(f"{path} is of a run with another recipe ({values}): give another --output")
    if any(now[key] != then[key] for key in ("data", "pids")):
        raise ReidError(f"{path} is of a run on other images, or they have changed since: give another --output")


@contextmanager
def _interruptible() -> Iterator[threading.Event]:
    """Ctrl-C sets the event, so that the step is finished; a second one ends at once."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def ask(*_: object) -> None:
        event.set()
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = signal.signal(signal.SIGINT, ask)
    try:
        yield event
    finally:
        signal.signal(signal.SIGINT, before)
