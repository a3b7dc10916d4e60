"""What an image shows, from general to particular."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..levels import Levels


def predict(model: nn.Module, images: Tensor, tree: SemanticTree) -> list[dict[str, Any]]:
    """Say for each image the likeliest class of every hierarchy, and the likeliest classes of all.

    model:  on the images' device; put into evaluation mode for the call.
    images: (B, 3, H, W), resized and normalised as the model was trained.

    Returns per image {levels, chain, top5}:
    levels: per hierarchy {level, wnid, name, probability}, the probability within that hierarchy (semantic softmax).
    chain:  the leading ones of `levels`, as long as each lies below the one before: animal, bird, swan.
    top5:   the likeliest of all classes {wnid, name, probability}, the probability among all (plain softmax).
    """
    levels = Levels(tree).to(images.device)
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits: Tensor = model(images).float()
        by_level = [level_logits.softmax(dim=1).max(dim=1) for level_logits in levels.split(logits)]
        classes = torch.stack([levels.classes_of(k)[best.indices] for k, best in enumerate(by_level)], dim=1)
        probabilities = torch.stack([best.values for best in by_level], dim=1)
        top = logits.softmax(dim=1).topk(min(5, len(tree)), dim=1)
    model.train(was_training)
    return [
        _prediction(tree, levels.numbers, *row)
        for row in zip(classes.tolist(), probabilities.tolist(), top.indices.tolist(), top.values.tolist(), strict=True)
    ]


def _prediction(
    tree: SemanticTree,
    numbers: tuple[int, ...],
    classes: list[int],
    probabilities: list[float],
    top_classes: list[int],
    top_probabilities: list[float],
) -> dict[str, Any]:
    per_level = [
        {"level": level, **_answer(tree, index, probability)}
        for level, index, probability in zip(numbers, classes, probabilities, strict=True)
    ]
    return {
        "levels": per_level,
        "chain": per_level[: _chain_length(tree, classes)],
        "top5": [_answer(tree, index, p) for index, p in zip(top_classes, top_probabilities, strict=True)],
    }


def _answer(tree: SemanticTree, index: int, probability: float) -> dict[str, Any]:
    return {"wnid": tree.wnids[index], "name": tree.names[index], "probability": probability}


def _chain_length(tree: SemanticTree, classes: list[int]) -> int:
    """Return how many of the leading classes lie each below the one before."""
    for length in range(1, len(classes)):
        if classes[length - 1] not in tree.paths[classes[length]]:
            return length
    return len(classes)
