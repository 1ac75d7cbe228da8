"""`index`, `search` and `gallery` as a user meets them."""

from __future__ import annotations

import csv
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import run_reid
from reid.gallery import Entry, Filter, Gallery, fuse, hash_file, parse_time
from reid.models.embedder import Embedder
from reid.models.model import ReidModel, load_model, save_model
from reid.retrieval.rerank import rerank
from tests.test_cli import refused
from tests.test_gallery import make_milvus


@pytest.fixture
def weights(make_model: Callable[..., ReidModel], tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


@pytest.fixture
def crops(people: Path, tmp_path: Path) -> Path:
    """mine/: 24 crops named PPPP_cC...; and mine.csv, which says who, where and when of 20."""
    folder = tmp_path / "mine"
    shutil.copytree(people / "bounding_box_train", folder)
    with (tmp_path / "mine.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "pid", "camid", "time", "track"])
        for n, path in enumerate(sorted(folder.iterdir())[:20]):
            pid, camera = path.name.split("_")[:2]
            at = f"2026-11-{n + 1:02}T12:00"
            rows.writerow([f"mine/{path.name}", f"p{int(pid)}", camera[1], at if n else "", str(n // 2)])
    return folder


def done(*words: object) -> int | None:
    return run_reid.main([str(word) for word in words])


def ask(capsys: pytest.CaptureFixture[str], *words: object) -> list[dict[str, object]]:
    capsys.readouterr()
    assert done("search", *words, "--json") == 0
    answers: list[dict[str, object]] = json.loads(capsys.readouterr().out)
    return answers


@pytest.fixture
def gallery(crops: Path, weights: Path, tmp_path: Path) -> Gallery:
    """Of the 20 crops of mine.csv."""
    assert done("index", tmp_path / "mine.csv", "--weights", weights, "--gallery", tmp_path / "g") == 0
    return Gallery.open(tmp_path / "g")


def test_a_table_is_indexed_with_what_it_says(gallery: Gallery, crops: Path) -> None:
    names = sorted(crops.iterdir())[:20]
    entries = list(gallery.entries())
    assert [entry.path for entry in entries] == [str(path) for path in names]
    expected = Entry(5, str(names[5]), "p2", 1, parse_time("2026-11-06T12:00"), hash=hash_file(names[5]))
    assert entries[5]._replace(added=0) == expected._replace(fields={"track": "2"})
    assert entries[0].time is None
    assert entries[19].fields == {"track": "9"}


def test_only_what_is_new_is_indexed(
    gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = sorted(crops.iterdir())[:2]
    words = ["index", f"{crops}/*_c*.jpg", "--weights", gallery.model_path, "--gallery", gallery.path]
    shutil.copy(first, crops / "copy_c1.jpg")
    shutil.copy(people_image(crops, 23), second)
    capsys.readouterr()
    assert done(*words) == 0
    told = capsys.readouterr().out
    assert "4 images added, 23 in all, 1 of them in the place of older content" in told
    assert "were there already by their content" in told
    assert gallery.count(Filter(paths=[str(crops / "copy_c1.jpg")])) == 0
    assert [(e.key, e.hash) for e in gallery.entries(Filter(paths=[str(second)]))] == [(20, hash_file(second))]
    assert done(*words) == 0
    assert "0 images added, 23 in all" in capsys.readouterr().out


def people_image(crops: Path, number: int) -> Path:
    return sorted(path for path in crops.iterdir() if "copy" not in path.name)[number]


def test_unreadable_images_are_named_or_left_out(
    weights: Path, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    victim = sorted(crops.iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:300])
    words = ["index", tmp_path / "mine.csv", "--weights", weights, "--gallery", tmp_path / "g"]
    assert victim.name in refused(capsys, *words)
    assert not (tmp_path / "g").exists()
    assert done(*words, "--skip-bad") == 0
    assert len(Gallery.open(tmp_path / "g")) == 19


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("name\na.jpg", "expected a first line with path"),
        ("path,camid\na.jpg,one", "line 2: expected a camid that is a whole number"),
        ("path,time\n\na.jpg,noon", "line 3: a time is"),
        ("path,pid\na.jpg,1,2", "line 2: has more values"),
        ("path,pid\n,1", "line 2: expected a path"),
    ],
)
def test_wrong_tables(text: str, told: str, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "t.csv").write_text(text)
    assert told in refused(capsys, "index", tmp_path / "t.csv", "--weights", weights, "--gallery", tmp_path / "g")


def test_several_images_of_one_person_are_one_search(
    gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = sorted(crops.iterdir())[20:23]
    assert gallery.model_path is not None
    vectors = Embedder(load_model(gallery.model_path)).embed([str(path) for path in images])
    expected = gallery.search(fuse(vectors), 5)
    found = ask(capsys, gallery.path, *images, "--top-k", 5, "--picture", tmp_path / "p.png")
    assert [answer["key"] for answer in found] == expected.keys[0].tolist()
    with Image.open(tmp_path / "p.png") as picture:
        assert picture.width > 200
    keyed = ask(capsys, gallery.path, "--key", 3, "--top-k", 30, "--picture", tmp_path / "p.png")
    assert [a["key"] for a in keyed] == [k for k in gallery.search(gallery.vectors([3]), 20).keys[0] if k != 3]


@pytest.mark.parametrize(
    ("words", "meets"),
    [
        (["--camera", 2], lambda a: a["camid"] == 2),
        (["--exclude-camera", 2], lambda a: a["camid"] != 2),
        (["--pid", "p1", "--pid", "p3"], lambda a: a["pid"] in ("p1", "p3")),
        (
            ["--after", "2026-11-05", "--before", "2026-11-09"],
            lambda a: "2026-11-05" <= (a["time"] or "") < "2026-11-09",
        ),
        (["--field", "track=4"], lambda a: a["fields"]["track"] == "4"),
        (["--camera", 2, "--pid", "p9"], lambda a: False),
    ],
)
def test_search_among_some(
    words: list[object],
    meets: Callable[[dict[str, object]], bool],
    gallery: Gallery,
    crops: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    search = [gallery.path, people_image(crops, 22), "--picture", tmp_path / "p.png", "--top-k", 99]
    everything = ask(capsys, *search)
    assert len(everything) == 20
    assert ask(capsys, *search, *words) == [answer for answer in everything if meets(answer)]


def test_one_answer_a_person(gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    search = [gallery.path, people_image(crops, 22), "--picture", tmp_path / "p.png", "--top-k", 99]
    best: dict[object, dict[str, object]] = {}
    for answer in ask(capsys, *search):
        best.setdefault(answer["pid"], answer)
    assert ask(capsys, *search, "--group-by", "pid") == list(best.values())


def test_reranked_search_orders_as_reranking_does(
    gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    search = [gallery.path, people_image(crops, 22), "--picture", tmp_path / "p.png", "--top-k", 20]
    cosine = {answer["key"]: answer["score"] for answer in ask(capsys, *search)}
    found = ask(capsys, *search, "--rerank", "--k1", 6, "--k2", 1, "--lambda", 0.001)
    assert gallery.model_path is not None
    query = Embedder(load_model(gallery.model_path)).embed([str(people_image(crops, 22))])
    keys = [entry.key for entry in gallery.entries()]
    bonus = rerank(query, gallery.vectors(keys), k1=6, k2=1, lambda_=0.001).toarray()[0]
    moved = sorted(keys, key=lambda key: -(cosine[key] + bonus[keys.index(key)]))
    assert [answer["key"] for answer in found] == moved != list(cosine)
    assert {answer["key"]: answer["score"] for answer in found} == cosine

    best: dict[object, dict[str, object]] = {}
    for answer in found:
        best.setdefault(answer["pid"], answer)
    words = [*search, "--rerank", "--k1", 6, "--k2", 1, "--lambda", 0.001, "--group-by"]
    assert ask(capsys, *words, "pid") == list(best.values())
    assert "none of the 20 nearest images has the field 'lane'" in refused(capsys, "search", *words, "lane")
    assert "add --rerank" in refused(capsys, "search", *search, "--k1", 4)


def test_a_folder_of_queries_becomes_a_table(
    gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    queries = tmp_path / "queries"
    queries.mkdir()
    for path in sorted(crops.iterdir())[18:24]:
        shutil.copy(path, queries)
    out = tmp_path / "out.csv"
    assert done("search", gallery.path, queries, "--output", out, "--top-k", 3, "--exclude-camera", 1) == 0
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 18
    assert gallery.model_path is not None
    images = sorted(str(path) for path in queries.iterdir())
    vectors = Embedder(load_model(gallery.model_path)).embed(images)
    ranking = gallery.search(vectors, 3, filter=Filter(exclude_camids=[1]))
    assert [int(row["key"]) for row in rows] == ranking.keys.ravel().tolist()
    assert [row["query"] for row in rows[::3]] == images
    assert np.allclose([float(row["score"]) for row in rows], ranking.scores.ravel())


def test_moved_images(gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    moved = tmp_path / "elsewhere"
    crops.rename(moved)
    query = sorted(moved.iterdir())[0]
    search = [gallery.path, query, "--picture", tmp_path / "p.png", "--top-k", 1]
    assert ask(capsys, *search, "--root", f"{crops}={moved}")[0]["path"] == str(query)
    assert ask(capsys, *search, "--root", f"/no={moved}")[0]["path"] == str(crops / query.name)
    from reid.gallery.answers import moved

    place = moved(f"{crops}={moved}")
    for path in (f"{crops}/../secret", "/etc/passwd", str(crops) + "-not/a.jpg"):
        assert place(path) == path


def test_wrong_searches(gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    image = people_image(crops, 0)
    for words, told in (
        ([], "either images of one person"),
        ([image, "--key", 1], "either images of one person"),
        ([crops], "is a folder"),
        ([image, "--output", tmp_path / "o.csv", "--json"], "leave --key, --json"),
        ([image, "--field", "track"], "--field takes NAME=VALUE"),
        ([image, "--after", "noon"], "a time is"),
        ([image, "--root", "here"], "--root takes OLD=NEW"),
        ([image, "--group-by", "lane"], "no image has the field 'lane'"),
        (["--key", 99], "no image has the key 99"),
        ([image, "--max-false-accept", 0.1], "needs a calibrated model"),
    ):
        assert told in refused(capsys, "search", gallery.path, *words)


def test_gallery_actions(
    gallery: Gallery, crops: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def say(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert done("gallery", *words) == code
        return capsys.readouterr().out

    assert "images          20" in say("info", gallery.path)
    assert json.loads(say("info", gallery.path, "--json"))["cameras"] == {"1": 10, "2": 10}
    assert "no problems found" in say("check", gallery.path)
    assert "entries.csv, vectors.npy" in say("export", gallery.path, "--output", tmp_path / "out")
    assert done("index", *sorted(crops.iterdir())[18:22], "--weights", weights, "--gallery", tmp_path / "h") == 0
    assert "2 images added, 2 were there already" in say("merge", gallery.path, tmp_path / "h")
    first = sorted(crops.iterdir())[0]
    assert "1 images removed, 21 remain" in say("remove", gallery.path, "--path", first)
    assert "2 images removed, 19 remain" in say("remove", gallery.path, "--key", 20, "--key", 21)
    assert "1 images removed, 18 remain" in say("remove", gallery.path, "--camera", 1, "--before", "2026-11-03")
    assert "1 images removed" not in say("remove", gallery.path, "--pid", "nobody")
    assert "takes a condition" in refused(capsys, "gallery", "remove", gallery.path)
    left = gallery.count(Filter(pids=["p4"]))
    assert f"{left} images of p4 deleted" in say("forget", gallery.path, "--pid", "p4")
    assert not any(b"0004_c" in file.read_bytes() for file in gallery.path.iterdir())
    assert "to 1," in say("compact", gallery.path)
    assert "0 images deleted" in say("expire", gallery.path, "--older-than", "5000w")
    assert "an age is" in refused(capsys, "gallery", "expire", gallery.path, "--older-than", "30")
    file = next(gallery.path.glob("vectors-*"))
    file.write_bytes(file.read_bytes()[:-5])
    assert "check --repair" in refused(capsys, "search", gallery.path, "--key", 5)
    assert "1 of its" in say("check", gallery.path, code=1)
    assert "1 images dropped" in say("check", gallery.path, "--repair")
    assert "no problems found" in say("check", gallery.path)
    with pytest.raises(SystemExit):
        done("gallery")


def test_presets(
    gallery: Gallery, crops: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["index", crops, "--weights", gallery.model_path, "--gallery", gallery.path, "--preset", "auto"]
    assert done(*words) == 0
    assert gallery.info().preset == "auto"
    capsys.readouterr()
    assert done("gallery", "preset", gallery.path, "large", "--recall", 0.9) == 0
    assert "large begins with 1,000" in capsys.readouterr().out
    monkeypatch.setattr("reid.gallery.index.sq8.LEAST", 20)
    before = gallery.search(gallery.vectors([3]), 5).keys
    assert done("gallery", "preset", gallery.path, "compact") == 0
    assert "kind codec, images 24, bytes 32" in capsys.readouterr().out
    assert done("gallery", "info", gallery.path) == 0
    assert "preset          compact" in capsys.readouterr().out
    assert gallery.search(gallery.vectors([3]), 5).keys[0, 0] == before[0, 0] == 3
    assert "its vectors are gone" in refused(capsys, "gallery", "preset", gallery.path, "exact")


def test_the_commands_on_a_gallery_in_milvus(
    gallery: Gallery,
    crops: Path,
    weights: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Nothing changes but the place: `gallery`, a folder, is merged into an empty one, from where all works."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    model = load_model(weights)
    there = make_milvus(
        tmp_path,
        "commands",
        dimension=model.dimension,
        fingerprint=Embedder(model).fingerprint,
        input_size=model.input_size,
        model=weights,
    )

    def say(*words: object, code: int = 0) -> str:
        capsys.readouterr()
        assert done("gallery", *words) == code
        return capsys.readouterr().out

    place = there.place
    assert "20 images added, 0 were there already" in say("merge", place, gallery.place)
    query = [people_image(crops, 22), "--picture", tmp_path / "p.png", "--camera", 2, "--top-k", 99]
    answers = [ask(capsys, where, *query) for where in (gallery.place, place)]
    assert [a["key"] for a in answers[0]] == [a["key"] for a in answers[1]]
    assert np.allclose([a["score"] for a in answers[0]], [a["score"] for a in answers[1]], atol=1e-6)
    assert done("index", *sorted(crops.iterdir())[18:22], "--weights", weights, "--gallery", place) == 0
    assert "2 images added, 22 in all, 2 were there already by their content" in capsys.readouterr().out
    assert "images          22" in say("info", place)
    assert "no problems found" in say("check", place)
    assert "entries.csv, vectors.npy" in say("export", place, "--output", tmp_path / "out")
    assert "1 images removed, 21 remain" in say("remove", place, "--path", sorted(crops.iterdir())[0])
    assert "no query and no search finds them" in say("forget", place, "--pid", "p4")
    assert "4 images deleted" not in say("expire", place, "--older-than", "5000w")
    assert "asked to merge" in say("compact", place)
    assert there.count(Filter(pids=["p4"])) == 0
