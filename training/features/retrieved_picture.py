"""The picture of a search: each query, and to its right the images that are nearest to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ...shards.fonts import Font, drawable

COLUMNS = 10
TILE, GAP, MARGIN, CAPTION, TITLE, BETWEEN, APART = 128, 8, 24, 44, 64, 20, 28  # pixels; APART: query from answers
INK, FAINT, PAPER, EMPTY, SAME = "#1f2933", "#7b8794", "#ffffff", "#e4e7eb", "#16a374"

Pixels = NDArray[np.uint8]


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
    sheet = _Sheet(Image.new("RGB", (width, height), PAPER))
    sheet.text(MARGIN, MARGIN - 4, title, INK, 22, width - 2 * MARGIN)
    sheet.text(MARGIN, MARGIN + 26, subtitle, FAINT, 14, width - 2 * MARGIN)
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


class _Sheet:
    """Draws tiles, and text that is shortened to its place."""

    def __init__(self, picture: Image.Image) -> None:
        self.picture = picture
        self._draw = ImageDraw.Draw(picture)

    def text(self, x: int, y: int, text: str, colour: str, size: int, room: int) -> None:
        font = Font(size)
        font.draw(self._draw, (x, y), font.shorten(text, room), colour)

    def caption(self, x: int, y: int, first: str, second: str) -> None:
        self.text(x, y + TILE + 5, first, INK, 14, TILE)
        self.text(x, y + TILE + 23, second, FAINT, 12, TILE)

    def underline(self, x: int, y: int) -> None:
        self._draw.rectangle((x, y + TILE, x + TILE - 1, y + TILE + 2), SAME)

    def tile(self, x: int, y: int, pixels: Pixels | None) -> None:
        if pixels is None:
            self._draw.rectangle((x, y, x + TILE - 1, y + TILE - 1), EMPTY)
            Font(14).draw(self._draw, (x + TILE // 2, y + TILE // 2), "corrupt", FAINT, anchor="mm")
            return
        image = Image.fromarray(pixels)
        scale = TILE / max(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        image = image.resize(size, Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
        self.picture.paste(image, (x + (TILE - image.width) // 2, y + (TILE - image.height) // 2))
