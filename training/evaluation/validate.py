"""Validation of a model over any number of ranks, each sample counted once."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..distributed import Ranks
from ..losses.levels import InnerScores
from ..metrics import SemanticAccuracy, TopAccuracy, commonest
from ..precision import autocast
from ..tracker import Batch


def evaluate(
    model: nn.Module,
    loader: Iterable[Batch],
    tree: SemanticTree,
    *,
    amp: str = "off",
    ranks: Ranks | None = None,
    on_batch: Callable[[int], object] | None = None,
    fill_inner: bool = False,
) -> dict[str, Any]:
    """Validate a model that lies on the ranks' device; every rank has to call it, and gets the result of all.

    loader:   this rank's batches: images (B, 3, H, W), labels int64 (B,); there may be none, and empty ones.
    amp:      `off`, `bf16` or `fp16`.
    on_batch: called with the number of images after each batch.
    fill_inner: score inner classes by the classes below them (see `InnerScores`), as their outputs are not trained.

    Returns {semantic_top1, semantic_top1_commonest, top1, top5, macro_top1 (percent), num_samples, per_level}, in which
    semantic_top1_commonest is what always answering each level's commonest class would give. `collect` and `measure`
    give more. Raises ValueError without samples, and where the model has another number of classes than the tree.
    """
    ranks = ranks or Ranks()
    semantic, top = SemanticAccuracy(tree, ranks.device), TopAccuracy(tree.num_image_classes, ranks.device)
    inner_scores = InnerScores(tree).to(ranks.device) if fill_inner else None
    for logits, labels in answered(model, loader, amp=amp, ranks=ranks, on_batch=on_batch):
        semantic.update(inner_scores(logits) if inner_scores else logits, labels)
        top.update(logits, labels)
    # Counts are added over the ranks, and divided once: no average of averages.
    semantic.sums, top.sums = ranks.sum(semantic.sums), ranks.sum(top.sums)
    return summary(semantic, top, tree)


def answered(
    model: nn.Module,
    loader: Iterable[Batch],
    *,
    amp: str,
    ranks: Ranks,
    on_batch: Callable[[int], object] | None = None,
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits of each batch that is not empty, and what came with its images, on the ranks' device.

    The model is in evaluation mode meanwhile. The other arguments are those of `evaluate`.
    """
    was_training = model.training
    model.eval()
    for images, labels in loader:
        if len(labels):
            images, moved = images.to(ranks.device, non_blocking=True), labels.to(ranks.device, non_blocking=True)
            with torch.inference_mode(), autocast(ranks.device, amp):
                logits: Tensor = model(images)
            yield logits, moved
        if on_batch:
            on_batch(len(labels))
    model.train(was_training)


def summary(semantic: SemanticAccuracy, top: TopAccuracy, tree: SemanticTree) -> dict[str, Any]:
    """Return what `evaluate` returns, of what was counted on all ranks."""
    if not int(top.class_counts.sum()):
        raise ValueError("no validation sample; wanted at least one (shards with a val split)")
    return {
        "semantic_top1": 100 * semantic.compute(),
        "semantic_top1_commonest": 100 * commonest(tree, top.class_counts),
        **top.compute(),
        "per_level": semantic.per_level(),
    }
