"""Milvus as a gallery uses it: two collections, and everything that Milvus refuses as one line."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reid.core.types import ReidError

STEP = 500  # rows sent or asked for at a time; a message holds 64 MiB
_NAME = re.compile(r"[A-Za-z_]\w{0,200}", re.ASCII)
_BUILD = {"nlist", "m", "nbits", "M", "efConstruction"}  # numbers of an index; all others are of a search
_OPTION = re.compile(r"(index)=([A-Z][A-Z0-9_]*)|(\w+)=(\d+)", re.ASCII)


class Place(NamedTuple):
    uri: str
    collection: str
    folder: Path | None  # that Milvus Lite keeps
    kind: str  # of the index, where the collection is made
    options: dict[str, int]  # that kind's own: nlist, M, ... of the index, nprobe, ef, ... of a search


class Collections:
    """Those of one gallery: `images`, an image a row, and `about`, texts under names."""

    def __init__(self, place: str) -> None:
        self.place, where = place, parse(place)
        self.images, self.about, self.folder = where.collection, f"{where.collection}_about", where.folder
        build, search = ({name: x for name, x in where.options.items() if (name in _BUILD) == b} for b in (True, False))
        self._index = {"index_type": where.kind, "params": build}
        self.search_params = {"metric_type": "IP", "params": search}
        self._client, self._loaded = _connect(place, where), set[str]()

    def make(self, dimension: int) -> None:
        from pymilvus import DataType

        text = {"datatype": DataType.VARCHAR, "max_length": 65_535}
        about = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        about.add_field("id", DataType.VARCHAR, max_length=100, is_primary=True)
        about.add_field("text", **text)
        about.add_field("vector", DataType.FLOAT_VECTOR, dim=2)  # which every collection has
        images = self._client.create_schema(auto_id=False, enable_dynamic_field=False)
        images.add_field("key", DataType.INT64, is_primary=True)
        images.add_field("vector", DataType.FLOAT_VECTOR, dim=dimension)
        for name in ("path", "pid", "hash", "fields"):
            images.add_field(name, **text)
        images.add_field("camid", DataType.INT64)
        images.add_field("time", DataType.DOUBLE)
        images.add_field("added", DataType.DOUBLE)
        images.add_field("tags", DataType.ARRAY, element_type=DataType.VARCHAR, max_length=65_535, max_capacity=4096)
        images.add_field("checksum", DataType.INT64)
        for name, schema in ((self.about, about), (self.images, images)):
            self.call("create_collection", name, schema=schema, consistency_level="Strong")
            index = self._client.prepare_index_params()
            index.add_index("vector", metric_type="IP", **(self._index if schema is images else {"index_type": "FLAT"}))
            for column in ("path", "pid", "hash") if schema is images else ():
                index.add_index(column, index_type="INVERTED" if self.folder else "")  # "": the server's choice
            self.call("create_index", name, index, sync=False)
            self.call("load_collection", name)

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        with _told(self.place):
            return getattr(self._client, method)(*args, **kwargs)

    def has(self, collection: str) -> bool:
        return bool(self.call("has_collection", collection))

    def load(self, collection: str) -> bool:
        """Whether it is there. Milvus answers of loaded ones only, and Milvus Lite loads none when it is opened."""
        if collection not in self._loaded and self.has(collection):
            self.call("load_collection", collection)
            self._loaded.add(collection)
        return collection in self._loaded

    def rows(self, where: str, fields: Sequence[str], collection: str | None = None) -> Iterator[dict[str, Any]]:
        """Those columns of the rows that meet a condition, in order of the first column."""
        pages = self.call(
            "query_iterator", collection or self.images, batch_size=STEP, filter=where, output_fields=list(fields)
        )
        while True:
            with _told(self.place):
                page = pages.next()
            if not page:
                pages.close()
                return
            yield from sorted(page, key=lambda row: row[fields[0]])

    def text(self, name: str) -> str | None:
        """What is said of the gallery under that name."""
        rows = self.call("get", self.about, ids=[name], output_fields=["text"]) if self.load(self.about) else []
        return rows[0]["text"] if rows else None

    def texts(self, start: str) -> dict[str, str]:
        """The same under all names that start so."""
        rows = self.rows(f'id like "{start}%"', ["id", "text"], self.about)
        return {row["id"]: row["text"] for row in rows}

    def put(self, name: str, text: str) -> None:
        self.call("upsert", self.about, data=[{"id": name, "text": text, "vector": [0.0, 1.0]}])


def parse(place: str) -> Place:
    """Raises ReidError that says what a place is."""
    where, _, options = place.partition("?")
    kind, numbers = "FLAT", dict[str, int]()
    for option in options.split("&") if options else ():
        match = _OPTION.fullmatch(option)
        if match is None:
            raise ReidError(
                f"gallery {place}: after ? expected index=KIND, or a number of that kind, such as "
                f"nprobe=64, got {option!r}"
            )
        if match[1]:
            kind = match[2]
        else:
            numbers[match[3]] = int(match[4])
    if where.startswith("milvus+lite:"):
        folder = Path(where.removeprefix("milvus+lite:"))
        if folder.suffix != ".db":
            raise ReidError(f"gallery {place}: Milvus Lite keeps a folder whose name ends in .db: milvus+lite:PATH.db")
        return Place(str(folder), "gallery", folder, kind, numbers)
    scheme, _, rest = where.partition("://")
    host, _, name = rest.partition("/")
    if not host or not _NAME.fullmatch(name):
        raise ReidError(f"gallery {place}: expected milvus://HOST:PORT/NAME, the name of letters, digits and _")
    return Place(f"{'https' if scheme == 'milvus+https' else 'http'}://{host}", name, None, kind, numbers)


def _connect(place: str, where: Place) -> Any:
    try:
        import pymilvus
    except ImportError:
        raise ReidError(f"gallery {place}: needs pymilvus: pip install 'pymilvus>=3.0' 'milvus-lite>=3.2'") from None
    for name in ("pymilvus", "milvus_lite"):  # every error is raised, and told once
        logging.getLogger(name).setLevel(logging.CRITICAL)
    with _told(place):
        return pymilvus.MilvusClient(where.uri, token=os.environ.get("MILVUS_TOKEN", "") if not where.folder else "")


@contextlib.contextmanager
def _told(place: str) -> Iterator[None]:
    """Makes what Milvus answers one line."""
    import grpc
    from pymilvus.exceptions import MilvusException

    try:
        yield
    except (MilvusException, grpc.RpcError) as error:
        said = " ".join(str(getattr(error, "message", "") or error).split())[:200]
        if said == "Open local milvus failed":
            said = "it cannot be opened: another program has it open, or another version of Milvus Lite made it"
        raise ReidError(f"gallery {place}: Milvus answers: {said}") from error
