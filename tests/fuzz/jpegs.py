"""Small JPEGs of every kind, and mutants of them: what a decoder is held to never to die of.

A mutant is told by its number alone, so that a find can be made again.
"""

from __future__ import annotations

import io
import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

SCAN = b"\xff\xda"
FRAME_MARKERS = [*range(0xC0, 0xC4), *range(0xC5, 0xC8), *range(0xC9, 0xCC), *range(0xCD, 0xD0)]
SIDES = (0, 1, 2, 7, 8, 9, 15, 16, 17, 31, 33, 64, 255, 257, 1024)
MAX_MUTATIONS = 4


def drawn(width: int, height: int, seed: int = 0) -> Image.Image:
    """Draw an RGB picture of smooth random colours."""
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 5, 3), np.uint8)
    return Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, **options: Any) -> bytes:
    """Encode a picture as a JPEG with Pillow's options."""
    out = io.BytesIO()
    image.save(out, "MPO" if options.get("save_all") else "JPEG", **options)
    return out.getvalue()


def segment(marker: int, content: bytes) -> bytes:
    """Make a segment of a JPEG."""
    return b"\xff%c" % marker + (len(content) + 2).to_bytes(2) + content


def lossless(image: Image.Image) -> bytes:
    """Encode an RGB picture as a lossless JPEG (ITU T.81, annex H): the differences from the left neighbour."""
    values = np.asarray(image, int)
    left = np.roll(values, 1, axis=1)
    left[1:, 0], left[0, 0] = values[:-1, 0], 128
    bits: list[str] = []
    for difference in (values - left).ravel().tolist():
        category = abs(difference).bit_length()
        offset = difference if difference >= 0 else difference + (1 << category) - 1
        bits.append(f"{category:04b}" + (f"{offset:0{category}b}" if category else ""))
    coded = "".join(bits)
    coded += "1" * (-len(coded) % 8)
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xEE, b"Adobe\0\x64" + bytes(5)),  # of no colour transform
            segment(0xC3, b"\x08" + image.height.to_bytes(2) + image.width.to_bytes(2) + b"\3\1\x11\0\2\x11\0\3\x11\0"),
            segment(0xC4, bytes([0, 0, 0, 0, 9, *[0] * 12, *range(9)])),  # nine categories of four bits each
            segment(0xDA, b"\3\1\0\2\0\3\0\1\0\0"),
            int(coded, 2).to_bytes(len(coded) // 8).replace(b"\xff", b"\xff\x00"),
            b"\xff\xd9",
        )
    )


def with_sampling(data: bytes, component: int, factors: int) -> bytes:
    """Give a component of a JPEG other sampling factors than those of its data."""
    place = data.index(b"\xff\xc0") + 11 + 3 * component
    return data[:place] + bytes([factors]) + data[place + 1 :]


@cache
def small_jpegs() -> list[bytes]:
    """Return twenty JPEGs of one to four kilobytes, each of another coding."""
    image, exif = drawn(40, 24), Image.Exif()
    exif[0x0112] = 6
    grey, inks = image.convert("L"), image.convert("CMYK")
    ycck = bytearray(encoded(inks))
    ycck[ycck.index(b"Adobe") + 11] = 2
    return [
        encoded(image, subsampling=0),
        encoded(image, subsampling=1),
        encoded(image, subsampling=2),
        encoded(image, progressive=True),
        encoded(image, progressive=True, subsampling=0, restart_marker_blocks=2),
        encoded(image, restart_marker_blocks=1),
        encoded(image, restart_marker_rows=1, optimize=True),
        encoded(image, exif=exif, comment=b"drawn", icc_profile=b"a profile"),
        encoded(image, keep_rgb=True),
        encoded(image, save_all=True, append_images=[image]),
        encoded(grey),
        encoded(grey, progressive=True),
        encoded(inks),
        encoded(inks, progressive=True),
        bytes(ycck),
        encoded(drawn(1, 1)),
        encoded(drawn(257, 3), progressive=True),
        with_sampling(encoded(image, subsampling=0), 0, 0x41),
        with_sampling(encoded(image, subsampling=0), 1, 0x21),
        lossless(drawn(24, 16)),
    ]


Mutation = Callable[[random.Random, bytearray], None]


def segment_places(data: bytes | bytearray) -> list[tuple[int, int]]:
    """Return (start, end) of the segments before the first scan, and of that scan's header, as lengths tell them."""
    places, position = [], 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        places.append((position, min(end, len(data))))
        if data[position + 1] == SCAN[1]:
            break
        position = end
    return places or [(0, len(data))]


