"""The gallery: exact search, what survives a kill, and what it refuses."""

from __future__ import annotations

import hashlib
import json
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import pytest

import reid.gallery
from reid.evaluate import evaluate
from reid.gallery import Entry, Gallery
from reid.types import JUNK, ReidError

ROOT = Path(__file__).resolve().parents[1]
DIMENSION = 16


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def random_unit(count: int, seed: int = 0) -> np.ndarray:
    return unit(np.random.default_rng(seed).standard_normal((count, DIMENSION)))


def create(path: Path, **changes: Any) -> Gallery:
    return Gallery.create(path, **{"dimension": DIMENSION, "fingerprint": "abc", "input_size": (384, 128), **changes})


def filled(path: Path, count: int = 20) -> Gallery:
    """Vectors of seed 0, paths 0.jpg .., pids 0, 1, 2, 0 .., camids 1, 2, 3, 4, 1 .."""
    gallery = create(path)
    numbers = np.arange(count)
    gallery.add(random_unit(count), [f"{n}.jpg" for n in numbers], numbers % 3, numbers % 4 + 1)
    return gallery


def assert_searches(gallery: Gallery, count: int = 20) -> None:
    """It is the gallery that `filled` makes, and answers."""
    assert len(gallery) == count
    keys, scores = gallery.search(random_unit(count), 1)
    assert keys[:, 0].tolist() == list(range(count))
    assert np.allclose(scores, 1, atol=1e-6)


@pytest.mark.parametrize("top_k", [1, 7, 300])
@pytest.mark.parametrize("filtered", [False, True])
def test_search_is_exact(tmp_path: Path, top_k: int, filtered: bool) -> None:
    rng = np.random.default_rng(1)
    vectors, queries = random_unit(300), random_unit(40, seed=2)
    camids, own = (rng.integers(1, 4, 300), rng.integers(1, 5, 40))  # nothing is from camera 4
    gallery = create(tmp_path / "g")
    for part in np.array_split(np.arange(300), 3):
        assert gallery.add(vectors[part], [f"{n}.jpg" for n in part], None, camids[part]).tolist() == part.tolist()

    keys, scores = gallery.search(queries, top_k, exclude_camids=own if filtered else None)
    assert (keys.shape, keys.dtype, scores.shape, scores.dtype) == ((40, top_k), np.int64, (40, top_k), np.float32)
    expected = queries.astype(np.float64) @ vectors.T.astype(np.float64)
    if filtered:
        expected[camids == own[:, None]] = -np.inf
    best = -np.sort(-expected, axis=1)[:, :top_k]
    found = np.isfinite(best)
    assert np.allclose(scores[found], best[found], atol=1e-6)
    assert (scores[~found] == -np.inf).all()
    assert (keys[~found] == -1).all()
    assert np.allclose(np.take_along_axis(expected, keys, axis=1)[found], best[found], atol=1e-6)  # the right images
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in keys)


