"""From the bytes of any raw image to the JPEG that is stored: upright, RGB or greyscale, without EXIF, resized."""

from __future__ import annotations

import io
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from .resize import RESIZERS, Resizer, fit, stored_mode

del WebPImagePlugin  # importing it lets Pillow open WebP; the other formats it knows by itself

FORMATS = ("JPEG", "PNG", "GIF", "BMP", "WEBP")  # Pillow opens MPO, several JPEGs in one file, as a kind of JPEG
MAX_PIXELS = 100_000_000  # guessed: 300 MB decoded; the largest images of ImageNet have a quarter of that
ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are stored.

    resize:   `squish` stretches to size x size; `short-edge` scales the shorter side to the size; `none` keeps sizes.
              An image whose longer side is below the size keeps its size.
    size:     pixels.
    resizer:  `pillow` (bilinear, antialiased) or `opencv` (what the reference's cv2 scripts give, pixel for pixel).
    quality:  of the JPEG that is written, 1 to 100.
    """

    resize: str = "squish"
    size: int = 224
    resizer: str = "pillow"
    quality: int = 95

    def __post_init__(self) -> None:
        if self.resize not in ("squish", "short-edge", "none"):
            raise ValueError(f"resize is {self.resize!r}; wanted squish, short-edge or none")
        if self.resizer not in RESIZERS:
            raise ValueError(f"resizer is {self.resizer!r}; wanted {' or '.join(RESIZERS)}")
        if not 1 <= self.size <= 8192:
            raise ValueError(f"size is {self.size}; wanted 1 to 8192 pixels")
        if not 1 <= self.quality <= 100:
            raise ValueError(f"quality is {self.quality}; wanted 1 to 100")


class RejectedImageError(Exception):
    """An image that cannot be stored: a reason of few words that can be counted, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason = reason
        self.detail = detail


class StoredImage(NamedTuple):
    """A JPEG as it is stored, with what it was before. Sizes are pixels; the source's are those of its upright view."""

    data: bytes
    width: int
    height: int
    source_format: str
    source_width: int
    source_height: int
    changes: list[str]


def store_image(data: bytes, settings: ImageSettings) -> StoredImage:
    """Turn raw image bytes into what is stored; raises RejectedImageError.

    `changes` names what was done: `from PNG`, `CMYK to RGB`, `rotated`, `resized`, `EXIF removed`, and decoder
    warnings as `warning: ...`. An image that needs nothing but its EXIF removed keeps its bytes otherwise.
    """
    if not data:
        raise RejectedImageError("empty", "0 bytes")
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        stored = _store(data, settings, RESIZERS[settings.resizer]())
    return stored._replace(changes=stored.changes + sorted({f"warning: {entry.message}" for entry in raised}))


def _store(data: bytes, settings: ImageSettings, resizer: Resizer) -> StoredImage:
    with _open(data) as image:
        image_format = str(image.format)
        # Where a JPEG does not end as it should, it is looked at whether pixels are missing too.
        cut = image_format in ("JPEG", "MPO") and not _ends_well(data)
    if cut:
        data = _mended(data)
    with _open(data) as image:
        orientation = _orientation(image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        target = fit(width, height, settings.resize, settings.size)
        changes = [
            what
            for what, applies in (
                (f"from {image_format}", image_format != "JPEG"),
                (f"{image.mode} to {stored_mode(image)}", image.mode != stored_mode(image)),
                ("end mended", cut),
                ("rotated", orientation != 1),
                ("resized", target != (width, height)),
            )
            if applies
        ]
        try:
            if not changes or not resizer.decodes(image_format):
                image.load()
            if changes:
                stored = resizer.encode(resizer.resized(data, image, orientation, target), settings.quality)
            else:
                stored = b"".join(_without_exif(data))
                changes = ["EXIF removed"] if len(stored) != len(data) else []
        except (OSError, SyntaxError, ValueError, struct.error) as error:
            raise RejectedImageError("undecodable", str(error)) from error
    return StoredImage(stored, *target, image_format, width, height, changes)


def _open(data: bytes) -> Image.Image:
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise RejectedImageError("not an image", f"begins with {data[:8]!r}") from None
    except Image.DecompressionBombError as error:
        raise RejectedImageError("too large", str(error)) from error
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise RejectedImageError("undecodable", str(error)) from error
    if image.width * image.height > MAX_PIXELS:
        raise RejectedImageError("too large", f"{image.width}x{image.height} pixels, over {MAX_PIXELS:,}")
    return image


def _orientation(image: Image.Image) -> int:
    """Return the EXIF orientation, 1 to 8; 1 (upright) where there is none or it makes no sense."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except (OSError, SyntaxError, ValueError, TypeError, struct.error) as error:
        warnings.warn(f"EXIF not readable ({error})", stacklevel=2)
        return 1
    return orientation if orientation in range(1, 9) else 1


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of a JPEG's segments up to its first scan, whose end is that of the data."""
    position = 2
    while position + 4 <= len(data) and data[position] == 0xFF:
        start = position
        while position + 4 <= len(data) and data[position + 1] == 0xFF:  # fill bytes
            position += 1
        marker = data[position + 1]
        if marker == 0xDA:
            yield marker, start, len(data)
            return
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        yield marker, start, end
        position = end


def _ends_well(data: bytes) -> bool:
    """Tell whether an end-of-image marker follows the first scan of a JPEG."""
    return any(data.find(b"\xff\xd9", start) > 0 for marker, start, _ in _segments(data) if marker == 0xDA)


def _mended(data: bytes) -> bytes:
    """Return a JPEG that lacks its end marker with one; raises RejectedImageError where it lacks pixels too.

    What follows the last pixel changes none: two fillings that decode alike show that no scan data is missing. A
    progressive JPEG may lack whole scans, which nothing tells.
    """
    cut = data.rstrip(b"\xff")
    mended, filled = (cut + filling + b"\xff\xd9" for filling in (b"", b"\x55" * 256))
    try:
        with _open(mended) as one, _open(filled) as other:
            if not one.info.get("progressive") and one.tobytes() == other.tobytes():
                return mended
    except (OSError, SyntaxError, ValueError, struct.error) as error:
        raise RejectedImageError("truncated", str(error)) from error
    raise RejectedImageError("truncated", f"its scan data ends early, after {len(data):,} bytes")


def _without_exif(data: bytes) -> Iterator[bytes]:
    """Yield the JPEG's parts but for its EXIF segments: the pixels stay as they are."""
    yield data[:2]
    for marker, start, end in _segments(data):
        segment = data[start:end].lstrip(b"\xff")  # the marker, its length, its content
        if not (marker == 0xE1 and segment[3:9] == b"Exif\0\0"):
            yield data[start:end]
