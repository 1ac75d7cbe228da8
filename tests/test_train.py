"""Training: resumes bit for bit, stops cleanly, chooses nothing by the test set, watches every head."""

from __future__ import annotations

import dataclasses
import json
import os
import resource
import signal
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from reid.core.types import ReidError, Sample
from reid.models import checkpoint
from reid.models.model import load_model
from reid.training import config as recipes
from reid.training import train as training
from reid.training.distributed import World
from reid.training.train import Interrupted, Trained, train
from reid.training.watch import spread

ROOT = Path(__file__).resolve().parent.parent
TINY = [
    "backbone=scgnet_s",
    "height=64",
    "width=32",
    "pad=4",
    "p=4",
    "k=2",
    "epochs=2",
    "warmup_epochs=1",
    "lr=0.02",
    "precision=fp32",
    "cache=memory",
    "watch_epochs=1",
    "dim=16",
    "triplet=1.0",
    "branches=[[1, 2], [2, 1], [3, 1]]",
]


def recipe(*overrides: str) -> recipes.Config:
    return recipes.load(ROOT / "configs/synthetic.yaml", [*TINY, *overrides])


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Eight people in plain clothes of two colours, two cameras, two images each."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("people")
    rng = np.random.default_rng(0)
    found = []
    for pid in range(1, 9):
        colours = rng.integers(30, 225, (2, 3))
        for camid in (1, 2):
            for shot in range(2):
                pixels = np.empty((64, 32, 3))
                pixels[:32], pixels[32:] = colours
                pixels += rng.normal(0, 15, pixels.shape) + 10 * camid
                path = folder / f"{pid:04}_c{camid}s1_{shot:06}_01.jpg"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path)
                found.append(Sample(str(path), pid, camid))
    return found


