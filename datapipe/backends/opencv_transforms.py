"""Decode a sample and apply its plan with OpenCV, on uint8 RGB arrays (height x width x 3); calls release the GIL."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any, cast

import cv2 as untyped_cv2
import cykooz_resizer as vector
import numpy as np
import simplejpeg
from numpy.typing import NDArray

from ..augment.draws import Op
from ..augment.policy import SamplePlan
from ..augment.randaugment import CUTOUT_COLOR, FILL, NAMES, inverse_matrix
from ..feed import Jpeg
from ..pixels import decode

cv2 = cast(Any, untyped_cv2)  # its stubs know no dtypes
Pixels = NDArray[np.uint8]
ANTIALIASED = vector.ResizeOptions(resize_alg=vector.ResizeAlg.convolution(vector.FilterType.bilinear), use_alpha=False)
BASELINE_HEADER = bytes.fromhex("ffc0 0011 08")  # start of frame, its length with three colours, 8 bits; sizes follow
END = bytes.fromhex("ffd9")
BELOW = 2  # rows below one that libjpeg reads to interpolate the colours of a 4:2:0 image
SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's filter of that name


def decode_and_transform(sample: Jpeg, plan: SamplePlan, out: Pixels) -> None:
    """Decode a sample and apply its plan, into `out`, S x S x 3; raises ValueError if it does not decode.

    It decodes at full size: libjpeg's scaled DCT saves 1 to 6 % for windows of 450-pixel images at 224 (measured), and
    moves the pixels two grey levels away from the other backends.
    """
    pixels, size = decode_down_to(sample, plan.window[0] + plan.window[2]), out.shape[0]
    if plan.resized == [size, size]:
        _resize_and_flip(pixels, plan, out)
    else:
        whole = np.empty((*plan.resized, 3), np.uint8)
        _resize_and_flip(pixels, plan, whole)
        top, left = plan.corner
        np.copyto(out, whole[top : top + size, left : left + size])
    _fill(out, plan.box, plan.color)
    apply_ops(out, plan.operations)


def apply_ops(pixels: Pixels, ops: list[Op]) -> None:
    """Apply RandAugment's operations to an image S x S x 3, in place."""
    result = pixels
    for kind, value, box in ops:
        result = apply_op(result, NAMES[kind], value, box)
    if result is not pixels:
        np.copyto(pixels, result)


def decode_down_to(sample: Jpeg, row: int) -> Pixels:
    """Decode the rows above `row` and a few more, width x 3; raises ValueError if the sample does not decode.

    The header is changed to a smaller height, where libjpeg stops: random crops decode in nine tenths of the time. A
    JPEG with an unusual header, a progressive one, and one without its end mark are decoded whole.
    """
    height, width = (side.to_bytes(2, "big") for side in (sample.height, sample.width))
    rows = row + BELOW
    place = sample.jpeg.find(BASELINE_HEADER + height + width) if rows < sample.height else -1
    if place >= 0 and sample.jpeg.endswith(END):
        place += len(BASELINE_HEADER)
        lower = b"".join((sample.jpeg[:place], rows.to_bytes(2, "big"), sample.jpeg[place + 2 :]))
        with suppress(ValueError, KeyError):  # strict decoding would refuse the rows that follow
            return simplejpeg.decode_jpeg(lower, "RGB", strict=False)
    return decode(sample.jpeg)


def _resize_and_flip(pixels: Pixels, plan: SamplePlan, out: Pixels) -> None:
    """Resize the plan's window bilinearly, with antialiasing where it shrinks."""
    top, left, height, width = plan.window
    part = pixels[top : top + height, left : left + width]
    if plan.flip:
        part = cv2.flip(part, 1)
    if part.shape == out.shape:
        np.copyto(out, part)
    elif height <= out.shape[0] and width <= out.shape[1]:
        cv2.resize(part, out.shape[1::-1], dst=out, interpolation=cv2.INTER_LINEAR)
    else:
        _shrink(part, out)


