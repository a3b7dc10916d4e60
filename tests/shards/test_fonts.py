"""Pictures show names as they are, or identifiers, and never the box that a font draws for what it lacks."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from in21k.shards import fonts
from in21k.shards.fonts import Font, drawable

DOG = "金毛犬"


def tiny_font(letters: str) -> bytes:
    """Return a TrueType font in which each of some letters is a triangle, and everything else a small square."""

    def outline(points: list[tuple[int, int]]) -> bytes:
        xs, ys = zip(*points, strict=True)
        head = struct.pack(">5h2H", 1, min(xs), min(ys), max(xs), max(ys), len(points) - 1, 0)
        steps = [[b - a for a, b in zip((0, *item), item, strict=False)] for item in (xs, ys)]
        data = head + bytes([1] * len(points)) + b"".join(struct.pack(f">{len(points)}h", *step) for step in steps)
        return data + bytes(-len(data) % 4)

    box = outline([(100, 0), (100, 300), (400, 300), (400, 0)])
    triangle = outline([(100, 0), (500, 900), (900, 0)])
    groups = b"".join(struct.pack(">3I", ord(letter), ord(letter), 1) for letter in sorted(letters))
    cmap = struct.pack(">2H2HI", 0, 1, 3, 10, 12)
    cmap += struct.pack(">2H3I", 12, 0, 16 + len(groups), 0, len(letters)) + groups
    tables = {
        b"cmap": cmap,
        b"glyf": box + triangle,
        b"head": struct.pack(
            ">4I2H2q4h2H3h", 0x10000, 0, 0, 0x5F0F3CF5, 0, 1000, 0, 0, 0, 0, 1000, 1000, 0, 8, 2, 1, 0
        ),
        b"hhea": struct.pack(">I3hH11hH", 0x10000, 900, -200, 0, 1000, *[0] * 11, 2),
        b"hmtx": struct.pack(">HhHh", 500, 100, 1000, 100),
        b"loca": struct.pack(">3I", 0, len(box), len(box) + len(triangle)),
        b"maxp": struct.pack(">I14H", 0x10000, 2, 4, 1, 0, 0, 2, *[0] * 8),
    }
    place = 12 + 16 * len(tables)
    entries, body = b"", b""
    for tag, data in tables.items():
        entries += tag + struct.pack(">3I", 0, place + len(body), len(data))
        body += data + bytes(-len(data) % 4)
    return struct.pack(">I4H", 0x10000, len(tables), 64, 2, 48) + entries + body


@pytest.fixture(autouse=True)
def no_fonts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder in place of those of the installed fonts; what was looked up before is forgotten."""
    monkeypatch.setattr(fonts, "FOLDERS", (str(tmp_path),))
    caches = [var for var in vars(fonts).values() if hasattr(var, "cache_clear")]
    for cache in caches:
        cache.cache_clear()
    yield tmp_path
    for cache in caches:
        cache.cache_clear()


def drawn(text: str, size: int = 24, anchor: str = "la", at: tuple[int, int] = (20, 20)) -> NDArray[np.uint8]:
    image = Image.new("L", (400, 80))
    Font(size).draw(ImageDraw.Draw(image), at, text, (255, 255, 255) if image.mode == "RGB" else "white", anchor)
    return np.array(image)


def box() -> NDArray[np.uint8]:
    """What the shipped font draws for what it lacks."""
    image = Image.new("L", (400, 80))
    ImageDraw.Draw(image).text((20, 20), "\U0010ffff", "white", fonts._open(fonts.SHIPPED, 24))
    return np.array(image)


@pytest.mark.parametrize("name", ["Müller's dog", "café – é", "собака", "σκύλος", "a\u0301", "a b\u200d"])
def test_the_shipped_font_has_the_letters_of_european_scripts(name: str, caplog: pytest.LogCaptureFixture) -> None:
    assert drawable(name, "id") == name
    assert not caplog.records
    for letter in name.replace(" ", "").replace("\u200d", ""):
        assert drawn(letter).any()
        assert (drawn(letter) != box()).any()


def test_without_a_font_the_identifier_stands_there_and_one_line_says_so(caplog: pytest.LogCaptureFixture) -> None:
    assert [drawable(name, "id") for name in (DOG, "swan", f"a {DOG}", "हिन्दी")] == ["id", "swan", "id", "id"]
    assert [record.getMessage().count("\n") for record in caplog.records] == [0]
    assert (drawn(DOG) == drawn("???")).all()


def test_an_installed_font_gives_the_letters_that_the_shipped_one_lacks(
    no_fonts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (no_fonts / "sub").mkdir()
    (no_fonts / "broken.ttf").write_bytes(b"no font")
    (no_fonts / "sub" / "Tiny-Regular.TTF").write_bytes(tiny_font(DOG))
    mixed = f"é {DOG}"
    assert [drawable(name, "id") for name in (mixed, DOG, "हिन्दी")] == [mixed, DOG, "id"]
    ink = drawn(DOG).any(axis=0).nonzero()[0]
    assert 60 <= ink.max() - ink.min() <= 72  # three triangles of 24 pixels
    assert Font(24).length(mixed) == Font(24).length("é ") + Font(24).length(DOG)
    assert (
        drawn(mixed)[:, : 20 + int(Font(24).length("é "))] == drawn("é ")[:, : 20 + int(Font(24).length("é "))]
    ).all()
    assert (drawn("हि") == drawn("??")).all()
    assert len(caplog.records) == 1


@pytest.mark.parametrize("anchor", ["la", "ma", "rs", "ls", "mm", "lm", "rm", "ra"])
def test_an_anchor_is_where_pil_has_it(anchor: str) -> None:
    image = Image.new("L", (400, 80))
    ImageDraw.Draw(image).text((200, 40), "swan, ü", "white", fonts._open(fonts.SHIPPED, 24), anchor=anchor)
    boxes = [
        Image.fromarray(pixels).getbbox() for pixels in (drawn("swan, ü", anchor=anchor, at=(200, 40)), np.array(image))
    ]
    assert np.abs(np.subtract(*boxes)).max() <= 1


def test_line_breaks_and_marks_that_steer_the_layout_are_not_drawn() -> None:
    assert (drawn("a\nb\u2028c\t") == drawn("a b c ")).all()
    assert (drawn("a\u202eb\u200b") == drawn("ab")).all()
    assert (drawn("a\x1bb") == drawn("a?b")).all()


def test_a_text_is_cut_to_its_place() -> None:
    font = Font(20)
    assert font.shorten("swan", 200) == "swan"
    cut = font.shorten("a swan upon a lake", 100)
    assert cut.startswith("a swan")
    assert cut.endswith("...")
    assert font.length(cut) <= 100 < font.length("a swan upon a lake")
