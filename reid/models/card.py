"""The card: what a model file says of itself. It builds the network and describes how it came to be."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from pathlib import Path
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


def git_revision() -> str | None:
    """Of the checkout that runs, "-dirty" where files differ from it; None outside of one."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() or None
    except (OSError, subprocess.CalledProcessError):
        return None
