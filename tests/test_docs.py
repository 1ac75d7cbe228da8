"""README and docs: every relative link and anchor leads somewhere, every picture is shown, README stays short."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("weights/*.md")])
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)
_INDENTED = re.compile(r"^(?: {4}|\t).*$", re.MULTILINE)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)|<(?:img|a)\b[^>]*\b(?:src|href)=\"([^\"]+)\"")


def without_blocks(text: str) -> str:
    """The text without its code blocks, whose lines are no links and no headings."""
    return _INDENTED.sub("", _FENCED.sub("", text))


def links(page: Path) -> list[str]:
    """What a page links to or shows, `#anchor` included; not what lies on the web."""
    text = _CODE.sub("", without_blocks(page.read_text(encoding="utf-8")))
    targets = [first or second for first, second in _LINK.findall(text)]
    return [target for target in targets if not re.match(r"[a-z]+:", target)]


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub and the site give to a page's headings."""
    counts: Counter[str] = Counter()
    found = set()
    for line in without_blocks(page.read_text(encoding="utf-8")).splitlines():
        if heading := re.match(r"#{1,6} +(.*?) *#*$", line):
            words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading[1])
            slug = re.sub(r"[^\w\- ]", "", words.lower()).replace(" ", "-")
            found.add(f"{slug}-{counts[slug]}" if counts[slug] else slug)
            counts[slug] += 1
    return found


def dead_links(page: Path) -> list[str]:
    """The links of a page that lead nowhere."""
    dead = []
    for link in links(page):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and (target.suffix != ".md" or anchor not in anchors(target))):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page: Path) -> None:
    assert not dead_links(page)


def test_a_dead_link_is_found(tmp_path: Path) -> None:
    page, other = tmp_path / "page.md", tmp_path / "other.md"
    other.write_text("# Other page\n\n## One, two & `three`\n\n## Twice\n\n## Twice\n", encoding="utf-8")
    live = "[1](other.md) [2](other.md#one-two--three) [3](#page) [4](https://no.example) [5](other.md#twice-1)\n"
    code = "`[6](code.md)`\n\n    [7](block.md)\n\n```\n# Fenced\n[8](fenced.md)\n```\n"
    dead = ["gone.md", "other.md#gone", "#gone", "other.md#twice-2", "gone.png", "#fenced"]
    shown = "".join(f"[x]({link})\n" for link in dead)
    page.write_text(f'# Page\n{live}{code}{shown}<img src="gone.jpg" width="100">\n', encoding="utf-8")
    assert dead_links(page) == [*dead, "gone.jpg"]


def test_every_picture_is_shown() -> None:
    shown = {(page.parent / link).resolve() for page in PAGES for link in links(page)}
    pictures = {path.resolve() for pattern in ("*.png", "*.jpg", "*.svg") for path in ROOT.glob(f"docs/{pattern}")}
    assert pictures <= shown


def test_readme_is_read_in_five_minutes() -> None:
    assert len((ROOT / "README.md").read_bytes()) <= 9 * 1024
