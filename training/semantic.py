"""Semantic softmax: one softmax per level of the tree, so that an image trains its class and all ancestors of it."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ..shards.tree import SemanticTree
from .levels import Levels


class SemanticSoftmaxLoss(nn.Module):
    """The semantic softmax loss of "ImageNet-21K Pretraining for the Masses" (Ridnik et al., 2021, section 3.2).

        L   = sum_k w_k L_k
        L_k = (1/B) sum over samples with a target at level k of CE(log_softmax(logits[:, H_k]), q_k)
        q_k = (1-eps) onehot(y_k) + eps/N_k

    with H_k, N_k, y_k and w_k as `Levels` has them. B counts the whole batch, also the samples that a level leaves out.

    label_smoothing: eps, 0 <= eps < 1.

    Logits (B, num_classes) of any float type and labels int64 (B,) on one device; the loss is float32, a scalar on that
    device, computed without waiting for it. Move the module there with `.to(device)`. An empty batch has loss 0.

    >>> tree = SemanticTree.from_paths("abc", ["animal", "plant", "bird"], [[0], [1], [2, 0]])
    >>> loss = SemanticSoftmaxLoss(tree, label_smoothing=0)
    >>> round(loss(torch.zeros(1, 3), torch.tensor([2])).item(), 4)  # a bird is an animal: log 2; one class at level 1
    0.6931
    """

    def __init__(self, tree: SemanticTree, label_smoothing: float = 0.2) -> None:
        super().__init__()
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}; wanted at least 0 and less than 1")
        self.label_smoothing = label_smoothing
        self.levels = Levels(tree)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        by_level = self.levels.split(logits.float())
        targets = self.levels.targets_of(labels)
        total = by_level[0].new_zeros(())
        for weight, level_logits, target in zip(self.levels.weights, by_level, targets, strict=True):
            total = total + weight * F.cross_entropy(
                level_logits, target, ignore_index=-1, reduction="sum", label_smoothing=self.label_smoothing
            )
        return total / max(len(labels), 1)
