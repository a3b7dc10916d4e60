"""What the tracker measures while a loop runs."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from in21k.training.tracker import Tracker


class DeviceEvent:
    """An event of a device on which 40 ms of work are queued before the first batch, and 15 ms of copying for each."""

    queued_ms = 40.0

    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self._ms = 0.0

    def record(self, _stream: object) -> None:
        self._ms = DeviceEvent.queued_ms

    def elapsed_time(self, end: DeviceEvent) -> float:
        return end._ms - self._ms


def test_on_a_gpu_the_wait_for_data_is_that_of_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """The host gets its batches at once; the device waits for their copies."""
    monkeypatch.setattr(torch.cuda, "Event", DeviceEvent)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: device)
    ranks: Any = SimpleNamespace(device=torch.device("cuda", 0))
    tracker = Tracker(ranks, [], None)

    def batches() -> Any:
        for _ in range(3):
            DeviceEvent.queued_ms += 15
            yield torch.zeros(1, 3, 2, 2), torch.zeros(1, dtype=torch.int64)

    watched = tracker.watch(batches())
    for _ in range(3):
        next(watched)
        DeviceEvent.queued_ms += 100  # a step, which is not a wait
    assert tracker._wait_s() == pytest.approx(3 * 0.015)
