"""The picture of a search: each query, and to its right the images that are nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from ...shards.drawing import FAINT, GREEN, INK, Pixels, TileSheet
from ...shards.fonts import drawable

COLUMNS = 10
TILE, GAP, MARGIN, CAPTION, TITLE, BETWEEN, APART = 128, 8, 24, 44, 64, 20, 28  # pixels; APART: query from answers


def draw_retrieved(
    rows: Sequence[Mapping[str, Any]], images: Mapping[str, Pixels | None], title: str, subtitle: str
) -> Image.Image:
    """Draw queries and their nearest images as an RGB picture; a green line is under those of the query's class.

    rows:   per query {query, nearest}, and `wnid` and `name` where its class is known; nearest: {key, wnid,
            similarity}, and `name` where that is known.
    images: by query and key, uint8 (height, width, 3); None for what is corrupt.
    """
    columns = min(COLUMNS, max(len(row["nearest"]) for row in rows))
    heights = [-(-len(row["nearest"]) // columns) * (TILE + CAPTION) for row in rows]
    width = max(2 * MARGIN + (columns + 1) * (TILE + GAP) - GAP + APART, 640)
    height = 2 * MARGIN + TITLE + sum(heights) + BETWEEN * (len(rows) - 1)
    sheet = _Sheet(width, height, TILE)
    sheet.heading(MARGIN, title, subtitle)
    top = MARGIN + TITLE
    for row, row_height in zip(rows, heights, strict=True):
        sheet.tile(MARGIN, top, images[row["query"]])
        sheet.caption(MARGIN, top, _name(row, "query"), row["query"].rpartition("/")[2])
        for place, answer in enumerate(row["nearest"]):
            x = MARGIN + TILE + GAP + APART + place % columns * (TILE + GAP)
            y = top + place // columns * (TILE + CAPTION)
            sheet.tile(x, y, images[answer["key"]])
            sheet.caption(x, y, _name(answer, answer["wnid"]), f"{answer['similarity']:.3f}  {answer['key']}")
            if answer["wnid"] == row.get("wnid"):
                sheet.underline(x, y)
        top += row_height + BETWEEN
    return sheet.picture


def _name(row: Mapping[str, Any], otherwise: str) -> str:
    return drawable(row["name"], row["wnid"]) if "name" in row else otherwise


class _Sheet(TileSheet):
    def caption(self, x: int, y: int, first: str, second: str) -> None:
        self.text(x, y + TILE + 5, first, INK, 14, TILE)
        self.text(x, y + TILE + 23, second, FAINT, 12, TILE)

    def underline(self, x: int, y: int) -> None:
        self.draw.rectangle((x, y + TILE, x + TILE - 1, y + TILE + 2), GREEN)
