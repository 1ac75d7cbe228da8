"""Training on several processes, over gloo: together they do what one does alone. Killed ones lose nothing."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import run_reid
from reid.core.types import ReidError, Sample
from reid.gallery import Gallery
from reid.gallery.add_images import _part
from reid.models.embedder import Embedder
from reid.models.model import ReidModel, load_model, save_model
from reid.training import loop
from reid.training.augment import augment, draw
from reid.training.distributed import World, synchronise_batch_norms
from reid.training.loop import Interrupted
from reid.training.train import _Run, train
from tests.forks import Child, Forks
from tests.test_train import recipe

RECIPE = ("triplet=1.0", "center=0.01", "circle=0.1", "epochs=2", "watch_epochs=2", "p=4", "average_epochs=1")


def of(paths: list[str]) -> list[Sample]:
    """The training images of `people`: six persons, two cameras, two images each."""
    names = [Path(path).name for path in paths]
    return [Sample(path, int(name[:4]), int(name[6])) for path, name in zip(paths, names, strict=True)]


def gradients(samples: list[Sample], folder: Path) -> dict[str, torch.Tensor]:
    """Of the first step, as the optimiser would see them, with the batch norms frozen."""
    from reid.training import distributed

    folder.mkdir(exist_ok=True)
    run = _Run(samples, recipe(*RECIPE), folder, "", distributed.join(), torch.device("cpu"), False)
    run.prepare()
    for module in run.model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()
    run.losses(run.make_batch(0)).total.backward()
    return {name: p.grad for name, p in run.model.named_parameters() if p.grad is not None}


def normalised(world: World) -> dict[str, torch.Tensor]:
    """Gradients and statistics of batch norms, of maps and of vectors, that see the images of all processes."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 5), nn.BatchNorm1d(5), nn.Tanh()
    )
    images = torch.randn(12, 3, 8, 8) + torch.arange(12.0).view(12, 1, 1, 1)
    if world.size > 1:
        synchronise_batch_norms(net, torch.device("cpu"))
        net = nn.parallel.DistributedDataParallel(net)  # type: ignore[assignment]
    net(images[world.part(12)]).square().mean().backward()
    found = {name.removeprefix("module."): p.grad for name, p in net.named_parameters() if p.grad is not None}
    buffers = {name.removeprefix("module."): value for name, value in net.named_buffers() if "running" in name}
    return {**found, **buffers}


def worker(place: str) -> None:
    """What each of the two processes runs; the first one keeps what the test looks at."""
    from reid.training import distributed

    folder = Path(place)
    samples = of(json.loads((folder / "paths.json").read_text()))
    world = distributed.join()
    rows = world.gather(torch.full((2, 3), float(world.rank)))
    results = {"gradients": gradients(samples, folder / "run"), "normalised": normalised(world), "rows": {"rows": rows}}
    if world.first:
        for name, found in results.items():
            save_file({key: value.contiguous() for key, value in found.items()}, folder / f"{name}.safetensors")
    try:
        train(samples, recipe(*RECIPE), folder / "stopped", progress=False, stop_after=3)
    except Interrupted as stop:
        print(stop)
    try:
        train(samples, recipe(*RECIPE, "p=3", "k=3"), folder / "odd", progress=False)
    except ReidError as error:
        print(error)


def long_run(place: str, name: str, seconds: str) -> None:
    """A run that writes a checkpoint every so many seconds."""
    loop.CHECKPOINT_SECONDS = float(seconds)
    samples = of(json.loads((Path(place) / "paths.json").read_text()))
    config = recipe(*RECIPE, "branches=[[2, 1]]", "epochs=20", "watch_epochs=4")
    train(samples, config, Path(place) / name, progress=False)


def index_part(*words: str) -> None:
    """`index`, and how many images this process embedded itself."""
    embedded, embed = [], Embedder.embed_pixels

    def counted(embedder: Embedder, pixels: np.ndarray) -> np.ndarray:
        embedded.append(len(pixels))
        return embed(embedder, pixels)

    Embedder.embed_pixels = counted  # type: ignore[method-assign]
    code = run_reid.main(["index", *words])
    print("embedded", sum(embedded), file=sys.stderr)
    sys.exit(code)


CALL = "import sys; from tests import test_processes; getattr(test_processes, sys.argv[1])(*sys.argv[2:])"
PROGRAM = "import runpy; runpy.run_path('run_reid.py', run_name='__main__')"


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("torch.utils.tensorboard", "run_reid", "tests.test_processes") as forks:
        yield forks


