"""The synthetic people: reproducible, in Market-1501's layout, with a signal of persons and a louder one of cameras."""

from __future__ import annotations

import json
import subprocess
import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import synthetic
from reid.core.types import DISTRACTOR, JUNK, ReidError, Sample, Splits

MANIFEST = "synthetic.json"
SMALL: dict[str, Any] = {"train_ids": 5, "test_ids": 9, "distractors": 8, "junk": 5}
TINY: dict[str, Any] = {
    "train_ids": 2,
    "test_ids": 2,
    "distractors": 2,
    "junk": 2,
    "cameras": 2,
    "cameras_per_person": (2, 2),
}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The parent of a small set. For reading only."""
    folder = tmp_path_factory.mktemp("people")
    synthetic.draw(folder / "synthetic", **SMALL)
    return folder


@pytest.fixture(scope="module")
def splits(root: Path) -> Splits:
    return synthetic.read(root)


def everything(folder: Path) -> dict[str, bytes]:
    """Every image of a set: its place and its bytes."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}


def pixels(samples: list[Sample]) -> np.ndarray:
    """(N, H, W, 3) float32 in [0, 1]."""
    return np.stack([np.asarray(Image.open(sample.path), np.float32) for sample in samples]) / 255


def persons(splits: Splits) -> list[Sample]:
    return [sample for sample in (*splits.train, *splits.query, *splits.gallery) if sample.pid > 0]


def distances(features: np.ndarray) -> np.ndarray:
    """(N, D) -> (N, N) Euclidean, infinite from a row to itself."""
    apart = np.linalg.norm(features[:, None] - features[None], axis=2)
    np.fill_diagonal(apart, np.inf)
    return apart


def test_layout_counts_and_names(root: Path, splits: Splits):
    folder = root / "synthetic"
    assert {path.name for path in folder.iterdir()} == {
        "bounding_box_train",
        "bounding_box_test",
        "query",
        MANIFEST,
    }
    assert (splits.name, splits.root, splits.official_split, splits.warnings) == ("synthetic", str(folder), None, [])
    assert len({sample.pid for sample in splits.train}) == 5
    assert len({sample.pid for sample in splits.query}) == 9
    files = json.loads((folder / MANIFEST).read_text())["files"]
    assert [files[name] for name in ("bounding_box_train", "query", "bounding_box_test")] == [
        len(splits.train),
        len(splits.query),
        len(splits.gallery),
    ]
    for sample in (*splits.train, *splits.query, *splits.gallery):
        who, where, frame, box = Path(sample.path).stem.split("_")
        assert (int(who), where, len(frame), len(box)) == (sample.pid, f"c{sample.camid}s1", 6, 2)
        with Image.open(sample.path) as image:
            assert (image.size, image.mode, image.format) == ((64, 128), "RGB", "JPEG")
    for samples in splits[2:5]:
        assert [sample.path for sample in samples] == sorted(sample.path for sample in samples)


def test_protocol(splits: Splits):
    train, query = ({sample.pid for sample in samples} for samples in (splits.train, splits.query))
    assert not train & {sample.pid for sample in (*splits.query, *splits.gallery)}
    assert min(train | query) > 0
    assert sum(sample.pid == DISTRACTOR for sample in splits.gallery) == 8
    assert sum(sample.pid == JUNK for sample in splits.gallery) == 5
    assert {sample.pid for sample in splits.gallery} - {JUNK, DISTRACTOR} == query
    for sample in splits.query:
        assert any(other.pid == sample.pid and other.camid != sample.camid for other in splits.gallery)
    assert len({(sample.pid, sample.camid) for sample in splits.query}) == len(splits.query)  # one a person and camera
    for pid in train | query:
        assert 3 <= len({sample.camid for sample in persons(splits) if sample.pid == pid}) <= 6


def test_found_by_its_own_folder_or_its_parent(root: Path, splits: Splits):
    assert synthetic.read(root / "synthetic") == splits
    assert datasets.read("synthetic", root) == splits


