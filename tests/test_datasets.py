"""Readers: exact samples from small trees of every layout, one clear line for every mistake, the real images."""

from __future__ import annotations

import csv
import dataclasses
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import datasets
from datasets import cuhk03np, folder, parse
from reid.core.types import DISTRACTOR, JUNK, ReidError, Sample, Splits

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
needs_real = pytest.mark.skipif(not REAL.is_dir(), reason=f"the real images are not here: {REAL}")

MARKET = {
    "bounding_box_train": [
        "0007_c2s1_000001_01.jpg",
        "0002_c1s1_000451_03.jpg",
        "0002_c6s3_000500_00.png",
        "Thumbs.db",
    ],
    "query": ["0001_c1s1_001051_00.jpg", ".DS_Store"],
    "bounding_box_test": [
        "0001_c2s1_001051_01.jpg",
        "0000_c3s1_000151_01.jpg",
        "-1_c1s1_000401_03.jpg",
        "0001_c1s2_001051_02.jpg",
    ],
}
DUKE = {
    "bounding_box_train": ["0002_c8_f0044158.jpg", "0001_c2_f0046182.jpg"],
    "query": ["0005_c2_f0046985.jpg"],
    "bounding_box_test": ["0005_c5_f0051681.jpg", "7139_c1_f0000001.jpg"],
}
CUHK = {
    "bounding_box_train": ["0001_c1_1.png", "0001_c2_06.png"],
    "query": ["0003_c1_02.jpg"],
    "bounding_box_test": ["0003_c2_07.jpg"],
}
# name -> (tree, its folder under a parent)
LAYOUTS = {
    "market1501": (MARKET, "Market-1501-v15.09.15"),
    "dukemtmc": (DUKE, "DukeMTMC-reID"),
    "cuhk03np_labeled": (CUHK, "cuhk03-np/labeled"),
    "cuhk03np_detected": (CUHK, "cuhk03-np/detected"),
}


def plant(root: Path, tree: dict[str, list[str]]) -> Path:
    """Empty files: reading goes by names alone."""
    for name, files in tree.items():
        (root / name).mkdir(parents=True, exist_ok=True)
        for file in files:
            (root / name / file).touch()
    return root


def fails(name: str, root: Path) -> str:
    """The one line of the ReidError that reading raises."""
    with pytest.raises(ReidError) as caught:
        datasets.read(name, root)
    message = str(caught.value)
    assert "\n" not in message
    return message


def triples(samples: list[Sample], root: Path) -> list[tuple[str, int, int]]:
    return [(str(Path(sample.path).relative_to(root)), sample.pid, sample.camid) for sample in samples]


def test_the_table_of_data_sets():
    assert list(datasets.DATASETS) == [
        "market1501",
        "dukemtmc",
        "cuhk03np_labeled",
        "cuhk03np_detected",
        "msmt17",
        "folder",
        "synthetic",
    ]


def test_market1501_reads_exactly(tmp_path):
    root = plant(tmp_path / "Market-1501-v15.09.15", MARKET)
    splits = datasets.read("market1501", root)
    assert triples(splits.train, root) == [
        ("bounding_box_train/0002_c1s1_000451_03.jpg", 2, 1),
        ("bounding_box_train/0002_c6s3_000500_00.png", 2, 6),
        ("bounding_box_train/0007_c2s1_000001_01.jpg", 7, 2),
    ]
    assert triples(splits.query, root) == [("query/0001_c1s1_001051_00.jpg", 1, 1)]
    assert [(pid, camid) for _, pid, camid in triples(splits.gallery, root)] == [
        (JUNK, 1),
        (DISTRACTOR, 3),
        (1, 1),
        (1, 2),
    ]
    assert (splits.name, splits.root, splits.official_split) == ("market1501", str(root), False)
    assert len(splits.warnings) == 2  # of images, of identities
    assert "train 3 images (official 12936)" in splits.warnings[0]
    assert "gallery 1 junk (official 3819)" in splits.warnings[0]
    assert "gallery 1 identities (official 750)" in splits.warnings[1]


def test_duke_says_that_it_was_withdrawn(tmp_path):
    root = plant(tmp_path / "DukeMTMC-reID", DUKE)
    splits = datasets.read("dukemtmc", root)
    assert [(pid, camid) for _, pid, camid in triples(splits.train, root)] == [(1, 2), (2, 8)]
    assert [sample.pid for sample in splits.gallery] == [5, 7139]
    assert "withdrawn by its authors in 2019" in splits.warnings[0]
    absent = fails("dukemtmc", tmp_path / "elsewhere")
    assert "withdrawn" in absent
    assert "http" not in absent
    assert "www" not in absent


