"""What a training writes of itself: history.jsonl, TensorBoard, the line of an epoch."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from reid.core.types import ReidError

if TYPE_CHECKING:
    from reid.training.loop import Training


class Term(NamedTuple):
    """One kind of value that a step logs, by head or alone."""

    values: Tensor  # (n,)
    names: Sequence[str]  # n
    loss: bool = True  # has to be finite
    given: bool = True  # by this step; a mean leaves others out


class Step(NamedTuple):
    """What a step gives."""

    total: Tensor  # (), what is minimised
    terms: dict[str, Term]


class Log:
    """Sums over an epoch, on the device; read every READ_STEPS steps, so that a GPU is not waited for at each."""

    def __init__(self, run: Training) -> None:
        self.run = run
        self.board: Any = None
        if run.world.first:
            from torch.utils.tensorboard import SummaryWriter

            self.board = SummaryWriter(str(run.output / "tensorboard"), purge_step=run.step)
        self._clear()

    def __enter__(self) -> Log:
        return self

    def __exit__(self, *_: object) -> None:
        if self.board:
            self.board.close()

    def _clear(self) -> None:
        self.pending: list[tuple[int, float, Tensor, dict[str, Term]]] = []
        self.terms: dict[str, Term] = {}
        self.sums: np.ndarray | None = None
        self.counts: np.ndarray | None = None  # of steps that gave a value
        self.steps = 0
        self.wait, self.start = 0.0, time.monotonic()

    def waited(self, seconds: float) -> None:
        self.wait += seconds

    @property
    def wait_share(self) -> float:
        """Share of the epoch's time so far that training waited for data."""
        return self.wait / max(1e-9, time.monotonic() - self.start)

    def add(self, rate: float, step: Step) -> None:
        self.terms = step.terms
        values = [step.total[None], *(term.values for term in step.terms.values())]
        self.pending.append((self.run.step, rate, torch.cat([x.detach().float() for x in values]), step.terms))
        self.steps += 1

    def read(self) -> float:
        """Moves what is pending off the device; the last total loss. ReidError where a term is not finite."""
        rows = self.run.world.mean(torch.stack([row for _, _, row, _ in self.pending])).double().cpu().numpy()
        for (step, rate, _, terms), row in zip(self.pending, rows, strict=True):
            means = {**self._split(row), "total": row[:1]}
            for name, values in means.items():
                loss = name == "total" or (terms[name].loss and terms[name].given)
                if loss and not np.isfinite(values).all():
                    head = int(np.flatnonzero(~np.isfinite(values))[0])
                    where = "" if name == "total" else f" of {self.terms[name].names[head]}"
                    raise ReidError(
                        f"the {name} loss{where} is {values[head]} at step {step + 1}: training stopped, the last "
                        f"checkpoint is whole; try a smaller rate (--set lr={rate / 2:.2g}) in another --output"
                    )
                if loss and self.board:
                    self.board.add_scalar(f"loss/{name}", float(values.mean()), step)
            if self.board:
                self.board.add_scalar("lr", rate, step)
            given = np.concatenate([[True], *(np.full(len(x.names), x.given) for x in terms.values())])
            values = np.where(given, row, 0)
            self.sums = values if self.sums is None else self.sums + values
            self.counts = given.astype(int) if self.counts is None else self.counts + given
        self.rate = self.pending[-1][1]
        self.pending = []
        return float(rows[-1][0])

    def _split(self, row: np.ndarray) -> dict[str, np.ndarray]:
        bounds = np.cumsum([1, *(len(term.names) for term in self.terms.values())])
        return dict(zip(self.terms, np.split(row, bounds)[1:-1], strict=True))

    def epoch(self, epoch: int) -> str:
        """Writes the epoch's row to history.jsonl and TensorBoard, and gives its lines for the terminal."""
        assert self.sums is not None and self.counts is not None
        run, row = self.run, self.sums / np.maximum(self.counts, 1)
        seconds, wait = time.monotonic() - self.start, self.wait_share
        means, terms, steps = self._split(row), self.terms, self.steps
        self._clear()
        if not run.world.first:
            return ""
        entry: dict[str, Any] = {
            "epoch": epoch,
            "step": run.step,
            "images": run.step * run.batch,
            "lr": self.rate,
            "loss": float(row[0]),
            "losses": {name: float(values.mean()) for name, values in means.items() if terms[name].loss},
            "images_per_second": steps * run.batch / seconds,
            "data_wait": wait,
            "by_name": {
                name: dict(zip(terms[name].names, values.tolist(), strict=True)) for name, values in means.items()
            },
        }
        lines = run.end_epoch(epoch, entry)
        for name, values in entry.pop("by_name").items():
            for head, value in values.items():
                self.board.add_scalar(f"{name}/{head}", value, epoch)
        with run.history_file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        self.start = time.monotonic()  # what end_epoch did is not training
        return lines


READ_STEPS = 10  # the losses are read from the device, and checked, every so many steps


def epoch_lines(row: dict[str, Any], epochs: int, watched: str) -> str:
    """What is printed of a row of the history of a training on people; `watched` are those whose Rank-1 it tells."""
    parts = [f"{name} {value:.3f}" for name, value in row["losses"].items()]
    lines = [
        f"epoch {row['epoch']}/{epochs}  lr {row['lr']:.4f}  loss {row['loss']:.3f} ({', '.join(parts)})  "
        f"{row['images_per_second']:.0f} img/s, {row['data_wait']:.1%} waiting for data"
        + ("" if row["rank1"] is None else f"  {watched} Rank-1 {row['rank1']:.1%}")
    ]
    for key, form in (("accuracy", ".0%"), ("spread", ".2f"), ("rank1", ".0%")):
        if row["heads"][0][key] is not None:
            lines.append(f"  {key:9}" + "  ".join(f"{head['name']} {head[key]:{form}}" for head in row["heads"]))
    return "\n".join(lines)
