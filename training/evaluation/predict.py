"""What an image shows, from general to particular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..levels import Levels
from .answers import answers_of


def predict(model: nn.Module, images: Tensor, tree: SemanticTree) -> list[dict[str, Any]]:
    """Say for each image the likeliest class of every hierarchy, and the likeliest classes of all.

    model:  on the images' device; put into evaluation mode for the call.
    images: (B, 3, H, W), resized and normalised as the model was trained.

    Returns per image {levels, chain, top5}; see `Describer`.
    """
    was_training = model.training
    model.eval()
    with torch.inference_mode():
        logits: Tensor = model(images)
    model.train(was_training)
    return Describer(tree.wnids, tree.names, tree)(logits)


class Describer:
    """Turns logits (B, num_classes) into words: per image {levels, chain, top5}.

    levels: per hierarchy {level, wnid, name, probability}, the probability within that hierarchy (semantic softmax).
    chain:  the leading ones of `levels`, as long as each lies below the one before: animal, bird, swan.
    top5:   the likeliest of all classes {wnid, name, probability}, the probability among all (plain softmax).

    wnids:       of the outputs, None where they have none.
    names:       of the outputs.
    tree:        over the outputs; without it `levels` and `chain` are empty.
    definitions: by wnid; where given, each answer has its `definition`, empty where it lacks one.
    """

    def __init__(
        self,
        wnids: Sequence[str | None],
        names: Sequence[str],
        tree: SemanticTree | None = None,
        definitions: Mapping[str, str] | None = None,
    ) -> None:
        self._tree, self._levels = tree, Levels(tree) if tree else None
        self._answers: list[dict[str, Any]] = [
            {"wnid": wnid, "name": name} for wnid, name in zip(wnids, names, strict=True)
        ]
        if definitions is not None:
            for answer in self._answers:
                answer["definition"] = definitions.get(answer["wnid"], "")

    def __call__(self, logits: Tensor) -> list[dict[str, Any]]:
        """Describe a batch."""
        if self._levels:
            self._levels = self._levels.to(logits.device)
        return [
            self._row(*row) for row in zip(*(part.tolist() for part in answers_of(logits, self._levels)), strict=True)
        ]

    def _row(
        self, top: list[int], top_probabilities: list[float], levels: list[int], level_probabilities: list[float]
    ) -> dict[str, Any]:
        numbers = self._levels.numbers if self._levels else ()
        per_level = [
            {"level": level, **self._answer(index, probability)}
            for level, index, probability in zip(numbers, levels, level_probabilities, strict=True)
        ]
        return {
            "levels": per_level,
            "chain": per_level[: self._chain_length(levels)],
            "top5": [self._answer(index, p) for index, p in zip(top, top_probabilities, strict=True)],
        }

    def _answer(self, index: int, probability: float) -> dict[str, Any]:
        return {**self._answers[index], "probability": probability}

    def _chain_length(self, classes: list[int]) -> int:
        """Return how many of the leading classes lie each below the one before."""
        for length in range(1, len(classes)):
            assert self._tree
            if classes[length - 1] not in self._tree.paths[classes[length]]:
                return length
        return len(classes)
