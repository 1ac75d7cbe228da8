"""The report: figures exact, words true to the split, pictures that show the right images with the right marks."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy.sparse import csr_array

from reid.core.types import DISTRACTOR, JUNK, Sample, Splits
from reid.report import sheets
from reid.report.fonts import in_a_font
from reid.report.markdown import report_text, summary_table, write_report
from reid.report.metrics import ExtraMetrics, RunRecord, images_digest, metrics, metrics_text
from reid.report.page import MOST_STRIPS, STRIP_CROPS, write_people_page
from reid.report.plots import draw_curves
from reid.report.published import PUBLISHED
from reid.report.sheets import (
    CROP_H,
    CROP_W,
    Row,
    Tile,
    choose_queries,
    draw_ranked,
    draw_search,
    ranked_rows,
    tile_box,
)
from reid.retrieval.bootstrap import intervals
from reid.retrieval.evaluate import Scores, evaluate
from reid.retrieval.protocol import COSINE, Method
from reid.retrieval.verification import open_set, verify

RUN = RunRecord(
    command="python run_reid.py --dataset market1501 --data-root DIR",
    backbone="scgnet_s",
    parameters=3_800_123,
    multiply_adds=287_800_000,
    input_size=(384, 128),
    fingerprint="0123abcd",
    embed_images_per_second=211.123456,
    train_seconds=3725.5,
    git_revision="c0ffee",
    recipe={"p": 16, "k": 4, "lr": 0.05, "pretrained": "", "holdout": 0.0},
)
NOTHING = ExtraMetrics({}, None, None, [])


def on_disk(name: str) -> str:
    """A name as Python spells it under any locale: its bytes are those of UTF-8."""
    return os.fsdecode(name.encode("utf-8"))


def history(epochs: int) -> list[dict[str, Any]]:
    rows = []
    for epoch in range(1, epochs + 1):
        rank1 = 0.1 * epoch if epoch % 2 else None
        heads = [
            {"name": "1.global", "accuracy": 0.25 * epoch, "spread": 0.5, "rank1": rank1},
            {"name": "2.part1", "accuracy": 0.125, "spread": 0.001, "rank1": None},
        ]
        row = {
            "epoch": epoch,
            "step": 10 * epoch,
            "images": 640 * epoch,
            "lr": 0.01,
            "loss": 2.0,
            "losses": {"softmax": 1.5, "triplet": 0.5},
        }
        more = {"images_per_second": 100.0, "data_wait": 0.25, "rank1": rank1, "mAP": rank1}
        rows.append({**row, **more, "heads": heads})
    return rows


def person(path: Path, size: tuple[int, int] = (64, 128), colour: str = "steelblue") -> str:
    """A stand-in for a pedestrian."""
    image = Image.new("RGB", size, "beige")
    w, h = size
    draw = ImageDraw.Draw(image)
    draw.ellipse((0.35 * w, 0.05 * h, 0.65 * w, 0.2 * h), "peru")
    draw.rectangle((0.25 * w, 0.2 * h, 0.75 * w, 0.95 * h), colour)
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)
    return str(path)


def miniature(
    folder: Path, *, queries: int, gallery: int, name: str = "market1501", official: bool | None = True, seed: int = 0
) -> tuple[Splits, Scores, np.ndarray, np.ndarray]:
    """People 1..4 before cameras 1..3, with distractors and junk, features at random around each person's own."""
    rng = np.random.default_rng(seed)
    pids = [*(i % 4 + 1 for i in range(gallery - 2)), DISTRACTOR, JUNK]
    query = [Sample(f"q{i}", i % 4 + 1, 1) for i in range(queries)]
    found = [Sample(f"g{i}", pid, i // 4 % 3 + 1) for i, pid in enumerate(pids)]
    query = [s._replace(path=person(folder / "query" / f"{s.path}.png")) for s in query]
    found = [s._replace(path=person(folder / "gallery" / f"{s.path}.png")) for s in found]
    centres = rng.normal(size=(6, 8))

    def features(samples: list[Sample]) -> np.ndarray:
        rows = np.array([centres[s.pid] for s in samples]) + 1.5 * rng.normal(size=(len(samples), 8))
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)

    q, g = features(query), features(found)
    scores = evaluate(q, g, *(np.array([s[i] for s in part]) for i in (1, 2) for part in (query, found)))
    warnings = ["query 8 images (official 3,368)"] if official is False else []
    return Splits(name, str(folder), found[:4], query, found, official, warnings), scores, q, g


# ---------------------------------------------------------------- what is shown


def test_choose_queries_takes_the_worst_and_spreads_the_rest() -> None:
    precision = np.linspace(1, 0, 101)
    precision[3] = np.nan  # no match: never shown
    chosen = choose_queries(precision)
    assert [i for _, i in chosen[:4]] == [100, 99, 98, 97]
    assert [label for label, _ in chosen] == [
        "worst 1",
        "worst 2",
        "worst 3",
        "worst 4",
        "better than 25 %",
        "median",
        "better than 75 %",
        "best",
    ]
    assert np.all(np.diff(precision[[i for _, i in chosen]]) > 0)
    assert chosen[-1] == ("best", 0)
    ranks = np.sort(precision[~np.isnan(precision)])
    assert precision[dict(chosen)["median"]] == pytest.approx(np.median(ranks), abs=0.011)


@pytest.mark.parametrize("count", range(10))
def test_choose_queries_of_a_few_names_each_once(count: int) -> None:
    precision = np.array([np.nan, *np.linspace(0.2, 0.9, count), np.nan])
    positions = [i for _, i in choose_queries(precision)]
    assert positions[:4] == list(range(1, min(count, 4) + 1))
    assert len(set(positions)) == len(positions) >= min(count, 5)
    assert count == 0 or choose_queries(precision)[-1] == ("best", count)


def test_equal_precisions_keep_the_order_of_the_queries() -> None:
    assert [i for _, i in choose_queries(np.full(6, 0.5), worst=3, spread=1)] == [0, 1, 2, 5]


@pytest.mark.parametrize("seed", range(5))
def test_ranked_rows_are_the_protocols_ranking(tmp_path: Path, seed: int) -> None:
    splits, scores, q, g = miniature(tmp_path, queries=6, gallery=40, seed=seed)
    rows = ranked_rows([("any", i) for i in range(6)], splits, scores, q, g)
    for i, row in enumerate(rows):
        query = splits.query[i]
        allowed = []
        for j, sample in enumerate(splits.gallery):
            if sample.pid == JUNK or (sample.pid == query.pid and sample.camid == query.camid):
                continue
            allowed.append((-sum(float(a) * float(b) for a, b in zip(q[i], g[j], strict=True)), j))
        expected = [splits.gallery[j] for _, j in sorted(allowed)]
        assert [answer.path for answer in row.answers] == [sample.path for sample in expected[:10]]
        assert [answer.right for answer in row.answers] == [sample.pid == query.pid for sample in expected[:10]]
        assert [answer.camid for answer in row.answers] == [sample.camid for sample in expected[:10]]
        assert [answer.score for answer in row.answers] == pytest.approx(
            [-s for s, _ in sorted(allowed)[:10]], abs=1e-6
        )
        first = 1 + [sample.pid for sample in expected].index(query.pid)
        matches = sum(sample.pid == query.pid for sample in expected)
        assert f"first hit at rank {first},  {matches} right" in row.caption
        assert f"AP {100 * scores.average_precision[i]:.1f} %" in row.caption


def test_ranked_rows_of_longer_rows_and_across_blocks(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path, queries=4, gallery=40)
    plain = ranked_rows([("any", 2)], splits, scores, q, g)[0]
    lengths = np.random.default_rng(1).uniform(0.1, 9, size=(40, 1)).astype(np.float32)
    longer = ranked_rows([("any", 2)], splits, scores, 7 * q, lengths * g)[0]
    assert [a.path for a in longer.answers] == [a.path for a in plain.answers]
    assert np.allclose(sheets._similarity(q, g, block=7), q @ g.T, atol=1e-6)


def test_fewer_answers_than_ten_are_all_shown(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path, queries=1, gallery=8)
    (row,) = ranked_rows(choose_queries(scores.average_precision), splits, scores, q, g)
    assert len(row.answers) == 8 - 2  # person 1 at camera 1, and the junk
    draw_ranked([row], tmp_path / "ranked.png", title="one query")
    with Image.open(tmp_path / "ranked.png") as image:
        _, _, right, bottom = tile_box([row], 0, 5)
        assert right <= image.width and bottom <= image.height


# ---------------------------------------------------------------- the pictures


def _colours(image: Image.Image, box: tuple[int, int, int, int]) -> tuple[Any, Any]:
    """Of the frame, at half its left side, and of the crop's centre."""
    left, top, right, bottom = box
    middle = (top + bottom) // 2
    return image.getpixel((left + 2, middle)), image.getpixel(((left + right) // 2, middle))


def test_frames_and_crops_stand_where_they_belong(tmp_path: Path) -> None:
    paint = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255), "yellow": (255, 255, 0)}
    paths = {name: person(tmp_path / f"{name}.png", colour=name) for name in paint}
    rows = [
        Row(
            "first",
            Tile(paths["red"], pid=1),
            (Tile(paths["lime"], 0.9, 1, 2, True), Tile(paths["blue"], 0.8, 0, 1, False)),
        ),
        Row(
            "second",
            Tile(paths["blue"], pid=2),
            tuple(Tile(paths["yellow"], 0.1, "x", "y", j == 11) for j in range(12)),
        ),
        Row("third", Tile(paths["lime"], pid=3), (Tile(paths["red"]),)),
    ]
    draw_ranked(rows, tmp_path / "ranked.png", title="marks")
    with Image.open(tmp_path / "ranked.png") as image:
        assert _colours(image, tile_box(rows, 0, None)) == (sheets.QUERY, paint["red"])
        assert _colours(image, tile_box(rows, 0, 0)) == (sheets.RIGHT, paint["lime"])
        assert _colours(image, tile_box(rows, 0, 1)) == (sheets.WRONG, paint["blue"])
        assert _colours(image, tile_box(rows, 1, 9)) == (sheets.WRONG, paint["yellow"])
        assert _colours(image, tile_box(rows, 1, 11)) == (sheets.RIGHT, paint["yellow"])  # on the row's second line
        assert _colours(image, tile_box(rows, 2, None)) == (sheets.QUERY, paint["lime"])
        assert _colours(image, tile_box(rows, 2, 0)) == (sheets.UNKNOWN, paint["red"])

        def corner(answer: int) -> Image.Image:
            _, top, right, _ = tile_box(rows, 1, answer)
            return image.crop((right - 20, top, right, top + 20)).convert("L").point(lambda v: 255 * (v > 200))

        assert corner(0).tobytes() == corner(1).tobytes()
        assert corner(0).tobytes() != corner(11).tobytes()  # the marks differ in shape, not in colour alone


@pytest.mark.parametrize("size", [(30, 300), (300, 30), (1, 1), (64, 128)])
def test_crops_keep_their_aspect(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size, "black").save(tmp_path / "a.png")
    pixels = np.asarray(sheets.crop_of(tmp_path / "a.png"))
    assert pixels.shape == (sheets.CROP_H, sheets.CROP_W, 3)
    filled = np.argwhere((pixels == 0).all(axis=2))
    height, width = filled.max(0) - filled.min(0) + 1
    assert height == sheets.CROP_H or width == sheets.CROP_W
    assert width / height == pytest.approx(size[0] / size[1], rel=0.1)


def test_images_that_cannot_be_read_become_a_crossed_tile(tmp_path: Path) -> None:
    whole = Path(person(tmp_path / "whole.jpg", size=(200, 400)))
    (tmp_path / "cut.jpg").write_bytes(whole.read_bytes()[:900])
    (tmp_path / "text.png").write_text("no image")
    names = ("gone.jpg", "cut.jpg", "text.png", "", "nul\0.jpg")
    rows = [Row("broken", Tile(tmp_path), tuple(Tile(str(tmp_path / name), 0.5, 1, 1, True) for name in names))]
    draw_ranked(rows, tmp_path / "ranked.png", title="broken")
    with Image.open(tmp_path / "ranked.png") as image:
        for answer in (None, *range(len(names))):
            left, top, right, bottom = tile_box(rows, 0, answer)
            middle = ((left + right) // 2, (top + bottom) // 2)
            assert image.getpixel((middle[0], middle[1] - 20)) == sheets.MISSING
            assert any(image.getpixel((middle[0] + d, middle[1])) == sheets.PALE_INK for d in (-1, 0, 1))


def test_search_marks_nothing_that_is_not_known(tmp_path: Path) -> None:
    paths = [person(tmp_path / on_disk("ünï 人") / on_disk(f"{i}, 'é'.png")) for i in range(12)]
    draw_search(paths[0], [Tile(path, 0.5) for path in paths], tmp_path / on_disk("søk.png"))
    with Image.open(tmp_path / on_disk("søk.png")) as image:
        found = {colour for _, colour in image.getcolors(1 << 20) or []}
        assert sheets.UNKNOWN in found
        assert sheets.QUERY in found
        assert not {sheets.RIGHT, sheets.WRONG} & found
    draw_search(paths[0], [Tile(paths[1], 0.5, right=True), Tile(paths[2], 0.5, right=False)], tmp_path / "known.png")
    with Image.open(tmp_path / "known.png") as image:
        assert {sheets.RIGHT, sheets.WRONG} <= {colour for _, colour in image.getcolors(1 << 20) or []}


@pytest.mark.parametrize("name", ["gone.jpg", "a" * 300, "line\nbreak.jpg", "raw\udcff.jpg"])
def test_search_with_no_answer_or_an_odd_name(tmp_path: Path, name: str) -> None:
    draw_search(name, [], tmp_path / "search.png")
    with Image.open(tmp_path / "search.png") as image:
        assert image.width < 800 and image.height < 400


def test_search_with_thousands_of_answers_stays_a_picture(tmp_path: Path) -> None:
    tiles = [Tile("gone.jpg", 0.1)] * 5000
    draw_search("gone.jpg", tiles, tmp_path / "search.png")
    with Image.open(tmp_path / "search.png") as image:
        bottom = tile_box([Row("", tiles[0], tuple(tiles[: sheets.MOST_DRAWN]))], 0, sheets.MOST_DRAWN - 1)[3]
        assert bottom < image.height < bottom + 100


def test_an_interrupted_drawing_keeps_the_old_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "search.png").write_bytes(b"old")

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(OSError, match="No space"):
        draw_search("gone.jpg", [], tmp_path / "search.png")
    assert [path.name for path in tmp_path.iterdir()] == ["search.png"]
    assert (tmp_path / "search.png").read_bytes() == b"old"


def test_curves_show_every_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.figure import Figure

    figures: list[Figure] = []
    save = Figure.savefig

    def keep(self: Figure, *args: Any, **kwargs: Any) -> None:
        figures.append(self)
        save(self, *args, **kwargs)

    monkeypatch.setattr(Figure, "savefig", keep)
    draw_curves(history(5), tmp_path / "curves.png")
    lines = [{str(line.get_label()): np.asarray(line.get_xydata()) for line in ax.lines} for ax in figures[0].axes]
    assert list(lines[0]) == ["loss", "softmax", "triplet"]
    assert lines[2]["1.global"] == pytest.approx(np.array([(e, 25.0 * e) for e in range(1, 6)]))
    assert lines[3]["1.global"] == pytest.approx(np.array([(1, 10), (3, 30), (5, 50)]))  # where it was measured
    assert "2.part1" not in lines[3]
    assert lines[4]["2.part1"][:, 1] == pytest.approx([0.001] * 5)
    legend = figures[0].axes[5].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["1.global", "2.part1", "all together (Rank-1)"]
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG" and image.width > 1000


@pytest.mark.parametrize("row", [history(1)[0], {**history(2)[1], "heads": []}])
def test_curves_of_one_epoch_or_of_no_heads(tmp_path: Path, row: dict[str, Any]) -> None:
    draw_curves([row], tmp_path / "curves.png")
    with Image.open(tmp_path / "curves.png") as image:
        assert image.format == "PNG"


# ---------------------------------------------------------------- words and figures


def test_the_whole_report(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path / "data", queries=8, gallery=40)
    output = tmp_path / on_disk("öut put")
    write_report(
        output, splits=splits, scores=scores, query_features=q, gallery_features=g, run=RUN, history=history(3)
    )
    files = ["curves.png", "metrics.json", "ranked.png", "report.md", "scores.png"]
    assert sorted(path.name for path in output.iterdir()) == files
    written = json.loads((output / "metrics.json").read_text(encoding="utf-8"))
    for key in ("rank1", "rank5", "rank10", "mAP", "mAP_trapezoid", "mINP"):
        assert written[key] == getattr(scores, key) and 0 <= written[key] <= 1
    assert written["dataset"] == "market1501"
    assert written["official_split"] is True
    assert (written["num_query"], written["num_gallery"], written["num_query_without_match"]) == (8, 40, 0)
    assert (written["train_seconds"], written["embed_images_per_second"]) == (3725.5, 211.123456)
    assert (written["command"], written["recipe"], written["image_passes"]) == (RUN.command, RUN.recipe, 640 * 3)
    text = (output / "report.md").read_text(encoding="utf-8")
    links = re.findall(r"!\[[^]]+\]\(([^)]+)\)", text)
    assert links == ["ranked.png", "scores.png", "curves.png"] and all((output / link).is_file() for link in links)
    assert "    " + RUN.command in text.splitlines()
    for fact in (
        "384x128",
        "3,800,123",
        "287,800,000",
        "`0123abcd`",
        "`c0ffee`",
        "1 h 02 min",
        "numpy " + np.__version__,
    ):
        assert fact in text
    assert "p 16, k 4, lr 0.05, holdout 0.0 (all of it: config.yaml)" in text
    assert "| 1.global | 75.0 | 0.50 | 30.0 |" in text
    assert "| 2.part1 | 12.5 | 0.00 | - |" in text
    assert "| gallery | 40 | 4 | 3 | 1 | 1 |" in text


def test_names_of_files_are_text_in_a_report_and_not_html(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path / "data", queries=8, gallery=40)
    name = "<img src=x onerror=alert(1)>.jpg"
    splits = splits._replace(warnings=[f"left out 1 unreadable image(s): {name}"])
    run = dataclasses.replace(RUN, weights="<b>`m`.safetensors", recipe=RUN.recipe | {"pretrained": "<i>"})
    write_report(tmp_path, splits=splits, scores=scores, query_features=q, gallery_features=g, run=run)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "- left out 1 unreadable image(s): &lt;img src=x onerror=alert(1)&gt;.jpg" in text
    assert "| weights given | &lt;b&gt;\\`m\\`.safetensors |" in text and "pretrained &lt;i&gt;" in text
    assert "(all of it: metrics.json)" in text, "no config.yaml is beside a run of given weights"
    assert not re.search("<(img|b|i)", text)


@pytest.mark.parametrize("name", ["Łukasz", "Анна", "Ελένη", "李雷", "김", "محمد", "\U0001f468", "a\x1b[2J\udcff"])
def test_every_letter_of_a_name_is_drawn_or_escaped(name: str) -> None:
    drawn, font = in_a_font(name, 13)
    box = bytes(font.getmask("\U0010ffff"))
    assert all(letter.isascii() or bytes(font.getmask(letter)) != box for letter in drawn)
    assert "".join(re.findall(r"\\\w+|.", drawn)).encode("ascii", "backslashreplace") == name.encode("unicode_escape")


def test_the_report_tells_of_cameras_pairs_and_people_who_are_absent(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path / "data", queries=80, gallery=400)
    write_report(tmp_path, splits=splits, scores=scores, query_features=q, gallery_features=g, run=RUN)
    values = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    ids = [np.array([s[i] for s in part]) for i in (1, 2) for part in (splits.query, splits.gallery)]
    assert [(pair["query"], pair["gallery"], pair["queries"]) for pair in values["camera_pairs"]] == [
        (1, 2, 80),
        (1, 3, 80),
    ]
    by_2 = np.flatnonzero(ids[3] == 2)
    second = evaluate(q, g[by_2], ids[0], ids[1][by_2], ids[2], ids[3][by_2])
    assert values["camera_pairs"][0]["mAP"] == second.mAP
    assert f"| 1 | {100 * second.rank1:.1f} / {100 * second.mAP:.1f} |" in text

    verified, opened = verify(q, g, *ids), open_set(q, g, *ids)
    assert values["verification"]["points"] == [point._asdict() for point in verified.points]
    assert values["verification"]["num_genuine"] == verified.num_genuine
    assert f"| 0.01 | {100 * verified.points[0].tpr:.1f} | {verified.points[0].threshold:.4f} |" in text
    assert values["open_set"]["points"] == [point._asdict() for point in opened.points]
    assert f"| 10% | {100 * opened.points[1].tpir:.1f} ± {100 * opened.points[1].std:.1f} |" in text
    precision = intervals(scores.average_precision[None], ids[0])[0]
    assert f" {100 * precision.low:.1f} to {100 * precision.high:.1f} |" in text
    with Image.open(tmp_path / "scores.png") as picture:
        assert picture.width > 1000
        red, green, blue = np.moveaxis(np.asarray(picture.convert("RGB")).astype(int), 2, 0)
    assert ((green > red + 40) & (green > blue + 20)).any() and ((red > green + 60) & (red > blue + 60)).any()


def test_what_cannot_be_measured_is_said(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path / "data", queries=1, gallery=12)  # one query: nobody can be absent
    write_report(tmp_path, splits=splits, scores=scores, query_features=q, gallery_features=g, run=RUN)
    values = json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))
    assert values["open_set"] is None and values["verification"]["points"][0]["tpr"] is None
    assert "Open set identification is left out: " in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_a_report_names_its_method_and_ranks_by_it(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path / "data", queries=8, gallery=40)
    method = Method(multi_query="max", expand=5, rerank=True, k1=7)
    far = int((q[0] @ g.T).argmin())
    bonus = csr_array(([3.0], ([0], [far])), shape=(8, 40))
    (row,) = ranked_rows([("best", 0)], splits, scores, q, g, bonus=bonus)
    assert row.answers[0].path == splits.gallery[far].path
    assert row.answers[0].score == pytest.approx(float(q[0] @ g[far]), abs=1e-6)
    write_report(
        tmp_path,
        splits=splits,
        scores=scores,
        query_features=q,
        gallery_features=g,
        run=RUN,
        method=method,
        bonus=bonus,
    )
    words = "multi-query (max), queries expanded by 5 neighbours (alpha 3), re-ranked (k1 7, k2 6, lambda 0.3)"
    assert f"; cosine similarity, {words}." in (tmp_path / "report.md").read_text(encoding="utf-8")
    assert json.loads((tmp_path / "metrics.json").read_text(encoding="utf-8"))["method"]["k1"] == 7