@pytest.mark.parametrize("name", LAYOUTS)
def test_found_by_its_own_folder_and_by_the_parent(name, tmp_path, monkeypatch):
    tree, below = LAYOUTS[name]
    own = plant(tmp_path / below, tree)
    for root in {own, own.parent, tmp_path}:
        splits = datasets.read(name, root)
        assert splits.root == str(own)
        assert [len(splits.train), len(splits.query)] == [2 if name != "market1501" else 3, 1]
        for samples in splits[2:5]:
            assert [sample.path for sample in samples] == sorted(sample.path for sample in samples)
    monkeypatch.chdir(own)
    assert datasets.read(name, ".") == splits


@pytest.mark.parametrize("name", LAYOUTS)
def test_missing_and_empty_roots_say_what_was_looked_for_and_how_it_is_obtained(name, tmp_path):
    for root in (tmp_path, tmp_path / "nowhere"):
        message = fails(name, root)
        assert str(root) in message
        assert "bounding_box_train" in message
        assert "author" in message
        assert "http" not in message
    assert "no such folder" in message
    tree, below = LAYOUTS[name]
    own = plant(tmp_path / below, tree)
    for file in (own / "query").iterdir():
        file.unlink()
    assert f"{own / 'query'}, which is empty" in fails(name, tmp_path)
    (own / "query").rmdir()
    assert f"{own / 'query'}, which is missing" in fails(name, tmp_path)


@pytest.mark.parametrize(
    ("name", "misfit"),
    [
        ("market1501", "0002_c7s1_000451_03.jpg"),  # there are six cameras
        ("market1501", "0002_c0s1_000451_03.jpg"),
        ("market1501", "1502_c1s1_000451_03.jpg"),
        ("market1501", "0002_c1_f0046182.jpg"),  # Duke's grammar
        ("dukemtmc", "0002_c9_f0046182.jpg"),
        ("dukemtmc", "0000_c1_f0046182.jpg"),  # no distractors here: their 408 have pids
        ("dukemtmc", "-1_c1_f0046182.jpg"),
        ("cuhk03np_labeled", "0001_c3_01.png"),
        ("cuhk03np_detected", "0000_c1_01.png"),
        ("cuhk03np_detected", "1468_c1_01.png"),
    ],
)
def test_names_that_do_not_fit_are_named(name, misfit, tmp_path):
    tree, below = LAYOUTS[name]
    own = plant(tmp_path / below, tree)
    (own / "query" / misfit).touch()
    message = fails(name, tmp_path)
    assert misfit in message
    assert "1 of 2" in message
    assert str(own / "query") in message
    assert "PPPP_c" in message


def test_many_misfits_are_counted_and_the_first_named(tmp_path):
    plant(tmp_path, MARKET)
    plant(tmp_path, {"query": [f"IMG_{number}.jpg" for number in range(9)]})
    message = fails("market1501", tmp_path)
    assert "9 of 10" in message
    assert "IMG_0.jpg, IMG_1.jpg, IMG_2.jpg and 6 more" in message
    assert "IMG_3" not in message


def test_nobodies_are_left_out_of_training_and_queries_aloud(tmp_path):
    plant(tmp_path, MARKET)
    plant(tmp_path, {"bounding_box_train": ["0000_c1s1_000001_00.jpg", "-1_c1s1_000001_00.jpg"]})
    splits = datasets.read("market1501", tmp_path)
    assert min(sample.pid for sample in splits.train) == 2
    assert "left out 2 images of bounding_box_train" in splits.warnings[0]


def test_an_unknown_data_set_lists_the_known(tmp_path):
    message = fails("market", tmp_path)
    assert all(name in message for name in datasets.DATASETS)


# The published counts, written down here a second time: (images, identities) of train, query, gallery.
PUBLISHED = {
    "market1501": [(12936, 751), (3368, 750), (19732, 750)],
    "dukemtmc": [(16522, 702), (2228, 702), (17661, 1110)],
    "cuhk03np_labeled": [(7368, 767), (1400, 700), (5328, 700)],
    "cuhk03np_detected": [(7365, 767), (1400, 700), (5332, 700)],
    "msmt17": [(32621, 1041), (11659, 3060), (82161, 3060)],
}


def test_every_official_count_is_written_here_too():
    assert PUBLISHED.keys() == datasets.OFFICIAL.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_official_counts(name):
    official = datasets.OFFICIAL[name]
    assert [(official[split].images, official[split].identities) for split in official] == PUBLISHED[name]
    for one in official.values():
        assert not one.cameras or sum(one.cameras.values()) == one.images
    if name == "market1501":
        gallery = official["gallery"]
        assert gallery.images - gallery.junk == 15913
        assert gallery.images - gallery.junk - gallery.distractors == 13115


