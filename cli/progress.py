"""The progress line of long work, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Self

from .terminal import in_one_line, is_quiet

if TYPE_CHECKING:
    from ..shards.files.parallel import Progress

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 15.0
RATED_SECONDS = 0.1  # over a shorter time a rate tells nothing


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """An `OnProgress` that redraws one line on a terminal, and prints a plain line now and then elsewhere.

    Work that ends before a line is due shows none. Other work ends with a line of all that was done. With -q none is.
    """

    def __init__(self, label: str) -> None:
        self._label = label
        self._begun = self._next = time.monotonic()
        self._start: Progress | None = None
        self._last: Progress | None = None
        self._drawn: Progress | None = None
        self._live = sys.stderr.isatty()

    def __enter__(self) -> Self:
        return self

    def __call__(self, progress: Progress) -> None:
        """Draw, when it is time again."""
        now = time.monotonic()
        self._last = progress
        if self._start is None:  # what an earlier run did does not count in this rate
            self._start, self._begun, self._next = progress, now, now + self._pause_s
        elif now >= self._next and not is_quiet():
            self._next = now + self._pause_s
            self._draw(progress, self._start, now)

    def show(self, detail: str, fraction: float) -> None:
        """Draw, when it is time again, work that is not counted in images: what is being done, the fraction done."""
        from ..shards.files.parallel import Progress

        self(Progress(fraction, 0, 0, detail))

    @property
    def _pause_s(self) -> float:
        return REDRAW_SECONDS if self._live else PLAIN_SECONDS

    def _draw(self, progress: Progress, start: Progress, now: float, *, ended: bool = False) -> None:
        seconds, done = now - self._begun, progress.fraction - start.fraction
        left = f"{clock(seconds / done * (1 - progress.fraction))} left" if done > 0 else ""
        share = f"{self._label} {100 * progress.fraction:.0f} %" if progress.fraction else self._label
        parts = [share, *self._rates(progress, start, seconds), progress.detail]
        line = in_one_line(", ".join(filter(None, [*parts, f"took {clock(seconds)}" if ended else left])))
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        sys.stderr.flush()
        self._drawn = progress

    @staticmethod
    def _rates(progress: Progress, start: Progress, seconds: float) -> list[str]:
        if not progress.images:
            return []
        images, num_bytes = progress.images - start.images, progress.num_bytes - start.num_bytes
        rated = seconds >= RATED_SECONDS
        return [
            f"{progress.images:,} images",
            f"{images / seconds:,.0f} img/s" if rated else "",
            f"{num_bytes / seconds / 1e6:,.1f} MB/s" if rated and progress.num_bytes else "",
        ]

    def _end_line(self) -> None:
        if self._live and self._drawn:
            sys.stderr.write("\n")
        self._drawn = None

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._drawn and self._start and self._last:
            whole = self._last._replace(fraction=1.0) if self._last.fraction else self._last
            if whole != self._drawn:
                self._draw(whole, self._start, time.monotonic(), ended=True)
        self._end_line()


class TrainLine(ProgressLine):
    """The progress line of a training run, and a line for each validation."""

    def __init__(self) -> None:
        super().__init__("train")
        self._total_steps = 0

    def on_start(self, step: int, total_steps: int) -> None:
        """Training begins after `step` steps of `total_steps`."""
        self._total_steps = total_steps
        self.show("", step / total_steps)

    def on_step(self, line: Mapping[str, Any]) -> None:
        """Draw, when it is time again."""
        detail = (
            f"step {line['step']:,}/{self._total_steps:,}, epoch {line['epoch']}, loss {line['loss']:.3f}, "
            f"lr {line['lr']:.2e}, {line['images_per_s']:,.0f} img/s, waiting for data {100 * line['data_wait']:.0f} %"
        )
        self.show(detail, line["step"] / self._total_steps)

    def on_validation(self, line: Mapping[str, Any]) -> None:
        """Print the validation's line."""
        from ..training.metric_names import describe_accuracy

        if is_quiet():
            return
        self._end_line()
        validation = line["validation"]
        averaged = f"; moving average: {describe_accuracy(validation['ema'])}" if "ema" in validation else ""
        sys.stderr.write(f"epoch {line['epoch']}: {describe_accuracy(validation)}{averaged}\n")

    def __exit__(self, *_: object) -> None:
        self._end_line()  # without a last line: a signal may have stopped the run before its end


def clock(seconds: float) -> str:
    """Return a duration in hours, minutes and seconds.

    >>> clock(42), clock(3725)
    ('0:42', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
