"""Pre-training on a small folder of ImageNet's form that is drawn here: it learns, resumes bit for bit, and people
start from what it writes."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torchvision.transforms import v2

import run_reid
from reid.core.types import ReidError
from reid.models import backbones, checkpoint
from reid.models.backbones import BACKBONES
from reid.models.card import MEAN, STD, make_card
from reid.models.model import ReidModel
from reid.models.pretrained import read_pretrained
from reid.training import config as recipes
from reid.training import pretrain
from reid.training.config import PretrainConfig, as_dict
from reid.training.distributed import World
from reid.training.loop import Interrupted
from reid.training.pretrain import ImageFolder, Pretrained, read_folder
from tests.conftest import ROOT

SMALL = [
    "backbone=scgnet_s",
    "size=32",
    "resize=36",
    "scale=0.5",
    "jitter=0.2",
    "batch=8",
    "epochs=2",
    "lr=0.1",
    "validate_epochs=0",
    "workers=0",
    "precision=fp32",
]
CLASSES = ["bars", "discs", "hollow", "squares"]
COLOURS = [(220, 160, 60), (60, 200, 120), (200, 70, 200), (70, 120, 220)]
CPU = torch.device("cpu")


def small(*overrides: str) -> PretrainConfig:
    return recipes.load(ROOT / "configs/imagenet.yaml", [*SMALL, *overrides], kind=PretrainConfig)


def draw(label: int, rng: np.random.Generator) -> Image.Image:
    """40 x 32 pixels of noise with a shape in the colour of its class."""
    image = Image.fromarray(rng.integers(60, 120, (32, 40, 3)).astype(np.uint8))
    pen, colour = ImageDraw.Draw(image), tuple((np.array(COLOURS[label]) + rng.integers(-20, 21, 3)).tolist())
    x, y = rng.integers(5, 12), rng.integers(3, 8)
    box = (x, y, x + 21, y + 21)
    if label == 0:
        for top in range(y, y + 21, 6):
            pen.rectangle((x, top, x + 21, top + 2), fill=colour)
    elif label == 1:
        pen.ellipse(box, fill=colour)
    elif label == 2:
        pen.rectangle(box, outline=colour, width=2)
    else:
        pen.rectangle(box, fill=colour)
    return image


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four classes, 12 images of each to train on and 6 to validate on. For reading only."""
    root = tmp_path_factory.mktemp("shapes")
    rng = np.random.default_rng(0)
    for half, count in (("train", 12), ("val", 6)):
        for label, name in enumerate(CLASSES):
            (root / half / name).mkdir(parents=True)
            for i in range(count):
                draw(label, rng).save(root / half / name / f"{name}_{i:02}.JPEG", quality=95)
    return root


@pytest.fixture(scope="module")
def folder(root: Path) -> ImageFolder:
    return read_folder(root)


@pytest.fixture(scope="module")
def whole(folder: ImageFolder, tmp_path_factory: pytest.TempPathFactory) -> Pretrained:
    """A run that was never stopped: two epochs of six steps."""
    return pretrain.pretrain(folder, small(), tmp_path_factory.mktemp("runs") / "whole", device="cpu", progress=False)


def make(folder: ImageFolder, *overrides: str, world: World = World()) -> pretrain._Pretrain:  # noqa: B008 (frozen)
    """A run that nobody starts."""
    return pretrain._Pretrain(folder, small(*overrides), Path("nowhere"), world, CPU, False)


# ---- the run


def test_it_learns_far_above_chance(folder: ImageFolder, tmp_path: Path) -> None:
    config = small("epochs=14", "lr=0.05", "batch=12", "validate_epochs=3")
    made = pretrain.pretrain(folder, config, tmp_path, device="cpu", progress=False)
    assert made.top1 > 0.7  # chance: 0.25
    assert made.top5 == 1.0  # of four classes
    assert made.history[-1]["loss"] < made.history[0]["loss"]
    assert [row["epoch"] for row in made.history if row["top1"] is not None] == [3, 6, 9, 12, 14]
    assert (made.history[-1]["top1"], made.history[-1]["top5"]) == (made.top1, made.top5)


