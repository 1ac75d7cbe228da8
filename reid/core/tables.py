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