@pytest.fixture(scope="module")
def whole(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run that was never stopped: two epochs of four steps."""
    return train(samples, recipe(), tmp_path_factory.mktemp("runs") / "whole", progress=False)


@pytest.fixture(scope="module")
def short(samples: list[Sample], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A run of one epoch."""
    return train(samples, recipe("epochs=1"), tmp_path_factory.mktemp("runs") / "short", progress=False)


def weights(path: Path) -> dict[str, torch.Tensor]:
    return load_model(path).state_dict()


def assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_stopped_after_any_step_and_resumed_gives_the_same_bits(
    samples: list[Sample], whole: Trained, tmp_path: Path, precision: str
) -> None:
    config = recipe()
    if precision != "fp32":  # which `whole` has
        config = recipe(f"precision={precision}", "branches=[[1, 2], [2, 1]]")
        whole = train(samples, config, tmp_path / "whole", progress=False)
    for stop in (1, 4, 7):  # within the first epoch, at the end of one, within another
        with pytest.raises(Interrupted, match=f"after step {stop} of 8"):
            train(samples, config, tmp_path / "parts", progress=False, stop_after=stop)
        assert (tmp_path / "parts/checkpoint.safetensors").exists()
    resumed = train(samples, config, tmp_path / "parts", progress=False)
    assert_same(weights(whole.path), weights(resumed.path))
    assert [row["epoch"] for row in resumed.history] == [1, 2]
    assert not (tmp_path / "parts/checkpoint.safetensors").exists()


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(
    samples: list[Sample], short: Trained, tmp_path: Path
) -> None:
    two, other = (
        weights(train(samples, recipe("epochs=1", f"seed={seed}"), tmp_path / name, progress=False).path)
        for name, seed in (("two", 0), ("other", 1))
    )
    one = weights(short.path)
    assert_same(one, two)
    assert not torch.equal(one["head.reduction"], other["head.reduction"])


def test_training_learns_and_no_head_collapses(samples: list[Sample], tmp_path: Path) -> None:
    made = train(
        samples, recipe("epochs=12", "lr=0.05", "watch_epochs=4", "erase=0.0"), tmp_path / "run", progress=False
    )
    first, last = made.history[0], made.history[-1]
    assert last["losses"]["softmax"] < first["losses"]["softmax"]
    assert [head["name"] for head in last["heads"]][:2] == ["b1-global", "b2-global"]
    for head in last["heads"]:
        assert head["spread"] > 0.1, head
        assert head["rank1"] is not None
    assert last["rank1"] > 0.5  # of eight people


def test_spread_is_zero_for_a_constant_feature_and_large_for_a_varied_one() -> None:
    features = torch.randn(64, 2, 16, generator=torch.Generator().manual_seed(0))
    features[:, 0] = features[0, 0]
    constant, varied = spread(features).tolist()
    assert constant < 1e-3
    assert varied > 0.9


def test_finished_training_is_not_repeated(samples: list[Sample], short: Trained) -> None:
    stamp = short.path.stat().st_mtime_ns
    again = train(samples, recipe("epochs=1"), short.path.parent, progress=False)
    assert again.path.stat().st_mtime_ns == stamp
    assert again.history == short.history
    assert again.seconds == short.seconds


def test_a_checkpoint_of_another_recipe_or_of_other_images_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(Interrupted):
        train(samples, recipe(), tmp_path, progress=False, stop_after=1)
    with pytest.raises(ReidError, match=r"another recipe \(lr 0.02 there, 0.01 now\)"):
        train(samples, recipe("lr=0.01"), tmp_path, progress=False)
    with pytest.raises(ReidError, match="other images"):
        train(samples[:-1], recipe(), tmp_path, progress=False)
    file = tmp_path / "checkpoint.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(ReidError, match="damaged"):
        train(samples, recipe(), tmp_path, progress=False)


def test_a_loss_that_is_not_finite_stops_and_names_step_and_head(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"the (softmax|triplet) loss of b\d-\w+ is (nan|inf) at step \d+"):
        train(samples, recipe("lr=1e6", "lr_start=1e6", "epochs=20"), tmp_path, progress=False)
    assert not (tmp_path / "model.safetensors").exists()


def test_holdout_keeps_identities_apart_and_takes_the_best_on_them(samples: list[Sample], tmp_path: Path) -> None:
    config = recipe("holdout=0.25", "epochs=3")
    made = train(samples, config, tmp_path, progress=False)
    card = load_model(made.path).card
    assert card["num_classes"] == 6
    assert card["data"] == {"name": "", "images": 24, "identities": 6, "cameras": 2, "held_out": 0.25}
    best = max(made.history, key=lambda row: row["mAP"])
    assert card["step"] == best["step"]
    trained, watched = training.divide(samples, config)
    assert not {s.pid for s in trained} & {s.pid for s in watched}
    assert len(trained) + len(watched) == len(samples)


def test_the_card_says_how_the_model_was_made(short: Trained) -> None:
    card = load_model(short.path).card
    assert card["recipe"] == recipes.as_dict(recipe("epochs=1"))
    assert card["data"]["identities"] == 8
    assert card["input_size"] == [64, 32]
    assert card["train_seconds"] > 0


def test_no_epochs_give_the_untrained_network(samples: list[Sample], tmp_path: Path) -> None:
    made = train(samples, recipe("epochs=0"), tmp_path, progress=False)
    assert made.history == []
    assert int(weights(made.path)["head.neck.num_batches_tracked"]) == 0


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["p=9"], "a batch of 9 identities needs as many"),
        (["height=16", "width=16"], "too small for the strides"),
        (["precision=fp16"], "needs a CUDA device"),
        (["holdout=0.9"], "too few to train on"),
        (["holdout=0.2", "watch_epochs=0"], "watch_epochs to 1 or more"),
        (["holdout=0.2", "epochs=0"], "watch_epochs to 1 or more"),
    ],
)
def test_what_cannot_be_trained_says_why(
    samples: list[Sample], tmp_path: Path, overrides: list[str], message: str
) -> None:
    with pytest.raises(ReidError, match=message):
        train(samples, recipe(*overrides), tmp_path, progress=False)


def test_holdout_of_people_seen_by_one_camera_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    one_camera = [sample._replace(camid=1) for sample in samples]
    with pytest.raises(ReidError, match="no held-out identity was seen by two cameras"):
        train(one_camera, recipe("holdout=0.25", "epochs=1"), tmp_path, progress=False)


def test_one_identity_or_one_image_each_is_refused(samples: list[Sample], tmp_path: Path) -> None:
    with pytest.raises(ReidError, match="at least two identities"):
        train([s for s in samples if s.pid == 1], recipe(), tmp_path, progress=False)
    with pytest.raises(ReidError, match="has one image"):
        train(samples[::4], recipe(), tmp_path, progress=False)


