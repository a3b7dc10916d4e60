"""What a run says on its way: a line per step and per validation, without waiting for the device at each."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from .distributed import Ranks
from .logs import Log

Batch = tuple[Tensor, Tensor]

# A GPU works ahead of Python, and reading a loss waits for it: a wait every ten steps is lost in the noise (guessed).
# On a CPU there is nothing to wait for.
STEPS_PER_READ, STEPS_PER_READ_CPU = 10, 1


class NonFiniteLossError(ValueError):
    """The loss became infinite or no number; the run stopped.

    line:   the step's line of log.jsonl, as far as it is known.
    losses: of the step, per rank.
    place:  of the loader before the step; None where it has none.
    """

    def __init__(self, line: Mapping[str, Any], losses: Sequence[float], place: dict[str, int] | None) -> None:
        super().__init__(line, losses, place)
        self.line, self.losses, self.place = dict(line), list(losses), place

    def __str__(self) -> str:
        return (
            f"the loss of step {self.line['step']} is {sum(self.losses)}; in a new folder try a lower --set lr "
            f"(here it was {self.line['lr']:.3g}), --set clip_grad=1, or --set amp=off"
        )


class Progress(Protocol):
    """Who wants to watch a run; called on rank 0 only."""

    def on_start(self, step: int, total_steps: int, /) -> None:
        """Training begins after `step` steps of `total_steps`."""
        ...

    def on_step(self, line: Mapping[str, Any], /) -> None:
        """A step is done; its line of log.jsonl."""
        ...

    def on_validation(self, line: Mapping[str, Any], /) -> None:
        """A validation is done; its line of log.jsonl."""
        ...


@dataclass(frozen=True)
class _Step:
    line: dict[str, Any]
    scalars: Mapping[str, Tensor]
    place: dict[str, int] | None


class Tracker:
    """Collects the steps of a rank, reads their losses from the device a few at a time, and lets rank 0 tell of them.

    A step's line is {step (1..), epoch (0..), lr, ema_decay (of the moving average, where there is one), loss and the
    other scalars (means over the ranks; null where they are not finite), images_per_s (of all ranks), data_wait (the
    share of the time in which the device waited for batches), memory_mb (the most that rank 0 had on its GPU, or has in
    memory)}; the last three are of the steps read together.
    A validation's line is {step, epoch, validation: {...}}.

    wants_stop: asked at each reading; once it is true on any rank, `tell` is true on all.
    """

    def __init__(
        self,
        ranks: Ranks,
        logs: Sequence[Log],
        progress: Progress | None,
        *,
        steps_per_read: int | None = None,
        wants_stop: Callable[[], bool] = lambda: False,
    ) -> None:
        self._ranks, self._logs, self._progress, self._wants_stop = ranks, logs, progress, wants_stop
        on_cpu = ranks.device.type == "cpu"
        self._steps_per_read = steps_per_read or (STEPS_PER_READ_CPU if on_cpu else STEPS_PER_READ)
        self._begin()

    def _begin(self) -> None:
        self._steps: list[_Step] = []
        self._num_images, self._start_s = 0, time.perf_counter()
        self._waits: list[tuple[Any, Any]] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield the batches and measure the wait for each; raises RuntimeError at their end."""
        self._begin()
        iterator = iter(batches)
        while True:
            start = self._now()
            batch = next(iterator, None)
            self._waits.append((start, self._now()))
            if batch is None:
                raise RuntimeError("the loader gave fewer batches than it promised")
            yield batch

    def _now(self) -> Any:
        """Return the time in seconds, or on a GPU an event in its stream: the host may be ahead of the device."""
        if self._ranks.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self._ranks.device))
        return event

    def _wait_s(self) -> float:
        """Return the seconds that the device waited for batches; on a GPU its work so far must be done."""
        if self._ranks.device.type != "cuda":
            return sum(end - start for start, end in self._waits)
        return sum(start.elapsed_time(end) for start, end in self._waits) / 1000

    def add_step(
        self,
        step: int,
        epoch: int,
        rates: Mapping[str, float],
        scalars: Mapping[str, Tensor],
        *,
        images: int,
        place: dict[str, int] | None = None,
    ) -> None:
        """Note a step without waiting for it.

        rates: `lr`, and `ema_decay` where there is a moving average.  scalars: on the device; one is `loss`.
        images: of this rank.  place: of the loader before the step.
        """
        self._steps.append(_Step({"step": step, "epoch": epoch, **rates}, scalars, place))
        self._num_images += images

    @property
    def due(self) -> bool:
        """Whether enough steps are noted to read them."""
        return len(self._steps) >= self._steps_per_read

    def add_validation(self, step: int, epoch: int, validation: Mapping[str, Any]) -> None:
        """Tell of a validation."""
        line = {"step": step, "epoch": epoch, "validation": validation}
        for log in self._logs:
            log.write(line)
        if self._progress and self._ranks.is_first:
            self._progress.on_validation(line)

    def tell(self) -> bool:
        """Tell of the steps noted; return whether the run shall stop. All ranks call it, and it waits for the device.

        Raises NonFiniteLossError on all ranks alike.
        """
        values, stop = self._read()
        passed_s = max(time.perf_counter() - self._start_s, 1e-9)
        rates = {
            "images_per_s": round(self._num_images * self._ranks.world_size / passed_s, 1),
            "data_wait": round(min(self._wait_s() / passed_s, 1.0), 4),
            "memory_mb": round(_memory_bytes(self._ranks.device) / 1e6),
        }
        for step, by_rank in zip(self._steps, values, strict=True):
            losses = by_rank[:, list(step.scalars).index("loss")].tolist()
            if not math.isfinite(sum(losses)):
                raise NonFiniteLossError(step.line, losses, step.place)
            means = zip(step.scalars, by_rank.mean(dim=0).tolist(), strict=True)
            line = step.line | {name: mean if math.isfinite(mean) else None for name, mean in means} | rates
            for log in self._logs:
                log.write(line)
            if self._progress and self._ranks.is_first:
                self._progress.on_step(line)
        self._begin()
        return stop

    def _read(self) -> tuple[list[Tensor], bool]:
        """Return per step the scalars of the ranks, float32 (ranks, scalars), and whether any rank wants to stop."""
        flag = torch.tensor([float(self._wants_stop())], device=self._ranks.device)
        noted = [torch.stack([scalar.float() for scalar in step.scalars.values()]) for step in self._steps]
        by_rank = torch.stack(self._ranks.gather(torch.cat([flag, *noted])))
        sizes = [1, *map(len, noted)]
        flags, *values = by_rank.split(sizes, dim=1)
        return values, bool(flags.any())


def _memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with open("/proc/self/statm", encoding="ascii") as file:  # noqa: PTH123 – a Path for each step would be waste
        return int(file.read().split()[1]) * 4096
