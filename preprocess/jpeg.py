"""JPEG files: decoded with what libjpeg warns of, their end mended, their EXIF cut out."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from functools import partial

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

END = b"\xff\xd9"
SCAN = 0xDA
APP1 = 0xE1
FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
COMMON_FRAMES = (0xC0, 0xC1, 0xC2)  # sequential and progressive Huffman: what every decoder reads
# What libjpeg's warnings begin with (its jerror.h). TurboJPEG reports errors the same way, and "not strict" hides both.
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


def is_jpeg(image: Image.Image) -> bool:
    """Tell whether an opened image is a JPEG, also as the first of several in one file (MPO)."""
    return image.format in ("JPEG", "MPO")


def is_plain(image: Image.Image) -> bool:
    """Tell whether an opened image is a JPEG of RGB or greyscale."""
    return is_jpeg(image) and image.mode in ("RGB", "L")


def decode(data: bytes, image: Image.Image, colorspace: str, reduction: int = 1) -> NDArray[np.uint8] | None:
    """Return the pixels, height x width x channels, at 1/1, 1/2, 1/4 or 1/8 of the opened image's size, rounded up.

    They are Pillow's, but what libjpeg warns of first becomes a warning. None where TurboJPEG does not know the chroma
    sampling, so that only Pillow can decode it. Raises OSError or ValueError.
    """
    width, height = (-(-side // reduction) for side in image.size)
    scaled = partial(simplejpeg.decode_jpeg, data, colorspace, min_width=width, min_height=height, min_factor=reduction)
    try:
        return scaled()
    except ValueError as error:
        message = str(error)
    if "subsampling" in message:
        return None
    if not message.startswith(WARNINGS):
        raise ValueError(message)
    _load(image)  # libjpeg tells its first warning only, Pillow whether pixels are missing
    warnings.warn(message, stacklevel=2)
    return scaled(strict=False)


def check(data: bytes, image: Image.Image) -> None:
    """Read all of a JPEG's scan data: raises and warns as `decode` does, and takes less time."""
    if decode(data, image, "CMYK" if image.mode == "CMYK" else "GRAY", reduction=8) is None:
        _load(image)


def _load(image: Image.Image) -> None:
    try:
        image.load()
    except OSError as error:
        if "truncated" not in str(error):
            raise
        raise TruncatedJpegError(str(error)) from error


def segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of a JPEG's segments up to its first scan, whose end is that of the data."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        start = position
        while position + 4 <= len(data) and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        marker = data[position + 1]
        if marker == SCAN:
            yield marker, start, len(data)
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        yield marker, start, end
        position = end


def is_common(data: bytes) -> bool:
    """Tell whether every decoder reads it: not arithmetic, not lossless, 8 bits a sample, the usual chroma sampling."""
    try:
        simplejpeg.decode_jpeg_header(data, strict=False)
    except (ValueError, KeyError):  # it has no name for 4:4:1
        return False
    return any(
        marker in COMMON_FRAMES and data[start:end].lstrip(b"\xff")[3:4] == b"\x08"
        for marker, start, end in segments(data)
        if marker in FRAMES
    )


def ends_well(data: bytes) -> bool:
    """Tell whether an end-of-image marker follows the first scan of a JPEG."""
    return data.endswith(END) or any(
        data.rfind(END, start) > 0 for marker, start, _ in segments(data) if marker == SCAN
    )


def mended(data: bytes, *, progressive: bool) -> bytes:
    """Return a JPEG that lacks its end marker with one; raises TruncatedJpegError where it lacks pixels too.

    What follows the last pixel changes none: two fillings that decode alike show that no scan data is missing. A
    progressive JPEG may lack whole scans, which nothing tells.
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


def without_exif(data: bytes) -> bytes:
    """Return the JPEG without its EXIF segments: the pixels stay as they are."""
    kept = [data[:2]]
    for marker, start, end in segments(data):
        segment = data[start:end].lstrip(b"\xff")  # the marker, its length, its content
        if not (marker == APP1 and segment[3:9] == b"Exif\0\0"):
            kept.append(data[start:end])
    return b"".join(kept)
