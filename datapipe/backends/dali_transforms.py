"""RandAugment's operations as DALI's graph: each image takes the branch that its draw names, on a CPU or a GPU.

They differ from the other backends' in this: `equalize` follows OpenCV's formula in place of Pillow's, and `sharpness`
smooths the outermost pixels too.
"""

from __future__ import annotations

from typing import Any, cast

import numpy as np
from nvidia.dali import fn as dali_fn
from nvidia.dali import math as dali_math
from nvidia.dali import types as dali_types

from ..augment.draws import Operations
from ..augment.randaugment import CUTOUT_COLOR, FILL, NAMES, inverse_matrix

fn, math, types = cast(Any, dali_fn), cast(Any, dali_math), cast(Any, dali_types)  # made at run time

MOVED_SMOOTHLY = ("shear_x", "shear_y")
MOVED = (*MOVED_SMOOTHLY, "translate_x", "translate_y", "rotate")
# Branches of the graph, in the order of `branch_of`: what moves pixels shares two.
BRANCHES = ("none", "smoothly moved", "moved", "cutout", *(n for n in NAMES if n not in (*MOVED, "cutout")))
FIRST_TONE = 4


def branch_of(kind: int) -> int:
    """Return the branch of an operation, or of none (-1)."""
    name = NAMES[kind] if kind >= 0 else "none"
    if name in MOVED:
        name = "smoothly moved" if name in MOVED_SMOOTHLY else "moved"
    return BRANCHES.index(name)


def operation_inputs(operations: Operations, size: int) -> dict[str, Any]:
    """Return what the graph of `apply_op` is fed: per slot the branch, the value, a matrix and a box of each image."""
    inputs: dict[str, Any] = {}
    for slot in range(operations.op_indices.shape[1]):
        op_indices, values = operations.op_indices[:, slot], operations.values[:, slot]
        matrices = np.tile(np.eye(2, 3, dtype=np.float32), (len(op_indices), 1, 1))
        for row, (kind, value) in enumerate(zip(op_indices.tolist(), values.tolist(), strict=True)):
            matrix = inverse_matrix(NAMES[kind], value, size) if kind >= 0 else None
            if matrix is not None:
                matrices[row] = matrix
        boxes = operations.boxes[:, slot].astype(np.float32)
        inputs |= {
            f"branch{slot}": np.array([branch_of(kind) for kind in op_indices.tolist()], np.int32),
            f"value{slot}": values.astype(np.float32),
            f"matrix{slot}": matrices,
            f"corner{slot}": boxes[:, :2].copy(),
            f"sides{slot}": boxes[:, 2:] - boxes[:, :2],
        }
    return inputs


def apply_op(images: Any, branch: Any, value: Any, matrix: Any, corner: Any, sides: Any) -> Any:
    """Return images after one operation each. To be called where DALI turns `if` into branches of the graph."""
    if branch == BRANCHES.index("none"):
        images = images
    elif branch < FIRST_TONE:
        images = _moved_or_covered(images, branch, matrix, corner, sides)
    else:
        images = _toned(images, branch, value)
    return images


def _moved_or_covered(images: Any, branch: Any, matrix: Any, corner: Any, sides: Any) -> Any:
    if branch == BRANCHES.index("smoothly moved"):
        images = fn.warp_affine(images, matrix=matrix, fill_value=FILL, interp_type=types.INTERP_LINEAR)
    elif branch == BRANCHES.index("moved"):
        images = fn.warp_affine(images, matrix=matrix, fill_value=FILL, interp_type=types.INTERP_NN)
    else:
        color = [float(value) for value in CUTOUT_COLOR]
        images = fn.erase(images, anchor=corner, shape=sides, axis_names="HW", fill_value=color)
    return images


def _toned(images: Any, branch: Any, value: Any) -> Any:
    if branch == BRANCHES.index("invert"):
        images = fn.cast(255 - images, dtype=types.UINT8)
    elif branch == BRANCHES.index("posterize"):
        images = _posterize(images, value)
    elif branch == BRANCHES.index("solarize"):
        images = _solarize(images, value)
    elif branch == BRANCHES.index("brightness"):
        images = _floored(value * images)
    elif branch == BRANCHES.index("contrast"):
        images = _contrast(images, value)
    elif branch == BRANCHES.index("color"):
        images = _rounded(value * images + (1.0 - value) * _grey(images))
    elif branch == BRANCHES.index("sharpness"):
        images = _rounded(value * images + (1.0 - value) * _smooth(images))
    elif branch == BRANCHES.index("autocontrast"):
        images = _autocontrast(images)
    else:
        images = _regular("equalize")(images)
    return images


def _regular(name: str) -> Any:
    """Return an operator that was experimental once (in DALI 1.34, for one)."""
    return getattr(fn, name, None) or getattr(fn.experimental, name)


def _rounded(values: Any) -> Any:
    return fn.cast(math.clamp(values, 0.0, 255.0), dtype=types.UINT8)


def _floored(values: Any) -> Any:
    """As Pillow has it."""
    return fn.cast(math.floor(math.clamp(values, 0.0, 255.0)), dtype=types.UINT8)


def _grey(images: Any) -> Any:
    return fn.color_space_conversion(images, image_type=types.RGB, output_type=types.GRAY)


def _smooth(images: Any) -> Any:
    kernel = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]], np.float32) / 13  # Pillow's filter of that name
    return _regular("filter")(images, types.Constant(kernel, device=images.device), dtype=types.FLOAT)


def _contrast(images: Any, value: Any) -> Any:
    mean = math.floor(fn.reductions.mean(_grey(images), axes=(0, 1, 2)) + 0.5)
    return _floored(value * images + (1.0 - value) * mean)


def _autocontrast(images: Any) -> Any:
    low = fn.cast(fn.reductions.min(images, axes=(0, 1)), dtype=types.FLOAT)
    spread = fn.cast(fn.reductions.max(images, axes=(0, 1)), dtype=types.FLOAT) - low
    flat = fn.cast(spread == 0.0, dtype=types.FLOAT)  # a channel of one value stays as it is
    scale = (1.0 - flat) * 255.0 / (spread + flat) + flat
    return _floored((images - low * (1.0 - flat)) * scale)


def _posterize(images: Any, value: Any) -> Any:
    step = math.pow(2.0, 8.0 - value)
    return _rounded(math.floor(images / step) * step)


def _solarize(images: Any, value: Any) -> Any:
    kept = fn.cast(images < value, dtype=types.UINT8)
    return kept * images + fn.cast(1 - kept, dtype=types.UINT8) * fn.cast(255 - images, dtype=types.UINT8)