def test_the_official_split_is_recognised_and_nothing_else_is(tmp_path, monkeypatch):
    one = parse.Count(1, 1, parse.per_camera(1, 0))  # the official counts, scaled down to the tree of CUHK
    small = {
        "detected": {"train": parse.Count(2, 1, parse.per_camera(1, 1)), "query": one, "gallery": parse.Count(1, 1)},
        "labeled": {"train": parse.Count(3, 1, parse.per_camera(2, 1)), "query": one, "gallery": parse.Count(1, 1)},
    }
    for variant, official in small.items():
        layout = dataclasses.replace(cuhk03np.LAYOUTS[variant], official=official)
        monkeypatch.setitem(cuhk03np.LAYOUTS, variant, layout)

    root = plant(tmp_path / "detected", CUHK)
    splits = datasets.read("cuhk03np_detected", root)
    assert splits.official_split is True
    assert splits.warnings == []

    moved = (root / "query" / "0003_c1_02.jpg").rename(root / "query" / "0003_c2_02.jpg")  # as many, another camera
    splits = datasets.read("cuhk03np_detected", root)
    assert splits.official_split is False
    assert splits.warnings == ["not the official split: query c1 0 images (official 1), query c2 1 images (official 0)"]
    moved.rename(root / "query" / "0003_c1_02.jpg")

    splits = datasets.read("cuhk03np_labeled", root.rename(tmp_path / "labeled"))
    assert splits.official_split is False
    assert splits.warnings == [
        "not the official split: train 2 images (official 3)",
        "cuhk03np_labeled: these are the counts of cuhk03np_detected: the two seem to be mixed up",
    ]


# --- CUHK03 from its source -------------------------------------------------------------------------------------------


def write_source(folder: Path) -> dict[tuple[str, int, int, int], np.ndarray]:
    """A small cuhk-03.mat as MATLAB v7.3 writes it: cells are references, every array's axes are reversed.

    Returns (variant, pair, person, image) -> (H, W, 3) uint8. Pair 1 has three persons, the others one; image 5 of
    person 2 of pair 1 was never taken.
    """
    import h5py

    random = np.random.default_rng(0)
    pictures = {}
    with h5py.File(folder / "cuhk-03.mat", "w") as mat:
        for variant in ("detected", "labeled"):
            cells = mat.create_dataset(variant, (1, 5), dtype=h5py.ref_dtype)
            for pair in range(1, 6):
                persons = 3 if pair == 1 else 1
                grid = mat.create_dataset(f"#refs#/{variant}{pair}", (10, persons), dtype=h5py.ref_dtype)
                for person in range(1, persons + 1):
                    for image in range(1, 11):
                        name = f"#refs#/{variant}{pair}_{person}_{image}"
                        if (pair, person, image) == (1, 2, 5):
                            data = mat.create_dataset(name, data=np.zeros(2, np.uint64))  # an empty cell
                            data.attrs["MATLAB_empty"] = 1
                        else:
                            height, width = 6 + image, 3 + person
                            picture = random.integers(0, 256, (height, width, 3), dtype=np.uint8)
                            pictures[variant, pair, person, image] = picture
                            data = mat.create_dataset(name, data=picture.transpose(2, 1, 0))
                        grid[image - 1, person - 1] = data.ref
                cells[0, pair - 1] = grid.ref
    return pictures


def write_config(folder: Path, variant: str, names: list[str], splits: dict[str, list[int]]) -> None:
    """A split file of the new protocol. Labels number the persons in the order of pairs; positions count from 1."""
    import scipy.io as scipy_io

    persons = sorted({name[:5] for name in names})
    filelist = np.empty((len(names), 1), dtype=object)
    filelist[:, 0] = names
    scipy_io.savemat(
        folder / f"cuhk03_new_protocol_config_{variant}.mat",
        {
            "labels": np.array([[persons.index(name[:5]) + 1] for name in names], np.uint16),
            "camId": np.array([[int(name[6])] for name in names], np.uint8),
            "filelist": filelist,
            **{f"{split}_idx": np.array([[n] for n in numbers], np.uint16) for split, numbers in splits.items()},
        },
    )


NAMES = ["1_001_1_01.png", "1_001_2_06.png", "1_002_1_02.png", "1_002_2_10.png", "1_003_1_01.png", "5_001_2_07.png"]
SPLIT = {"train": [1, 2, 6], "query": [3], "gallery": [4, 5]}


