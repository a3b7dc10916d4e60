"""The progress line of long work, on stderr."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, ClassVar

from .terminal import in_one_line, is_quiet

if TYPE_CHECKING:
    from ..shards.files.parallel import Progress

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 15.0
RATED_SECONDS = 0.1  # over less than this a rate tells nothing


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """An `OnProgress` that draws one line over and over; where stderr is no terminal, a plain line now and then.

    Work that ends before a line is due shows none. Other work ends with a line of all that was done. With -q none is.
    """

    of_images: ClassVar[bool] = True

    def __init__(self, label: str) -> None:
        self._label = label
        self._begun = self._next = time.monotonic()
        self._start: Progress | None = None
        self._last: Progress | None = None
        self._shown: Progress | None = None
        self._live = sys.stderr.isatty()

    def __call__(self, progress: Progress) -> None:
        """Draw, when it is time again."""
        now = time.monotonic()
        self._last = progress
        if self._start is None:  # what an earlier run did does not count in this rate
            self._start, self._begun, self._next = progress, now, now + self._pause_s
        elif now >= self._next and not is_quiet():
            self._next = now + self._pause_s
            self._draw(progress, self._start, now)

    @property
    def _pause_s(self) -> float:
        return REDRAW_SECONDS if self._live else PLAIN_SECONDS

    def _draw(self, progress: Progress, start: Progress, now: float, *, ended: bool = False) -> None:
        seconds, done = now - self._begun, progress.fraction - start.fraction
        left = f"{clock(seconds / done * (1 - progress.fraction))} left" if done > 0 else ""
        share = (
            f"{self._label} {100 * progress.fraction:.0f} %" if progress.fraction or not self.of_images else self._label
        )
        rates = self._rates(progress, start, seconds) if self.of_images else []
        parts = [share, *rates, progress.detail, f"took {clock(seconds)}" if ended else left]
        line = in_one_line(", ".join(part for part in parts if part))
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        sys.stderr.flush()
        self._shown = progress

    @staticmethod
    def _rates(progress: Progress, start: Progress, seconds: float) -> list[str]:
        images, num_bytes = progress.images - start.images, progress.num_bytes - start.num_bytes
        rated = seconds >= RATED_SECONDS
        return [
            f"{progress.images:,} images",
            f"{images / seconds:,.0f} img/s" if rated else "",
            f"{num_bytes / seconds / 1e6:,.1f} MB/s" if rated and progress.num_bytes else "",
        ]

    def __exit__(self, kind: object, *_: object) -> None:
        if kind is None and self._shown and self._start and self._last:
            whole = self._last._replace(fraction=1.0) if self._last.fraction else self._last
            if whole != self._shown:
                self._draw(whole, self._start, time.monotonic(), ended=True)
        if self._live and self._shown:
            sys.stderr.write("\n")


class TrainLine(AbstractContextManager["TrainLine"]):
    """Watches a training run: a live line, or plain ones now and then; a line for each validation."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._begun = self._next = time.monotonic()
        self._first_step = self._total = 0
        self._drawn = False

    def on_start(self, step: int, total_steps: int) -> None:
        """Training begins after `step` steps of `total_steps`."""
        self._begun, self._first_step, self._total = time.monotonic(), step, total_steps
        self._next = self._begun + (0.0 if self._live else PLAIN_SECONDS)

    def on_step(self, line: Mapping[str, Any]) -> None:
        """Draw, when it is time again."""
        now = time.monotonic()
        if now < self._next or is_quiet():
            return
        self._next = now + (REDRAW_SECONDS if self._live else PLAIN_SECONDS)
        done = line["step"] - self._first_step
        left = (now - self._begun) / done * (self._total - line["step"])
        text = (
            f"step {line['step']:,}/{self._total:,}, epoch {line['epoch']}, loss {line['loss']:.3f}, "
            f"lr {line['lr']:.2e}, {line['images_per_s']:,.0f} img/s, "
            f"waiting for data {100 * line['data_wait']:.0f} %, {clock(left)} left"
        )
        self._drawn = True
        sys.stderr.write(f"\r\x1b[K{text}" if self._live else f"{text}\n")
        sys.stderr.flush()

    def on_validation(self, line: Mapping[str, Any]) -> None:
        """Print the validation's line."""
        if is_quiet():
            return
        self._end_line()
        validation = line["validation"]
        averaged = f"; moving average: {describe_accuracy(validation['ema'])}" if "ema" in validation else ""
        sys.stderr.write(f"epoch {line['epoch']}: {describe_accuracy(validation)}{averaged}\n")

    def _end_line(self) -> None:
        if self._live and self._drawn:
            sys.stderr.write("\n")
            self._drawn = False

    def __exit__(self, *_: object) -> None:
        self._end_line()


def describe_accuracy(validation: Mapping[str, Any]) -> str:
    """Return how good a validation found a network, in a few words.

    >>> describe_accuracy({"semantic_top1": 54.2, "top1": 3.7, "top5": 20.1})
    'semantic top-1 54.2 %, top-1 3.7 %, top-5 20.1 %'
    """
    names = {"map": "mAP", "semantic_top1": "semantic top-1", "top1": "top-1", "top5": "top-5"}
    return ", ".join(f"{title} {validation[name]:.1f} %" for name, title in names.items() if name in validation)


def clock(seconds: float) -> str:
    """Return a duration as people read it.

    >>> clock(42), clock(3725)
    ('0:42', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
