"""What a run says on its way: a line of JSON per step and per validation, without waiting for the device at each."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ..shards.files import write_text
from .distributed import Ranks

Batch = tuple[Tensor, Tensor]

# A GPU works ahead of Python, and reading a loss waits for it: a wait every ten steps is lost in the noise (guessed).
# On a CPU there is nothing to wait for.
STEPS_PER_READ, STEPS_PER_READ_CPU = 10, 1


class NonFiniteLossError(ValueError):
    """The loss became infinite or no number; the run stopped."""


class Progress(Protocol):
    """Who wants to watch a run; called on rank 0 only."""

    def on_start(self, step: int, total_steps: int) -> None:
        """Training begins after `step` steps of `total_steps`."""
        ...

    def on_step(self, line: Mapping[str, Any]) -> None:
        """A step is done; its line of log.jsonl."""
        ...

    def on_validation(self, line: Mapping[str, Any]) -> None:
        """A validation is done; its line of log.jsonl."""
        ...


class JsonLog:
    """log.jsonl: one JSON object per line, each with its `step`.

    after_step: what an unfinished run wrote beyond this step is cut off, so that each step stands there once.
    """

    def __init__(self, path: Path, *, after_step: int) -> None:
        kept: list[str] = []
        for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
            try:
                if json.loads(line)["step"] > after_step:
                    break
            except ValueError:  # the run was killed in the middle of this line
                break
            kept.append(line + "\n")
        write_text(path, "".join(kept))
        self._path = path

    def write(self, line: Mapping[str, Any]) -> None:
        """Append a line."""
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")


class Tracker:
    """Collects the steps of a rank, reads their losses from the device a few at a time, and lets rank 0 tell of them.

    A step's line is {step (1..), epoch (0..), lr, loss (mean over the ranks), images_per_s (of all ranks), data_wait
    (the share of the time in which the loop waited for batches)}; the last two are means over the steps read together.
    A validation's line is {step, epoch, validation: {...}}.
    """

    def __init__(self, ranks: Ranks, log: JsonLog | None, progress: Progress | None) -> None:
        self._ranks, self._log, self._progress = ranks, log, progress
        self._steps_per_read = STEPS_PER_READ_CPU if ranks.device.type == "cpu" else STEPS_PER_READ
        self._begin()

    def _begin(self) -> None:
        self._losses: list[Tensor] = []
        self._lines: list[dict[str, Any]] = []
        self._num_images, self._wait_s, self._start_s = 0, 0.0, time.perf_counter()

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure the wait for each; after the last one every step has been told."""
        self._begin()
        iterator = iter(batches)
        while True:
            asked_s = time.perf_counter()
            batch = next(iterator, None)
            self._wait_s += time.perf_counter() - asked_s
            if batch is None:
                break
            yield batch
            if len(self._lines) >= self._steps_per_read:
                self._tell()
        self._tell()

    def add_step(self, step: int, epoch: int, loss: Tensor, lr: float, *, num_images: int) -> None:
        """Note a step without waiting for it."""
        self._lines.append({"step": step, "epoch": epoch, "lr": lr})
        self._losses.append(loss.detach())
        self._num_images += num_images

    def add_validation(self, step: int, epoch: int, validation: Mapping[str, Any]) -> None:
        """Tell of a validation."""
        line = {"step": step, "epoch": epoch, "validation": validation}
        if self._log:
            self._log.write(line)
        if self._progress and self._ranks.is_first:
            self._progress.on_validation(line)

    def _tell(self) -> None:
        """Tell of the steps noted; waits for device and ranks, and raises NonFiniteLossError on all of them alike."""
        if not self._lines:
            return
        losses = (self._ranks.sum(torch.stack(self._losses)) / self._ranks.world_size).tolist()
        passed_s = max(time.perf_counter() - self._start_s, 1e-9)
        images_per_s = round(self._num_images * self._ranks.world_size / passed_s, 1)
        data_wait = round(self._wait_s / passed_s, 4)
        for noted, loss in zip(self._lines, losses, strict=True):
            if not math.isfinite(loss):
                raise NonFiniteLossError(
                    f"the loss of step {noted['step']} is {loss}; in a new folder try a lower --set lr "
                    f"(here it was {noted['lr']:.3g}), --set clip_grad=1, or --set amp=off"
                )
            line = noted | {"loss": loss, "images_per_s": images_per_s, "data_wait": data_wait}
            if self._log:
                self._log.write(line)
            if self._progress and self._ranks.is_first:
                self._progress.on_step(line)
        self._begin()
