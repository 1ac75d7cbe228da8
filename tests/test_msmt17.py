"""MSMT17: exact samples from a small tree of each version, one line for whatever its lists get wrong, the doctor."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

import datasets
from datasets import doctor, msmt17
from reid.core.types import ReidError, Sample

LISTS = {
    "train": ["0000/0000_000_01_0303morning_0008_0.jpg 0", "1040/1040_185_15_0302noon_0228_0_ex.jpg 1040"],
    "val": ["0000/0000_001_01_0303morning_0008_0_ex.jpg 0"],
    "query": ["3059/3059_000_14_0114afternoon_0015_0.jpg 3059", "0000/0000_000_01_0303morning_0015_0.jpg 0"],
    "gallery": ["0000/0000_030_03_0303morning_0245_0.jpg 0", "3059/3059_001_04_0113morning_0015_0.jpg 3059"],
}
VERSIONS = {"MSMT17_V1": ("train", "test"), "MSMT17_V2": ("mask_train_v2", "mask_test_v2")}


def plant(root: Path, version: str = "MSMT17_V1") -> Path:
    """Empty images of every list, and the lists; gives the version's own folder."""
    train, test = VERSIONS[version]
    own = root / version
    for split, lines in LISTS.items():
        for line in lines:
            image = own / (train if split in ("train", "val") else test) / line.split()[0]
            image.parent.mkdir(parents=True, exist_ok=True)
            image.touch()
        (own / f"list_{split}.txt").write_text("".join(f"{line}\n" for line in lines))
    return own


def told(samples: list[Sample], folder: Path) -> list[tuple[str, int, int]]:
    return [(str(Path(sample.path).relative_to(folder)), sample.pid, sample.camid) for sample in samples]


def fails(root: Path) -> str:
    with pytest.raises(ReidError) as caught:
        datasets.read("msmt17", root)
    message = str(caught.value)
    assert "\n" not in message
    return message


@pytest.mark.parametrize("version", VERSIONS)
def test_the_lists_are_read_exactly(version, tmp_path):
    own = plant(tmp_path, version)
    train, test = (own / name for name in VERSIONS[version])
    (own / "readme.txt").touch()
    (train / "0000" / "not_listed.jpg").touch()
    splits = datasets.read("msmt17", tmp_path)
    assert (splits.name, splits.root, splits.official_split) == ("msmt17", str(own), False)
    assert told(splits.train, train) == [
        ("0000/0000_000_01_0303morning_0008_0.jpg", 1, 1),
        ("0000/0000_001_01_0303morning_0008_0_ex.jpg", 1, 1),  # of list_val
        ("1040/1040_185_15_0302noon_0228_0_ex.jpg", 1041, 15),
    ]
    assert told(splits.query, test) == [
        ("0000/0000_000_01_0303morning_0015_0.jpg", 1042, 1),  # the test's person 0 is not the training's
        ("3059/3059_000_14_0114afternoon_0015_0.jpg", 4101, 14),
    ]
    assert told(splits.gallery, test) == [
        ("0000/0000_030_03_0303morning_0245_0.jpg", 1042, 3),
        ("3059/3059_001_04_0113morning_0015_0.jpg", 4101, 4),
    ]
    assert any("faces are blurred" in line for line in splits.warnings) is (version == "MSMT17_V2")
    assert any("train 3 images (official 32621)" in line for line in splits.warnings)


@pytest.mark.parametrize("below", ["", "MSMT17", "msmt17", "MSMT17_V1"])
def test_it_is_found_under_its_parents(below, tmp_path):
    own = plant(tmp_path / below)
    for root in {own, own.parent, tmp_path}:
        assert datasets.read("msmt17", root).root == str(own)


