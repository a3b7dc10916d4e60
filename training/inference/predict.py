"""What an image shows, from general to particular."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pyarrow as pa
from torch import Tensor

from ...shards.tree import SemanticTree
from ..evaluation.answers import NUM_TOP, answers_of
from ..losses.levels import Levels

THRESHOLD = 0.5


class Describer:
    """Turns logits (B, num_classes) into words: per image {levels, chain, top5}.

    levels: per hierarchy {level, wnid, name, probability}, the probability within that hierarchy (see `Answers`).
    chain:  the leading ones of `levels`, as long as each lies below the one before: animal, bird, swan. An ancestor
            that is alone on its level is among them, with the probability 1.
    top5:   the likeliest of the classes with images {wnid, name, probability}, the probability among these (softmax).

    wnids:       of the outputs, None where they have none.
    names:       of the outputs.
    tree:        over the outputs; without it `levels` and `chain` are empty.
    definitions: by wnid; where given, each answer has its `definition`, empty where it lacks one.
    by_sigmoid:  the probabilities of top5 are sigmoids, as of a network that was trained by binary cross-entropy; see
                 `OpenModel.by_sigmoid`.
    """

    def __init__(
        self,
        wnids: Sequence[str | None],
        names: Sequence[str],
        tree: SemanticTree | None = None,
        definitions: Mapping[str, str] | None = None,
        *,
        by_sigmoid: bool = False,
    ) -> None:
        self._tree, self._levels, self._by_sigmoid = tree, Levels(tree) if tree else None, by_sigmoid
        self._outputs = _describe_outputs(wnids, names, definitions)

    def __call__(self, logits: Tensor) -> list[dict[str, Any]]:
        """Describe a batch."""
        if self._levels:
            self._levels = self._levels.to(logits.device)
        answers = answers_of(logits, self._levels, by_sigmoid=self._by_sigmoid)
        return [self._row(*row) for row in zip(*(part.tolist() for part in answers), strict=True)]

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
            "chain": self._chain(per_level, levels),
            "top5": [self._answer(index, p) for index, p in zip(top, top_probabilities, strict=True)],
        }

    def _answer(self, index: int, probability: float) -> dict[str, Any]:
        return {**self._outputs[index], "probability": probability}

    def _chain(self, per_level: list[dict[str, Any]], classes: list[int]) -> list[dict[str, Any]]:
        if not self._tree or not classes:
            return []
        length = self._chain_length(classes)
        answers = dict(zip(classes[:length], per_level, strict=False))
        path = reversed(self._tree.paths[classes[length - 1]])
        levels = self._tree.levels
        return [answers.get(node) or {"level": levels[node], **self._answer(node, 1.0)} for node in path]

    def _chain_length(self, classes: list[int]) -> int:
        """Return how many of the leading classes lie each below the one before."""
        for length in range(1, len(classes)):
            assert self._tree
            if classes[length - 1] not in self._tree.paths[classes[length]]:
                return length
        return len(classes)


class LabelDescriber:
    """Turns the logits (B, C) of a network that gives images several labels into words: per image {labels, top5}.

    labels: those whose probability is the threshold or more {wnid, name, probability}, the likeliest first; often none.
    top5:   the five likeliest of all, so probable or not.

    The probability is the sigmoid of a label's logit; those of an image add up to nothing in particular.

    wnids, names, definitions: as of `Describer`.
    threshold: 0 lists every label. Raises ValueError for one that is not a probability.
    """

    def __init__(
        self,
        wnids: Sequence[str | None],
        names: Sequence[str],
        definitions: Mapping[str, str] | None = None,
        *,
        threshold: float = THRESHOLD,
    ) -> None:
        if not 0 <= threshold <= 1:
            raise ValueError(f"the threshold is {threshold}; wanted a probability, 0 to 1")
        self._outputs, self._threshold = _describe_outputs(wnids, names, definitions), threshold

    def __call__(self, logits: Tensor) -> list[dict[str, Any]]:
        """Describe a batch."""
        # Of the logits, as the probabilities of sure labels are all 1.
        ordered, order = logits.float().sort(dim=1, descending=True, stable=True)
        probabilities = ordered.sigmoid()
        num_present = (probabilities >= self._threshold).sum(dim=1).tolist()
        width = max(NUM_TOP, *num_present) if num_present else 0  # all labels of a batch may be very many
        rows = zip(order[:, :width].tolist(), probabilities[:, :width].tolist(), num_present, strict=True)
        return [self._row(*row) for row in rows]

    def _row(self, order: list[int], probabilities: list[float], num_present: int) -> dict[str, Any]:
        answers = [{**self._outputs[index], "probability": p} for index, p in zip(order, probabilities, strict=True)]
        return {"labels": answers[:num_present], "top5": answers[:NUM_TOP]}


def prediction_schema(*, multi_label: bool) -> pa.Schema:
    """Return the columns of a table of predictions, {image, what a describer returns, error}."""
    answer = [
        ("wnid", pa.string()),
        ("name", pa.string()),
        ("definition", pa.string()),
        ("probability", pa.float32()),
    ]
    answers = pa.list_(pa.struct(answer))
    at_level = pa.list_(pa.struct([("level", pa.int32()), *answer]))
    described = [("labels", answers)] if multi_label else [("levels", at_level), ("chain", at_level)]
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            *(pa.field(*column) for column in described),
            pa.field("top5", answers),
            pa.field("error", pa.string()),
        ]
    )


def _describe_outputs(
    wnids: Sequence[str | None], names: Sequence[str], definitions: Mapping[str, str] | None
) -> list[dict[str, Any]]:
    """Return the facts of each output that stand beside its probability."""
    outputs: list[dict[str, Any]] = [{"wnid": wnid, "name": name} for wnid, name in zip(wnids, names, strict=True)]
    if definitions is not None:
        for output in outputs:
            output["definition"] = definitions.get(output["wnid"], "")
    return outputs