def test_logs_every_head_and_writes_tensorboard(short: Trained) -> None:
    output = short.path.parent
    (row,) = [json.loads(line) for line in (output / "history.jsonl").read_text().splitlines()]
    assert len(row["heads"]) == 8
    assert 0 <= row["data_wait"] <= 1
    assert row["images_per_second"] > 0
    assert list((output / "tensorboard").glob("events*"))


def test_ctrl_c_ends_after_the_step_with_a_checkpoint(samples: list[Sample], tmp_path: Path) -> None:
    config, before = recipe("epochs=400", "watch_epochs=0"), signal.getsignal(signal.SIGINT)

    def press() -> None:
        deadline = time.monotonic() + 60
        while not (tmp_path / "history.jsonl").exists() and time.monotonic() < deadline:  # an epoch is done
            time.sleep(0.05)
        os.kill(os.getpid(), signal.SIGINT)

    hand = threading.Thread(target=press)
    hand.start()
    with pytest.raises(KeyboardInterrupt, match="stopped after step") as stop:
        train(samples, config, tmp_path, progress=False)
    hand.join()
    assert signal.getsignal(signal.SIGINT) is before
    step = int(str(stop.value).split()[3])
    with pytest.raises(Interrupted, match=f"after step {step + 1} of"):
        train(samples, config, tmp_path, progress=False, stop_after=step + 1)


