"""The data doctor finds what is wrong, names it, and finds nothing wrong with what is right."""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import doctor

# A sound data set: persons 2 and 7 to train on, 1 and 3 to test, a distractor, junk. Query 1 matches by camera 2.
MARKET = [
    "bounding_box_train/0002_c1s1_000001_01.jpg",
    "bounding_box_train/0002_c2s1_000002_01.png",
    "bounding_box_train/0007_c2s1_000003_01.jpg",
    "query/0001_c1s1_000004_00.jpg",
    "query/0003_c1s1_000005_00.jpg",
    "bounding_box_test/0001_c1s1_000006_01.jpg",
    "bounding_box_test/0001_c2s1_000007_01.jpg",
    "bounding_box_test/0003_c3s1_000008_01.png",
    "bounding_box_test/0000_c3s1_000009_01.jpg",
    "bounding_box_test/-1_c1s1_000010_01.jpg",
]
CUHK = [
    "bounding_box_train/0001_c1_01.png",
    "bounding_box_train/0001_c2_06.png",
    "bounding_box_train/0002_c1_01.png",
    "query/0003_c1_01.png",
    "query/0004_c1_01.png",
    "bounding_box_test/0003_c2_06.png",
    "bounding_box_test/0004_c2_06.png",
]


def draw(root: Path, names: list[str], seed: int = 0, size: tuple[int, int] = (64, 128)) -> Path:
    """A picture of its own for every name."""
    random = np.random.default_rng(seed)
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        blocks = random.integers(0, 256, (8, 4, 3), dtype=np.uint8)
        Image.fromarray(blocks).resize(size, Image.Resampling.BICUBIC).save(root / name)
    return root


def examine(root: Path, name: str = "market1501") -> doctor.Report:
    return doctor.examine(datasets.read(name, root), progress=False)


def line_with(lines: list[str], text: str) -> str:
    found = [line for line in lines if text in line]
    assert len(found) == 1, lines
    return found[0]


def test_a_sound_data_set_is_well(tmp_path):
    report = examine(draw(tmp_path, MARKET))
    assert report.ok
    assert report.problems == []
    assert report.bad == {}
    assert report.duplicates == {}
    assert report.queries_without_match == []
    assert report.shared_identities == []
    assert report.small == []
    assert report.width == (64, 64, 64)
    assert report.height == (128, 128, 128)
    assert report.counts["gallery"].junk == 1
    assert report.counts["gallery"].distractors == 1
    assert report.notes == datasets.read("market1501", tmp_path).warnings
    assert report.lines()[-1] == "no problems found"


def test_the_table_sets_counts_beside_the_official_ones(tmp_path):
    lines = examine(draw(tmp_path, MARKET)).lines()
    assert lines[0] == f"market1501 in {tmp_path}: not the official split"
    table = [line.split() for line in lines[2 : lines.index("", 2)]]
    assert table[0] == ["train", "official", "query", "official", "gallery", "official"]
    assert ["images", "3", "12936", "2", "3368", "5", "19732"] in table
    assert ["identities", "2", "751", "2", "750", "2", "750"] in table
    assert ["distractors", "0", "0", "0", "0", "1", "2798"] in table
    assert ["camera", "2", "2", "1709", "0", "530", "1", "2944"] in table
    assert len({len(line) for line in lines[2:6]}) == 1  # aligned: the figures end at the same column


def test_every_camera_that_has_an_official_count_has_a_row(tmp_path):
    table = [line.split()[:2] for line in examine(draw(tmp_path, MARKET)).lines()]
    assert [row for row in table if row[:1] == ["camera"]] == [["camera", str(camid)] for camid in range(1, 7)]


def test_the_report_is_json(tmp_path):
    root = draw(tmp_path, MARKET)
    (root / MARKET[0]).write_bytes(b"")
    report = json.loads(json.dumps(examine(root).as_dict()))
    assert report["ok"] is False
    assert report["bad"] == {MARKET[0]: "is empty (0 bytes)"}
    assert report["counts"]["train"]["images"] == 3
    assert report["official"]["train"]["images"] == 12936


