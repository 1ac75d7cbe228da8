"""The copy of a model that a gallery's folder holds, to embed queries with."""

from __future__ import annotations

import shutil
from pathlib import Path

from reid.core.files import atomic_file, hash_file
from reid.gallery.manifest import MODELS, Manifest


def copy_model(model: Path, folder: Path) -> str:
    """Copies a model's file, or files, under the gallery's names for them; their digest."""
    name = f"model{model.suffix}" if f"model{model.suffix}" in MODELS else next(iter(MODELS))
    copies = [folder / file for file in MODELS[name]]
    for source, copy in zip([model, *(model.with_suffix(file.suffix) for file in copies[1:])], copies):
        with atomic_file(copy) as temporary:
            shutil.copyfile(source, temporary)
    return hash_file(*copies)


def model_trouble(folder: Path, manifest: Manifest) -> str | None:
    """What is wrong with the copy; None where nothing is, or there is no copy."""
    if manifest.model is None:
        return None
    name = model_name(folder)
    files = [folder / file for file in MODELS[name]]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        return f"{missing[0]} is missing"
    return None if hash_file(*files) == manifest.model else f"{name} is not what was written"


def model_name(folder: Path) -> str:
    """The name of the copy's file."""
    return next((name for name in MODELS if (folder / name).is_file()), next(iter(MODELS)))
