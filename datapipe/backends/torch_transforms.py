"""Apply a sample's plan with torchvision: the reference for the other backends."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.transforms.v2 import functional

from ..augment.draws import Op
from ..augment.policy import SamplePlan
from ..augment.randaugment import CUTOUT_COLOR, FILL, NAMES, inverse_matrix
from ..feed import Jpeg
from ..pixels import decode


def transformed(pixels: Tensor, plan: SamplePlan, size: int) -> Tensor:
    """Return 3 x size x size of a decoded image, uint8 3 x height x width."""
    top, left, height, width = plan.window
    pixels = functional.crop(pixels, top, left, height, width)
    if list(pixels.shape[1:]) != plan.resized:
        pixels = functional.resize(pixels, plan.resized, antialias=True)
    top, left = plan.corner
    pixels = functional.crop(pixels, top, left, size, size)
    if plan.flip:
        pixels = functional.horizontal_flip(pixels)
    if plan.box[2] > plan.box[0] or plan.operations:
        pixels = pixels.clone()
    _fill(pixels, plan.box, plan.color)
    return _with_ops(pixels, plan.operations)


def _with_ops(pixels: Tensor, ops: list[Op]) -> Tensor:
    for kind, value, box in ops:
        pixels = apply_op(pixels, NAMES[kind], value, box)
    return pixels


def decode_and_transform(sample: Jpeg, plan: SamplePlan, out: NDArray[np.uint8]) -> None:
    """Decode a sample and apply its plan, into `out`, S x S x 3; raises ValueError if it does not decode."""
    pixels = torch.from_numpy(decode(sample.jpeg)).permute(2, 0, 1)
    np.copyto(out, transformed(pixels, plan, out.shape[0]).permute(1, 2, 0).numpy())


def apply_ops(pixels: NDArray[np.uint8], ops: list[Op]) -> None:
    """Apply RandAugment's operations to an image S x S x 3, in place."""
    if ops:
        result = _with_ops(torch.from_numpy(pixels).permute(2, 0, 1).contiguous(), ops)
        np.copyto(pixels, result.permute(1, 2, 0).numpy())


def _fill(pixels: Tensor, box: list[int], color: Sequence[int]) -> None:
    top, left, bottom, right = box
    pixels[:, top:bottom, left:right] = pixels.new_tensor(color).view(3, 1, 1)


def apply_op(pixels: Tensor, name: str, value: float, box: list[int]) -> Tensor:
    """Return an image (uint8 3 x S x S) after one of RandAugment's operations; see `randaugment.py`."""
    match name:
        case "cutout":
            pixels = pixels.clone()
            _fill(pixels, box, CUTOUT_COLOR)
            return pixels
        case "invert":
            return functional.invert(pixels)
        case "autocontrast":
            return functional.autocontrast(pixels)
        case "equalize":
            return functional.equalize(pixels)
        case "posterize":
            return functional.posterize(pixels, int(value))
        case "solarize":
            return functional.solarize(pixels, value)
        case "sharpness":
            return functional.adjust_sharpness(pixels, value)
        case "contrast":
            return functional.adjust_contrast(pixels, value)
        case "color":
            return functional.adjust_saturation(pixels, value)
        case "brightness":
            return functional.adjust_brightness(pixels, value)
        case _:
            return _moved(pixels, name, value)


def _moved(pixels: Tensor, name: str, value: float) -> Tensor:
    """Shear, shift or rotate, by the matrix that all backends share."""
    size = pixels.shape[-1]
    matrix = inverse_matrix(name, value, size)
    assert matrix is not None, name
    # from pixels, counted from the corner, to grid_sample's -1 to 1
    matrix[:, 2] = matrix[:, :2].sum(axis=1) + 2 * matrix[:, 2] / size - 1
    theta = torch.from_numpy(matrix[None])
    grid = torch.nn.functional.affine_grid(theta, [1, 3, size, size], align_corners=False)
    mode = "bilinear" if name.startswith("shear") else "nearest"
    above_fill = pixels[None].double() - FILL  # what comes into view is 0
    moved = torch.nn.functional.grid_sample(above_fill, grid, mode=mode, align_corners=False)
    return (moved[0] + FILL).round().to(torch.uint8)
