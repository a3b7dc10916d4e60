"""ImageNet-1K measured with a head that learnt ImageNet-21K, over the classes that both have."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ...models.label_space import label_space_of
from ..distributed import Ranks
from ..metrics import TopAccuracy
from ..tracker import Batch
from .validate import answered


@dataclass(frozen=True)
class SharedClasses:
    """The classes of ImageNet-1K that a network knows too.

    wnids:   in ImageNet-1K's order.
    outputs: int64, for each the network's output.
    lacking: the other classes of ImageNet-1K.
    """

    wnids: tuple[str, ...]
    outputs: Tensor
    lacking: tuple[str, ...]

    def labels_of(self, wnids: Sequence[str]) -> Tensor:
        """Return for each class its place among the shared ones, -1 for other classes: int64."""
        place = {wnid: number for number, wnid in enumerate(self.wnids)}
        return torch.tensor([place.get(wnid, -1) for wnid in wnids], dtype=torch.int64)


def shared_with_imagenet1k(wnids: Sequence[str]) -> SharedClasses:
    """Find the classes of ImageNet-1K among those of a network, which are in the order of its outputs.

    Raises ValueError where they share none.
    """
    place = {wnid: number for number, wnid in enumerate(wnids)}
    known = label_space_of(1_000).wnids
    shared = tuple(wnid for wnid in known if wnid in place)
    if not shared:
        raise ValueError(f"the network's {len(wnids):,} classes and ImageNet-1K's share none; wanted a few at least")
    outputs = torch.tensor([place[wnid] for wnid in shared], dtype=torch.int64)
    return SharedClasses(shared, outputs, tuple(wnid for wnid in known if wnid not in place))


def evaluate_imagenet1k(
    model: nn.Module,
    loader: Iterable[Batch],
    shared: SharedClasses,
    *,
    amp: str = "off",
    ranks: Ranks | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Validate on ImageNet-1K; every rank has to call it, and gets the result of all.

    model:  from images to the logits of the shared classes, on the ranks' device.
    loader: this rank's batches; labels as `SharedClasses.labels_of` has them; -1 does not count.

    Returns {top1, top5, macro_top1 (percent, the answer is the likeliest of the shared classes), num_samples,
    num_left_out, num_classes, num_imagenet1k_classes, lacking}. Raises ValueError where no image is of a shared class.
    """
    ranks = ranks or Ranks()
    top = TopAccuracy(len(shared.wnids), ranks.device)
    left_out = torch.zeros((), dtype=torch.int64, device=ranks.device)
    for logits, labels in answered(model, loader, amp=amp, ranks=ranks, on_batch=on_batch):
        counts = labels >= 0
        top.update(logits[counts], labels[counts])
        left_out += (~counts).sum()
    top.sums, left_out = ranks.sum(top.sums), ranks.sum(left_out)
    if not int(top.class_counts.sum()):
        raise ValueError("no image is of a class that ImageNet-1K and the network share; wanted at least one")
    return {
        **top.compute(),
        "num_left_out": int(left_out),
        "num_classes": len(shared.wnids),
        "num_imagenet1k_classes": len(shared.wnids) + len(shared.lacking),
        "lacking": list(shared.lacking),
    }
