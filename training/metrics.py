"""Counts that add: over batches, over ranks, and only then divided."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..shards.tree import SemanticTree
from .losses.levels import Levels


class SemanticAccuracy:
    """The semantic accuracy: how often the likeliest class of a level is the label's ancestor-or-self there.

    An image counts once for every hierarchy it has a target in: accuracy = sum_k correct_k / sum_k valid_k, with the
    prediction of level k the argmax of the logits inside H_k.

    sums: int64 (2, K) on the device: correct and valid per hierarchy. Add those of other ranks to make it the
    accuracy of all.
    """

    def __init__(self, tree: SemanticTree, device: torch.device | str = "cpu") -> None:
        self._levels = Levels(tree).to(device)
        self.sums = torch.zeros(2, len(self._levels.numbers), dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, num_classes), labels int64 (B,); counts on the logits' device, without waiting."""
        self._levels, self.sums = self._levels.to(logits.device), self.sums.to(logits.device)
        by_level = zip(self._levels.classes, self._levels.split(logits), strict=True)
        answers = torch.stack([classes[level_logits.argmax(dim=1)] for classes, level_logits in by_level], dim=1)
        self.count(answers, labels)

    def count(self, answers: Tensor, labels: Tensor) -> None:
        """Count a batch by its answers: int64 (B, K), the likeliest class of each hierarchy."""
        right = self._levels.ancestors_of(labels)
        self.sums += torch.stack([(answers == right).sum(dim=0), (right >= 0).sum(dim=0)])

    def compute(self) -> float:
        """Return the accuracy over all levels, 0..1; raises ValueError where nothing was counted."""
        correct, valid = self.sums.sum(dim=1).tolist()
        if not valid:
            raise ValueError("no image of any level was counted; wanted at least one before the accuracy is asked for")
        return correct / valid

    def per_level(self) -> list[dict[str, Any]]:
        """Return per hierarchy {level, num_classes, num_samples, top1 (percent; None without samples)}."""
        return [
            {
                "level": level,
                "num_classes": num_classes,
                "num_samples": valid,
                "top1": 100 * correct / valid if valid else None,
            }
            for level, num_classes, correct, valid in zip(
                self._levels.numbers, self._levels.sizes, *self.sums.tolist(), strict=True
            )
        ]

    def reset(self) -> None:
        """Forget what was counted."""
        self.sums.zero_()


class TopAccuracy:
    """How often the label is the likeliest class of all, and how often it is among the five likeliest.

    sums: int64 (1 + 2 * num_classes,) on the device: top-5 hits, then the top-1 hits of each class, then the number of
          samples of each class. Add those of other ranks to make it the accuracy of all.

    Ours, since it goes by the five answers, as they are saved: torchmetrics wants the scores of all classes.
    """

    def __init__(self, num_classes: int, device: torch.device | str = "cpu") -> None:
        self.sums = torch.zeros(1 + 2 * num_classes, dtype=torch.int64, device=device)

    def update(self, logits: Tensor, labels: Tensor) -> None:
        """Count a batch: logits (B, num_classes or more, of which the first count), labels int64 (B,)."""
        logits = logits[:, : len(self.class_counts)]
        self.count(logits.topk(min(5, logits.shape[1]), dim=1).indices, labels)

    def count(self, top: Tensor, labels: Tensor) -> None:
        """Count a batch by its answers: int64 (B, 5), the likeliest classes, the likeliest first."""
        hits = top == labels[:, None]
        self.sums[0] += hits.sum()
        self.class_hits.index_add_(0, labels, hits[:, 0].long())
        self.class_counts.index_add_(0, labels, torch.ones_like(labels))

    @property
    def class_hits(self) -> Tensor:
        """int64 (num_classes,): how many samples of each class have it as the likeliest."""
        return self.sums[1 : 1 + len(self.sums) // 2]

    @property
    def class_counts(self) -> Tensor:
        """int64 (num_classes,): the number of samples of each class."""
        return self.sums[1 + len(self.sums) // 2 :]

    def compute(self) -> dict[str, Any]:
        """Return {top1, top5, macro_top1 (percent), num_samples}; raises ValueError where nothing was counted.

        macro_top1 is the mean, over the classes that have a sample, of the class's top-1.
        """
        num_samples = int(self.class_counts.sum())
        if not num_samples:
            raise ValueError("no sample was counted; wanted at least one before the accuracy is asked for")
        return {
            "top1": 100 * int(self.class_hits.sum()) / num_samples,
            "top5": 100 * int(self.sums[0]) / num_samples,
            "macro_top1": 100 * macro_average(self.class_hits, self.class_counts),
            "num_samples": num_samples,
        }


def macro_average(class_hits: Tensor, class_counts: Tensor) -> float:
    """Return the mean share of hits of the classes that have a sample, 0..1; both are int64 (num_classes,).

    >>> macro_average(torch.tensor([9, 0, 0]), torch.tensor([10, 1, 0]))
    0.45
    """
    has_sample = class_counts > 0
    return float((class_hits[has_sample].double() / class_counts[has_sample]).mean())


def commonest(tree: SemanticTree, class_counts: Tensor) -> float:
    """Return the semantic accuracy (0..1) of always answering each level's commonest class: what learning has to beat.

    class_counts: (num_image_classes,) number of samples of each class with images.

    >>> tree = SemanticTree.from_paths("abc", ["animal", "plant", "stone"], [[0], [1], [2]])
    >>> commonest(tree, torch.tensor([5, 3, 2]))
    0.5
    """
    counts = tree.branch_sums([*class_counts.tolist(), *[0] * tree.num_inner])
    by_level = [[counts[index] for index in classes] for classes in tree.classes_by_level if len(classes) > 1]
    right, valid = sum(map(max, by_level)), sum(map(sum, by_level))
    if not valid:
        raise ValueError("no sample was counted; wanted at least one")
    return right / valid
