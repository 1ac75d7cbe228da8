"""Every change of a gallery in Milvus, which has no transactions: what is written is seen when the state says so."""

from __future__ import annotations

import contextlib
import json
import os
import random
import socket
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from reid.core.types import ReidError
from reid.gallery.manifest import damaged
from reid.gallery.milvus.client import STEP, Collections
from reid.gallery.milvus.rows import as_row, listed


class Writer:
    """The state of a gallery's two collections, and who may change it."""

    def __init__(self, place: str, collections: Collections, wait: float) -> None:
        self.place, self.wait = place, wait
        self._at = collections

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Every writer says that it is there, and goes on if no other one is: of two that meet, at least one sees the
        other."""
        me = f"writer-{uuid.uuid4().hex}"
        end = time.monotonic() + self.wait
        while True:
            self._at.put(me, json.dumps({"host": socket.gethostname(), "process": os.getpid(), "since": time.time()}))
            others = [text for name, text in self._at.texts("writer-").items() if name != me]
            others = [text for text in others if not _is_dead(json.loads(text))]
            if not others:
                break
            self._at.call("delete", self._at.about, ids=[me])
            if time.monotonic() >= end:
                who = json.loads(others[0])
                raise ReidError(
                    f"gallery {self.place}: process {who['process']} of {who['host']} is writing to it, for more than "
                    f"{self.wait:g} seconds; try again later, or if it is there no more, gallery check --repair"
                )
            time.sleep(random.uniform(0.02, 0.1))
        try:
            self._finish()
            yield
        finally:
            self._at.call("delete", self._at.about, ids=[me])

    def _finish(self) -> None:
        """What a killed writer left: images of an addition that it did not finish, and those that were replaced."""
        state = self.state()
        self.delete([row["key"] for row in self._at.rows(f"key >= {state['next_key']}", ["key"])])
        if "replacing" in state:
            new = [row["path"] for row in self._at.rows(f"key >= {state['replacing']}", ["key", "path"])]
            old = [row["key"] for row in self.among("path", new, ["key"], f"key < {state['replacing']}")]
            self.delete(old)
            self._at.put("state", json.dumps({"next_key": state["next_key"]}))

    def append(
        self,
        vectors: Iterable[np.ndarray],
        rows: Sequence[tuple[Any, ...]],
        added: Sequence[float],
        replaced: Sequence[int] = (),
    ) -> np.ndarray:
        first = self.next_key()
        keys = np.arange(first, first + len(rows), dtype=np.int64)
        done = 0
        for block in vectors:
            for start in range(0, len(block), STEP):
                part = np.ascontiguousarray(block[start : start + STEP])
                some = slice(done, done + len(part))
                self._at.call(
                    "insert",
                    self._at.images,
                    data=[
                        as_row(key, vector, row, since)
                        for key, vector, row, since in zip(keys[some].tolist(), part, rows[some], added[some])
                    ],
                )
                done += len(part)
        if self._at.folder is not None:  # Milvus Lite looks at rows that are in no file yet one by one
            self._at.call("flush", self._at.images)
        if rows:
            state = {"next_key": first + len(rows)}
            self._at.put("state", json.dumps(state | ({"replacing": first} if replaced else {})))
            if replaced:
                self.delete(list(replaced))
                self._at.put("state", json.dumps(state))
        return keys

    def delete(self, keys: list[int]) -> None:
        for start in range(0, len(keys), STEP):
            self._at.call("delete", self._at.images, ids=keys[start : start + STEP])

    def state(self) -> dict[str, int]:
        try:
            state: dict[str, int] = json.loads(self._at.text("state") or "")
            return {name: int(value) for name, value in state.items()}
        except (ValueError, AttributeError):
            raise damaged(self.place, "its state is not what was written", mendable=False) from None

    def next_key(self) -> int:
        """Above the keys of all images; those of an addition that goes on are above it."""
        return self.state()["next_key"]

    def among(self, column: str, values: Sequence[str], fields: Sequence[str], where: str) -> Iterator[dict[str, Any]]:
        """The images that have one of those texts in that column, of those where that holds, by key."""
        for start in range(0, len(values), STEP):
            yield from self._at.rows(f"{where} and {column} in {listed(values[start : start + STEP])}", fields)


def _is_dead(writer: Mapping[str, Any]) -> bool:
    """Whether that process was one of this machine, and is no more."""
    if writer["host"] != socket.gethostname():
        return False
    try:
        os.kill(writer["process"], 0)
    except ProcessLookupError:
        return True
    except OSError:
        pass
    return False
