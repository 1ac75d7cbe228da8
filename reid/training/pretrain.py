"""Training a backbone as a classifier, on ImageNet or any folder of its form, for weights that people start from.

    folder = read_folder("IMAGENET")    # IMAGENET/train/CLASS/*.JPEG and IMAGENET/val/CLASS/*.JPEG
    pretrain(folder, config, Path("runs/pretrain-scgnet_l"))

Started by torchrun, several processes share each batch. What a run is made of is here, how it runs in
`reid.training.loop`.
"""

from __future__ import annotations

import hashlib
import math
import multiprocessing
import os
import signal
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as nnf
import torchvision.transforms.v2.functional as tvf
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from tqdm import tqdm

from reid.core.images import SUFFIXES, is_image, list_folder, open_image
from reid.core.types import ReidError
from reid.models import backbones, checkpoint
from reid.models.card import MEAN, STD, git_revision
from reid.models.encoder import pick_device
from reid.training import distributed
from reid.training.config import PretrainConfig, as_dict
from reid.training.distributed import World
from reid.training.log import Step, Term
from reid.training.loop import Training, check_same

VALIDATION_BATCH = 256
ORDER, IMAGE, NETWORK = 1, 2, 3  # what a random stream is for; it begins with the seed and this number


class Labelled(NamedTuple):
    """The images of one half of the folder, sorted by class and name."""

    paths: list[str]
    labels: np.ndarray  # (N,) int64, positions in the classes


class ImageFolder(NamedTuple):
    """A folder of images in the folders of their classes, to train on and to validate on."""

    root: str
    classes: list[str]  # sorted by name
    train: Labelled
    val: Labelled

    @property
    def identity(self) -> str:
        """16 hex digits that change with the names in the folder. Not with the files' sizes and times: to ask for
        those of ImageNet's 1.3 million images takes minutes."""
        names = hashlib.sha256()
        for part in (self.train, self.val):
            inside = [path[len(self.root) :] for path in part.paths]
            names.update(os.fsencode("\n".join([str(len(inside)), *inside, ""])))
        return names.hexdigest()[:16]


@dataclass(frozen=True)
class Pretrained:
    """What `pretrain` made."""

    path: Path  # of the weights
    top1: float  # share of the validation images, in [0, 1]
    top5: float
    seconds: float  # of training, all parts of an interrupted run together
    history: list[dict[str, Any]]  # an entry an epoch; "top1" and "top5" are None where it was not validated


def read_folder(root: str | Path) -> ImageFolder:
    """The images of ROOT/train/CLASS and ROOT/val/CLASS. ReidError where that is not what lies there."""
    root = os.path.abspath(root)
    classes, train = _read_half(root, "train")
    named, val = _read_half(root, "val")
    if named != classes:
        odd = sorted(set(classes) ^ set(named))
        raise ReidError(
            f"{root}: train has {len(classes)} classes and val {len(named)}, {odd[0]!r} is in one of them only: "
            "both must have the same class folders"
        )
    if len(classes) < 2:
        raise ReidError(f"{root}/train has one class, {classes[0]!r}: a classifier needs at least two")
    return ImageFolder(root, classes, train, val)


def _read_half(root: str, half: str) -> tuple[list[str], Labelled]:
    folder = os.path.join(root, half)
    if not os.path.isdir(folder):
        raise ReidError(
            f"no folder {folder}: looked for images in {root}/train/CLASS/ and {root}/val/CLASS/; give --data-root"
        )
    classes = [name for name in list_folder(folder) if os.path.isdir(os.path.join(folder, name))]
    if not classes:
        raise ReidError(f"{folder} holds no class folders: each image belongs into the folder of its class")
    paths, labels = [], []
    for label, name in enumerate(classes):
        images = [file for file in list_folder(os.path.join(folder, name)) if is_image(file)]
        if not images:
            raise ReidError(f"no images in {folder}/{name}: looked for {', '.join(SUFFIXES)}")
        paths += [os.path.join(folder, name, file) for file in images]
        labels += [label] * len(images)
    return classes, Labelled(paths, np.array(labels))


