"""What the pictures of in21k share: their colours, and sheets of tiles with text."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from .fonts import Font

INK, FAINT, PAPER, LINE = "#1f2933", "#7b8794", "#ffffff", "#e4e7eb"
GREY, BLUE, GREEN, RED = "#9aa5b1", "#2c52a4", "#16a374", "#d64545"

Pixels = NDArray[np.uint8]


class TileSheet:
    """An RGB picture of square tiles, and of text that is shortened to its room. All sizes are in pixels."""

    def __init__(self, width: int, height: int, side: int) -> None:
        self.picture, self.side = Image.new("RGB", (width, height), PAPER), side
        self.draw = ImageDraw.Draw(self.picture)

    def text(self, x: int, y: int, text: str, colour: str, size: int, room: int) -> None:
        """Draw one line of text of a size, at most `room` wide."""
        font = Font(size)
        font.draw(self.draw, (x, y), font.shorten(text, room), colour)

    def heading(self, margin: int, title: str, subtitle: str) -> None:
        """Draw a title and a line below it at the top left."""
        self.text(margin, margin - 4, title, INK, 22, self.picture.width - 2 * margin)
        self.text(margin, margin + 26, subtitle, FAINT, 14, self.picture.width - 2 * margin)

    def tile(self, x: int, y: int, pixels: Pixels | None) -> None:
        """Draw an image, uint8 (height, width, 3), in the middle of a tile; None: a corrupt one."""
        side = self.side
        if pixels is None:
            self.draw.rectangle((x, y, x + side - 1, y + side - 1), LINE)
            Font(14).draw(self.draw, (x + side // 2, y + side // 2), "corrupt", FAINT, anchor="mm")
            return
        image = Image.fromarray(pixels)
        scale = side / max(image.size)
        width, height = (max(1, round(edge * scale)) for edge in image.size)
        image = image.resize((width, height), Image.Resampling.NEAREST if scale >= 2 else Image.Resampling.LANCZOS)
        self.picture.paste(image, (x + (side - width) // 2, y + (side - height) // 2))
