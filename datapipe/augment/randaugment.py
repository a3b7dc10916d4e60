"""RandAugment as in the reference training: the operations of PyPI's `randaugment` 1.0.2 and their magnitudes.

Source: its `SubPolicy.ranges` and `RandAugment.get_trans_list`. It has 15 operations and magnitudes 1 to 9, and applies
two operations to each image, each with p = 0.5. `signed` values are negated with p = 0.5. It only rotates
counter-clockwise, fills uncovered pixels with grey 128, and cuts out at most 20 pixels at any image size.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

FILL = 128
CUTOUT_COLOR = (125, 122, 113)


class Operation(NamedTuple):
    """name; what its value is at magnitudes 0 and 9; whether it is signed; what is added to it afterwards."""

    name: str
    first: float = 0.0
    last: float = 0.0
    signed: bool = False
    factor: float = 0.0
    whole: bool = False


RANDAUGMENT_OPS = (
    Operation("invert"),
    Operation("cutout", 0, 20, whole=True),  # side of the box, pixels
    Operation("sharpness", 0, 0.9, signed=True, factor=1),  # the image is `value` of it, the smoothed one the rest
    Operation("autocontrast"),
    Operation("posterize", 8, 4, whole=True),  # bits that are kept
    Operation("shear_x", 0, 0.3, signed=True),  # pixels across for each one down; bicubic
    Operation("translate_x", 0, 150 / 331, signed=True),  # of the width; nearest
    Operation("translate_y", 0, 150 / 331, signed=True),  # of the height; nearest
    Operation("shear_y", 0, 0.3, signed=True),  # pixels down for each one across; bicubic
    Operation("rotate", 0, 30),  # degrees, counter-clockwise; nearest
    Operation("equalize"),
    Operation("contrast", 0, 0.9, signed=True, factor=1),  # against the mean grey
    Operation("color", 0, 0.9, signed=True, factor=1),  # against the grey image
    Operation("solarize", 256, 0),  # values from here on are inverted
    Operation("brightness", 0, 0.9, signed=True, factor=1),  # against black
)

NAMES = tuple(operation.name for operation in RANDAUGMENT_OPS)
CUTOUT = NAMES.index("cutout")


def _values() -> NDArray[np.float64]:
    table = np.array([np.linspace(op.first, op.last, 10) for op in RANDAUGMENT_OPS])
    whole = [op.whole for op in RANDAUGMENT_OPS]
    table[whole] = np.round(table[whole])
    return table


VALUES = _values()  # of each operation at magnitudes 0 to 9, before sign and factor


def inverse_matrix(name: str, value: float, size: int) -> NDArray[np.float64] | None:
    """Return where each pixel of the result comes from, 2 x 3; None for an operation that moves none.

    (x, y) of the result, in pixels from the upper left corner of a size x size image (a pixel's centre is at 0.5),
    times the matrix is the point of the image. Translations are by whole pixels, as nearest neighbours have them.
    """
    match name:
        case "shear_x":
            return np.array([[1, value, 0], [0, 1, 0]], np.float64)
        case "shear_y":
            return np.array([[1, 0, 0], [value, 1, 0]], np.float64)
        case "translate_x":
            return np.array([[1, 0, np.floor(value * size + 0.5)], [0, 1, 0]], np.float64)
        case "translate_y":
            return np.array([[1, 0, 0], [0, 1, np.floor(value * size + 0.5)]], np.float64)
        case "rotate":
            cos, sin, centre = np.cos(np.radians(value)), np.sin(np.radians(value)), size / 2
            shift = centre - centre * (cos - sin), centre - centre * (cos + sin)
            return np.array([[cos, -sin, shift[0]], [sin, cos, shift[1]]], np.float64)
        case _:
            return None
