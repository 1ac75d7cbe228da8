"""An image as a row of Milvus, and a filter as its condition."""

from __future__ import annotations

import collections
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from reid.core.values import Field, Pid
from reid.gallery.entry import Entry, Info, stored
from reid.gallery.filter import Filter
from reid.gallery.manifest import Manifest

COLUMNS = ["key", "path", "pid", "camid", "time", "added", "hash", "fields"]
_NO_CAMERA, _NO_TIME = -(2**62), -1e300  # unknown; columns that may be empty are of newer versions
_TIME_IS_KNOWN = f"time > {_NO_TIME / 2!r}"


def where(filter: Filter | None, next_key: int, camera: int | None = None) -> str:
    """The condition that `Filter.where` is in SQL, of images whose key is below that one; camera: is left out, too."""
    f = filter or Filter()
    parts = [f"key < {next_key}"]
    if f.camids:
        parts.append(f"camid in {[int(x) for x in f.camids]}")
    if left_out := [*map(int, f.exclude_camids), *([] if camera is None else [camera])]:
        parts.append(f"camid not in {left_out}")
    if f.pids:
        parts.append(f"pid in {listed([pid_text(pid) for pid in f.pids])}")
    if f.after is not None:
        parts.append(f"time >= {max(float(f.after), _NO_TIME / 2)!r}")
    if f.before is not None:
        parts.append(f"{_TIME_IS_KNOWN} and time < {min(float(f.before), -_NO_TIME)!r}")
    parts += [f"array_contains(tags, {quoted(tag(name, plain(value)))})" for name, value in f.fields.items()]
    for column, values in (
        ("key", None if f.keys is None else f"{[int(key) for key in f.keys]}"),
        ("path", None if f.paths is None else listed([path_text(stored(path)) for path in f.paths])),
    ):
        if values is not None:
            parts.append("key < 0" if values == "[]" else f"{column} in {values}")
    if f.exclude_keys:
        parts.append(f"key not in {[int(key) for key in f.exclude_keys]}")
    return " and ".join(parts)


def older(limit: float) -> str:
    """The condition on images whose time of capture, or where that is unknown of adding, lies before that time."""
    text = repr(min(max(limit, _NO_TIME / 2), -_NO_TIME))
    return f"(({_TIME_IS_KNOWN} and time < {text}) or (not ({_TIME_IS_KNOWN}) and added < {text}))"


def as_row(key: int, vector: np.ndarray, row: tuple[Any, ...], added: float) -> dict[str, Any]:
    path, pid, camid, at, digest, fields = row
    tags = [x for name, value in json.loads(fields).items() for x in (tag(name), tag(name, plain(value)))]
    return {
        "key": key,
        "vector": vector,
        "path": path_text(path),
        "pid": "" if pid is None else pid_text(pid),
        "camid": _NO_CAMERA if camid is None else camid,
        "time": _NO_TIME if at is None else at,
        "added": added,
        "hash": digest or "",
        "fields": fields,
        "tags": tags,
        "checksum": zlib.crc32(vector.tobytes()),
    }


def as_entry(row: Mapping[str, Any]) -> Entry:
    camid = None if row["camid"] == _NO_CAMERA else row["camid"]
    at = None if row["time"] < _NO_TIME / 2 else row["time"]
    pid = json.loads(row["pid"]) if row["pid"] else None
    return Entry(
        row["key"], path_of(row["path"]), pid, camid, at, row["added"], row["hash"] or None, json.loads(row["fields"])
    )


def path_text(path: str | bytes) -> str:
    """A path as Milvus holds it, which is UTF-8: other bytes in hexadecimal."""
    if isinstance(path, str) and not path.startswith("bytes:"):
        return path
    return f"bytes:{os.fsencode(path).hex()}"


def path_of(text: str) -> str:
    return os.fsdecode(bytes.fromhex(text.removeprefix("bytes:"))) if text.startswith("bytes:") else text


def pid_text(pid: Pid) -> str:
    """7 and "7" are two people."""
    return json.dumps(pid if isinstance(pid, str) else int(pid))


def plain(value: Field) -> str:
    return value if isinstance(value, str) else str(value)


def tag(*parts: str) -> str:
    """What an image with a field has: (name) and (name, value)."""
    return json.dumps(parts)


def group_of(hit: tuple[int, float, Mapping[str, Any]], group_by: str) -> object:
    """Of an image: text, or where it is in none its key."""
    key, _, columns = hit
    if group_by == "pid":
        return columns["pid"] if columns["pid"] not in ("", "-1", "0") else key
    fields = json.loads(columns["fields"])
    return plain(fields[group_by]) if group_by in fields else key


def listed(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(quoted, texts))}]"


def quoted(text: str) -> str:
    """A text in a condition: nothing in it ends it."""
    for sign, escaped in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\r", "\\r"), ("\t", "\\t")):
        text = text.replace(sign, escaped)
    return f'"{text}"'


def info_of(manifest: Manifest, entries: Sequence[Entry], size: int | None) -> Info:
    """What a gallery of those images holds. size: bytes of its files, where this machine can see them."""
    cameras = collections.Counter(entry.camid for entry in entries if entry.camid is not None)
    times = [entry.time for entry in entries if entry.time is not None]
    added = [entry.added for entry in entries]
    return Info(
        manifest.format_version,
        manifest.fingerprint,
        manifest.input_size,
        manifest.dimension,
        manifest.metric,
        manifest.model is not None,
        len(entries),
        len({entry.pid for entry in entries} - {None, -1, 0}),
        dict(sorted(cameras.items())),
        (min(times), max(times)) if times else None,
        (min(added), max(added)) if added else None,
        None,
        None,
        size,
    )
