"""Counts of positive integers in bins of equal ratio, of one quantity or of two together."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

NUM_OCTAVES = 31  # every int32
FINE = 24  # bins per doubling: 3 % wide
COARSE = 6  # of the two-dimensional histogram: 12 % wide
SIDE_OCTAVES = 15  # sides of 32,768 pixels and more share the last bin


def _edges(per_octave: int, octaves: int) -> NDArray[np.float64]:
    return 2.0 ** (np.arange(per_octave * octaves + 1) / per_octave)


class Histogram:
    """Counts of positive integers, in bins of equal ratio."""

    def __init__(self) -> None:
        self._edges = _edges(FINE, NUM_OCTAVES)
        self._counts = np.zeros(len(self._edges), np.int64)
        self._largest = np.zeros(len(self._edges), np.int64)

    def add(self, values: NDArray[np.integer]) -> None:
        """Count values >= 1."""
        bins = np.searchsorted(self._edges, values, side="right") - 1
        self._counts += np.bincount(bins, minlength=len(self._counts))
        np.maximum.at(self._largest, bins, values)

    @property
    def total(self) -> int:
        """How many values were counted."""
        return int(self._counts.sum())

    def bins(self, per_octave: int) -> list[tuple[float, float, int]]:
        """Return (low, high, count) of the bins from the first that is not empty to the last; few to a doubling."""
        counts = self._counts[:-1].reshape(-1, FINE // per_octave).sum(axis=1)
        edges = self._edges[:: FINE // per_octave]
        held = np.flatnonzero(counts)
        if not len(held):
            return []
        return [(float(edges[i]), float(edges[i + 1]), int(counts[i])) for i in range(held[0], held[-1] + 1)]

    def quantile(self, share: float) -> int:
        """Return a value that this share (0..1) of the counted ones is at most, 3 % above the least such at most."""
        return int(self._largest[np.searchsorted(np.cumsum(self._counts), share * self.total)])


class SideHistogram:
    """Counts of widths and heights together: `counts[i, j]` images have a width in bin i and a height in bin j."""

    def __init__(self) -> None:
        self.edges = _edges(COARSE, SIDE_OCTAVES)
        self.counts = np.zeros((len(self.edges), len(self.edges)), np.int64)

    def add(self, widths: NDArray[np.integer], heights: NDArray[np.integer]) -> None:
        """Count images of sides >= 1."""
        rows, columns = (np.searchsorted(self.edges, sides, side="right") - 1 for sides in (widths, heights))
        size = len(self.edges)
        self.counts += np.bincount(rows * size + columns, minlength=size * size).reshape(size, size)
