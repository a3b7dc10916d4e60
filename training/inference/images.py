"""Images as a network takes them: upright, RGB, resized as in its validation."""

from __future__ import annotations

import io
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode, functional

from ...shards.image_files import DECODER_ERRORS, FORMATS, MAX_PIXELS

# A file, its bytes, an opened image, or its pixels (uint8, height x width x 3).
Picture: TypeAlias = "Path | str | bytes | Image.Image | NDArray[np.uint8]"


class UnreadableImageError(ValueError):
    """An image that cannot be read, and why."""


def read_image(picture: Picture) -> Image.Image:
    """Return an image upright and RGB: transparency is dropped, of 16 bits a channel the upper eight stay.

    Raises UnreadableImageError for other formats than JPEG, PNG, GIF, BMP and WebP, for damaged images, and above 100
    million pixels.
    """
    if isinstance(picture, np.ndarray):
        return Image.fromarray(picture).convert("RGB")
    opened = picture if isinstance(picture, Image.Image) else _open(picture)
    if opened.width * opened.height > MAX_PIXELS:
        raise UnreadableImageError(f"too large: {opened.width}x{opened.height} pixels, over {MAX_PIXELS:,}")
    try:
        upright = ImageOps.exif_transpose(opened)
        if upright.mode.startswith("I"):
            upright = Image.fromarray((np.asarray(upright).astype(np.uint32) >> 8).astype(np.uint8))
        return upright.convert("RGB")
    except DECODER_ERRORS as error:
        raise UnreadableImageError(f"undecodable: {str(error) or type(error).__name__}") from error


def _open(picture: Path | str | bytes) -> Image.Image:
    try:
        data = picture if isinstance(picture, bytes) else Path(picture).read_bytes()
    except OSError as error:
        raise UnreadableImageError(error.strerror or str(error)) from error
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except UnidentifiedImageError:
        raise UnreadableImageError(f"not an image; wanted {', '.join(FORMATS)}") from None
    except Image.DecompressionBombError as error:
        raise UnreadableImageError(f"too large: {error}") from error
    except DECODER_ERRORS as error:
        raise UnreadableImageError(f"undecodable: {str(error) or type(error).__name__}") from error


def fit_image(
    image: Image.Image, image_size: int, crop_pct: float | None = None, interpolation: str = "bilinear"
) -> Tensor:
    """Return an RGB image as uint8 (3, image_size, image_size).

    crop_pct: the shorter side is resized to image_size / crop_pct and the middle taken; None: the whole image is
              stretched. Either is what the loaders do in validation.

    Raises UnreadableImageError for one so thin that it would have over 100 million pixels before the middle is taken.
    """
    pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
    height, width = pixels.shape[1:]
    resized = [image_size, image_size]
    if crop_pct is not None:
        resized = [side * int(image_size / crop_pct) // min(height, width) for side in (height, width)]
        # Nothing less than the whole is resized: cut out before, the middle would get other pixels.
        if resized[0] * resized[1] > MAX_PIXELS:
            raise UnreadableImageError(
                f"too thin: {width}x{height} pixels, and {resized[1]}x{resized[0]}, over {MAX_PIXELS:,}, before the "
                "middle is taken"
            )
    if [height, width] != resized:
        pixels = functional.resize(pixels, resized, InterpolationMode(interpolation), antialias=True)
    top, left = (round((side - image_size) / 2) for side in resized)
    return functional.crop(pixels, top, left, image_size, image_size)
