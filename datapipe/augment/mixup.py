"""Mixup and cutmix on a batch, on whatever device it is, for every backend.

The random numbers depend only on (seed, epoch, global batch): all ranks mix alike, and so does a resumed epoch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .draws import batch_uniforms

TRIES = 64  # each succeeds with probability 1/2 or more

MixedLabels = tuple[Tensor, Tensor, float]


@dataclass(frozen=True, kw_only=True)
class MixSettings:
    """How batches are mixed. Where both are on, each has every second batch, by chance.

    mixup:  alpha of Beta(alpha, alpha), from which the share of an image is drawn, 1 at most; 0: off. Zhang et al.,
            2017, https://arxiv.org/abs/1710.09412.
    cutmix: the same for the share of the area. Yun et al., 2019, https://arxiv.org/abs/1905.04899.
    """

    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        for name in ("mixup", "cutmix"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 0 (off) to 1")


@dataclass(frozen=True)
class MixDraw:
    """What becomes of one batch.

    share:  of each image's own pixels and label, 0..1.
    box:    cutmix: what comes from the other image, (top, left, bottom, right) as parts of the sides; None: mixup.
    """

    share: float = 1.0
    box: tuple[float, float, float, float] | None = None


def draw_mix(settings: MixSettings, seed: int, epoch: int, batch: int) -> MixDraw:
    """Draw how a global batch (its number in the epoch) is mixed."""
    if not settings.mixup and not settings.cutmix:
        return MixDraw()
    numbers = batch_uniforms(seed, epoch, batch, 4 + 2 * TRIES).tolist()
    cuts = numbers[0] < 0.5 if settings.mixup and settings.cutmix else bool(settings.cutmix)
    share = _symmetric_beta(settings.cutmix if cuts else settings.mixup, numbers[4:])
    if not cuts:
        return MixDraw(share)
    half = np.sqrt(1 - share) / 2
    top, left = numbers[1] - half, numbers[2] - half
    bottom, right = numbers[1] + half, numbers[2] + half
    return MixDraw(share, (max(0.0, top), max(0.0, left), min(1.0, bottom), min(1.0, right)))


def create_mix(settings: MixSettings, seed: int) -> Callable[[Tensor, Tensor, int, int], tuple[Tensor, MixedLabels]]:
    """Return what mixes (images, labels, epoch, global batch) as `mix` does."""
    return lambda images, labels, epoch, batch: mix(images, labels, draw_mix(settings, seed, epoch, batch))


def _symmetric_beta(alpha: float, numbers: list[float]) -> float:
    """Draw from Beta(alpha, alpha), alpha <= 1, by Jöhnk's method: powers of two numbers whose sum is 1 at most.

    NumPy promises the raw words, not what its own `beta` makes of them.
    """
    for first, second in zip(numbers[::2], numbers[1::2], strict=True):
        one, other = first ** (1 / alpha), second ** (1 / alpha)
        if 0 < one + other <= 1:
            return one / (one + other)
    return 0.5


def mix(images: Tensor, labels: Tensor, draw: MixDraw) -> tuple[Tensor, MixedLabels]:
    """Mix each image of a batch with the one as far from the batch's other end.

    images: B x 3 x H x W of any dtype; labels: int64 (B,). Returns new images of that dtype, and (labels, the others'
    labels, the share of the first): a loss is share * loss(first) + (1 - share) * loss(second). In cutmix the share is
    the share of the pixels.
    """
    others = labels.flip(0)
    if draw.box is None:
        if draw.share == 1:
            return images, (labels, others, 1.0)
        mixed = images.float() if images.dtype == torch.uint8 else images
        mixed = mixed * draw.share + mixed.flip(0) * (1 - draw.share)
        return (mixed.round() if images.dtype == torch.uint8 else mixed).to(images.dtype), (labels, others, draw.share)
    height, width = images.shape[2:]
    top, bottom = (round(draw.box[side] * height) for side in (0, 2))
    left, right = (round(draw.box[side] * width) for side in (1, 3))
    mixed = images.clone()
    mixed[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
    return mixed, (labels, others, 1 - (bottom - top) * (right - left) / (height * width))
