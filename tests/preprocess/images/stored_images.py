"""What the tests of stored images have in common."""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

from in21k.preprocess.images.image import EncodedImage, ImageSettings, RejectedImageError, store_image

Draw = Callable[..., Image.Image]
Encode = Callable[..., bytes]
Decode = Callable[[bytes], Image.Image]

ORIENTATION = 0x0112
KEEP = ImageSettings(resize="none")


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    exif[0x010E] = "a caption"
    return exif


def difference(one: Image.Image, two: Image.Image) -> float:
    """Mean absolute difference of pixels, 0 to 255."""
    assert one.size == two.size
    return float(np.abs(np.asarray(one.convert("RGB"), float) - np.asarray(two.convert("RGB"), float)).mean())


def check_stored(stored: EncodedImage) -> Image.Image:
    """Hold a stored image against what all of them are: a JPEG, RGB or L, upright, without EXIF, of the size said."""
    picture = Image.open(io.BytesIO(stored.data))
    picture.load()
    assert (picture.format, picture.size) == ("JPEG", (stored.width, stored.height))
    assert picture.mode in ("RGB", "L")
    assert not {"exif", "xmp", "photoshop"} & picture.info.keys()
    assert len(picture.getexif()) == 0
    return picture


def with_segment(data: bytes, marker: int, content: bytes) -> bytes:
    """Put a segment before all others of a JPEG."""
    return data[:2] + bytes([0xFF, marker]) + (len(content) + 2).to_bytes(2) + content + data[2:]


def reject_reason(data: bytes, settings: ImageSettings) -> str:
    with pytest.raises(RejectedImageError) as rejected:
        store_image(data, settings)
    assert rejected.value.detail
    return rejected.value.reason
