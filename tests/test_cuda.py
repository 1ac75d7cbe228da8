"""What is different on a CUDA device; skipped where there is none. Bits are not promised there, behaviour is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import nn

from reid.core.types import Sample
from reid.models.embedder import Embedder
from reid.models.model import ReidModel, load_model
from reid.training import config as recipes
from reid.training import distributed
from reid.training.distributed import World
from reid.training.loop import Interrupted
from reid.training.train import train

pytestmark = pytest.mark.cuda


@pytest.fixture
def samples(paths: list[str]) -> list[Sample]:
    return [Sample(path, int(Path(path).name[:4]), int(Path(path).name[6])) for path in paths]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_it_trains_and_goes_on_after_a_stop(
    samples: list[Sample], tmp_path: Path, tiny: Callable[..., recipes.Config], precision: str
) -> None:
    config = tiny(epochs=30, lr=0.05, precision=precision, average_epochs=2, center=0.0005, circle=0.1, contrast=0.1)
    with pytest.raises(Interrupted, match="after step 7"):
        train(samples, config, tmp_path, device="cuda", progress=False, stop_after=7)
    made = train(samples, config, tmp_path, device="cuda", progress=False)
    assert made.history[-1]["losses"]["softmax"] < made.history[0]["losses"]["softmax"]
    assert all(np.isfinite(value) for row in made.history for value in row["losses"].values())


def test_a_pupil_follows_its_teacher(
    samples: list[Sample], tmp_path: Path, tiny: Callable[..., recipes.Config]
) -> None:
    """Of another input size, its features kept for the epochs that come again."""
    teacher = train(samples, tiny(epochs=2), tmp_path / "teacher", device="cuda", progress=False).path
    config = tiny(
        epochs=30,
        lr=0.05,
        seed=1,
        height=32,
        width=16,
        teacher=teacher,
        distill=20.0,
        cached_epochs=4,
        branches=[[1, 2], [2, 1]],
    )
    rows = train(samples, config, tmp_path / "pupil", device="cuda", progress=False).history
    assert rows[-1]["losses"]["distill"] < 0.8 * rows[0]["losses"]["distill"]


@pytest.mark.parametrize("backbone", ["scgnet_s", "mobilenet_v2"])
def test_it_embeds_as_the_cpu_does(
    make_model: Callable[..., ReidModel], tiny: Callable[..., recipes.Config], paths: list[str], backbone: str
) -> None:
    model = make_model(backbone=backbone)
    on_cpu = Embedder(model, device="cpu").embed(paths)
    on_card = Embedder(model, device="cuda").embed(paths)
    assert (on_cpu * on_card).sum(1).min() > 0.999, "cosine; convolutions in TF32"


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[World]:
    """A group of one process over NCCL and gloo."""
    store = f"file://{tmp_path}/store"
    dist.init_process_group("cpu:gloo,cuda:nccl", init_method=store, rank=0, world_size=1)
    yield World(0, 1)
    dist.destroy_process_group()


def test_nccl_carries_gradients(make_model: Callable[..., ReidModel], alone: World) -> None:
    """With one card there is one process: the calls are made, and change nothing."""
    device = torch.device("cuda", 0)
    model = make_model().to(device).train()
    plain = make_model().to(device).train()
    wrapped = nn.parallel.DistributedDataParallel(
        distributed.synchronise_batch_norms(model, device), device_ids=[device.index]
    )
    assert any(isinstance(module, nn.SyncBatchNorm) for module in wrapped.modules())
    pixels = torch.randint(0, 256, (6, 3, 64, 32), dtype=torch.uint8, device=device)
    for network in (wrapped, plain):
        after = network(pixels).after.float()
        if network is wrapped:
            after = distributed._Gather.apply(after, dataclasses.replace(alone))
        after.square().sum().backward()
    for (name, a), b in zip(model.named_parameters(), plain.parameters(), strict=True):
        if b.grad is not None:
            torch.testing.assert_close(a.grad, b.grad, rtol=1e-2, atol=1e-2 * float(b.grad.abs().max()), msg=name)


def test_a_card_that_is_not_there_is_refused() -> None:
    from reid.core.types import ReidError
    from reid.models.encoder import pick_device

    with pytest.raises(ReidError, match="cannot be used"):
        pick_device("cuda:99")


def test_a_trained_model_is_loaded_without_a_card(
    samples: list[Sample], tmp_path: Path, tiny: Callable[..., recipes.Config]
) -> None:
    model = load_model(train(samples, tiny(), tmp_path, device="cuda", progress=False).path)
    assert {value.device.type for value in model.state_dict().values()} == {"cpu"}
