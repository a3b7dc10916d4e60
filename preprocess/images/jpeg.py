"""JPEG files: read the header, decode with libjpeg's warnings, add a missing end mark, remove metadata."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

END = b"\xff\xd9"
SCAN = 0xDA
APP1, APP13 = 0xE1, 0xED
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
SEQUENTIAL_FRAMES = (0xC0, 0xC1)
COMMON_FRAMES = (*SEQUENTIAL_FRAMES, 0xC2)  # sequential and progressive Huffman: what every decoder reads
WITHOUT_LENGTH = frozenset((0x01, *range(0xD0, 0xD8)))  # markers that stand alone
_MARKER = re.compile(rb"\xff+[^\x00\xff]")  # with its fill bytes
# Segments that may hold an orientation, by marker and first bytes; they are removed.
METADATA = (
    (APP1, b"Exif\0\0", "EXIF"),
    (APP1, b"", "XMP"),
    (APP13, b"", "Photoshop data"),
)
# How libjpeg's warnings begin (its jerror.h). TurboJPEG reports errors the same way, and "not strict" hides both.
WARNINGS = (
    "Corrupt JPEG data",
    "Inconsistent progression",
    "Invalid SOS parameters",
    "Premature end",
    "Unknown Adobe",
    "Warning:",
)


class TruncatedJpegError(ValueError):
    """A JPEG that lacks pixels."""


class Header(NamedTuple):
    """Facts from the segments before the first scan of a JPEG.

    is_common: whether every decoder reads it: 8 bits a sample, sequential or progressive Huffman coding, common chroma
               sampling, and no bytes between the segments.
    num_scans: number of scan markers in the file, those behind the end of the image included.
    """

    is_common: bool
    num_scans: int


class Opened(NamedTuple):
    """An opened image: its bytes, Pillow's image of them, and its header where it is a JPEG."""

    data: bytes
    image: Image.Image
    header: Header | None

    @property
    def is_jpeg(self) -> bool:
        """Whether it is a JPEG, also as the first of several in one file (MPO)."""
        return self.header is not None

    @property
    def is_common(self) -> bool:
        """Whether it is a JPEG that every decoder reads. Only such may be given to TurboJPEG.

        For a lossless JPEG it would write the pixels of the full size into a buffer of the reduced size.
        """
        return self.header is not None and self.header.is_common

    @property
    def is_plain(self) -> bool:
        """Whether it is a common JPEG of RGB or greyscale."""
        return self.is_common and self.image.mode in ("RGB", "L")


def is_jpeg(image: Image.Image) -> bool:
    """Tell whether an opened image is a JPEG, also as the first of several in one file (MPO)."""
    return image.format in ("JPEG", "MPO")


def decode(opened: Opened, colorspace: str, reduction: int = 1) -> NDArray[np.uint8]:
    """Return a common JPEG's pixels, height x width x channels, at 1/1, 1/2, 1/4 or 1/8 of its size, rounded up.

    The pixels equal Pillow's. libjpeg's first warning becomes a Python warning. Raises OSError or ValueError.
    """
    assert opened.is_common
    data, image = opened.data, opened.image
    width, height = (-(-side // reduction) for side in image.size)
    scaled = partial(simplejpeg.decode_jpeg, data, colorspace, min_width=width, min_height=height, min_factor=reduction)
    try:
        return scaled()
    except ValueError as error:
        message = str(error)
    if not message.startswith(WARNINGS):
        raise ValueError(message)
    _load(image)  # libjpeg reports its first warning alone; Pillow raises where pixels are missing
    warnings.warn(message, stacklevel=2)
    return scaled(strict=False)


def check(opened: Opened) -> None:
    """Read all scan data of a JPEG: raises and warns as `decode` does, in less time."""
    if opened.is_common:
        decode(opened, "CMYK" if opened.image.mode == "CMYK" else "GRAY", reduction=8)
    else:
        _load(opened.image)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error):
            raise
        raise TruncatedJpegError(str(error)) from error


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of a JPEG's segments up to its first scan, which ends with the data.

    Like libjpeg, this skips bytes between the segments.
    """
    position = 2
    while match := _MARKER.search(data, position):
        marker = data[match.end() - 1]
        if marker == SCAN:
            yield marker, match.start(), len(data)
            return
        length = 0 if marker in WITHOUT_LENGTH else int.from_bytes(data[match.end() : match.end() + 2])
        position = match.end() + length
        yield marker, match.start(), position


def content(data: bytes, start: int, end: int) -> bytes:
    """Return the content of a segment, without its marker and its length."""
    return data[start:end].lstrip(b"\xff")[3:]


def read_header(data: bytes) -> Header:
    """Read a JPEG up to its first scan; libjpeg's warning about that part becomes a Python warning."""
    frames: list[tuple[int, bytes]] = []
    is_common, num_scans, position = _has_common_sampling(data), 0, 2
    for marker, start, end in segments(data):
        is_common = is_common and start == position and marker not in WITHOUT_LENGTH
        position = end
        if marker in FRAMES:
            frames.append((marker, content(data, start, end)))
        if marker == SCAN:
            num_scans = 1 if _holds_all(frames, content(data, start, start + 8)) else data.count(b"\xff\xda", start)
    is_common = is_common and [marker in COMMON_FRAMES and frame[:1] == b"\x08" for marker, frame in frames] == [True]
    return Header(is_common, num_scans)


def _holds_all(frames: list[tuple[int, bytes]], scan: bytes) -> bool:
    """Tell whether a first scan is the only one: it holds every component of a sequential frame."""
    return any(marker in SEQUENTIAL_FRAMES and frame[5:6] == scan[:1] for marker, frame in frames)


def _has_common_sampling(data: bytes) -> bool:
    try:
        simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError) as error:  # it raises KeyError for 4:4:1
        if str(error).startswith(WARNINGS):
            warnings.warn(str(error), stacklevel=2)
        return False
    return True


def ends_well(data: bytes) -> bool:
    """Tell whether an end mark follows the first scan of a JPEG."""
    return data.endswith(END) or any(
        data.rfind(END, start) > 0 for marker, start, _ in segments(data) if marker == SCAN
    )


def mended(data: bytes, *, progressive: bool) -> bytes:
    """Return a JPEG that lacks its end mark with one; raises TruncatedJpegError where it lacks pixels too.

    Bytes after the last pixel change no pixel: two fillings that decode alike show that no scan data is missing. Of a
    progressive JPEG whole scans may be missing, which this cannot detect: it always raises.
    """
    short = TruncatedJpegError(f"its scan data ends early, after {len(data):,} bytes")
    if progressive:
        raise short
    cut = data.rstrip(b"\xff")
    one, other = (cut + filling + END for filling in (b"", b"\x55" * 256))
    try:
        if _pixels(one) == _pixels(other):
            return one
    except (OSError, SyntaxError, ValueError) as error:
        raise short from error
    raise short


def _pixels(data: bytes) -> bytes:
    return Image.open(io.BytesIO(data), formats=("JPEG",)).tobytes()


def without_metadata(data: bytes) -> tuple[bytes, list[str]]:
    """Return a JPEG without its METADATA segments, and the kinds that were removed. The pixels do not change."""
    kept: list[bytes] = []
    removed: set[str] = set()
    position = 0
    for marker, start, end in segments(data):
        kinds = (kind for of, begin, kind in METADATA if of == marker and content(data, start, end).startswith(begin))
        kind = next(kinds, None)
        if kind:
            kept.append(data[position:start])
            removed.add(kind)
            position = end
    return b"".join([*kept, data[position:]]), sorted(removed)
