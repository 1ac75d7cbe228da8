"""The card of an ONNX file with a digest of all the rest of it, which is verified where the file is opened."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from typing import Any

from reid.core.types import ReidError

KEY = "reid_model"  # among the file's metadata: {"sha256": of card and body, "card": text}
BEFORE = "reid_card"  # version 0.1's: the card's text alone, which nothing holds against the weights
_METADATA = 14  # the field of ModelProto, a message of key (1) and value (2)


def digest_of(data: bytes, card: str) -> str:
    """sha256 of an ONNX file's bytes but for the metadata under KEY, and of the card."""
    sha = hashlib.sha256(card.encode())
    key = b"\x0a" + bytes([len(KEY)]) + KEY.encode()
    for field, start, value, end in fields(data):
        if field != _METADATA or data[value : value + len(key)] != key:
            sha.update(data[start:end])
    return sha.hexdigest()


def sealed(data: bytes, card: str) -> str:
    """What stands under KEY of a file with these bytes."""
    return json.dumps({"sha256": digest_of(data, card), "card": card})


def opened(data: bytes, metadata: dict[str, str], path: Any) -> str | None:
    """The text of a file's card, None where it has none. ReidError where the file is not as it was written."""
    if KEY not in metadata:
        return metadata.get(BEFORE)
    try:
        held = json.loads(metadata[KEY])
        whole = held["sha256"] == digest_of(data, held["card"])
    except (ValueError, KeyError, TypeError, AttributeError):
        whole = False
    if not whole:
        raise ReidError(f"{path} is damaged: its contents do not give the checksum that it carries")
    return str(held["card"])


def fields(data: bytes) -> Iterator[tuple[int, int, int, int]]:
    """Fields of a protobuf message: number, where it starts, where its value does, where it ends. ValueError where it
    is cut off or malformed."""
    position = 0
    while position < len(data):
        start = position
        tag, position = _varint(data, position)
        value = position
        match tag & 7:
            case 0:
                _, position = _varint(data, position)
            case 1:
                position += 8
            case 2:
                length, value = _varint(data, position)
                position = value + length
            case 5:
                position += 4
            case kind:
                raise ValueError(f"a field of the unknown kind {kind}")
        if position > len(data):
            raise ValueError("cut off")
        yield tag >> 3, start, value, position


def _varint(data: bytes, position: int) -> tuple[int, int]:
    number = 0
    for shift in range(0, 70, 7):
        if position >= len(data):
            raise ValueError("cut off")
        byte = data[position]
        position += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, position
    raise ValueError("a number of over 64 bits")