def test_the_page_of_people_stands_alone(tmp_path: Path) -> None:
    crops = [person(tmp_path / f"<{i}>.png") for i in range(3)]
    many = [Tile(crops[i % 3], camid=i) for i in range(STRIP_CROPS + 5)]
    strips = [("person <1>", many), *(("one", [Tile(crops[0])]) for _ in range(MOST_STRIPS))]
    write_people_page(strips, tmp_path / "people.html", title="People & crops", text="3 crops")
    page = (tmp_path / "people.html").read_text(encoding="utf-8")
    assert "<h1>People &amp; crops</h1><p>3 crops</p>" in page and "<h2>person &lt;1&gt;</h2>" in page
    assert page.count("<figure") == STRIP_CROPS + MOST_STRIPS - 1
    assert "and 5 more" in page and "and 1 more like these" in page
    held = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', page)
    with Image.open(io.BytesIO(base64.b64decode(held[0]))) as crop:
        assert crop.size == (CROP_W, CROP_H)
    assert not re.search(r'(src|href)="(?!data:)', page)


def test_metrics_of_weights_given(tmp_path: Path) -> None:
    splits, scores, q, g = miniature(tmp_path / "data", queries=1, gallery=12, name="folder", official=None)
    run = RunRecord("cmd", "scgnet_l", 1, (256, 128), "ff", 1.0, weights="weights/raw\udcff|l.safetensors")
    write_report(tmp_path / "out", splits=splits, scores=scores, query_features=q, gallery_features=g, run=run)
    assert not (tmp_path / "out" / "curves.png").exists()
    written = json.loads((tmp_path / "out" / "metrics.json").read_text(encoding="utf-8"))
    assert written["train_seconds"] is written["image_passes"] is written["official_split"] is None
    text = (tmp_path / "out" / "report.md").read_text(encoding="utf-8")
    assert "\\|l.safetensors" in text and "curves.png" not in text and "git revision not known" in text