def test_bad_images_are_a_problem_by_name(tmp_path):
    root = draw(tmp_path, MARKET)
    content = (root / MARKET[5]).read_bytes()
    (root / MARKET[5]).write_bytes(content[: len(content) // 2])
    report = examine(root)
    assert list(report.bad) == [MARKET[5]]
    assert not report.ok
    assert MARKET[5] in line_with(report.lines(), "problem: 1 images cannot be read")


def test_all_images_bad_still_gives_a_report(tmp_path):
    for name in MARKET:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    report = examine(tmp_path)
    assert len(report.bad) == len(MARKET)
    assert report.width == (0, 0, 0)
    assert report.duplicates == {}


def test_identities_of_both_sides_are_a_problem(tmp_path):
    root = draw(tmp_path, [*MARKET, "bounding_box_train/0003_c1s1_000011_01.jpg"])
    report = examine(root)
    assert report.shared_identities == [3]
    assert not report.ok
    line_with(report.problems, "1 identities are in training and in test: 3")


def test_queries_without_a_match_are_a_note(tmp_path):
    root = draw(tmp_path, [*MARKET, "query/0009_c1s1_000011_00.jpg", "query/0003_c3s1_000012_00.jpg"])
    report = examine(root)  # person 9 is not in the gallery; person 3 is there, but by camera 3 only
    assert report.queries_without_match == ["query/0003_c3s1_000012_00.jpg", "query/0009_c1s1_000011_00.jpg"]
    assert report.ok
    line_with(report.notes, "2 queries have no gallery image")


def test_a_training_picture_in_the_test_is_a_problem_even_reencoded(tmp_path):
    root = draw(tmp_path, MARKET)
    with Image.open(root / MARKET[0]) as image:
        image.save(root / MARKET[7])  # JPEG in training, PNG with equal pixels in the gallery
    report = examine(root)
    assert report.duplicates == {"train-gallery": [[MARKET[0], MARKET[7]]]}
    assert report.problems == [f"1 pictures are in train and in gallery: {MARKET[0]} = {MARKET[7]}"]


@pytest.mark.parametrize(
    ("target", "ok"),
    [
        ("bounding_box_test/0001_c1s1_000006_01.jpg", True),  # same person and camera: the protocol drops it
        ("bounding_box_test/-1_c1s1_000010_01.jpg", True),  # junk: likewise
        ("bounding_box_test/0001_c2s1_000007_01.jpg", False),  # a match for nothing
        ("bounding_box_test/0000_c3s1_000009_01.jpg", False),  # the right answer counts as wrong
    ],
)
def test_a_query_in_the_gallery_is_a_problem_where_it_is_ranked(target, ok, tmp_path):
    root = draw(tmp_path, MARKET)
    query = "query/0001_c1s1_000004_00.jpg"
    shutil.copy(root / query, root / target)
    report = examine(root)
    assert report.duplicates == {"query-gallery": [[query, target]]}
    assert report.ok is ok
    assert query in line_with(report.notes if ok else report.problems, "1 pictures are in query and in gallery")


def test_copies_of_one_person_within_a_split_are_a_note(tmp_path):
    root = draw(tmp_path, MARKET)
    shutil.copy(root / MARKET[0], root / MARKET[1])
    report = examine(root)
    assert report.ok
    assert report.duplicates == {"train-train": [[MARKET[0], MARKET[1]]]}
    line_with(report.notes, "1 pictures are in train more than once: ")


@pytest.mark.parametrize(
    ("split", "first", "second"),
    [("train", MARKET[0], MARKET[2]), ("query", MARKET[3], MARKET[4]), ("gallery", MARKET[6], MARKET[8])],
)
def test_a_picture_of_two_persons_within_a_split_is_a_problem(split, first, second, tmp_path):
    root = draw(tmp_path, MARKET)  # the last: a person and a distractor, so that the right answer counts as wrong
    shutil.copy(root / first, root / second)
    report = examine(root)
    assert report.duplicates == {f"{split}-{split}": [sorted([first, second])]}
    line = line_with(report.problems, f"1 pictures are in {split} as two persons or more")
    assert first in line and second in line
    assert not report.ok
    assert not any("more than once" in line for line in report.notes)


def test_a_person_s_copy_that_is_junk_too_is_a_note(tmp_path):
    root = draw(tmp_path, MARKET)
    shutil.copy(root / MARKET[6], root / MARKET[9])
    report = examine(root)
    assert report.ok
    line_with(report.notes, "1 pictures are in gallery more than once: ")


@pytest.mark.parametrize(
    ("names", "unmatched", "said"),
    [
        # one camera: with its number
        (["query/anna/c5_1.jpg", "gallery/anna/c5_2.jpg", "gallery/bert/c5_1.jpg"], 1, "one camera alone, camera 5"),
        # two cameras, but nobody is seen by both
        (["query/anna/c1_1.jpg", "gallery/bert/c2_1.jpg"], 1, "none of the 1 queries has a gallery image"),
        # divided: nobody to test on has a second image
        (["anna/c1_1.jpg", "anna/c2_1.jpg", "bert/c1_1.jpg"], 0, "there are no queries"),
    ],
)
def test_nothing_to_score_is_a_problem(names, unmatched, said, tmp_path):
    report = examine(draw(tmp_path, names), "folder")
    assert len(report.queries_without_match) == unmatched
    assert report.problems == [line_with(report.problems, said)]
    assert "nothing can be scored" in report.problems[0]
    assert not any("left out of the means" in line for line in report.notes)


def test_one_query_that_matches_is_enough_to_score(tmp_path):
    names = ["query/anna/c1_1.jpg", "query/bert/c1_1.jpg", "gallery/anna/c2_1.jpg", "gallery/bert/c1_2.jpg"]
    report = examine(draw(tmp_path, names), "folder")
    assert report.ok
    line_with(report.notes, "1 queries have no gallery image of the person by another camera")


def test_tiny_images_are_a_note(tmp_path):
    root = draw(tmp_path, MARKET)
    draw(root, [MARKET[0]], seed=1, size=(12, 30))
    report = examine(root)
    assert report.ok
    assert report.small == [MARKET[0]]
    assert (report.width, report.height) == ((12, 64, 64), (30, 128, 128))


def test_one_s_own_folder_has_no_official_counts(tmp_path):
    for number, person in enumerate(("anna", "bert", "cleo")):
        draw(tmp_path, [f"{person}/c{camera}_{n}.jpg" for camera in (1, 2) for n in (1, 2)], seed=number)
    report = examine(tmp_path, "folder")
    assert report.ok
    assert report.official == {}
    assert report.official_split is None
    assert "no official split published" in report.lines()[0]
    assert "official" not in report.lines()[2]


def test_an_empty_training_split_counts_nothing(tmp_path):
    draw(tmp_path, ["query/anna/c1.jpg", "gallery/anna/c2.jpg", "gallery/anna/c30.jpg"])
    lines = examine(tmp_path, "folder").lines()
    table = [line.split() for line in lines[2 : lines.index("", 2)]]
    assert table == [
        ["train", "query", "gallery"],
        ["images", "0", "1", "2"],
        ["identities", "0", "1", "1"],
        ["camera", "1", "0", "1", "0"],
        ["camera", "2", "0", "0", "1"],
        ["camera", "30", "0", "0", "1"],
    ]


# --- labeled and detected ---------------------------------------------------------------------------------------------


def both(root: Path) -> None:
    draw(root / "labeled", CUHK, seed=1)
    draw(root / "detected", CUHK, seed=2)


def test_labeled_beside_detected_is_well(tmp_path):
    both(tmp_path)
    report = examine(tmp_path, "cuhk03np_labeled")
    assert report.ok
    assert not [line for line in report.notes if "detected" in line]


def test_a_broken_other_variant_does_not_stop_the_examination(tmp_path):
    both(tmp_path)
    (tmp_path / "detected" / "query" / "IMG_1.jpg").touch()
    report = examine(tmp_path, "cuhk03np_labeled")
    assert report.ok
    assert "IMG_1.jpg" in line_with(report.notes, "not compared with detected")


def test_the_two_official_swapped_identities_are_a_note_more_are_a_problem(tmp_path):
    both(tmp_path)
    draw(tmp_path / "detected", ["bounding_box_train/0003_c1_02.png"], seed=3)
    report = examine(tmp_path, "cuhk03np_labeled")
    assert report.ok
    assert line_with(report.notes, "in training of labeled or detected").endswith("train on one and test on the other")
    names = ["bounding_box_train/0004_c1_02.png", "bounding_box_test/0001_c1_02.png"]
    draw(tmp_path / "detected", names, seed=4)
    report = examine(tmp_path, "cuhk03np_labeled")
    line_with(report.problems, "3 identities are in training of labeled or detected and in test of the other: 1, 3, 4")


def test_a_picture_on_the_other_variant_s_other_side_is_a_problem(tmp_path):
    both(tmp_path)
    shutil.copy(tmp_path / "labeled" / CUHK[0], tmp_path / "detected" / CUHK[5])
    report = examine(tmp_path, "cuhk03np_labeled")
    assert report.problems == [
        f"1 pictures of labeled are on the other side of the split of detected: labeled/{CUHK[0]} = detected/{CUHK[5]}"
    ]


def test_one_variant_copied_over_the_other_is_a_problem(tmp_path):
    draw(tmp_path / "labeled", CUHK)
    shutil.copytree(tmp_path / "labeled", tmp_path / "detected")
    report = examine(tmp_path, "cuhk03np_detected")
    assert report.problems == [
        "7 of 7 pictures of detected are in labeled too: one folder seems to be a copy of the other"
    ]


def test_the_other_variant_s_official_counts_are_a_problem(tmp_path, monkeypatch):
    draw(tmp_path / "labeled", CUHK)
    splits = datasets.read("cuhk03np_labeled", tmp_path)
    counts = {split: datasets.parse.count(getattr(splits, split)) for split in ("train", "query", "gallery")}
    detected = datasets.cuhk03np.LAYOUTS["detected"]
    monkeypatch.setitem(datasets.cuhk03np.LAYOUTS, "detected", dataclasses.replace(detected, official=counts))
    report = examine(tmp_path, "cuhk03np_labeled")
    assert report.problems == [
        "cuhk03np_labeled: these are the counts of cuhk03np_detected: the two seem to be mixed up"
    ]
    assert not any("mixed up" in line for line in report.notes)
