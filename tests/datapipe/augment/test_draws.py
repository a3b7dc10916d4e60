from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.transforms.v2 import RandomResizedCrop

from in21k.datapipe.augment import draws
from in21k.datapipe.augment.policy import AugmentPolicy
from in21k.datapipe.augment.randaugment import NAMES, RANDAUGMENT_OPS
from in21k.datapipe.catalog import AUGMENTATIONS
from in21k.datapipe.plan import PlannedBatch


@given(st.integers(0, 2**40), st.integers(0, 99), st.integers(0, 10**12), st.integers(0, 20), st.integers(1, 20))
def test_a_samples_numbers_are_its_own_wherever_a_batch_begins(
    seed: int, epoch: int, first: int, skipped: int, count: int
) -> None:
    whole = draws.philox_uniforms(seed, epoch, first, skipped + count)
    assert np.array_equal(draws.philox_uniforms(seed, epoch, first + skipped, count), whole[skipped:])
    assert ((whole >= 0) & (whole < 1)).all()


def test_seeds_epochs_and_samples_have_numbers_of_their_own() -> None:
    items = [draws.philox_uniforms(seed, epoch, 0, 5) for seed in range(3) for epoch in range(3)]
    assert len(np.unique(np.concatenate(items))) == 45 * draws.DRAWS_PER_SAMPLE


def test_small_draws_are_these_for_ever() -> None:
    numbers = draws.philox_uniforms(1, 2, 5, 2)
    np.testing.assert_allclose(numbers[0, :3], [0.0984955, 0.55787786, 0.07598176], rtol=0, atol=1e-8)
    windows = draws.crop_windows(numbers[:, draws.CROP], np.array([224, 100]), np.array([224, 300]))
    assert windows.tolist() == [[117, 42, 91, 94], [3, 28, 96, 76]]


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 10**6))
def test_windows_lie_inside_the_image(height: int, width: int, first: int) -> None:
    numbers = draws.philox_uniforms(0, 0, first, 8)[:, draws.CROP]
    windows = draws.crop_windows(numbers, np.full(8, height), np.full(8, width))
    top, left, window_height, window_width = windows.T
    assert (windows[:, :2] >= 0).all()
    assert (windows[:, 2:] > 0).all()
    assert (top + window_height <= height).all()
    assert (left + window_width <= width).all()


@pytest.mark.parametrize(("height", "width"), [(224, 224), (300, 500), (500, 300)])
def test_windows_are_distributed_as_torchvisions(height: int, width: int) -> None:
    count = 4000
    numbers = draws.philox_uniforms(0, 0, 0, count)[:, draws.CROP]
    ours = draws.crop_windows(numbers, np.full(count, height), np.full(count, width))
    torch.manual_seed(0)
    crop, image = RandomResizedCrop(224), torch.empty(3, height, width, dtype=torch.uint8)
    theirs = np.array([list(crop.make_params([image]).values())[:4] for _ in range(count)])
    for column in range(4):
        for quantile in (0.1, 0.25, 0.5, 0.75, 0.9):
            actual, wanted = np.quantile(ours[:, column], quantile), np.quantile(theirs[:, column], quantile)
            assert actual == pytest.approx(wanted, abs=0.03 * max(height, width))


@pytest.mark.parametrize(
    ("height", "width", "wanted"),
    [(10, 400, [0, 193, 10, 13]), (400, 10, [193, 0, 13, 10]), (1, 1, [0, 0, 1, 1])],
)
def test_where_no_try_fits_the_middle_is_taken(height: int, width: int, wanted: list[int]) -> None:
    numbers = np.full((1, 22), 1 - 2**-53)  # the whole area at 4:3
    assert draws.crop_windows(numbers, np.array([height]), np.array([width])).tolist() == [wanted]


@given(st.integers(1, 300), st.integers(0, 10**6))
def test_boxes_have_half_the_side_and_are_clipped_at_the_edge(size: int, first: int) -> None:
    boxes, colors = draws.erase_boxes(draws.philox_uniforms(0, 0, first, 16)[:, draws.ERASE], size)
    half = (size + 1) // 2 // 2
    assert ((boxes >= 0) & (boxes <= size)).all()
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = (boxes[:, :2] > 0) & (boxes[:, 2:] < size)
    assert (sides[inside] == 2 * half).all()
    assert (sides <= 2 * half).all()
    assert (colors.shape, colors.dtype) == ((16, 3), np.uint8)


def test_operations_come_equally_often_half_of_them_not_at_all_and_with_either_sign() -> None:
    operations = draws.rand_operations(draws.philox_uniforms(0, 0, 0, 20_000)[:, draws.OPS], 224)
    op_indices = operations.op_indices
    assert (op_indices == -1).mean() == pytest.approx(0.5, abs=0.01)
    counts = np.bincount(op_indices[op_indices >= 0], minlength=15)
    assert counts.min() > 0.9 * counts.mean()
    assert np.corrcoef(op_indices[:, 0], op_indices[:, 1])[0, 1] == pytest.approx(0, abs=0.02)
    for kind, operation in enumerate(RANDAUGMENT_OPS):
        values = operations.values[op_indices == kind]
        expected = np.linspace(operation.first, operation.last, 10)[1:]
        if operation.whole:
            expected = np.round(expected)
        if operation.signed:
            expected = np.concatenate([-expected, expected])
        np.testing.assert_allclose(np.unique(values), np.unique(expected + operation.factor), atol=1e-12)
    boxes = operations.boxes[op_indices == NAMES.index("cutout")]
    inside = ((boxes[:, :2] > 0) & (boxes[:, 2:] < 224)).all(axis=1)
    assert set((boxes[:, 2:] - boxes[:, :2])[inside].max(axis=1).tolist()) <= {2, 4, 6, 8, 10, 12, 16, 18, 20}


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_a_plan_is_that_of_its_samples_in_any_batch(augment: str) -> None:
    policy = AugmentPolicy(image_size=32, augment=augment, seed=4)
    sides = np.array([40, 32, 90, 50, 33])

    def rows(first: int, count: int) -> list[object]:
        numbers = policy.random_numbers(PlannedBatch(np.zeros(count, np.int64), first, 3))
        return list(policy.plan(numbers, sides[first : first + count], sides[first : first + count]).rows())

    assert rows(0, 5) == rows(0, 2) + rows(2, 3)


def test_a_centre_crop_is_that_of_timm() -> None:
    policy = AugmentPolicy(image_size=224, crop_pct=0.875)
    sizes = np.array([256, 500, 300]), np.array([256, 375, 333])
    plans = policy.plan(np.empty((3, 0)), *sizes)
    assert plans.resized.tolist() == [[256, 256], [341, 256], [256, 284]]
    assert plans.corners.tolist() == [[16, 16], [58, 16], [16, 30]]
