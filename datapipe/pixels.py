"""Decoding and normalisation that all backends share."""

from __future__ import annotations

import io
from collections.abc import Sequence
from functools import cache

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..shards.normalize import MeanStd, Normalize, mean_std


def jpeg_size(jpeg: bytes) -> tuple[int, int]:
    """Return height and width in pixels from the header alone (1 us); raises ValueError if it has none."""
    try:
        height, width = simplejpeg.decode_jpeg_header(jpeg, strict=False)[:2]
        return int(height), int(width)
    except (ValueError, KeyError):  # it knows no name for some chroma samplings
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as opened:
                return opened.height, opened.width
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"does not decode ({error})") from error


# The header that libjpeg writes for a baseline image in colour: SOI, APP0, two DQT, and SOF0 with 8 bits. Sizes follow.
_MARKERS = {0: "ffd8", 2: "ffe00010", 20: "ffdb0043", 89: "ffdb0043", 158: "ffc0001108"}
_MARKER_BYTES = [start + i for start, digits in _MARKERS.items() for i in range(len(digits) // 2)]
_MARKER_VALUES = np.frombuffer(bytes.fromhex("".join(_MARKERS.values())), np.uint8)
_SIZES, _HEAD_BYTES = 163, 167


def jpeg_sizes(jpegs: Sequence[bytes]) -> list[tuple[int, int] | None]:
    """Return the height and width of JPEGs with the usual header; None for others, which `jpeg_size` reads."""
    heads = b"".join([jpeg[:_HEAD_BYTES].ljust(_HEAD_BYTES, b"\0") for jpeg in jpegs])
    table = np.frombuffer(heads, np.uint8).reshape(-1, _HEAD_BYTES)
    usual = (table[:, _MARKER_BYTES] == _MARKER_VALUES).all(axis=1)
    sizes = table[:, _SIZES:].astype(np.int64) @ np.array([[256, 0], [1, 0], [0, 256], [0, 1]])
    usual &= (sizes > 0).all(axis=1)
    return [(height, width) if ok else None for ok, (height, width) in zip(usual.tolist(), sizes.tolist(), strict=True)]


def decode(jpeg: bytes) -> NDArray[np.uint8]:
    """Decode a JPEG to height x width x 3, uint8 RGB; raises ValueError if it does not decode.

    Where libjpeg-turbo warns, Pillow decodes instead, to the same pixels: it accepts what libjpeg only warns about and
    refuses images that lack pixels.
    """
    try:
        return simplejpeg.decode_jpeg(jpeg, "RGB")
    except (ValueError, KeyError):
        try:
            with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as opened:
                return np.array(opened.convert("RGB"))
        except (OSError, SyntaxError, ValueError) as error:
            raise ValueError(f"does not decode ({error})") from error


def normalize_pixels(images: Tensor, normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
    """Return uint8 images (B x 3 x H x W, 0..255) as `dtype`: scaled to 0..1 and normalised; None: unchanged."""
    if normalize is None:
        return images.to(dtype)
    mean, deviation = _constants(mean_std(normalize), images.device)
    return images.to(torch.float32).div_(255).sub_(mean).div_(deviation).to(dtype)


@cache
def _constants(mean_deviation: MeanStd, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation, 1 x 3 x 1 x 1 each. Cached, as copying them to a GPU makes the host wait."""
    means, deviations = mean_deviation
    return torch.tensor(means, device=device).view(1, 3, 1, 1), torch.tensor(deviations, device=device).view(1, 3, 1, 1)


def normalization_table(normalize: Normalize | None, dtype: torch.dtype) -> Tensor:
    """Return what `normalize_pixels` makes of each of the 256 values of each channel: 3 x 256."""
    values = torch.arange(256, dtype=torch.uint8).expand(1, 3, 1, 256)
    return normalize_pixels(values, normalize, dtype)[0, :, 0]
