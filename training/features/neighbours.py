"""The nearest rows of a features file by cosine, a chunk of the file at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from .feature_file import FeatureFile, Rows, float_rows

SIMILARITIES = 1 << 26  # at a time, on the device: 256 MB


class Neighbours(NamedTuple):
    """Per query its nearest rows, nearest first: similarity float32 (Q, k) in -1..1, and row int64 (Q, k)."""

    similarity: Tensor
    rows: Tensor


def unit_rows(features: NDArray[Any], device: torch.device) -> Tensor:
    """Return features (n, D) as float32 rows of length 1 on a device; a row of zeros stays one."""
    return F.normalize(float_rows(features, device), dim=1)


def row_blocks(file: FeatureFile, size: int) -> Iterator[Rows]:
    """Yield the features of a file, `size` rows at a time, (n, D) each."""
    waiting: list[Rows] = []
    for chunk in file.chunks():
        waiting.append(chunk)
        while sum(map(len, waiting)) >= size:
            rows = np.concatenate(waiting)
            yield rows[:size]
            waiting = [rows[size:]]
    if sum(map(len, waiting)):
        yield np.concatenate(waiting)


def nearest(
    queries: Tensor, chunks: Iterable[NDArray[Any]], k: int, on_rows: Callable[[int], object] | None = None
) -> Neighbours:
    """Find the k nearest rows of each query; fewer where there are not as many.

    queries: (Q, D), rows of length 1, on the device that computes. There stay Q x k neighbours, and one chunk.
    chunks:  the rows to search, in order, (n, D) each.
    on_rows: called with the number of rows after each chunk.

    Of equally similar rows that compete for the last place any may be taken.
    """
    device = queries.device
    similarity = torch.empty(len(queries), 0, device=device)
    rows = torch.empty(len(queries), 0, dtype=torch.int64, device=device)
    first = 0
    for chunk in chunks:
        there = unit_rows(chunk, device)
        merged = [
            _merge(queries[part], there, similarity[part], rows[part], first, k)
            for part in _parts(len(queries), max(1, SIMILARITIES // max(1, len(there))))
        ]
        similarity, rows = (torch.cat(columns) for columns in zip(*merged, strict=True))
        first += len(chunk)
        if on_rows:
            on_rows(len(chunk))
    return Neighbours(similarity, rows)


def _merge(
    queries: Tensor, there: Tensor, similarity: Tensor, rows: Tensor, first: int, k: int
) -> tuple[Tensor, Tensor]:
    """Return the k nearest of those so far and of those `there`, whose rows begin at `first`."""
    nearest_there = (queries @ there.T).topk(min(k, len(there)), dim=1)
    similarity = torch.cat([similarity, nearest_there.values], dim=1)
    rows = torch.cat([rows, nearest_there.indices + first], dim=1)
    best = similarity.topk(min(k, similarity.shape[1]), dim=1)
    return best.values, rows.gather(1, best.indices)


def _parts(count: int, size: int) -> list[slice]:
    return [slice(start, start + size) for start in range(0, count, size)]
