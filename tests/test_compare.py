"""Runs side by side: the bootstrap against plain loops, seeds against draws, what may be compared, what is printed."""

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
from scipy.stats import ttest_ind, ttest_rel

import run_reid
from reid.core.types import ReidError, Sample, Splits
from reid.report.compare import PAIRED, Compared, compare
from reid.report.compare_tables import as_latex, as_markdown, as_text, seeds_table
from reid.report.metrics import RunRecord, metrics, metrics_text
from reid.report.results import MEASURES, read_results
from reid.retrieval.bootstrap import RESAMPLES, draw_people, intervals, over_seeds, resample
from reid.retrieval.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
PEOPLE = 30


def result(
    noise: float,
    *,
    cut: int = 0,
    seconds: float | None = 90.0,
    split: bool | None = None,
    seed: int | None = None,
    **more: Any,
) -> dict[str, Any]:
    """metrics.json of a run on PEOPLE people before 3 cameras; more noise, worse features. The last person's queries
    have no match. cut: gallery images left out. seed: of the recipe, which without one is not known; it draws the
    noise. more: of RunRecord."""
    rng = np.random.default_rng(1)
    samples = [Sample(f"{p:03}_c{c}_{i}.jpg", p, c) for p in range(1, PEOPLE + 1) for c in (1, 2, 3) for i in (1, 2)]
    query = [s for s in samples if s.path.endswith("_1.jpg")]
    gallery = [s for s in samples if s.path.endswith("_2.jpg") and s.pid < PEOPLE]
    gallery = gallery[: len(gallery) - cut]
    centres = rng.standard_normal((PEOPLE + 1, 8))
    q, g = (np.array([centres[s.pid] for s in part]) for part in (query, gallery))
    drawn = np.random.default_rng([2, seed or 0])
    q, g = q + noise * rng.standard_normal(q.shape), g + noise * drawn.standard_normal(g.shape)
    scores = evaluate(q, g, *(np.array([s[i] for s in part]) for i in (1, 2) for part in (query, gallery)))
    splits = Splits("market1501", "root", [], query, gallery, split, [])
    run = RunRecord(
        f"python run_reid.py --set noise={noise}",
        "scgnet_s",
        3_800_123,
        (384, 128),
        "ff",
        1.0,
        train_seconds=seconds,
        recipe={} if seed is None else {"noise": noise, "seed": seed},
        **{"multiply_adds": 73_522_688, **more},
    )
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
        for people_drawn in drawn.tolist():
            taken = [
                value
                for person in people_drawn
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


# ---------------------------------------------------------------- seeds


def drawn_scores(rng: np.random.Generator, seeds: int, people: np.ndarray, own: float, seed: float) -> np.ndarray:
    """(seeds, P) scores of a recipe that is no better than another: what people, seeds and the pairs of both add."""
    each = people + own * rng.standard_normal(len(people))
    return each + seed * rng.standard_normal((seeds, 1)) + 0.1 * rng.standard_normal((seeds, len(people)))


def share_excluding_zero(ours: int, theirs: int, own: float, seed: float, repeats: int = 300) -> float:
    rng, pids, rows = np.random.default_rng(7), np.arange(40), np.arange(ours + theirs)
    excluded = 0
    for _ in range(repeats):
        people = rng.normal(0.5, 0.2, 40)
        both = [drawn_scores(rng, count, people, own, seed) for count in (ours, theirs)]
        excluded += over_seeds(resample(np.concatenate(both), pids), rows[:ours], rows[ours:]).excludes_zero
    return excluded / repeats


@pytest.mark.parametrize(
    ("ours", "theirs", "own", "seed"),
    [(3, 3, 0.1, 0.02), (3, 3, 0.3, 0.0), (2, 5, 0.1, 0.02), (5, 5, 0.0, 0.05)],
)
def test_of_equal_recipes_one_interval_in_twenty_excludes_zero(ours: int, theirs: int, own: float, seed: float) -> None:
    assert 0.02 <= share_excluding_zero(ours, theirs, own, seed) <= 0.08


@pytest.mark.parametrize("seeds", [2, 3])
def test_against_a_single_seed_no_more_than_one_in_twenty_does(seeds: int) -> None:
    assert 0.005 <= share_excluding_zero(seeds, 1, 0.1, 0.02) <= 0.06


def test_people_alone_call_equal_recipes_different_far_more_often() -> None:
    """Why the seeds are counted: a seed that moves a score by 5 points is taken for the recipe's doing."""
    rng, pids = np.random.default_rng(8), np.arange(60)
    excluded = 0
    for _ in range(100):
        a, b = (drawn_scores(rng, 1, np.full(60, 0.5), 0.1, 0.05) for _ in range(2))
        excluded += intervals(a - b, pids)[0].excludes_zero
    assert excluded > 30


def test_the_interval_of_a_recipe_holds_its_score() -> None:
    rng, pids = np.random.default_rng(9), np.arange(60)
    held = 0
    for _ in range(300):
        found = over_seeds(resample(drawn_scores(rng, 3, rng.normal(0.5, 0.2, 60), 0.1, 0.03), pids), [0, 1, 2])
        held += found.low <= 0.5 <= found.high
    assert 0.91 <= held / 300 <= 0.98


def test_where_all_people_are_alike_it_is_welchs_interval_over_the_seeds() -> None:
    means = np.array([0.50, 0.53, 0.49, 0.60, 0.66])
    resampled = resample(np.repeat(means[:, None], 8, axis=1), np.arange(8))
    welch = ttest_ind(means[:3], means[3:], equal_var=False).confidence_interval(0.95)
    found = over_seeds(resampled, [0, 1, 2], [3, 4])
    assert tuple(found) == pytest.approx((means[:3].mean() - means[3:].mean(), *welch))
    pooled = over_seeds(resampled, [0, 1, 2], [3])
    half = 4.302653 * means[:3].std(ddof=1) * math.sqrt(1 / 3 + 1)  # Student's quantile of 2 degrees
    assert pooled.high - pooled.mean == pytest.approx(half)


def test_where_all_seeds_are_alike_it_is_the_paired_interval_over_the_people() -> None:
    rng = np.random.default_rng(10)
    a, b = rng.random((2, 400))
    paired = ttest_rel(a, b).confidence_interval(0.95)
    found = over_seeds(resample(np.stack([a, a, a, b, b]), np.arange(400)), [0, 1, 2], [3, 4])
    assert tuple(found) == pytest.approx(((a - b).mean(), *paired), abs=0.002)
    same = over_seeds(resample(np.stack([a, a, a, a]), np.arange(400)), [0, 1], [2, 3])
    assert tuple(same) == pytest.approx((0, 0, 0), abs=1e-9)


def test_one_seed_each_tells_nothing_of_seeds() -> None:
    with pytest.raises(ReidError, match="at least 2 seeds, got 1 of each"):
        over_seeds(resample(np.eye(2), np.arange(2)), [0], [1])


def test_the_lower_of_three_seeds_is_no_worse_recipe(keep: Callable[..., Path]) -> None:
    runs = [keep(f"old/seed-{seed}", result(1.2, seed=seed)) for seed in (2, 0, 1)]
    (row,) = compare(read_results(runs))
    means = np.array([result(1.2, seed=seed)["mAP"] for seed in (0, 1, 2)])
    assert (row.name, [run.seed for run in row.runs], row.difference) == ("old", [0, 1, 2], {})
    assert row.measured["mAP"].mean == pytest.approx(means.mean(), abs=1e-6)
    assert row.deviation["mAP"] == pytest.approx(means.std(ddof=1), abs=1e-6)
    assert row.measured["mAP"].low < means.min() and means.max() < row.measured["mAP"].high
    scores, note, each, _facts, commands = as_text([row]).split("\n\n")
    assert scores.splitlines()[1].startswith(f"old  0, 1, 2  {100 * row.measured['Rank-1'].mean:.1f} ± ")
    assert "95% interval over seeds and people together" in note and "worse" not in note
    assert [line.split()[:2] for line in each.splitlines()[1:]] == [[f"old/seed-{i}", str(i)] for i in range(3)]
    assert commands == "old  python run_reid.py --set noise=1.2"


def test_differences_say_whether_they_count_the_seeds(keep: Callable[..., Path]) -> None:
    for noise, name, seeds in ((1.5, "old", 3), (0.8, "new", 3), (1.4, "once", 1), (0.7, "alone", 1)):
        for seed in range(seeds):
            keep(f"{name}/seed-{seed}", result(noise, seed=seed))
    top = keep("old", result(1.5)).parent  # metrics.json beside the seeds: a run of its own
    (top / "old/metrics.json").unlink()
    results = read_results([top / name for name in ("old", "new", "once", "alone")])
    old, new, once, alone = compare(results)
    assert [row.name for row in (old, new, once, alone)] == ["old", "new", "once/seed-0", "alone/seed-0"]
    rows = np.array([run.values[1] for run in (*old.runs, *new.runs)])
    expected = over_seeds(resample(rows, old.runs[0].pids), [3, 4, 5], [0, 1, 2])
    assert new.difference["mAP"] == pytest.approx(expected) and expected.low > 0
    assert new.knows_seeds and once.knows_seeds
    verdict = as_text([old, new, once, alone]).split("\n\n")[3]
    assert verdict.startswith("Against old, seeds and people counted: new has the higher ")
    assert "Of once/seed-0, alone/seed-0 with one seed its variance is taken to be the other's." in verdict
    turned = compare(results, "alone/seed-0")
    known, unknown = as_text(turned).split("\n\n")[3:5]
    assert known.startswith("Against alone/seed-0, seeds and people counted: ") and "once" not in known
    assert unknown.startswith("Against alone/seed-0, one seed each, so that the seed's variance is unknown")
    assert not next(row for row in turned if row.name == "once/seed-0").knows_seeds
    assert [row.name for row in compare(results, "new/seed-2") if row.is_baseline] == ["new"]


@pytest.mark.parametrize(
    ("second", "rows"),
    [
        ({"seed": 1}, 1),
        ({"seed": 0}, 2),  # the same seed again tells nothing of another
        ({"seed": None}, 2),
        ({"seed": 1, "noise": 1.1}, 2),
        ({"seed": 1, "seconds": None}, 2),  # what that model was trained on is not known
    ],
)
def test_runs_of_one_recipe_differ_in_the_seed_alone(
    keep: Callable[..., Path], second: dict[str, Any], rows: int
) -> None:
    places = [keep("a", result(1.0, seed=0)), keep("b", result(**{"noise": 1.0, **second}))]
    assert len(compare(read_results(places))) == rows


def test_given_models_are_of_one_recipe_where_they_learnt_from_the_same_data(keep: Callable[..., Path]) -> None:
    on = {"name": "market1501", "images": 100, "identities": 20, "held_out": 0.0}
    trained = [(0, on), (1, on), (2, {**on, "name": "msmt17"})]
    places = [keep(f"m{seed}", result(1.0, seed=seed, seconds=None, trained_on=data)) for seed, data in trained]
    assert [len(row.runs) for row in compare(read_results(places))] == [2, 1]
    held = [{**on, "held_out": 0.2, "images": images} for images in (80, 83)]  # the seed draws who is held out
    held[1]["cameras"] = 6  # which earlier versions did not tell
    places = [keep(f"h{i}", result(1.0, seed=i, seconds=None, trained_on=data)) for i, data in enumerate(held)]
    assert len(compare(read_results(places))) == 1


def test_unfinished_seeds_are_passed_over_and_told(keep: Callable[..., Path], tmp_path: Path) -> None:
    for seed in (10, 9):
        keep(f"r/seed-{seed}", result(1.0, seed=seed))
    (tmp_path / "r/seed-11").mkdir()
    told: list[str] = []
    assert [run.name for run in read_results([tmp_path / "r"], told.append)] == ["r/seed-9", "r/seed-10"]
    assert told == [f"{tmp_path}/r/seed-11 is not finished; it is passed over"]


def test_the_table_of_seeds_ends_with_mean_and_deviation() -> None:
    table = seeds_table([0, 7, 2], {"mAP": [0.5, 0.75, 1.0], "held-out": [None, None, 0.25]}, ".2f")
    assert [line.split() for line in table.splitlines()] == [
        ["seed", "mAP", "held-out"],
        ["0", "0.50", "-"],
        ["7", "0.75", "-"],
        ["2", "1.00", "0.25"],
        ["mean", "0.75", "0.25"],
        ["standard", "deviation", "0.25", "-"],
    ]


# ---------------------------------------------------------------- runs side by side


def test_scores_and_differences_are_those_of_the_runs(keep: Callable[..., Path]) -> None:
    worse, better = result(1.4), result(0.9)
    first, second = compare(read_results([keep("worse", worse), keep("better.json", better)]))
    assert (first.name, second.name, first.difference) == ("worse", "better", {})
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
    assert second.is_baseline and not first.is_baseline
    assert [run.name for run in (first, second, third)] == ["a", "a (2)", "a (3)"]
    assert first.measured == second.measured == third.measured
    assert second.difference == {}
    for run in (first, third):
        assert set(run.difference.values()) == {(0.0, 0.0, 0.0)}
    assert as_text([first, second]).count("+0.0 [+0.0, +0.0]") == len(PAIRED)
    assert "by the people alone: no difference of Rank-1 or mAP has an interval" in as_text([first, second])


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
    facts = ["backbone", "input", "parameters", "multiply-adds", "image passes", "minutes"]
    assert header == ["run", *facts, *MEASURES, "mAP less before"]
    assert before[:7] == ["before", "scgnet_s", "384x128", "3,800,123", "73,522,688", "51,200", "1.5"]
    assert before[-1] == "baseline"
    assert given[:7] == ["given/weights", "scgnet_s", "384x128", "3,800,123", "73,522,688", "-", "-"]
    for run, line in zip(three, (before, after, given)):
        assert line[7:11] == ["{:.1f} [{:.1f}, {:.1f}]".format(*(100 * x for x in run.measured[m])) for m in MEASURES]
    assert after[-1] == "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * x for x in three[1].difference["mAP"]))
    assert "\n" not in note
    assert "market1501 (not the official split), 90 queries of 30 people (3 without a match, left out), 87" in note
    assert "95% percentile interval of 2,000 bootstrap resamples of the people" in note
    assert verdict.startswith("Against before, one seed each, so that the seed's variance is unknown")
    assert "by the people alone: after has the higher Rank-1 (+" in verdict
    assert "; after has the higher mAP (+" in verdict and "given" not in verdict
    assert ". No other difference of Rank-1 or mAP has an interval that excludes 0." in verdict
    assert verdict.endswith("not corrected for their number.")
    assert commands.splitlines()[:2] == ["    # before", "    python run_reid.py --set noise=1.4"]
    assert as_markdown(three) == as_markdown(three)


def test_the_lower_one_is_said_to_be_lower(three: list[Compared]) -> None:
    turned = compare([run for row in three[:2] for run in row.runs], "after")
    assert "by the people alone: before has the lower Rank-1 (-" in as_text(turned)
    assert cells(as_markdown(turned).splitlines()[3])[-1] == "baseline"


def test_text_is_aligned(three: list[Compared]) -> None:
    scores, differences, note, verdict, facts, commands = as_text(three).split("\n\n")
    assert len({len(line) for line in scores.splitlines()}) == 1
    assert differences.splitlines()[0].split()[:2] == ["less", "before"] and len(differences.splitlines()) == 3
    assert facts.splitlines()[1].split() == [
        "before",
        "scgnet_s",
        "384x128",
        "3,800,123",
        "73,522,688",
        "51,200",
        "1.5",
    ]
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
    code = (
        "import sys, run_reid, reid.report.compare_tables; print({'torch', 'matplotlib', 'faiss'} & set(sys.modules))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True)
    assert run.stdout.strip() == "set()"


# ---------------------------------------------------------------- the command


def test_every_kept_result_can_be_compared_in_one_call(capsys: pytest.CaptureFixture[str]) -> None:
    files = sorted((ROOT / "docs/results").glob("*.json"))
    assert run_reid.main(["compare", *map(str, files)]) == 0
    said = capsys.readouterr()
    (told,) = said.err.splitlines()
    assert told.startswith(f"{ROOT}/docs/results/npu.json is no result of a run")
    runs = {file.stem for file in files} - {"npu", "beyond-seed-1"}  # that one is in the row of its recipe
    assert runs <= {line.split()[0] for line in said.out.splitlines() if line.strip()}
    tables = [line for line in said.out.splitlines() if line.startswith("== ")]
    assert tables[0] == "== 2 sets of query and gallery images: runs compare within each"
    assert sorted(line.split()[-1] for line in tables[1:]) == ["cuhk03np_detected", "market1501"]


def test_a_file_that_is_no_result_is_an_error_alone(
    keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    other = keep("npu.json", {"cycles": 7})
    assert run_reid.main(["compare", str(other)]) == 2
    assert capsys.readouterr().err == (
        f"error: {other} is no result of a run: give a run's folder, or a copy of its metrics.json\n"
    )
    assert run_reid.main(["compare", str(other), str(other)]) == 2
    assert capsys.readouterr().err.startswith("error: none of the 2 files is a result: give ")
    with pytest.raises(ReidError, match="is no result of a run"):
        read_results([keep("a", result(1.0)), other])


def test_each_set_of_images_has_its_table(keep: Callable[..., Path], capsys: pytest.CaptureFixture[str]) -> None:
    places = [
        keep("a", result(1.0)),
        keep("x", result(1.0, cut=2)),
        keep("b", result(1.2)),
        keep("y", result(1.3, cut=2)),
    ]
    words = ["compare", *map(str, places), "--baseline", "b"]
    assert run_reid.main([*words, "--markdown"]) == 0
    said = capsys.readouterr().out
    assert said.startswith("## 2 sets of query and gallery images: runs compare within each\n\n## 1. market1501\n\n")
    one, two = said.split("## 2. market1501")
    assert "| a " in one and "| b " in one and "mAP less b |" in one and "87 gallery images" in one
    assert "| x " in two and "| y " in two and "mAP less x |" in two and "85 gallery images" in two
    assert run_reid.main([*words[:-1], "c"]) == 2
    assert capsys.readouterr().err == "error: no run is named 'c': --baseline takes one of a, x, b, y\n"


def test_latex_is_the_same_table_escaped(keep: Callable[..., Path]) -> None:
    for seed in (0, 1):
        keep(f"50%_&#/seed-{seed}", result(1.3, seed=seed))
    places = [keep("50%_&#", {}), keep("[b] -1~^", result(0.9))]
    (places[0] / "metrics.json").unlink()
    compared = compare(read_results(places))
    lines = as_latex(compared).splitlines()
    assert lines[0] == r"% \usepackage{booktabs}"
    start = lines.index(r"\toprule")
    assert lines[start - 1] == r"\begin{tabular}{llllrrrrrrrrr}"
    first, second = lines[start + 3 : start + 5]
    assert lines[start + 2] == r"\midrule" and lines[start + 5] == r"\bottomrule"
    assert first.startswith(r"50\%\_\&\# & 0, 1 & scgnet\_s & 384x128 & 3,800,123 & 73,522,688 & 51,200 & 1.5 & ")
    assert second.startswith(r"{}[b] -1\textasciitilde{}\textasciicircum{} & - & scgnet\_s & ")
    mean, low, high = (100 * x for x in compared[0].measured["Rank-1"])
    spread = 100 * compared[0].deviation["Rank-1"]
    assert f"& {mean:.1f} $\\pm$ {spread:.1f} [{low:.1f}, {high:.1f}] &" in first
    assert first.endswith(r"& baseline \\")
    turned = as_latex(compare([run for row in compared for run in row.runs], "[b] -1~^"))
    assert " $-$" in next(line for line in turned.splitlines() if line.startswith("50")).rpartition("&")[2]
    (caption,) = [line for line in lines if line.startswith(r"\caption{")]
    assert "95\\% interval" in caption and "%" not in caption.replace("\\%", "")


def test_markdown_and_latex_are_one_or_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run_reid.main(["compare", "a", "--markdown", "--latex"])
    assert "not allowed with" in capsys.readouterr().err
