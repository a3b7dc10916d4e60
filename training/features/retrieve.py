"""The images whose features are nearest to others."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ...shards.files.parallel import OnProgress, Progress, ignore_progress
from .feature_file import FeatureFile
from .neighbours import nearest, unit_rows


def retrieve(
    file: FeatureFile,
    queries: Sequence[NDArray[Any]],
    count: int,
    *,
    own_rows: Sequence[int | None] | None = None,
    device: torch.device | None = None,
    on_progress: OnProgress = ignore_progress,
) -> list[list[dict[str, Any]]]:
    """Return for each query its nearest images of a file by cosine, nearest first: {key, wnid, similarity}.

    queries:  features (D,) each.
    own_rows: for each query its row where it is in the file, which is left out of its answers; else None.
    on_progress: told the share of the rows compared.

    Raises ValueError where the file has not as many images, or a query is of another width.
    """
    own = list(own_rows or [None] * len(queries))
    if any(len(query) != file.num_features for query in queries):
        raise ValueError(f"{file.path}: has {file.num_features} features an image, a query has another number")
    num_others = len(file) - any(row is not None for row in own)
    if not 1 <= count <= num_others:
        raise ValueError(f"{file.path}: has {num_others:,} images to find; {count} were asked for")
    done = 0

    def on_chunk(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        on_progress(Progress(done / len(file), 0, 0, f"{done:,} of {len(file):,} rows compared"))

    vectors = unit_rows(np.stack(queries), device or torch.device("cpu"))
    neighbours = nearest(vectors, file.chunks(), min(count + 1, len(file)), on_chunk)
    answers = [
        [pair for pair in zip(rows, similarity, strict=True) if pair[0] != itself][:count]
        for rows, similarity, itself in zip(neighbours.rows.tolist(), neighbours.similarity.tolist(), own, strict=True)
    ]
    names = iter(file.names([row for pairs in answers for row, _ in pairs]))
    return [
        [
            {"key": key, "wnid": wnid, "similarity": similarity}
            for (_, similarity), (key, wnid) in zip(pairs, names, strict=False)
        ]
        for pairs in answers
    ]
