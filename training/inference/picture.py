"""The picture of a prediction: the image, and beside it its likely labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageColor, ImageDraw

from ...shards.drawing import BLUE, FAINT, GREEN, GREY, INK, LINE, PAPER
from ...shards.fonts import Font, drawable
from .classifier import Classified
from .images import UnreadableImageError, read_image

IMAGE_SIDE, PANEL_WIDTH, MARGIN = 480, 520, 32  # pixels
TITLE_HEIGHT, ROW_HEIGHT, BAR_HEIGHT, GAP, NAME_HEIGHT = 34, 52, 8, 18, 32
MAX_LABELS = 12  # in a picture, of an image that has several


def draw_prediction(image: Image.Image, prediction: Mapping[str, Any], name: str = "") -> Image.Image:
    """Draw an image and its prediction (one of `Classifier`'s) side by side, as an RGB picture.

    On top the chain of labels, each below the one before, or of an image of several labels the 12 likeliest that are
    present; where there are none, nothing. Beneath it the likeliest of all. Under the image its name.
    """
    multi_label, top = "labels" in prediction, prediction["top5"]
    first = prediction["labels"][:MAX_LABELS] if multi_label else prediction["chain"]
    photo = _fit(image.convert("RGB"), IMAGE_SIDE)
    rows_height = TITLE_HEIGHT + len(top) * ROW_HEIGHT
    if first:
        rows_height += TITLE_HEIGHT + len(first) * ROW_HEIGHT + GAP
    photo_height = photo.height + (NAME_HEIGHT if name else 0)
    height = max(photo_height, rows_height) + 2 * MARGIN
    picture = Image.new("RGB", (IMAGE_SIDE + PANEL_WIDTH + 3 * MARGIN, height), PAPER)
    picture.paste(photo, (MARGIN + (IMAGE_SIDE - photo.width) // 2, MARGIN))
    if name:
        font = Font(17)
        middle, below = MARGIN + IMAGE_SIDE // 2, MARGIN + photo.height + 8
        font.draw(ImageDraw.Draw(picture), (middle, below), font.shorten(name, IMAGE_SIDE), FAINT, anchor="ma")
    panel = _Panel(picture, left=IMAGE_SIDE + 2 * MARGIN, top=MARGIN)
    if first:
        panel.title("What it shows" if multi_label else "From general to particular")
        for depth, answer in enumerate(first):
            colour = GREEN if multi_label else _between(depth / max(len(first) - 1, 1))
            panel.row(answer, colour, indent=0 if multi_label else 14 * depth)
        panel.y += GAP
    panel.title("Likeliest of all labels" if multi_label else "Likeliest of all classes")
    for answer in top:
        panel.row(answer, GREY, indent=0)
    return picture


def draw_classified(classified: Classified) -> Image.Image:
    """Draw an image that has a prediction, which is read again; see `draw_prediction`."""
    source, prediction = classified.source, classified.prediction
    assert prediction is not None
    assert not isinstance(source.picture, UnreadableImageError)
    return draw_prediction(read_image(source.picture), prediction, source.name.rpartition("/")[2])


def lay_out(pictures: Sequence[Image.Image]) -> Image.Image:
    """Lay pictures out one below the other; more than three in a square of rows."""
    across = 1 if len(pictures) <= 3 else math.ceil(math.sqrt(len(pictures)))
    rows = [pictures[start : start + across] for start in range(0, len(pictures), across)]
    heights = [max(picture.height for picture in row) for row in rows]
    width = max(sum(picture.width for picture in row) for row in rows)
    whole = Image.new("RGB", (width, sum(heights)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for picture in row:
            whole.paste(picture, (left, top))
            left += picture.width
        top += height
    return whole


class _Panel:
    """Rows of a name, a probability and a bar, from the top down."""

    def __init__(self, picture: Image.Image, *, left: int, top: int) -> None:
        self._draw = ImageDraw.Draw(picture)
        self._left, self._right, self.y = left, left + PANEL_WIDTH, top
        self._large, self._small = Font(22), Font(17)

    def title(self, text: str) -> None:
        self._small.draw(self._draw, (self._left, self.y), text, FAINT)
        self.y += TITLE_HEIGHT

    def row(self, answer: Mapping[str, Any], colour: str, *, indent: int) -> None:
        left, probability = self._left + min(indent, PANEL_WIDTH // 3), float(answer["probability"])
        percent = f"{100 * probability:.0f} %" if probability >= 0.005 else "< 1 %"
        self._small.draw(self._draw, (self._right, self.y + 24), percent, INK, anchor="rs")
        name = drawable(answer["name"], answer["wnid"] or answer["name"])
        self._large.draw(
            self._draw, (left, self.y + 24), self._large.shorten(name, self._right - left - 72), INK, anchor="ls"
        )
        bar_top = self.y + 33
        self._bar(left, self._right, bar_top, LINE)
        self._bar(left, left + max(round((self._right - left) * probability), BAR_HEIGHT), bar_top, colour)
        self.y += ROW_HEIGHT

    def _bar(self, left: int, right: int, top: int, colour: str) -> None:
        self._draw.rounded_rectangle((left, top, right, top + BAR_HEIGHT), BAR_HEIGHT // 2, colour)


def _fit(image: Image.Image, side: int) -> Image.Image:
    """Scale an image so that its longer side is `side`."""
    scale = side / max(image.size)
    size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
    return image.resize(size, Image.Resampling.BICUBIC)


def _between(share: float) -> str:
    """Return a colour between blue (0: general) and green (1: particular)."""
    ends = zip(ImageColor.getrgb(BLUE), ImageColor.getrgb(GREEN), strict=True)
    return f"#{bytes(round(a + (b - a) * share) for a, b in ends).hex()}"
