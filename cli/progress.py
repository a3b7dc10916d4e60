"""The progress line of long work, on stderr."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..shards.parallel import Progress

REDRAW_SECONDS = 0.2
PLAIN_SECONDS = 15.0


class ProgressLine(AbstractContextManager["ProgressLine"]):
    """An `OnProgress` that draws one line over and over; where stderr is no terminal, a plain line now and then."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._begun = time.monotonic()
        self._start: Progress | None = None
        self._live = sys.stderr.isatty()
        self._next = self._begun + (0.0 if self._live else PLAIN_SECONDS)
        self._drawn = False

    def __call__(self, progress: Progress) -> None:
        """Draw, when it is time again."""
        # What an earlier run did already is no rate of this one.
        self._start = self._start or progress._replace(fraction=0.0, images=0, num_bytes=0)
        now = time.monotonic()
        if now >= self._next or (self._live and progress.fraction >= 1):
            self._next = now + (REDRAW_SECONDS if self._live else PLAIN_SECONDS)
            self._write(self._render(progress, now - self._begun))

    def _render(self, progress: Progress, seconds: float) -> str:
        left = seconds / progress.fraction - seconds if progress.fraction else 0.0
        parts = [
            f"{self._label} {100 * progress.fraction:.0f} %",
            f"{progress.images:,} images",
            f"{progress.images / seconds:,.0f} img/s",
            f"{progress.num_bytes / seconds / 1e6:,.1f} MB/s",
            progress.detail,
            f"{clock(left)} left",
        ]
        return ", ".join(part for part in parts if part)

    def _write(self, line: str) -> None:
        sys.stderr.write(f"\r\x1b[K{line}" if self._live else f"{line}\n")
        sys.stderr.flush()
        self._drawn = True

    def __exit__(self, *_: object) -> None:
        if self._live and self._drawn:
            sys.stderr.write("\n")


def clock(seconds: float) -> str:
    """Return a duration as people read it.

    >>> clock(42), clock(3725)
    ('0:42', '1:02:05')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"
