"""What is Milvus's own of a gallery there: writers, what a killed one leaves, the model's copies, and what is refused.

Its behaviour as a gallery is tested in test_gallery.py, over both kinds.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from reid.core.types import ReidError
from reid.gallery import Filter, Gallery, check, repair
from reid.gallery.manifest import FORMAT_VERSION
from reid.gallery.milvus.rows import quoted
from tests.test_gallery import digest, fill, make_milvus, random_unit

MODEL = np.random.default_rng(0).bytes(100_000)


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A gallery that holds a model."""
    folder = tmp_path_factory.mktemp("milvus")
    (folder / "model").write_bytes(MODEL)
    return make_milvus(folder, "own", model=folder / "model")


@pytest.fixture
def gallery(one: Any) -> Any:
    """It, with what `fill` adds and nothing else."""
    one.remove(Filter(exclude_keys=[-1]))
    one._at.put("state", json.dumps({"next_key": 0}))
    return fill(one)


def writer_of(process: int) -> str:
    return json.dumps({"host": socket.gethostname(), "process": process, "since": 0})


def test_one_writes_at_a_time(gallery: Any) -> None:
    other = Gallery.open(gallery.place, wait=0.1)
    with gallery._writing():
        with pytest.raises(ReidError, match=rf"process {os.getpid()} of .* is writing to it, for more than 0.1 sec"):
            other.add(random_unit(1, seed=3), ["x.jpg"])
        assert len(other) == 20
    assert other.add(random_unit(1, seed=3), ["x.jpg"]).tolist() == [20]
    assert gallery.add(random_unit(1, seed=4), ["y.jpg"]).tolist() == [21]


def test_a_killed_writer_is_not_waited_for(gallery: Any) -> None:
    gone = subprocess.Popen([sys.executable, "-c", ""])
    gone.wait()
    gallery._at.put("writer-gone", writer_of(gone.pid))
    assert gallery.add(random_unit(1, seed=3), ["x.jpg"]).tolist() == [20]
    gallery._at.put("writer-elsewhere", writer_of(1).replace(socket.gethostname(), "elsewhere"))
    gallery.wait = 0.1
    try:
        with pytest.raises(ReidError, match="of elsewhere is writing .* check --repair"):
            gallery.remove(Filter(keys=[3]))
        assert repair(gallery.place) == ([], [])
        assert gallery.remove(Filter(keys=[3])) == 1
    finally:
        gallery.wait = 10