def test_stopped_after_any_step_and_resumed_gives_the_same_bits(
    folder: ImageFolder, whole: Pretrained, tmp_path: Path
) -> None:
    for stop in (1, 6, 9):  # within the first epoch, at the end of one, within another
        with pytest.raises(Interrupted, match=f"after step {stop} of 12"):
            pretrain.pretrain(folder, small(), tmp_path, device="cpu", progress=False, stop_after=stop)
    resumed = pretrain.pretrain(folder, small(), tmp_path, device="cpu", progress=False)
    one, two = load_file(whole.path), load_file(resumed.path)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert (resumed.top1, resumed.top5) == (whole.top1, whole.top5)
    assert [row["epoch"] for row in resumed.history] == [1, 2]
    assert not (tmp_path / "checkpoint.safetensors").exists()


def test_dropout_resumes_bit_for_bit_too(folder: ImageFolder, tmp_path: Path) -> None:
    config = small("backbone=mobilenet_v2", "epochs=1", "batch=16")
    whole = pretrain.pretrain(folder, config, tmp_path / "whole", device="cpu", progress=False)
    with pytest.raises(Interrupted):
        pretrain.pretrain(folder, config, tmp_path / "parts", device="cpu", progress=False, stop_after=1)
    torch.rand(7)  # the generator is not where it was
    resumed = pretrain.pretrain(folder, config, tmp_path / "parts", device="cpu", progress=False)
    one, two = load_file(whole.path), load_file(resumed.path)
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_finished_run_is_not_repeated_and_another_is_refused(folder: ImageFolder, whole: Pretrained) -> None:
    stamp, output = whole.path.stat().st_mtime_ns, whole.path.parent
    again = pretrain.pretrain(folder, small(), output, device="cpu", progress=False)
    assert again == whole
    assert whole.path.stat().st_mtime_ns == stamp
    with pytest.raises(ReidError, match=r"another recipe \(lr 0.1 there, 0.2 now\)"):
        pretrain.pretrain(folder, small("lr=0.2"), output, device="cpu", progress=False)
    fewer = folder._replace(val=pretrain.Labelled(folder.val.paths[:-1], folder.val.labels[:-1]))
    with pytest.raises(ReidError, match="other images"):
        pretrain.pretrain(fewer, small(), output, device="cpu", progress=False)


def test_the_card_and_the_scores_are_those_of_the_file(folder: ImageFolder, whole: Pretrained) -> None:
    state, card = checkpoint.read(whole.path, "backbone")
    assert (card["backbone"], card["classes"], card["images"]) == ("scgnet_s", CLASSES, 2 * 48)
    assert (card["top1"], card["top5"]) == (whole.top1, whole.top5)
    assert card["recipe"] == recipes.as_dict(small())
    assert card["train_seconds"] == whole.seconds > 0
    net = backbones.get("scgnet_s").build(4)
    net.load_state_dict(state)
    # top-1 by a plain loop over torchvision's own transforms
    seen = v2.Compose(
        [
            v2.Resize(36),
            v2.CenterCrop(32),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
        ]
    )
    hits = 0
    with torch.no_grad():
        for path, label in zip(folder.val.paths, folder.val.labels, strict=True):
            hits += int(net.eval()(seen(Image.open(path))[None]).argmax()) == label
    assert whole.top1 == pytest.approx(hits / len(folder.val.paths))


def test_people_start_from_it(tiny: Callable[..., recipes.Config], whole: Pretrained) -> None:
    weights, told = read_pretrained("scgnet_s", whole.path)
    assert "160 of 160 tensors of scgnet_s matched by name, 4 others left out" in told
    model = ReidModel(make_card(as_dict(tiny()), 5), weights)
    state = load_file(whole.path)
    trunk, branches = model.head.trunk.state_dict(), [branch.state_dict() for branch in model.head.branches]
    assert torch.equal(trunk["0.0.0.weight"], state["stem.0.0.weight"])
    assert torch.equal(trunk["2.squeeze.1.running_var"], state["stage6.0.squeeze.1.running_var"])
    tail = [state[key] for key in state if key.startswith(("stage6.1.", "stage7.", "conv8.")) and state[key].dim()]
    for branch in branches:
        own = list(branch.values())
        assert all(any(torch.equal(value, mine) for mine in own) for value in tail)


