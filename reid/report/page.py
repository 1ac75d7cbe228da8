"""A page of people, each a strip of crops: one HTML file with its pictures inside."""

from __future__ import annotations

import html
import io
import os
from base64 import b64encode
from collections.abc import Sequence

from reid.core.files import write_text
from reid.report.sheets import CROP_H, CROP_W, Tile, crop_of

MOST_STRIPS, STRIP_CROPS = 300, 24  # on the page of people, and of a person
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px system-ui, sans-serif; color: #202020; margin: 1.5em; }}
section {{ border-top: 1px solid #ddd; padding: .4em 0; }}
h2 {{ font-size: 1em; margin: .3em 0; }}
figure {{ display: inline-block; margin: 0 6px 4px 0; vertical-align: top; }}
figcaption {{ color: #6e6e6e; font-size: 12px; text-align: center; }}
</style></head><body><h1>{title}</h1><p>{text}</p>
{strips}
</body></html>
"""


def write_people_page(
    strips: Sequence[tuple[str, Sequence[Tile]]], output: str | os.PathLike[str], *, title: str, text: str
) -> None:
    """Writes an HTML page that stands alone, with a strip of pictures a person: a heading and its crops.

    The first MOST_STRIPS are shown, and of each the first STRIP_CROPS, and how many more there are. Hovering over a
    crop names its file.
    """
    parts = []
    for heading, tiles in strips[:MOST_STRIPS]:
        figures = [_figure(tile) for tile in tiles[:STRIP_CROPS]]
        more = f"<p>and {len(tiles) - STRIP_CROPS:,} more</p>" if len(tiles) > STRIP_CROPS else ""
        parts.append(f"<section><h2>{html.escape(heading)}</h2>{''.join(figures)}{more}</section>")
    if len(strips) > MOST_STRIPS:
        parts.append(f"<p>and {len(strips) - MOST_STRIPS:,} more like these</p>")
    page = _PAGE.format(title=html.escape(title), text=html.escape(text), strips="\n".join(parts))
    write_text(output, page.encode("utf-8", "replace").decode())


def _figure(tile: Tile) -> str:
    held = io.BytesIO()
    crop_of(tile.path).save(held, "JPEG", quality=80)
    name = html.escape(os.fspath(tile.path).encode("utf-8", "replace").decode(), quote=True)
    image = (
        f'<img width="{CROP_W}" height="{CROP_H}" src="data:image/jpeg;base64,{b64encode(held.getvalue()).decode()}"'
    )
    words = "" if tile.camid is None else f"camera {tile.camid}"
    return f'<figure title="{name}">{image} alt="{name}"><figcaption>{words}</figcaption></figure>'