def test_metrics_keep_every_query(tmp_path: Path) -> None:
    """Enough to have the means again, null where a query has no match."""
    splits, _, q, g = miniature(tmp_path, queries=9, gallery=40)
    splits = splits._replace(query=[s._replace(pid=9) if i == 4 else s for i, s in enumerate(splits.query)])
    scores = evaluate(
        q, g, *(np.array([s[i] for s in part]) for i in (1, 2) for part in (splits.query, splits.gallery))
    )
    kept = json.loads(metrics_text(metrics(splits, scores, RUN)))
    queries = kept["queries"]
    assert queries["pid"] == [s.pid for s in splits.query] and queries["camid"] == [s.camid for s in splits.query]
    for key, mean in (("average_precision", "mAP"), ("trapezoid", "mAP_trapezoid"), ("inverse_penalty", "mINP")):
        assert [i for i, value in enumerate(queries[key]) if value is None] == [4]
        assert np.mean([value for value in queries[key] if value is not None]) == pytest.approx(kept[mean], abs=1e-6)
        assert all(value is None or value == round(value, 6) for value in queries[key])
    assert queries["first_rank"] == [None if rank < 0 else rank for rank in scores.first_rank.tolist()]
    assert queries["first_rank"][4] is None


def test_metrics_text_is_json_a_line_a_key_and_small(tmp_path: Path) -> None:
    splits, scores, *_ = miniature(tmp_path, queries=2, gallery=12)
    values = metrics(splits, scores, RUN)
    values["command"] = "python run_reid.py --data-root 'raw\udcff\nöut'"
    rng = np.random.default_rng(0)
    rounded = np.round(rng.random(800), 6).tolist()
    values["queries"] = {"pid": list(range(9_000, 9_800)), "camid": [6] * 800, "first_rank": [1000] * 800}
    values["queries"] |= {key: rounded for key in ("average_precision", "trapezoid", "inverse_penalty")}
    text = metrics_text(values)
    assert json.loads(text) == values
    assert len(text.encode("utf-8")) < 50_000
    assert (
        len(text.splitlines()) == len(values) + sum(1 + len(values[key]) for key in ("recipe", "images", "queries")) + 2
    )
    assert json.loads(metrics_text({"recipe": {}})) == {"recipe": {}}


