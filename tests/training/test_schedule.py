"""Schedules, against torch's own where it has one."""

from __future__ import annotations

import pytest
import torch
from torch.optim import lr_scheduler
from torch.optim.lr_scheduler import LRScheduler

from in21k.training import TrainSettings
from in21k.training.schedule import CLIMB_FROM, climb, cosine, learning_rate_share, multi_step, one_cycle

PEAK = 2.0


def sgd(lr: float = PEAK) -> torch.optim.SGD:
    return torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=lr)


def rates(schedule: LRScheduler, total: int) -> list[float]:
    """The learning rates that a torch schedule sets, step by step."""
    items: list[float] = []
    for step in range(total):
        items.append(schedule.optimizer.param_groups[0]["lr"])
        schedule.optimizer.step()
        if step < total - 1:
            schedule.step()
    return items


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.1), (7, 0.1), (13, 0.3), (1000, 0.1), (2, 0.1), (20, 0.0)])
def test_one_cycle_is_torchs(total: int, warmup: float) -> None:
    torchs = lr_scheduler.OneCycleLR(
        sgd(), max_lr=PEAK, total_steps=total, pct_start=warmup, div_factor=20, cycle_momentum=False
    )
    ours = [PEAK * one_cycle(step, total, warmup) for step in range(total)]
    assert ours == pytest.approx(rates(torchs, total), rel=1e-9, abs=1e-15)


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.1), (10, 0.1), (5, 1.0), (1, 1.0)])
def test_one_cycle_copes_where_torchs_divides_by_zero(total: int, warmup: float) -> None:
    assert all(0 < one_cycle(step, total, warmup) <= 1 for step in range(total))


@pytest.mark.parametrize(("total", "climbing"), [(100, 5), (40, 10), (7, 0), (10, 9)])
def test_cosine_with_warm_up_is_torchs(total: int, climbing: int) -> None:
    optimizer = sgd()
    fall = lr_scheduler.CosineAnnealingLR(optimizer, T_max=total - climbing)
    whole: LRScheduler = fall
    if climbing:
        rise = lr_scheduler.LinearLR(optimizer, start_factor=CLIMB_FROM, total_iters=climbing)
        whole = lr_scheduler.SequentialLR(optimizer, [rise, fall], milestones=[climbing])
    ours = [PEAK * cosine(step, total, climbing / total) for step in range(total)]
    assert ours == pytest.approx(rates(whole, total), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("total", [10, 40, 1000])
def test_multi_step_with_warm_up_is_torchs(total: int) -> None:
    optimizer, shares = sgd(), [0.3, 0.6, 0.7, 0.9]
    climbing = total // 5
    torchs = lr_scheduler.ChainedScheduler(
        [
            lr_scheduler.LinearLR(optimizer, start_factor=CLIMB_FROM, total_iters=climbing),
            lr_scheduler.MultiStepLR(optimizer, [round(share * total) for share in shares], gamma=0.3),
        ]
    )
    wanted: list[float] = []
    for _ in range(total):
        wanted.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        torchs.step()
    ours = [PEAK * multi_step(step, total, climbing / total, shares, 0.3) for step in range(total)]
    assert ours == pytest.approx(wanted, rel=1e-9)


def test_constant_climbs_and_stays() -> None:
    torchs = lr_scheduler.LinearLR(sgd(), start_factor=CLIMB_FROM, total_iters=8)
    assert [PEAK * climb(step, 40, 0.2) for step in range(40)] == pytest.approx(rates(torchs, 40), rel=1e-9)


@pytest.mark.parametrize(
    ("schedule", "first", "last"),
    [("one-cycle", 1 / 20, 1 / 200_000), ("cosine", 0.1, 3e-6), ("multi-step", 0.1, 1e-3), ("constant", 0.1, 1.0)],
)
def test_the_setting_names_the_schedule(schedule: str, first: float, last: float) -> None:
    settings = TrainSettings(schedule=schedule)  # type: ignore[arg-type]
    shares = [learning_rate_share(settings, step, 1000) for step in range(1000)]
    assert max(shares) == pytest.approx(1, abs=1e-3)
    assert shares[0] == pytest.approx(first)
    assert shares[-1] == pytest.approx(last, rel=0.02)


@pytest.mark.parametrize("schedule", ["one-cycle", "cosine", "multi-step", "constant"])
@pytest.mark.parametrize("warmup", [0.0, 0.1, 1.0])
def test_a_run_of_few_steps_has_a_learning_rate_at_each(schedule: str, warmup: float) -> None:
    settings = TrainSettings(schedule=schedule, warmup=warmup)  # type: ignore[arg-type]
    for total in (1, 2, 3):
        assert all(0 < learning_rate_share(settings, step, total) <= 1 for step in range(total))


@pytest.mark.parametrize("step", [-1, 5])
def test_a_step_outside_the_schedule_is_refused(step: int) -> None:
    with pytest.raises(ValueError, match=f"step {step} lies outside"):
        learning_rate_share(TrainSettings(), step, 5)
