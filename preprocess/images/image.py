"""From the bytes of any raw image to the JPEG that is stored: upright, RGB or greyscale, without EXIF, resized."""

from __future__ import annotations

import io
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple

from PIL import Image, UnidentifiedImageError, WebPImagePlugin

from ...shards.image_files import DECODER_ERRORS, FORMATS, MAX_PIXELS
from . import jpeg
from .jpeg import Opened
from .resize import RESIZERS, Resizer, fit, get_resizer, stored_mode

del WebPImagePlugin  # importing it lets Pillow open WebP; the other formats it knows by itself

MAX_SIDE = 65_500  # libjpeg's
MAX_RATIO = 1_000  # of the sides, guessed: resizing 30,000,000 x 1 pixels takes gigabytes
MAX_SCAN_MEGAPIXELS = 2_000  # guessed: a progressive JPEG has some ten scans, and each goes over all pixels
ORIENTATION = 0x0112


@dataclass(frozen=True, kw_only=True)
class ImageSettings:
    """How images are stored.

    resize:   `squish` stretches to size x size; `short-edge` scales the shorter side to the size; `none` keeps sizes.
              An image whose longer side is below the size keeps its size.
    size:     pixels.
    resizer:  `pillow` (bilinear, antialiased; a large JPEG may be decoded at half its size, see `resize.reduction`) or
              `opencv` (equal to the reference's cv2 scripts, pixel for pixel).
    quality:  JPEG quality, 1 to 100.
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
    """An image that cannot be stored: a short reason that can be counted, and the detail."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(reason, detail)
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}"


class EncodedImage(NamedTuple):
    """A JPEG as it is stored, and facts about its source. Sizes are in pixels; the source's size is taken upright."""

    data: bytes
    width: int
    height: int
    source_format: str
    source_width: int
    source_height: int
    changes: list[str]


def store_image(data: bytes, settings: ImageSettings) -> EncodedImage:
    """Turn raw image bytes into the JPEG that is stored; raises RejectedImageError.

    `changes` lists what was done: `from PNG`, `CMYK to RGB`, `rotated`, `resized`, `EXIF removed`, and the warnings of
    libjpeg and Pillow as `warning: ...`. An image that needs no change but the removal of its EXIF keeps its other
    bytes. One whose coding not every decoder reads (arithmetic coding, say) is encoded again: `recoded`.
    """
    if not data:
        raise RejectedImageError("empty", "0 bytes")
    with warnings.catch_warnings(record=True) as raised:
        warnings.simplefilter("always")
        stored = _store(data, settings, get_resizer(settings.resizer))
    return stored._replace(changes=stored.changes + sorted({f"warning: {entry.message}" for entry in raised}))


def _store(data: bytes, settings: ImageSettings, resizer: Resizer) -> EncodedImage:
    with _rejecting():
        opened = open_image(data)
        cut = opened.is_jpeg and not jpeg.ends_well(data)
        if cut:
            opened = open_image(jpeg.mended(data, progressive="progressive" in opened.image.info))
        data, image = opened.data, opened.image
        image_format = str(image.format)
        # Reading the EXIF of other formats may decode them. A second decode of the same object would then miss errors.
        orientation = _orientation(image if opened.is_jpeg else open_image(data).image)
        width, height = image.size if orientation < 5 else image.size[::-1]
        target = fit(width, height, settings.resize, settings.size)
        _check_sides(*target.size, "as stored")
        changes = [
            what
            for what, applies in (
                (f"from {image_format}", image_format != "JPEG"),
                (f"{image.mode} to {stored_mode(image)}", image.mode != stored_mode(image)),
                ("end mended", cut),
                ("rotated", orientation != 1),
                ("resized", target.size != (width, height)),
            )
            if applies
        ]
        if not changes and not opened.is_common:
            changes = ["recoded"]
        if opened.is_jpeg and not (changes and opened.is_plain):
            jpeg.check(opened)  # the resizer checks plain ones as it decodes them
        if changes:
            stored = resizer.encode(resizer.resized(opened, orientation, target), settings.quality)
        else:
            stored, removed = jpeg.without_metadata(data)
            changes = [f"{kind} removed" for kind in removed]
    return EncodedImage(stored, *target.size, image_format, width, height, changes)


@contextmanager
def _rejecting() -> Generator[None]:
    """Turn what decoders raise into a RejectedImageError."""
    try:
        yield
    except UnidentifiedImageError as error:
        raise RejectedImageError("not an image", str(error)) from None
    except Image.DecompressionBombError as error:
        raise RejectedImageError("too large", str(error)) from error
    except jpeg.TruncatedJpegError as error:
        raise RejectedImageError("truncated", str(error)) from error
    except DECODER_ERRORS as error:
        raise RejectedImageError("undecodable", str(error) or type(error).__name__) from error


def open_image(data: bytes) -> Opened:
    """Open an image and check its header, before any of it is decoded.

    Raises RejectedImageError, and what decoders raise.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnidentifiedImageError(f"begins with {data[:8]!r}") from None
    _check_sides(*image.size)
    if image.width * image.height > MAX_PIXELS:
        raise RejectedImageError("too large", f"{image.width}x{image.height} pixels, over {MAX_PIXELS:,}")
    header = jpeg.read_header(data) if jpeg.is_jpeg(image) else None
    if header and header.num_scans * image.width * image.height > MAX_SCAN_MEGAPIXELS * 1e6:
        scans = f"{header.num_scans:,} scans of {image.width}x{image.height} pixels"
        raise RejectedImageError("too many scans", f"{scans}, over {MAX_SCAN_MEGAPIXELS:,} megapixels together")
    return Opened(data, image, header)


def _check_sides(width: int, height: int, which: str = "as it is") -> None:
    short, long = sorted((width, height))
    if long > MAX_SIDE or long > MAX_RATIO * short:
        raise RejectedImageError(
            "too wide",
            f"{width}x{height} pixels {which}, over {MAX_SIDE:,}, or one side over {MAX_RATIO:,} times the other",
        )


def _orientation(image: Image.Image) -> int:
    """Return the orientation, 1 to 8, from EXIF, else from XMP; 1 (upright) where it is missing or invalid."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except DECODER_ERRORS as error:
        warnings.warn(f"EXIF not readable ({error})", stacklevel=2)
        return 1
    return orientation if orientation in range(1, 9) else 1
