"""Two `index` commands on one gallery at once: every image is in with its own vector, or the second says why not."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

import run_reid
from reid.core.files import locked
from reid.core.types import ReidError
from reid.gallery import Filter, Gallery, check, hash_file
from reid.models.embedder import Embedder
from reid.models.model import ReidModel, load_model, save_model
from tests.forks import Child, Forks

SLOW = """
import os, sys, time
import run_reid
from reid.cli import index
from reid.models.embedder import Embedder
embed, load = Embedder.embed_pixels, index.load_embedder
def slowly(self, pixels):
    rows = embed(self, pixels)
    time.sleep(float(os.environ.get("PAUSE", "0")))
    return rows
def small(*words):
    embedder = load(*words)
    embedder.batch_size = 2
    return embedder
Embedder.embed_pixels, index.load_embedder = slowly, small
code = run_reid.main(sys.argv[1:])
sys.stdout.flush()
sys.stderr.flush()
os._exit(code)  # torch takes its time to go
"""  # the program in batches of two, with a pause after each


@pytest.fixture(scope="module")
def forks() -> Iterator[Forks]:
    with Forks("run_reid", "reid.models.embedder", "reid.cli.index", "reid.gallery.add_images") as forks:
        yield forks


@pytest.fixture
def weights(make_model: Callable[..., ReidModel], tmp_path: Path) -> Path:
    save_model(make_model(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def start(forks: Forks, images: list[str], weights: Path, place: Path) -> Child:
    return forks.start(SLOW, "index", *images, "--weights", weights, "--gallery", place, PAUSE=0.05)


@pytest.mark.parametrize(("stagger", "shared"), [(0.0, 0), (0.0, 5), (0.1, 5), (0.2, 0), (0.4, 3)])
def test_two_at_once_are_both_in(
    stagger: float, shared: int, forks: Forks, paths: list[str], weights: Path, tmp_path: Path
) -> None:
    """Of different people, and of some that both index; each alone takes longer than the stagger."""
    place = tmp_path / "people"
    first = start(forks, paths[: 12 + shared], weights, place)
    time.sleep(stagger)
    codes = [child.finish() for child in (start(forks, paths[12:], weights, place), first)]
    assert [code for code, _ in codes] == [0, 0], codes
    gallery = Gallery.open(place)
    entries = list(gallery.entries())
    assert sorted(entry.path for entry in entries) == sorted(paths)
    assert [entry.hash for entry in entries] == [hash_file(entry.path) for entry in entries]
    assert gallery.model_path is not None
    fresh = Embedder(load_model(gallery.model_path), device="cpu").embed([entry.path for entry in entries])
    cosine = (gallery.vectors([entry.key for entry in entries]) * fresh).sum(axis=1)
    assert cosine.min() > 0.9999, "each vector is of the image at its path"
    assert check(place) == []
    assert not place.with_name(".people-embedding").exists()


@pytest.mark.parametrize("suffix", [".npy", ".json"])
def test_a_changed_cache_is_embedded_again(
    suffix: str, make_model: Callable[..., ReidModel], paths: list[str], tmp_path: Path
) -> None:
    embedder, save = Embedder(make_model(), device="cpu"), tmp_path / "query.npy"
    expected = np.array(embedder.embed(paths, save=save))
    file = save.with_suffix(suffix)
    for place in (9, len(file.read_bytes()) // 2, len(file.read_bytes()) - 2):
        data = bytearray(file.read_bytes())
        data[place] ^= 4
        file.write_bytes(data)
        np.testing.assert_array_equal(embedder.embed(paths, save=save), expected)


def test_the_working_folder_may_be_the_gallery(
    paths: list[str], weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["--weights", str(weights), "--gallery"]
    assert run_reid.main(["index", *paths[:4], *words, str(tmp_path / "people")]) == 0
    monkeypatch.chdir(tmp_path / "people")
    assert run_reid.main(["index", *paths[:6], *words, "."]) == 0
    assert "2 images added, 6 in all, 4 were there already" in " ".join(capsys.readouterr().out.split()).replace(
        "content", ""
    )
    assert run_reid.main(["search", ".", paths[0], "--top-k", "10000000000", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)) == 6, "more than there are"
    gallery = Gallery.open(".")
    monkeypatch.chdir(tmp_path)
    assert len(gallery) == 6 and len(list(gallery.entries())) == 6, "opened by a relative path before"
    gallery.remove(Filter(paths=[paths[0]]))
    assert len(Gallery.open("people")) == 5
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert run_reid.main(["index", *paths[:6], *words, "."]) == 2
    assert "the working folder cannot become one; name a new folder" in capsys.readouterr().err


def test_a_lock_is_no_link_and_keeps_its_content(tmp_path: Path) -> None:
    precious, link = tmp_path / "precious", tmp_path / "lock"
    precious.write_text("mine")
    with locked(precious), pytest.raises(BlockingIOError), locked(precious):
        pass
    assert precious.read_text() == "mine"
    link.symlink_to(precious)
    with pytest.raises(ReidError, match="lock is a symbolic link"), locked(link):
        pass
    assert precious.read_text() == "mine"