def start(forks: Forks, code: str, *arguments: object) -> list[Child]:
    """Two processes that train together, as torchrun starts them."""
    world = {"WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    return [forks.start(code, *arguments, RANK=rank, LOCAL_RANK=rank, **world) for rank in range(2)]


def finish(both: list[Child]) -> list[str]:
    """What each of them said."""
    codes, said = zip(*(child.finish() for child in both))
    assert codes == (0, 0), said
    return list(said)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture(scope="module")
def samples(paths: list[str]) -> list[Sample]:
    return of(paths)


@pytest.fixture(scope="module")
def pair(forks: Forks, paths: list[str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """What two processes left in their folder, and what each said."""
    folder = tmp_path_factory.mktemp("pair")
    (folder / "paths.json").write_text(json.dumps(paths))
    return folder, finish(start(forks, CALL, "worker", folder))


def test_two_processes_give_the_gradients_of_one(
    pair: tuple[Path, list[str]], samples: list[Sample], tmp_path: Path
) -> None:
    together, alone = load_file(pair[0] / "gradients.safetensors"), gradients(samples, tmp_path)
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        assert (together[name] - value).abs().max() <= 1e-5 * max(1.0, value.abs().max()), name


def test_synchronised_batch_norms_see_the_whole_batch(pair: tuple[Path, list[str]]) -> None:
    together, alone = load_file(pair[0] / "normalised.safetensors"), normalised(World())
    assert together.keys() == alone.keys()
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, atol=1e-6, rtol=1e-5)


def test_rows_are_gathered_in_the_order_of_the_processes(pair: tuple[Path, list[str]]) -> None:
    assert load_file(pair[0] / "rows.safetensors")["rows"][:, 0].tolist() == [0, 0, 1, 1]


def test_it_goes_on_with_another_number_of_processes_and_says_what_changes(
    pair: tuple[Path, list[str]], samples: list[Sample], capsys: pytest.CaptureFixture[str]
) -> None:
    folder, said = pair
    assert all("stopped after step 3 of 6" in words for words in said)
    train(samples, recipe(*RECIPE), folder / "stopped", progress=False)
    told = capsys.readouterr().out
    assert "going on from step 3 of 6" in told
    assert "1 process(es) now, 2 before" in told
    assert "a batch norm sees 8 images now, 4 before" in told


def test_a_batch_that_cannot_be_shared_is_refused(pair: tuple[Path, list[str]]) -> None:
    assert "a batch of 9 images cannot be shared by 2 processes" in pair[1][0]


@pytest.mark.parametrize("size", [1, 2, 4])
def test_processes_share_a_batch_without_overlap_or_gap(size: int) -> None:
    images = list(np.random.default_rng(0).integers(0, 256, (8, 32, 16, 3), np.uint8))
    draws = draw(8, (32, 16), np.random.default_rng(1), pad=3, flip=0.5, erase=0.5, jitter=0.2)
    whole = augment(images, draws, fill=(1, 2, 3))
    parts = [augment(images, draws, fill=(1, 2, 3), part=World(rank, size).part(8)) for rank in range(size)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


def test_torchrun_trains_by_the_program(forks: Forks, people: Path, tmp_path: Path) -> None:
    words = [
        "train",
        "--dataset",
        "market1501",
        "--data-root",
        str(people),
        "--config",
        "configs/synthetic.yaml",
        "--output",
        str(tmp_path / "run"),
        "--set",
        "p=2",
        "k=2",
        "epochs=1",
        "height=64",
        "width=32",
        "dim=8",
        "watch_epochs=0",
    ]
    said = finish(start(forks, PROGRAM, *words))
    assert f"model: {tmp_path}/run/model.safetensors" in said[0]
    assert said[1] == "", "only the first process speaks"
    assert load_model(tmp_path / "run/model.safetensors").card["data"]["identities"] == 6


def test_torchrun_indexes_by_the_program(
    forks: Forks, paths: list[str], make_model: Callable[..., ReidModel], tmp_path: Path
) -> None:
    """Each process embeds its part; the gallery is that of one process."""
    model = tmp_path / "model.safetensors"
    save_model(make_model(), model)
    said = finish(start(forks, CALL, "index_part", *paths[:23], "--weights", model, "--gallery", tmp_path / "g"))
    assert "23 images added, 23 in all" in said[0]
    assert said[0].endswith("embedded 11\n")
    assert said[1] == "embedded 12\n", "only the first process speaks"
    assert not (tmp_path / ".g-embedding").exists()
    gallery = Gallery.open(tmp_path / "g")
    assert [entry.path for entry in gallery.entries()] == paths[:23]
    alone = Embedder(load_model(model)).embed(paths[:23])
    np.testing.assert_allclose(gallery.vectors(range(23)), alone, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_processes_share_images_without_overlap_or_gap(size: int) -> None:
    parts = [_part([str(n) for n in range(7)], rank, size) for rank in range(size)]
    assert [path for part in parts for path in part] == [str(n) for n in range(7)]
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_killed_at_any_moment_it_goes_on_from_a_whole_checkpoint(
    forks: Forks, paths: list[str], tmp_path: Path
) -> None:
    """SIGKILL ten times while checkpoints are written; the end is that of a run which was left alone."""
    (tmp_path / "paths.json").write_text(json.dumps(paths))
    moments = random.Random(0)
    codes = []
    for kill in [True] * 10 + [False]:
        child = forks.start(CALL, "long_run", tmp_path, "run", 0)  # after every step: it is nearly always writing
        if kill:
            started = time.monotonic()
            checkpoint = tmp_path / "run/checkpoint.safetensors"
            before = checkpoint.stat().st_mtime_ns if checkpoint.exists() else 0
            while not (checkpoint.exists() and checkpoint.stat().st_mtime_ns > before):  # it has gone on
                assert time.monotonic() - started < 120
                time.sleep(0.005)
            time.sleep(moments.uniform(0, 0.1))
            os.kill(child.pid, signal.SIGKILL)
        codes.append(child.finish()[0])
    codes.append(forks.start(CALL, "long_run", tmp_path, "whole", 3600).finish()[0])
    assert codes == [-signal.SIGKILL] * 10 + [0, 0]
    assert not list((tmp_path / "run").glob(".*.partial")), "nothing half-written is left"
    killed, alone = (load_model(tmp_path / name / "model.safetensors").state_dict() for name in ("run", "whole"))
    assert all(torch.equal(killed[name], alone[name]) for name in alone)
    history = [json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in history] == list(range(1, 21))
