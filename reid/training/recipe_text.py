"""YAML as recipes need it: plain values, lists and mappings, within limits, whoever wrote the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from reid.core.types import ReidError

MOST_BYTES = 64 * 1024  # of a file; the project's have 1 to 3 kB
DEEPEST = 8  # lists and mappings within each other
LONGEST = 1000  # characters of one value


class _Loader(yaml.SafeLoader):
    """Text, numbers, booleans, lists and mappings: no aliases (a few bytes of them stand for gigabytes), no dates."""

    depth = 0

    def compose_node(self, parent: Any, index: Any) -> Any:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if isinstance(event, yaml.AliasEvent):
            raise yaml.YAMLError(f"*{str(event.anchor)[:40]}: aliases are not taken, write the value out")
        if isinstance(event, yaml.ScalarEvent) and len(event.value) > LONGEST:
            raise yaml.YAMLError(f"a value of {len(event.value):,} characters, at most {LONGEST:,} are taken")
        if self.depth == DEEPEST:
            raise yaml.YAMLError(f"lists or mappings nested deeper than {DEEPEST}")
        self.depth += 1
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        mapping = super().construct_mapping(node, deep)
        if len(mapping) < len(node.value):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            twice = next((key for key in keys if keys.count(key) > 1), "a key")
            raise yaml.YAMLError(f"{twice[:40]} is there twice")
        return mapping


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def parse(text: str) -> Any:
    """The value of a YAML text. ReidError, one short line, where it is none that a recipe could hold."""
    try:
        return yaml.load(text, _Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        reason = " ".join(str(error).split())
        raise ReidError(reason if len(reason) <= 200 else reason[:200] + " ...") from None


def read(path: Path) -> Any:
    """The value of a file. ReidError where it is missing, no file, too large, or not such YAML."""
    if not path.exists():
        raise ReidError(f"no recipe at {path}: give one with --config (the project's are in configs/)")
    if not path.is_file():
        raise ReidError(f"{path} is not a file: a recipe is a YAML file of `key: value` lines")
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise ReidError(f"larger than {MOST_BYTES // 1024} kB")
        return parse(data.decode())
    except (ReidError, OSError, UnicodeDecodeError) as error:
        raise ReidError(f"{path} cannot be read as a YAML recipe: {error}") from None


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def dump(values: dict[str, Any]) -> str:
    """YAML text that `parse` reads back to equal values."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, default_flow_style=None, width=LONGEST)
