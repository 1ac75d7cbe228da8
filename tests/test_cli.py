"""The program as a user meets it: the main job, each command alone, and what it says to wrong input."""

from __future__ import annotations

import csv
import fcntl
import json
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

import datasets
import run_reid
from datasets import synthetic
from reid import cli
from reid.cli import runs, train
from reid.cli.data import check_images
from reid.gallery import Gallery
from reid.models.embedder import Embedder
from reid.models.model import load_model
from reid.retrieval.calibration import Calibration
from reid.retrieval.evaluate import evaluate
from reid.retrieval.expansion import expand_gallery, expand_queries
from reid.retrieval.protocol import pool_queries
from reid.retrieval.rerank import rerank

REAL = Path(__file__).resolve().parents[2] / "shared" / "data"
FAST = [
    "--set",
    "backbone=scgnet_s",
    "height=64",
    "width=32",
    "pad=4",
    "p=6",
    "k=2",
    "epochs=2",
    "warmup_epochs=1",
    "dim=32",
    "watch_epochs=1",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small synthetic set."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.draw(folder / "synthetic", train_ids=8, test_ids=8, distractors=6, junk=4, size=(64, 32))
    return folder


@pytest.fixture(scope="module")
def run(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of a main job."""
    output = tmp_path_factory.mktemp("runs") / "run"
    assert run_reid.main(["--data-root", str(root), "--output", str(output), *FAST]) == 0
    return output


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Runs the program on a mistake: exit code 2, one line that begins with "error:", which is returned."""
    capsys.readouterr()
    assert run_reid.main([str(word) for word in words]) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith(("warning:", "\r"))]
    errors = [line for line in said if line.startswith("error: ")]
    assert len(errors) == 1, said
    assert said[-1] == errors[0]
    return errors[0]


# ---- the main job


def test_main_job_writes_everything(run: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_bytes())
    asked = {
        "dataset",
        "official_split",
        "rank1",
        "rank5",
        "rank10",
        "mAP",
        "mAP_trapezoid",
        "mINP",
        "num_query",
        "num_gallery",
        "num_query_without_match",
        "train_seconds",
        "embed_images_per_second",
    }
    assert asked <= metrics.keys()
    assert metrics["dataset"] == "synthetic"
    assert 0 <= metrics["rank1"] <= metrics["rank5"] <= metrics["rank10"] <= 1
    assert metrics["embed_images_per_second"] > 0
    with Image.open(run / "ranked.png") as picture:
        assert picture.width > 500
    assert "Rank-1" in (run / "report.md").read_text(encoding="utf-8")
    assert yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["dim"] == 32
    assert not list(run.rglob("*.partial"))


def test_metrics_equal_the_library_on_the_same_model(run: Path, root: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_bytes())
    splits = datasets.read("synthetic", root)
    embedder = Embedder(load_model(run / "model.safetensors"))
    query, gallery = (embedder.embed([s.path for s in part]) for part in (splits.query, splits.gallery))
    assert query.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(gallery, axis=1), 1, atol=1e-5)
    ids = [[getattr(s, key) for s in part] for key in ("pid", "camid") for part in (splits.query, splits.gallery)]
    scores = evaluate(query, gallery, *map(np.array, ids))
    for key in ("rank1", "rank5", "rank10", "mAP", "mAP_trapezoid", "mINP", "num_query_without_match"):
        assert metrics[key] == pytest.approx(getattr(scores, key), abs=1e-6), key


def test_the_model_file_carries_its_card(run: Path) -> None:
    card = load_model(run / "model.safetensors").card
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert card["scores"]["mAP"] == metrics["mAP"]
    assert card["data"]["name"] == card["scores"]["dataset"] == "synthetic"
    assert {"architecture", "input_size", "mean", "std", "num_classes", "recipe", "git_revision"} <= card.keys()


def test_scores_through_the_gallery_equal_the_evaluation(run: Path, root: Path) -> None:
    metrics = json.loads((run / "metrics.json").read_bytes())
    splits = datasets.read("synthetic", root)
    gallery = Gallery.open(run / "gallery")
    assert len(gallery) == len(splits.gallery)
    assert gallery.model_path is not None
    embedder = Embedder(load_model(gallery.model_path))
    gallery.check_model(embedder.fingerprint)
    vectors = embedder.embed([s.path for s in splits.query])
    ranking = gallery.search(vectors, len(gallery))
    grid = 2.0**26  # the evaluation's: of nearly equal scores float32 may put either first, exact ones are in one order
    query64, gallery64 = (
        np.rint(x.astype(np.float64) * grid) for x in (vectors, np.load(run / "features/gallery.npy"))
    )
    scores = query64 @ gallery64.T / grid**2
    first, precisions = [], []
    for i, (query, keys) in enumerate(zip(splits.query, ranking.keys, strict=True)):
        assert (np.diff(scores[i, keys]) < 1e-6).all(), "the gallery's order is that of the scores"
        keys = np.argsort(-scores[i], kind="stable")
        found = [gallery.entry(int(key)) for key in keys]
        kept = [e for e in found if e.pid != -1 and (e.pid, e.camid) != (query.pid, query.camid)]
        hits = [rank for rank, entry in enumerate(kept, 1) if entry.pid == query.pid]
        first.append(hits[0] == 1)
        precisions.append(np.mean([n / rank for n, rank in enumerate(hits, 1)]))
    assert np.mean(first) == pytest.approx(metrics["rank1"])
    assert np.mean(precisions) == pytest.approx(metrics["mAP"], abs=1e-6)


