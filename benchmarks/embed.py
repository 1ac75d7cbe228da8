"""Embedding on a CPU: MGN on each backbone through PyTorch, onnxruntime and OpenVINO, beside torchreid's extractor.

    OMP_NUM_THREADS=2 python benchmarks/embed.py --folder runs/embed
    OMP_NUM_THREADS=2 python benchmarks/embed.py --folder runs/embed --only scgnet_s mobilenet_v2 --rounds 1   # quick

Random weights and drawn pixels, 384x128, without the mirror image. Everything runs in turn for --rounds rounds of
--seconds each; a figure is the best round's, since other work on the machine only ever slows one down. Files are JPEG,
decoded and resized while the network runs, by `Embedder`; the extractor takes them as its users give them to it. End to
end is from files to a new gallery. --folder keeps the exported files for the next call.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from reid.training.config import as_dict

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from reid.core.images import read_images
from reid.core.tables import aligned_table
from reid.export import onnx as onnx_format
from reid.export import openvino
from reid.export.graph import Deployed
from reid.export.proof import card_of
from reid.export.request import Request
from reid.gallery import Gallery
from reid.models.card import make_card
from reid.models.embedder import Embedder
from reid.models.encoder import TorchEncoder
from reid.models.exported import FORMATS, Exported, load, module_of
from reid.models.model import ReidModel, multiply_adds
from reid.training import config as recipes

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BACKBONES = ("scgnet_s", "scgnet_m", "scgnet_l", "mobilenet_v2", "shufflenet_v2_x1_5", "resnet50")
PEERS = ("osnet_x1_0", "osnet_x0_25")
EXPORTS = {
    "onnxruntime fp32": "onnx",
    "onnxruntime int8": "onnx",
    "OpenVINO fp32": "openvino",
    "OpenVINO int8": "openvino",
}
SIZE = (384, 128)
DECODING = "decoding and resizing alone"
Encode = Callable[[np.ndarray], object]


def make(backbone: str) -> ReidModel:
    torch.manual_seed(0)
    recipe = recipes.load(CONFIGS / "market1501.yaml", [f"backbone={backbone}", 'pretrained=""'])
    return ReidModel(make_card(as_dict(recipe), 0)).eval()


def exported(model: ReidModel, folder: Path, pixels: np.ndarray) -> dict[str, Path]:
    """Runtime and precision -> file, made where it is not there yet; all from one graph."""
    name = model.card["architecture"]["backbone"]
    files = {key: folder / f"{name}-{key.split()[1]}{FORMATS[format].suffix}" for key, format in EXPORTS.items()}
    plain = files["onnxruntime fp32"]

    def save(key: str, build: Callable[[], Any]) -> None:
        if not files[key].exists():
            request = Request(EXPORTS[key], key.split()[1])
            module_of(request.format).save(build(), files[key], json.dumps(card_of(model, request)))

    def read() -> Any:
        import onnx

        return onnx.load(plain)

    save("onnxruntime fp32", lambda: onnx_format.to_onnx(Deployed(model), None))
    save("onnxruntime int8", lambda: onnx_format.quantise(read(), pixels[:16], Request("onnx", "int8")))
    save("OpenVINO fp32", lambda: openvino.from_onnx(read()))
    save("OpenVINO int8", lambda: openvino.quantise(openvino.from_onnx(read()), pixels[:16], 8))
    return files


def runtimes(model: ReidModel, folder: Path, pixels: np.ndarray) -> dict[str, Any]:
    """Name of a runtime -> encoder."""
    encoders: dict[str, Any] = {"PyTorch fp32": TorchEncoder(model, flip=False, device="cpu")}
    encoders["PyTorch bf16"] = Bfloat16(encoders["PyTorch fp32"])
    for name, file in exported(model, folder, pixels).items():
        encoders[name] = load(file)
        if name == "OpenVINO fp32":
            encoders["OpenVINO bf16"] = Exported(file, openvino.load(file, "bf16"))
    return encoders


class Bfloat16:
    def __init__(self, encoder: TorchEncoder) -> None:
        self.encoder = encoder

    def encode(self, pixels: np.ndarray) -> np.ndarray:
        with torch.autocast("cpu", torch.bfloat16):
            return self.encoder.encode(pixels)


def extractor(name: str, folder: Path) -> Any:
    """torchreid's FeatureExtractor; it would download weights where no file of them is given."""
    from reid.models.torchreid import _torchreid

    weights = folder / f"{name}.pth"
    network = getattr(_torchreid("models.osnet"), name)(num_classes=1, pretrained=False)
    torch.save(network.state_dict(), weights)
    kind = _torchreid("utils.feature_extractor").FeatureExtractor
    return kind(name, str(weights), image_size=SIZE, device="cpu", verbose=False)


def images_per_second(run: Callable[[], object], images: int, seconds: float) -> float:
    """Of repeated runs, each of that many images."""
    count, began = 0, time.perf_counter()
    while not count or time.perf_counter() - began < seconds:
        run()
        count += images
    return count / (time.perf_counter() - began)


def draw_files(folder: Path, count: int) -> list[str]:
    """JPEG crops of 256x128, smooth enough to compress as photographs do."""
    rng, files = np.random.default_rng(1), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (32, 16, 3), np.uint8))
        files.append(str(folder / f"{i:04}.jpg"))
        small.resize((128, 256), Image.Resampling.BICUBIC).save(files[-1], quality=90)
    return files