def test_cuhk03_is_made_from_its_source_once(tmp_path):
    release = tmp_path / "cuhk03_release"
    release.mkdir()
    pictures = write_source(release)
    for variant in cuhk03np.LAYOUTS:
        write_config(tmp_path, variant, NAMES, SPLIT)  # next to the release's folder
        splits = datasets.read(f"cuhk03np_{variant}", tmp_path)
        root = release / "cuhk03-np" / variant
        assert splits.root == str(root)
        assert triples(splits.train, root) == [
            ("bounding_box_train/0001_c1_01.png", 1, 1),
            ("bounding_box_train/0001_c2_06.png", 1, 2),
            ("bounding_box_train/0004_c2_07.png", 4, 2),
        ]
        assert triples(splits.query, root) == [("query/0002_c1_02.png", 2, 1)]
        assert triples(splits.gallery, root) == [
            ("bounding_box_test/0002_c2_10.png", 2, 2),
            ("bounding_box_test/0003_c1_01.png", 3, 1),
        ]
        for path, key in [
            ("bounding_box_train/0004_c2_07.png", (variant, 5, 1, 7)),
            ("query/0002_c1_02.png", (variant, 1, 2, 2)),
            ("bounding_box_test/0003_c1_01.png", (variant, 1, 3, 1)),
        ]:
            with Image.open(root / path) as image:
                np.testing.assert_array_equal(np.asarray(image), pictures[key])
    (release / "cuhk-03.mat").write_bytes(b"no longer needed")
    assert datasets.read(f"cuhk03np_{variant}", tmp_path) == splits


