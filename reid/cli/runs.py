"""Output folders: what a run is, whose folder it is, what it says of itself."""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import os
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from reid.core.files import locked, read_object, sweep, write_json, write_text
from reid.core.tables import csv_text
from reid.core.types import ReidError, Sample, Splits

if TYPE_CHECKING:
    from reid.models.embedder import Embedder
    from reid.training.config import Config, PretrainConfig


def shipped(folder: str) -> Path:
    """A folder that comes with the program: of the package where it is installed, else of the checkout."""
    installed = Path(__file__).parents[1] / folder
    return installed if installed.is_dir() else Path(__file__).parents[2] / folder


DEFAULT_WEIGHTS = shipped("weights") / "scgnet_s.safetensors"


class RunFile:
    """What an output folder says of its run: OUTPUT/run.json."""

    def __init__(self, file: Path, values: dict[str, Any]) -> None:
        self.file, self.values = file, values

    def keep(self, **values: Any) -> None:
        self.values |= values
        write_json(self.file, self.values)


def run_of(
    kind: str,
    splits: Splits,
    args: argparse.Namespace,
    config: Config | None = None,
    *,
    weights: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    """What makes a run on people this one and not another. With weights nothing is trained: only what is scored counts,
    and of a model its fingerprint."""
    from reid.core.files import identity

    samples: list[Sample] = [*splits.query, *splits.gallery]
    given = recipe = None
    if weights:
        from reid.models import checkpoint

        given = checkpoint.identity(weights)
    elif config:
        from reid.training import config as recipes

        samples = [*splits.train, *samples]
        recipe = recipes.as_dict(config)
    return {
        "kind": kind,
        "dataset": splits.name,
        "data_root": splits.root,
        "data": identity([sample.path for sample in samples]),
        "skip_bad": args.skip_bad,
        "weights": given,
        "recipe": recipe,
        **more,
    }


def label_of(splits: Splits, name: str | None = None) -> str:
    """A data set's part of an output folder's name: of one's own images also their folder's name and which it is.

    name: what the set is called beside others of the command.
    """
    if splits.name != "folder":
        return name or splits.name
    root = os.path.abspath(splits.root)
    return f"folder-{os.path.basename(root)}-{hashlib.sha256(os.fsencode(root)).hexdigest()[:6]}"


@contextlib.contextmanager
def run_lock(output: Path, now: dict[str, Any], config: Config | PretrainConfig | None = None) -> Iterator[RunFile]:
    """The output folder, this process's alone for now; ReidError where it is of a different run.

    It is the same run where its kind, data, recipe and weights are, which `now` says; then work goes on where it was.
    `train` and the main job are of one kind: the one goes on where the other ended. Of several processes the first one
    claims it.
    """
    if not first_process():
        yield RunFile(output / "run.json", {})
        return
    if output.exists() and not output.is_dir():
        raise ReidError(f"{output} is a file: give a folder with --output")
    output.mkdir(parents=True, exist_ok=True)
    facts = RunFile(output / "run.json", now)
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(locked(output / ".lock"))
        except BlockingIOError:
            raise ReidError(f"another process works in {output}: wait for it, or give another --output") from None
        sweep(facts.file)
        if facts.file.exists():
            then = read_run(facts.file)
            refuse_other_run(now, then, output)
            facts.values = then
        elif {path.name for path in output.iterdir()} - {".lock"}:
            raise ReidError(f"{output} holds other files and no run of this program: give another --output")
        else:
            facts.keep()
            if config:
                from reid.training import config as recipes

                write_text(output / "config.yaml", recipes.dump(config))
        yield facts


def read_run(file: Path) -> dict[str, Any]:
    """What `RunFile` wrote. ReidError where it is damaged."""
    try:
        values = read_object(file)
        speed = values.get("embed_images_per_second")
        if not isinstance(values.get("recipe"), dict | None) or not isinstance(speed, int | float | None):
            raise ReidError(f"{file} is damaged (expected a recipe and a speed)")
    except ReidError as error:
        raise ReidError(f"{error}: give another --output") from None
    return values


def refuse_other_run(now: dict[str, Any], then: dict[str, Any], output: Path) -> None:
    changed = {key: (then.get(key), value) for key, value in now.items() if key != "recipe" and then.get(key) != value}
    mine, theirs = now.get("recipe"), then.get("recipe")
    if mine and theirs:
        from reid.training import config as recipes

        changed |= recipes.differences(mine, theirs)
    elif mine != theirs:
        changed["recipe"] = ("one" if theirs else None, "one" if mine else None)
    if changed:
        told = ", ".join(f"{key} {there!r} there, {here!r} now" for key, (there, here) in list(changed.items())[:4])
        raise ReidError(f"{output} holds a different run ({told}): give another --output, or delete it")


def model_name(weights: str) -> str:
    """For a folder's name: the file's, or of a run's model.safetensors the run's."""
    path = Path(os.path.abspath(weights))
    return path.parent.name if path.stem == "model" else path.stem


def write_csv(file: Path, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    write_text(file, csv_text(header, rows))


def default_weights() -> Path:
    """The small model that comes with the program."""
    if first_process():
        print(f"model: weights/{DEFAULT_WEIGHTS.name}, since no --weights is given", file=sys.stderr)
    return DEFAULT_WEIGHTS


def load_embedder(weights: str | Path, args: argparse.Namespace) -> Embedder:
    from reid.models.embedder import Embedder

    embedder = Embedder(weights, device=args.device)
    wanted, found = getattr(args, "backbone", None), embedder.card["architecture"]["backbone"]
    if wanted and found != wanted:
        raise ReidError(
            f"{weights} holds {found}, --backbone asks for {wanted}: leave --backbone out, or give other weights"
        )
    return embedder


def first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started: the one that writes and tells.

    RANK alone says nothing: batch systems set it, too, for programs that know nothing of each other.
    """
    return os.environ.get("WORLD_SIZE", "1") == "1" or os.environ.get("RANK", "0") == "0"


@contextlib.contextmanager
def first_rank_first() -> Iterator[None]:
    """Of several processes the first does it, then the others, who find what it wrote."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        yield
        return
    from reid.training import distributed

    with distributed.join().first_goes_first():
        yield
