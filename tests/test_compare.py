"""Runs side by side: the bootstrap against plain loops, what may be compared, and what is printed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.core.types import ReidError, Sample, Splits
from reid.report.compare import MEASURES, PAIRED, Compared, as_markdown, as_text, compare, read_results
from reid.report.metrics import RunFacts, metrics, metrics_text
from reid.retrieval.bootstrap import RESAMPLES, draw_people, intervals
from reid.retrieval.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = 30


def result(noise: float, *, cut: int = 0, seconds: float | None = 90.0, split: bool | None = None) -> dict[str, Any]:
    """metrics.json of a run on PEOPLE people before 3 cameras; more noise, worse features. The last person's queries
    have no match. cut: gallery images left out."""
    rng = np.random.default_rng(1)
    samples = [Sample(f"{p:03}_c{c}_{i}.jpg", p, c) for p in range(1, PEOPLE + 1) for c in (1, 2, 3) for i in (1, 2)]
    query = [s for s in samples if s.path.endswith("_1.jpg")]
    gallery = [s for s in samples if s.path.endswith("_2.jpg") and s.pid < PEOPLE]
    gallery = gallery[: len(gallery) - cut]
    centres = rng.standard_normal((PEOPLE + 1, 8))
    q, g = (np.array([centres[s.pid] for s in part]) for part in (query, gallery))
    q, g = q + noise * rng.standard_normal(q.shape), g + noise * np.random.default_rng(2).standard_normal(g.shape)
    scores = evaluate(q, g, *(np.array([s[i] for s in part]) for i in (1, 2) for part in (query, gallery)))
    splits = Splits("market1501", "root", [], query, gallery, split, [])
    run = RunFacts(f"python run_reid.py --set noise={noise}", "scgnet_s", 3_800_123, (384, 128), "ff", 1.0,
                   train_seconds=seconds)  # fmt: skip
    return metrics(splits, scores, run, None if seconds is None else [{"images": 51_200}])


@pytest.fixture
def keep(tmp_path: Path) -> Callable[..., Path]:
    """keep("a", values): the values as a run's folder; keep("a.json", values): as a file of their own."""

    def write(name: str, values: dict[str, Any]) -> Path:
        place = tmp_path / name
        file = place if name.endswith(".json") else place / "metrics.json"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(metrics_text(values))
        return place

    return write


# ---------------------------------------------------------------- the bootstrap


def test_intervals_equal_plain_loops() -> None:
    rng = np.random.default_rng(3)
    pids = rng.permutation(np.repeat([7, 3, 12, 5, 40], [1, 2, 3, 4, 5]))
    values = rng.random((3, 15))
    values[:, 4] = math.nan
    people = sorted(set(pids.tolist()))
    drawn = draw_people(len(people))
    assert drawn.shape == (RESAMPLES, 5)
    for row, found in zip(values, intervals(values, pids)):
        means = []
        for resample in drawn.tolist():
            taken = [
                value
                for person in resample
                for pid, value in zip(pids, row)
                if pid == people[person] and not math.isnan(value)
            ]
            means.append(sum(taken) / len(taken))
        assert found.mean == pytest.approx(np.nanmean(row))
        assert found.low == pytest.approx(np.percentile(means, 2.5))
        assert found.high == pytest.approx(np.percentile(means, 97.5))


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    rng = np.random.default_rng(4)
    pids = np.repeat(np.arange(40), 4)
    people, noise = rng.normal(0.5, 0.2, (200, 40)), rng.normal(0, 0.1, (200, 160))
    held = [found.low <= 0.5 <= found.high for found in intervals(people[:, pids] + noise, pids)]
    assert 0.89 <= np.mean(held) <= 0.98


def test_queries_of_a_person_are_drawn_together() -> None:
    """Eight alike queries a person say no more than one: drawing queries would give an interval of a third."""
    values = np.repeat(np.random.default_rng(5).random(50), 8)[None]
    (together,) = intervals(values, np.repeat(np.arange(50), 8))
    (alone,) = intervals(values, np.arange(400))
    (once,) = intervals(values[:, ::8], np.arange(50))
    assert together.high - together.low > 2.5 * (alone.high - alone.low)
    assert together == pytest.approx(once)


def test_a_paired_interval_sees_what_two_intervals_do_not() -> None:
    rng = np.random.default_rng(6)
    pids = np.repeat(np.arange(50), 4)
    before = rng.random(200)
    after = before + 0.02 + rng.normal(0, 0.02, 200)
    first, second, difference = intervals(np.stack([before, after, after - before]), pids)
    assert first.high > second.low
    assert difference.excludes_zero and 0.01 < difference.low < 0.02 < difference.high < 0.03


def test_one_person_has_no_interval() -> None:
    with pytest.raises(ReidError, match="at least 2 people that have a match, got 1"):
        intervals(np.array([[0.5, 0.25, math.nan]]), np.array([4, 4, 5]))


# ---------------------------------------------------------------- runs side by side


