"""The loop that every training runs in: steps on one process or several, a log, checkpoints, interruption, resume.

A kind of training is a subclass of `Training` that says what a batch is, what its losses are, and what to do at the
end of an epoch. Everything random is to be a pure function of the seed and the step; then a run that was stopped after
any step and resumed gives, on a CPU, the same weights bit for bit as one that never stopped.
"""

from __future__ import annotations

import contextlib
import json
import signal
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from reid.core.files import remove_partial, write_text
from reid.core.memory import keep_freed_memory
from reid.core.prefetch import prefetch
from reid.core.types import ReidError
from reid.models import checkpoint
from reid.models.card import without_places
from reid.training import distributed
from reid.training.config import differences
from reid.training.distributed import World
from reid.training.log import READ_STEPS, Log, Step

CHECKPOINT_SECONDS = 60.0
OPTIMIZER_STATE = ("momentum_buffer", "exp_avg", "exp_avg_sq", "step")  # of a parameter, by torch's names


class Interrupted(KeyboardInterrupt):
    """Ctrl-C or SIGTERM came; a checkpoint is written. The message says how far the run is."""


class Training(ABC):
    """One training run in the folder `output`: its model and optimiser, and how far it is.

    of: what the run is of; a checkpoint of something else is refused.
    batch: images a step, of all processes together.
    """

    model: nn.Module
    optimizer: torch.optim.Optimizer
    steps: int  # of the whole run
    epoch_steps: int

    def __init__(
        self, output: Path, of: dict[str, Any], batch: int, world: World, device: torch.device, progress: bool
    ) -> None:
        self.output, self.of, self.batch, self.world, self.device = output, of, batch, world, device
        self.progress = progress and world.first
        self.checkpoint_file, self.history_file = output / "checkpoint.safetensors", output / "history.jsonl"
        self.step, self.seconds = 0, 0.0
        if batch % world.size:
            raise ReidError(f"a batch of {batch} images cannot be shared by {world.size} processes: choose a multiple")

    # ---- what a subclass says

    @abstractmethod
    def make_batch(self, step: int) -> Any:
        """This process's part of the batch of one step; called in a thread, ahead of the step."""

    @abstractmethod
    def losses(self, batch: Any) -> Step:
        """The network's forward pass, through `self.network`, and its losses."""

    @abstractmethod
    def rate(self, step: int) -> float:
        """The learning rate of a step."""

    @abstractmethod
    def end_epoch(self, epoch: int, row: dict[str, Any]) -> str:
        """What follows an epoch, on the first process: adds to the row of the history, and gives its lines."""

    def after_step(self) -> None:  # noqa: B027 (most trainings have nothing to do here)
        """What follows each optimiser step."""

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """What a checkpoint keeps beside model and optimiser."""
        return {}, {}

    def load_state(self, state: dict[str, Tensor], text: dict[str, Any]) -> None:  # noqa: B027
        """Takes back what `state` gave."""

    # ---- the loop

    def ready(self, precision: str, *, synchronise: bool) -> None:
        """To be called when model and optimiser are there: resumes, and joins the processes' models."""
        self.amp = amp_type(precision, self.device)
        if self.device.type == "cpu":
            keep_freed_memory()
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.amp == torch.float16)
        self.trained = [(name, p) for name, p in self.model.named_parameters() if p.requires_grad]
        if self.world.first:
            remove_partial(self.output)
        if self.world.broadcast(self.checkpoint_file.exists()):
            self._resume(synchronise)
        self.world.barrier()  # nobody writes what another still reads
        self.network = self.model
        if self.world.size > 1:
            if synchronise:
                distributed.synchronise_batch_norms(self.model, self.device)
            cards = [self.device.index] if self.device.type == "cuda" else None
            self.network = nn.parallel.DistributedDataParallel(self.model, device_ids=cards)

    def run(self, stop_after: int | None) -> None:
        """Steps until the end. Interrupted says how far the run is where it was asked to stop."""
        if self.step >= self.steps:
            return
        with _interruptible(self.world) as interrupted, Log(self) as log:
            self._loop(interrupted, log, stop_after)

    def _loop(self, interrupted: threading.Event, log: Log, stop_after: int | None) -> None:
        last = saved = time.monotonic()
        with tqdm(total=self.steps, initial=self.step, desc="training", unit="step", disable=not self.progress) as bar:
            for batch in prefetch(self.make_batch, range(self.step, self.steps)):
                log.waited(time.monotonic() - last)
                self._step(batch, log)
                self.step += 1
                bar.update()
                ends_epoch = self.step % self.epoch_steps == 0
                asked, due = self.world.any((interrupted.is_set(), time.monotonic() - saved > CHECKPOINT_SECONDS))
                stops = asked or self.step == stop_after
                if ends_epoch or stops or due or self.step % READ_STEPS == 0:
                    total = log.read()
                    bar.set_postfix(loss=f"{total:.3f}", wait=f"{log.wait_share:.0%}", refresh=False)
                now = time.monotonic()
                self.seconds += now - last
                last = now
                if ends_epoch:
                    lines = log.epoch(self.step // self.epoch_steps)
                    if self.progress:
                        bar.write(lines)
                    last = time.monotonic()
                if stops or due:
                    self._checkpoint()
                    saved = last = time.monotonic()
                if stops and self.step < self.steps:
                    raise Interrupted(f"stopped after step {self.step} of {self.steps}")

    def _step(self, batch: Any, log: Log) -> None:
        rate = self.rate(self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        step = self.losses(batch)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(self.scaler.scale(step.total))
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.after_step()
        log.add(rate, step)

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.amp, enabled=self.amp is not None)

    # ---- what is kept

    def _checkpoint(self) -> None:
        if not self.world.first:
            return
        extra, words = self.state()
        state = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.trained:
            for key, value in self.optimizer.state[parameter].items():  # momentum_buffer; exp_avg, exp_avg_sq, step
                state[f"{key}.{name}"] = value
        text = {
            "run": self.of,
            "step": self.step,
            "steps": self.steps,
            "seconds": self.seconds,
            "scaler": self.scaler.state_dict(),
            "processes": self.world.size,
            **words,
        }
        checkpoint.write(self.checkpoint_file, "checkpoint", {**state, **extra}, text)

    def _resume(self, synchronise: bool) -> None:
        state, text = checkpoint.read(self.checkpoint_file, "checkpoint")
        check_same(self.of, text["run"], self.checkpoint_file)
        self.model.load_state_dict({k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")})
        for name, parameter in self.trained:
            for key in OPTIMIZER_STATE:
                value = state.get(f"{key}.{name}")
                if key == "momentum_buffer" and value is None:  # version 0.1's name
                    value = state.get(f"momentum.{name}")
                if value is not None:  # in the parameter's memory format, but for adam's count of steps
                    held = torch.empty_like(parameter if value.dim() == parameter.dim() else value.to(self.device))
                    self.optimizer.state[parameter][key] = held.copy_(value)
        self.step, self.seconds = text["step"], text["seconds"]
        self.scaler.load_state_dict(text["scaler"])
        self.load_state(state, text)
        if not self.world.first:
            return
        kept = [row for row in self.history() if row["step"] <= self.step]
        write_text(self.history_file, "".join(json.dumps(row) + "\n" for row in kept))
        print(f"going on from step {self.step} of {self.steps}")
        before, now = text["processes"], self.world.size
        if before != now:
            told = f"{now} process(es) now, {before} before: the batches are the same, their order and images too"
            if not synchronise:
                told += f"; a batch norm sees {self.batch // now} images now, {self.batch // before} before"
            print(told)

    def history(self) -> list[dict[str, Any]]:
        """The rows of history.jsonl, an entry an epoch."""
        if not self.history_file.exists():
            return []
        rows = []
        lines = self.history_file.read_bytes().splitlines(keepends=True)
        for number, line in enumerate(lines, 1):
            try:
                row = json.loads(line)
                if not all(isinstance(row[key], kind) for key, kind in _ROW.items()):
                    raise ValueError("of other values")
            except (ValueError, TypeError, KeyError, RecursionError):
                if number == len(lines) and not line.endswith(b"\n"):  # a killed run was writing it
                    break
                raise ReidError(
                    f"{self.history_file}, line {number} is damaged: delete the line, or give another --output"
                ) from None
            rows.append(row)
        return rows


_ROW: dict[str, Any] = {  # of history.jsonl, what is used of it
    "epoch": int,
    "step": int,
    "loss": float | int,
    "losses": dict,
    "images_per_second": float | int,
}


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


def check_same(now: dict[str, Any], then: dict[str, Any], path: Path) -> None:
    """ReidError where a file in the output folder is of another recipe or other data."""
    now, then = without_places(now), without_places(then)  # files hold none
    changed = differences(now["recipe"], then["recipe"])
    taught = then.get("teacher")
    if isinstance(taught, str) and [taught] == [checkpoint.file_digest(file) for file in now["recipe"]["teacher"]]:
        then = then | {"teacher": now["teacher"]}  # until there could be several, the one was told by its file
    if changed:
        values = ", ".join(f"{key} {there!r} there, {here!r} now" for key, (there, here) in changed.items())
        raise ReidError(f"{path} is of a run with another recipe ({values}): give another --output")
    if any(then.get(key) != value for key, value in now.items() if key != "recipe"):
        what = "with another teacher" if then.get("teacher") != now.get("teacher") else "on other images"
        raise ReidError(f"{path} is of a run {what}, or they have changed since: give another --output")


@contextlib.contextmanager
def _interruptible(world: World) -> Iterator[threading.Event]:
    """Ctrl-C or SIGTERM sets the event, so that the step is finished; a second one ends at once.

    Of several processes each gets the signal from the terminal and again from torchrun, so there it only sets.
    """
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    signals = (signal.SIGINT, signal.SIGTERM)

    def ask(number: int, _: object) -> None:
        event.set()
        if world.size == 1:
            signal.signal(number, before[signals.index(number)])

    before = [signal.getsignal(number) for number in signals]
    for number in signals:
        signal.signal(number, ask)
    try:
        yield event
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
