"""The learning rate as a plain function of the step: nothing to save, nothing to get out of step."""

from __future__ import annotations

import math

START_DIVISOR = 20.0  # the reference's div_factor
END_DIVISOR = 1e4  # torch's final_div_factor, which the reference leaves as it is


def one_cycle(step: int, total_steps: int, warmup: float = 0.1) -> float:
    """Return the learning rate of a step as a share of the peak: up from 1/20, then down to 1/200,000, along cosines.

    It is torch's OneCycleLR with pct_start=warmup, div_factor=20 and final_div_factor=1e4 (Smith and Topin, 2018).

    step:   0 .. total_steps - 1.
    warmup: the share of all steps on which it climbs.

    >>> [round(one_cycle(step, 21, warmup=1/3), 3) for step in (0, 3, 6, 13, 20)]
    [0.05, 0.525, 1.0, 0.5, 0.0]
    """
    if not 0 <= step < total_steps:
        raise ValueError(f"step {step} lies outside the schedule's {total_steps} steps")
    start, end = 1 / START_DIVISOR, 1 / (START_DIVISOR * END_DIVISOR)
    peak = warmup * total_steps - 1  # may lie between two steps, or before the first
    last = total_steps - 1
    if step <= peak or peak >= last:
        return _cosine(start, 1.0, step / peak if peak > 0 else 1.0)
    return _cosine(1.0, end, (step - peak) / (last - peak))


def _cosine(begin: float, end: float, share: float) -> float:
    return end + (begin - end) * (1 + math.cos(math.pi * share)) / 2
