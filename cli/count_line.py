"""The progress line of long work that goes through a known number of things which are no images."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .progress import ProgressLine

if TYPE_CHECKING:
    pass


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
        from ..shards.parallel import Progress

        self(Progress(self._begun_with / self._total, self._begun_with, 0, detail))
        self._begun_with += 1
