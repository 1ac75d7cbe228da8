"""Text for people and for other programs: tables, CSV, terminals."""

from __future__ import annotations

import csv
import io
import sys

import pytest

from reid.core import threads
from reid.core.tables import aligned_table, columns, csv_text, csv_value, markdown_table, markdown_text, width
from reid.core.terminal import printable, safe_streams


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("=HYPERLINK(1)", "'=HYPERLINK(1)"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@a", "'@a"),
        ("\t=1", "'\t=1"),
        ("'=1", "''=1"),
        ("'tis", "'tis"),
        ("a=1", "a=1"),
        ("", ""),
        ("cr\udce9me.jpg", "cr\\udce9me.jpg"),
        ('quote " and, comma\nand line', 'quote " and, comma\nand line'),
    ],
)
def test_a_csv_holds_no_formula_and_reads_back(name: str, written: str) -> None:
    text = csv_text(["path", "score"], [[name, -0.5]])
    text.encode("utf-8")
    (_, (cell, score)) = csv.reader(io.StringIO(text, newline=""))
    assert (cell, csv_value(cell), score) == (written, name, "-0.5")


def test_columns_stand_under_each_other_whatever_the_names() -> None:
    rows = [
        ["rank", "pid", "path"],
        ["1", "bartholomew-the-elder", "a"],
        ["10", "李雷", "b"],
        ["2", "e\u0301va", "c\x1b[2J"],
    ]
    lines = columns(rows, ">><").split("\n")
    assert lines[3] == "   2" + 20 * " " + "e\u0301va  c\\x1b[2J"
    assert {width(line) - width(line.split()[-1]) for line in lines} == {4 + 2 + 21 + 2}
    assert aligned_table(("who", "n"), [["李", "1"], ["anna", "23"]]) == "who    n\n李     1\nanna  23"


def test_markdown_shows_names_and_nothing_more() -> None:
    name = "<img src=x onerror=alert(1)>`[a](b)*c*\n# d"
    assert markdown_text(name) == "&lt;img src=x onerror=alert(1)&gt;\\`\\[a\\](b)\\*c\\*\\\\n# d"
    assert markdown_table(("a",), [["b|c"]]).endswith("| b\\|c |")


def test_printable_keeps_letters_and_escapes_the_rest() -> None:
    assert printable("Ünä 李 \x1b[31m\r\n\x9b\u202e\udcff") == "Ünä 李 \\x1b[31m\\r\\n\\x9b\\u202e\\udcff"


def test_streams_lose_control_sequences_and_take_every_name(monkeypatch: pytest.MonkeyPatch) -> None:
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="ascii", errors="strict", newline="") for _ in range(2))
    monkeypatch.setattr(sys, "stdout", out)
    monkeypatch.setattr(sys, "stderr", err)
    with safe_streams():
        print("a\x1b]0;title\x07\tb\n李 \udcff")
        print("\r 50 %\x1b[2J", file=sys.stderr)
    out.flush(), err.flush()
    assert out.buffer.getvalue() == b"a\\x1b]0;title\\x07\tb\n\\u674e \\udcff\n"  # type: ignore[attr-defined]
    assert err.buffer.getvalue() == b"\r 50 %\\x1b[2J\n"  # type: ignore[attr-defined]


@pytest.mark.parametrize(("said", "count"), [("3", 3), ("2,1", 2), (" 4 ,2", 4)])
def test_threads_are_as_many_as_openmp_has(said: str, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    assert len(threads.pieces(1000)) == count


@pytest.mark.parametrize("said", ["", "many", "0"])
def test_what_openmp_does_not_take_is_no_number(said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert len(threads.pieces(1000)) == 5