def _shrink(pixels: Pixels, out: Pixels) -> None:
    source = vector.ImageData(pixels.shape[1], pixels.shape[0], vector.PixelType.U8x3, pixels.tobytes())
    resized = vector.ImageData(out.shape[1], out.shape[0], vector.PixelType.U8x3)
    vector.Resizer().resize(source, resized, ANTIALIASED)
    np.copyto(out, np.frombuffer(resized.get_buffer(), np.uint8).reshape(out.shape))


def _fill(pixels: Pixels, box: list[int], color: Sequence[int]) -> None:
    top, left, bottom, right = box
    if bottom > top:
        pixels[top:bottom, left:right] = color


def apply_op(pixels: Pixels, name: str, value: float, box: list[int]) -> Pixels:
    """Return an image after one of RandAugment's operations; see `randaugment.py`. The input may be changed."""
    if name == "cutout":
        _fill(pixels, box, CUTOUT_COLOR)
        return pixels
    if name == "sharpness":
        smooth = cv2.filter2D(pixels, -1, SMOOTH)
        smooth[[0, -1]], smooth[:, [0, -1]] = pixels[[0, -1]], pixels[:, [0, -1]]
        return cv2.addWeighted(pixels, value, smooth, 1 - value, 0)
    if name == "color":
        grey = cv2.cvtColor(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
        return cv2.addWeighted(pixels, value, grey, 1 - value, 0)
    if (matrix := inverse_matrix(name, value, pixels.shape[0])) is not None:
        # The matrix counts from the corner of a pixel, OpenCV from its centre.
        matrix[:, 2] += matrix[:, :2].sum(axis=1) / 2 - 0.5
        flags = cv2.INTER_LINEAR if name.startswith("shear") else cv2.INTER_NEAREST
        return cv2.warpAffine(
            pixels, matrix, pixels.shape[1::-1], flags=flags | cv2.WARP_INVERSE_MAP, borderValue=(FILL,) * 3
        )
    return cv2.LUT(pixels, table(pixels, name, value))


def table(pixels: Pixels, name: str, value: float) -> Pixels:
    """Return an operation's result for each pixel value: 256 of them, or 1 x 256 x 3 if the channels differ."""
    values = np.arange(256)
    match name:
        case "invert":
            return (255 - values).astype(np.uint8)
        case "posterize":
            return (values & (0xFF << (8 - int(value)))).astype(np.uint8)
        case "solarize":
            return np.where(values < value, values, 255 - values).astype(np.uint8)
        case "brightness":
            return np.clip(values * value, 0, 255).astype(np.uint8)
        case "contrast":
            mean = int(cv2.mean(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY))[0] + 0.5)
            return np.clip(mean + value * (values - mean), 0, 255).astype(np.uint8)
        case _:
            table_of = {"autocontrast": _autocontrast, "equalize": _equalize}[name]
            histograms = [cv2.calcHist([pixels], [channel], None, [256], [0, 256]).ravel() for channel in range(3)]
            return np.stack([table_of(histogram.astype(np.int64)) for histogram in histograms], axis=-1)[None]


def _autocontrast(histogram: NDArray[np.int64]) -> Pixels:
    used, values = np.flatnonzero(histogram), np.arange(256)
    low, high = used[0], used[-1]
    if low == high:
        return values.astype(np.uint8)
    return np.clip((values - low) * (255 / (high - low)), 0, 255).astype(np.uint8)


def _equalize(histogram: NDArray[np.int64]) -> Pixels:
    """Return the table of Pillow's equalization."""
    used = histogram[histogram > 0]
    step = int(used[:-1].sum()) // 255
    if not step:
        return np.arange(256, dtype=np.uint8)
    below = np.cumsum(histogram) - histogram
    return np.clip((step // 2 + below) // step, 0, 255).astype(np.uint8)
