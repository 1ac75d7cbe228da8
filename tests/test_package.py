"""The wheel, and what a command loads: what is installed runs by itself, and imports what it uses."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

import reid
from reid.gallery import Gallery
from reid.models import card

ROOT = Path(__file__).resolve().parents[1]
SLOW = {"torch", "torchvision", "faiss", "scipy", "sklearn", "matplotlib", "pandas", "yaml"}


def python(code: str, *words: object, where: Path, at: Path = ROOT) -> str:
    """Runs code in a process of its own, with the package of `at` before any installed one; what it printed."""
    environment = os.environ | {"PYTHONPATH": str(at), "PYTHONSAFEPATH": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, words)]
    run = subprocess.run(command, cwd=where, env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, unpacked."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("reid", "scgnet", "mgn", "configs", "weights", "datasets", "tests"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    build = "from setuptools import build_meta; import sys; print(build_meta.build_wheel(sys.argv[1]))"
    python(build, out, where=source, at=source)
    (file,) = out.glob("*.whl")
    zipfile.ZipFile(file).extractall(out / "installed")
    return out / "installed"


def test_the_wheel_holds_the_program_and_its_small_model_and_not_the_readers(wheel: Path) -> None:
    held = {path.relative_to(wheel).as_posix() for path in wheel.rglob("*") if path.is_file()}
    ours = {
        path.relative_to(ROOT).as_posix() for name in ("reid", "scgnet", "mgn") for path in (ROOT / name).rglob("*.py")
    }
    assert ours <= held
    assert {path.split("/")[0] for path in held} == {
        "reid",
        "scgnet",
        "mgn",
        f"reid_scgnet-{reid.__version__}.dist-info",
    }
    assert {"reid/py.typed", "reid/configs/folder.yaml", "reid/configs/imagenet.yaml"} <= held
    model = "weights/scgnet_s.safetensors"
    assert (wheel / "reid" / model).read_bytes() == (ROOT / model).read_bytes()
    info = wheel / f"reid_scgnet-{reid.__version__}.dist-info"
    assert "reid = reid.cli:main" in (info / "entry_points.txt").read_text()
    assert "Project-URL" not in (info / "METADATA").read_text()


def test_what_is_installed_finds_its_files_and_refuses_data_sets_in_a_line(wheel: Path, tmp_path: Path) -> None:
    code = """
import json, sys
import reid
from reid import cli
from reid.cli import runs, train
code = cli.main(["evaluate", "--dataset", "folder", "--weights", str(runs.DEFAULT_WEIGHTS)])
print(json.dumps([reid.__file__, str(runs.DEFAULT_WEIGHTS), (train.CONFIGS / "folder.yaml").is_file(), code]))
"""
    file, weights, has_recipe, code = json.loads(python(code, where=tmp_path, at=wheel))
    assert Path(file).is_relative_to(wheel) and Path(weights) == wheel / "reid/weights/scgnet_s.safetensors"
    assert has_recipe and code == 2
    run = subprocess.run(
        [sys.executable, "-m", "reid", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": str(wheel)},
        timeout=120,
    )
    assert run.returncode == 0 and "reid COMMAND --help" in run.stdout


def test_a_revision_is_of_the_programs_own_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def git(*words: str) -> None:
        author = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *author, *words], check=True, capture_output=True)

    inside = {"own": tmp_path / "reid/models/card.py", "other": tmp_path / "venv/reid/models/card.py"}
    for file in inside.values():
        file.parent.mkdir(parents=True)
        file.touch()
    git("init", "--quiet")
    git("add", "--all")
    git("commit", "--quiet", "--message", "both")
    for name, file in inside.items():
        monkeypatch.setattr(card, "__file__", str(file))
        revision = card.git_revision()
        assert (len(revision or "") == 12) == (name == "own"), revision
    monkeypatch.setattr(card, "__file__", str(tmp_path / "reid/models/card.py"))
    git("rm", "--quiet", "--cached", "reid/models/card.py")
    assert card.git_revision() is None, "installed at the top of another program's repository"


def test_looking_at_a_gallery_loads_numpy_alone(tmp_path: Path) -> None:
    Gallery.create(tmp_path / "g", dimension=4, fingerprint="model", input_size=(64, 32))
    code = """
import sys
from reid.cli import main
assert main(["gallery", "info", sys.argv[1]]) == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    loaded = set(python(code, tmp_path / "g", where=tmp_path).splitlines()[-1].split())
    assert "numpy" in loaded
    assert not loaded & SLOW


def test_a_search_loads_torch_and_nothing_as_slow(tmp_path: Path) -> None:
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (64, 32, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    code = """
import sys
from reid.cli import main
where = sys.argv[1]
from reid.gallery import Gallery
from reid.models.embedder import Embedder
from reid.cli.runs import DEFAULT_WEIGHTS
embedder = Embedder(DEFAULT_WEIGHTS)
gallery = Gallery.create(where + "/g", dimension=embedder.dimension, fingerprint=embedder.fingerprint,
                         input_size=embedder.input_size, model=DEFAULT_WEIGHTS)
gallery.add(embedder.embed([where + "/a.png"]), [where + "/a.png"])
assert main(["search", where + "/g", where + "/a.png"]) == 0
print(*sorted({name.partition(".")[0] for name in sys.modules}))
"""
    loaded = set(python(code, tmp_path, where=tmp_path).splitlines()[-1].split())
    assert {"torch", "PIL"} <= loaded and (tmp_path / "search-a.png").exists()
    assert not loaded & (SLOW - {"torch"})