def test_a_disk_that_fills_loses_nothing(samples: list[Sample], whole: Trained, tmp_path: Path) -> None:
    """A file may not grow beyond 100 kB, which a checkpoint needs: what the kernel says is what a full disk gives."""
    config = recipe()
    with pytest.raises(Interrupted):
        train(samples, config, tmp_path / "run", progress=False, stop_after=2)
    limits, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises((ReidError, OSError), match="cannot be written|too large"):
            train(samples, config, tmp_path / "run", progress=False, stop_after=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    with pytest.raises(Interrupted, match="after step 3"):
        train(samples, config, tmp_path / "run", progress=False, stop_after=3)
    resumed = train(samples, config, tmp_path / "run", progress=False)
    assert_same(weights(resumed.path), weights(whole.path))


def test_it_starts_from_a_model_of_its_own(samples: list[Sample], short: Trained, tmp_path: Path) -> None:
    second = train(samples[:16], recipe("epochs=0", "seed=1", f"pretrained={short.path}"), tmp_path / "second")
    a, b = weights(short.path), weights(second.path)
    different = [name for name in a if not torch.equal(a[name], b[name])] if a.keys() == b.keys() else None
    assert different == ["head.classifier"], "four people have a classifier of their own"
    with pytest.raises(ReidError, match=r"another architecture \(dim 16 there, 8 here\)"):
        train(samples, recipe(f"pretrained={short.path}", "dim=8"), tmp_path / "third", progress=False)


def test_a_teacher_is_followed(samples: list[Sample], whole: Trained, tmp_path: Path) -> None:
    words = (f"teacher={whole.path}", "distill=50.0", "triplet=0", "epochs=6", "seed=1", "watch_epochs=0")
    rows = train(samples, recipe(*words), tmp_path / "pupil", progress=False).history
    assert rows[-1]["losses"]["distill"] < 0.8 * rows[0]["losses"]["distill"]


def test_a_teacher_sees_the_same_crop_at_its_own_size(samples: list[Sample], tmp_path: Path) -> None:
    """A pupil of half the size: its crops are the teacher's, resized, and so is the padding."""
    config = recipe("teacher=one", "distill=1.0", "height=32", "width=32", "pad=2", "branches=[[1, 2]]", "erase=0")
    one = train(samples, recipe("epochs=0", "branches=[[1, 2]]"), tmp_path / "one", progress=False).path
    run = training._Run(
        samples,
        dataclasses.replace(config, teacher=[str(one)]),
        tmp_path / "pupil",
        "",
        World(),
        torch.device("cpu"),
        False,
    )
    run.prepare()
    assert run.teaching.by_feature
    pixels = run.make_batch(0).pixels
    assert pixels.shape == (8, 3, 64, 32)
    assert run.teaching.fit(pixels).shape == (8, 3, 32, 32)
    black = (pixels == 0).all((1, 3)).sum(1)
    assert 0 < black.max() <= 4, "twice the pupil's padding"
    assert np.isfinite(run.go(None).history[-1]["losses"]["distill"])


def test_a_batch_that_comes_again_is_taught_once(
    samples: list[Sample], short: Trained, whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The teacher sees `cached_epochs` of four steps; what it said of them is as good as asking again, also resumed."""
    teacher = tmp_path / "teacher.safetensors"
    teacher.write_bytes(short.path.read_bytes())
    words = (f"teacher={teacher}", "distill=5.0", "epochs=4", "seed=1")
    config = recipe(*words, "cached_epochs=2")
    run = training._Run(samples, config, tmp_path / "whole", "", World(), torch.device("cpu"), False)
    run.prepare()
    (model,) = (teacher.model for teacher in run.teachers)
    asked = []
    features = model.features
    monkeypatch.setattr(model, "features", lambda pixels: asked.append(pixels) or features(pixels))
    run.run(None)
    assert len(asked) == 2 * run.epoch_steps
    now, then = run.make_batch(1), run.make_batch(1 + 2 * run.epoch_steps)
    assert torch.equal(now.pixels, then.pixels)
    assert torch.equal(now.labels, then.labels)
    run._finish()
    with pytest.raises(Interrupted):
        train(samples, config, tmp_path / "parts", progress=False, stop_after=13)
    teacher.write_bytes(whole.path.read_bytes())
    with pytest.raises(ReidError, match="is of a run with another teacher, or they have changed since"):
        train(samples, config, tmp_path / "parts", progress=False)
    teacher.write_bytes(short.path.read_bytes())
    again = weights(train(samples, config, tmp_path / "parts", progress=False).path)
    assert all(torch.equal(value, again[name]) for name, value in weights(tmp_path / "whole/model.safetensors").items())


def test_joined_images_are_taught_only(
    samples: list[Sample], short: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every other step; what an epoch's row tells of labels is the mean over the others."""
    config = recipe(f"teacher={short.path}", "distill=5.0", "epochs=1", "cutmix=0.5")
    run = training._Run(samples, config, tmp_path / "joined", "", World(), torch.device("cpu"), False)
    seen = []
    losses = training._Run.losses

    def spy(self: Any, batch: Any) -> Any:
        step = losses(self, batch)
        seen.append({name: (float(term.values.detach().mean()), term.given) for name, term in step.terms.items()})
        return step

    monkeypatch.setattr(training._Run, "losses", spy)
    (row,) = run.go(None).history
    assert [step["softmax"][1] for step in seen] == [True, False] * (len(seen) // 2)
    assert all(step["distill"][1] for step in seen)
    for name, steps in (("softmax", seen[::2]), ("distill", seen)):
        assert row["losses"][name] == pytest.approx(np.mean([step[name][0] for step in steps]), rel=1e-5)
    with pytest.raises(ReidError, match="cutmix must be 0 without a teacher"):
        recipe("cutmix=0.5")


def test_augmented_on_the_device_a_batch_is_the_same(samples: list[Sample], tmp_path: Path) -> None:
    config = recipe("jitter=0.2", "mixstyle=0.5", "grey=0.5")
    run = training._Run(samples, config, tmp_path, "", World(), torch.device("cpu"), False)
    run.prepare()
    here, labels = run._arrived(run.make_batch(1))
    run.augments_on_device = True
    batch = run.make_batch(1)
    assert batch.table is not None
    there, same_labels = run._arrived(batch)
    assert torch.equal(labels, same_labels)
    difference = (here.int() - there.int()).abs()
    assert difference.max() <= 2, "two roundings"
    assert (difference > 0).float().mean() < 1e-3
    assert not torch.equal(batch.pixels, there)


def test_frozen_parts_keep_weights_and_statistics(samples: list[Sample], short: Trained, tmp_path: Path) -> None:
    config = recipe("freeze=2", f"pretrained={short.path}", "seed=1")
    before, after = weights(short.path), weights(train(samples, config, tmp_path / "run", progress=False).path)
    frozen = [name for name in before if name.startswith(("head.trunk.0.", "head.trunk.1."))]
    assert frozen and all(torch.equal(before[name], after[name]) for name in frozen)
    moved = [name for name in before if name.startswith("head.trunk.2.") and before[name].is_floating_point()]
    assert moved and not any(torch.equal(before[name], after[name]) for name in moved)
    with pytest.raises(ReidError, match="freeze=4: the trunk of scgnet_s has 3 parts"):
        train(samples, recipe("freeze=4"), tmp_path / "more", progress=False)


def test_the_model_is_the_mean_of_the_last_weights(samples: list[Sample], tmp_path: Path) -> None:
    """The mean over the steps of the last epoch, also where the run is stopped among them."""
    config = recipe("epochs=2", "average_epochs=1")
    last = training._Run(samples, config, tmp_path, "", World(), torch.device("cpu"), False)
    seen: list[dict[str, torch.Tensor]] = []
    after = last.after_step

    def note() -> None:
        seen.append({name: value.clone() for name, value in last.model.state_dict().items()})
        after()

    last.after_step = note  # type: ignore[method-assign]
    whole = weights(last.go(None).path)
    for name, value in whole.items():
        if value.is_floating_point():
            mean = torch.stack([state[name] for state in seen[4:]]).double().mean(0)
            torch.testing.assert_close(value.double(), mean, atol=1e-6, rtol=1e-5)
    with pytest.raises(Interrupted):
        train(samples, config, tmp_path / "parts", progress=False, stop_after=6)
    assert_same(whole, weights(train(samples, config, tmp_path / "parts", progress=False).path))


BAGOFTRICKS = (
    "head=bagoftricks",
    "branches=[[1, 2], [2, 1], [3, 1]]",
    "dim=256",
    "optimizer=adam",
    "nesterov=false",
    "schedule=steps",
    "milestones=[1]",
    "lr=0.001",
    "lr_start=0.0001",
    "center=0.0005",
)


def test_bagoftricks_resumes_bit_for_bit_and_steps_down(samples: list[Sample], tmp_path: Path) -> None:
    """Adam's moments and count, and the centres, are in a checkpoint."""
    config = recipe(*BAGOFTRICKS, "warmup_epochs=0.5")
    whole = train(samples, config, tmp_path / "whole", progress=False)
    for stop in (1, 5):
        with pytest.raises(Interrupted):
            train(samples, config, tmp_path / "parts", progress=False, stop_after=stop)
    assert_same(weights(whole.path), weights(train(samples, config, tmp_path / "parts", progress=False).path))
    assert [row["lr"] for row in whole.history] == pytest.approx([0.001, 0.0001])
    assert set(whole.history[0]["losses"]) == {"softmax", "triplet", "center"}
    run = training._Run(samples, config, tmp_path / "rates", "", World(), torch.device("cpu"), False)
    run.prepare()
    assert isinstance(run.optimizer, torch.optim.Adam)
    assert [run.rate(step) for step in (0, 1, 2, 3, 4, 7)] == pytest.approx([1e-4, 5.5e-4, 1e-3, 1e-3, 1e-4, 1e-4])


def test_a_checkpoint_of_0_1_goes_on(samples: list[Sample], whole: Trained, tmp_path: Path) -> None:
    """As that version wrote it: the old keys, none of the new ones, and momentum under its name of then."""
    with pytest.raises(Interrupted):
        train(samples, recipe(), tmp_path, progress=False, stop_after=3)
    file = tmp_path / "checkpoint.safetensors"
    state, text = checkpoint.read(file, "checkpoint")
    state = {name.replace("momentum_buffer.", "momentum.", 1): value for name, value in state.items()}
    old = {new: old for old, new in recipes.RENAMED.items()}
    added = (
        "wants_pretrained",
        "head",
        "global_softmax",
        "last_stride",
        "schedule",
        "milestones",
        "gamma",
        "optimizer",
        "center_update",
        "grey",
        "feature_mixstyle",
        "mixstyle_alpha",
        "mixstyle_after",
        "balance_cameras",
        "balance_domains",
    )
    values = {old.get(key, key): value for key, value in text["run"]["recipe"].items() if key not in added}
    values["triplet_after"] = values["triplet_after"] == "after"
    checkpoint.write(file, "checkpoint", state, text | {"run": text["run"] | {"recipe": values}})
    assert_same(weights(whole.path), weights(train(samples, recipe(), tmp_path, progress=False).path))