def pretrain(
    folder: ImageFolder,
    config: PretrainConfig,
    output: Path,
    *,
    device: str | None = None,
    progress: bool = True,
    stop_after: int | None = None,
) -> Pretrained:
    """Trains `config.backbone` as a classifier and writes OUTPUT/backbone.safetensors: the whole network by its own
    names, which `reid.models.backbones.read_pretrained` takes, with a card.

    Beside it: history.jsonl (an entry an epoch), tensorboard/, and, until it is done, checkpoint.safetensors.
    stop_after: ends with Interrupted after that many steps in all, as Ctrl-C does.
    Raises ReidError for a folder that fills no batch, an image that cannot be read, a checkpoint of another run, or a
    loss that is no longer finite.
    """
    world = distributed.join()
    chosen = pick_device(device) if device else distributed.pick_device(world) or pick_device()
    run = _Pretrain(folder, config, output, world, chosen, progress)
    return run.finished() or run.go(stop_after)


class _Pretrain(Training):
    """One training of a classifier: its data, model and optimiser."""

    def __init__(
        self,
        folder: ImageFolder,
        config: PretrainConfig,
        output: Path,
        world: World,
        device: torch.device,
        progress: bool,
    ) -> None:
        of = {"recipe": as_dict(config), "data": folder.identity}
        super().__init__(output, of, config.batch, world, device, progress)
        self.folder, self.config = folder, config
        self.file = output / "backbone.safetensors"
        count = len(folder.train.paths)
        if count < config.batch:
            raise ReidError(
                f"a batch of {config.batch} images needs as many, {folder.root}/train has {count}: "
                "choose a smaller one with --set batch=N"
            )
        if config.batch < 2 * world.size:
            raise ReidError(
                f"a batch of {config.batch} images on {world.size} processes leaves each but one, and a "
                "batch norm needs two: choose a larger one with --set batch=N"
            )
        self.epoch_steps = count // config.batch
        self.steps = self.epoch_steps * config.epochs
        self.mean, self.std = (255 * torch.tensor(x, device=device).view(1, 3, 1, 1) for x in (MEAN, STD))

    def finished(self) -> Pretrained | None:
        if not self.world.broadcast(self.file.exists()):
            return None
        _, card = checkpoint.read(self.file, "backbone")
        check_same(self.of, card["run"], self.file)
        return Pretrained(self.file, card["top1"], card["top5"], card["train_seconds"], self.history())

    def go(self, stop_after: int | None) -> Pretrained:
        config = self.config
        torch.manual_seed(config.seed)
        self.model = backbones.get(config.backbone).build(len(self.folder.classes))
        self.model.to(self.device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, config.weight_decay), lr=config.lr, momentum=config.momentum, fused=True
        )
        self.ready(config.precision, synchronise=config.sync_batch_norm)
        self.batches = self._load(self._tasks(self.step))
        try:
            self.run(stop_after)
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise ReidError(
                f"a process that reads images ended ({' '.join(str(error).split())[:120]}): most often memory, or "
                "/dev/shm, is full; try fewer with --set workers=N in another --output"
            ) from None
        finally:
            del self.batches  # ends the processes that read
        last = self.history()[-1] if self.world.first else {}
        if self.world.first:
            self._save(last)
            self.checkpoint_file.unlink(missing_ok=True)
        top1, top5 = self.world.broadcast((last.get("top1"), last.get("top5")))
        return Pretrained(self.file, top1, top5, self.seconds, self.history())

    def _save(self, last: dict[str, Any]) -> None:
        card = {
            "backbone": self.config.backbone,
            "recipe": as_dict(self.config),
            "classes": self.folder.classes,
            "mean": MEAN,
            "std": STD,
            "top1": last["top1"],
            "top5": last["top5"],
            "images": last["images"],
            "train_seconds": self.seconds,
            "git_revision": git_revision(),
            "run": self.of,
        }
        checkpoint.write(self.file, "backbone", self.model.state_dict(), card)

    # ---- the parts of a step

    def _tasks(self, start: int) -> Iterator[_Task]:
        """This process's part of each batch from step `start` on. An epoch is a permutation of all images."""
        order = np.empty(0, np.int64)
        for step in range(start, self.steps):
            epoch, i = divmod(step, self.epoch_steps)
            if i == 0 or step == start:
                rng = np.random.default_rng([self.config.seed, ORDER, epoch])
                order = rng.permutation(len(self.folder.train.paths))
            part = self.world.part(self.batch)
            chosen = order[i * self.batch :][part]
            paths = [self.folder.train.paths[j] for j in chosen]
            yield _Task(paths, self.folder.train.labels[chosen], (step, part.start))

    def _load(self, tasks: Iterable[_Task]) -> Iterator[tuple[Tensor, Tensor]]:
        """Reads batches, in order and ahead, in `workers` processes: (B, H, W, 3) uint8 and labels (B,)."""
        workers = self.config.workers
        # forked from a process of their own: a child forked after torch has used threads hangs
        context = multiprocessing.get_context("forkserver") if workers else None
        if context:
            context.set_forkserver_preload(["torchvision.transforms.v2", __name__])  # imported once for all of them
        loader = DataLoader(
            _Reader(self.config),
            batch_size=None,
            sampler=tasks,
            num_workers=workers,
            collate_fn=_as_it_is,
            pin_memory=self.device.type == "cuda",
            multiprocessing_context=context,
            worker_init_fn=_leave_ctrl_c_to_the_parent,
            generator=torch.Generator(),  # it draws a seed of the workers, which nothing here depends on
        )
        if self.device.index is not None:  # whatever thread reads: it is to pin memory for this card, not the first
            torch.cuda.set_device(self.device)
        for batch in loader:
            if isinstance(batch, ReidError):
                raise batch
            yield batch

    def make_batch(self, step: int) -> tuple[Tensor, Tensor]:
        """(B, H, W, 3) uint8 and labels (B,), this process's part of the batch of the next step."""
        return next(self.batches)

    def rate(self, step: int) -> float:
        return self.config.lr * (1 - step / self.steps)

    def losses(self, batch: tuple[Tensor, Tensor]) -> Step:
        pixels, labels = (x.to(self.device, non_blocking=True) for x in batch)
        # for dropout, where a classifier has it: the one thing that depends on the number of processes
        seed = np.random.SeedSequence([self.config.seed, NETWORK, self.step, self.world.rank])
        torch.manual_seed(int(seed.generate_state(1)[0]))
        with self.autocast():
            logits = self.network(self._normalise(pixels)).float()
        loss = nnf.cross_entropy(logits, labels, label_smoothing=self.config.smoothing)
        accuracy = (logits.detach().argmax(1) == labels).float().mean()
        terms = {
            "softmax": Term(loss[None], ["classifier"]),
            "accuracy": Term(accuracy[None], ["classifier"], loss=False),
        }
        return Step(loss, terms)

    def _normalise(self, pixels: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, 3, H, W) of zero mean and unit variance, in channels-last memory."""
        return (pixels.permute(0, 3, 1, 2).float() - self.mean) / self.std

    # ---- validation

    def end_epoch(self, epoch: int, row: dict[str, Any]) -> str:
        every = self.config.validate_epochs
        due = epoch == self.config.epochs or (every > 0 and epoch % every == 0)
        accuracy = row["by_name"]["accuracy"]["classifier"]
        row.update(accuracy=accuracy, top1=None, top5=None)
        line = (
            f"epoch {epoch}/{self.config.epochs}  lr {row['lr']:.4f}  loss {row['loss']:.3f}  "
            f"{row['images_per_second']:.0f} img/s, {row['data_wait']:.1%} waiting for data  "
            f"training top-1 {accuracy:.1%}"
        )
        if due:
            row["top1"], row["top5"] = self._validate()
            row["by_name"]["validation"] = {"top1": row["top1"], "top5": row["top5"]}
            line += f"  validation top-1 {row['top1']:.1%}, top-5 {row['top5']:.1%}"
        return line

    def _validate(self) -> tuple[float, float]:
        """Top-1 and top-5 on all of val, in float32; by the first process alone, whose batch norms are those kept."""
        paths, labels = self.folder.val
        parts = [slice(i, i + VALIDATION_BATCH) for i in range(0, len(paths), VALIDATION_BATCH)]
        hits = torch.zeros(2, dtype=torch.int64)
        self.model.eval()
        with (
            torch.inference_mode(),
            tqdm(total=len(paths), desc="validating", unit="img", leave=False, disable=not self.progress) as bar,
        ):
            for pixels, truth in self._load([_Task(paths[part], labels[part], None) for part in parts]):
                logits = self.model(self._normalise(pixels.to(self.device, non_blocking=True)))
                hits += hits_of(logits, truth.to(self.device)).cpu()
                bar.update(len(truth))
        self.model.train()
        top1, top5 = (hits / len(paths)).tolist()
        return top1, top5


def hits_of(logits: Tensor, labels: Tensor) -> Tensor:
    """(B, C) and (B,) -> (2,) int64: how many labels are the highest logit, and among the five highest."""
    best = logits.topk(min(5, logits.shape[1]), dim=1).indices
    hit = best == labels[:, None]
    return torch.stack((hit[:, 0].sum(), hit.sum()))


def parameter_groups(model: torch.nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Weight decay for convolutions and fully connected layers; none for biases and batch norms, which are vectors."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.dim() > 1], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.dim() <= 1], "weight_decay": 0.0},
    ]


# ---- reading, also in processes of their own


class _Task(NamedTuple):
    """Images to be read as one batch."""

    paths: list[str]
    labels: np.ndarray
    place: tuple[int, int] | None  # step, and the first image's position in its batch; None: validation


class _Reader(Dataset[Any]):
    """Batches of images. An image that cannot be read is given back as its ReidError: raised in a worker, it would
    come as pages of a traceback."""

    def __init__(self, config: PretrainConfig) -> None:
        self.config = config

    def __getitem__(self, task: _Task) -> tuple[Tensor, Tensor] | ReidError:
        config = self.config
        pixels = np.empty((len(task.paths), config.size, config.size, 3), np.uint8)
        try:
            for i, path in enumerate(task.paths):
                image = open_image(path)
                if task.place is None:
                    pixels[i] = np.asarray(central(image, config.resize, config.size))
                else:
                    step, first = task.place
                    rng = np.random.default_rng([config.seed, IMAGE, step, first + i])
                    pixels[i] = np.asarray(augmented(image, config, rng))
        except ReidError as error:
            return error
        return torch.from_numpy(pixels), torch.from_numpy(task.labels)


def _as_it_is(batch: Any) -> Any:
    return batch


def _leave_ctrl_c_to_the_parent(_: int) -> None:
    """The terminal sends it to all; the parent finishes its step first, and then ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def central(image: Image.Image, resize: int, size: int) -> Image.Image:
    """The middle size x size pixels of the image with its shorter side at `resize`."""
    cut: Image.Image = tvf.center_crop(tvf.resize(image, [resize]), [size, size])
    return cut