def test_scores_and_differences_are_those_of_the_runs(keep: Callable[..., Path]) -> None:
    worse, better = result(1.4), result(0.9)
    first, second = compare(read_results([keep("worse", worse), keep("better.json", better)]))
    assert (first.result.name, second.result.name, first.difference) == ("worse", "better", {})
    for run, values in ((first, worse), (second, better)):
        for name, key in zip(MEASURES, ("rank1", "mAP", "mAP_trapezoid", "mINP")):
            found = run.measured[name]
            assert found.mean == pytest.approx(values[key], abs=1e-6)
            assert found.low < found.mean < found.high
    for name, key in zip(PAIRED, ("rank1", "mAP")):
        assert second.difference[name].mean == pytest.approx(better[key] - worse[key], abs=1e-6)
        assert second.difference[name].low > 0


def test_the_paired_interval_is_that_of_the_same_people(keep: Callable[..., Path]) -> None:
    a, b = result(1.4), result(1.3)
    (_, compared) = compare(read_results([keep("a", a), keep("b", b)]))
    values = [[x for x in run["queries"]["average_precision"] if x is not None] for run in (a, b)]
    sums = np.array(values).reshape(2, PEOPLE - 1, 3).sum(axis=2)  # three queries a person
    drawn = draw_people(PEOPLE - 1)
    differences = (sums[1][drawn].sum(axis=1) - sums[0][drawn].sum(axis=1)) / (3 * (PEOPLE - 1))
    assert tuple(compared.difference["mAP"][1:]) == pytest.approx(np.percentile(differences, [2.5, 97.5]), abs=1e-9)


def test_a_run_beside_itself_differs_by_nothing(keep: Callable[..., Path]) -> None:
    place = keep("a", result(1.0))
    first, second, third = compare(read_results([place, place, place]), "a (2)")
    assert [run.result.name for run in (first, second, third)] == ["a", "a (2)", "a (3)"]
    assert first.measured == second.measured == third.measured
    assert second.difference == {}
    for run in (first, third):
        assert set(run.difference.values()) == {(0.0, 0.0, 0.0)}
    assert as_text([first, second]).count("+0.0 [+0.0, +0.0]") == len(PAIRED)
    assert "Against a (2): no difference of Rank-1 or mAP has an interval" in as_text([first, second])


def test_names_come_from_folders_and_files(
    keep: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = keep("scgnet-1.5x", result(1.0))
    odd = keep("line\nbreak", result(1.0))
    monkeypatch.chdir(run)
    names = [found.name for found in read_results([".", run / "metrics.json", odd])]
    assert names == ["scgnet-1.5x", "scgnet-1.5x (2)", "line\\nbreak"]


def test_runs_on_other_images_are_refused_and_named(keep: Callable[..., Path]) -> None:
    a, other = result(1.0), result(1.0, cut=2)
    query = {**result(1.0), "images": {**a["images"], "query": "0" * 16}, "dataset": "folder"}
    places = [keep("a", a), keep("fewer", other), keep("theirs", query), keep("same", result(1.2))]
    with pytest.raises(ReidError) as error:
        compare(read_results(places))
    told = str(error.value)
    assert "those of a (market1501): fewer (market1501) has other gallery images, " in told
    assert "theirs (folder) has other query images" in told
    assert "same (" not in told and "\n" not in told


def test_a_baseline_that_is_not_there(keep: Callable[..., Path]) -> None:
    with pytest.raises(ReidError, match="no run is named 'b': --baseline takes one of a, c"):
        compare(read_results([keep("a", result(1.0)), keep("c", result(1.1))]), "b")


def spoilt(**changes: object) -> Callable[[dict[str, Any]], object]:
    return lambda values: {**values, **changes}


def in_queries(key: str, spoil: Callable[[list[Any]], object]) -> Callable[[dict[str, Any]], object]:
    return lambda values: {**values, "queries": {**values["queries"], key: spoil(values["queries"][key])}}


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda v: [v], "is no result of a run"),
        (lambda v: {"loss": 1}, "is no result of a run"),
        (lambda v: {k: x for k, x in v.items() if k != "queries"}, "older version, without the scores of each query"),
        (lambda v: {k: x for k, x in v.items() if k != "command"}, "command should be str, got None"),
        (spoilt(parameters="3 M"), "parameters should be int, got '3 M'"),
        (spoilt(image_passes=[]), "image_passes should be int or null, got \\[\\]"),
        (spoilt(input_size=[384]), "input_size should be two integers"),
        (spoilt(mAP=0.99), "its mAP is 0.99 and its queries give 0"),
        (spoilt(rank1=None), "its rank1 is None and its queries give 0"),
        (in_queries("trapezoid", lambda x: None), "queries.trapezoid should be a list of numbers"),
        (in_queries("pid", lambda x: [*x[:-1], "7"]), "queries.pid should be a list of numbers"),
        (in_queries("first_rank", lambda x: [10**400, *x[1:]]), "queries.first_rank should be a list of numbers"),
        (in_queries("average_precision", lambda x: x[1:]), "differ in length, .*'average_precision': 89"),
        (in_queries("inverse_penalty", lambda x: [None, *x[1:]]), "values that are not scores"),
        (in_queries("average_precision", lambda x: [1.5, *x[1:]]), "values that are not scores"),
    ],
)
def test_damaged_and_old_results_are_one_line(
    keep: Callable[..., Path], spoil: Callable[[dict[str, Any]], Any], message: str
) -> None:
    file = keep("a.json", {})
    file.write_text(json.dumps(spoil(result(1.0))))
    with pytest.raises(ReidError, match=message) as error:
        read_results([file])
    assert str(error.value).startswith(str(file)) and "\n" not in str(error.value)


