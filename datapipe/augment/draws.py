"""Random numbers for augmentation. A sample's depend only on (seed, epoch, its number in the epoch's order).

So a resumed epoch, another world size and another backend augment like the uninterrupted run. The functions below turn
the numbers into windows, boxes and operations. They are pure and work on whole batches.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .randaugment import CUTOUT, RANDAUGMENT_OPS, VALUES

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

# Which of a sample's numbers are used for what. Uses never overlap, so one augmentation does not shift another's.
CROP_TRIES = 10
CROP = slice(0, 2 * CROP_TRIES + 2)
FLIP = 22
ERASE = slice(23, 28)
OPS = slice(28, 40)
DRAWS_PER_SAMPLE = 40  # a multiple of the four that Philox makes at a time

SAMPLE_STREAM, BATCH_STREAM = 2, 3  # 0 and 1 are the plan's

CROP_SCALE = (0.08, 1.0)
CROP_RATIO = (3 / 4, 4 / 3)


def philox_uniforms(seed: int, epoch: int, first: int, count: int) -> Floats:
    """Return the numbers of the `count` samples from number `first` on: count x DRAWS_PER_SAMPLE, 0 <= u < 1.

    They are raw words of Philox, whose stream NumPy guarantees. Any sample's words can be computed directly.
    """
    return _philox_uniforms((seed, epoch, SAMPLE_STREAM), first * DRAWS_PER_SAMPLE, count * DRAWS_PER_SAMPLE).reshape(
        count, DRAWS_PER_SAMPLE
    )


def batch_uniforms(seed: int, epoch: int, batch: int, count: int) -> Floats:
    """Return `count` numbers, 0 <= u < 1, of a global batch of the epoch (mixup and cutmix)."""
    return _philox_uniforms((seed, epoch, BATCH_STREAM, batch), 0, count)


def _philox_uniforms(entropy: tuple[int, ...], start: int, count: int) -> Floats:
    key = np.random.SeedSequence(entropy).generate_state(2, np.uint64)
    philox: Any = np.random.Philox(key=key, counter=start // 4)
    words: NDArray[np.uint64] = philox.random_raw(count)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def crop_windows(numbers: Floats, heights: Ints, widths: Ints) -> Ints:
    """Return random-resized-crop windows, (top, left, height, width) in pixels: B x 4.

    numbers: B x 22. As torchvision's RandomResizedCrop: an area of 0.08 to 1 of the image's, a width of 3/4 to 4/3 of
    the height (uniform in its logarithm), the first of ten that fits, else the largest one in the middle.
    """
    tries = numbers[:, : 2 * CROP_TRIES].reshape(-1, CROP_TRIES, 2)
    low, high = CROP_SCALE
    areas = (heights * widths)[:, None] * (low + (high - low) * tries[:, :, 0])
    log_low, log_high = np.log(CROP_RATIO)
    ratios = np.exp(log_low + (log_high - log_low) * tries[:, :, 1])
    tried_widths = np.rint(np.sqrt(areas * ratios)).astype(np.int64)
    tried_heights = np.rint(np.sqrt(areas / ratios)).astype(np.int64)
    fits = (tried_widths > 0) & (tried_widths <= widths[:, None])
    fits &= (tried_heights > 0) & (tried_heights <= heights[:, None])
    taken, rows = fits.argmax(axis=1), np.arange(len(numbers))
    some = fits[rows, taken]
    window_heights = np.where(some, tried_heights[rows, taken], _fallback(heights, widths))
    window_widths = np.where(some, tried_widths[rows, taken], _fallback(widths, heights))
    room = np.stack([heights - window_heights, widths - window_widths], axis=1)
    corners = np.where(some[:, None], _randints(numbers[:, 2 * CROP_TRIES :], room + 1), room // 2)
    return np.column_stack([corners, window_heights, window_widths])


def _fallback(sides: Ints, others: Ints) -> Ints:
    """Return the side of the largest window whose ratio is allowed."""
    return np.minimum(sides, np.rint(others * CROP_RATIO[1]).astype(np.int64))


def _randints(numbers: Floats, bounds: Any) -> Ints:
    return (numbers * bounds).astype(np.int64)


def flips(numbers: Floats) -> NDArray[np.bool_]:
    """Return which samples are mirrored: one in two."""
    return numbers < 0.5


def erase_boxes(numbers: Floats, size: int) -> tuple[Ints, NDArray[np.uint8]]:
    """Return boxes of half the side of a size x size image around a random pixel, clipped, and one colour for each.

    numbers: B x 5. The boxes are (top, left, bottom, right), the last two exclusive, B x 4; the colours B x 3.
    """
    half = int(size / 2 + 0.5) // 2
    return _boxes(numbers[:, :2], half, size), (numbers[:, 2:5] * 256).astype(np.uint8)


def _boxes(numbers: Floats, half: Any, size: int) -> Ints:
    centres = _randints(numbers, size)
    reach = np.broadcast_to(np.asarray(half), centres.shape[:1])[:, None]
    return np.clip(np.column_stack([centres - reach, centres + reach]), 0, size)


Op = tuple[int, float, list[int]]  # an index into RANDAUGMENT_OPS, a value and a box; see `Operations`


class Operations(NamedTuple):
    """RandAugment's operations for B samples, two each: `randaugment.py` says what they are.

    op_indices: int64 B x 2, into RANDAUGMENT_OPS; -1: none.
    values:     float64 B x 2, what an operation takes, with its sign.
    boxes:      int64 B x 2 x 4, what `cutout` fills: (top, left, bottom, right), the last two exclusive.
    """

    op_indices: Ints
    values: Floats
    boxes: Ints

    def rows(self) -> list[list[Op]]:
        """Return for each sample its operations, as Python numbers."""
        slots = zip(*(column.tolist() for column in self), strict=True)
        return [[op for op in zip(*slot, strict=True) if op[0] >= 0] for slot in slots]


def rand_operations(numbers: Floats, size: int) -> Operations:
    """Return two operations for each sample, each left out one time in two. numbers: B x 12; images are size x size."""
    slots = numbers.reshape(-1, 6)
    drawn = _randints(slots[:, 0], len(RANDAUGMENT_OPS))
    magnitudes = 1 + _randints(slots[:, 1], 9)
    signed = np.array([operation.signed for operation in RANDAUGMENT_OPS])[drawn] & (slots[:, 3] < 0.5)
    values = VALUES[drawn, magnitudes] * np.where(signed, -1.0, 1.0)
    # the operation that is a blend by 1 + value
    values += np.array([operation.factor for operation in RANDAUGMENT_OPS])[drawn]
    op_indices = np.where(slots[:, 2] < 0.5, drawn, -1)
    half = np.where(drawn == CUTOUT, VALUES[CUTOUT, magnitudes], 0).astype(np.int64) // 2
    boxes = _boxes(slots[:, 4:6], half, size)
    return Operations(op_indices.reshape(-1, 2), values.reshape(-1, 2), boxes.reshape(-1, 2, 4))