def test_cuhk03_source_mistakes_leave_nothing_behind(tmp_path):
    write_source(tmp_path)
    assert "cuhk03_new_protocol_config_labeled.mat" in fails("cuhk03np_labeled", tmp_path)

    write_config(tmp_path, "labeled", [*NAMES, "1_002_1_05.png"], {**SPLIT, "query": [7]})  # never taken
    assert "image 5 of person 2 of pair 1" in fails("cuhk03np_labeled", tmp_path)
    write_config(tmp_path, "labeled", [*NAMES, "1_009_1_01.png"], {**SPLIT, "query": [7]})
    assert "person 9 of pair 1" in fails("cuhk03np_labeled", tmp_path)
    write_config(tmp_path, "labeled", NAMES, {**SPLIT, "query": [7]})  # past the end
    assert "could not read it" in fails("cuhk03np_labeled", tmp_path)
    (tmp_path / "cuhk03_new_protocol_config_labeled.mat").write_bytes(b"x" * 200)
    assert "expected the new protocol's split file" in fails("cuhk03np_labeled", tmp_path)

    write_config(tmp_path, "labeled", NAMES, SPLIT)
    whole = (tmp_path / "cuhk-03.mat").read_bytes()
    (tmp_path / "cuhk-03.mat").write_bytes(whole[: len(whole) // 2])
    assert "could not make" in fails("cuhk03np_labeled", tmp_path)
    assert not list((tmp_path / "cuhk03-np").iterdir())


def test_cuhk03_without_h5py_names_the_command(tmp_path, monkeypatch):
    write_source(tmp_path)
    write_config(tmp_path, "detected", NAMES, SPLIT)
    monkeypatch.setitem(sys.modules, "h5py", None)
    assert "pip install h5py" in fails("cuhk03np_detected", tmp_path)


def test_the_other_variants_folder_is_refused(tmp_path):
    own = plant(tmp_path / "detected", CUHK)
    assert "choose cuhk03np_detected" in fails("cuhk03np_labeled", own)
    assert "looked for" in fails("cuhk03np_labeled", tmp_path)


@needs_real
def test_official_counts_equal_the_split_files():
    import scipy.io as scipy_io

    for variant, layout in cuhk03np.LAYOUTS.items():
        config = scipy_io.loadmat(REAL / "cuhk03-np-split" / f"cuhk03_new_protocol_config_{variant}.mat")
        for split, count in layout.official.items():
            at = config[f"{split}_idx"].ravel().astype(int) - 1
            cameras = Counter(config["camId"].ravel()[at].tolist())
            assert (len(at), len(set(config["labels"].ravel()[at].tolist()))) == (count.images, count.identities)
            assert dict(cameras) == dict(count.cameras)


@needs_real
def test_the_real_images():
    splits = datasets.read("cuhk03np_detected", REAL / "cuhk03-np-p1")
    assert [(len(s), len({sample.pid for sample in s})) for s in splits[2:5]] == [(4292, 443), (800, 400), (3085, 400)]
    assert splits.official_split is False
    assert splits.root == str(REAL / "cuhk03-np-p1" / "detected")
    assert not {s.pid for s in splits.train} & {s.pid for s in splits.query + splits.gallery}
    assert {sample.camid for samples in splits[2:5] for sample in samples} == {1, 2}


# --- one's own images -------------------------------------------------------------------------------------------------


def test_a_folder_a_person_is_divided_in_the_fields_manner(tmp_path):
    tree = {
        "anna": ["c1_1.jpg", "c2_1.jpg"],  # first: training
        "bert": ["c1_1.jpg", "c1_2.jpg", "CAM2-9.PNG", "x c2.jpeg"],  # two queries, two in the gallery
        "cleo": ["c1_1.jpg"],  # third: training
        "dora": ["c3_0.jpg", "c10_0.jpg"],  # an image a camera: one query, one in the gallery
        "emil": ["0002_c1s1_000451_03.jpg"],
        "finn": ["c1.jpg"],  # an only image: gallery
    }
    plant(tmp_path, tree)
    splits = datasets.read("folder", tmp_path)
    assert [(pid, camid) for _, pid, camid in triples(splits.train, tmp_path)] == [(1, 1), (1, 2), (3, 1), (5, 1)]
    assert triples(splits.query, tmp_path) == [
        ("bert/CAM2-9.PNG", 2, 2),
        ("bert/c1_1.jpg", 2, 1),
        ("dora/c3_0.jpg", 4, 3),
    ]
    assert triples(splits.gallery, tmp_path) == [
        ("bert/c1_2.jpg", 2, 1),
        ("bert/x c2.jpeg", 2, 2),
        ("dora/c10_0.jpg", 4, 10),
        ("finn/c1.jpg", 6, 1),
    ]
    assert splits.official_split is None
    assert splits.warnings == []


def test_given_folders_of_the_split(tmp_path):
    plant(tmp_path, {"query/bo": ["c1.jpg"], "gallery/bo": ["c2.jpg"], "gallery/al": ["c1.jpg"]})
    splits = datasets.read("folder", tmp_path)
    assert triples(splits.query, tmp_path) == [("query/bo/c1.jpg", 2, 1)]
    assert triples(splits.gallery, tmp_path) == [("gallery/al/c1.jpg", 1, 1), ("gallery/bo/c2.jpg", 2, 2)]
    assert splits.train == []
    assert "evaluation only" in splits.warnings[0]
    plant(tmp_path, {"train/zoe": ["c1.jpg", "notes.txt"]})
    splits = datasets.read("folder", tmp_path)
    assert triples(splits.train, tmp_path) == [("train/zoe/c1.jpg", 3, 1)]
    assert splits.warnings == ["folder: left out 1 files and folders that hold no images: zoe/notes.txt"]


@pytest.mark.parametrize(
    ("tree", "said"),
    [
        ({}, "found no image"),
        ({"anna": []}, "found no image"),
        ({"anna": ["0001.jpg", "c1_1.jpg"], "bert": ["cab2.jpg"]}, "2 in"),
        ({"anna": ["c1_c2.jpg"]}, "anna/c1_c2.jpg"),
        ({"anna": ["c1_1.jpg"]}, "two persons or more"),
        ({"anna/c1": ["1.jpg"]}, "found folder c1/"),
        ({"train/anna": ["c1.jpg"]}, "found train/ alone"),
        ({"query/anna": ["c1.jpg"], "gallery": []}, "found 1 and 0"),
    ],
)
def test_folder_mistakes(tree, said, tmp_path):
    assert said in fails("folder", plant(tmp_path, tree))


@pytest.mark.parametrize("folders", [("train", "gallery"), ("bounding_box_train", "bounding_box_test")])
def test_flat_folders_tell_the_person_by_name(folders, tmp_path):
    train, gallery = folders
    tree = {
        train: ["0007_c12s1_000001_01.jpg", "-1_c1s1_000001_01.jpg", "Thumbs.db"],
        "query": ["1502_c1s1_000002_00.jpg.jpg", "-1_c2s1_000002_00.jpg"],
        gallery: ["1502_c7s1_000003_01.PNG", "0000_c1s1_000004_01.jpg", "-1_c1s1_000005_01.jpg", "list.txt"],
    }
    splits = datasets.read("folder", plant(tmp_path, tree))
    assert triples(splits.train, tmp_path) == [(f"{train}/0007_c12s1_000001_01.jpg", 1, 12)]
    assert triples(splits.query, tmp_path) == [("query/1502_c1s1_000002_00.jpg.jpg", 2, 1)]
    assert triples(splits.gallery, tmp_path) == [
        (f"{gallery}/-1_c1s1_000005_01.jpg", JUNK, 1),
        (f"{gallery}/0000_c1s1_000004_01.jpg", DISTRACTOR, 1),
        (f"{gallery}/1502_c7s1_000003_01.PNG", 2, 7),
    ]
    assert splits.warnings == [
        "folder: left out 1 files and folders that hold no images: list.txt",
        "folder: left out 2 images of training and queries that are nobody's (person -1)",
    ]


def test_person_0000_who_is_asked_for_is_a_person(tmp_path):
    splits = datasets.read("folder", plant(tmp_path, {"query": ["0000_c1_1.jpg"], "gallery": ["0000_c2_1.jpg"]}))
    assert [(s.pid, s.camid) for s in splits.query + splits.gallery] == [(1, 1), (1, 2)]


def test_one_flat_folder_is_divided(tmp_path):
    splits = datasets.read("folder", plant(tmp_path, {".": ["anna-cam1.jpg", "bert_c1_1.jpg", "bert_c2_1.jpg"]}))
    assert triples(splits.train, tmp_path) == [("anna-cam1.jpg", 1, 1)]
    assert triples(splits.query, tmp_path) == [("bert_c1_1.jpg", 2, 1)]
    assert triples(splits.gallery, tmp_path) == [("bert_c2_1.jpg", 2, 2)]


def test_images_beside_the_persons_folders_are_left_out_aloud(tmp_path):
    splits = datasets.read("folder", plant(tmp_path, {".": ["all_c1.jpg"], "a": ["c1.jpg"], "b": ["c1.jpg", "c2.jpg"]}))
    assert len(splits.train + splits.query + splits.gallery) == 3
    assert splits.warnings == ["folder: left out 1 files and folders that hold no images: all_c1.jpg"]


@pytest.mark.parametrize(
    ("name", "tree", "said"),
    [
        # one's own images, given to another reader: what was seen, and what reads it
        ("market1501", {"train": [], "query": [], "gallery": []}, "which holds gallery, query, train; "),
        ("dukemtmc", {".": ["list.csv"]}, "which holds list.csv; "),
        ("msmt17", {"query": [], "gallery": []}, "which holds gallery, query; "),
        ("market1501", MARKET | {"query": ["0001_c7s1_1.jpg", "0001_c12s1_1.jpg"]}, "(camera 7, 12: market1501 has"),
        ("market1501", MARKET | {"query": ["1502_c1s1_000001_00.jpg"]}, "(person 1502: market1501 has none such)"),
    ],
)
def test_one_s_own_images_are_sent_to_their_reader(name, tree, said, tmp_path):
    message = fails(name, plant(tmp_path, tree))
    assert said in message
    assert "one's own images are read as the data set folder" in message


@pytest.mark.parametrize("name", ["market1501", "cuhk03np_labeled", "msmt17"])
def test_a_csv_given_to_another_reader_is_sent_to_its_own(name, tmp_path):
    (tmp_path / "list.csv").touch()
    assert "list.csv (a file; a CSV is read as the data set folder)" in fails(name, tmp_path / "list.csv")


def test_a_flat_folder_without_cameras_says_what_was_seen(tmp_path):
    plant(tmp_path, {"campus": [f"{person:04d}{image:03d}.png" for person in (1, 2) for image in (1, 2, 3, 4)]})
    message = fails("folder", tmp_path / "campus")
    assert f"found 8 images in {tmp_path / 'campus'} and no folder a person, but 8 of their names" in message
    assert "0001001.png, 0001002.png, 0001003.png and 5 more" in message
    assert "list them in a CSV with path,pid,camid" in message


def write_csv(path: Path, rows: list[list[str]], encoding: str = "utf-8") -> Path:
    with path.open("w", newline="", encoding=encoding) as stream:
        csv.writer(stream).writerows(rows)
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_csv_with_splits(tmp_path, encoding):
    plant(tmp_path, {"a b": ["1.jpg", "2.jpg", "3.jpg"]})
    rows = [
        ["split", "camid", "pid", "path", "remark"],
        ["gallery", "12", "zoë", "a b/3.jpg", ""],
        ["query", "0", "zoë", str(tmp_path / "a b/2.jpg"), "an absolute path"],
        ["train", "3", "10", "a b/1.jpg", "x, y"],
    ]
    table = write_csv(tmp_path / "list.csv", rows, encoding)
    splits = datasets.read("folder", table)
    assert triples(splits.train, tmp_path) == [("a b/1.jpg", 1, 3)]
    assert triples(splits.query, tmp_path) == [("a b/2.jpg", 2, 0)]
    assert triples(splits.gallery, tmp_path) == [("a b/3.jpg", 2, 12)]
    assert datasets.read("folder", tmp_path) == splits


def test_a_csv_without_splits_is_divided_like_folders(tmp_path):
    names = [f"{person}/c{camera}_{n}.jpg" for person in "abcd" for camera in (1, 2) for n in range(3)]
    for name in names:
        plant(tmp_path / "images", {name[0]: [name[2:]]})
    table = write_csv(tmp_path / "list.csv", [["path", "pid", "camid"], *([f"images/{n}", n[0], n[3]] for n in names)])
    by_table, by_folder = datasets.read("folder", table), datasets.read("folder", tmp_path / "images")
    assert by_table[2:5] == by_folder[2:5]
    assert [len(samples) for samples in by_table[2:5]] == [12, 4, 8]


HEADER = ["path", "pid", "camid"]


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ([], "it has nothing"),
        ([HEADER], "found none"),
        ([["path", "pid"], ["1.jpg", "a"]], "add camid"),
        ([["path;pid;camid"], ["1.jpg;a;one"]], "line 2: expected a camid"),  # as spreadsheets of some countries write
        ([HEADER, ["1.jpg", "a", "1"], ["1.jpg", "a", "one"]], "line 3: expected a camid"),
        ([HEADER, ["1.jpg", "a", "-1"]], "line 2: expected a camid"),
        ([HEADER, ["1.jpg", "", "1"]], "line 2: expected a path and a pid"),
        ([HEADER, ["1.jpg", "a"]], "line 2: expected a camid"),
        ([HEADER, ["1.jpg", "a", "1"], ["./1.jpg", "b", "1"]], "line 3: repeats the path of line 2"),
        ([HEADER, ["1.jpg", "a", "1"], ["no.jpg", "b", "1"]], "1 of 2 paths do not exist"),
        ([[*HEADER, "split"], ["1.jpg", "a", "1", "test"]], "line 2: expected split to be train, query, gallery"),
        ([[*HEADER, "split"], ["1.jpg", "a", "1", "train"]], "both query and gallery"),
    ],
)
def test_csv_mistakes_name_the_line(rows, said, tmp_path):
    (tmp_path / "1.jpg").touch()
    assert said in fails("folder", write_csv(tmp_path / "list.csv", rows))


