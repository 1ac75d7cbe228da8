"""Tensors and text in one file that is never unpickled: safetensors, with a checksum that is verified on reading."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from reid.core.files import atomic_file
from reid.core.types import ReidError
from reid.models.card import without_places


def digest(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and values, in the order of the names."""
    sha = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        sha.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        sha.update(tensor.flatten().view(torch.uint8).numpy().data)
    return sha.hexdigest()


def file_digest(path: str | Path) -> str:
    """sha256 of a file's bytes. ReidError where there is none."""
    try:
        with Path(path).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (FileNotFoundError, IsADirectoryError):
        raise ReidError(f"no file at {path}") from None


def identity(path: str | Path) -> str:
    """What tells weights apart: of a model of this program its fingerprint, which scores and a calibration in its card
    do not change; of any other file the sha256 of its bytes. ReidError where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
        fingerprint = json.loads(header["text"])["fingerprint"] if header.get("kind") == "model" else None
    except (OSError, SafetensorError, ValueError, KeyError, TypeError):
        fingerprint = None
    return fingerprint if isinstance(fingerprint, str) else file_digest(path)


def write(path: str | Path, kind: str, tensors: Mapping[str, Tensor], text: Mapping[str, Any]) -> None:
    """Writes a file of `kind` ("model", "checkpoint"): whole or not at all. `text` is anything JSON takes.

    It is written without the places of files, see `reid.models.card.without_places`.
    """
    whole = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    header = {"kind": kind, "text": json.dumps(without_places(text), ensure_ascii=False)}
    header["sha256"] = _checksum(header, whole)
    with atomic_file(path) as temporary:
        try:
            save_file(whole, temporary, metadata=header)
        except SafetensorError as error:  # its own name for a full disk
            raise ReidError(f"{path} cannot be written ({error}); what stood there is as it was") from None


def kind(path: str | Path) -> str | None:
    """What kind of file of this program that is; None for any other file, and where there is none."""
    try:
        with safe_open(path, framework="pt") as file:
            return (file.metadata() or {}).get("kind")
    except (OSError, SafetensorError):
        return None


def read(path: str | Path, kind: str) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """(tensors on the CPU, text) of a file of `kind`. ReidError where it is missing, damaged or something else."""
    path = Path(path)
    if not path.is_file():
        raise ReidError(f"no {kind} at {path}")
    try:
        with safe_open(path, framework="pt") as file:
            header = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
        text = json.loads(header.get("text", "null"))
    except Exception as error:  # safetensors and json each have their own
        with path.open("rb") as file:  # only now: the length that opens a safetensors file may look like a pickle's
            start = file.read(2)
        if start == b"PK" or start[:1] == b"\x80":
            raise ReidError(
                f"{path} is a PyTorch or pickle file: a {kind} is a .safetensors file of this program "
                "(pickles are never loaded; backbone weights go in with --set pretrained=FILE)"
            ) from None
        raise ReidError(f"{path} is damaged or no safetensors file ({' '.join(str(error).split())[:100]})") from None
    if header.get("kind") != kind or not isinstance(text, dict):
        raise ReidError(
            f"{path} carries no card, so it is no {kind} of this program; "
            "backbone weights go in with --set pretrained=FILE"
        )
    if _checksum(header, tensors) != header.get("sha256"):
        raise ReidError(f"{path} is damaged: its contents do not give the checksum that it carries")
    return tensors, text


def _checksum(header: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    """Of tensors, text and kind: a damaged card would change what the weights mean."""
    return hashlib.sha256("\n".join((header["kind"], header["text"], digest(tensors))).encode()).hexdigest()
