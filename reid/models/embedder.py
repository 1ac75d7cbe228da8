"""Images -> embeddings: (N, D) float32 of unit length, image and mirror image summed, resumable.

features = Embedder("model.safetensors").embed(paths)
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from reid.core.files import atomic_file, identity
from reid.core.prefetch import prefetch
from reid.models.encoder import Encoder, TorchEncoder, open_encoder
from reid.models.model import ReidModel
from reid.training.data import BESIDE, THREADS, read_images


class Embedder:
    """A model made ready to embed image files.

    source: a model, the file of one (.safetensors, or exported: .onnx, .xml), or any `Encoder`.
    flip, device: of a model in PyTorch; flip sums the features of the image and of its mirror image.
    """

    def __init__(
        self,
        source: ReidModel | Encoder | str | Path,
        *,
        batch_size: int = 64,
        flip: bool = True,
        device: str | torch.device | None = None,
    ) -> None:
        if isinstance(source, str | Path):
            source = open_encoder(source, flip=flip, device=device)
        elif isinstance(source, ReidModel):
            source = TorchEncoder(source, flip=flip, device=device)
        self.encoder, self.batch_size = source, batch_size
        on_card = isinstance(source, TorchEncoder) and source.device.type != "cpu"
        self._readers = THREADS if on_card else BESIDE
        self._images, self._seconds = 0, 0.0

    @property
    def card(self) -> Mapping[str, Any]:
        return self.encoder.card

    @property
    def input_size(self) -> tuple[int, int]:
        return self.encoder.input_size

    @property
    def dimension(self) -> int:
        return self.encoder.dimension

    @property
    def fingerprint(self) -> str:
        """Of the model and of how it is used: embeddings compare only where this is equal."""
        return self.encoder.fingerprint

    @property
    def images_per_second(self) -> float | None:
        """Of `embed` so far, reading the files included; None before it embedded anything."""
        return self._images / self._seconds if self._images else None

    def embed_pixels(self, pixels: np.ndarray) -> np.ndarray:
        """(B, H, W, 3) RGB uint8 of the model's input size -> (B, D) float32 of unit length."""
        return self.encoder.encode(pixels)

    def embed(
        self, paths: Sequence[str | Path], *, save: Path | None = None, progress: bool = False, desc: str = "embedding"
    ) -> np.ndarray:
        """Image files -> (N, D) float32 of unit length, row i of paths[i].

        save: a .npy file for the result, which is a memory map of it. Where it is there already, of the same model and
        paths, it is only opened; until it is whole, rows are kept beside it, and an interrupted call goes on from them.
        Raises ReidError that names a file which is no whole image.
        """
        names = [str(path) for path in paths]
        if save is None:
            rows = np.empty((len(names), self.dimension), np.float32)
            done = 0
            for batch in self._batches(names, 0, progress, desc):
                rows[done : done + len(batch)] = batch
                done += len(batch)
            return rows
        return self._embed_into(save, names, progress, desc)

    def _batches(self, paths: list[str], start: int, progress: bool, desc: str) -> Iterator[np.ndarray]:
        size, step = self.input_size, self.batch_size
        starts = range(start, len(paths), step)
        began = time.monotonic()
        with tqdm(total=len(paths), initial=start, desc=desc, unit="img", disable=not progress) as bar:
            for pixels in prefetch(lambda i: read_images(paths[i : i + step], size, threads=self._readers), starts):
                yield self.embed_pixels(pixels)
                bar.update(len(pixels))
                self._images += len(pixels)
                self._seconds, began = self._seconds + time.monotonic() - began, time.monotonic()

    def _embed_into(self, save: Path, paths: list[str], progress: bool, desc: str) -> np.ndarray:
        """Rows go to the end of a journal whose first line says of what they are; whole, it becomes .npy."""
        of = {"fingerprint": self.fingerprint, "paths": identity(paths), "dimension": self.dimension}
        label = save.with_suffix(".json")
        if save.exists() and label.exists() and json.loads(label.read_text(encoding="utf-8")) == of:
            return np.load(save, mmap_mode="r", allow_pickle=False)
        save.parent.mkdir(parents=True, exist_ok=True)
        journal, header = save.with_suffix(".rows"), (json.dumps(of) + "\n").encode()
        done = 0
        if journal.exists():
            with journal.open("rb") as file:
                if file.readline() == header:  # a row cut by the interruption is dropped
                    done = (journal.stat().st_size - len(header)) // (4 * self.dimension)
        with journal.open("r+b" if done else "w+b") as file:
            if not done:
                file.write(header)
            file.truncate(len(header) + done * 4 * self.dimension)
            file.seek(0, os.SEEK_END)
            for batch in self._batches(paths, done, progress, desc):
                file.write(batch.tobytes())
                file.flush()
        label.unlink(missing_ok=True)  # a label never stands beside rows that it does not describe
        with atomic_file(save) as temporary, temporary.open("wb") as whole, journal.open("rb") as file:
            array = {"descr": "<f4", "fortran_order": False, "shape": (len(paths), self.dimension)}
            np.lib.format.write_array_header_1_0(whole, array)
            file.seek(len(header))
            shutil.copyfileobj(file, whole, 1 << 24)
        with atomic_file(label) as temporary:
            temporary.write_text(json.dumps(of), encoding="utf-8")
        journal.unlink()
        return np.load(save, mmap_mode="r", allow_pickle=False)
