"""The learning rate as a plain function of the step: nothing to save, nothing to get out of step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from .settings import TrainSettings

START_DIVISOR = 20.0  # the reference's div_factor
END_DIVISOR = 1e4  # torch's final_div_factor, which the reference leaves as it is
CLIMB_FROM = 0.1  # pycls' WARMUP_FACTOR, with which its published baselines were trained


def count_steps(num_batches: int, settings: TrainSettings) -> int:
    """Return the optimizer steps of an epoch of so many batches a rank; raises ValueError where they fill none."""
    if not num_batches:
        raise ValueError(
            f"the training images do not fill one batch of {settings.batch_size} on each rank; give a smaller "
            "--set batch_size"
        )
    if num_batches < settings.accumulate:
        raise ValueError(
            f"accumulate is {settings.accumulate}, and an epoch has {num_batches} batches of {settings.batch_size} on "
            "each rank, fewer than one step takes; give a smaller --set accumulate or --set batch_size"
        )
    return num_batches // settings.accumulate


def learning_rate_share(settings: TrainSettings, step: int, total_steps: int) -> float:
    """Return the learning rate of a step (0 .. total_steps - 1) as a share of the peak, by the settings' schedule.

    >>> settings = TrainSettings(schedule="cosine", warmup=0.2)
    >>> [round(learning_rate_share(settings, step, 10), 3) for step in range(10)]
    [0.1, 0.55, 1.0, 0.962, 0.854, 0.691, 0.5, 0.309, 0.146, 0.038]
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} lies outside the schedule's {total_steps} steps")
    match settings.schedule:
        case "one-cycle":
            return one_cycle(step, total_steps, settings.warmup)
        case "cosine":
            return cosine(step, total_steps, settings.warmup)
        case "multi-step":
            return multi_step(step, total_steps, settings.warmup, settings.milestones, settings.gamma)
        case "constant":
            return climb(step, total_steps, settings.warmup)


def one_cycle(step: int, total_steps: int, warmup: float = 0.1) -> float:
    """Return the share of a step: up from 1/20, then down to 1/200,000, along cosines.

    It is torch's OneCycleLR with pct_start=warmup, div_factor=20 and final_div_factor=1e4 (Smith and Topin, 2018).

    >>> [round(one_cycle(step, 21, warmup=1/3), 3) for step in (0, 3, 6, 13, 20)]
    [0.05, 0.525, 1.0, 0.5, 0.0]
    """
    start, end = 1 / START_DIVISOR, 1 / (START_DIVISOR * END_DIVISOR)
    peak = warmup * total_steps - 1  # may lie between two steps, or before the first
    last = total_steps - 1
    if step <= peak or peak >= last:
        return _along_cosine(start, 1.0, step / peak if peak > 0 else 1.0)
    return _along_cosine(1.0, end, (step - peak) / (last - peak))


def climb(step: int, total_steps: int, warmup: float) -> float:
    """Return the share of a step: up from 1/10 in a straight line (Goyal et al., 2017, arXiv:1706.02677), then 1.

    >>> [round(climb(step, 10, warmup=0.3), 3) for step in range(5)]
    [0.1, 0.4, 0.7, 1.0, 1.0]
    """
    steps = warmup * total_steps
    return CLIMB_FROM + (1 - CLIMB_FROM) * step / steps if step < steps else 1.0


def cosine(step: int, total_steps: int, warmup: float = 0.0) -> float:
    """Return the share of a step: `climb`, then half a cosine's period down to 0 after the last step.

    >>> [round(cosine(step, 4), 3) for step in range(4)]
    [1.0, 0.854, 0.5, 0.146]
    """
    begin = warmup * total_steps
    if step < begin:
        return climb(step, total_steps, warmup)
    return _along_cosine(1.0, 0.0, (step - begin) / (total_steps - begin))


def multi_step(step: int, total_steps: int, warmup: float, milestones: Sequence[float], gamma: float) -> float:
    """Return the share of a step: `climb`, times `gamma` for each milestone (a share of all steps) that is reached.

    >>> [round(multi_step(step, 6, 0.0, [0.5, 0.9], 0.1), 3) for step in range(6)]
    [1.0, 1.0, 1.0, 0.1, 0.1, 0.1]
    """
    reached = sum(step / total_steps >= milestone for milestone in milestones)
    return climb(step, total_steps, warmup) * gamma**reached


def _along_cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