def test_one_camera_for_all_queries(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    keys = gallery.search(random_unit(5), 15, exclude_camids=2).keys
    assert {gallery.entry(key).camid for key in keys.ravel()} == {1, 3, 4}
    each = gallery.search(random_unit(5), 15, exclude_camids=[2, None, 2, 2, 2]).keys
    assert np.array_equal(np.delete(each, 1, axis=0), np.delete(keys, 1, axis=0))
    assert 1 in each[1]


def test_equal_scores_come_in_order_of_key(tmp_path: Path) -> None:
    gallery = create(tmp_path / "g")
    gallery.add(np.repeat(random_unit(1), 40, axis=0), [str(n) for n in range(40)])
    assert gallery.search(random_unit(1), 40).keys.tolist() == [list(range(40))]


def test_scores_do_not_exceed_one(tmp_path: Path) -> None:
    vectors = random_unit(20) * np.float32(1.00004)  # unit, within what is tolerated
    gallery = create(tmp_path / "g")
    gallery.add(np.concatenate([vectors, -vectors]), [str(n) for n in range(40)])
    scores = gallery.search(vectors, 40).scores
    assert (scores.min(), scores.max()) == (-1, 1)


def test_empty_gallery_and_large_k(tmp_path: Path) -> None:
    gallery = create(tmp_path / "g")
    keys, scores = gallery.search(random_unit(2), 3)
    assert keys.tolist() == [[-1] * 3] * 2
    assert (scores == -np.inf).all()
    assert gallery.add(random_unit(0), []).shape == (0,)
    gallery.add(random_unit(1), ["a.jpg"])
    keys, scores = gallery.search(random_unit(1), 3)
    assert keys.tolist() == [[0, -1, -1]]
    assert scores[0, 1:].tolist() == [-np.inf, -np.inf]


def test_everything_persists(tmp_path: Path) -> None:
    model = tmp_path / "net.safetensors"
    model.write_bytes(b"weights")
    gallery = create(tmp_path / "g", model=model)
    paths = ["a,b.jpg", 'quo"te\n\rline.jpg', "dämmerung/夜.jpg", " spaces .jpg", "bad-\udcff-utf8.jpg"]
    gallery.add(random_unit(2), [Path(paths[0]), paths[1]], [5, None], [None, 2])
    gallery.add(random_unit(3, seed=1), paths[2:], np.array([JUNK, 0, 2**40]))

    opened = Gallery.open(str(tmp_path / "g"))
    assert opened.entries == gallery.entries
    assert opened.entries == [
        Entry(0, paths[0], 5, None),
        Entry(1, paths[1], None, 2),
        Entry(2, paths[2], -1, None),
        Entry(3, paths[3], 0, None),
        Entry(4, paths[4], 2**40, None),
    ]
    assert opened.entry(4) == opened.entries[4]
    assert paths[2] in opened
    assert Path(paths[0]) in opened
    assert "c.jpg" not in opened
    assert (opened.dimension, opened.fingerprint, opened.input_size, len(opened)) == (16, "abc", (384, 128), 5)
    assert opened.model_path == tmp_path / "g" / "model.safetensors"
    assert opened.model_path.read_bytes() == b"weights"
    assert filled(tmp_path / "without").model_path is None
    opened.check_model("abc")
    for ours, theirs in zip(opened.search(random_unit(5), 5), gallery.search(random_unit(5), 5)):
        assert np.array_equal(ours, theirs)
    names = {file.name for file in (tmp_path / "g").iterdir()}
    assert names == {"manifest.json", "vectors-000002.faiss", "entries-000002.csv", "model.safetensors", "lock"}


def test_empty_folder_becomes_a_gallery(tmp_path: Path) -> None:
    (tmp_path / "g").mkdir()
    assert_searches(filled(tmp_path / "g"))


def test_a_reader_goes_on_and_a_writer_reads_first(tmp_path: Path) -> None:
    reader = filled(tmp_path / "g")
    writer, late = Gallery.open(tmp_path / "g"), Gallery.open(tmp_path / "g")
    writer.add(random_unit(2, seed=3), ["x.jpg", "y.jpg"])
    assert_searches(reader)
    with pytest.raises(ReidError, match=r"x\.jpg is in it already"):
        late.add(random_unit(1, seed=4), ["x.jpg"])
    assert late.add(random_unit(1, seed=4), ["z.jpg"]).tolist() == [22]
    assert [entry.path for entry in Gallery.open(tmp_path / "g").entries[20:]] == ["x.jpg", "y.jpg", "z.jpg"]


def test_opening_while_another_adds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the manifest named are gone before they are read: the new ones are read."""
    writer = filled(tmp_path / "g")
    read = reid.gallery._read_manifest
    calls: list[Path] = []

    def overtaken(folder: Path) -> object:
        manifest = read(folder)
        if not calls:
            calls.append(folder)
            monkeypatch.setattr("reid.gallery._read_manifest", read)
            writer.add(random_unit(1, seed=3), ["x.jpg"])
        return manifest

    monkeypatch.setattr("reid.gallery._read_manifest", overtaken)
    assert len(Gallery.open(tmp_path / "g")) == 21
    assert calls


def test_rank1_and_map_equal_the_evaluation(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    q_pids, g_pids = rng.integers(1, 20, 60), rng.integers(JUNK, 20, 400)
    q_camids, g_camids = rng.integers(1, 4, 60), rng.integers(1, 4, 400)
    centres = rng.standard_normal((21, DIMENSION))
    queries, vectors = (unit(centres[p] + rng.standard_normal((len(p), DIMENSION))) for p in (q_pids, g_pids))
    gallery = create(tmp_path / "g")
    gallery.add(vectors, [f"{n}.jpg" for n in range(400)], g_pids, g_camids)

    first, precisions = [], []
    for q, keys in enumerate(gallery.search(queries, len(gallery)).keys):
        ranked = [gallery.entry(key) for key in keys]
        kept = [e for e in ranked if e.pid != JUNK and (e.pid, e.camid) != (q_pids[q], q_camids[q])]
        right = np.array([e.pid == q_pids[q] for e in kept])
        hits = np.flatnonzero(right)
        first.append(right[0])
        precisions.append(np.mean(np.arange(1, len(hits) + 1) / (hits + 1)))
    scores = evaluate(queries, vectors, q_pids, g_pids, q_camids, g_camids)
    assert scores.num_query_without_match == 0
    assert 0.2 < scores.mAP < 0.9
    assert np.mean(first) == pytest.approx(scores.rank1, abs=1e-12)
    assert np.mean(precisions) == pytest.approx(scores.mAP, abs=1e-12)


WRITER = """
import sys, numpy as np
from reid.gallery import Gallery
gallery = Gallery.open(sys.argv[1])
while True:
    n = len(gallery)
    vectors = np.zeros((10, 16), dtype=np.float32)
    vectors[:, 0] = 1
    gallery.add(vectors, [f"{i}.jpg" for i in range(n, n + 10)], [n] * 10)
    print(n + 10, flush=True)
"""

# Kills itself at the N-th step of an addition: before or after one of the three files takes its name, or while the
# old ones are removed.
KILLED_AT = """
import os, signal
steps = iter(range(int(sys.argv[2]) + 1))
def deadly(call):
    def step(*args, **kwargs):
        for moment in "before", "after":
            if next(steps) == int(sys.argv[2]):
                os.kill(os.getpid(), signal.SIGKILL)
            if moment == "before":
                result = call(*args, **kwargs)
        return result
    return step
os.replace, os.unlink = deadly(os.replace), deadly(os.unlink)
"""


def run_writer(code: str, *arguments: object) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_killed_writers_leave_whole_additions(tmp_path: Path) -> None:
    path = tmp_path / "g"
    create(path)
    dice = random.Random(0)
    acknowledged = 0
    for _ in range(6):
        writer = run_writer(WRITER, path)
        assert writer.stdout is not None
        for _ in range(dice.randint(1, 3)):
            acknowledged = int(writer.stdout.readline())
        time.sleep(dice.uniform(0, 0.03))
        writer.kill()
        acknowledged = max([acknowledged, *map(int, writer.communicate()[0].split())])
        gallery = Gallery.open(path)
        assert len(gallery) in (acknowledged, acknowledged + 10)  # the last one may be written, and not yet told of
        assert [entry.path for entry in gallery.entries] == [f"{i}.jpg" for i in range(len(gallery))]
        assert gallery.search(np.eye(1, DIMENSION, dtype=np.float32), len(gallery)).keys.min() == 0
    assert acknowledged >= 60


def test_killed_at_any_step(tmp_path: Path) -> None:
    sizes = []
    code = WRITER.replace("while True:", KILLED_AT + "if True:")
    writers = [(step, run_writer(code, filled(tmp_path / str(step), 5).path, step)) for step in range(0, 12, 2)]
    for step, writer in writers:
        output, errors = writer.communicate()
        assert writer.returncode == -signal.SIGKILL, errors
        assert output == ""
        gallery = Gallery.open(tmp_path / str(step))
        sizes.append(len(gallery))
        gallery.add(random_unit(1, seed=9), ["after.jpg"])
        data = {file.name for file in gallery.path.iterdir()} - {"manifest.json", "lock"}
        generation = 2 if sizes[-1] == 5 else 3
        assert data == {f"vectors-{generation:06d}.faiss", f"entries-{generation:06d}.csv"}
    assert sizes == sorted(sizes)
    assert set(sizes) == {5, 15}


def test_only_one_adds_at_a_time(tmp_path: Path) -> None:
    gallery = filled(tmp_path / "g")
    hold = "lock = open(sys.argv[1]); fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); sys.stdin.read()"
    command = [sys.executable, "-c", f"import fcntl, sys; {hold}", str(tmp_path / "g" / "lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(ReidError, match="another process is adding"):
            gallery.add(random_unit(1, seed=3), ["x.jpg"])
        assert_searches(Gallery.open(tmp_path / "g"))
        holder.communicate()
    assert gallery.add(random_unit(1, seed=3), ["x.jpg"]).tolist() == [20]


FULL_DISK = """
import resource, signal, sys, numpy as np
from reid.gallery import Gallery
from reid.types import ReidError
gallery = Gallery.open(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
vectors = np.eye(16, dtype=np.float32)
try:
    gallery.add(vectors, [f"x{i}.jpg" for i in range(16)])
except ReidError as error:
    print(error)
    sys.exit(2)
assert (gallery.search(vectors[:1], 1).keys == 20).all()
"""


def test_full_disk_changes_nothing(tmp_path: Path) -> None:
    """Also where only the last bytes find no room, which faiss's own file writer does not notice."""
    gallery = filled(tmp_path / "g")
    size = (gallery.path / "vectors-000001.faiss").stat().st_size + 16 * (4 * DIMENSION + 8)
    for limit, expected in ((1000, 2), (size - 1, 2), (size, 0)):
        writer = run_writer(FULL_DISK, gallery.path, limit)
        output, errors = writer.communicate()
        assert writer.returncode == expected, errors
        if expected:
            assert "nothing was changed" in output
            assert output.count("\n") == 1
            assert_searches(Gallery.open(gallery.path))
            assert len(list(gallery.path.iterdir())) == 4
    assert len(Gallery.open(gallery.path)) == 36


def test_a_failed_addition_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gallery = filled(tmp_path / "g")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("reid.gallery.write_json", fail)
        with pytest.raises(ReidError, match=r"nothing was changed \(No space left"):
            gallery.add(random_unit(3, seed=3), ["x.jpg", "y.jpg", "z.jpg"])
    assert_searches(gallery)
    assert "x.jpg" not in gallery
    assert gallery.search(random_unit(3, seed=3), 20).keys.max() < 20
    assert gallery.add(random_unit(1, seed=3), ["x.jpg"]).tolist() == [20]
    assert Gallery.open(tmp_path / "g").search(random_unit(1, seed=3), 1).keys.tolist() == [[20]]


def edit_manifest(folder: Path, **changes: object) -> None:
    values = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps({**values, **changes}))


def replace_file(folder: Path, name: str, content: bytes) -> None:
    """With its checksum made to fit."""
    (folder / name).write_bytes(content)
    values = json.loads((folder / "manifest.json").read_text())
    edit_manifest(folder, sha256={**values["sha256"], name: hashlib.sha256(content).hexdigest()})


def index_of(dimension: int, count: int) -> bytes:
    index = faiss.IndexIDMap2(faiss.IndexFlatIP(dimension))
    index.add_with_ids(np.eye(count, dimension, dtype=np.float32), np.arange(count))
    return bytes(faiss.serialize_index(index))


VECTORS, ENTRIES = "vectors-000001.faiss", "entries-000001.csv"


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda g: (g / VECTORS).write_bytes((g / VECTORS).read_bytes()[:-1]), "vectors.*not what was written"),
        (lambda g: (g / VECTORS).write_bytes((g / VECTORS).read_bytes()[:-1] + b"?"), "vectors.*not what was written"),
        (lambda g: (g / ENTRIES).write_text("key,path,pid,camid\n"), "entries.*not what was written"),
        (lambda g: (g / VECTORS).unlink(), "vectors-000001.faiss is missing"),
        (lambda g: (g / ENTRIES).unlink(), "entries-000001.csv is missing"),
        (lambda g: (g / "manifest.json").unlink(), "no manifest.json"),
        (lambda g: (g / "manifest.json").write_text('{"format_ver'), "not JSON"),
        (lambda g: (g / "manifest.json").write_bytes(b"\xff\xfe"), "not JSON"),
        (lambda g: (g / "manifest.json").write_text("[]"), "lacks values"),
        (lambda g: edit_manifest(g, sha256={}), "lacks values"),
        (lambda g: edit_manifest(g, dimension="16"), "lacks values"),
        (lambda g: edit_manifest(g, input_size=5), "lacks values"),
        (lambda g: edit_manifest(g, surprise=1), "lacks values"),
        (lambda g: edit_manifest(g, format_version=2, surprise=1), "format version 2.*up to 1"),
        (lambda g: edit_manifest(g, metric="euclidean"), "metric 'euclidean'"),
        (lambda g: edit_manifest(g, count=19), "20 vectors, 20 entries, 19 in the manifest"),
        (lambda g: edit_manifest(g, dimension=17), "vectors of 17 dimensions"),
        (lambda g: replace_file(g, VECTORS, b"not faiss"), "not a faiss index"),
        (lambda g: replace_file(g, VECTORS, index_of(16, 19)), "19 vectors, 20 entries"),
        (lambda g: replace_file(g, VECTORS, index_of(8, 8)), "vectors of 16 dimensions"),
        (lambda g: replace_file(g, ENTRIES, b"key,path,pid,camid\n0,a,b,c\n"), "not a table"),
        (lambda g: replace_file(g, ENTRIES, b"path\na.jpg\n"), "not a table"),
        (lambda g: replace_file(g, ENTRIES, b"key,path,pid,camid\n0,a\n"), "not a table"),
    ],
)
def test_damage_is_one_line(tmp_path: Path, harm: Callable[[Path], object], message: str) -> None:
    filled(tmp_path / "g")
    harm(tmp_path / "g")
    with pytest.raises(ReidError, match=message) as error:
        Gallery.open(tmp_path / "g")
    assert "\n" not in str(error.value)


