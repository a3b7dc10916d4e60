"""Runs that are watched, stopped and killed, and what they leave."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """The last weights and their moving average, where there is one."""
    checkpoint = torch.load(folder / "checkpoints" / "last.pt", weights_only=True)
    average = checkpoint["ema"] or {}
    return checkpoint["model"] | {f"ema.{name}": tensor for name, tensor in average.items()}


class KilledError(Exception):
    pass


class Watcher:
    """Watches a run, and does something once a step is told of."""

    def __init__(self, step: int = -1, act: Callable[[], None] = lambda: None) -> None:
        self.step, self.act = step, act
        self.begun_at: int | None = None
        self.total: int | None = None

    def on_start(self, step: int, total_steps: int) -> None:
        self.begun_at, self.total = step, total_steps

    def on_step(self, line: Mapping[str, Any]) -> None:
        if line["step"] == self.step:
            self.act()

    def on_validation(self, line: Mapping[str, Any]) -> None:
        pass


def kill_at(step: int) -> Watcher:
    def kill() -> None:
        raise KilledError

    return Watcher(step, kill)


def signal_at(step: int, number: int = signal.SIGTERM) -> Watcher:
    return Watcher(step, lambda: signal.raise_signal(number))


def assert_equal_runs(folder: Path, whole: Path) -> None:
    weights = weights_of(folder)
    for name, tensor in weights_of(whole).items():
        assert torch.equal(tensor, weights[name]), name
    assert (folder / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    varying = ("images_per_s", "data_wait", "memory_mb")
    kept = [
        [{key: value for key, value in line.items() if key not in varying} for line in lines_of(item)]
        for item in (folder, whole)
    ]
    assert kept[0] == kept[1]
