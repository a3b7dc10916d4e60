"""From stored JPEG to normalised pixels, in torch: the plain reference that the other backends agree with."""

from __future__ import annotations

import io

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

# (mean, standard deviation) per RGB channel of pixels in 0..1
NORMALIZATIONS: dict[str, tuple[tuple[float, float, float], tuple[float, float, float]]] = {
    "unit": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def decode_squished(jpeg: bytes, image_size: int) -> Tensor:
    """Decode a JPEG and stretch it to 3 x image_size x image_size, uint8 RGB (bilinear, antialiased).

    Pillow decodes: torchvision gave its decoders up with 0.29. Raises ValueError where it does not decode.
    """
    try:
        with Image.open(io.BytesIO(jpeg), formats=["JPEG"]) as opened:
            pixels = torch.from_numpy(np.array(opened.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError) as error:
        raise ValueError(f"does not decode ({error})") from error
    if pixels.shape[1:] == (image_size, image_size):
        return pixels
    return functional.resize(pixels, [image_size, image_size], antialias=True)


def normalize_pixels(images: Tensor, normalize: str | None, dtype: torch.dtype) -> Tensor:
    """Return uint8 images (B x 3 x H x W, 0..255) as `dtype`: scaled to 0..1 and normalised by name, or as they are."""
    if normalize is None:
        return images.to(dtype)
    means, deviations = NORMALIZATIONS[normalize]
    mean = torch.tensor(means, device=images.device).view(1, 3, 1, 1)
    deviation = torch.tensor(deviations, device=images.device).view(1, 3, 1, 1)
    return images.to(torch.float32).div_(255).sub_(mean).div_(deviation).to(dtype)
