"""The card: what a model file says of itself. It builds the network and describes how it came to be."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from pathlib import Path, PurePath
from typing import Any

from reid.models import heads

MEAN = (0.485, 0.456, 0.406)  # of ImageNet, RGB in [0, 1]
STD = (0.229, 0.224, 0.225)
NO_FLIP = "-noflip"  # what a fingerprint ends with where the mirror image is not looked at
FROM_SCRATCH = "from scratch: the paper's scores are from ImageNet weights"


def make_card(recipe: Mapping[str, Any], num_classes: int) -> dict[str, Any]:
    """The card of a new model of this recipe: the values of `reid.training.config.Config` by name."""
    return {
        "architecture": {
            "backbone": recipe["backbone"],
            "head": recipe["head"],
            **heads.options_of(recipe["head"], recipe),
        },
        "input_size": [recipe["height"], recipe["width"]],
        "mean": list(MEAN),
        "std": list(STD),
        "num_classes": num_classes,
        "recipe": dict(recipe),
        "git_revision": git_revision(),
    }


def start_note(recipe: Mapping[str, Any]) -> str | None:
    """What a run by a recipe is to say of its start: that it lacks the ImageNet weights that the recipe wants."""
    return FROM_SCRATCH if recipe.get("wants_pretrained") and not recipe.get("pretrained") else None


def without_places(value: Any) -> Any:
    """The same JSON values, where absolute paths are the names of their files: a card says nothing of one machine.

    Of a run's own file the run's folder is kept, too: "/data/runs/a/model.safetensors" is "a/model.safetensors".
    """
    if isinstance(value, Mapping):
        return {key: without_places(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_places(inner) for inner in value]
    if isinstance(value, str) and os.path.isabs(value):
        path = PurePath(value)
        return "/".join(path.parts[1:][-2:]) if path.stem in ("model", "backbone") else path.name
    return value


def git_revision() -> str | None:
    """Of the checkout that runs, "-dirty" where files differ from it.

    None outside of one: also where this package is installed, or copied, into another program's repository.
    """
    root = Path(__file__).parents[2]
    here = Path(__file__).relative_to(root).as_posix()
    own = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}  # a hook's are of its own

    def git(*words: str) -> str:
        command = ["git", "-C", str(root), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, env=own).stdout.strip()

    try:
        if git("ls-files", "--full-name", "--", here) != here:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=12", "--exclude=*") or None
    except (OSError, subprocess.CalledProcessError):
        return None