def test_csv_files_that_are_none(tmp_path):
    (tmp_path / "list.csv").write_bytes(b"path,pid,camid\n\xff\xfe1.jpg,a,1\n")
    assert "UTF-8" in fails("folder", tmp_path)
    (tmp_path / "second.csv").touch()
    assert "expected one CSV" in fails("folder", tmp_path)
    assert "no such folder or file" in fails("folder", tmp_path / "third.csv")


@pytest.mark.parametrize("separator", [";", "\t", ","])
def test_a_csv_s_separator_is_seen(separator, tmp_path):
    plant(tmp_path, {"a": ["1.jpg", "2;3.jpg"]})
    lines = [["camid", "split", "pid", "path"], ["4", "query", "x", "a/1.jpg"], ["7", "gallery", "x", "a/2;3.jpg"]]
    with (tmp_path / "list.csv").open("w", newline="") as stream:
        csv.writer(stream, delimiter=separator).writerows(lines)
    splits = datasets.read("folder", tmp_path)
    assert triples(splits.query, tmp_path) == [("a/1.jpg", 1, 4)]
    assert triples(splits.gallery, tmp_path) == [("a/2;3.jpg", 1, 7)]


@pytest.mark.parametrize("camid", ["12345678901234567890", "9" * 5000, "1e3", ""])
def test_a_camera_that_is_no_number_of_one_is_refused_by_its_line(camid, tmp_path):
    (tmp_path / "1.jpg").touch()
    message = fails("folder", write_csv(tmp_path / "list.csv", [HEADER, ["1.jpg", "a", camid]]))
    assert "line 2: expected a camid that is a whole number from 0 of at most 9 digits" in message
    assert len(message) < 400


