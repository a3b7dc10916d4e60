"""The progress line of work on a known number of things that are not images."""

from __future__ import annotations

from .progress import ProgressLine


class CountLine(ProgressLine):
    """Draws `label 40 %, what is being done, 0:12 left`; tell it before each thing."""

    of_images = False

    def __init__(self, label: str, total: int) -> None:
        super().__init__(label)
        self._total, self._begun_with = total, 0

    def __enter__(self) -> CountLine:
        return self

    def next(self, detail: str) -> None:
        """Another one begins."""
        from ..shards.files.parallel import Progress

        self(Progress(self._begun_with / self._total, self._begun_with, 0, detail))
        self._begun_with += 1