def test_windows_lists_and_capital_folders_are_read(tmp_path):
    own = plant(tmp_path, "MSMT17_V2")
    before = datasets.read("msmt17", own)
    for path in own.glob("*.txt"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n") + b"\r\n")
    assert datasets.read("msmt17", own) == before
    (own / "mask_test_v2").rename(own / "mask_test_V2")
    assert told(datasets.read("msmt17", own).query, own / "mask_test_V2") == told(before.query, own / "mask_test_v2")


def test_of_both_versions_the_first_is_taken_aloud_and_the_second_by_its_name(tmp_path):
    first, second = (plant(tmp_path, version) for version in VERSIONS)
    splits = datasets.read("msmt17", tmp_path)
    assert splits.root == str(first)
    assert splits.warnings[0].startswith(f"msmt17: took V1, {first}, of the two versions there")
    assert datasets.read("msmt17", second).root == str(second)


def test_the_official_split_is_recognised(tmp_path, monkeypatch):
    counts = {"train": (3, 2), "query": (2, 2), "gallery": (2, 2)}
    small = {split: datasets.parse.Count(*numbers) for split, numbers in counts.items()}
    monkeypatch.setattr(msmt17, "OFFICIAL", small)
    splits = datasets.read("msmt17", plant(tmp_path))
    assert splits.official_split is True
    assert splits.warnings == []


GOOD = "0000/0000_000_01_0303morning_0015_0.jpg"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("../../secret/0000_000_01_0303morning_0015_0.jpg 0", "a path outside the folder"),
        ("/etc/0000_000_01_0303morning_0015_0.jpg 0", "a path outside the folder"),
        (f"0000/../{GOOD} 0", "a path outside the folder"),
        (f"{GOOD} 7", "folder 0000, name 0000 and label 7 contradict"),
        ("0001/0000_000_01_0303morning_0015_0.jpg 0", "folder 0001, name 0000 and label 0 contradict"),
        (GOOD, "line 3 is"),
        (f"{GOOD} -1", "line 3 is"),
        (f"{GOOD} {'1' * 5000}", "line 3 is"),
        ("0000/0000_000_0303morning_0015_0.jpg 0", "line 3 is"),
        ("0000/0000_000_16_0303morning_0015_0.jpg 0", "a camera from 1 to 15"),
        ("0000/0000_000_00_0303morning_0015_0.jpg 0", "a camera from 1 to 15"),
        ("3060/3060_000_01_0303morning_0015_0.jpg 3060", "a person from 0 to 3059"),
        (f"{GOOD} 0", "repeats line 2 of list_query.txt"),
    ],
)
def test_a_line_that_does_not_fit_is_named(line, said, tmp_path):
    own = plant(tmp_path)
    with (own / "list_query.txt").open("a") as stream:
        stream.write(f"{line}\n")
    message = fails(tmp_path)
    assert said in message
    assert "line 3" in message
    assert f"{own / 'list_query.txt'}, but 1 of 3 do not fit" in message
    assert len(message) < 600


def test_training_has_fewer_persons_than_the_test(tmp_path):
    own = plant(tmp_path)
    (own / "list_train.txt").write_text("1041/1041_000_01_0303morning_0015_0.jpg 1041\n")
    assert "a person from 0 to 1040" in fails(tmp_path)


def test_an_image_of_both_training_lists_is_refused(tmp_path):
    own = plant(tmp_path)
    (own / "list_val.txt").write_text(LISTS["train"][1])
    assert "repeats line 2 of list_train.txt" in fails(tmp_path)


def test_listed_images_that_are_not_there_are_named(tmp_path):
    own = plant(tmp_path)
    (own / "train" / LISTS["train"][1].split()[0]).unlink()
    message = fails(tmp_path)
    assert f"1 of the 2 images of list_train.txt are not in {own / 'train'}: 1040/1040_185_15_0302noon" in message


@pytest.mark.parametrize("split", LISTS)
def test_a_list_that_is_missing_empty_or_no_text_is_named(split, tmp_path):
    path = plant(tmp_path) / f"list_{split}.txt"
    path.write_text("\n\n")
    assert f"{path}, which is empty" in fails(tmp_path)
    path.write_bytes(b"\xff\xfe\x00")
    assert str(path) in fails(tmp_path)
    path.unlink()
    assert f"expected {path}, which is missing" in fails(tmp_path)


def test_a_folder_without_it_says_how_it_is_obtained(tmp_path):
    message = fails(tmp_path / "nowhere")
    assert "no such folder" in message
    assert "given by its authors, for research" in message
    assert "http" not in message
    own = plant(tmp_path)
    (own / "train").rename(own / "training")
    assert "mask_train_v2/ (V2)" in fails(own)
    assert "which holds list_gallery.txt" in fails(own)


def test_the_doctor_examines_it(tmp_path):
    own = plant(tmp_path)
    images = sorted(own.rglob("*.jpg"))
    for number, path in enumerate(images):
        Image.new("RGB", (64, 128), (number * 20, 0, 0)).save(path)
    splits = datasets.read("msmt17", own)
    report = doctor.examine(splits, progress=False)
    assert report.ok
    assert report.official["train"].images == 32621
    assert report.shared_identities == []
    lines = report.lines()
    assert lines[0] == f"msmt17 in {own}: not the official split"
    assert ["images", "3", "32621", "2", "11659", "2", "82161"] in [line.split() for line in lines]
    images[0].write_bytes(b"")
    report = doctor.examine(splits, progress=False)
    assert list(report.bad) == [str(images[0].relative_to(own))]
