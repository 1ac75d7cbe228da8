"""Runs in Rockchip's environment (`make rknn-env`), by path, never imported: ONNX -> .rknn, and the simulator's values.

    .venv-rknn/bin/python reid/export/rknn_compile.py JOB.json

The job: "onnx", "platform", "precision" (fp16 or int8), "mean" and "std" of pixels in 0 .. 255, "calibration" (.npy
files of NCHW pixels, for int8) with the "algorithm" that ranges are chosen by, and "rknn" (the file to write). The
compiler's table of operators goes to the standard error. "built" on the standard output says that the file is whole.
From then on a line on the standard input asks the simulator for pixels.npy beside the job, RGB uint8 (B, H, W, 3);
"answered" says that outputs.npy, a row an image, is there. It ends with its input.
"""

import ctypes
import json
import os
import sys
from pathlib import Path

import numpy as np


def main(path: str) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # the compiler says all that it says on the standard output
    from rknn.api import RKNN  # in that environment alone

    job, folder = json.loads(Path(path).read_text()), Path(path).parent
    rknn = RKNN(verbose=True)
    check(
        rknn.config(
            target_platform=job["platform"],
            mean_values=[job["mean"]],
            std_values=[job["std"]],
            quantized_algorithm=job["algorithm"],
        )
    )
    check(rknn.load_onnx(model=job["onnx"]))
    listed = None
    if job["precision"] == "int8":
        listed = str(folder / "calibration.txt")
        Path(listed).write_text("".join(f"{file}\n" for file in job["calibration"]))
    check(rknn.build(do_quantization=job["precision"] == "int8", dataset=listed))
    check(rknn.export_rknn(job["rknn"]))
    sys.stdout.flush()
    ctypes.CDLL(None).fflush(None)
    print("built", file=answers, flush=True)
    for count, _ in enumerate(sys.stdin):
        if count == 0:
            check(rknn.init_runtime())
        images = np.load(folder / "pixels.npy")
        rows = [rknn.inference(inputs=[image[None]], data_format=["nhwc"])[0].reshape(-1) for image in images]
        np.save(folder / "outputs.npy", np.stack(rows))
        print("answered", file=answers, flush=True)


def check(status: int) -> None:
    if status != 0:
        sys.exit(f"rknn-toolkit2 answered {status}")


if __name__ == "__main__":
    main(sys.argv[1])
