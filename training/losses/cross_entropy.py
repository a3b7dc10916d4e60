"""The losses that know no tree: one softmax over all classes, or a yes or no for each."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class CrossEntropyLoss(nn.Module):
    """The mean cross-entropy over a batch, with the target (1-eps) onehot(label) + eps/C.

    label_smoothing: eps, 0 <= eps < 1.

    Logits (B, C) of any float type and labels int64 (B,); the loss is a float32 scalar, computed in float32. An empty
    batch has loss 0.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_smoothing(label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        total = F.cross_entropy(logits.float(), labels, reduction="sum", label_smoothing=self.label_smoothing)
        return total / max(len(logits), 1)


class BinaryCrossEntropyLoss(nn.Module):
    """One sigmoid per class, right for the label and wrong for every other (one against all).

        L = (1/B) sum over samples and classes of -(t log s(x) + (1-t) log(1 - s(x)))
          = (1/B) sum over samples of (sum_c log(1 + e^x_c) - sum_c t_c x_c),    t = (1-eps) onehot(label) + eps/C

    Binary cross-entropy with a smoothed label as in "ResNet strikes back" (Wightman et al., 2021), but with the classes
    summed, as in "Are we done with ImageNet?" (Beyer et al., 2020), where that paper's code takes their mean: the
    gradient at the label's own class then is that of cross-entropy, whatever the number of classes. Over 11,221 of them
    a mean would leave gradients that weight decay outweighs and float16 cannot hold.

    A network that begins with logits near 0 loses 0.69 for each class; a bias of about -log(C) in the head spares the
    first steps.

    label_smoothing: eps, 0 <= eps < 1.

    Logits (B, C) of any float type and labels int64 (B,); the loss is a float32 scalar, computed in float32. An empty
    batch has loss 0.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = check_smoothing(label_smoothing)

    def forward(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        logits, eps = logits.float(), self.label_smoothing
        on_label = logits.gather(1, labels[:, None]).squeeze(1)
        wanted = (1 - eps) * on_label + eps * logits.mean(dim=1)
        return (F.softplus(logits).sum(dim=1) - wanted).sum() / max(len(logits), 1)


def check_smoothing(label_smoothing: float) -> float:
    """Return the share; raises ValueError unless 0 <= label_smoothing < 1."""
    if not 0 <= label_smoothing < 1:
        raise ValueError(f"label_smoothing is {label_smoothing}; wanted at least 0 and less than 1")
    return label_smoothing