def test_everything_follows_from_the_seed(tmp_path: Path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        synthetic.draw(tmp_path / name, seed=seed, **TINY)
    a, b, c = (everything(tmp_path / name) for name in "abc")
    assert a == b
    assert not set(a.values()) & set(c.values())


def test_a_person_is_the_same_in_a_larger_set(root: Path, tmp_path: Path):
    synthetic.draw(tmp_path / "fewer", train_ids=2, test_ids=2, distractors=3, junk=0)
    larger, fewer = everything(root / "synthetic"), everything(tmp_path / "fewer")
    assert fewer.items() <= larger.items()


def test_no_two_images_are_equal(root: Path):
    images = everything(root / "synthetic")
    assert len(set(images.values())) == len(images)


def test_cameras_lie_far_apart(splits: Splits):
    samples = persons(splits)
    colours = pixels(samples).mean((1, 2))
    camids = np.array([sample.camid for sample in samples])
    of_camera = {int(camid): colours[camids == camid] for camid in np.unique(camids)}
    assert sorted(of_camera) == [1, 2, 3, 4, 5, 6]
    for a, b in combinations(of_camera.values(), 2):
        # in brightness or in the balance of the channels, by at least 0.03 of the range
        assert np.abs(a.mean(0) - b.mean(0)).max() > 0.03


def test_raw_colours_find_the_camera_and_not_the_person(splits: Splits):
    """What makes it hard: in a colour histogram, an image's neighbours are its camera's, whoever is on them."""
    samples = persons(splits)
    cells = (pixels(samples) * 7.99).astype(int) @ [64, 8, 1]
    histograms = np.stack([np.bincount(image.ravel(), minlength=512) ** 0.5 for image in cells])
    pids, camids = (np.array([getattr(sample, key) for sample in samples]) for key in ("pid", "camid"))
    apart = distances(histograms)
    apart[(pids[:, None] == pids) & (camids[:, None] == camids)] = np.inf  # a track says nothing of either
    nearest = apart.argmin(1)
    same_camera, same_person = (camids[nearest] == camids).mean(), (pids[nearest] == pids).mean()
    assert same_camera > 0.7
    assert same_person < 0.2


def test_clothes_tell_people_apart_within_a_camera(splits: Splits):
    """What makes it possible: seen by one camera, somebody's clothes are nearer to their own than to another's."""
    samples = persons(splits)
    images = pixels(samples)
    clothes = np.concatenate([images[:, 32:60, 24:40].mean((1, 2)), images[:, 72:100, 24:40].mean((1, 2))], 1)
    pids, camids = (np.array([getattr(sample, key) for sample in samples]) for key in ("pid", "camid"))
    apart = np.where(camids[:, None] == camids, distances(clothes), np.inf)
    right = (pids[apart.argmin(1)] == pids).mean()
    chance = np.mean([(pids[camids == c] == p).sum() - 1 for p, c in zip(pids, camids, strict=True)]) / np.mean(
        [(camids == c).sum() - 1 for c in camids]
    )
    assert right > 3 * chance
    assert right > 0.4


def test_an_interrupted_drawing_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    drawn = []

    def interrupted(*args, **kwargs):
        drawn.append(1)
        if len(drawn) > 5:
            raise KeyboardInterrupt
        return Image.new("RGB", (64, 128))

    monkeypatch.setattr(synthetic, "picture", interrupted)
    with pytest.raises(KeyboardInterrupt):
        synthetic.read(tmp_path)
    assert len(drawn) == 6
    assert list(tmp_path.iterdir()) == []


def fails(root: Path) -> str:
    with pytest.raises(ReidError) as caught:
        synthetic.read(root)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_folder_of_another_version_is_refused_and_kept(tmp_path: Path):
    folder = tmp_path / "synthetic"
    synthetic.draw(folder, **TINY)
    manifest = json.loads((folder / MANIFEST).read_text())
    before = everything(folder)
    (folder / MANIFEST).write_text(json.dumps(manifest | {"generator": 999}))
    assert "version 999" in fails(tmp_path)
    assert "delete it, and the set is drawn anew" in fails(tmp_path)
    (folder / MANIFEST).write_text("{")
    assert "delete it, and the set is drawn anew" in fails(tmp_path)
    (folder / MANIFEST).unlink()
    assert "delete it, and the set is drawn anew" in fails(tmp_path)
    assert everything(folder) == before


def test_a_folder_with_missing_images_is_refused(tmp_path: Path):
    folder = tmp_path / "synthetic"
    synthetic.draw(folder, **TINY)
    n = len(list((folder / "query").iterdir()))
    next((folder / "query").iterdir()).unlink()
    message = fails(tmp_path)
    assert f"expected {n} images in {folder / 'query'}, found {n - 1}" in message
    assert f"delete {folder}" in message


@pytest.mark.parametrize(
    "wrong",
    [
        {"train_ids": 1},
        {"test_ids": 5000},
        {"cameras": 1},
        {"cameras": 10},
        {"cameras_per_person": (1, 3)},
        {"cameras_per_person": (3, 7)},
        {"images_per_camera": (1, 2)},
        {"junk": -1},
        {"seed": -1},
        {"size": (16, 64)},
    ],
)
def test_numbers_that_make_no_set(tmp_path: Path, wrong: dict):
    with pytest.raises(ReidError, match="expected"):
        synthetic.draw(tmp_path / "synthetic", **wrong)
    assert list(tmp_path.iterdir()) == []


def test_draw_does_not_touch_what_is_there(tmp_path: Path):
    (tmp_path / "synthetic").mkdir()
    with pytest.raises(ReidError, match="exists already"):
        synthetic.draw(tmp_path / "synthetic", **TINY)


def test_contact_sheet_shows_people_by_camera(root: Path, splits: Splits):
    sheet = np.asarray(synthetic.contact_sheet(root, people=3))
    assert sheet.shape == (3 * 132 - 4, 6 * 132 - 4, 3)
    first = min(sample.pid for sample in splits.query)
    seen_by = {sample.camid for sample in persons(splits) if sample.pid == first}
    for camid in range(1, 7):
        left = (camid - 1) * 132
        assert (sheet[:128, left : left + 128] == 255).all() == (camid not in seen_by)


def command(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "datasets.synthetic", *map(str, arguments)],
        cwd=Path(__file__).resolve().parents[1],
        capture_output=True,
        text=True,
        check=False,
    )


def test_command(root: Path, splits: Splits, tmp_path: Path):
    done = command("--data-root", root, "--sheet", tmp_path / "people.png")
    assert done.returncode == 0, done.stderr
    assert f"{len(splits.train)} train, {len(splits.query)} query, {len(splits.gallery)} gallery" in done.stdout
    with Image.open(tmp_path / "people.png") as image:
        assert (image.format, image.width) == ("PNG", 788)
    refused = command("--data-root", root, "--ids", 9)
    assert refused.returncode == 2
    assert "already holds 5 training people of seed 0" in refused.stderr
    assert "Traceback" not in refused.stderr
