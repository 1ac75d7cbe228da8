"""Training on several processes: which one this is, and what they tell each other.

`torchrun --nproc-per-node N run_reid.py train ...` starts them; a program started without it is a world of one, in
which nothing here costs anything. NCCL carries CUDA tensors, gloo the rest.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from reid.core.types import ReidError


@dataclass(frozen=True)
class World:
    """The processes of one training. The first one writes; all compute the same steps on parts of each batch."""

    rank: int = 0
    size: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def part(self, count: int) -> slice:
        """This process's share of `count` things in order; `count` is a multiple of the world's size."""
        share = count // self.size
        return slice(self.rank * share, (self.rank + 1) * share)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()

    def broadcast(self, value: Any) -> Any:
        """The first process's value, on all of them."""
        if self.size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def any(self, flags: Sequence[bool]) -> list[bool]:
        """Of each flag, whether it is set on any process."""
        if self.size == 1:
            return list(flags)
        numbers = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(numbers, dist.ReduceOp.MAX)
        return [bool(number) for number in numbers]

    def mean(self, values: Tensor) -> Tensor:
        """Mean over the processes, of values without a gradient."""
        if self.size == 1:
            return values
        values = values.contiguous()
        dist.all_reduce(values)
        return values / self.size

    def gather(self, rows: Tensor) -> Tensor:
        """(B, ...) of each process -> (size * B, ...) of all, by rank.

        A loss that every process computes of the whole gives each the gradient of its own rows, times the world's
        size, since DistributedDataParallel then takes the mean over the processes.
        """
        if self.size == 1:
            return rows
        gathered: Tensor = _Gather.apply(rows, self)
        return gathered

    @contextlib.contextmanager
    def first_goes_first(self) -> Iterator[None]:
        """The body runs on the first process, then on the others, who find what it wrote."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, world: World) -> Tensor:
        ctx.world = world
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world.size)]
        dist.all_gather(parts, rows.contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (gradient,) = gradients
        return gradient[ctx.world.part(len(gradient))] * ctx.world.size, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        total = values.clone()
        dist.all_reduce(total)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _Sum.forward(ctx, gradients[0].contiguous())


def join() -> World:
    """Meets the other processes that torchrun started; a world of one without it. May be called again."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    if not dist.is_initialized():
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        try:  # one waits for another that reads a data set
            dist.init_process_group(backend, timeout=timedelta(hours=6))
        except (RuntimeError, ValueError) as error:
            raise ReidError(
                f"the {size} processes cannot meet ({' '.join(str(error).split())[:100]}): "
                "start them with torchrun --nproc-per-node N run_reid.py train ..."
            ) from None
    return World(dist.get_rank(), dist.get_world_size())


def pick_device(world: World) -> torch.device | None:
    """The card of this process where there are several processes and a card for each; None leaves the choice."""
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if world.size == 1 or not torch.cuda.is_available():
        return None
    if local >= torch.cuda.device_count():
        raise ReidError(
            f"process {local + 1} of this machine has no card: it has {torch.cuda.device_count()}; "
            "give torchrun a smaller --nproc-per-node"
        )
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


def synchronise_batch_norms(model: nn.Module, device: torch.device) -> nn.Module:
    """Every batch norm takes its statistics of the whole batch of all processes.

    On CUDA it is torch's SyncBatchNorm. That one refuses the CPU, where `_SynchronisedBatchNorm` does the same.
    """
    if device.type == "cuda":
        synchronised: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        return synchronised
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            module.__class__ = _SynchronisedBatchNorm  # type: ignore[assignment]
    return model


class _SynchronisedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """Batch norm over the batch of all processes; each has as many images as the others."""

    def _check_input_dim(self, input: Tensor) -> None:
        pass

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        x = input.float()
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        count = x.numel() // x.shape[1] * dist.get_world_size()
        mean = _Sum.apply(x.sum(over)) / count
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(over)) / count
        with torch.no_grad():
            assert self.running_mean is not None and self.running_var is not None and self.momentum is not None
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * count / max(1, count - 1), self.momentum)
            if self.num_batches_tracked is not None:
                self.num_batches_tracked += 1
        scale = torch.rsqrt(variance + self.eps) * self.weight
        scaled: Tensor = centred * scale.view(shape) + self.bias.view(shape)
        return scaled.to(input.dtype)