def test_images_are_told_by_what_they_are_and_not_by_their_folder() -> None:
    samples = [Sample("here/a.jpg", 1, 2), Sample("here/raw\udcff.jpg", 3, 4)]
    digest = images_digest(samples)
    assert digest == images_digest([s._replace(path=s.path.replace("here", "elsewhere/x")) for s in samples])
    others = [samples[:1], samples[::-1], [samples[0], samples[1]._replace(camid=5)]]
    others += [[samples[0]._replace(pid=2), samples[1]], [samples[0]._replace(path="here/b.jpg"), samples[1]]]
    assert len({digest, *map(images_digest, others)}) == len(others) + 1


def test_the_official_split_is_compared(tmp_path: Path) -> None:
    splits, scores, *_ = miniature(tmp_path, queries=8, gallery=40)
    text = report_text(splits, scores, RUN, None, COSINE, NOTHING)
    assert "not the official split" not in text and "orientation" not in text
    assert "| MGN | SCGNet-L | 95.9 | 88.1 |" in text
    assert (
        f"| **this run** | scgnet_s, 384x128 | **{100 * scores.rank1:.1f}** | **{100 * scores.mAP:.1f}** | step |"
        in text
    )
    assert f"**{100 * scores.mAP_trapezoid:.1f}** | trapezoid |" in text


