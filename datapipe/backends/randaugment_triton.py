"""RandAugment on a GPU: two kernels for each of an image's two operations, whatever the operations are.

The first fills a table of 256 values for each image and channel, for operations that change tones. The second passes
once over the pixels: it moves, covers or blends them, or looks them up in the table.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
import torch
import triton
import triton.language as tl
from torch import Tensor

from ..augment.draws import Operations
from ..augment.randaugment import CUTOUT_COLOR, FILL, NAMES, inverse_matrix

_BLOCK = 1024  # pixels that a program holds at a time (guessed)
_NUM_PARAMETERS = tl.constexpr(11)  # of an operation: value, box (top, left, bottom, right), inverse matrix (2 x 3)
_FILL = tl.constexpr(FILL)
_RED, _GREEN, _BLUE = map(tl.constexpr, CUTOUT_COLOR)
_AUTOCONTRAST = tl.constexpr(NAMES.index("autocontrast"))
_BRIGHTNESS = tl.constexpr(NAMES.index("brightness"))
_COLOR = tl.constexpr(NAMES.index("color"))
_CONTRAST = tl.constexpr(NAMES.index("contrast"))
_CUTOUT = tl.constexpr(NAMES.index("cutout"))
_EQUALIZE = tl.constexpr(NAMES.index("equalize"))
_INVERT = tl.constexpr(NAMES.index("invert"))
_POSTERIZE = tl.constexpr(NAMES.index("posterize"))
_ROTATE = tl.constexpr(NAMES.index("rotate"))
_SHARPNESS = tl.constexpr(NAMES.index("sharpness"))
_SHEAR_X = tl.constexpr(NAMES.index("shear_x"))
_SHEAR_Y = tl.constexpr(NAMES.index("shear_y"))
_SOLARIZE = tl.constexpr(NAMES.index("solarize"))
_TRANSLATE_X = tl.constexpr(NAMES.index("translate_x"))
_TRANSLATE_Y = tl.constexpr(NAMES.index("translate_y"))


@triton.jit
def _grey(pixels: tl.tensor, inside: tl.tensor):
    """Return the grey levels of pixels, int32, by the weights and rounding of OpenCV."""
    red = tl.load(pixels, mask=inside, other=0).to(tl.int32)
    green = tl.load(pixels + 1, mask=inside, other=0).to(tl.int32)
    blue = tl.load(pixels + 2, mask=inside, other=0).to(tl.int32)
    return tl.where(inside, (red * 4899 + green * 9617 + blue * 1868 + 8192) >> 14, 0)


@triton.jit
def _fill_tables(
    images: tl.tensor,
    codes: tl.tensor,
    parameters: tl.tensor,
    tables: tl.tensor,
    num_pixels: tl.tensor,
    block: tl.constexpr,
):
    """One program per image and channel: what the image's operation makes of each value 0..255."""
    image, channel = tl.program_id(0), tl.program_id(1)
    code = tl.load(codes + image)
    value = tl.load(parameters + image * _NUM_PARAMETERS)
    levels = tl.arange(0, 256)
    old = levels.to(tl.float32)
    new = old
    pixels = images + image.to(tl.int64) * num_pixels * 3
    if code == _INVERT:
        new = 255 - old
    if code == _POSTERIZE:
        step = tl.exp2(8 - value)
        new = tl.floor(old / step) * step
    if code == _SOLARIZE:
        new = tl.where(old < value, old, 255 - old)
    if code == _BRIGHTNESS:
        new = old * value
    if code == _CONTRAST:
        total = tl.zeros((block,), tl.int32)
        for first in range(0, num_pixels, block):  # pyright: ignore[reportArgumentType]
            places = first + tl.arange(0, block)
            total += _grey(pixels + 3 * places, places < num_pixels)
        mean = tl.floor(tl.sum(total, 0).to(tl.float32) / num_pixels + 0.5)
        new = mean + value * (old - mean)
    if (code == _AUTOCONTRAST) | (code == _EQUALIZE):
        counts = tl.zeros((256,), tl.int32)
        num_read = 0
        for first in range(0, num_pixels, block):  # pyright: ignore[reportArgumentType]
            places = first + tl.arange(0, block)
            values = tl.load(pixels + 3 * places + channel, mask=places < num_pixels, other=0)
            counts += tl.histogram(values.to(tl.int32), 256)
            num_read += block
        counts -= tl.where(levels == 0, num_read - num_pixels, 0)  # what was masked counted as 0
        highest = tl.max(tl.where(counts > 0, levels, 0), 0)
        if code == _AUTOCONTRAST:
            lowest = tl.min(tl.where(counts > 0, levels, 255), 0)
            spread = (highest - lowest).to(tl.float32)  # pyright: ignore[reportOperatorIssue]
            new = tl.where(spread == 0, old, (old - lowest) * 255 / tl.maximum(spread, 1))
        else:
            step = (num_pixels - tl.sum(tl.where(levels == highest, counts, 0), 0)) // 255
            below = tl.cumsum(counts, 0) - counts
            equal = (step // 2 + below) // tl.maximum(step, 1)
            new = tl.where(step == 0, old, equal.to(tl.float32))
    new = tl.floor(tl.minimum(tl.maximum(new, 0), 255))
    tl.store(tables + (image * 3 + channel) * 256 + levels, new.to(tl.uint8))


@triton.jit
def _tap(pixels: tl.tensor, rows: tl.tensor, columns: tl.tensor, size: tl.tensor):
    """Return one channel of the pixels at integer coordinates, float32; outside of the image it is `FILL`."""
    inside = (rows >= 0) & (rows < size) & (columns >= 0) & (columns < size)
    return tl.load(pixels + 3 * (rows * size + columns), mask=inside, other=_FILL).to(tl.float32)


@triton.jit
def _apply_ops(
    images: tl.tensor,
    results: tl.tensor,
    codes: tl.tensor,
    parameters: tl.tensor,
    tables: tl.tensor,
    size: tl.tensor,
    block: tl.constexpr,
):
    """One program per image and block of pixels: apply the image's operation to all channels."""
    image = tl.program_id(0)
    places = tl.program_id(1) * block + tl.arange(0, block)
    inside = places < size * size
    rows, columns = places // size, places % size
    code = tl.load(codes + image)
    parameters += image * _NUM_PARAMETERS
    value = tl.load(parameters)
    begin = image.to(tl.int64) * size * size * 3
    smooth = (code == _SHEAR_X) | (code == _SHEAR_Y)
    moved = smooth | (code == _TRANSLATE_X) | (code == _TRANSLATE_Y) | (code == _ROTATE)
    for channel in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        pixels = images + begin + channel
        pixel = tl.load(pixels + 3 * places, mask=inside, other=0)
        new = pixel.to(tl.float32)
        if moved:
            x, y = columns + 0.5, rows + 0.5
            source_x = tl.load(parameters + 5) * x + tl.load(parameters + 6) * y + tl.load(parameters + 7)
            source_y = tl.load(parameters + 8) * x + tl.load(parameters + 9) * y + tl.load(parameters + 10)
            left, top = tl.floor(source_x), tl.floor(source_y)  # the nearest pixel
            right_share, lower_share = source_x * 0, source_y * 0
            if smooth:
                left, top = tl.floor(source_x - 0.5), tl.floor(source_y - 0.5)
                right_share, lower_share = source_x - 0.5 - left, source_y - 0.5 - top
            left, top = left.to(tl.int32), top.to(tl.int32)
            upper = _tap(pixels, top, left, size) * (1 - right_share) + _tap(pixels, top, left + 1, size) * right_share
            lower = _tap(pixels, top + 1, left, size) * (1 - right_share)
            lower += _tap(pixels, top + 1, left + 1, size) * right_share
            new = upper * (1 - lower_share) + lower * lower_share
        elif code == _CUTOUT:
            covered = (rows >= tl.load(parameters + 1)) & (columns >= tl.load(parameters + 2))
            covered = covered & (rows < tl.load(parameters + 3)) & (columns < tl.load(parameters + 4))
            color = _RED if channel == 0 else _GREEN if channel == 1 else _BLUE
            new = tl.where(covered, color, new)
        elif code == _COLOR:
            new = new * value + _grey(images + begin + 3 * places, inside) * (1 - value)
        elif code == _SHARPNESS:
            total = new * 4
            for down in tl.static_range(-1, 2):  # pyright: ignore[reportGeneralTypeIssues]
                for across in tl.static_range(-1, 2):  # pyright: ignore[reportGeneralTypeIssues]
                    total += _tap(pixels, rows + down, columns + across, size)
            border = (rows == 0) | (columns == 0) | (rows == size - 1) | (columns == size - 1)
            new = new * value + tl.where(border, new, tl.floor(total / 13 + 0.5)) * (1 - value)
        else:
            new = tl.load(tables + (image * 3 + channel) * 256 + pixel).to(tl.float32)
        new = tl.floor(tl.minimum(tl.maximum(new, 0), 255) + 0.5)
        tl.store(results + begin + channel + 3 * places, new.to(tl.uint8), mask=inside)


def pack_operations(operations: Operations, size: int) -> tuple[Tensor, Tensor]:
    """Return what the kernels read of B images' operations: codes, int32 2 x B, and parameters, float32 2 x B x 11."""
    codes, values = operations.op_indices.T, operations.values.T
    parameters = np.zeros((*codes.shape, _NUM_PARAMETERS.value), np.float32)
    parameters[..., 0] = values
    parameters[..., 1:5] = operations.boxes.transpose(1, 0, 2)
    for slot, row in zip(*np.nonzero(codes >= 0), strict=True):
        matrix = inverse_matrix(NAMES[codes[slot, row]], float(values[slot, row]), size)
        if matrix is not None:
            parameters[slot, row, 5:] = matrix.ravel()
    return torch.from_numpy(np.ascontiguousarray(codes, np.int32)), torch.from_numpy(parameters)


def apply_operations(images: Tensor, codes: Tensor, parameters: Tensor) -> Tensor:
    """Return uint8 images B x S x S x 3 after their operations; see `pack_operations`. All tensors are on one GPU."""
    images = images.contiguous()
    count, size = images.shape[:2]
    tables = torch.empty((count, 3, 256), dtype=torch.uint8, device=images.device)
    for slot_codes, slot_parameters in zip(codes, parameters, strict=True):
        results = torch.empty_like(images)
        with torch.cuda.device_of(images):
            cast(Any, _fill_tables)[(count, 3)](
                images, slot_codes, slot_parameters, tables, size * size, block=_BLOCK, enable_fp_fusion=True
            )
            cast(Any, _apply_ops)[(count, triton.cdiv(size * size, _BLOCK))](
                images, results, slot_codes, slot_parameters, tables, size, block=_BLOCK, enable_fp_fusion=True
            )
        images = results
    return images