def test_the_longest_camera_numbers(tmp_path):
    plant(tmp_path, {"query/a": ["c999999999.jpg"], "gallery/a": ["c0000000000012.jpg"]})
    splits = datasets.read("folder", tmp_path)
    assert [splits.query[0].camid, splits.gallery[0].camid] == [999999999, 12]
    plant(tmp_path, {"gallery/a": ["c12345678901234567890_1.jpg"]})
    assert "a/c12345678901234567890_1.jpg" in fails("folder", tmp_path)


def test_a_minus_one_in_a_csv_is_said_to_be_a_person(tmp_path):
    plant(tmp_path, {"i": ["1.jpg", "2.jpg", "3.jpg"]})
    rows = [HEADER, ["i/1.jpg", "-1", "1"], ["i/2.jpg", "7", "1"], ["i/3.jpg", "7", "2"]]
    splits = datasets.read("folder", write_csv(tmp_path / "list.csv", rows))
    assert [sample.pid for sample in splits.train] == [1]
    assert '"-1" is a person' in splits.warnings[0]


def test_divide_loses_and_doubles_nothing():
    random = np.random.default_rng(1)
    samples = [Sample(f"{n:03d}", int(random.integers(1, 21)), int(random.integers(1, 4))) for n in range(200)]
    samples += [Sample(f"{200 + pid}", pid, 1) for pid in range(1, 21)]
    lists: dict[str, list[Sample]] = {"train": [], "query": [], "gallery": []}
    folder.divide(samples[::-1], lists)
    assert sorted(lists["train"] + lists["query"] + lists["gallery"]) == sorted(samples)
    assert {sample.pid % 2 for sample in lists["train"]} == {1}
    assert max(Counter((sample.pid, sample.camid) for sample in lists["query"]).values()) == 1


def test_splits_are_plain_values(tmp_path):
    splits = datasets.read("market1501", plant(tmp_path, MARKET))
    assert isinstance(splits, Splits)
    assert all(isinstance(sample.path, str) for sample in splits.gallery)
    assert all(type(sample.pid) is int and type(sample.camid) is int for sample in splits.gallery)


