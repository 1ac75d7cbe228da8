"""Tables of text: Markdown for files, aligned columns for a terminal."""

from __future__ import annotations

from collections.abc import Sequence


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, each row as long as the header. No newline at the end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal: the first column to the left, the others to the right, two spaces between them."""
    widths = [max(map(len, column)) for column in zip(header, *rows)]
    lines = (
        [line[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(line[1:], widths[1:]))]
        for line in (header, *rows)
    )
    return "\n".join("  ".join(line).rstrip() for line in lines)