def test_damaged_model(tmp_path: Path) -> None:
    (tmp_path / "net").write_bytes(b"weights")
    create(tmp_path / "g", model=tmp_path / "net")
    (tmp_path / "g" / "model.safetensors").write_bytes(b"weight")
    with pytest.raises(ReidError, match=r"model\.safetensors is not what was written"):
        Gallery.open(tmp_path / "g")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda g: g.add(random_unit(2) * np.nan, ["x", "y"]), "row 0 holds NaN"),
        (lambda g: g.add(random_unit(2) * 2, ["x", "y"]), "length 1 within 0.0001, row 0 has 2"),
        (lambda g: g.add(random_unit(2) * 0, ["x", "y"]), "row 0 is all zeros"),
        (lambda g: g.add(random_unit(2)[:, :9], ["x", "y"]), "should have 16 dimensions, got 9"),
        (lambda g: g.add(random_unit(2)[0], ["x", "y"]), r"got shape \(16,\)"),
        (lambda g: g.add(random_unit(2), ["x"]), "2 vectors, 1 paths, 1 pids"),
        (lambda g: g.add(random_unit(2), ["x", "y"], [1]), "2 paths, 1 pids"),
        (lambda g: g.add(random_unit(2), ["x", "3.jpg"]), "3.jpg is in it already"),
        (lambda g: g.add(random_unit(2), ["x", "x"]), "x is given twice"),
        (lambda g: g.search(random_unit(2), 0), "at least 1: got 0"),
        (lambda g: g.search(random_unit(2) * 0.5, 1), "query vectors should have length 1"),
        (lambda g: g.search(random_unit(2)[:, :9], 1), "query vectors should have 16 dimensions"),
        (lambda g: g.search(random_unit(2), 1, exclude_camids=[1, 2, 3]), "got 3 for 2 queries"),
        (lambda g: g.entry(-1), "no image has the key -1"),
        (lambda g: g.check_model("def"), "made by the model abc, the query by def"),
        (lambda g: create(g.path), "exists already and is not empty"),
        (lambda g: create(g.path / "manifest.json"), "exists already and is not empty"),
        (lambda g: create(g.path / "new", dimension=0), "at least 1, got 0"),
        (lambda g: create(g.path / "new", model="none.safetensors"), "no model file none.safetensors"),
        (lambda g: Gallery.open(g.path / "new"), "no manifest.json"),
    ],
)
def test_refusals_change_nothing(tmp_path: Path, call: Callable[[Gallery], object], message: str) -> None:
    gallery = filled(tmp_path / "g")
    before = {file.name: file.read_bytes() for file in gallery.path.iterdir()}
    with pytest.raises(ReidError, match=message) as error:
        call(gallery)
    assert "\n" not in str(error.value)
    assert {file.name: file.read_bytes() for file in gallery.path.iterdir()} == before
    assert_searches(gallery)