def augmented(image: Image.Image, config: PretrainConfig, rng: np.random.Generator) -> Image.Image:
    """A random part of the image at size x size; brightness, contrast and saturation scaled in random order; mirrored
    or not. torchvision's RandomResizedCrop, ColorJitter and RandomHorizontalFlip, which draw from torch's one
    generator for all threads; here from `rng`."""
    top, left, height, width = crop_box(image.height, image.width, config.scale, rng)
    image = tvf.resized_crop(image, top, left, height, width, [config.size, config.size])
    changes = (tvf.adjust_brightness, tvf.adjust_contrast, tvf.adjust_saturation)
    scales = rng.uniform(1 - config.jitter, 1 + config.jitter, 3)
    for i in rng.permutation(3) if config.jitter else ():
        image = changes[i](image, scales[i])
    return tvf.horizontal_flip(image) if rng.random() < config.flip else image


def crop_box(height: int, width: int, scale: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a random part of an image: at least `scale` of its area, aspect 3/4 to 4/3.

    Szegedy et al., "Going deeper with convolutions", CVPR 2015. Where ten draws do not fit into the image, it is the
    largest part in its middle of such an aspect.
    """
    for _ in range(10):
        area = rng.uniform(scale, 1) * height * width
        aspect = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
        h, w = round(math.sqrt(area / aspect)), round(math.sqrt(area * aspect))
        if 0 < h <= height and 0 < w <= width:
            return int(rng.integers(0, height - h + 1)), int(rng.integers(0, width - w + 1)), h, w
    h, w = min(height, round(width * 4 / 3)), min(width, round(height * 4 / 3))
    return (height - h) // 2, (width - w) // 2, h, w
