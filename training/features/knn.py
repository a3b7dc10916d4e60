"""Weighted nearest-neighbour classification of cached features: Wu et al., 2018 (https://arxiv.org/abs/1805.01978), as
DINO evaluates (https://github.com/facebookresearch/dino, eval_knn.py)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...shards.files.parallel import OnProgress, Progress, ignore_progress
from ...shards.tree import SemanticTree
from ..losses.levels import Levels
from ..metrics import SemanticAccuracy
from .feature_file import FeatureFile
from .neighbours import nearest, row_blocks, unit_rows
from .probe_data import check_pair, wnids_of

KS, TEMPERATURE = (10, 20, 100, 200), 0.07
BLOCK_BYTES = 2 << 30  # of test rows and their neighbours on the device at a time: each block reads all of train once
COLDEST = 1e-300  # below it nothing changes, and at last numbers end
NO_ANSWER = -2  # neither a class nor -1, which stands for the lack of a right one
VOTES = 1 << 25  # at a time: 256 MB


def default_ks(num_train: int) -> list[int]:
    """Return the default numbers of neighbours: 10, 20, 100 and 200, or all rows where they are fewer."""
    return [k for k in KS if k <= num_train] or [num_train]


def knn(
    train: FeatureFile,
    test: FeatureFile,
    *,
    ks: Sequence[int],
    temperature: float = TEMPERATURE,
    tree: SemanticTree | None = None,
    device: torch.device | None = None,
    on_progress: OnProgress = ignore_progress,
    block_rows: int | None = None,
) -> dict[str, Any]:
    """Classify the test rows by the votes of their k nearest training rows.

    Each neighbour votes for its class with exp(cosine / temperature). With a tree it also votes for the ancestors of
    its class, and the answer of a level is the class there with most votes; a level
    without votes counts as wrong. Votes are compared by their logarithms, so that at the lowest
    temperature, too, the nearest neighbour's class wins, and the classes behind it keep their order.

    on_progress: told the share of the training rows compared.
    block_rows: test rows at a time; None: as many as take 2 GB.

    Returns {num_train, num_test, num_classes, num_features, temperature, results}, results per k {k, top1, top5} in
    percent, and semantic_top1 with a tree. Raises ValueError for features of two kinds, or a k or temperature that is
    none.
    """
    check_pair(train, test)
    if not ks or min(ks) < 1 or max(ks) > len(train):
        raise ValueError(f"k is {', '.join(map(str, ks))}; wanted 1 to {len(train):,}, the training rows")
    if not 0 < temperature < math.inf:
        raise ValueError(f"temperature is {temperature}; wanted a number above 0 (at 1000 all votes are about equal)")
    device = device or torch.device("cpu")
    wnids = wnids_of(train, test, tree)
    train_labels, test_labels = (torch.from_numpy(file.labels(wnids)).to(device) for file in (train, test))
    counts = {k: _Counts(len(wnids), tree, device) for k in sorted(set(ks))}
    block = block_rows or max(1, BLOCK_BYTES // (4 * test.num_features + 36 * max(ks)))
    done, first, total = 0, 0, len(train) * -(-len(test) // block)

    def on_chunk(num_rows: int) -> None:
        nonlocal done
        done += num_rows
        on_progress(Progress(done / total, 0, 0, f"{done:,} of {total:,} rows compared"))

    for queries in row_blocks(test, block):
        neighbours = nearest(unit_rows(queries, device), train.chunks(), max(ks), on_chunk)
        labels = test_labels[first : first + len(queries)]
        for part in range(0, len(labels), size := max(1, VOTES // (len(wnids) + max(ks) * 12))):
            voters = train_labels[neighbours.rows[part : part + size]]
            similarity = neighbours.similarity[part : part + size].double()
            # Of the nearest 0, so that no number is too large.
            logs = (similarity - similarity[:, :1]) / max(temperature, COLDEST)
            for k, counter in counts.items():
                counter.update(voters[:, :k], logs[:, :k], labels[part : part + size])
        first += len(queries)
    return {
        "num_train": len(train),
        "num_test": len(test),
        "num_classes": len(wnids),
        "num_features": train.num_features,
        "temperature": temperature,
        "results": [{"k": k, **counter.compute()} for k, counter in counts.items()],
    }


class _Counts:
    """How often the votes of k neighbours are right."""

    def __init__(self, num_classes: int, tree: SemanticTree | None, device: torch.device) -> None:
        self._num_classes = num_classes
        self._hits = torch.zeros(3, dtype=torch.int64, device=device)  # top-1, top-5, samples
        self._levels = Levels(tree).to(device) if tree else None
        self._semantic = SemanticAccuracy(tree, device) if tree else None

    def update(self, voters: Tensor, logs: Tensor, labels: Tensor) -> None:
        """Count a batch: the neighbours' classes (B, k), the logarithms of their votes (B, k), the right ones (B,)."""
        votes = _log_votes(voters, logs, self._num_classes)
        top = votes.topk(min(5, self._num_classes), dim=1)
        hits = (top.indices == labels[:, None]) & (top.values > -math.inf)
        self._hits += torch.stack([hits[:, 0].sum(), hits.sum(), torch.tensor(len(labels), device=labels.device)])
        if self._levels and self._semantic:
            above = self._levels.ancestors_of(voters.reshape(-1)).view(*voters.shape, -1)  # B, k, K
            cast = logs[..., None].where(above >= 0, -math.inf)
            votes = _log_votes(above.clamp(min=0).flatten(1), cast.flatten(1), self._levels.num_classes)
            best = [part.max(dim=1) for part in self._levels.split(votes)]
            answers = [
                classes[likeliest.indices].where(likeliest.values > -math.inf, NO_ANSWER)
                for classes, likeliest in zip(self._levels.classes, best, strict=True)
            ]
            self._semantic.count(torch.stack(answers, dim=1), labels)

    def compute(self) -> dict[str, float]:
        """Return {top1, top5} in percent, and semantic_top1 where there is a tree."""
        top1, top5, samples = self._hits.tolist()
        result = {"top1": 100 * top1 / samples, "top5": 100 * top5 / samples}
        return result | ({"semantic_top1": 100 * self._semantic.compute()} if self._semantic else {})


def _log_votes(classes: Tensor, logs: Tensor, num_classes: int) -> Tensor:
    """Return the logarithm of each class's sum of votes, float64 (B, num_classes); -inf where it has none.

    classes: int64 (B, V), whom each vote is for.
    logs:    float64 (B, V), the votes' logarithms; -inf: none.
    """
    most = logs.new_full((len(logs), num_classes), -math.inf).scatter_reduce_(1, classes, logs, "amax")
    shares = (logs - most.gather(1, classes)).exp().where(logs > -math.inf, 0)
    return torch.zeros_like(most).scatter_add_(1, classes, shares).log_().add_(most)
