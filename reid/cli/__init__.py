"""The command line: a module a command or family of commands, its arguments beside the steps that they start.

`main` finds the module of the command in `COMMANDS` and imports it alone, so that a command loads what it uses.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import importlib
import os
import sys
from collections.abc import Iterator, Sequence

from reid.cli.readers import OWN, Readers
from reid.cli.runs import first_process
from reid.core.terminal import printable, safe_streams
from reid.core.types import ReidError

COMMANDS = {  # command -> module and the stem of its two functions, STEM_command and add_STEM
    "train": ("train", "train"),
    "evaluate": ("evaluate", "evaluate"),
    "compare": ("evaluate", "compare"),
    "calibrate": ("evaluate", "calibrate"),
    "index": ("index", "index"),
    "search": ("index", "search"),
    "cluster": ("cluster", "cluster"),
    "gallery": ("gallery", "gallery"),
    "check-data": ("data", "check_data"),
    "pack": ("export", "pack"),
    "export": ("export", "export"),
    "import": ("importing", "import"),
    "pretrain": ("train", "pretrain"),
}
MAIN_JOB = ("train", "main")
SHARED_BY_PROCESSES = (None, "train", "pretrain", "index")  # under torchrun the other commands run in its first process
_ABOUT = """Person re-identification: train, evaluate, compare, calibrate, index, search, cluster.

    {program}                                    the main job on people that the program draws itself
    {program} --dataset market1501 --data-root DIR
    {program} COMMAND --help                     {commands}

The main job reads and checks a data set, trains by its recipe (configs/), embeds query and gallery, evaluates, builds
a searchable gallery and writes a report. Interrupted, the same command goes on where it was.
"""


def build_parser(command: str | None, readers: Readers = OWN) -> argparse.ArgumentParser:
    """The parser of one command, or with None of the main job."""
    module, stem = COMMANDS[command] if command else MAIN_JOB
    steps = importlib.import_module(f"reid.cli.{module}")
    function = getattr(steps, f"{stem}_command")
    program = "python run_reid.py" if readers is not OWN else "reid"
    parser = argparse.ArgumentParser(
        prog=program.removeprefix("python ") + (f" {command}" if command else ""),
        description=function.__doc__ if command else _ABOUT.format(program=program, commands=", ".join(COMMANDS)),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(function=function, readers=readers)
    getattr(steps, f"add_{stem}")(parser, readers)
    return parser


def main(arguments: Sequence[str] | None = None, readers: Readers = OWN) -> int:
    """Runs a command; its exit code: 0 done, 1 problems found in the data, 2 a user's mistake, 130 interrupted.

    arguments: the words after the program's name (default: sys.argv's). readers: the data sets that --dataset names.
    """
    with safe_streams():
        return _main(list(sys.argv[1:] if arguments is None else arguments), readers)


def _main(words: list[str], readers: Readers) -> int:
    command = words.pop(0) if words and not words[0].startswith("-") else None
    if command is not None and command not in COMMANDS:
        print(
            f"error: unknown command {command!r}; choose one of {', '.join(COMMANDS)}, or none for the main job",
            file=sys.stderr,
        )
        return 2
    args = build_parser(command, readers).parse_args(words)
    if not first_process() and command not in SHARED_BY_PROCESSES:
        return 0
    try:
        with _quiet() if not first_process() else contextlib.nullcontext():
            code = args.function(args) or 0
            sys.stdout.flush()
            return code
    except ReidError as error:
        where = "" if first_process() else f" (process {os.environ['RANK']})"
        print(f"error{where}: {printable(str(error))}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `| head`: who reads has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        full = "; nothing that was whole is lost" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        where = f" ({printable(os.fsdecode(error.filename))})" if error.filename else ""
        print(f"error: {error.strerror or error}{where}{full}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as stop:
        told = f": {stop}" if str(stop) else ""
        print(f"\ninterrupted{told}; the same command goes on from there", file=sys.stderr)
        return 130


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Of torchrun's processes the first one tells."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