def test_distractors_beside_the_gallery_are_nobody(tmp_path: Path) -> None:
    root = plant(tmp_path / "market1501", MARKET | {"images": ["0000_c2s1_000001_00.jpg", "0007_c1s1_000009_00.jpg"]})
    splits = datasets.read("market1501", root)
    found = datasets.distractors(splits)
    assert [(Path(sample.path).name, sample.pid, sample.camid) for sample in found] == [
        ("0000_c2s1_000001_00.jpg", DISTRACTOR, 2),
        ("0007_c1s1_000009_00.jpg", DISTRACTOR, 1),
    ]
    assert len(splits.gallery) == 4, "the gallery is as before"


def test_no_distractors_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match="expected images in .*images, which is missing"):
        datasets.distractors(datasets.read("market1501", plant(tmp_path / "market1501", MARKET)))
    with pytest.raises(ReidError, match="dukemtmc has no distractors beside its gallery"):
        datasets.distractors(datasets.read("dukemtmc", plant(tmp_path / "duke", DUKE)))


def test_multi_query_images_are_of_the_query_persons_and_cameras(tmp_path: Path) -> None:
    boxes = {
        "gt_bbox": [
            "0001_c1s1_001051_00.jpg",
            "0001_c1s2_000002_00.jpg",
            "0001_c2s1_000001_00.jpg",
            "0009_c1s1_000001_00.jpg",
        ]
    }
    boxed = datasets.read("market1501", plant(tmp_path / "boxed", MARKET | boxes))
    plain = datasets.read("market1501", plant(tmp_path / "plain", MARKET))
    names = [
        [Path(s.path).parent.name + "/" + Path(s.path).name for s in datasets.multi_query(x)] for x in (boxed, plain)
    ]
    assert names[0] == ["gt_bbox/0001_c1s1_001051_00.jpg", "gt_bbox/0001_c1s2_000002_00.jpg"]
    assert names[1] == ["bounding_box_test/0001_c1s2_001051_02.jpg", "query/0001_c1s1_001051_00.jpg"]


# ---- as their authors' archives hold them

LITTER = (
    "Thumbs.db",
    ".DS_Store",
    "._0002_c1s1_000451_03.jpg",
    "desktop.ini",
    "readme.txt",
    "LICENSE_DukeMTMC.txt",
    "a.mat",
)


@pytest.mark.parametrize("name", LAYOUTS)
def test_what_archives_hold_beside_the_images_is_passed_over(name, tmp_path):
    tree, below = LAYOUTS[name]
    own = plant(tmp_path / below, tree)
    expected = datasets.read(name, tmp_path)
    for split in parse.FOLDERS.values():
        for litter in LITTER:
            (own / split / litter).write_bytes(b"x")
    (own / "readme.txt").write_bytes(b"x")
    found = datasets.read(name, tmp_path)
    assert (found.train, found.query, found.gallery) == (expected.train, expected.query, expected.gallery)


@pytest.mark.parametrize("suffix", [".JPG", ".jpeg", ".png", ".jpg.jpg", ".JPG.jpg"])
@pytest.mark.parametrize("name", LAYOUTS)
def test_suffixes_are_read_as_they_come(name, suffix, tmp_path):
    tree, below = LAYOUTS[name]
    own = plant(tmp_path / below, tree)
    before = datasets.read(name, tmp_path)
    for path in (own / "query").iterdir():
        path.rename(path.with_suffix(suffix))
    found = datasets.read(name, tmp_path)
    assert [(s.pid, s.camid) for s in found.query] == [(s.pid, s.camid) for s in before.query]
    assert all(s.path.endswith(suffix) for s in found.query)


@pytest.mark.parametrize("name", LAYOUTS)
def test_an_archive_unpacked_into_a_folder_of_its_own_name_is_found(name, tmp_path):
    tree, below = LAYOUTS[name]
    top = Path(below).parts[0]
    plant(tmp_path / top / below, tree)
    assert datasets.read(name, tmp_path).query


@needs_real
def test_the_official_market1501_has_its_counts():
    splits = datasets.read("market1501", REAL / "market1501")
    assert splits.official_split is True and splits.warnings == []
    train, query, gallery = (parse.count(x) for x in (splits.train, splits.query, splits.gallery))
    assert (train.images, train.identities) == (12936, 751)
    assert train.cameras == {1: 2017, 2: 1709, 3: 2707, 4: 920, 5: 2338, 6: 3245}
    assert (query.images, query.identities) == (3368, 750)
    assert query.cameras == {1: 668, 2: 530, 3: 717, 4: 248, 5: 622, 6: 583}
    assert (gallery.images, gallery.identities, gallery.distractors, gallery.junk) == (19732, 750, 2798, 3819)
    assert gallery.cameras == {1: 3156, 2: 2944, 3: 3803, 4: 1671, 5: 3814, 6: 4344}
    places = Counter((s.pid, s.camid) for s in splits.gallery)
    of_person = Counter(s.pid for s in splits.gallery)
    matches = [of_person[s.pid] - places[s.pid, s.camid] for s in splits.query]
    assert (min(matches), max(matches)) == (1, 68) and round(sum(matches) / len(matches), 2) == 14.74