def test_another_split_is_named_first(tmp_path: Path) -> None:
    splits, scores, *_ = miniature(tmp_path, queries=8, gallery=40, name="cuhk03np_detected", official=False)
    text = report_text(splits, scores, RUN, None, COSINE, NOTHING)
    head = "\n".join(text.splitlines()[:6])
    assert "not the official split" in head and "for orientation, not for comparison" in head
    assert "- query 8 images (official 3,368)" in head
    assert "| **this run** (not the official split) |" in text
    assert "| MGN | SCGNet-L | 75.29 | 71.58 |" in text
    assert "(not the official split)" in summary_table(splits, scores)


def test_a_data_set_without_published_figures(tmp_path: Path) -> None:
    splits, scores, *_ = miniature(tmp_path, queries=8, gallery=40, name="synthetic", official=None)
    text = report_text(splits, scores, RUN, None, COSINE, NOTHING)
    assert "There are no published figures for synthetic." in text
    assert "SCGNet-L" not in text and "not the official split" not in text


def test_published_figures_are_percents_of_known_data_sets() -> None:
    assert set(PUBLISHED) == {"market1501", "dukemtmc", "cuhk03np_labeled", "cuhk03np_detected"}
    for rows in PUBLISHED.values():
        assert len({row[:2] for row in rows}) == len(rows)
        assert all(50 < row.mAP < row.rank1 < 100 and row.rule in ("step", "trapezoid", "not stated") for row in rows)


