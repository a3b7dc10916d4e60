"""Fonts of pictures: DejaVu Sans, which in21k ships, and installed fonts for the scripts that it lacks."""

from __future__ import annotations

import logging
import os
import unicodedata
from collections.abc import Iterator
from functools import lru_cache
from itertools import groupby
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

log = logging.getLogger(__name__)

SHIPPED = Path(__file__).with_name("data") / "DejaVuSans.ttf"
FOLDERS = (
    *("~/.local/share/fonts", "~/.fonts", "/usr/local/share/fonts", "/usr/share/fonts"),
    *("/System/Library/Fonts", "/Library/Fonts"),
)
_SUFFIXES = (".otf", ".ttc", ".ttf")
_UNKNOWN = "?"  # in place of a letter that no font has
_NO_LETTER = "\U0010ffff"  # Unicode will never assign it, so every font draws its box for it
_PROBE_SIZE = 24  # pixels; guessed: large enough to tell a letter from the box


class Font:
    """Draws one-line text of a size, each letter in the first font that has it.

    size: of the letters, in pixels.
    """

    def __init__(self, size: int) -> None:
        self._size = size
        self._ascent, self._descent = _open(SHIPPED, size).getmetrics()

    def length(self, text: str) -> float:
        """Return the width of a text in pixels."""
        return sum(font.getlength(part) for font, part in self._parts(text))

    def shorten(self, text: str, width: float) -> str:
        """Return a text, cut and ended by `...` where it is wider than `width` pixels."""
        kept = text
        while kept and self.length(kept + ("" if kept == text else "...")) > width:
            kept = kept[:-1]
        return kept if kept == text else kept.rstrip() + "..."

    def draw(
        self,
        draw: ImageDraw.ImageDraw,
        at: tuple[float, float],
        text: str,
        colour: str | tuple[int, int, int],
        anchor: str = "la",
    ) -> None:
        """Draw a text; line breaks and what no font has are drawn as blanks and question marks.

        anchor: where `at` lies, in PIL's letters: l, m or r across, and a (top), m or s (baseline) up and down.
        """
        x, y = at
        x -= {"l": 0.0, "m": 0.5, "r": 1.0}[anchor[0]] * self.length(text)
        y += {"a": float(self._ascent), "m": (self._ascent - self._descent) / 2, "s": 0.0}[anchor[1]]
        for font, part in self._parts(text):
            draw.text((x, y), part, colour, font, anchor="ls")
            x += font.getlength(part)

    def _parts(self, text: str) -> Iterator[tuple[ImageFont.FreeTypeFont, str]]:
        for path, letters in groupby(_plain(text), key=_font_of):
            part = "".join(letters)
            yield _open(path or SHIPPED, self._size), part if path else _UNKNOWN * len(part)


def drawable(name: str, identifier: str) -> str:
    """Return what pictures call a class: its name, or its identifier where no installed font has all of its letters.

    The log says the latter once.
    """
    if all(map(_font_of, _plain(name))):
        return name
    _say_missing()
    return identifier


@lru_cache(maxsize=1)
def _say_missing() -> None:
    log.warning(
        "No installed font has the letters of some class names: pictures show their identifiers (Debian has fonts for "
        "most scripts in fonts-noto-core and fonts-noto-cjk)"
    )


def _plain(text: str) -> str:
    """Return a text in one line, without the marks that only steer its layout."""
    return "".join(" " if letter.isspace() else letter for letter in text if unicodedata.category(letter) != "Cf")


@lru_cache(maxsize=65_536)
def _font_of(letter: str) -> Path | None:
    """Return the first font that has a letter."""
    return next((path for path in (SHIPPED, *_installed()) if _has(path, letter)), None)


@lru_cache(maxsize=1)
def _installed() -> tuple[Path, ...]:
    """Return the installed fonts, regular ones first."""
    paths = (path for folder in FOLDERS for path in Path(folder).expanduser().rglob("*"))
    fonts = [path for path in paths if path.suffix.lower() in _SUFFIXES]
    return tuple(sorted(fonts, key=lambda path: ("regular" not in path.name.lower(), os.fsencode(path))))


def _has(path: Path, letter: str) -> bool:
    if letter == " ":
        return True
    try:
        return _probe(path, letter) != _probe(path, _NO_LETTER)
    except OSError:  # no font, or one of bitmaps in other sizes
        return False


@lru_cache(maxsize=4096)
def _probe(path: Path, letter: str) -> tuple[float, bytes]:
    """Return how a font draws a letter: its width and its pixels."""
    # Shaping would add a dotted circle to a mark that stands alone.
    font = ImageFont.truetype(path, _PROBE_SIZE, layout_engine=ImageFont.Layout.BASIC)
    image = Image.new("L", (3 * _PROBE_SIZE, 3 * _PROBE_SIZE))
    ImageDraw.Draw(image).text((_PROBE_SIZE, 2 * _PROBE_SIZE), letter, 255, font, anchor="ls")
    return font.getlength(letter), image.tobytes()


@lru_cache(maxsize=64)
def _open(path: Path, size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(path, size)
