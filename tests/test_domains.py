"""Several data sets in one training: told apart, each scored by itself."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

import datasets
import run_reid
from reid.cli.data import check_sets
from reid.core.types import ReidError, Sample
from reid.models.model import load_model
from reid.training import train as training
from reid.training.distributed import World
from reid.training.domains import join
from tests.conftest import ROOT

README = ROOT.parent / "shared" / "data" / "market1501" / "Market-1501-v15.09.15" / "readme.txt"
FAST = [
    "--config",
    "configs/synthetic.yaml",
    "--set",
    "backbone=scgnet_s",
    "height=64",
    "width=32",
    "pad=2",
    "p=4",
    "k=2",
    "epochs=1",
    "warmup_epochs=0",
    "watch_epochs=0",
    "holdout=0",
    "dim=8",
    "branches=[[1, 2]]",
    "precision=fp32",
    "cache=memory",
    "balance_domains=true",
]


def test_people_and_cameras_of_different_sets_never_meet():
    one = [Sample(f"a{i}", pid, camid) for i, (pid, camid) in enumerate([(2, 1), (1501, 6), (2, 3)])]
    two = [Sample(f"b{i}", pid, camid) for i, (pid, camid) in enumerate([(2, 1), (700, 2), (3, 1)])]
    samples, domains = join({"one": one, "two": two})
    assert [sample.path for sample in samples] == ["a0", "a1", "a2", "b0", "b1", "b2"]
    assert domains == ["one"] * 3 + ["two"] * 3
    assert [sample.pid for sample in samples] == [1, 2, 1, 3, 5, 4]
    assert [sample.camid for sample in samples] == [1, 3, 2, 4, 5, 4]
    assert join({"one": one}) == (one, ["one"] * 3), "one set keeps its numbers"


def test_an_image_of_two_sets_is_refused():
    sample = Sample("a.jpg", 1, 1)
    with pytest.raises(ReidError, match=r"a\.jpg is in one and in two: give data sets that share no image"):
        join({"one": [sample], "two": [sample]})


@pytest.fixture(scope="module")
def other(people: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same people in another place, as far as a training knows others: four to train on, three to search for."""
    root = tmp_path_factory.mktemp("other") / "campus"
    shutil.copytree(people, root)
    for path in (root / "bounding_box_train").iterdir():
        if int(path.name[:4]) > 4:
            path.unlink()
    for path in (root / "query").glob("0010_*"):
        path.unlink()
    return root


def test_batches_draws_and_card_know_each_images_set(people, other, tiny, tmp_path):
    sets = {"one": datasets.read("market1501", people).train, "two": datasets.read("market1501", other).train}
    samples, domains = join(sets)
    config = tiny(p=4, balance_domains=True, balance_cameras=True, epochs=1)
    run = training._Run(samples, config, tmp_path, "both", World(), torch.device("cpu"), False, domains)
    run.prepare()
    for step in range(run.epoch_steps):
        batch = run.make_batch(step)
        assert sorted(batch.styles.tolist()) == ["one"] * 4 + ["two"] * 4
        labels = batch.labels.numpy()
        assert (batch.styles == np.where(labels < 6, "one", "two")).all(), "six people of the one, then four"
    card = load_model(run.go(None).path).card
    assert card["num_classes"] == 10
    assert card["data"] == {
        "name": "both",
        "images": 40,
        "identities": 10,
        "cameras": 4,
        "held_out": 0.0,
        "sets": [
            {"name": "one", "images": 24, "identities": 6, "cameras": 2},
            {"name": "two", "images": 16, "identities": 4, "cameras": 2},
        ],
    }
    assert training.train(samples, config, tmp_path, domains=domains, progress=False).path.exists()
    with pytest.raises(ReidError, match="run on other images"):
        training.train(samples, config, tmp_path, domains=["one"] * 40, progress=False)


