"""Images -> embeddings: (N, D) float32 of unit length, image and mirror image summed, resumable.

features = Embedder("model.safetensors").embed(paths)
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from tqdm import tqdm

from reid.core.files import atomic_file, identity, locked, write_json
from reid.core.images import BESIDE, THREADS, read_images
from reid.core.prefetch import prefetch
from reid.core.types import ReidError
from reid.models.encoder import Encoder, TorchEncoder, open_encoder
from reid.models.model import ReidModel

_BLOCK = 4096  # rows of embeddings at a time


class Embedder:
    """A model made ready to embed image files.

    source: a model, the file of one (.safetensors, or exported: .onnx, .xml), or any `Encoder`.
    flip, device: of a model in PyTorch; flip sums the features of the image and of its mirror image (default: as the
    model's card says, which is yes but for networks of other programs).
    """

    def __init__(
        self,
        source: ReidModel | Encoder | str | Path,
        *,
        batch_size: int = 64,
        flip: bool | None = None,
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
        """Rows go to the end of a journal whose first line says of what they are, each with its checksum; whole, it
        becomes .npy. The journal is this process's alone meanwhile."""
        of = {"fingerprint": self.fingerprint, "paths": identity(paths), "dimension": self.dimension}
        known = _whole_array(save, of, len(paths))
        if known is not None:
            return known
        save.parent.mkdir(parents=True, exist_ok=True)
        record = np.dtype([("row", "<f4", (self.dimension,)), ("checksum", "<u4")])
        header = (json.dumps(of) + "\n").encode()
        journal = save.with_suffix(".rows")
        with contextlib.ExitStack() as held:
            try:
                descriptor = held.enter_context(locked(journal))
            except BlockingIOError:
                raise ReidError(
                    f"another process embeds the same images into {save.parent}: wait for it, then run it again"
                ) from None
            known = _whole_array(save, of, len(paths))  # another process may have made it meanwhile
            if known is not None:
                journal.unlink()
                return known
            file = held.enter_context(os.fdopen(os.dup(descriptor), "r+b"))
            done = _rows_in(file, header, record)
            if not done:
                file.truncate(0)
                file.seek(0)
                file.write(header)
            file.truncate(len(header) + done * record.itemsize)
            file.seek(0, os.SEEK_END)
            for batch in self._batches(paths, done, progress, desc):
                rows = np.empty(len(batch), record)
                rows["row"], rows["checksum"] = batch, _checksums(batch)
                file.write(rows.tobytes())
                file.flush()
            whole = self._finish(save, of, file, len(header), len(paths), record)
            journal.unlink()
        return whole

    def _finish(
        self, save: Path, of: dict[str, Any], journal: BinaryIO, start: int, count: int, record: np.dtype[Any]
    ) -> np.ndarray:
        """The .npy file of a whole journal, each of whose rows is held against its checksum, and the label beside."""
        label = save.with_suffix(".json")
        label.unlink(missing_ok=True)  # a label never stands beside rows that it does not describe
        journal.seek(start)
        total = 0
        with atomic_file(save) as temporary, temporary.open("wb") as file:
            file.write(_header(count, self.dimension))
            for first in range(0, count, _BLOCK):
                block = np.frombuffer(journal.read(min(_BLOCK, count - first) * record.itemsize), record)
                rows = np.ascontiguousarray(block["row"])
                if len(block) != min(_BLOCK, count - first) or (_checksums(rows) != block["checksum"]).any():
                    raise ReidError(f"{save.with_suffix('.rows')} is not what was written: run it again")
                file.write(rows.tobytes())
                total = zlib.crc32(rows.tobytes(), total)
        write_json(label, of | {"checksum": total})
        mapped: np.ndarray = np.load(save, mmap_mode="r", allow_pickle=False)
        return mapped


def _checksums(rows: np.ndarray) -> np.ndarray:
    """(N,) CRC-32 of the bytes of each row of (N, D) float32."""
    return np.array([zlib.crc32(row.tobytes()) for row in rows], "<u4")


def _rows_in(journal: BinaryIO, header: bytes, record: np.dtype[Any]) -> int:
    """How many rows of a journal with that header are whole, from the first on."""
    journal.seek(0)
    if journal.readline() != header:
        return 0
    done = 0
    while len(data := journal.read(_BLOCK * record.itemsize)) >= record.itemsize:
        block = np.frombuffer(data[: len(data) // record.itemsize * record.itemsize], record)
        wrong = np.flatnonzero(_checksums(np.ascontiguousarray(block["row"])) != block["checksum"])
        if len(wrong):
            return done + int(wrong[0])
        done += len(block)
    return done


def _header(count: int, dimension: int) -> bytes:
    """How a .npy file of (count, dimension) float32 begins."""
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (count, dimension)})
    return header.getvalue()


def _whole_array(save: Path, of: dict[str, Any], count: int) -> np.ndarray | None:
    """What was embedded before, mapped; None where it is absent, of something else, or not what was written."""
    header = _header(count, of["dimension"])
    try:
        label = json.loads(save.with_suffix(".json").read_text(encoding="utf-8"))
        if not isinstance(label, dict) or {key: label.get(key) for key in of} != of:
            return None
        with save.open("rb") as file:  # compared, not parsed: numpy's parser raises whatever damage makes of it
            if file.read(len(header)) != header:
                return None
        if save.stat().st_size != len(header) + 4 * count * of["dimension"]:
            return None
    except (OSError, ValueError):
        return None
    total = 0
    found: np.ndarray = np.load(save, mmap_mode="r", allow_pickle=False)
    for start in range(0, len(found), _BLOCK):
        total = zlib.crc32(np.ascontiguousarray(found[start : start + _BLOCK]).tobytes(), total)
    return found if total == label.get("checksum") else None
