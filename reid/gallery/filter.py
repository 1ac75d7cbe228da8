"""Which images of a gallery: conditions that become SQL, with every value a parameter."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from reid.core.values import Field
from reid.gallery.entry import stored


@dataclass(frozen=True)
class Filter:
    """Images that meet every condition given; with none, all images. An image whose value is unknown does not meet
    `camids`, `pids`, `after`, `before` and `fields`, and is not left out by `exclude_camids`.
    """

    camids: Sequence[int] = ()
    exclude_camids: Sequence[int] = ()
    pids: Sequence[int | str] = ()
    after: float | None = None  # time of capture, seconds since 1970 (UTC), this second included
    before: float | None = None  # likewise, not included
    fields: Mapping[str, Field] = field(default_factory=dict)  # compared as text
    keys: Sequence[int] | None = None
    exclude_keys: Sequence[int] = ()
    paths: Sequence[str | os.PathLike[str]] | None = None  # as they were given to `add`

    @property
    def is_empty(self) -> bool:
        return not self.where()[1]

    def where(self) -> tuple[str, tuple[str | int | float | bytes, ...]]:
        """An SQL condition on the table `images`, and its parameters."""
        parts: list[str] = ["1"]
        values: list[str | int | float | bytes] = []

        def add(sql: str, *parameters: str | int | float | bytes) -> None:
            parts.append(sql)
            values.extend(parameters)

        def among(numbers: Sequence[int | str]) -> str:
            return json.dumps([x if isinstance(x, str) else int(x) for x in numbers])

        one_of = "(SELECT value FROM json_each(?))"
        if self.camids:
            add(f"camid IN {one_of}", among(self.camids))
        if self.exclude_camids:
            add(f"(camid IS NULL OR camid NOT IN {one_of})", among(self.exclude_camids))
        if self.pids:
            add(f"pid IN {one_of}", among(self.pids))
        if self.after is not None:
            add("time >= ?", float(self.after))
        if self.before is not None:
            add("time < ?", float(self.before))
        for name, value in self.fields.items():
            equal = "json_each.key = ? AND CAST(json_each.value AS TEXT) = CAST(? AS TEXT)"
            add(f"EXISTS (SELECT 1 FROM json_each(images.fields) WHERE {equal})", name, value)
        if self.keys is not None:
            add(f"key IN {one_of}", among(self.keys))
        if self.exclude_keys:
            add(f"key NOT IN {one_of}", among(self.exclude_keys))
        if self.paths is not None:
            texts = [stored(path) for path in self.paths]
            strange = [text for text in texts if isinstance(text, bytes)]
            marks = "".join(" OR path = ?" for _ in strange)
            add(f"(path IN {one_of}{marks})", json.dumps([t for t in texts if isinstance(t, str)]), *strange)
        return " AND ".join(parts), tuple(values)