@pytest.fixture(scope="module")
def joint(people: Path, other: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The finished main job on two data sets."""
    output = tmp_path_factory.mktemp("joint") / "run"
    words = ["--dataset", "market1501", "market1501", "--data-root", people, other, "--output", output, *FAST]
    assert run_reid.main([str(word) for word in words]) == 0
    return output


def test_the_main_job_scores_each_set_by_itself(joint):
    names = ["market1501-Market-1501-v15.09.15", "market1501-campus"]
    card = load_model(joint / "model.safetensors").card
    assert card["data"]["name"] == "+".join(names)
    assert [of["identities"] for of in card["data"]["sets"]] == [6, 4]
    table = (joint / "scores.txt").read_text().splitlines()
    assert table[0].split() == ["data", "set", "Rank-1", "Rank-5", "Rank-10", "mAP", "mINP"]
    for line, name, queries in zip(table[1:], names, (8, 6), strict=True):
        metrics = json.loads((joint / name / "metrics.json").read_text())
        assert line.split()[0] == name
        assert line.split()[4] == f"{metrics['mAP']:.1%}"
        assert card["scores"][name]["mAP"] == metrics["mAP"]
        assert (metrics["num_query"], metrics["num_gallery"]) == (queries, 10)
        assert (joint / name / "report.md").exists() and (joint / name / "gallery" / "manifest.json").exists()


SENTENCE = "This dataset should be used for research only. Please DO NOT distribute or use it for commercial purpose."


def test_a_model_carries_the_terms_of_its_data_and_the_report_prints_them(joint):
    assert load_model(joint / "model.safetensors").card["data"]["terms"] == {"market1501": SENTENCE}
    for report in joint.glob("*/report.md"):
        assert SENTENCE in report.read_text()


def test_what_is_made_from_such_a_model_carries_them_too(joint, paths, tiny, tmp_path):
    samples = [Sample(path, int(Path(path).name[:4]), int(Path(path).name[6])) for path in paths]
    model = joint / "model.safetensors"
    for changes in (dict(pretrained=model, branches=[[1, 2]]), dict(teacher=model, distill=1.0)):
        config = tiny(p=4, epochs=0, **changes)
        made = training.train(
            samples, config, tmp_path / next(iter(changes)), terms={"mine": "Ask me."}, progress=False
        ).path
        assert load_model(made).card["data"]["terms"] == {"mine": "Ask me.", "market1501": SENTENCE}
    free = training.train(samples, tiny(epochs=0), tmp_path / "free", progress=False).path
    assert "terms" not in load_model(free).card["data"]


@pytest.mark.skipif(not README.exists(), reason="no ../shared")
def test_the_sentence_is_its_authors():
    assert SENTENCE in README.read_text(encoding="utf-8", errors="replace")


def test_finished_it_says_so_and_of_other_sets_it_is_another_run(joint, people, other, capsys):
    words = ["--output", joint, *FAST, "--dataset", "market1501", "market1501", "--data-root"]
    assert run_reid.main([str(word) for word in (*words, people, other)]) == 0
    said = capsys.readouterr().out
    assert "finished already" in said and f"{joint}/market1501-campus/report.md" in said
    assert (joint / "scores.txt").read_text() in said
    assert run_reid.main([str(word) for word in (*words, other, people)]) == 2
    assert "holds a different run" in capsys.readouterr().err


def test_a_joint_model_scores_as_evaluate_says(joint, people, tmp_path):
    words = [
        "evaluate",
        "--dataset",
        "market1501",
        "--data-root",
        people,
        "--weights",
        joint / "model.safetensors",
        "--output",
        tmp_path / "e",
    ]
    assert run_reid.main(list(map(str, words))) == 0
    alone = json.loads((tmp_path / "e/metrics.json").read_text())
    there = json.loads((joint / "market1501-Market-1501-v15.09.15/metrics.json").read_text())
    assert alone["mAP"] == there["mAP"]


def test_evaluate_takes_a_root_for_each_set_and_reads_all_first(joint, people, tmp_path, capsys):
    weights = joint / "model.safetensors"
    words = [
        "evaluate",
        "--weights",
        weights,
        "--output",
        tmp_path / "e",
        "--dataset",
        "market1501",
        "market1501",
        "--data-root",
        people,
    ]

    def run(*words: object) -> tuple[int, str]:
        code = run_reid.main([str(word) for word in words])
        return code, capsys.readouterr().err.splitlines()[-1]

    code, line = run(*words, tmp_path / "nowhere")
    assert code == 2 and "nowhere" in line
    assert not (tmp_path / "e").exists(), "nothing is scored before all are read"
    code, line = run(*words, people, people)
    assert code == 2 and "--data-root: expected one folder for all 2 data sets, or 2, got 3" in line
    code, line = run(*words)
    assert code == 2 and "market1501 is given twice" in line
    shutil.copytree(people, tmp_path / "campus")
    assert run(*words, tmp_path / "campus")[0] == 0
    found = sorted(path.parent.name for path in (tmp_path / "e").glob("*/metrics.json"))
    assert found == ["evaluate-market1501-Market-1501-v15.09.15-run", "evaluate-market1501-campus-run"]


def test_a_bad_image_is_left_out_of_its_own_set(people, other, tmp_path):
    broken = tmp_path / "campus"
    shutil.copytree(other, broken)
    bad = next((broken / "query").iterdir())
    bad.write_bytes(b"no image")
    sets = {"one": datasets.read("market1501", people), "two": datasets.read("market1501", broken)}
    with pytest.raises(ReidError, match=f"1 unreadable image.*{bad.name}"):
        check_sets(sets, tmp_path, skip_bad=False)
    left = check_sets(sets, tmp_path, skip_bad=True)
    assert left["one"] == sets["one"]
    assert left["two"].query == [sample for sample in sets["two"].query if sample.path != str(bad)]
    assert (left["two"].train, left["two"].gallery) == (sets["two"].train, sets["two"].gallery)
    assert bad.name in left["two"].warnings[-1]
