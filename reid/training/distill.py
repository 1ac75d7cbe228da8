"""Teachers: what a run learns from models that are trained already, image by image or by how alike images are.

    teachers = open_teachers(["teacher.safetensors", "other.onnx"], device)
    teaching = Teaching(teachers, model, epoch_steps=100, cutmix=0.5, cached_epochs=8)
    taught = teaching.of(pixels, step)      # for `ReidLoss`

One teacher with the student's features teaches each of them. Any other, and several together, teach similarities: the
student's cosine similarities of a batch's images are drawn to the mean of theirs (`losses.similarity_loss`).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from reid.models.encoder import Encoder, TorchEncoder, open_encoder
from reid.models.exported import is_exported
from reid.models.model import ReidModel


def open_teachers(paths: Sequence[str], device: torch.device) -> list[Encoder]:
    """Models of this program, also exported ones, which run on the CPU. ReidError names a file that is none."""
    return [open_encoder(path, flip=False, device=None if is_exported(path) else device) for path in paths]


class Teaching:
    """The teachers of one run of `student`, none or several, and which steps they have.

    cutmix: share of the steps whose images are of two people each and only taught.
    cached_epochs: epochs of `epoch_steps` steps whose batches the teachers see; then these come again. 0: all.
    """

    def __init__(
        self,
        teachers: Sequence[Encoder],
        student: ReidModel,
        *,
        epoch_steps: int,
        cutmix: float = 0.0,
        cached_epochs: int = 0,
    ) -> None:
        self.teachers, self.student_size = list(teachers), student.input_size
        self.cutmix, self.cached_steps = cutmix, cached_epochs * epoch_steps
        self.by_feature = len(self.teachers) == 1 and _features(self.teachers[0]) == _features_of(student)
        self._lessons: dict[int, Tensor] = {}  # step -> what the teachers say of it, in half floats

    @property
    def input_size(self) -> tuple[int, int]:
        """(height, width) of the crops that everyone's are made from: the largest of the models' sizes."""
        sizes = [*(teacher.input_size for teacher in self.teachers), self.student_size]
        return max(sizes, key=lambda size: size[0] * size[1])

    def view(self, step: int) -> int:
        """The step whose batch this one has: itself, or one of the first `cached_epochs`."""
        return step % self.cached_steps if self.cached_steps else step

    def joins(self, step: int) -> bool:
        """Whether this step's images are joined of two people's: `cutmix` of the steps, evenly spread."""
        view = self.view(step)
        return int((view + 1) * self.cutmix) > int(view * self.cutmix)

    def fit(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) uint8, brought to the student's size."""
        return resized(pixels, self.student_size)

    @torch.no_grad()
    def of(self, pixels: Tensor, step: int) -> Tensor | None:
        """What the teachers say of (B, 3, H, W) uint8, the images of a step; those of a batch that comes again are
        kept. Features (B, F, D), or an embedding (B, E) whose cosine similarities are the mean of the teachers'."""
        if not self.teachers:
            return None
        view = self.view(step)
        if view in self._lessons:
            return self._lessons[view].float()
        said = self._asked(pixels).half()
        if self.cached_steps:
            self._lessons[view] = said
        return said.float()

    def _asked(self, pixels: Tensor) -> Tensor:
        if self.by_feature:
            (teacher,) = self.teachers
            assert isinstance(teacher, TorchEncoder)
            return teacher.model.features(resized(pixels, teacher.input_size))
        vectors = [_embedded(teacher, resized(pixels, teacher.input_size)) for teacher in self.teachers]
        # of vectors that stand one behind the other the inner products add up
        return torch.cat([F.normalize(x.float(), dim=1) for x in vectors], dim=1)


def resized(pixels: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, 3, H, W) uint8 -> the same of `size` (height, width)."""
    if pixels.shape[2:] == size:
        return pixels
    # as floats, since CUDA filters no bytes
    return F.interpolate(pixels.float(), size, mode="bilinear", antialias=True).round().to(torch.uint8)


def _embedded(teacher: Encoder, pixels: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, D) on the same device."""
    if isinstance(teacher, TorchEncoder):
        return teacher.model.embed(pixels)
    rows: np.ndarray = teacher.encode(pixels.permute(0, 2, 3, 1).contiguous().cpu().numpy())
    return torch.from_numpy(np.array(rows)).to(pixels.device)


def _features(teacher: Encoder) -> tuple[list[str], int] | None:
    return _features_of(teacher.model) if isinstance(teacher, TorchEncoder) else None


def _features_of(model: ReidModel) -> tuple[list[str], int]:
    """Names of a model's features and the values of each: models that agree here are compared feature by feature."""
    return list(model.head.names), model.head.dim