def test_finished_it_says_so_and_does_nothing(run: Path, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"}
    assert run_reid.main(["--data-root", str(root), "--output", str(run), *FAST]) == 0
    assert "finished already" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in run.rglob("*") if path.name != ".lock"} == before


def test_it_goes_on_where_it_was(
    root: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-root", str(root), "--output", str(tmp_path / "run"), *FAST]
    import reid.training.train

    whole = reid.training.train.train
    monkeypatch.setattr(reid.training.train, "train", lambda *a, **k: whole(*a, **k, stop_after=3))
    assert run_reid.main(words) == 130
    assert "stopped after step 3 of" in capsys.readouterr().err
    monkeypatch.undo()
    assert run_reid.main(words) == 0
    assert "going on from step 3 of" in capsys.readouterr().out
    ours, theirs = (json.loads((x / "metrics.json").read_bytes()) for x in (tmp_path / "run", run))
    for key in ("rank1", "mAP", "mINP", "fingerprint"):
        assert ours[key] == theirs[key]


# ---- the commands alone


def test_killed_between_embedding_and_report_it_goes_on_without_the_speed(
    run: Path, root: Path, tmp_path: Path
) -> None:
    output = tmp_path / "run"
    shutil.copytree(run, output)
    (output / "metrics.json").unlink()
    facts = json.loads((output / "run.json").read_bytes())
    assert facts.pop("embed_images_per_second") > 0
    (output / "run.json").write_text(json.dumps(facts))
    assert run_reid.main(["--data-root", str(root), "--output", str(output), *FAST]) == 0
    metrics = json.loads((output / "metrics.json").read_bytes())
    assert metrics["embed_images_per_second"] is None
    assert metrics["mAP"] == json.loads((run / "metrics.json").read_bytes())["mAP"]
    assert "embedding speed" not in (output / "report.md").read_text(encoding="utf-8")


def test_evaluate_gives_the_main_jobs_scores(run: Path, root: Path, tmp_path: Path) -> None:
    words = ["evaluate", "--data-root", root, "--weights", run / "model.safetensors", "--output", tmp_path / "e"]
    assert run_reid.main([str(word) for word in words]) == 0
    ours, theirs = (json.loads((x / "metrics.json").read_bytes()) for x in (tmp_path / "e", run))
    assert ours["mAP"] == theirs["mAP"]
    assert ours["train_seconds"] is None


def test_evaluate_several_models_on_several_data_sets(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "synthetic", tmp_path / "data/Market-1501-v15.09.15")
    shutil.copytree(root / "synthetic", tmp_path / "data/synthetic")
    other = tmp_path / "other.safetensors"
    assert run_reid.main(["pack", str(run / "model.safetensors"), str(other)]) == 0
    capsys.readouterr()
    words = ["evaluate", "--data-root", tmp_path / "data", "--dataset", "synthetic", "market1501"]
    words += ["--weights", run / "model.safetensors", other, "--output", tmp_path / "e"]
    assert run_reid.main([str(word) for word in words]) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-3:]]
    assert table[0] == ["Rank-1", "/", "mAP", "synthetic", "market1501"]
    for line, name in zip(table[1:], ("run", "other")):
        for place, dataset in zip((1, 4), ("synthetic", "market1501")):
            scores = json.loads((tmp_path / f"e/evaluate-{dataset}-{name}/metrics.json").read_bytes())
            assert line[place : place + 3] == [f"{scores['rank1']:.1%}", "/", f"{scores['mAP']:.1%}"]
        assert line[0] == name
    twice = [*words[:-4], run / "model.safetensors", run / "model.safetensors"]
    assert "files of different names" in refused(capsys, *twice)


