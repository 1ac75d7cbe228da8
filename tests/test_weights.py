"""The models that come with the program: small, whole, described, and as good as their cards say."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

import datasets
from reid.cli import runs
from reid.models.card import without_places
from reid.models.embedder import Embedder
from reid.models.model import load_model
from reid.report.compare import compare
from reid.report.results import MEASURES, read_results
from reid.retrieval.evaluate import evaluate

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "weights").glob("*.safetensors"))
REAL = ROOT.parent / "shared/data/cuhk03-np-p1"


def test_they_are_small_and_the_default_is_among_them() -> None:
    assert sum(file.stat().st_size for file in FILES) < 20_000_000
    assert runs.DEFAULT_WEIGHTS in FILES


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_each_embeds_without_a_classifier_and_says_what_it_was_trained_on(file: Path) -> None:
    model = load_model(file)
    assert model.head.classifier is None
    assert (model.card["data"]["images"], model.card["data"]["identities"]) == (17228, 1194)
    assert "research only" in model.card["data"]["terms"]["market1501"]
    height, width = model.input_size
    vectors = Embedder(model).embed_pixels(np.random.default_rng(0).integers(0, 256, (2, height, width, 3), np.uint8))
    assert vectors.shape == (2, model.dimension)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_the_card_shows_the_scores_of_its_results_and_the_terms_of_its_data(file: Path) -> None:
    card = " ".join(file.with_suffix(".md").read_text(encoding="utf-8").replace("\\\n", "").split())
    model = load_model(file)
    names = re.findall(r"docs/results/([\w.-]+)\.json", card)
    assert len(names) == 2
    for name in names:
        (result,) = compare(read_results([ROOT / f"docs/results/{name}.json"]), None)
        shown = " | ".join(
            f"{100 * x.mean:.1f} [{100 * x.low:.1f}, {100 * x.high:.1f}]"
            for x in (result.measured[m] for m in MEASURES)
        )
        assert f"| {shown} |" in card
        kept = model.card["scores"][result.runs[0].dataset]
        measured = [result.measured[name].mean for name in ("Rank-1", "mAP")]
        assert [kept["rank1"], kept["mAP"]] == pytest.approx(measured, abs=1e-6)
        assert " ".join(result.runs[0].command.split()) in card
    assert f"{file.stat().st_size:,} bytes" in card
    for sentence in model.card["data"]["terms"].values():
        assert sentence in card


@pytest.mark.skipif(not REAL.is_dir(), reason="the real images are not on this machine")
def test_the_default_finds_people_that_it_has_never_seen() -> None:
    """Forty of the four hundred test people, about four hundred images."""
    splits = datasets.read("cuhk03np_detected", REAL)
    some = sorted({sample.pid for sample in splits.query})[:40]
    query, gallery = ([s for s in samples if s.pid in some] for samples in (splits.query, splits.gallery))
    embedder = Embedder(load_model(runs.DEFAULT_WEIGHTS))
    scores = evaluate(
        *(embedder.embed([s.path for s in samples]) for samples in (query, gallery)),
        *(np.array([s.pid for s in samples]) for samples in (query, gallery)),
        *(np.array([s.camid for s in samples]) for samples in (query, gallery)),
    )
    assert scores.rank1 > 0.5


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_no_card_names_a_place_of_one_machine(file: Path) -> None:
    card = load_model(file).card
    assert without_places(card) == card
