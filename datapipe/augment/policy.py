"""The augmentation policies: from random numbers to a plan of what is done to each image of a batch.

A plan is numbers: windows, sizes, flips, boxes, operations. The backends carry it out. It depends on the seed, the
epoch, the samples' numbers in the epoch, and the sizes of the images.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import repeat
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..catalog import AUGMENTATIONS
from ..plan import PlannedBatch
from . import draws
from .draws import Floats, Ints, Op, Operations


class SamplePlan(NamedTuple):
    """What is done to one image; see `Plans`."""

    window: list[int]
    resized: list[int]
    corner: list[int]
    flip: bool
    box: list[int]
    color: list[int]
    operations: list[Op]


@dataclass(frozen=True, eq=False)
class Plans:
    """What is done to B images, in this order of steps.

    windows:    the crop: top, left, height, width, B x 4.
    resized:    the height and width it is resized to (bilinear, antialiased), B x 2.
    corners:    top and left of the second crop, image_size x image_size of the resized image, B x 2.
    flips:      whether it is mirrored, bool (B,).
    boxes:      what is filled with `colors` (uint8 B x 3): top, left, bottom, right, the last two exclusive, B x 4.
    operations: RandAugment's; None: the policy has none.
    """

    windows: Ints
    resized: Ints
    corners: Ints
    flips: NDArray[np.bool_]
    boxes: Ints
    colors: NDArray[np.uint8]
    operations: Operations | None

    def rows(self) -> list[SamplePlan]:
        """Return one plan for each image, as Python numbers."""
        columns = (self.windows, self.resized, self.corners, self.flips, self.boxes, self.colors)
        operations = self.operations.rows() if self.operations else repeat([])
        return [SamplePlan(*row) for row in zip(*(c.tolist() for c in columns), operations, strict=False)]


@dataclass(frozen=True, kw_only=True)
class AugmentPolicy:
    """How images are augmented; see `LoaderSettings` for the fields."""

    image_size: int
    augment: str = "none"
    crop_pct: float | None = None
    seed: int = 0

    @property
    def crops(self) -> bool:
        """Whether a random window is cropped and randomly flipped."""
        return AUGMENTATIONS[self.augment].crops

    @property
    def erases(self) -> bool:
        """Whether a random box is filled."""
        return AUGMENTATIONS[self.augment].erases

    @property
    def uses_randaugment(self) -> bool:
        """Whether RandAugment's operations are applied last."""
        return AUGMENTATIONS[self.augment].uses_randaugment

    def random_numbers(self, batch: PlannedBatch) -> Floats:
        """Draw the random numbers of a batch's samples: B x DRAWS_PER_SAMPLE, or B x 0 where nothing is random."""
        if self.augment == "none":
            return np.empty((len(batch), 0))
        return draws.philox_uniforms(self.seed, batch.epoch, batch.first, len(batch))

    def plan(self, numbers: Floats, heights: Ints, widths: Ints) -> Plans:
        """Plan images of these sizes in pixels by their random numbers."""
        size, count = self.image_size, len(heights)
        windows = np.column_stack([np.zeros((count, 2), np.int64), heights, widths])
        resized, corners = np.full((count, 2), size), np.zeros((count, 2), np.int64)
        flips, boxes, colors = np.zeros(count, np.bool_), np.zeros((count, 4), np.int64), np.zeros((count, 3), np.uint8)
        operations = None
        if self.augment == "none" and self.crop_pct is not None:
            resized, corners = centre_crops(heights, widths, size, self.crop_pct)
        if self.crops:
            windows = draws.crop_windows(numbers[:, draws.CROP], heights, widths)
            flips = draws.flips(numbers[:, draws.FLIP])
        if self.erases:
            boxes, colors = draws.erase_boxes(numbers[:, draws.ERASE], size)
        if self.uses_randaugment:
            operations = draws.rand_operations(numbers[:, draws.OPS], size)
        return Plans(windows, resized, corners, flips, boxes, colors, operations)


def centre_crops(heights: Ints, widths: Ints, size: int, crop_pct: float) -> tuple[Ints, Ints]:
    """Return resized sizes and corners so that `size` is `crop_pct` of the shorter side (as timm evaluates).

    >>> centre_crops(np.array([100]), np.array([200]), 224, 0.875)
    (array([[256, 512]]), array([[ 16, 144]]))
    """
    sides = np.stack([heights, widths], axis=1)
    resized = sides * int(size / crop_pct) // sides.min(axis=1, keepdims=True)
    return resized, np.rint((resized - size) / 2).astype(np.int64)
