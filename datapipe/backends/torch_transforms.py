"""A sample's plan carried out by torchvision's functions: the plain reference of the other backends."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from ..augment.policy import SamplePlan
from ..augment.randaugment import CUTOUT_COLOR, FILL, NAMES, inverse_matrix


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
    for kind, value, box in plan.operations:
        pixels = apply_op(pixels, NAMES[kind], value, box)
    return pixels


def _fill(pixels: Tensor, box: list[int], color: Sequence[int]) -> None:
    top, left, bottom, right = box
    pixels[:, top:bottom, left:right] = pixels.new_tensor(color).view(3, 1, 1)


def apply_op(pixels: Tensor, name: str, value: float, box: list[int]) -> Tensor:
    """Return an image (uint8 3 x S x S) after one of RandAugment's operations; `randaugment.py` says what they are."""
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
