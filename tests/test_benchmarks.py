"""The training benchmarks: torchreid's run is what it says it is and resumes; what is measured is what is told."""

from __future__ import annotations

import argparse
import collections
import json
import math
import resource
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import datasets
import run_reid
from benchmarks import gallery as bench_gallery
from benchmarks import milvus, operators, projection
from benchmarks import presets as bench_presets
from benchmarks import recipes as bench_recipes
from benchmarks import torchreid_train as peer
from benchmarks import train as bench
from reid.core.types import JUNK, Splits
from reid.export import openvino
from reid.export.request import Request
from reid.models import checkpoint, torchreid
from reid.models.card import make_card
from reid.models.embedder import Embedder
from reid.models.model import ReidModel, multiply_adds, save_model
from reid.training import config as recipes
from reid.training.config import as_dict

PASSES = 40  # 24 of one epoch, 16 of a second


def command(people: Path, output: Path, **changes: object) -> list[str]:
    options = {"height": 64, "width": 32, "batch-size": 8, "image-passes": PASSES, "workers": 0} | changes
    words = [word for key, value in options.items() for word in (f"--{key}", str(value))]
    return ["--dataset", "market1501", "--data-root", str(people), "--output", str(output), *words]


@pytest.fixture(scope="module")
def splits(people: Path) -> Splits:
    return datasets.read("market1501", people)


@pytest.fixture(scope="module")
def finished(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("torchreid") / "run"
    assert peer.main(command(people, output)) == 0
    return output


def weights(output: Path) -> dict[str, torch.Tensor]:
    state, _ = checkpoint.read(output / "checkpoint.safetensors", peer.KIND)
    return {k.removeprefix("model."): v for k, v in state.items() if k.startswith("model.")}


# ---- torchreid_train.py


def test_scores_are_those_of_the_saved_weights_by_torchreids_own_evaluation(finished: Path, splits: Splits) -> None:
    network = torchreid.osnet("osnet_x0_25").eval()
    saved = {k: v for k, v in weights(finished).items() if not k.startswith("classifier.")}
    missing = network.load_state_dict(saved, strict=False)
    assert set(missing.missing_keys) == {"classifier.weight", "classifier.bias"} and not missing.unexpected_keys

    def features(samples: list[Any]) -> np.ndarray:
        rows = []
        for sample in samples:
            image = np.asarray(Image.open(sample.path).convert("RGB"), np.float32) / 255  # 64x32 already
            image = (image - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
            with torch.no_grad():
                rows.append(network(torch.tensor(image).permute(2, 0, 1)[None].float())[0].numpy())
        return np.stack([row / np.linalg.norm(row) for row in rows])

    gallery = [sample for sample in splits.gallery if sample.pid != JUNK]
    ids = [np.array([s[i] for s in part]) for i in (1, 2) for part in (splits.query, gallery)]
    cmc, mean_ap = torchreid.evaluate_rank(-features(splits.query) @ features(gallery).T, *ids)
    said = json.loads((finished / "metrics.json").read_text())
    assert said["mAP"] == pytest.approx(mean_ap, abs=1e-6) and said["rank1"] == pytest.approx(cmc[0], abs=1e-6)
    assert said["parameters"] == sum(p.numel() for k, p in network.named_parameters() if "classifier" not in k)


def test_the_result_is_one_that_compare_reads(finished: Path, capsys: pytest.CaptureFixture[str]) -> None:
    said = json.loads((finished / "metrics.json").read_text())
    assert said["image_passes"] == PASSES and said["train_seconds"] > 0 and said["input_size"] == [64, 32]
    assert said["command"].startswith("python benchmarks/torchreid_train.py --dataset market1501")
    assert run_reid.main(["compare", str(finished), str(finished)]) == 0
    assert "torchreid osnet_x0_25" in capsys.readouterr().out


def test_an_interrupted_run_ends_with_the_same_weights(
    finished: Path, people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    step, done = peer.Engine.forward_backward, []

    def stops(engine: peer.Engine, data: dict[str, Any]) -> dict[str, float]:
        if len(done) == 4:  # the second batch of the second epoch
            raise KeyboardInterrupt
        done.append(step(engine, data))
        return done[-1]

    with monkeypatch.context() as patch:
        patch.setattr(peer.Engine, "forward_backward", stops)
        assert peer.main(command(people, tmp_path / "run")) == 130
    assert "goes on" in capsys.readouterr().err and not (tmp_path / "run" / "metrics.json").exists()
    counted: list[int] = []
    monkeypatch.setattr(peer.Engine, "forward_backward", lambda e, d: counted.append(len(d["pid"])) or step(e, d))
    assert peer.main(command(people, tmp_path / "run")) == 0
    assert counted == [8, 8]  # of the second epoch alone
    there, here = weights(finished), weights(tmp_path / "run")
    assert there.keys() == here.keys() and all(torch.equal(there[key], here[key]) for key in there)


def test_batches_are_of_whole_persons_and_passes_are_exact(splits: Splits) -> None:
    engine = peer.build(splits, image_passes=PASSES, height=64, width=32, batch_size=8, loss="triplet", workers=0)
    assert [len(epoch) for epoch in engine.epochs] == [24, 16]
    labels = [label for _, label, _, _ in engine.train_loader.dataset.train]
    assert sorted(set(labels)) == list(range(6))
    for epoch in engine.epochs:
        for start in range(0, len(epoch), 8):
            assert sorted(collections.Counter(labels[i] for i in epoch[start : start + 8]).values()) == [4, 4]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"image-passes": 80}, "image_passes 40 there, 80 now"),
        ({"batch-size": 28, "loss": "triplet"}, "the training set has 6: give another --batch-size"),
        ({"batch-size": 64}, "a batch of 64 images is too small or more than the training set's"),
    ],
)
def test_mistakes_are_one_line(
    finished: Path, people: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, Any], expected: str
) -> None:
    before = weights(finished)
    assert peer.main(command(people, finished, **changes)) == 2
    told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error:")]
    assert len(told) == 1 and expected in told[0]
    assert all(torch.equal(value, before[key]) for key, value in weights(finished).items())