def test_the_program_trains_on_people_from_what_it_pretrained(
    root: Path, people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "pretrain"
    words = ["pretrain", "--data-root", str(root), "--output", str(output), "--set", *SMALL, "epochs=1", "batch=24"]
    assert run_reid.main(words) == 0
    assert f"backbone: {output}/backbone.safetensors, top-1 " in capsys.readouterr().out
    assert recipes.load(output / "config.yaml", kind=PretrainConfig) == small("epochs=1", "batch=24")
    first = json.loads((output / "run.json").read_text())
    assert (first["kind"], first["data_root"]) == ("pretraining", str(root))
    assert run_reid.main([*words, "lr=0.3"]) == 2
    assert "holds a different run (lr 0.1 there, 0.3 now)" in capsys.readouterr().err
    weights = output / "backbone.safetensors"
    tiny = ["--set", "epochs=0", "height=64", "width=32", "dim=8", "p=3", "k=2", "precision=fp32", "watch_epochs=0"]
    config = str(ROOT / "configs/synthetic.yaml")
    assert (
        run_reid.main(
            [
                "train",
                "--dataset",
                "market1501",
                "--data-root",
                str(people),
                "--config",
                config,
                "--output",
                str(tmp_path / "run"),
                "--pretrained",
                str(weights),
                *tiny,
            ]
        )
        == 0
    )
    assert "matched by name, 4 others left out" in capsys.readouterr().out
    model = load_file(tmp_path / "run/model.safetensors")
    assert torch.equal(model["head.trunk.0.0.0.weight"], load_file(weights)["stem.0.0.weight"])


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_trains_a_step(folder: ImageFolder, name: str) -> None:
    run = make(folder, f"backbone={name}", "batch=4")
    torch.manual_seed(0)
    run.model = run.network = backbones.get(name).build(4)
    run.amp = None
    optimizer = torch.optim.SGD(pretrain.parameter_groups(run.model, 4e-5), lr=0.1)
    before = {key: value.clone() for key, value in run.model.named_parameters()}
    run.losses(next(run._load(run._tasks(0)))).total.backward()
    optimizer.step()
    moved = {key for key, value in run.model.named_parameters() if not torch.equal(value, before[key])}
    assert {next(iter(before)), list(before)[-1]} <= moved  # from the first convolution to the classifier's bias
    assert all(value.isfinite().all() for value in run.model.parameters())


# ---- schedule, groups, scores


def test_the_rate_falls_linearly_to_zero(folder: ImageFolder) -> None:
    run = make(folder, "epochs=3", "lr=0.5")
    assert (run.epoch_steps, run.steps) == (6, 18)
    np.testing.assert_allclose([run.rate(step) for step in range(19)], np.linspace(0.5, 0, 19), atol=1e-12)


@pytest.mark.parametrize("name", ["scgnet_s", "osnet_x0_25"])
def test_biases_and_batch_norms_do_not_decay(name: str) -> None:
    net = backbones.get(name).build(4)
    decayed, free = pretrain.parameter_groups(net, 4e-5)
    assert (decayed["weight_decay"], free["weight_decay"]) == (4e-5, 0.0)
    kinds = (torch.nn.Conv2d, torch.nn.Linear)
    wanted = {id(module.weight) for module in net.modules() if isinstance(module, kinds)}
    assert {id(p) for p in decayed["params"]} == wanted
    assert {id(p) for p in free["params"]} == {id(p) for p in net.parameters()} - wanted


def test_top_1_and_top_5_are_those_of_a_plain_loop() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(200, 9, generator=generator), torch.randint(9, (200,), generator=generator)
    ranks = [
        sorted(range(9), key=lambda c: -row[c]).index(label) for row, label in zip(logits.tolist(), labels.tolist())
    ]
    assert pretrain.hits_of(logits, labels).tolist() == [sum(r < 1 for r in ranks), sum(r < 5 for r in ranks)]
    assert pretrain.hits_of(logits[:, :3], labels % 3).tolist()[1] == 200


def test_the_loss_is_the_smoothed_cross_entropy_of_normalised_pixels(folder: ImageFolder) -> None:
    run = make(folder, "batch=4")
    torch.manual_seed(0)
    run.model = run.network = backbones.get("scgnet_s").build(4)
    run.amp = None
    pixels, labels = next(run._load(run._tasks(0)))
    with torch.no_grad():
        total = run.losses((pixels, labels)).total
        scaled = (pixels.permute(0, 3, 1, 2) / 255 - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[
            :, None, None
        ]
        logs = nnf.log_softmax(run.model(scaled), 1)
    expected = -(0.9 * logs[range(4), labels] + 0.1 * logs.mean(1)).mean()
    torch.testing.assert_close(total, expected, rtol=1e-4, atol=1e-5)


# ---- the images of a step


def test_an_epoch_is_a_permutation_and_processes_share_it_without_gaps(folder: ImageFolder) -> None:
    alone = list(make(folder, "batch=10")._tasks(0))
    assert len(alone) == 2 * 4
    epochs = [[path for task in alone[i : i + 4] for path in task.paths] for i in (0, 4)]
    assert all(len(set(paths)) == 40 for paths in epochs)  # of 48: the last batch would not be full
    assert epochs[0] != epochs[1]
    label = {path: int(k) for path, k in zip(folder.train.paths, folder.train.labels, strict=True)}
    assert all(task.labels.tolist() == [label[path] for path in task.paths] for task in alone)
    shared = [list(make(folder, "batch=10", world=World(rank, 2))._tasks(0)) for rank in (0, 1)]
    for task, one, two in zip(alone, *shared, strict=True):
        assert one.paths + two.paths == task.paths
        assert (task.place, one.place, two.place) == ((task.place[0], 0), (task.place[0], 0), (task.place[0], 5))
    later = list(make(folder, "batch=10")._tasks(5))  # resumed
    assert [task.paths for task in later] == [task.paths for task in alone[5:]]


def test_pixels_depend_on_seed_step_and_position_alone(folder: ImageFolder) -> None:
    def batches(run: pretrain._Pretrain) -> list[torch.Tensor]:
        return [pixels for pixels, _ in run._load(run._tasks(run.steps - 3))]

    alone = batches(make(folder))
    assert [tuple(pixels.shape) for pixels in alone] == [(8, 32, 32, 3)] * 3
    halves = [batches(make(folder, world=World(rank, 2))) for rank in (0, 1)]
    by_workers = batches(make(folder, "workers=2"))
    for pixels, one, two, same in zip(alone, *halves, by_workers, strict=True):
        assert torch.equal(torch.cat((one, two)), pixels)
        assert torch.equal(same, pixels)
    assert not torch.equal(batches(make(folder, "seed=1"))[0], alone[0])


@pytest.mark.parametrize(("height", "width"), [(300, 400), (60, 400), (500, 20)])
def test_the_random_part_is_drawn_as_torchvision_draws_it(height: int, width: int) -> None:
    rng = np.random.default_rng(0)
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    mine = np.array([pretrain.crop_box(height, width, 0.08, rng) for _ in range(1500)])
    crop = v2.RandomResizedCrop(224)
    given = [crop.make_params([image]) for _ in range(1500)]
    theirs = np.array([[p["top"], p["left"], p["height"], p["width"]] for p in given])
    assert (mine[:, 0] + mine[:, 2] <= height).all() and (mine[:, 1] + mine[:, 3] <= width).all()
    assert (mine >= [0, 0, 1, 1]).all()
    error = np.sqrt((mine.var(0) + theirs.var(0)) / 1500)
    assert (np.abs(mine.mean(0) - theirs.mean(0)) <= 4.5 * error + 1e-9).all()
    np.testing.assert_allclose(mine.std(0), theirs.std(0), rtol=0.15, atol=1e-9)


def test_augmentation_changes_only_what_it_is_asked_to() -> None:
    image = draw(1, np.random.default_rng(5))
    plain = small("scale=1", "flip=0", "jitter=0")
    still = pretrain.augmented(image, plain, np.random.default_rng(1))
    mirrored = pretrain.augmented(image, small("scale=1", "flip=1", "jitter=0"), np.random.default_rng(1))
    assert np.array_equal(np.asarray(mirrored), np.asarray(still)[:, ::-1])
    jittered = np.asarray(pretrain.augmented(image, small("scale=1", "flip=0", "jitter=0.4"), np.random.default_rng(1)))
    ratio = jittered.mean() / np.asarray(still).mean()
    assert 0.55 < ratio < 1.45
    assert not math.isclose(ratio, 1, abs_tol=1e-3)


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_that_cannot_be_read_is_named_in_one_line(root: Path, tmp_path: Path, workers: int) -> None:
    shutil.copytree(root, tmp_path / "data")
    broken = tmp_path / "data/train/discs/discs_03.JPEG"
    broken.write_bytes(broken.read_bytes()[:-200])
    config = small(f"workers={workers}", "batch=48")  # it is in the first batch
    with pytest.raises(ReidError, match=r"discs_03.JPEG is not a whole image \(.*truncated") as caught:
        pretrain.pretrain(read_folder(tmp_path / "data"), config, tmp_path / "run", device="cpu", progress=False)
    assert "\n" not in str(caught.value)


# ---- the folder


def test_the_folder_is_read_in_the_order_of_names(folder: ImageFolder, root: Path) -> None:
    assert folder.classes == CLASSES
    assert (len(folder.train.paths), len(folder.val.paths)) == (48, 24)
    assert folder.train.paths == sorted(str(path) for path in (root / "train").rglob("*.JPEG"))
    assert [Path(path).parent.name for path in folder.val.paths] == [CLASSES[k] for k in folder.val.labels]
    assert folder.identity == read_folder(f"{root}/.").identity


def spoil(change: str, data: Path) -> None:
    if change == "no val":
        shutil.rmtree(data / "val")
    elif change == "flat val":
        for path in list((data / "val").iterdir()):
            shutil.rmtree(path)
        draw(0, np.random.default_rng(0)).save(data / "val/ILSVRC2012_val_00000001.JPEG")
    elif change == "other class":
        (data / "val/discs").rename(data / "val/disks")
    elif change == "missing class":
        shutil.rmtree(data / "val/squares")
    elif change == "empty class":
        for path in (data / "train/bars").iterdir():
            path.rename(path.with_suffix(".txt"))
    elif change == "one class":
        for path in [*data.glob("train/*"), *data.glob("val/*")]:
            if path.name != "bars":
                shutil.rmtree(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("no val", "no folder .*/val: looked for images in .*/train/CLASS/ and .*/val/CLASS/"),
        ("flat val", "val holds no class folders: each image belongs into the folder of its class"),
        ("other class", "train has 4 classes and val 4, 'discs' is in one of them only"),
        ("missing class", "train has 4 classes and val 3, 'squares' is in one of them only"),
        ("empty class", "no images in .*train/bars: looked for .*.bmp, .*.jpeg"),
        ("one class", "train has one class, 'bars'"),
    ],
)
def test_a_folder_of_another_form_says_what_was_looked_for(
    root: Path, tmp_path: Path, change: str, message: str
) -> None:
    shutil.copytree(root, tmp_path / "data")
    before = read_folder(tmp_path / "data").identity
    assert before == read_folder(root).identity
    spoil(change, tmp_path / "data")
    with pytest.raises(ReidError, match=message) as caught:
        read_folder(tmp_path / "data")
    assert "\n" not in str(caught.value)


def test_another_name_or_count_is_another_folder(root: Path, folder: ImageFolder, tmp_path: Path) -> None:
    shutil.copytree(root, tmp_path / "data")
    path = tmp_path / "data/val/bars/bars_00.JPEG"
    path.rename(path.with_name("bars_99.JPEG"))
    assert read_folder(tmp_path / "data").identity != folder.identity
    path.with_name("bars_99.JPEG").unlink()
    assert read_folder(tmp_path / "data").identity != folder.identity


@pytest.mark.parametrize(
    ("overrides", "processes", "message"),
    [
        (["batch=49"], 1, "a batch of 49 images needs as many, .*/train has 48"),
        (["batch=9"], 2, "a batch of 9 images cannot be shared by 2 processes"),
        (["batch=4"], 4, "a batch of 4 images on 4 processes leaves each but one"),
    ],
)
def test_a_batch_that_does_not_fit_is_refused(
    folder: ImageFolder, overrides: list[str], processes: int, message: str
) -> None:
    with pytest.raises(ReidError, match=message):
        make(folder, *overrides, world=World(0, processes))