def test_evaluate_with_all_that_it_can(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["evaluate", "--data-root", root, "--weights", run / "model.safetensors", "--output", tmp_path / "e"]
    more = ["--multi-query", "mean", "--query-expansion", 3, "--alpha", 0, "--expand-gallery", "--rerank", "--k1", 8]
    assert run_reid.main([str(word) for word in [*words, *more]]) == 0
    values = json.loads((tmp_path / "e/metrics.json").read_bytes())
    assert values["method"] == {
        "distractors": False,
        "same_camera": False,
        "multi_query": "mean",
        "expand": 3,
        "alpha": 0.0,
        "expand_gallery": True,
        "rerank": True,
        "k1": 8,
        "k2": 6,
        "lambda_": 0.3,
    }

    splits = datasets.read("synthetic", root)
    embedder = Embedder(load_model(run / "model.safetensors"))
    query, gallery, several = (
        embedder.embed([s.path for s in part]) for part in (splits.query, splits.gallery, datasets.multi_query(splits))
    )
    pids, camids = ([np.array([s[i] for s in x]) for x in (splits.query, splits.gallery)] for i in (1, 2))
    theirs = [np.array([s[i] for s in datasets.multi_query(splits)]) for i in (1, 2)]
    query = pool_queries("mean", several, *theirs, pids[0], camids[0])
    query, gallery = expand_queries(query, gallery, k=3, alpha=0), expand_gallery(gallery, k=3, alpha=0)
    scores = evaluate(query, gallery, *pids, *camids, bonus=rerank(query, gallery, k1=8, k2=6, lambda_=0.3))
    assert values["mAP"] == pytest.approx(scores.mAP, abs=1e-9)

    assert "holds a different run" in refused(capsys, *words)
    assert "add --rerank" in refused(capsys, *words, "--k2", 3)
    assert "need --query-expansion" in refused(capsys, *words, "--alpha", 1)
    assert "lambda" in refused(capsys, *words[:-1], tmp_path / "l", "--rerank", "--lambda", 0)
    assert "has no distractors beside its gallery" in refused(capsys, *words, "--distractors")


def test_methods_share_what_is_embedded(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    words = ["evaluate", "--data-root", str(root), "--weights", str(run / "model.safetensors")]
    assert run_reid.main([*words, "--rerank"]) == 0
    kept = Path(f"runs/evaluate-synthetic-{run.name}")
    files = {file: file.stat().st_mtime_ns for file in (kept / "features").iterdir()}
    assert len(files) == 4  # rows and label of query and gallery
    monkeypatch.setattr(Embedder, "embed_pixels", lambda *_: pytest.fail("embedded again"))
    assert run_reid.main([*words, "--query-expansion", "2"]) == 0
    assert run_reid.main(words) == 0
    assert {file: file.stat().st_mtime_ns for file in (kept / "features").iterdir()} == files
    told = {folder.name: json.loads((folder / "metrics.json").read_bytes())["mAP"] for folder in Path("runs").iterdir()}
    assert len(set(told.values())) == len(told) == 3
    assert not (kept.with_name(f"{kept.name}-rerank") / "features").exists()

    with (kept / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert "another process works in" in refused(capsys, *words, "--rerank")


def test_calibrated_it_says_that_nobody_matches(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = tmp_path / "m.safetensors"
    shutil.copy(run / "model.safetensors", model)
    query, picture = next((root / "synthetic/query").iterdir()), tmp_path / "p.png"
    search = ["search", run / "gallery", query, "--picture", picture, "--max-false-accept", 0.5]
    assert "calibrate it" in refused(capsys, *search)

    words = ["calibrate", "--data-root", root, "--weights", model, "--output", tmp_path / "c"]
    assert run_reid.main([str(word) for word in words]) == 0
    said = capsys.readouterr().out
    assert "asked" in said and "calibrated on all 8 people" in said
    assert load_model(model).fingerprint == load_model(run / "model.safetensors").fingerprint
    calibration = Calibration.from_dict(load_model(model).card["calibration"])
    assert calibration == Calibration.from_dict(json.loads((tmp_path / "c/calibration.json").read_bytes()))

    people = [str(s.path) for s in datasets.read("synthetic", root).gallery if s.pid > 0]
    assert run_reid.main(["index", *people, "--weights", str(model), "--gallery", str(tmp_path / "g")]) == 0
    blank = tmp_path / "blank.png"
    Image.new("RGB", (32, 64)).save(blank)
    nearest = [search[0], tmp_path / "g", blank, "--picture", picture, "--json"]
    capsys.readouterr()
    assert run_reid.main([str(word) for word in nearest]) == 0
    first = json.loads(capsys.readouterr().out)[0]
    assert first["probability"] == pytest.approx(float(calibration.probability(first["score"])))
    for rate in (0.2, 0.999):
        assert run_reid.main([str(word) for word in [*nearest, "--max-false-accept", rate]]) == 0
        answered = json.loads(capsys.readouterr().out)
        assert bool(answered) == (first["score"] >= calibration.threshold(rate, len(people)))
    limits = [word for word in nearest if word != "--json"]
    assert run_reid.main([str(word) for word in [*limits, "--max-false-accept", 0.2]]) == 0
    told = capsys.readouterr().out
    assert told.startswith("nobody matches: the nearest image scores ") == (
        first["score"] < calibration.threshold(0.2, len(people))
    )
    assert "max_false_accept should be" in refused(capsys, *limits, "--max-false-accept", 1e-9)

    packed = tmp_path / "packed.safetensors"
    assert run_reid.main(["pack", str(model), str(packed)]) == 0
    assert "calibration" not in load_model(packed).card, "rounded weights give other scores"
    assert "calibrate" in capsys.readouterr().err


def test_crops_without_labels_become_a_data_set(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, output = str(run / "model.safetensors"), tmp_path / "c"
    crops = [s for s in datasets.read("synthetic", root).gallery if s.pid > 0]
    for s in crops:
        (tmp_path / "mine").mkdir(exist_ok=True)
        shutil.copy(s.path, tmp_path / "mine" / f"c{s.camid}_{Path(s.path).stem}.jpg")
    words = ["cluster", str(tmp_path / "mine"), "--weights", model, "--output", str(output), "--k1", "5"]
    assert run_reid.main(words) == 0
    with (output / "people.csv").open() as people, (output / "rest.csv").open() as rest:
        grouped, alone = list(csv.DictReader(people)), list(csv.DictReader(rest))
    assert {row["path"] for row in grouped + alone} == {str(path) for path in (tmp_path / "mine").iterdir()}
    assert all(f"/c{row['camid']}_" in row["path"] for row in grouped + alone)
    splits = datasets.read("folder", output / "people.csv")
    assert len(splits.train) + len(splits.query) + len(splits.gallery) == len(grouped) > 0
    assert (output / "people.html").read_text(encoding="utf-8").count("<section>") == len(
        {row["pid"] for row in grouped}
    )
    capsys.readouterr()
    labelled = ["cluster", "--dataset", "synthetic", "--data-root", str(root), "--weights", model]
    assert run_reid.main([*labelled, "--output", str(tmp_path / "d")]) == 0
    said = capsys.readouterr().out
    assert "adjusted Rand index" in said and "B-cubed" in said and "labels: 8 people" in said
    assert "either image files and folders, or --dataset" in refused(capsys, "cluster")
    assert "distance" in refused(capsys, *words, "--distance", 1)
    assert "min_images" in refused(capsys, *words, "--min-images", 0)


def test_main_job_with_weights_trains_nothing(run: Path, root: Path, tmp_path: Path) -> None:
    words = ["--data-root", root, "--weights", run / "model.safetensors", "--output", tmp_path / "w"]
    assert run_reid.main([str(word) for word in words]) == 0
    assert not (tmp_path / "w/model.safetensors").exists()
    assert (tmp_path / "w/gallery/manifest.json").exists()


def test_train_alone_gives_the_same_model(run: Path, root: Path, tmp_path: Path) -> None:
    assert run_reid.main(["train", "--data-root", str(root), "--output", str(tmp_path / "t"), *FAST]) == 0
    assert load_model(tmp_path / "t/model.safetensors").fingerprint == load_model(run / "model.safetensors").fingerprint


def test_compare_runs_and_kept_results(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "before.json"
    shutil.copy(run / "metrics.json", kept)
    assert run_reid.main(["compare", str(run), str(kept)]) == 0
    said = capsys.readouterr().out
    metrics = json.loads((run / "metrics.json").read_bytes())
    assert f"{100 * metrics['rank1']:.1f} [" in said and f"{100 * metrics['mAP']:.1f} [" in said
    assert said.count("+0.0 [+0.0, +0.0]") == 2
    assert run_reid.main(["compare", str(run), str(kept), "--baseline", "before", "--markdown"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(
        "| run | backbone | input | parameters | multiply-adds | image passes | minutes | Rank-1 |"
    )
    assert lines[2].startswith("| run | scgnet_s | 64x32 |") and lines[2].endswith("| +0.0 [+0.0, +0.0] |")
    assert lines[3].startswith("| before | scgnet_s | 64x32 |") and lines[3].endswith("| baseline |")
    assert f"    {metrics['command']}" in lines
    assert "no run is named 'x'" in refused(capsys, "compare", run, "--baseline", "x")
    assert "no result at" in refused(capsys, "compare", run, tmp_path)


def test_index_folders_then_search(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    weights, gallery = run / "model.safetensors", tmp_path / "people"
    images = sorted((root / "synthetic/bounding_box_test").iterdir())
    mine = tmp_path / "mine"
    (mine / "below").mkdir(parents=True)
    for image in images[:6]:
        shutil.copy(image, mine / "below")
    words = ["index", str(mine), "--weights", str(weights), "--gallery", str(gallery)]
    assert run_reid.main(words) == 0
    shutil.copy(images[6], mine)
    assert run_reid.main(words) == 0
    assert "1 images added, 7 in all" in capsys.readouterr().out
    monkeypatch.chdir(tmp_path)
    assert run_reid.main(["search", str(gallery), str(images[3]), "--top-k", "3", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 3
    assert found[0]["path"] == str(mine / "below" / images[3].name)
    assert found[0]["score"] == pytest.approx(1, abs=1e-4)
    assert found[0]["pid"] is None
    with Image.open(tmp_path / f"search-{images[3].stem}.png") as picture:
        assert picture.width > 200
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine", "people", f"search-{images[3].stem}.png"]


def test_without_weights_the_small_model_of_the_program_is_used_and_named(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "DEFAULT_WEIGHTS", run / "model.safetensors")
    query = next((root / "synthetic/query").iterdir())
    assert run_reid.main(["index", str(root / "synthetic/query"), "--gallery", str(tmp_path / "people")]) == 0
    assert capsys.readouterr().err.startswith("model: weights/model.safetensors, since no --weights is given\n")
    (copy,) = (tmp_path / "people").glob("model*.safetensors")
    assert copy.read_bytes() == (run / "model.safetensors").read_bytes()
    words = ["search", str(tmp_path / "people"), str(query), "--json", "--picture", str(tmp_path / "p.png")]
    assert run_reid.main(words) == 0
    told = capsys.readouterr()
    assert json.loads(told.out)[0]["path"] == str(query)
    assert "model:" not in told.err, "the gallery has a copy of it"


def test_a_packed_model_is_half_the_size_and_finds_the_same(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole, packed = run / "model.safetensors", tmp_path / "small.safetensors"
    assert run_reid.main(["pack", str(whole), str(packed)]) == 0
    assert capsys.readouterr().out == f"{packed}: {packed.stat().st_size:,} bytes\n"
    assert packed.stat().st_size < 0.55 * whole.stat().st_size
    words = ["evaluate", "--data-root", root, "--weights", packed, "--output", tmp_path / "e"]
    assert run_reid.main([str(word) for word in words]) == 0
    before, after = (json.loads((folder / "metrics.json").read_bytes()) for folder in (run, tmp_path / "e"))
    assert after["mAP"] == pytest.approx(before["mAP"], abs=0.01)
    assert "exists already" in refused(capsys, "pack", whole, packed)


def test_search_leaves_a_camera_out_and_keeps_top_k_full(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = next((root / "synthetic/query").iterdir())
    camera = int(query.name.split("_c")[1][0])
    picture = tmp_path / "p.png"
    words = ["search", run / "gallery", query, "--exclude-camera", camera, "--top-k", 20, "--picture", picture]
    assert run_reid.main([*map(str, words), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found) == 20
    assert camera not in {entry["camid"] for entry in found}
    scores = [entry["score"] for entry in found]
    assert scores == sorted(scores, reverse=True)
    assert run_reid.main([str(word) for word in words]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["rank", "score", "prob.", "pid", "camera", "path"]
    assert lines[1].endswith(found[0]["path"])


def test_check_data_reports_and_tells_by_its_exit_code(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_reid.main(["check-data", "--data-root", str(root)]) == 0
    assert "no problems found" in capsys.readouterr().out
    broken = tmp_path / "Market-1501-v15.09.15"
    shutil.copytree(root / "synthetic", broken)
    victim = next((broken / "bounding_box_train").iterdir())
    victim.write_bytes(victim.read_bytes()[:300])
    assert run_reid.main(["check-data", "--dataset", "market1501", "--data-root", str(tmp_path), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert list(found["bad"]) == [f"bounding_box_train/{victim.name}"]
    assert found["official_split"] is False


def test_own_images_as_a_csv(run: Path, root: Path, tmp_path: Path) -> None:
    splits = datasets.read("synthetic", root)
    table = tmp_path / "mine.csv"
    with table.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "pid", "camid"])
        rows.writerows([s.path, f"person {s.pid}", s.camid] for s in splits.gallery if s.pid > 0)
    words = ["evaluate", "--dataset", "folder", "--data-root", table, "--weights", run / "model.safetensors"]
    assert run_reid.main([*map(str, words), "--output", str(tmp_path / "out")]) == 0
    assert json.loads((tmp_path / "out/metrics.json").read_bytes())["dataset"] == "folder"


@pytest.mark.parametrize("command", [None, *cli.COMMANDS])
def test_help_of_each_command(command: str | None, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_reid.main([*([command] if command else []), "--help"])
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--" in said
    assert "None" not in said


def test_every_data_set_has_a_recipe() -> None:
    for name in datasets.DATASETS:
        assert (train.CONFIGS / f"{name}.yaml").exists()


# ---- whose run it is, and what a killed one left


def test_a_calibration_leaves_the_model_and_its_runs_the_same(run: Path, root: Path, tmp_path: Path) -> None:
    model = tmp_path / "m.safetensors"
    shutil.copy(run / "model.safetensors", model)
    words = ["--data-root", str(root), "--weights", str(model), "--output"]
    assert run_reid.main(["evaluate", *words, str(tmp_path / "e")]) == 0
    before = model.read_bytes()
    assert run_reid.main(["calibrate", *words, str(tmp_path / "c")]) == 0
    assert model.read_bytes() != before
    for command, folder in (("evaluate", "e"), ("calibrate", "c")):
        assert run_reid.main([command, *words, str(tmp_path / folder)]) == 0


def test_what_a_killed_command_left_is_no_other_run(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output, words = tmp_path / "e", ["evaluate", "--data-root", root, "--weights", run / "model.safetensors"]
    output.mkdir()
    (output / ".run.json.123.partial").write_text("{")
    assert run_reid.main([*map(str, words), "--output", str(output)]) == 0
    assert not list(output.rglob("*.partial"))
    for text in ("", "[]", '{"recipe": 3}'):
        (output / "run.json").write_text(text)
        assert "run.json is damaged" in refused(capsys, *words, "--output", output)


def test_given_weights_name_the_output_and_training_images_do_not_count(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(root / "synthetic", tmp_path / "data/synthetic")
    next((tmp_path / "data/synthetic/bounding_box_train").iterdir()).write_bytes(b"broken")
    shutil.copy(run / "model.safetensors", tmp_path / "mine.safetensors")
    monkeypatch.chdir(tmp_path)
    assert run_reid.main(["--data-root", "data", "--weights", "mine.safetensors"]) == 0
    assert [path.name for path in Path("runs").iterdir()] == ["synthetic-mine"]
    output = Path("runs/synthetic-mine")
    assert json.loads((output / "metrics.json").read_bytes())["backbone"] == "scgnet_s"
    assert not (output / "config.yaml").exists() and "config.yaml" not in (output / "report.md").read_text(
        encoding="utf-8"
    )


def test_own_images_of_two_folders_have_two_outputs(
    run: Path, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for place in ("a/people", "b/people"):
        for s in [s for s in datasets.read("synthetic", root).gallery if s.pid > 0]:
            target = Path(place) / str(s.pid) / f"c{s.camid}_{Path(s.path).name}"
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(s.path, target)
        words = ["evaluate", "--dataset", "folder", "--data-root", place, "--weights", str(run / "model.safetensors")]
        assert run_reid.main(words) == 0
    found = sorted(path.name for path in Path("runs").iterdir())
    assert len(found) == 2 and all(name.startswith("evaluate-folder-people-") for name in found)


def test_a_rank_without_a_world_is_no_reason_to_be_silent(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert run_reid.main(["check-data", "--data-root", str(root)]) == 0
    assert "no problems found" in capsys.readouterr().out


# ---- searches and their pictures


def test_a_search_without_its_picture_is_an_answer(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    query = next((root / "synthetic/query").iterdir())
    words = ["search", str(run / "gallery"), str(query), "--top-k", "10000000000"]
    assert run_reid.main([*words, "--no-picture"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 1 + len(Gallery.open(run / "gallery"))
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    assert run_reid.main([*words, "--picture", str(tmp_path / "file/p.png")]) == 0
    assert "warning: no picture at" in capsys.readouterr().err
    long = tmp_path / os.fsdecode(f"{'ж' * 120}.jpg".encode())
    shutil.copy(query, long)
    assert run_reid.main(["search", str(run / "gallery"), str(long)]) == 0
    assert [os.fsencode(path.name) for path in tmp_path.glob("search-*")] == [f"search-{'ж' * 75}.png".encode()]


def test_one_broken_query_of_many_is_left_out(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "q").mkdir()
    for query in sorted((root / "synthetic/query").iterdir())[:2]:
        shutil.copy(query, tmp_path / "q" / f"={query.name}")
    (tmp_path / "q/broken\x1b[2J.jpg").write_bytes(b"no image")
    words = ["search", run / "gallery", tmp_path / "q", "--output", tmp_path / "a.csv", "--top-k", 1]
    assert run_reid.main([str(word) for word in words]) == 0
    told = capsys.readouterr()
    assert "2 searches, 2 with an answer, 1 images could not be read" in told.out
    assert "broken\\x1b[2J.jpg" in told.err and "\x1b[2J" not in told.err
    with (tmp_path / "a.csv").open(newline="") as file:
        assert [Path(row["query"]).name[0] for row in csv.DictReader(file)] == ["=", "="]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--crops", 0], "--crops 0: int8 takes its ranges from at least 8"),
        (["--crops", 8, "--batch", 16], "at least 16 crops"),
        (["--crops", -1], "--crops -1"),
    ],
)
def test_int8_asks_for_crops_enough(
    words: list[object], told: str, run: Path, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export = ["export", "--data-root", root, "--weights", run / "model.safetensors", "--format", "onnx"]
    assert told in refused(capsys, *export, "--precision", "int8", *words)


# ---- wrong input: one clear line, exit code 2, nothing harmed


@pytest.mark.parametrize("name", ["market1501", "dukemtmc", "cuhk03np_labeled", "cuhk03np_detected", "folder"])
def test_missing_and_empty_data_roots(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for root in (tmp_path / "nowhere", tmp_path):
        line = refused(capsys, "--dataset", name, "--data-root", root, "--output", tmp_path / "out")
        assert str(root) in line
        assert "http" not in line
        if name == "dukemtmc":
            assert "withdrawn" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--dataset", "market"], "choose one of market1501, dukemtmc"),
        (["--backbone", "resnet18"], "choose one of scgnet_s, scgnet_m"),
        (["--set", "learning_rate=1"], "unknown key 'learning_rate'; the keys are backbone"),
        (["--set", "lr"], "takes key=value"),
        (["--set", "epochs=many"], "epochs must be a whole number, not 'many'"),
        (["--set", "height=16", "width=8"], "input 16x8 is too small for the strides"),
        (["--set", "p=100"], "a batch of 100 identities needs as many"),
        (["--config", "nowhere.yaml"], "no recipe at nowhere.yaml"),
        (["--weights", "nowhere.safetensors"], "no file at nowhere.safetensors"),
        (["--device", "gpu"], "device 'gpu' cannot be used"),
        (["find"], "unknown command 'find'; choose one of train, evaluate"),
    ],
)
def test_wrong_words(
    words: list[str], told: str, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if words[0].startswith("-"):
        words = ["--data-root", str(root), "--output", str(tmp_path / "out"), *words]
    assert told in refused(capsys, *words)


def test_bad_images_are_named_or_left_out_and_counted(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(root / "synthetic", tmp_path / "synthetic")
    cut, text = sorted((tmp_path / "synthetic/bounding_box_test").iterdir())[:2]
    cut.write_bytes(cut.read_bytes()[:500])
    text.write_text("no image")
    words = ["evaluate", "--data-root", tmp_path, "--weights", run / "model.safetensors", "--output"]
    line = refused(capsys, *words, tmp_path / "a")
    assert cut.name in line
    assert text.name in line
    assert run_reid.main([*map(str, words), str(tmp_path / "b"), "--skip-bad"]) == 0
    assert "left out 2 unreadable image(s)" in (tmp_path / "b/report.md").read_text(encoding="utf-8")
    metrics = json.loads((tmp_path / "b/metrics.json").read_bytes())
    assert metrics["num_gallery"] == json.loads((run / "metrics.json").read_bytes())["num_gallery"] - 2
    line = refused(capsys, "search", run / "gallery", text, "--picture", tmp_path / "p.png")
    assert f"{text} is not an image" in line
    assert not (tmp_path / "p.png").exists()


def test_wrong_weights(run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Hostile:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    hostile = tmp_path / "model.pth"
    hostile.write_bytes(pickle.dumps(Hostile()))
    words = ["--data-root", root, "--output", tmp_path / "out", "--weights"]
    assert "pickles are never loaded" in refused(capsys, *words, hostile)
    assert not (tmp_path / "ran").exists()
    shutil.rmtree(tmp_path / "out")
    damaged = tmp_path / "damaged.safetensors"
    damaged.write_bytes((run / "model.safetensors").read_bytes()[:-1000])
    assert "damaged" in refused(capsys, *words, damaged)
    shutil.rmtree(tmp_path / "out")
    line = refused(capsys, *words, run / "model.safetensors", "--backbone", "osnet_x0_25")
    assert "holds scgnet_s, --backbone asks for osnet_x0_25" in line


def test_output_of_a_different_run(run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = refused(capsys, "--data-root", root, "--output", run, *FAST, "lr=0.01")
    assert "holds a different run (lr 0.05 there, 0.01 now)" in line or "holds a different run (lr" in line
    (tmp_path / "thesis.tex").write_text("years of work")
    assert "holds other files" in refused(capsys, "--data-root", root, "--output", tmp_path, *FAST)
    assert [path.name for path in tmp_path.iterdir() if path.name != ".lock"] == ["thesis.tex"]
    assert "is a file" in refused(capsys, "--data-root", root, "--output", tmp_path / "thesis.tex", *FAST)


def test_a_damaged_gallery_and_another_model(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    query = next((root / "synthetic/query").iterdir())
    words = ["train", "--data-root", str(root), "--output", str(tmp_path / "other"), *FAST, "epochs=0"]
    assert run_reid.main(words) == 0
    other = tmp_path / "other/model.safetensors"
    assert "was made by the model" in refused(capsys, "search", run / "gallery", query, "--weights", other)
    copy = tmp_path / "gallery"
    shutil.copytree(run / "gallery", copy)
    vectors = next(copy.glob("vectors-*"))
    vectors.write_bytes(vectors.read_bytes()[:-7])
    assert "damaged" in refused(capsys, "search", copy, query)
    assert str(tmp_path / "nowhere") in refused(capsys, "search", tmp_path / "nowhere", query)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.tex").write_text("years of work")
    words = ["index", query, "--weights", run / "model.safetensors", "--gallery", tmp_path / "mine"]
    assert "not empty" in refused(capsys, *words)


def test_a_full_disk_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device", str(tmp_path / "x"))

    monkeypatch.setattr("reid.core.files._sync", full)
    line = refused(capsys, "--data-root", root, "--output", tmp_path / "out", *FAST)
    assert "No space left on device" in line
    assert not list(tmp_path.rglob("*.partial"))


# ---- real people


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not on this machine")
def test_evaluates_on_real_people(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [
        "evaluate",
        "--dataset",
        "cuhk03np_detected",
        "--data-root",
        REAL / "cuhk03-np-p1",
        "--weights",
        run / "model.safetensors",
        "--output",
        tmp_path / "real",
    ]
    assert run_reid.main([str(word) for word in words]) == 0
    metrics = json.loads((tmp_path / "real/metrics.json").read_bytes())
    assert (metrics["num_query"], metrics["num_gallery"], metrics["num_query_without_match"]) == (800, 3085, 3)
    assert metrics["official_split"] is False
    assert "not the official split" in (tmp_path / "real/report.md").read_text(encoding="utf-8")


def test_what_is_broken_in_an_output_is_made_anew_or_one_line(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out"
    words = ["evaluate", "--data-root", str(root), "--weights", str(run / "model.safetensors"), "--output", str(output)]
    output.mkdir()
    (output / ".run.json.123.partial").write_text("half")
    assert run_reid.main(words) == 0, "what a killed run left of run.json is no other file"
    assert not list(output.rglob("*.partial"))
    scores = (output / "scores.txt").read_text()
    features = np.load(output / "features/query.npy")
    features[0] = -features[0]
    np.save(output / "features/query.npy", features)
    (output / "features/gallery.json").write_bytes(b"[]")
    assert run_reid.main(words) == 0
    assert (output / "scores.txt").read_text() == scores
    splits = datasets.read("synthetic", root)
    whole = (output / "images.json").read_text()
    for broken in (b"", b"[]", b"{}", b"null", b"\xff", b"[" * 100_000, whole.replace("{}", "5").encode()):
        (output / "images.json").write_bytes(broken)
        assert check_images(splits, output, False, ("query", "gallery")) == splits
        assert (output / "images.json").read_text() == whole
    damaged = [b"", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"recipe": []}']
    for broken in (*damaged, b'{"recipe": null, "embed_images_per_second": "fast"}'):
        (output / "run.json").write_bytes(broken)
        assert "run.json is damaged" in refused(capsys, *words)


@pytest.mark.parametrize(
    "line", [b"", b"[]", b"{}", b"\xff", b"[" * 100_000, b'{"epoch": 1, "step": 1, "images": 1, "lr": 1}']
)
def test_a_broken_history_is_one_line(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], line: bytes
) -> None:
    shutil.copytree(run, tmp_path / "run")
    (tmp_path / "run/metrics.json").unlink()
    (tmp_path / "run/history.jsonl").write_bytes(line + b"\n")
    words = ["--data-root", root, "--output", tmp_path / "run", *FAST]
    assert "history.jsonl, line 1 is damaged" in refused(capsys, *words)


def test_data_of_one_camera_are_refused_before_training_and_scored_on_request(
    run: Path, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = ["path,pid,camid"]
    for number, sample in enumerate(datasets.read("synthetic", root).gallery[:24]):
        rows.append(f"{sample.path},p{number // 4},1")
    table = tmp_path / "one.csv"
    table.write_text("\n".join(rows) + "\n")
    data = ["--dataset", "folder", "--data-root", table]
    told = refused(capsys, *data, "--output", tmp_path / "main", *FAST)
    assert "cannot be scored" in told and "--same-camera" in told
    assert not (tmp_path / "main/model.safetensors").exists() and not (tmp_path / "main/history.jsonl").exists()
    words = ["evaluate", *data, "--weights", run / "model.safetensors", "--output", tmp_path / "scored"]
    assert "--same-camera" in refused(capsys, *words)
    assert "leave one out" in refused(capsys, *words, "--same-camera", "--multi-query", "mean")
    assert run_reid.main([str(word) for word in (*words, "--same-camera")]) == 0
    splits = datasets.read("folder", table)
    query, gallery = (np.load(tmp_path / f"scored/features/{name}.npy") for name in ("query", "gallery"))
    assert len(query) == len(splits.query) and len(gallery) == len(splits.gallery)
    right = 0
    for sample, row in zip(splits.query, query, strict=True):
        right += splits.gallery[int(np.argmax(gallery @ row))].pid == sample.pid
    told_scores = json.loads((tmp_path / "scored/metrics.json").read_text())
    assert told_scores["rank1"] == pytest.approx(right / len(query))