def test_files_of_something_else_are_left_alone(
    people: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "metrics.json").write_text("{}")
    assert peer.main(command(people, tmp_path)) == 2
    assert "holds other files" in capsys.readouterr().err and (tmp_path / "metrics.json").read_text() == "{}"


# ---- projection.py


def test_the_table_of_projections_tells_what_its_models_find(
    people: Path,
    splits: Splits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tiny: Callable[..., recipes.Config],
) -> None:
    torch.manual_seed(0)
    model = ReidModel(make_card(as_dict(tiny()), 0)).eval()
    save_model(model, tmp_path / "model.safetensors")
    monkeypatch.setattr(projection, "milliseconds", lambda model, seconds: 1.0)  # OpenVINO is not everywhere
    words = [
        "projection.py",
        "--weights",
        tmp_path / "model.safetensors",
        "--dataset",
        "market1501",
        "--data-root",
        people,
        "--features",
        tmp_path / "features",
        "--dims",
        "16",
        "4",
    ]
    monkeypatch.setattr(sys, "argv", [str(word) for word in words])
    projection.main()
    lines = capsys.readouterr().out.splitlines()[2:]
    rows = {tuple(line.split(" | ")[:2]): line.split(" | ") for line in lines}
    assert list(rows) == [
        ("| 1", "8"),
        ("| 1", "4"),
        ("| 2", "24"),
        ("| 2", "16"),
        ("| 2", "4"),
        ("| 1, 2", "32"),
        ("| 1, 2", "16"),
        ("| 1, 2", "4"),
    ]
    paths = [s.path for s in [*splits.query, *splits.gallery]]
    for key, parts in ((("| 1", "8"), [1]), (("| 1, 2", "32"), [1, 2])):
        found = projection.score(Embedder(model.with_branches(parts), flip=False, device="cpu").embed(paths), splits)
        assert rows[key][5:] == [str(4 * int(key[1])), f"{100 * found.rank1:.1f}", f"{100 * found.mAP:.2f} |"]