def end_to_end(embedder: Embedder, files: list[str]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        gallery = Gallery.create(
            Path(folder) / "g",
            dimension=embedder.dimension,
            fingerprint=embedder.fingerprint,
            input_size=embedder.input_size,
        )
        gallery.add(embedder.embed(files), files, [None] * len(files), [None] * len(files))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="where exported files are kept")
    parser.add_argument("--only", nargs="+", choices=BACKBONES, default=BACKBONES, metavar="BACKBONE")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=0.5, help="of one contender in one round, at least one batch")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--files", type=int, default=512, help="JPEG crops")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    args.folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(0).integers(0, 256, (32, *SIZE, 3), np.uint8)
    files = draw_files(args.folder, args.files)
    contenders: dict[tuple[str, str, str], tuple[Callable[[], object], int]] = {}  # (network, runtime, task) -> run
    work: dict[str, int] = {}
    for backbone in args.only:
        model = make(backbone)
        work[backbone] = multiply_adds(model)
        for runtime, encoder in runtimes(model, args.folder, pixels).items():
            for size in (1, 32):
                task = f"batch {size}"
                contenders[backbone, runtime, task] = partial(encoder.encode, pixels[:size]), size
            if runtime == "OpenVINO int8" or (backbone == args.only[0] and "fp32" in runtime):
                embedder = Embedder(encoder, batch_size=32)
                contenders[backbone, runtime, "files"] = partial(embedder.embed, files), len(files)
            if runtime == "OpenVINO int8" and backbone == args.only[0]:
                contenders[backbone, runtime, "end to end"] = partial(end_to_end, embedder, files), len(files)
    contenders[DECODING, "one thread", "files"] = partial(read_images, files, SIZE, threads=1), len(files)
    normalised = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    for name in PEERS:
        extract = extractor(name, args.folder)
        for size in (1, 32):
            contenders[name, "torchreid", f"batch {size}"] = partial(extract, normalised[:size]), size
        batches = [files[i : i + 32] for i in range(0, len(files), 32)]
        for task in ("files", "end to end"):  # it has no gallery: the embeddings alone
            contenders[name, "torchreid", task] = partial(lambda e, b: [e(x) for x in b], extract, batches), len(files)
    best = dict.fromkeys(contenders, 0.0)
    for _ in range(args.rounds + 1):  # the first one warms up
        first = not any(best.values())
        for key, (run, images) in contenders.items():
            rate = images_per_second(run, images, 0 if first else args.seconds)
            best[key] = max(best[key], rate)
    show(best, work, args.threads)


def show(best: dict[tuple[str, str, str], float], work: dict[str, int], threads: int) -> None:
    """The table of images a second, and the aims."""
    tasks = ("batch 1", "batch 32", "files", "end to end")
    rows = []
    for network, runtime in dict.fromkeys(key[:2] for key in best):
        rates = [best.get((network, runtime, task)) for task in tasks]
        done = f"{work[network] * (rates[1] or 0) / 1e9:.1f}" if network in work else ""
        rows.append([f"{network}, {runtime}", *("" if rate is None else f"{rate:.1f}" for rate in rates), done])
    print(f"images a second, {SIZE[0]}x{SIZE[1]}, {threads} threads; G multiply-adds a second at batch 32")
    print(aligned_table(("", *tasks, "G/s"), rows))

    def rate(network: str, runtime: str, task: str = "batch 32") -> float:
        return best.get((network, runtime, task), float("nan"))

    def aim(name: str, value: float, goal: float) -> None:
        if value == value:
            print(f"{name}: {value:.2f}, aim {goal}: {'met' if value >= goal else 'missed'}")

    exact = ("PyTorch fp32", "onnxruntime fp32", "OpenVINO fp32")
    fast = max(exact, key=lambda runtime: rate("scgnet_l", runtime))
    aim(f"SCGNet-L over ResNet-50, {fast}", rate("scgnet_l", fast) / rate("resnet50", fast), 4)
    if {"scgnet_l", "mobilenet_v2"} <= work.keys():
        ratio = work["scgnet_l"] * rate("scgnet_l", fast) / (work["mobilenet_v2"] * rate("mobilenet_v2", fast))
        aim(f"multiply-adds a second, SCGNet-L over MobileNetV2, {fast}", ratio, 1.5)
    for network in work:
        int8, fp32 = (
            max(rate(network, f"{name} {kind}") for name in ("onnxruntime", "OpenVINO")) for kind in ("int8", "fp32")
        )
        aim(f"int8 over fp32, best runtimes, {network}", int8 / fp32, 1.8)
    for network in work:
        whole = rate(network, "OpenVINO int8", "files")
        pixels = rate(network, "OpenVINO int8")
        bound = 1 / (1 + pixels / (threads * rate(DECODING, "one thread", "files")))
        told = f" ({bound:.2f} is left by decoding alone)"
        aim(f"from files over from pixels, int8, {network}{told}", whole / pixels, 0.85)
    whole = rate("scgnet_s", "OpenVINO int8", "end to end")
    aim("end to end over torchreid osnet_x0_25", whole / rate("osnet_x0_25", "torchreid", "end to end"), 5)


if __name__ == "__main__":
    main()
