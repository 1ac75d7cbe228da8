"""Embeddings: unit length, in order, the same however they are batched, interrupted or resumed."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import reid
import reid.models.embedder
from reid.core.images import read_images
from reid.core.types import ReidError
from reid.models.embedder import Embedder
from reid.models.encoder import pick_device

BATCH = 4


@pytest.fixture
def embedder(make_model) -> Embedder:
    return Embedder(make_model(), batch_size=BATCH, device="cpu")


@pytest.fixture
def reads(monkeypatch):
    """The paths that were decoded, in order; `stop_at` makes the read of that path an interruption."""

    class Reads(list):
        stop_at: str | None = None

    seen = Reads()

    def read(paths, size, **options):
        if seen.stop_at in paths:
            raise KeyboardInterrupt
        seen.extend(paths)
        return read_images(paths, size, **options)

    monkeypatch.setattr(reid.models.embedder, "read_images", read)
    return seen


def test_rows_are_unit_length_and_in_order(embedder, paths):
    rows = embedder.embed(paths)
    assert rows.shape == (24, embedder.dimension) == (24, 32)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    for i in (0, 7, 23):
        np.testing.assert_allclose(embedder.embed([Path(paths[i])])[0], rows[i], atol=1e-5)
    assert np.abs(rows[0] - rows[1]).max() > 1e-3
    np.testing.assert_allclose(embedder.embed(paths[::-1]), rows[::-1], atol=1e-5)


def test_the_batch_size_changes_nothing(make_model, paths):
    model = make_model()
    rows = [Embedder(model, batch_size=size, device="cpu").embed(paths[:11]) for size in (1, 4, 64)]
    np.testing.assert_allclose(rows[0], rows[2], atol=1e-5)
    np.testing.assert_allclose(rows[1], rows[2], atol=1e-5)


def test_image_and_mirror_image_are_summed(make_model, paths):
    model = make_model()
    pixels = read_images(paths[:3], model.input_size)
    with torch.inference_mode():
        images = torch.from_numpy(pixels).permute(0, 3, 1, 2)
        straight, mirrored = model.embed(images).numpy(), model.embed(images.flip(3)).numpy()
    both, one = Embedder(model, device="cpu"), Embedder(model, flip=False, device="cpu")
    for rows, vectors in ((both.embed(paths[:3]), straight + mirrored), (one.embed(paths[:3]), straight)):
        np.testing.assert_allclose(rows, vectors / np.linalg.norm(vectors, axis=1, keepdims=True), atol=1e-5)
    assert np.abs(straight - mirrored).max() > 1e-3
    assert both.fingerprint != one.fingerprint
    np.testing.assert_allclose(both.embed_pixels(pixels[:, :, ::-1].copy()), both.embed(paths[:3]), atol=1e-5)


def test_a_model_in_training_mode_is_embedded_in_evaluation_mode(make_model, paths):
    expected = Embedder(make_model(), device="cpu").embed(paths[:2])
    model = make_model().train()
    statistics = model.head.neck.running_mean.clone()
    np.testing.assert_allclose(Embedder(model, device="cpu").embed(paths[:2]), expected, atol=1e-6)
    assert torch.equal(model.head.neck.running_mean, statistics)


@pytest.mark.filterwarnings("error")
def test_pixels_may_be_read_only_or_a_view(embedder, paths):
    pixels = read_images(paths[:2], embedder.input_size)
    expected = embedder.embed(paths[:2])
    mirrored = pixels[:, :, ::-1]
    pixels.flags.writeable = False
    np.testing.assert_allclose(embedder.embed_pixels(pixels), expected, atol=1e-6)
    np.testing.assert_allclose(embedder.embed_pixels(mirrored), expected, atol=1e-6)


def test_nothing_to_embed(embedder, tmp_path):
    assert embedder.embed([]).shape == (0, 32)
    assert embedder.embed([], save=tmp_path / "none.npy").shape == (0, 32)
    assert embedder.images_per_second is None


def test_the_result_is_saved_and_used_again(embedder, paths, tmp_path, reads):
    rows = embedder.embed(paths, save=tmp_path / "rows.npy")
    assert np.array_equal(np.load(tmp_path / "rows.npy"), rows)
    assert embedder.images_per_second > 0
    reads.clear()
    assert np.array_equal(embedder.embed(paths, save=tmp_path / "rows.npy"), rows)
    assert not reads
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows.json", "rows.npy"]


def interrupt(embedder: Embedder, paths: list[str], save: Path, reads, at: int) -> None:
    reads.stop_at = paths[at]
    with pytest.raises(KeyboardInterrupt):
        embedder.embed(paths, save=save)
    reads.stop_at = None
    reads.clear()


def test_an_interrupted_call_goes_on_where_it_was(embedder, paths, tmp_path, reads):
    expected = embedder.embed(paths)
    interrupt(embedder, paths, tmp_path / "rows.npy", reads, at=13)
    assert not (tmp_path / "rows.npy").exists()
    assert embedder.images_per_second > 0
    rows = embedder.embed(paths, save=tmp_path / "rows.npy")
    assert reads == paths[12:]  # three batches of four were whole
    assert np.array_equal(rows, expected)
    assert np.array_equal(np.load(tmp_path / "rows.npy"), expected)
    assert not (tmp_path / "rows.rows").exists()


def test_a_row_cut_by_the_interruption_is_made_again(embedder, paths, tmp_path, reads):
    expected = embedder.embed(paths)
    interrupt(embedder, paths, tmp_path / "rows.npy", reads, at=13)
    journal = tmp_path / "rows.rows"
    journal.write_bytes(journal.read_bytes()[:-7])
    rows = embedder.embed(paths, save=tmp_path / "rows.npy")
    assert reads == paths[11:]
    np.testing.assert_allclose(rows, expected, atol=1e-5)


@pytest.mark.parametrize("left", [0, 20])
def test_a_journal_cut_in_its_first_line_is_begun_again(embedder, paths, tmp_path, reads, left):
    interrupt(embedder, paths, tmp_path / "rows.npy", reads, at=13)
    journal = tmp_path / "rows.rows"
    journal.write_bytes(journal.read_bytes()[:left])
    rows = embedder.embed(paths, save=tmp_path / "rows.npy")
    assert reads == paths
    np.testing.assert_allclose(rows, embedder.embed(paths), atol=1e-5)


@pytest.mark.parametrize("whole", [True, False])
@pytest.mark.parametrize("change", ["paths", "model", "flip", "image"])
def test_rows_of_something_else_are_not_used(make_model, paths, tmp_path, reads, whole, change):
    copies = []
    for path in paths[:8]:
        copies.append(str(tmp_path / Path(path).name))
        Path(copies[-1]).write_bytes(Path(path).read_bytes())
    save = tmp_path / "out" / "rows.npy"
    embedder = Embedder(make_model(), batch_size=BATCH, device="cpu")
    if whole:
        embedder.embed(copies, save=save)
    else:
        interrupt(embedder, copies, save, reads, at=5)
    reads.clear()
    if change == "paths":
        copies.reverse()
    elif change == "model":
        embedder = Embedder(make_model(seed=1), batch_size=BATCH, device="cpu")
    elif change == "flip":
        embedder = Embedder(make_model(), batch_size=BATCH, flip=False, device="cpu")
    else:
        Image.fromarray(np.zeros((64, 32, 3), np.uint8)).save(copies[2])
    rows = embedder.embed(copies, save=save)
    assert reads == copies
    np.testing.assert_allclose(rows, embedder.embed(copies), atol=1e-5)
    label = json.loads(save.with_suffix(".json").read_text())
    assert label["fingerprint"] == embedder.fingerprint


def test_a_broken_image_is_named_and_the_rest_is_kept(embedder, paths, tmp_path, reads):
    bad = tmp_path / "bad.jpg"
    bad.write_bytes(Path(paths[0]).read_bytes()[:300])
    with pytest.raises(ReidError, match=r"bad\.jpg is not a whole image"):
        embedder.embed([*paths[:9], str(bad)], save=tmp_path / "rows.npy")
    os.unlink(bad)
    with pytest.raises(ReidError, match=r"bad\.jpg does not exist"):
        embedder.embed([*paths[:9], str(bad)])


def test_the_models_weights_may_change_between_calls(make_model, paths, tmp_path):
    """Fine-tuned in place, the model is another one: what was saved before is not its."""
    embedder = Embedder(make_model(), device="cpu")
    before = embedder.embed(paths[:4], save=tmp_path / "rows.npy")
    with torch.no_grad():
        embedder.encoder.model.head.reduction.mul_(torch.randn(1, 8, 1))
    after = embedder.embed(paths[:4], save=tmp_path / "rows.npy")
    assert np.abs(after - before).max() > 1e-2


def test_the_names_of_the_package(make_model, paths, tmp_path):
    reid.save_model(make_model(), tmp_path / "model.safetensors")
    rows = reid.Embedder(reid.load_model(tmp_path / "model.safetensors"), device="cpu").embed(paths[:2])
    np.testing.assert_allclose(rows, Embedder(make_model(), device="cpu").embed(paths[:2]), atol=1e-5)


@pytest.mark.parametrize("name", ["gpu", "cuda:99", ""])
def test_devices(name):
    if not name:
        assert pick_device().type in ("cpu", "cuda")
        return
    with pytest.raises(ReidError, match=f"device '{name}' cannot be used .*try --device cpu"):
        pick_device(name)