# ---- operators.py


def test_operators_hold_all_of_the_networks_arithmetic(tiny: Callable[..., recipes.Config]) -> None:
    model = ReidModel(make_card(as_dict(tiny()), 0)).eval()
    built = openvino.build(model, Request("openvino"), np.empty(0))
    built.reshape([2, *model.input_size, 3])
    kinds, whole = operators.profile(built, np.zeros((2, *model.input_size, 3), np.uint8), 1, 1)
    assert sum(kind.multiply_adds for kind in kinds.values()) == 2 * multiply_adds(model)
    assert {"3x3 convolution", "1x1 convolution"} < kinds.keys() and 0 < whole < math.inf
    assert all(kind.seconds > 0 and kind.operators > 0 for kind in kinds.values())


# ---- train.py

TINY = ["p=3", "k=4", "height=64", "width=32", "branches=[[1,2]]", "dim=8", "cache=memory"]


def arguments(people: Path, **changes: Any) -> argparse.Namespace:
    options = {
        "dataset": "market1501",
        "data_root": str(people),
        "seconds": 0.01,
        "rounds": 1,
        "set": TINY,
        "device": "cpu",
    }
    return argparse.Namespace(**options | changes)


def told_rates(monkeypatch: pytest.MonkeyPatch, rates: Callable[[str, dict[str, Any]], float]) -> list[str]:
    """Measurements that answer what `rates` says, and the names of those that were asked for."""
    asked: list[str] = []

    def measure(_: bench.Bench, name: str, overrides: Any = (), **options: Any) -> bench.Result:
        asked.append(name)
        return {"images_per_second": rates(name, options), "peak_mib": 500.0, "data_wait": 0.01}

    monkeypatch.setattr(bench.Bench, "measure", measure)
    return asked


@pytest.mark.parametrize(
    ("name", "options"),
    [("limit", {}), ("limit", {"channels_last": False, "foreach": True}), ("loop", {"rate": 1.0}), ("decode", {})],
)
def test_each_measurement_runs(name: str, options: dict[str, Any], splits: Splits) -> None:
    result = bench.MEASURES[name](splits, recipes.load(bench.RECIPE, TINY), 0.01, "cpu", **options)
    assert 0 < result["images_per_second"] < math.inf and result["peak_mib"] > 50
    assert 0 <= result.get("data_wait", 0) <= 1


