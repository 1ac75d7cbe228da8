"""Tables of text: Markdown for files, aligned columns for a terminal, CSV for this program and for spreadsheets."""

from __future__ import annotations

import csv
import html
import io
import re
import unicodedata
from collections.abc import Sequence

from reid.core.terminal import printable

_FORMULA = re.compile(r"'*[=+\-@\t\r]")
_BYTE = re.compile(r"\\u(dc[89a-f][0-9a-f])")
_MARKS = re.compile(r"[\\`*\[\]]")


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, each row as long as the header. No newline at the end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def markdown_text(text: str) -> str:
    """Text as Markdown shows it and nothing more: no HTML, no links, no emphasis, on one line."""
    return html.escape(_MARKS.sub(r"\\\g<0>", printable(text)), quote=False)


def aligned_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The same for a terminal: the first column to the left, the others to the right, two spaces between them."""
    return columns([header, *rows], "<" + ">" * (len(header) - 1))


def columns(lines: Sequence[Sequence[str]], sides: str) -> str:
    """Aligned columns, each as wide as its widest cell: to the side that "<" or ">" says. Cells are made printable."""
    cells = [[printable(cell) for cell in line] for line in lines]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            cell + room if side == "<" else room + cell
            for cell, side, room in zip(line, sides, (" " * (w - width(c)) for w, c in zip(widths, line)), strict=True)
        ).rstrip()
        for line in cells
    )


def latex_text(text: str) -> str:
    """Text that LaTeX prints as it is; characters outside ASCII but for ± and − stay, for an engine that reads them."""
    return "".join(_LATEX.get(c, c) for c in text)


def latex_table(header: Sequence[str], rows: Sequence[Sequence[str]], columns: str) -> str:
    """A tabular with the rules of booktabs, each row as long as the header. No newline at the end.

    columns: a letter a column, l, c or r.
    """
    lines = [" & ".join(map(latex_text, line)) for line in (header, *rows)]
    guarded = ["{}" + line if line[:1] in ("[", "*") else line for line in lines]  # \\[ and \\* would be one command
    return "\n".join(
        [
            rf"\begin{{tabular}}{{{columns}}}",
            r"\toprule",
            guarded[0] + r" \\",
            r"\midrule",
            *(line + r" \\" for line in guarded[1:]),
            r"\bottomrule",
            r"\end{tabular}",
        ]
    )


_LATEX = {
    **{c: "\\" + c for c in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": "$-$",
}


def width(text: str) -> int:
    """Of a line on a terminal, in columns: two of a wide letter (Chinese, Japanese, Korean), none of an accent."""
    return sum(
        0
        if unicodedata.combining(c) or unicodedata.category(c) == "Cf"
        else 1 + (unicodedata.east_asian_width(c) in "WF")
        for c in text
    )


def csv_text(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A CSV that `csv_value` reads back, and in which no spreadsheet finds a formula.

    A text that begins as one does (= + - @) has a ' before it. Bytes of a path that are no text are "\\udcXX".
    """
    held = io.StringIO(newline="")
    writer = csv.writer(held, lineterminator="\n")
    writer.writerow(header)
    writer.writerows([[_quoted(value) if isinstance(value, str) else value for value in row] for row in rows])
    return held.getvalue().encode("utf-8", "backslashreplace").decode()


def _quoted(text: str) -> str:
    return "'" + text if _FORMULA.match(text) else text


def csv_value(text: str) -> str:
    """What a cell of a CSV says: the other direction of `csv_text`."""
    text = text[1:] if text.startswith("'") and _FORMULA.match(text) else text
    return _BYTE.sub(lambda match: chr(int(match[1], 16)), text)
