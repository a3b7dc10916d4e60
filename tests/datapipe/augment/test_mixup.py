from __future__ import annotations

import numpy as np
import pytest
import torch

from in21k.datapipe.augment.mixup import MixDraw, MixSettings, draw_mix, mix

BOTH = MixSettings(mixup=0.8, cutmix=1.0)


def batch(dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.arange(4).view(4, 1, 1, 1).expand(4, 3, 8, 6) * 20
    return images.to(dtype), torch.arange(4)


def test_the_same_numbers_draw_the_same_and_others_draw_others() -> None:
    draws = [draw_mix(BOTH, seed, epoch, number) for seed in (0, 1) for epoch in (0, 1) for number in range(9)]
    assert draws == [draw_mix(BOTH, seed, epoch, number) for seed in (0, 1) for epoch in (0, 1) for number in range(9)]
    assert len({draw.share for draw in draws}) == len(draws)


def test_a_small_draw_is_this_one_for_ever() -> None:
    draw = draw_mix(MixSettings(mixup=0.2), seed=1, epoch=2, batch=3)
    assert draw.box is None
    assert draw.share == pytest.approx(0.6360955453808685, abs=1e-12)


@pytest.mark.parametrize("alpha", [0.2, 0.8, 1.0])
def test_shares_are_distributed_as_beta(alpha: float) -> None:
    shares = np.array([draw_mix(MixSettings(mixup=alpha), 0, 0, number).share for number in range(2000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.03)
    assert shares.var() == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.1)


def test_where_both_are_on_each_has_about_half_of_the_batches() -> None:
    cuts = [draw_mix(BOTH, 0, 0, number).box is not None for number in range(400)]
    assert 150 < sum(cuts) < 250


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8])
def test_mixup_blends_each_image_with_its_opposite(dtype: torch.dtype) -> None:
    images, labels = batch(dtype)
    mixed, (own, others, share) = mix(images, labels, MixDraw(0.75))
    assert mixed.dtype == dtype
    assert mixed[:, 0, 0, 0].tolist() == [15, 25, 35, 45]
    assert (own.tolist(), others.tolist(), share) == ([0, 1, 2, 3], [3, 2, 1, 0], 0.75)


def test_cutmix_pastes_a_box_and_counts_its_pixels() -> None:
    images, labels = batch()
    mixed, (_, _, share) = mix(images, labels, MixDraw(0.5, (0.5, 0.5, 1.0, 1.0)))
    assert mixed[0, 0, :4].unique().tolist() == [0]
    assert mixed[0, :, 4:, 3:].unique().tolist() == [60]
    assert share == 1 - 4 * 3 / 48
    assert images[0].unique().tolist() == [0]


def test_boxes_lie_inside_the_image() -> None:
    for number in range(200):
        draw = draw_mix(MixSettings(cutmix=1.0), 0, 0, number)
        assert draw.box is not None
        top, left, bottom, right = draw.box
        assert 0 <= top < bottom <= 1
        assert 0 <= left < right <= 1


def test_off_changes_nothing() -> None:
    images, labels = batch()
    mixed, (own, _, share) = mix(images, labels, draw_mix(MixSettings(), 0, 0, 0))
    assert mixed is images
    assert own is labels
    assert share == 1


def test_an_alpha_out_of_range_is_refused() -> None:
    with pytest.raises(ValueError, match=r"cutmix is 1\.5; wanted 0 \(off\) to 1"):
        MixSettings(cutmix=1.5)
