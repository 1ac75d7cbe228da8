"""--seeds: a recipe several times, each seed in its folder, gone on with where it was, and the table of all."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

import reid.training.train
import run_reid
from datasets import synthetic
from reid.models.model import load_model

FAST = [
    "--set",
    "backbone=scgnet_s",
    "height=64",
    "width=32",
    "pad=4",
    "p=6",
    "k=2",
    "epochs=1",
    "warmup_epochs=0",
    "dim=16",
    "watch_epochs=1",
    "precision=fp32",
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a small synthetic set."""
    folder = tmp_path_factory.mktemp("data")
    synthetic.draw(folder / "synthetic", train_ids=8, test_ids=6, distractors=2, junk=2, size=(64, 32))
    return folder


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    capsys.readouterr()
    assert run_reid.main([str(word) for word in words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    return line


def test_each_seed_has_its_folder_and_goes_on_where_it_was(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "recipe"
    words = ["--data-root", str(root), "--output", str(output), *FAST, "--seeds", "4", "1"]
    whole = reid.training.train.train

    def stopped(samples, config, *args, **more):
        return whole(samples, config, *args, **more, stop_after=1 if config.seed == 1 else None)

    monkeypatch.setattr(reid.training.train, "train", stopped)
    assert run_reid.main(words) == 130  # as by Ctrl-C, in the second seed
    assert "the same command goes on from there" in capsys.readouterr().err
    monkeypatch.undo()
    assert (output / "seed-4/metrics.json").exists() and not (output / "seed-1/metrics.json").exists()
    first = (output / "seed-4/model.safetensors").stat().st_mtime_ns

    assert run_reid.main(words) == 0
    said = capsys.readouterr().out
    assert f"finished already, nothing to do: {output}/seed-4/report.md" in said
    assert "going on from step 1 of" in said
    assert (output / "seed-4/model.safetensors").stat().st_mtime_ns == first
    found = [json.loads((output / f"seed-{seed}/metrics.json").read_text()) for seed in (4, 1)]
    assert [kept["recipe"]["seed"] for kept in found] == [4, 1]
    assert found[0]["fingerprint"] != found[1]["fingerprint"]
    assert found[0]["trained_on"]["name"] == "synthetic"
    table = (output / "seeds.txt").read_text()
    assert said.endswith(f"{output} (percent):\n{table}")
    rows = [line.rsplit(maxsplit=4) for line in table.splitlines()[1:]]
    assert [row[0].strip() for row in rows] == ["4", "1", "mean", "standard deviation"]
    means = [100 * kept["mAP"] for kept in found]
    assert [row[2] for row in rows] == [f"{x:.1f}" for x in (*means, np.mean(means), np.std(means, ddof=1))]

    assert run_reid.main(["compare", str(output)]) == 0
    compared = capsys.readouterr().out.splitlines()[1].split()
    assert compared[:5] == ["recipe", "1,", "4", f"{100 * np.mean([kept['rank1'] for kept in found]):.1f}", "±"]

    line = refused(capsys, *words, "5", "--set", "dim=8")
    assert line.startswith(f"error: {output}/seed-4 holds a different run (dim 16 there, 8 now)")
    assert not (output / "seed-5").exists(), "refused before anything is begun"
    assert refused(capsys, *words[:4], *FAST).startswith(f"error: {output} holds other files and no run")


def test_train_ends_with_what_it_knows(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "r"
    words = ["train", "--data-root", str(root), "--output", str(output), *FAST, "p=2", "--holdout", "0.25", "--seeds"]
    assert run_reid.main([*words, "0", "2"]) == 0
    header, *rows = (output / "seeds.txt").read_text().splitlines()
    assert header.split() == ["seed", "minutes", "loss", "held-out", "Rank-1", "held-out", "mAP"]
    kept = [json.loads((output / f"seed-{seed}/history.jsonl").read_text()) for seed in (0, 2)]
    assert [row.split()[2:] for row in rows[:2]] == [
        [f"{row['loss']:.2f}", f"{100 * row['rank1']:.2f}", f"{100 * row['mAP']:.2f}"] for row in kept
    ]
    assert load_model(output / "seed-2/model.safetensors").card["recipe"]["seed"] == 2
    before = {path: path.stat().st_mtime_ns for path in output.rglob("model.safetensors")}
    capsys.readouterr()
    assert run_reid.main([*words, "0", "2"]) == 0
    assert "epoch 1" not in capsys.readouterr().out, "what is finished is skipped"
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_what_does_not_go_with_seeds_is_one_line(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--data-root", root, "--output", tmp_path / "r", *FAST]
    said = refused(capsys, *words, "seed=3", "--seeds", 0, 1)
    assert said == "error: --seeds and --set seed=N both give the seed: leave --set seed=N out"
    said = refused(capsys, "train", *words, "--seeds", 0, 1, 0)
    assert said == "error: --seeds: expected different seeds, got 0 1 0: give each once"
    said = refused(capsys, "train", *words, "--seeds", -1)
    assert said == "error: --seeds: seed must be at least 0, not -1"
    said = refused(capsys, *words, "--seeds", 1, "--weights", "m.safetensors")
    assert said.startswith("error: --seeds are of training, and with --weights nothing is trained")
    assert not (tmp_path / "r").exists()
    (tmp_path / "r").mkdir()
    (tmp_path / "r/run.json").write_text("{}")
    said = refused(capsys, *words, "--seeds", 1)
    assert said.startswith(
        f"error: {tmp_path}/r holds a single run, and with --seeds the runs lie in {tmp_path}/r/seed-N"
    )