def of_kind(data: bytearray, markers: list[int]) -> list[tuple[int, int]]:
    """Return the places of the segments with one of the markers; of all where none has."""
    places = segment_places(data)
    return [(start, end) for start, end in places if end > start + 1 and data[start + 1] in markers] or places


def scan_places(data: bytearray) -> list[int]:
    """Return where scans begin; the file's start where none does."""
    return [match.start() for match in re.finditer(SCAN, data)] or [0]


def change_byte(draw: random.Random, data: bytearray, start: int, end: int) -> None:
    """Give a byte of a range another value: a flipped bit, an extreme, or any."""
    place = draw.randrange(start, max(start + 1, end))
    if place < len(data):
        flipped = data[place] ^ (1 << draw.randrange(8))
        data[place] = draw.choice((flipped, 0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)))


def in_header(draw: random.Random, data: bytearray) -> None:
    """Change a byte of any segment."""
    change_byte(draw, data, *draw.choice(segment_places(data)))


def in_frame(draw: random.Random, data: bytearray) -> None:
    """Change a byte of the frame header: its precision, sides, components and sampling factors."""
    change_byte(draw, data, *draw.choice(of_kind(data, FRAME_MARKERS)))


def in_scan_header(draw: random.Random, data: bytearray) -> None:
    """Change a byte of the header of any scan: its components, tables and spectral selection."""
    start = draw.choice(scan_places(data))
    change_byte(draw, data, start + 2, start + 14)


def in_huffman_counts(draw: random.Random, data: bytearray) -> None:
    """Change how many codes of a length a Huffman table has."""
    start, _ = draw.choice(of_kind(data, [0xC4]))
    change_byte(draw, data, start + 4, start + 21)


def in_scan(draw: random.Random, data: bytearray) -> None:
    """Change a byte of the coded data."""
    change_byte(draw, data, segment_places(data)[-1][1], len(data))


def other_coding(draw: random.Random, data: bytearray) -> None:
    """Give the frame another marker."""
    start, _ = draw.choice(of_kind(data, FRAME_MARKERS))
    data[start + 1 : start + 2] = bytes([draw.choice(FRAME_MARKERS)])


def other_side(draw: random.Random, data: bytearray) -> None:
    """Give the frame another height or width."""
    start, _ = draw.choice(of_kind(data, FRAME_MARKERS))
    place = start + draw.choice((5, 7))
    data[place : place + 2] = draw.choice(SIDES).to_bytes(2)


def repeated_segment(draw: random.Random, data: bytearray) -> None:
    """Put a segment in once more, anywhere among the others or behind."""
    places = segment_places(data)
    start, end = draw.choice(places)
    place = draw.choice([*(begin for begin, _ in places), len(data)])
    data[place:place] = data[start:end]


def lost_segment(draw: random.Random, data: bytearray) -> None:
    """Take a segment out."""
    start, end = draw.choice(segment_places(data))
    del data[start:end]


def foreign_segment(draw: random.Random, data: bytearray) -> None:
    """Put a segment of another of the small JPEGs among the others."""
    other = draw.choice(small_jpegs())
    start, end = draw.choice(segment_places(other))
    place, _ = draw.choice(segment_places(data))
    data[place:place] = other[start:end]


def repeated_scan(draw: random.Random, data: bytearray) -> None:
    """Let the data from a scan on follow once more."""
    start = draw.choice(scan_places(data))
    data += data[start:]


def cut(draw: random.Random, data: bytearray) -> None:
    """Shorten the file."""
    del data[draw.randrange(2, max(3, len(data))) :]


def shifted(draw: random.Random, data: bytearray) -> None:
    """Take bytes out of the file, or put some in."""
    place = draw.randrange(2, max(3, len(data)))
    data[place : place + draw.randrange(4)] = draw.randbytes(draw.randrange(4))


MUTATIONS: tuple[Mutation, ...] = (
    in_header,
    in_header,
    in_frame,
    in_frame,
    in_scan_header,
    in_scan_header,
    in_huffman_counts,
    in_scan,
    other_coding,
    other_side,
    repeated_segment,
    lost_segment,
    foreign_segment,
    repeated_scan,
    cut,
    shifted,
)


def mutant(number: int, seed: int = 0) -> bytes:
    """Return the mutant of a number: one of the small JPEGs, in turns, after one to four mutations."""
    draw = random.Random(seed << 40 | number)
    jpegs = small_jpegs()
    data = bytearray(jpegs[number % len(jpegs)])
    for _ in range(draw.randint(1, MAX_MUTATIONS)):
        draw.choice(MUTATIONS)(draw, data)
        if len(data) < 4:
            break
    return bytes(data)
