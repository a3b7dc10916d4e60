"""How many trials a benchmark takes, how long that is, and what a sweep tries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from ...shards.files.parallel import default_workers
from .rounds import BenchSettings

SWEPT_LOADS = (0.0, 0.25, 0.5, 0.65, 0.8, 1.0)  # of the hardware decoder, from none to all of the JPEGs
START_S = 6.0  # a backend's process with its imports, on one core (measured: 4 to 7)
SETUP_S = 1.0  # a loader with the batches that it makes before the clock starts (guessed)
MIN_TRIAL_S = 0.5  # guessed: shorter trials measure noise


def sweep_of(cores: int | None = None) -> tuple[int, ...]:
    """Return the numbers of workers to try: powers of 2, and all cores (None: the cores of this process).

    >>> sweep_of(12)
    (1, 2, 4, 8, 12)
    """
    cores = cores or default_workers()
    return (*(2**power for power in range((cores - 1).bit_length())), cores)


def num_trials(settings: BenchSettings, backends: Sequence[str]) -> int:
    """Return how many trials the backends take, from the disk included."""
    return 2 * settings.rounds * len(backends) + sum(map(settings.num_swept, backends))


def planned_seconds(settings: BenchSettings, backends: Sequence[str], *, with_model: bool) -> float:
    """Return about how many seconds a benchmark takes."""
    overhead, num_measured = _overhead(settings, backends, with_model=with_model)
    return overhead + num_measured * settings.trial_seconds


def within_budget(
    settings: BenchSettings, backends: Sequence[str], budget: float, *, with_model: bool
) -> BenchSettings:
    """Return the settings with trials of such a length that all of them take about `budget` seconds.

    Raises ValueError if the trials would be too short to measure anything.
    """
    overhead, num_measured = _overhead(settings, backends, with_model=with_model)
    trial_seconds = (budget - overhead) / num_measured
    if trial_seconds < MIN_TRIAL_S:
        needed, trials = overhead + num_measured * MIN_TRIAL_S, num_trials(settings, backends)
        raise ValueError(
            f"budget is {budget:g} s; wanted at least {needed:.0f} s for {trials} trials of {len(backends)} backends; "
            "name fewer backends, or lower --rounds"
        )
    return replace(settings, seconds=trial_seconds * settings.rounds)


def _overhead(settings: BenchSettings, backends: Sequence[str], *, with_model: bool) -> tuple[float, int]:
    """Return the seconds in which nothing is measured, and how many times a trial's length is measured."""
    trials = num_trials(settings, backends)
    return START_S * len(backends) + SETUP_S * trials, trials + settings.rounds * (3 if with_model else 2)