def test_places_without_a_result(tmp_path: Path) -> None:
    with pytest.raises(ReidError, match=r"no result at .*metrics\.json: the run is not finished"):
        read_results([tmp_path])
    with pytest.raises(ReidError, match=r"no result at .*gone\.json: give a run's folder or \.json file"):
        read_results([tmp_path / "gone.json"])
    for content in (b"\x80\x04pickle", b"{", b"[" * 100_000):
        (tmp_path / "a.json").write_bytes(content)
        with pytest.raises(ReidError, match="is damaged, it holds no JSON"):
            read_results([tmp_path / "a.json"])


# ---------------------------------------------------------------- what is printed


@pytest.fixture
def three(keep: Callable[..., Path]) -> list[Compared]:
    runs = {"before": result(1.4), "after.json": result(0.9), "given|weights": result(1.4, seconds=None, split=False)}
    return compare(read_results([keep(name, values) for name, values in runs.items()]))


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")]


def test_markdown_is_a_table_its_meaning_and_the_commands(three: list[Compared]) -> None:
    table, note, verdict, commands = as_markdown(three).split("\n\n")
    header, _, before, after, given = map(cells, table.splitlines())
    assert header == ["run", "backbone", "input", "image passes", "minutes", *MEASURES, "mAP less before"]
    assert before[:5] == ["before", "scgnet_s", "384x128", "51,200", "1.5"] and before[-1] == "baseline"
    assert given[:5] == ["given/weights", "scgnet_s", "384x128", "-", "-"]
    for run, line in zip(three, (before, after, given)):
        assert line[5:9] == ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in run.measured[m])) for m in MEASURES]
    assert after[-1] == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in three[1].difference["mAP"]))
    assert "\n" not in note
    assert "market1501 (not the official split), 90 queries of 30 people (3 without a match, left out), 87" in note
    assert "95% percentile interval of 2,000 bootstrap resamples of the people" in note
    assert verdict.startswith("Against before: after has the higher Rank-1 (+")
    assert "; after has the higher mAP (+" in verdict and "given" not in verdict
    assert verdict.endswith(". No other difference of Rank-1 or mAP has an interval that excludes 0.")
    assert commands.splitlines()[:2] == ["    # before", "    python run_reid.py --set noise=1.4"]
    assert as_markdown(three) == as_markdown(three)


def test_the_lower_one_is_said_to_be_lower(three: list[Compared]) -> None:
    turned = compare([run.result for run in three[:2]], "after")
    assert "Against after: before has the lower Rank-1 (-" in as_text(turned)
    assert cells(as_markdown(turned).splitlines()[3])[-1] == "baseline"


def test_text_is_aligned(three: list[Compared]) -> None:
    scores, differences, note, verdict, facts, commands = as_text(three).split("\n\n")
    assert len({len(line) for line in scores.splitlines()}) == 1
    assert differences.splitlines()[0].split()[:2] == ["less", "before"] and len(differences.splitlines()) == 3
    assert facts.splitlines()[1].split() == ["before", "scgnet_s", "384x128", "3,800,123", "51,200", "1.5"]
    assert commands.splitlines()[0] == "before         python run_reid.py --set noise=1.4"
    assert [note, verdict] == as_markdown(three).split("\n\n")[1:3]


def test_one_run_has_intervals_and_nothing_to_be_held_against(keep: Callable[..., Path]) -> None:
    only = compare(read_results([keep("only", result(1.0))]))
    assert "less" not in as_text(only) + as_markdown(only) and "Against" not in as_text(only) + as_markdown(only)
    assert cells(as_markdown(only).splitlines()[0])[-1] == "mINP"


def test_bytes_that_are_no_text_can_be_printed(keep: Callable[..., Path]) -> None:
    values = {**result(1.0), "command": "python run_reid.py --data-root 'raw\udcff\nname'"}
    (run,) = compare(read_results([keep("a", values)]))
    assert "--data-root 'raw\\udcff\\nname'" in as_markdown([run])
    as_text([run]).encode()


def test_it_starts_without_torch_and_matplotlib() -> None:
    code = "import sys, run_reid, reid.report.compare; print({'torch', 'matplotlib', 'faiss'} & set(sys.modules))"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"
