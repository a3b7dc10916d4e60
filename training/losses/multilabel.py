"""The loss of images with any number of labels: one yes or no for each label.

Loaders hand out one number an image, which here is that of its label set: a row of a table, bool (num_sets, C).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .cross_entropy import check_smoothing


def multi_hot(sets: Sequence[Sequence[int]], num_labels: int) -> Tensor:
    """Return a table of label sets, each given as the numbers of its labels: bool (num_sets, num_labels).

    >>> multi_hot([[1], [], [0, 2]], 3).int().tolist()
    [[0, 1, 0], [0, 0, 0], [1, 0, 1]]
    """
    table = torch.zeros(len(sets), num_labels, dtype=torch.bool)
    for row, labels in zip(table, sets, strict=True):
        row[list(labels)] = True
    return table


class MultiLabelLoss(nn.Module):
    """The asymmetric loss (Ridnik, Ben-Baruch et al., 2021, arXiv:2009.14119), which without its three dials is BCE.

        L = (1/B) sum over samples and labels of -(t (1-p)^g+ log p + (1-t) q^g- log(1-q))
        p = sigmoid(x),  q = max(p - margin, 0),  t = (1-eps) y + eps/2

    As in that paper's published training, the factors (1-p)^g+ and q^g- are constants to the gradient; labels are
    summed, and samples averaged where that code sums them too.

    table:          bool (num_sets, C): the labels of each label set.
    gamma_positive, gamma_negative: g+ and g-, 0 or more: how little the labels count that are right already.
    margin:         0 <= margin < 1: absent labels of a lower probability do not count at all.
    label_smoothing: eps, 0 <= eps < 1.

    Logits (B, C) of any float type and numbers of label sets, int64 (B,); the loss is a float32 scalar, computed in
    float32. An empty batch has loss 0.
    """

    table: Tensor

    def __init__(
        self,
        table: Tensor,
        *,
        gamma_positive: float = 0.0,
        gamma_negative: float = 0.0,
        margin: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        super().__init__()
        if gamma_positive < 0 or gamma_negative < 0 or not 0 <= margin < 1:
            raise ValueError(
                f"the asymmetric loss got gammas {gamma_positive} and {gamma_negative} and the margin {margin}; wanted "
                "gammas of 0 or more, and a margin of at least 0 and less than 1"
            )
        self.gamma_positive, self.gamma_negative, self.margin = gamma_positive, gamma_negative, margin
        self.label_smoothing = check_smoothing(label_smoothing)
        self.register_buffer("table", table, persistent=False)

    def forward(self, logits: Tensor, sets: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        logits = logits.float()
        targets = (1 - self.label_smoothing) * self.table[sets].float() + self.label_smoothing / 2
        present, absent = F.softplus(-logits), F.softplus(logits)  # -log p, -log(1-p)
        if self.margin:
            absent = -(torch.sigmoid(-logits) + self.margin).clamp(max=1).log()
        with torch.no_grad():
            probabilities = logits.sigmoid()
            of_present = targets * (1 - probabilities) ** self.gamma_positive
            of_absent = (1 - targets) * (probabilities - self.margin).clamp(min=0) ** self.gamma_negative
        return (of_present * present + of_absent * absent).sum() / max(len(logits), 1)
