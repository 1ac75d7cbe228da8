"""Runs in Rockchip's environment (`make rknn-env`), by path, never imported: ONNX -> .rknn, and the simulator's values.

    .venv-rknn/bin/python reid/export/rknn_compile.py JOB.json

The job: "onnx", "platform", "precision" (fp16 or int8), "mean" and "std" of pixels in 0 .. 255, "calibration" (.npy
files of NCHW pixels, for int8), "rknn" (the file to write), and, for a look at the simulator, "pixels" (an .npy of RGB
uint8 (B, H, W, 3)) and "outputs" (the .npy to write). The compiler's table of operators goes to its output.
"""

import json
import sys
from pathlib import Path

import numpy as np


def main(path: str) -> None:
    from rknn.api import RKNN  # in that environment alone

    job = json.loads(Path(path).read_text())
    rknn = RKNN(verbose=True)
    check(rknn.config(target_platform=job["platform"], mean_values=[job["mean"]], std_values=[job["std"]]))
    check(rknn.load_onnx(model=job["onnx"]))
    listed = None
    if job["precision"] == "int8":
        listed = str(Path(path).with_suffix(".txt"))
        Path(listed).write_text("".join(f"{file}\n" for file in job["calibration"]))
    check(rknn.build(do_quantization=job["precision"] == "int8", dataset=listed))
    check(rknn.export_rknn(job["rknn"]))
    if "pixels" in job:
        check(rknn.init_runtime())
        rows = [rknn.inference(inputs=[image[None]], data_format=["nhwc"])[0] for image in np.load(job["pixels"])]
        np.save(job["outputs"], np.concatenate(rows))
    rknn.release()


def check(status: int) -> None:
    if status != 0:
        sys.exit(f"rknn-toolkit2 answered {status}")


if __name__ == "__main__":
    main(sys.argv[1])
