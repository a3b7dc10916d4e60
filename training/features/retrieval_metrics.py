"""How well features retrieve: each image of a file is a query for the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ...shards.files.parallel import OnProgress, Progress, ignore_progress
from ...shards.tree import SemanticTree
from ..losses.levels import Levels
from .feature_file import FeatureFile
from .neighbours import nearest, row_blocks, unit_rows

RECALLS = (1, 5, 10)
MAX_K = 1_000  # guessed: neighbours of 16,000 queries then take 250 MB
BLOCK_BYTES = 1 << 30  # of queries and their neighbours at a time: each block reads the whole file once


def evaluate_retrieval(
    file: FeatureFile,
    *,
    k: int = 10,
    tree: SemanticTree | None = None,
    device: torch.device | None = None,
    on_progress: OnProgress = ignore_progress,
    block_rows: int | None = None,
) -> dict[str, Any]:
    """Find the nearest other images of each image by cosine, and count hits: images of the same class.

    recall_at_1, _5, _10: the share of queries with a hit among as many nearest images (Song et al., 2016,
        arXiv:1511.06452).
    map_at_k: the mean over queries of sum_i P(i) rel(i) / min(k, R), i = 1..k, where rel(i) is 1 when the i-th nearest
        image is a hit and else 0, P(i) is the share of hits among the i nearest, and R is the number of hits in the
        file (Weyand et al., 2020, arXiv:2004.01804).

    tree:       also count within each hierarchy: a hit is then an image with the same ancestor-or-self at that level.
    block_rows: queries at a time; None: as many as take 1 GB.

    A query counts where its class reaches the level and the file has a hit for it. Returns {num_images, num_features,
    k, num_classes, num_queries, recall_at_1, recall_at_5, recall_at_10, map_at_k}, the last four in percent (None
    without queries), and with a tree per_level: a list of {level, num_classes, num_queries, ...} with the same four.

    Raises ValueError for a file of fewer than two images, a k out of range, and a class that the tree lacks.
    """
    if len(file) < 2:
        raise ValueError(f"{file.path}: has {len(file)} images; wanted two or more, so that there is one to find")
    if not 1 <= k <= MAX_K:
        raise ValueError(f"k is {k}; wanted 1 to {MAX_K:,}")
    device = device or torch.device("cpu")
    labels = torch.from_numpy(file.labels(list(tree.wnids)) if tree else file.classes[1]).to(device)
    levels = Levels(tree).to(device) if tree else None
    columns = [labels, *(levels.ancestors_of(labels).unbind(dim=1) if levels else ())]
    counters = [_Hits(column, k) for column in columns]
    num_found = min(max(k, *RECALLS), len(file) - 1)
    block = block_rows or max(1, BLOCK_BYTES // (4 * file.num_features + 24 * (num_found + 1)))
    done, first, total = 0, 0, len(file) * -(-len(file) // block)

    def on_chunk(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        on_progress(Progress(done / total, 0, 0, f"{done:,} of {total:,} rows compared"))

    for queries in row_blocks(file, block):
        neighbours = nearest(unit_rows(queries, device), file.chunks(), num_found + 1, on_chunk)
        own = torch.arange(first, first + len(queries), device=device)
        # The query itself goes last, and off; of many equal images it may not be among them, and then the last goes.
        order = (neighbours.rows == own[:, None]).long().argsort(dim=1, stable=True)[:, :num_found]
        rows = neighbours.rows.gather(1, order)
        for counter in counters:
            counter.update(own, rows)
        first += len(queries)
    result = {"num_images": len(file), "num_features": file.num_features, "k": k, **counters[0].compute()}
    if levels:
        result["per_level"] = [
            {"level": level, **counter.compute()} for level, counter in zip(levels.numbers, counters[1:], strict=True)
        ]
    return result


class _Hits:
    """Counts hits among the nearest images, by labels int64 (N,) of all images; -1: the image has none."""

    def __init__(self, labels: Tensor, k: int) -> None:
        self._labels, self._k = labels, k
        self._class_counts = torch.bincount(labels[labels >= 0])
        self._sums = torch.zeros(1 + len(RECALLS), dtype=torch.float64, device=labels.device)
        self._num_queries = 0

    def update(self, queries: Tensor, rows: Tensor) -> None:
        """Count queries, by their rows int64 (B,), with the rows of their nearest images, int64 (B, K)."""
        labels = self._labels[queries]
        num_hits = self._class_counts[labels.clamp(min=0)] - 1
        counts = (labels >= 0) & (num_hits > 0)
        hits = (self._labels[rows] == labels[:, None])[counts]
        recalls = [hits[:, :count].any(dim=1).sum() for count in RECALLS]
        hits = hits[:, : self._k].double()
        precisions = hits.cumsum(dim=1) / torch.arange(1, 1 + hits.shape[1], device=hits.device)
        average = (precisions * hits).sum(dim=1) / num_hits[counts].clamp(max=self._k)
        self._sums += torch.stack([*(recall.double() for recall in recalls), average.sum()])
        self._num_queries += int(counts.sum())

    def compute(self) -> dict[str, Any]:
        """Return {num_classes, num_queries, recall_at_*, map_at_k}."""
        names = [*(f"recall_at_{count}" for count in RECALLS), "map_at_k"]
        shares = [100 * total / self._num_queries if self._num_queries else None for total in self._sums.tolist()]
        num_classes = int((self._class_counts > 0).sum())
        return {"num_classes": num_classes, "num_queries": self._num_queries, **dict(zip(names, shares, strict=True))}
