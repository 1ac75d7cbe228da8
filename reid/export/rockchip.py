"""Rockchip's compiler, as a subprocess in an environment of its own (`make rknn-env`), and its table of operators.

with compiled("model.onnx", "model.rknn", "rk3588", "fp16") as made:     # the file is written
    made.cycles                                          # estimated, by the compiler
    made.simulate(pixels)                                # RGB uint8 (B, H, W, 3) -> (B, D) float32, on its simulator
"""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.core.types import ReidError

ROOT = Path(__file__).resolve().parents[2]
PLATFORMS = ("rk3588", "rk3566")
COMPILE = Path(__file__).with_name("rknn_compile.py")
ROW = re.compile(
    r"^D RKNN: \[[\d:.]+\]\s+\d+\s+(?P<type>\S+)\s+(?P<dtype>\S+)\s+(?P<target>CPU|NPU|GPU)\s.*?"
    r"(?P<ddr>\d+)/(?P<npu>\d+)/(?P<total>\d+)\s+(?P<kilobytes>\d+)\s+(?P<name>\S+)\s*$"
)


@dataclass(frozen=True)
class Operator:
    """A row of the compiler's table."""

    type: str
    name: str
    target: str  # NPU or CPU
    memory_cycles: int
    cycles: int  # estimated; 0 for concatenation, split and pooling, which the compiler does not count
    kilobytes: int  # read and written


@dataclass(frozen=True)
class Compiled:
    operators: list[Operator]
    simulate: Callable[[np.ndarray], np.ndarray]  # RGB uint8 (B, H, W, 3) -> (B, D) float32

    @property
    def cycles(self) -> int:
        """The compiler's estimate: the sum of its rows. A lower bound, see `Operator.cycles`."""
        return sum(operator.cycles for operator in self.operators)

    @property
    def cycles_with_copies(self) -> float:
        """The same, the uncounted operators of the NPU charged for the memory they move, at the median rate of this
        file's counted ones. Our estimate, not the compiler's."""
        counted = [o.memory_cycles / o.kilobytes for o in self.operators if o.cycles and o.kilobytes]
        rate = float(np.median(counted)) if counted else 0.0
        return self.cycles + rate * sum(o.kilobytes for o in self.operators if not o.cycles and o.target == "NPU")


def compiler() -> Path:
    """The Python of the environment. ReidError where there is none."""
    python = ROOT / ".venv-rknn" / "bin" / "python"
    if not python.is_file():
        raise ReidError(
            f"rknn files are made by Rockchip's compiler, in an environment of its own that is not there "
            f"({ROOT.name}/.venv-rknn): make rknn-env"
        )
    return python


def parse_table(log: str) -> list[Operator]:
    """The rows of the last table of operators in a log. ReidError where there is none."""
    lines = log.splitlines()
    heads = [i for i, line in enumerate(lines) if "Network Layer Information Table" in line]
    rows = [match for line in lines[heads[-1] :] if (match := ROW.match(line))] if heads else []
    if not rows:
        raise ReidError(
            "the compiler printed no table of operators: its version differs from the Makefile's, or it "
            "refused the model"
        )
    return [
        Operator(m["type"], m["name"], m["target"], int(m["ddr"]), int(m["total"]), int(m["kilobytes"])) for m in rows
    ]


@contextlib.contextmanager
def compiled(
    onnx: str | Path,
    rknn: str | Path,
    platform: str,
    precision: str,
    *,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (255.0, 255.0, 255.0),
    calibration: np.ndarray | None = None,
    algorithm: str = "mmse",
) -> Iterator[Compiled]:
    """Writes `rknn`, and keeps the compiler for its simulator until the block ends.

    mean, std: of pixels in 0 .. 255, taken into the file. calibration: RGB uint8 (N, H, W, 3), whose values int8's
    ranges are chosen by: the compiler's "normal" takes all of them, "mmse" what leaves the least squared error.
    ReidError where the compiler refuses, in its words.
    """
    python = compiler()
    crops = calibration if precision == "int8" and calibration is not None else ()
    if precision == "int8" and not len(crops):
        raise ReidError("int8 takes its ranges from training crops: none were given")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job: dict[str, Any] = {
            "onnx": str(Path(onnx).resolve()),
            "rknn": str(Path(rknn).resolve()),
            "platform": platform,
            "precision": precision,
            "algorithm": algorithm,
            "mean": mean,
            "std": std,
        }
        job["calibration"] = [str(folder / f"{i}.npy") for i in range(len(crops))]
        for file, image in zip(job["calibration"], crops):
            np.save(file, np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        (folder / "job.json").write_text(json.dumps(job))
        with (folder / "log.txt").open("w") as log:
            process = subprocess.Popen(  # -P: our onnx.py beside the script is not the library
                [str(python), "-P", str(COMPILE), str(folder / "job.json")],
                cwd=folder,
                bufsize=0,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
            )
        said, asked = process.stdout, process.stdin
        assert said is not None and asked is not None

        def heard() -> str:
            return (folder / "log.txt").read_text(errors="replace")

        def wait_for(word: str, task: str) -> None:
            if said.readline().strip() != word.encode():
                process.wait()
                lines = heard().splitlines() or [""]
                errors = [line for line in lines if "Error" in line] or lines
                raise ReidError(f"rknn-toolkit2 could not {task} for {platform}: {errors[-1].strip()[:300]}")

        def simulate(pixels: np.ndarray) -> np.ndarray:
            np.save(folder / "pixels.npy", pixels)
            with contextlib.suppress(BrokenPipeError):  # it has ended, and the log says why
                asked.write(b"\n")
            wait_for("answered", "simulate")
            outputs: np.ndarray = np.load(folder / "outputs.npy", allow_pickle=False)
            return outputs.astype(np.float32)

        with process:  # which ends when its input does
            try:
                wait_for("built", "compile")
                yield Compiled(parse_table(heard()), simulate)
            except BaseException:
                process.kill()
                raise
