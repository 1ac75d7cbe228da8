"""Rockchip's compiler, as a subprocess in an environment of its own (`make rknn-env`), and its table of operators.

made = compile_onnx("model.onnx", "model.rknn", "rk3588", "fp16")
sum(operator.cycles for operator in made.operators)      # estimated cycles, by the compiler
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reid.types import ReidError

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
    outputs: np.ndarray | None  # the simulator's, one row an image
    log: str

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
        raise ReidError(f"rknn files are made by Rockchip's compiler, in an environment of its own that is not there "
                        f"({ROOT.name}/.venv-rknn): make rknn-env")  # fmt: skip
    return python


def parse_table(log: str) -> list[Operator]:
    """The rows of the last table of operators in a log. ReidError where there is none."""
    lines = log.splitlines()
    heads = [i for i, line in enumerate(lines) if "Network Layer Information Table" in line]
    rows = [match for line in lines[heads[-1] :] if (match := ROW.match(line))] if heads else []
    if not rows:
        raise ReidError("the compiler printed no table of operators: its version differs from the Makefile's, or it "
                        "refused the model")  # fmt: skip
    return [
        Operator(m["type"], m["name"], m["target"], int(m["ddr"]), int(m["total"]), int(m["kilobytes"])) for m in rows
    ]


def compile_onnx(
    onnx: str | Path,
    rknn: str | Path,
    platform: str,
    precision: str,
    *,
    mean: tuple[float, ...] = (0.0, 0.0, 0.0),
    std: tuple[float, ...] = (255.0, 255.0, 255.0),
    calibration: np.ndarray | None = None,
    pixels: np.ndarray | None = None,
) -> Compiled:
    """Writes `rknn`. mean, std: of pixels in 0 .. 255, taken into the file. calibration, pixels: RGB uint8
    (N, H, W, 3), int8's ranges and what the simulator is asked. ReidError where the compiler refuses, in its words."""
    python = compiler()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        job: dict[str, Any] = {"onnx": str(Path(onnx).resolve()), "rknn": str(Path(rknn).resolve()),
               "platform": platform, "precision": precision, "mean": mean, "std": std}  # fmt: skip
        if precision == "int8":
            if calibration is None or not len(calibration):
                raise ReidError("int8 takes its ranges from training crops: none were given")
            job["calibration"] = [str(folder / f"{i}.npy") for i in range(len(calibration))]
            for file, image in zip(job["calibration"], calibration):
                np.save(file, np.ascontiguousarray(image.transpose(2, 0, 1)[None]))
        if pixels is not None:
            job |= {"pixels": str(folder / "pixels.npy"), "outputs": str(folder / "outputs.npy")}
            np.save(job["pixels"], pixels)
        (folder / "job.json").write_text(json.dumps(job))
        done = subprocess.run(  # -P: our onnx.py beside the script is not the library
            [str(python), "-P", str(COMPILE), "job.json"], cwd=folder, text=True, errors="replace",
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
        if done.returncode:
            said = [line for line in done.stdout.splitlines() if "Error" in line] or done.stdout.splitlines() or [""]
            raise ReidError(f"rknn-toolkit2 could not compile for {platform}: {said[-1].strip()[:300]}")
        outputs = np.load(folder / "outputs.npy") if pixels is not None else None
    return Compiled(parse_table(done.stdout), outputs, done.stdout)
