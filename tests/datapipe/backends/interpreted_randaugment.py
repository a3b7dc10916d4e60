"""The Triton kernels of RandAugment, run by Triton's interpreter on the CPU; a script of test_randaugment_triton.py."""

from __future__ import annotations

import sys

import numpy as np
import torch
from PIL import Image

from in21k.datapipe.augment.draws import Operations
from in21k.datapipe.augment.randaugment import NAMES, RANDAUGMENT_OPS, VALUES
from in21k.datapipe.backends.randaugment_triton import apply_operations, pack_operations
from in21k.datapipe.backends.torch_transforms import apply_op

SIZE = 40  # more pixels than a block, and no multiple of one
BOX = [10, 20, 28, 38]
CASES = [
    (kind, sign * float(VALUES[kind, magnitude]) + op.factor)
    for kind, op in enumerate(RANDAUGMENT_OPS)
    for magnitude in (1, 9)
    for sign in ((1, -1) if op.signed else (1,))
]


def smooth_images(count: int) -> torch.Tensor:
    """Smooth images of few extreme values, uint8 count x SIZE x SIZE x 3; the last one has one colour."""
    draws = np.random.default_rng(0)
    coarse = draws.integers(20, 230, (count, 6, 6, 3), np.uint8)
    images = [np.asarray(Image.fromarray(pixels).resize((SIZE, SIZE), Image.Resampling.BICUBIC)) for pixels in coarse]
    return torch.from_numpy(np.stack([*images[:-1], np.full_like(images[-1], 90)]))


def reference(image: torch.Tensor, ops: list[tuple[int, float]]) -> torch.Tensor:
    pixels = image.permute(2, 0, 1)
    for kind, value in ops:
        pixels = apply_op(pixels, NAMES[kind], value, BOX) if kind >= 0 else pixels
    return pixels.permute(1, 2, 0)


def main() -> None:
    pairs = [[case, (-1, 0.0)] for case in CASES] + [[(-1, 0.0), case] for case in CASES[::5]]
    pairs += [[CASES[number], CASES[-number]] for number in range(0, len(CASES), 7)] + [[(-1, 0.0)] * 2, CASES[-3:-1]]
    images = smooth_images(len(pairs))
    operations = Operations(
        np.array([[kind for kind, _ in pair] for pair in pairs]),
        np.array([[value for _, value in pair] for pair in pairs]),
        np.broadcast_to(np.array(BOX), (len(pairs), 2, 4)),
    )
    results = apply_operations(images, *pack_operations(operations, SIZE))
    for image, result, pair in zip(images, results, pairs, strict=True):
        apart = (result.int() - reference(image, pair).int()).abs().float()
        names = [NAMES[kind] for kind, _ in pair if kind >= 0]
        assert apart.mean() <= len(names), (pair, names, apart.mean())
        assert len(names) > 1 or torch.quantile(apart, 0.95) <= 2, (pair, names, torch.quantile(apart, 0.95))
        if not names:
            assert torch.equal(result, image)
    sys.stdout.write("equal\n")


main()