def test_an_addition_is_seen_whole_or_not_at_all(gallery: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed before it is committed, and between that and the deletion of what it replaces."""
    put = gallery._at.put

    def killed(name: str, text: str) -> None:
        if name == "state":
            raise KeyboardInterrupt
        put(name, text)

    changed = (random_unit(3, seed=3), ["x.jpg", "3.jpg", "4.jpg"])
    hashes = [digest(n) for n in (98, 99, 100)]
    with monkeypatch.context() as patch:
        patch.setattr(gallery._at, "put", killed)
        with pytest.raises(KeyboardInterrupt):
            gallery.add(*changed, hashes=hashes)
    assert len(gallery) == 20
    assert "x.jpg" not in gallery
    assert gallery.search(changed[0], 20).keys.max() < 20
    assert check(gallery.place) == ["3 images of an addition that was not finished"]
    with monkeypatch.context() as patch:
        patch.setattr(gallery._writer, "delete", lambda keys: killed("state", "") if 3 in keys else None)
        assert repair(gallery.place) == ([], [])
        with pytest.raises(KeyboardInterrupt):
            gallery.add(*changed, hashes=hashes)
    assert len(gallery) == 23
    assert check(gallery.place) == ["2 paths are there twice, since a writer was killed"]
    assert gallery.add(random_unit(1, seed=4), ["y.jpg"]).tolist() == [23]
    assert [entry.key for entry in gallery.entries(Filter(paths=["3.jpg", "4.jpg"]))] == [21, 22]
    assert check(gallery.place) == []


def test_a_vector_that_is_not_what_was_written_is_found_and_dropped(gallery: Any) -> None:
    row = gallery._at.call("get", gallery._at.images, ids=[7])[0]
    gallery._at.call("upsert", gallery._at.images, data=[{**row, "vector": random_unit(1, seed=9)[0]}])
    assert check(gallery.place) == ["1 vectors are not what was written"]
    dropped, left = repair(gallery.place)
    assert ([entry.path for entry in dropped], left) == (["7.jpg"], [])
    assert len(gallery) == 19


def test_the_model_comes_along(gallery: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for _ in range(2):
        file = Gallery.open(gallery.place).model_path
        assert file is not None
        assert file.parent == tmp_path / "reid"
        assert file.read_bytes() == MODEL
        file.write_bytes(MODEL[:-1])  # a damaged copy is replaced
    piece = gallery._at.text("model-000001")
    gallery._at.put("model-000001", piece[4:])
    try:
        with pytest.raises(ReidError, match="its model is not what was written"):
            _ = gallery.model_path
        assert check(gallery.place) == ["its model is not what was written"]
    finally:
        gallery._at.put("model-000001", piece)


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("milvus://localhost:19530", "expected milvus://HOST:PORT/NAME"),
        ("milvus://localhost:19530/a-b", "expected milvus://HOST:PORT/NAME"),
        ("milvus:///people", "expected milvus://HOST:PORT/NAME"),
        ("milvus+lite:people", "ends in .db"),
        ("milvus://localhost:19530/people?nprobe", r"after \? expected index=KIND, .* got 'nprobe'"),
        ("milvus+lite:people.db?index=a;b", "got 'index=a;b'"),
        ("milvus+lite:none.db", "there is none; index"),
    ],
)
def test_wrong_places(place: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ReidError, match=message):
        Gallery.open(place)
    assert list(tmp_path.iterdir()) == []


def test_a_missing_client_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymilvus", None)
    with pytest.raises(ReidError, match="pip install 'pymilvus>=3.0' 'milvus-lite>=3.2'"):
        Gallery.open("milvus://localhost:19530/people")


def test_another_index(tmp_path: Path) -> None:
    gallery: Any = make_milvus(tmp_path, "other", options="?index=HNSW&M=16&efConstruction=100")
    fill(gallery, 300)
    index = gallery._at.call("describe_index", gallery._at.images, "vector")
    assert index["index_type"] == "HNSW"
    opened = Gallery.open(gallery.place.partition("?")[0] + "?ef=300")
    assert opened.search(random_unit(300), 1).keys[:, 0].tolist() == list(range(300))
    assert opened.search(random_unit(9), 5, filter=Filter(camids=[2])).keys.max() >= 0


def test_another_program_has_it_open_and_then_not(tmp_path: Path) -> None:
    """What one program added before it was killed, the next one finds."""
    place = f"milvus+lite:{tmp_path}/other.db"
    code = f"""
import os, signal, sys
from reid.gallery import Filter, Gallery
from tests.test_gallery import create, fill
gallery = fill(create({place!r}))
gallery.remove(Filter(keys=[3]))
print("filled", flush=True)
sys.stdin.readline()
os.kill(os.getpid(), signal.SIGKILL)
"""
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as run:
        assert run.stdin is not None
        assert run.stdout is not None
        assert run.stdout.readline() == "filled\n"
        with pytest.raises(ReidError, match="another program has it open"):
            Gallery.open(place)
        run.stdin.write("\n")
        run.stdin.flush()
        run.wait()
    opened = Gallery.open(place)
    left = [n for n in range(20) if n != 3]
    assert [entry.key for entry in opened.entries()] == left
    assert sorted(key for key in opened.search(random_unit(1), 20).keys[0] if key >= 0) == left
    assert check(place) == []
    assert opened.add(random_unit(1, seed=5), ["x.jpg"]).tolist() == [20]


def test_a_gallery_of_a_newer_format_is_refused(gallery: Any) -> None:
    text = gallery._at.text("manifest")
    try:
        gallery._at.put("manifest", text.replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 99'))
        with pytest.raises(ReidError, match="has format version 99, .* use a newer version"):
            Gallery.open(gallery.place)
    finally:
        gallery._at.put("manifest", text)


def test_texts_in_conditions_end_nothing() -> None:
    assert quoted('a" or key > 0 or path == "\\\n') == r'"a\" or key > 0 or path == \"\\\n"'