def test_queries_without_a_match_are_told(tmp_path: Path) -> None:
    splits, _, q, g = miniature(tmp_path, queries=8, gallery=40)
    query = [sample._replace(pid=9) if i < 3 else sample for i, sample in enumerate(splits.query)]
    columns = (np.array([s[i] for s in part]) for i in (1, 2) for part in (query, splits.gallery))
    scores = evaluate(q, g, *columns)
    splits = splits._replace(query=query)
    assert metrics(splits, scores, RUN)["num_query_without_match"] == 3
    sentence = "8 queries (3 without a match, left out of the means), 40 gallery images"
    assert sentence in report_text(splits, scores, RUN, None, COSINE, NOTHING) and sentence in summary_table(
        splits, scores
    )
    assert not {0, 1, 2} & {i for _, i in choose_queries(scores.average_precision)}


def test_the_summary_is_aligned(tmp_path: Path) -> None:
    splits, scores, *_ = miniature(tmp_path, queries=8, gallery=40)
    names, values, note = summary_table(splits, scores, "mgn-scgnet_s, 40 epochs").splitlines()
    assert len(names) == len(values)
    figures = [scores.rank1, scores.rank5, scores.rank10, scores.mAP, scores.mAP_trapezoid, scores.mINP]
    assert values.split()[-6:] == [f"{100 * figure:.1f}" for figure in figures]
    assert re.split("  +", names)[-6:] == ["Rank-1", "Rank-5", "Rank-10", "mAP", "mAP (trapezoid)", "mINP"]
    ends = [[m.end() for m in re.finditer(r"\S+(?: \S+)*", line)][-6:] for line in (names, values)]
    assert ends[0] == ends[1]
    assert note == "percent; 8 queries (each with a match), 40 gallery images"
