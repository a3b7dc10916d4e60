"""From stored JPEG to normalised pixels: what the backends share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache
from typing import cast

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

Channels = tuple[float, float, float]  # red, green and blue
# What `normalize` may be: a name; or mean and standard deviation of pixels in 0..1, each a number or one per channel.
Normalize = str | Sequence[float | Sequence[float]]

NORMALIZATIONS: dict[str, tuple[Channels, Channels]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return height and width in pixels by the header alone (1 us); raises ValueError where it has none."""
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2]
        return int(height), int(width)
    except (ValueError, KeyError):  # it has no name for some chroma samplings
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as opened:
                return opened.height, opened.width
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"does not decode ({error})") from error


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to height x width x 3, uint8 RGB; raises ValueError where it does not decode.

    What libjpeg-turbo has a word to say about is decoded by Pillow, whose pixels are the same: it takes what libjpeg
    only warns of, and refuses what lacks pixels.
    """
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB")
    except (ValueError, KeyError):
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as opened:
                return np.array(opened.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"does not decode ({error})") from error


def mean_and_deviation(normalize: Normalize) -> tuple[Channels, Channels]:
    """Return the mean and the standard deviation of each channel; raises ValueError for no `Normalize`.

    >>> mean_and_deviation((0.5, (0.25, 0.25, 0.2)))
    ((0.5, 0.5, 0.5), (0.25, 0.25, 0.2))
    """
    if isinstance(normalize, str) and normalize in NORMALIZATIONS:
        return NORMALIZATIONS[normalize]
    try:
        numbers = [np.broadcast_to(np.asarray(each, np.float64), 3) for each in normalize]
        means, deviations = (cast(Channels, tuple(each.tolist())) for each in numbers)
    except (TypeError, ValueError):  # no pair, no numbers, or not three
        pass
    else:
        if all(0 <= mean <= 1 for mean in means) and all(0 < deviation <= 1 for deviation in deviations):
            return means, deviations
    raise ValueError(
        f"normalize is {normalize!r}; known: {', '.join(NORMALIZATIONS)}, None, (mean, deviation) of pixels in 0..1 "
        "(mean 0 to 1, deviation more than 0 and at most 1), each a number or three"
    )


def normalize_pixels(images: Tensor, normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
    """Return uint8 images (B x 3 x H x W, 0..255) as `dtype`: scaled to 0..1 and normalised, or (None) as they are."""
    if normalize is None:
        return images.to(dtype)
    mean, deviation = _constants(mean_and_deviation(normalize), images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(deviation).to(dtype)


@cache
def _constants(mean_deviation: tuple[Channels, Channels], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, 1 x 3 x 1 x 1 each: made once, as the host waits until they are on a GPU."""
    means, deviations = mean_deviation
    return torch.tensor(means, device=device).view(1, 3, 1, 1), torch.tensor(deviations, device=device).view(1, 3, 1, 1)


def normalization_table(normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
    """Return what `normalize_pixels` makes of each of the 256 values of each channel: 3 x 256."""
    values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    return normalize_pixels(values, normalize, dtype)[0, :, 0]
