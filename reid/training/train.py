"""Training: a recipe and a list of samples -> one model file. Interrupted, the same call goes on where it was.

    train(splits.train, config, Path("runs/market1501"))

Started by torchrun, several processes share each batch. What a run is made of is here, how it runs in
`reid.training.loop`.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_swa_multi_avg_fn

from reid.core.files import identity
from reid.core.types import ReidError, Sample
from reid.models.card import MEAN, make_card
from reid.models.encoder import pick_device
from reid.models.model import ReidModel, check_input_size, is_model, load_model, save_model
from reid.models.pretrained import read_pretrained
from reid.training import distributed
from reid.training.augment import augment, augment_on, cutmix, draw
from reid.training.config import Config, as_dict
from reid.training.data import load_pixels
from reid.training.distill import Teaching, open_teachers
from reid.training.distributed import World
from reid.training.domains import describe, join_terms
from reid.training.log import Step, Term, epoch_lines
from reid.training.loop import Interrupted as Interrupted
from reid.training.loop import Training, check_same
from reid.training.losses import ReidLoss
from reid.training.mixstyle import MixStyle
from reid.training.sampler import pk_batches
from reid.training.schedule import lr_at, lr_in_steps
from reid.training.watch import divide, spread, watch

FILL = [round(255 * value) for value in MEAN]


@dataclasses.dataclass(frozen=True)
class Trained:
    """What `train` made."""

    path: Path  # of the model file
    seconds: float  # of training, all parts of an interrupted run together
    history: list[dict[str, Any]]  # an entry an epoch; see `_Run.end_epoch`


def train(
    samples: Sequence[Sample],
    config: Config,
    output: Path,
    *,
    name: str = "",
    domains: Sequence[str] | None = None,
    terms: Mapping[str, str] | None = None,
    device: str | None = None,
    progress: bool = True,
    stop_after: int | None = None,
) -> Trained:
    """Trains on `samples` and writes OUTPUT/model.safetensors, the last of the whole schedule or, with
    `config.holdout`, the best on the identities kept apart.

    Beside it: history.jsonl (an entry an epoch), tensorboard/, and, until it is done, checkpoint.safetensors.
    name: what the model's card calls the data.
    domains: the data set of each sample, by name, where there are several; `reid.training.domains.join` gives both.
    terms: on which data sets, by name, may be used; they go into the model's card, with those of the models that it
    starts from and learns from.
    stop_after: ends with Interrupted after that many steps in all, as Ctrl-C does.
    Raises ReidError for a training set that fits no batch, an input too small, a checkpoint of another run, or a
    loss that is no longer finite.
    """
    world = distributed.join()
    chosen = pick_device(device) if device else distributed.pick_device(world) or pick_device()
    run = _Run(samples, config, output, name, world, chosen, progress, domains, terms)
    return run.finished() or run.go(stop_after)


class Batch(NamedTuple):
    """This process's part of one step's images, or, where `table` says what is still to be done to them, all."""

    pixels: Tensor  # (B, 3, H, W) uint8 in channels-last memory, of the teacher's size where there is one
    labels: Tensor  # (B,), of this process's part
    table: Tensor | None  # of `augment.Draws`
    styles: np.ndarray  # (B,), of this process's part: the data set of each image, of one data set the camera


class _Run(Training):
    """One training run on people: its data, model and optimiser."""

    model: ReidModel

    def __init__(
        self,
        samples: Sequence[Sample],
        config: Config,
        output: Path,
        name: str,
        world: World,
        device: torch.device,
        progress: bool,
        domains: Sequence[str] | None = None,
        terms: Mapping[str, str] | None = None,
    ) -> None:
        self.teachers = open_teachers(config.teacher, device)
        of = {
            "recipe": as_dict(config),
            "data": identity([sample.path for sample in samples]),
            "pids": _digest([sample.pid for sample in samples]),
            "teacher": [teacher.fingerprint for teacher in self.teachers] or None,
        }
        if domains is not None:
            of["domains"] = _digest([(sample.camid, name) for sample, name in zip(samples, domains, strict=True)])
        super().__init__(output, of, config.p * config.k, world, device, progress)
        self.name, self.config = name, config
        self.model_file = output / "model.safetensors"
        self.samples, self.watched = divide(samples, config)
        self.classes = sorted({sample.pid for sample in self.samples})
        self.labels = np.searchsorted(self.classes, [sample.pid for sample in self.samples])
        self.cameras = np.array([sample.camid for sample in self.samples])
        name_of = {sample.path: name for sample, name in zip(samples, domains or [name] * len(samples), strict=True)}
        self.domains = np.array([name_of[sample.path] for sample in self.samples])
        self.several = len(set(name_of.values())) > 1
        self.terms = join_terms(terms or {}, [teacher.card for teacher in self.teachers])
        self._data = describe(name, self.labels, self.cameras, self.domains) | {"held_out": config.holdout}
        # one thread of numpy keeps ahead of a CPU that trains, and not of a GPU
        self.augments_on_device = device.type == "cuda"
        self.best_mAP = -1.0
        self._epoch_batches: tuple[int, np.ndarray] = (-1, np.empty(0))  # an epoch, and its batches

    def finished(self) -> Trained | None:
        if not self.world.broadcast(self.model_file.exists()):
            return None
        card = load_model(self.model_file).card
        check_same(self.of, card["run"], self.model_file)
        return Trained(self.model_file, card["train_seconds"], self.history())

    def go(self, stop_after: int | None) -> Trained:
        self.prepare()
        self.run(stop_after)
        if self.world.first:
            self._finish()
        self.world.barrier()
        return Trained(self.model_file, self.seconds, self.history())

    def prepare(self) -> None:
        """Network, optimiser and images, as they were when the run was stopped."""
        config = self.config
        self._build()
        self.epoch_steps = len(self._batches(0))
        self.steps = self.epoch_steps * config.epochs
        self.teaching = Teaching(
            self.teachers,
            self.model,
            epoch_steps=self.epoch_steps,
            cutmix=config.cutmix,
            cached_epochs=config.cached_epochs,
        )
        self.ready(config.precision, synchronise=config.sync_batch_norm)
        paths = sorted({sample.path for sample in [*self.samples, *self.watched]})
        self.row = {path: i for i, path in enumerate(paths)}
        size = self.teaching.input_size
        cache = config.cache if self.world.size == 1 else "disk"  # one copy for all processes
        with self.world.first_goes_first():
            self.pixels = load_pixels(paths, size, cache=cache, folder=self.output, progress=self.progress)

    def _finish(self) -> None:
        if self.config.holdout == 0:
            self._save_model(self.model_file)
        else:
            self._keep_best()
        for leftover in (self.checkpoint_file, *self.output.glob("pixels-*.npy")):
            leftover.unlink(missing_ok=True)

    # ---- the parts of a run

    def _build(self) -> None:
        config = self.config
        weights = start = None
        if config.pretrained and is_model(config.pretrained):
            start = load_model(config.pretrained)
        elif config.pretrained:
            weights, matched = read_pretrained(config.backbone, config.pretrained)
            if self.world.first:
                print(matched)
        torch.manual_seed(config.seed)
        self.model = ReidModel(make_card(as_dict(config), len(self.classes)), weights)
        if start:
            self.model.start_from(start, config.pretrained)
            self.terms = join_terms(self.terms, [start.card])
        check_input_size(self.model)
        self.model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.frozen = _first_parts(self.model, config.freeze, "freeze")
        self.frozen.requires_grad_(False)
        self._training_mode()
        self.optimizer = make_optimizer(self.model, config)
        head = self.model.head
        self.global_names = [head.names[i] for i in head.global_features]
        self.loss = make_loss(self.model, config, len(self.classes)).to(self.device)
        # batch norms have the mean of their statistics
        self.average = AveragedModel(self.model, multi_avg_fn=_into_mean, use_buffers=True)
        trunk = _first_parts(self.model, max(config.mixstyle_after, default=0), "mixstyle_after")
        self.mixstyle = MixStyle(
            trunk, config.mixstyle_after, probability=config.feature_mixstyle, alpha=config.mixstyle_alpha
        )

    def _training_mode(self) -> None:
        self.model.train()
        self.frozen.eval()

    def _batches(self, epoch: int) -> np.ndarray:
        config = self.config
        return pk_batches(
            self.labels,
            config.p,
            config.k,
            config.seed,
            epoch,
            cameras=self.cameras if config.balance_cameras else None,
            domains=self.domains if config.balance_domains else None,
        )

    def make_batch(self, step: int) -> Batch:
        config = self.config
        step = self.teaching.view(step)
        epoch, i = divmod(step, self.epoch_steps)
        if self._epoch_batches[0] != epoch:
            self._epoch_batches = (epoch, self._batches(epoch))
        positions = self._epoch_batches[1][i]
        part = self.world.part(len(positions))
        draws = draw(
            len(positions),
            self.pixels.shape[1:3],
            np.random.default_rng([config.seed, step, 1]),
            pad=round(config.pad * self.pixels.shape[1] / config.height),
            flip=config.flip,
            erase=config.erase,
            jitter=config.jitter,
            mixstyle=config.mixstyle,
            camids=self.cameras[positions],
            grey=config.grey,
        )
        images = [self.pixels[self.row[self.samples[p].path]] for p in positions]
        labels = torch.from_numpy(self.labels[positions[part]])
        styles = (self.domains if self.several else self.cameras)[positions[part]]
        if not self.augments_on_device:
            pixels = torch.from_numpy(augment(images, draws, fill=FILL, part=part))
            return Batch(pixels.permute(0, 3, 1, 2), labels, None, styles)
        parts = torch.from_numpy(np.stack(images)), labels, draws.table()
        pixels, labels, table = (x.pin_memory() for x in parts) if self.device.type == "cuda" else parts
        return Batch(pixels.permute(0, 3, 1, 2), labels, table, styles)

    def _arrived(self, batch: Batch) -> tuple[Tensor, Tensor]:
        """Augmented pixels and labels on the device."""
        pixels, labels = (x.to(self.device, non_blocking=True) for x in batch[:2])
        if batch.table is not None:
            table = batch.table.to(self.device, non_blocking=True)
            pixels = augment_on(pixels, table, fill=FILL, part=self.world.part(len(table)))
        return pixels, labels

    def rate(self, step: int) -> float:
        config = self.config
        warmup = round(config.warmup_epochs * self.epoch_steps)
        start, peak = config.lr_start, config.lr
        if config.schedule == "steps":
            milestones = [epoch * self.epoch_steps for epoch in config.milestones]
            return lr_in_steps(step, warmup=warmup, start=start, peak=peak, milestones=milestones, gamma=config.gamma)
        return lr_at(step, steps=self.steps, warmup=warmup, start=start, peak=peak, end=config.lr_end)

    def losses(self, batch: Batch) -> Step:
        names = self.model.head.names
        pixels, labels = self._arrived(batch)
        seed, joins = self.config.seed, self.teaching.joins(self.step)
        if joins:
            pixels = cutmix(pixels, np.random.default_rng([seed, self.teaching.view(self.step), 3]))
        dice = np.random.default_rng([seed, self.step, 4, self.world.rank])
        with self.autocast(), self.mixstyle.mixing(batch.styles, dice):
            heads = self.network(self.teaching.fit(pixels))
        with self.autocast():
            taught = self.teaching.of(pixels, self.step)
        total, losses = self.loss(heads, labels, taught=taught, gather=self.world.gather, known=not joins)
        terms = {
            name: Term(values, self._names_of(name, values), given=not joins or name == "distill")
            for name, values in losses.items()
        }
        with torch.no_grad():
            accuracy = (heads.logits.argmax(2) == labels[:, None]).float().mean(0)
            terms["accuracy"] = Term(accuracy, names, loss=False, given=not joins)
            terms["spread"] = Term(spread(heads.before), names, loss=False)
        return Step(total, terms)

    def _names_of(self, term: str, values: Tensor) -> list[str]:
        names = self.model.head.names
        if term == "distill" and not self.teaching.by_feature:
            return ["all"]
        return names if len(values) == len(names) else self.global_names

    # ---- the mean of the last weights

    def after_step(self) -> None:
        if self.step >= self.steps - self.config.average_epochs * self.epoch_steps:
            self.average.update_parameters(self.model)

    @property
    def made(self) -> ReidModel:
        """The mean of the last weights from the step on that it begins with, before that the model as it is."""
        model = self.average.module if self.average.n_averaged else self.model
        assert isinstance(model, ReidModel)
        return model

    # ---- watching

    def end_epoch(self, epoch: int, row: dict[str, Any]) -> str:
        watched = self._watch(epoch) or {}
        by_name = row["by_name"]
        accuracy, spreads = by_name["accuracy"], by_name["spread"]
        row.update(rank1=watched.get("rank1"), mAP=watched.get("mAP"))
        row["heads"] = [
            {"name": name, "accuracy": accuracy[name], "spread": spreads[name], "rank1": watched.get(name)}
            for name in accuracy
        ]
        if watched:
            by_name["rank1"] = {name: watched[name] for name in accuracy}
        return epoch_lines(row, self.config.epochs, "held-out" if self.config.holdout else "training")

    def _watch(self, epoch: int) -> dict[str, float] | None:
        """Rank-1 of each head and of all together on the watched identities, and the choice of the best checkpoint."""
        every = self.config.watch_epochs
        last = epoch == self.config.epochs
        if not self.watched or not every or (epoch % every and not last):
            return None
        pixels = torch.from_numpy(self.pixels[[self.row[sample.path] for sample in self.watched]]).permute(0, 3, 1, 2)
        scores = watch(self.made, self.watched, self.teaching.fit(pixels).permute(0, 2, 3, 1).numpy(), self.device)
        if self.config.holdout and scores.get("mAP", -1.0) > self.best_mAP:
            self.best_mAP = scores["mAP"]
            self._save_model(self.output / "best.safetensors")
        self._training_mode()
        if self.config.holdout and not scores:
            raise ReidError(
                "no held-out identity was seen by two cameras, so no checkpoint can be chosen on them: "
                "train without --holdout, or on a set of several cameras"
            )
        return scores

    def _keep_best(self) -> None:
        best = self.output / "best.safetensors"
        model = load_model(best)
        model.card["train_seconds"] = self.seconds
        save_model(model, self.model_file)
        best.unlink()

    # ---- what is kept

    def _save_model(self, path: Path) -> None:
        made, data = self.made, self._data | ({"terms": self.terms} if self.terms else {})
        made.card.update(run=self.of, train_seconds=self.seconds, data=data, step=self.step)
        save_model(made, path)

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        averaged = self.average.module.state_dict() if self.average.n_averaged else {}
        kept = {f"average.{name}": value for name, value in averaged.items() if value.is_floating_point()}
        kept |= {f"loss.{name}": value for name, value in self.loss.state_dict().items()}
        return kept, {"best_mAP": self.best_mAP, "averaged_steps": int(self.average.n_averaged)}

    def load_state(self, state: dict[str, Tensor], text: dict[str, Any]) -> None:
        self.best_mAP = text["best_mAP"]

        def named(prefix: str) -> dict[str, Tensor]:
            found = {key: value for key, value in state.items() if key.startswith(prefix)}
            return {key.removeprefix(prefix): value.to(self.device) for key, value in found.items()}

        self.average.module.load_state_dict(self.model.state_dict() | named("average."))
        self.average.n_averaged.fill_(text["averaged_steps"])
        self.loss.load_state_dict(named("loss."))


def _first_parts(model: ReidModel, count: int, key: str) -> nn.Sequential:
    """The first `count` parts of the trunk; `key` of the recipe asks for them."""
    trunk = model.head.trunk
    assert isinstance(trunk, nn.Sequential)
    if count > len(trunk):
        backbone = model.card["architecture"]["backbone"]
        raise ReidError(f"{key}={count}: the trunk of {backbone} has {len(trunk)} parts")
    return trunk[:count]


def _into_mean(mean: Any, current: Any, steps: Any) -> None:
    """Takes the values after one more step into the mean over `steps` steps; a count stays the last one."""
    if mean[0].is_floating_point():
        get_swa_multi_avg_fn()(mean, current, steps)
    else:
        torch._foreach_copy_(mean, current)


def make_loss(model: ReidModel, config: Config, classes: int) -> ReidLoss:
    """What a recipe minimises."""
    return ReidLoss(
        model.head.global_features,
        classes,
        model.head.dim,
        smoothing=config.smoothing,
        margin=config.margin,
        triplet=config.triplet,
        triplet_on=config.triplet_on,
        circle=config.circle,
        contrast=config.contrast,
        center=config.center,
        center_update=config.center_update,
        distill=config.distill,
    )


def make_optimizer(model: ReidModel, config: Config) -> torch.optim.Optimizer:
    """What takes a recipe's steps."""
    trained = [p for p in model.parameters() if p.requires_grad]
    if config.optimizer == "adam":  # weight decay is added to the gradient, as in BagOfTricks
        betas = (config.momentum, 0.999)
        return torch.optim.Adam(trained, lr=config.lr, betas=betas, weight_decay=config.weight_decay, fused=True)
    return torch.optim.SGD(
        trained,
        lr=config.lr,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )


def _digest(values: list[Any]) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]
