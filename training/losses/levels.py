"""The hierarchies of a semantic tree as tensors: what losses, accuracy and prediction share."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree


class Levels(nn.Module):
    """The levels of a tree that hold at least two classes, the hierarchies, from general to particular.

    A level of one class leaves nothing to choose, so it has no hierarchy. Its class trains its ancestors only.

    num_classes, num_image_classes: as of the tree.
    numbers:   per hierarchy its level in the tree (K of them).
    sizes:     per hierarchy its number of classes N_k.
    weights:   per hierarchy w_k, as `SemanticTree.level_weights` has them.
    order:     int64 (sum of sizes,): the class indices H_0, then H_1, ...
    begins:    int64 (K + 1,): where in `order` each hierarchy begins, and where the last ends.
    ancestors: int64 (num_classes, K): per class the class index of its ancestor-or-self in each hierarchy; -1 in those
               below its own level, which are the last ones of its row.

    The tensors move with the module and stay out of its state dict: the tree makes them.
    Raises ValueError where no level holds two classes.
    """

    order: Tensor
    begins: Tensor
    ancestors: Tensor

    def __init__(self, tree: SemanticTree) -> None:
        super().__init__()
        by_level = tree.classes_by_level
        self.num_classes, self.num_image_classes = len(tree), tree.num_image_classes
        self.numbers = tuple(level for level, weight in enumerate(tree.level_weights) if weight is not None)
        if not self.numbers:
            raise ValueError(
                f"the tree has {len(tree)} classes and no level of two, so there is nothing to tell apart; "
                "wanted at least two classes with equally many class ancestors"
            )
        self.sizes = tuple(len(by_level[level]) for level in self.numbers)
        self.weights = tuple(weight for weight in tree.level_weights if weight is not None)
        order = [index for level in self.numbers for index in by_level[level]]
        # A path runs from the class up to level 0, so the ancestor at level k is the k-th from its end.
        ancestors = [[path[-1 - k] if len(path) > k else -1 for k in self.numbers] for path in tree.paths]
        self.register_buffer("order", torch.tensor(order), persistent=False)
        self.register_buffer("begins", torch.tensor((0, *self.sizes)).cumsum(0), persistent=False)
        self.register_buffer("ancestors", torch.tensor(ancestors), persistent=False)

    def check(self, logits: Tensor) -> None:
        """Raise ValueError where logits are not (B, num_classes)."""
        if logits.ndim != 2 or logits.shape[1] != self.num_classes:
            raise ValueError(f"logits have the shape {tuple(logits.shape)}; the tree wants (batch, {self.num_classes})")

    def split(self, logits: Tensor) -> tuple[Tensor, ...]:
        """Split logits (B, num_classes) into (B, N_k) per hierarchy; raises ValueError for another class count."""
        self.check(logits)
        return logits.index_select(1, self.order).split(self.sizes, dim=1)

    def ancestors_of(self, labels: Tensor) -> Tensor:
        """Return int64 (B, K): the class that is right in each hierarchy for labels int64 (B,); -1 where there is none.

        A label outside the class indices is an error on a CPU, and a failed assertion on a GPU, as in torch's losses.
        """
        return self.ancestors.index_select(0, labels)

    @property
    def classes(self) -> tuple[Tensor, ...]:
        """Per hierarchy its class indices, int64 (N_k,)."""
        return cast(tuple[Tensor, ...], self.order.split(self.sizes))


class InnerScores(nn.Module):
    """Gives inner classes the log-sum-exp of the logits of the image classes below them.

    For networks that have no outputs for inner classes, or whose loss left them out: one softmax over the image classes
    then makes an inner class as probable as all classes below it together.

    Logits (B, num_image_classes or more), of which the first count, to float32 (B, num_classes).

    >>> tree = SemanticTree.from_parents("abcd", ["beagle", "poodle", "cat", "dog"], [3, 3, -1, -1], num_inner=1)
    >>> InnerScores(tree)(torch.tensor([[1.0, 1.0, 0.0]])).exp().tolist()  # e, e, 1, 2e
    [[2.7182817459106445, 2.7182817459106445, 1.0, 5.436563491821289]]
    """

    below: Tensor
    inner: Tensor

    def __init__(self, tree: SemanticTree) -> None:
        super().__init__()
        self.num_image_classes, self.num_inner = tree.num_image_classes, tree.num_inner
        first = tree.num_image_classes
        pairs = [(index, node - first) for index in range(first) for node in tree.paths[index] if node >= first]
        below, inner = zip(*pairs, strict=True) if pairs else ((), ())
        self.register_buffer("below", torch.tensor(below, dtype=torch.int64), persistent=False)
        self.register_buffer("inner", torch.tensor(inner, dtype=torch.int64), persistent=False)

    def forward(self, logits: Tensor) -> Tensor:
        """Return the logits of all classes."""
        logits = logits[:, : self.num_image_classes].float()
        most = logits.amax(dim=1, keepdim=True)
        shares = (logits - most).exp().index_select(1, self.below)
        sums = logits.new_zeros(len(logits), self.num_inner).index_add_(1, self.inner, shares)
        return torch.cat([logits, sums.clamp(min=torch.finfo(sums.dtype).tiny).log() + most], dim=1)
