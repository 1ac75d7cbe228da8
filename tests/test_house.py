"""The house's walls: which room imports which. Read from the source with `ast`, imports inside functions included."""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
ROOMS = ("datasets", "reid", "scgnet", "mgn")
STDLIB = set(sys.stdlib_module_names)


def imports(path: Path) -> set[str]:
    """Dotted names of the modules that a file imports; for `from a import b` both `a` and `a.b`."""
    package = path.relative_to(ROOT).parent.parts
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            found |= {module, *(f"{module}.{alias.name}" for alias in node.names)}
    return found


@functools.cache
def room(name: str) -> dict[Path, set[str]]:
    files = {path: imports(path) for path in sorted((ROOT / name).rglob("*.py"))}
    assert files, f"{name}/ holds no Python file"
    return files


def of_room(names: set[str], name: str) -> set[str]:
    """Those of the names that lie in that room of reid."""
    return {n for n in names if n == f"reid.{name}" or n.startswith(f"reid.{name}.")}


def tops(names: set[str]) -> set[str]:
    return {name.partition(".")[0] for name in names}


def test_the_reader_of_imports_sees_every_form(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "ROOT", tmp_path)
    path = tmp_path / "pack" / "a.py"
    path.parent.mkdir()
    path.write_text("import x.y as z\nfrom . import b\nfrom .c import d\ndef f():\n    from reid import model\n")
    assert imports(path) == {"x.y", "pack", "pack.b", "pack.c", "pack.c.d", "reid", "reid.model"}


def test_datasets_knows_the_shared_room_only():
    allowed = STDLIB | {"datasets", "reid", "numpy", "PIL", "h5py", "scipy", "tqdm"}
    for path, names in room("datasets").items():
        assert tops(names) <= allowed, f"{path} imports {tops(names) - allowed}"
        assert not {name for name in names if tops({name}) == {"reid"}} - {"reid"} - of_room(names, "core"), path


def test_datasets_is_ours_and_loads_without_torch():
    code = "import sys, datasets, datasets.doctor; print(datasets.__file__, 'torch' in sys.modules)"
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True)
    assert run.stdout.split() == [str(ROOT / "datasets" / "__init__.py"), "False"]


@pytest.mark.parametrize("name", ["scgnet", "mgn"])
def test_the_networks_know_torch_only(name):
    for path, names in room(name).items():
        strangers = tops(names) - STDLIB - {"torch", name}
        assert not strangers, f"{path} imports {strangers}"


def test_reid_never_imports_datasets_or_the_program():
    for path, names in room("reid").items():
        assert not tops(names) & {"datasets", "run_reid", "tests", "benchmarks"}, path


ARROWS = {  # room of reid -> the rooms that it may import besides itself
    "core": set(),
    "models": {"core", "export"},  # export: an exported file's runtime, imported where such a file is opened
    "retrieval": {"core"},
    "training": {"models", "retrieval", "core"},
    "report": {"models", "retrieval", "core"},
    "gallery": {"models", "retrieval", "core"},
    "export": {"models", "retrieval", "core"},
}


def test_images_are_opened_in_one_place():
    """Elsewhere Pillow is told which format it may take: of any other it might start a program."""
    for name in ("datasets", "reid"):
        for path in room(name):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func) == "Image.open":
                    assert "formats" in {keyword.arg for keyword in node.keywords}, f"{path}:{node.lineno}"


@pytest.mark.parametrize("name", ARROWS)
def test_the_rooms_of_reid_import_along_the_arrows(name):
    files = {path: names for path, names in room("reid").items() if path.parts[len(ROOT.parts) + 1] == name}
    assert files
    for path, names in files.items():
        seen = {n.split(".")[1] for n in names if n.startswith("reid.") and (ROOT / "reid" / n.split(".")[1]).is_dir()}
        assert seen <= ARROWS[name] | {name}, f"{path.relative_to(ROOT)} imports {seen - ARROWS[name] - {name}}"


def test_core_needs_neither_torch_nor_faiss():
    for path, names in room("reid").items():
        if path.parent.name == "core":
            strangers = tops(names) - STDLIB - {"numpy", "PIL", "reid", "threadpoolctl", "tqdm"}
            assert not strangers, f"{path} imports {strangers}"


def test_only_the_table_of_backbones_and_the_npu_know_scgnet():
    users = {str(path.relative_to(ROOT)) for path, names in room("reid").items() if "scgnet" in tops(names)}
    assert users == {"reid/models/backbones.py", "reid/export/npu.py"}


def test_only_the_program_knows_both_sides():
    outside = [path for path in ROOT.glob("*.py") if path.name != "run_reid.py"]
    for path in outside + [path for name in ROOMS for path in room(name)]:
        names = imports(path)
        of_reid = {name for name in names if name.startswith("reid.")} - of_room(names, "core")
        assert not ("datasets" in tops(names) and of_reid), path


def test_no_dependency_is_the_other_datasets():
    """The top-level name `datasets` is another project's on PyPI: ours lives in the checkout only (test_package.py)."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    every = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    assert every and not any(line.startswith("datasets") for line in every)