def test_torchreid_is_measured(splits: Splits, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    step = peer.Engine.forward_backward
    monkeypatch.setattr(peer.Engine, "forward_backward", lambda e, d: seen.append(len(d["pid"])) or step(e, d))
    result = bench.torchreid(splits, recipes.load(bench.RECIPE, TINY), 0.01, "cpu", workers=0)
    assert result["images_per_second"] > 0
    assert len(seen) > bench.WARM_STEPS and set(seen) == {12}


def test_a_measurement_has_a_process_of_its_own(people: Path) -> None:
    result = bench.Bench(arguments(people)).measure("decode")
    here = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    assert result["images_per_second"] > 0
    assert 10 < result["peak_mib"] < here / 2  # torch and torchreid are in this one


def test_a_measurement_that_fails_says_why(people: Path) -> None:
    with pytest.raises(RuntimeError, match="p must be at least 2"):
        bench.Bench(arguments(people)).measure("limit", ["p=1"])


def test_the_loop_is_told_beside_the_limit(
    people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rates = {"limit": iter([100.0, 50.0, 120.0, 50.0, 104.0, 50.0]), "loop": iter([98.0, 40.0] * 3)}
    asked = told_rates(monkeypatch, lambda name, _: next(rates[name]) if name in rates else 1000.0)
    data = ["--dataset", "market1501", "--data-root", str(people)]
    assert bench.main([*data, "--only", "limit,loop", "--rounds", "3", "--set", "epochs=10"]) == 0
    assert asked == ["limit", "loop"] * 6 + ["decode"] * 2  # in turn
    out = capsys.readouterr().out
    assert "104.0 img/s (100.0 to 120.0)" in out  # the median
    share = 1 / (1 / 98 + 1 / (1000 * 10)) / 104
    assert f"{share:.1%} of the limit, goal 92% met; 1.0% of the time waiting for data" in out
    assert "goal 92% missed" in out  # at the other size


def test_the_peer_is_told_as_a_ratio(
    people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = told_rates(monkeypatch, lambda name, _: {"torchreid": 50.0, "loop": 80.0, "decode": 1e9}[name])
    data = ["--dataset", "market1501", "--data-root", str(people)]
    assert bench.main([*data, "--only", "peer", "--rounds", "2"]) == 0
    assert asked == ["torchreid", "loop"] * 2 + ["decode"]
    assert "1.60 times torchreid, goal 1.5 met; memory 1.00 of torchreid's" in capsys.readouterr().out


def test_a_variant_that_cannot_be_had_is_a_line(
    people: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def rate(_: str, options: dict[str, Any]) -> float:
        if options.get("compiled"):
            raise RuntimeError("no compiler")
        return 30.0 if options.get("processes") == 2 else 20.0

    told_rates(monkeypatch, rate)
    data = ["--dataset", "market1501", "--data-root", str(people)]
    assert bench.main([*data, "--only", "variants"]) == 0
    lines = {line[:32].strip(): line[32:] for line in capsys.readouterr().out.splitlines()}
    assert "failed: no compiler" in lines["torch.compile"]
    assert lines["2 gloo processes, 1 thread each"].endswith("ratio 1.50")
    assert lines["bf16"].endswith("ratio 1.00")


def test_an_unknown_section_is_one_line(people: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench.main(["--dataset", "market1501", "--data-root", str(people), "--only", "limits"]) == 2
    assert "--only takes limit, loop, peer, variants" in capsys.readouterr().err


# ---- recipes.py


def test_each_run_is_a_valid_recipe_and_the_ladder_ends_at_the_recipe() -> None:
    whole = {
        section: {run: recipes.load(bench_recipes.RECIPE, changes) for run, changes in runs.items()}
        for section, runs in bench_recipes.sections().items()
    }
    assert len(whole["ladder"]) == 9
    first = next(iter(whole["ladder"].values()))
    assert (first.branches, first.neck, first.contrast, first.smoothing, first.erase) == ([[1, 2]], "relu", 0, 0, 0)
    assert first.lr == first.lr_start == first.lr_end, "constant"
    recipe = whole["ladder"]["recipe"]
    assert all(runs["recipe"] == recipe for runs in whole.values()), "trained once"
    assert [*whole["ladder"]][-1] == "recipe"
    assert {config.backbone for config in whole["ablations"].values()} == {"scgnet_s", *bench_recipes.ABLATIONS}


def test_runs_are_made_once_and_kept_without_the_folders_name(
    people: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = []

    def start(command: list[str]) -> int:
        started.append(command[1])
        main = peer.main if command[1].endswith("torchreid_train.py") else run_reid.main
        small = ["--height", "64", "--width", "32", "--batch-size", "8"] if main is peer.main else []
        monkeypatch.setattr(sys, "argv", command[1:])
        return main([*command[2:], *small])

    monkeypatch.setattr(bench_recipes, "start", start)
    words = [
        "--dataset",
        "market1501",
        "--data-root",
        str(people),
        "--output",
        str(tmp_path / "runs"),
        "--keep",
        str(tmp_path / "kept"),
        "--only",
        "ladder/plain",
        "ladder/recipe",
        "backbones/recipe",
        "backbones/torchreid-osnet_x0_25",
        "--epochs",
        "1",
        "--set",
        "height=64",
        "width=32",
        "p=2",
        "k=2",
        "dim=64",
    ]
    assert bench_recipes.main(words) == 0
    assert started == ["run_reid.py", "run_reid.py", "benchmarks/torchreid_train.py"]
    assert bench_recipes.main(words) == 0
    assert len(started) == 3
    told = capsys.readouterr().out
    assert "## ladder" in told and "ladder-plain" in told and "## backbones" in told
    names = {path.stem for path in (tmp_path / "kept").iterdir()}
    assert names == {"ladder-plain", "recipe", "backbones-torchreid-osnet_x0_25"}
    results = {name: json.loads((tmp_path / f"kept/{name}.json").read_text()) for name in names}
    assert {result["image_passes"] for result in results.values()} == {24}
    kept = results["ladder-plain"]
    assert f"--data-root DIR/{people.name}" in kept["command"]
    assert str(people.parent) not in json.dumps(kept)


@pytest.mark.parametrize("name", ["steps", "ladder/steps"])
def test_a_run_that_there_is_not_is_refused(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_recipes.main(["--data-root", "data", "--only", name]) == 2
    assert f"there is no '{name}'; choose of" in capsys.readouterr().err


# ---- gallery.py


def test_the_gallery_benchmark_measures_every_contender(capsys: pytest.CaptureFixture[str]) -> None:
    assert bench_gallery.main(["--images", "300", "--dimension", "16", "--queries", "5", "--rounds", "1"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "300 images, 16 dimensions, batch of 5, top 10"
    assert [line[:28].strip() for line in lines[2:]] == [
        "open",
        "memory pass",
        "product of one",
        "search of one",
        "search of one, filtered",
        "product",
        "search",
        "search, a camera left out",
        "faiss.knn",
    ]


# ---- presets.py


def test_the_presets_benchmark_tells_every_preset(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rng = np.random.default_rng(0)
    pids = np.arange(400) // 10 + 1
    rows = rng.standard_normal((41, 32))[pids] + 0.3 * rng.standard_normal((400, 32))
    rows = (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)
    images = bench_presets.Images(rows, pids, np.arange(400) % 2 + 1)
    monkeypatch.setattr(bench_presets, "real", lambda *_: (images, images))
    words = ["--data-root", "none", "--images", "1500", "--rounds", "1", "--peers", "Milvus Lite"]
    assert bench_presets.main(words) == 0
    table = [line.split() for line in capsys.readouterr().out.splitlines()[-4:]]
    assert [row[0] for row in table] == ["exact", "large", "compact", "Milvus"]
    assert float(table[3][4]) > 0.95  # Milvus Lite, ef N
    assert float(table[0][1]) == 1 and float(table[1][1]) > 0.95 and float(table[2][1]) > 0.9
    assert 50 < float(table[0][2]) <= 100


def test_mean_ap_of_lists() -> None:
    query = bench_presets.Images(np.empty((2, 1)), np.array([1, 9]), np.array([1, 1]))
    images = bench_presets.Images(np.empty((4, 1)), np.array([1, 1, 2, 1]), np.array([1, 2, 2, 2]))
    found = np.array([[0, 2, 1, 7], [0, 1, 2, 3]])  # own camera, another, a match, a synthetic one; nobody
    assert bench_presets.mean_ap(found, query, images) == pytest.approx((1 / 2) / 2)


# ---- milvus.py


def test_the_milvus_benchmark_measures_both_kinds(capsys: pytest.CaptureFixture[str]) -> None:
    assert milvus.main(["--images", "300", "--dimension", "16", "--queries", "5"]) == 0
    told = capsys.readouterr().out
    assert told.count("images a second") == 2
    assert "recall@10 of Milvus: 1.0000" in told
