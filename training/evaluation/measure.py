"""Every metric of a validation, out of what the model answered: no model is needed any more."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ...shards.tree import SemanticTree
from ..metrics import SemanticAccuracy, TopAccuracy
from .predictions import Predictions
from .validate import summary

NUM_BINS = 15  # of the calibration error (Guo et al., 2017, arXiv:1706.04599)
NUM_CONFUSIONS = 20


def measure(predictions: Predictions, tree: SemanticTree) -> dict[str, Any]:
    """Return what `evaluate` returns, and more (percent, unless said otherwise):

    macro_precision, macro_recall, macro_f1: means over the classes that have an image or were answered.
    calibration_error:  the expected one of the likeliest class of all, over 15 bins of equal width.
    mistake_distance:   how many steps through the tree lie between class and answer, the mean over wrong answers; None
                        where there is none.
    confusions:         the commonest wrong pairs {wnid, name, answer_wnid, answer_name, count, distance}.

    Precision, recall, F1 and calibration error are torchmetrics'; the first three need 8 bytes for each pair of classes
    meanwhile (1 GB for 21K-P).
    """
    labels, first = predictions.labels, predictions.answers.top[:, 0]
    semantic, top = SemanticAccuracy(tree), TopAccuracy(len(tree))
    semantic.count(predictions.answers.levels, labels)
    top.count(predictions.answers.top, labels)
    of_classes = _precision_and_recall(first, labels, len(tree))
    confused = list(_confusions(predictions, tree))
    num_wrong = sum(each.times for each in confused)
    return {
        **summary(semantic, top, tree),
        **{f"macro_{name}": 100 * float(of_classes[f"macro_{name}"]) for name in _KINDS},
        "calibration_error": 100 * _calibration_error(predictions),
        "mistake_distance": sum(each.times * each.distance for each in confused) / num_wrong if confused else None,
        "confusions": [_named(each, tree) for each in confused[:NUM_CONFUSIONS]],
    }


def per_class(predictions: Predictions, tree: SemanticTree) -> pa.Table:
    """Return a row for each class, in the tree's order: class_index, wnid, name, level, num_samples, num_answered (how
    often it was the likeliest of all), top1, top5, precision, recall (as top1), f1, mean_probability (of the class for
    its own images; all percent), and the commonest wrong answer: confused_with (wnid), num_confused.

    What has nothing to be a part of is null: of a class without images all but precision.
    """
    labels, answers, num_classes = predictions.labels, predictions.answers, len(tree)
    of_classes = _precision_and_recall(answers.top[:, 0], labels, num_classes)
    num_samples = torch.bincount(labels, minlength=num_classes)
    num_answered = torch.bincount(answers.top[:, 0], minlength=num_classes)
    hits = (answers.top == labels[:, None]).any(dim=1)
    worst: dict[int, _Confusion] = {}
    for each in _confusions(predictions, tree):  # the commonest come first
        worst.setdefault(each.label, each)
    wrong = [worst.get(index) for index in range(num_classes)]
    top1 = _percent(of_classes["each_recall"], num_samples)
    sums = torch.zeros(2, num_classes, dtype=torch.float64)
    sums[0].index_add_(0, labels, hits.double())
    sums[1].index_add_(0, labels, predictions.label_probabilities.double())
    means = sums / num_samples
    return pa.table(
        {
            "class_index": pa.array(range(num_classes), pa.int32()),
            "wnid": tree.wnids,
            "name": tree.names,
            "level": pa.array(tree.levels, pa.int32()),
            "num_samples": num_samples.numpy(),
            "num_answered": num_answered.numpy(),
            "top1": top1,
            "top5": _percent(means[0], num_samples),
            "precision": _percent(of_classes["each_precision"], num_answered),
            "recall": top1,
            "f1": _percent(of_classes["each_f1"], num_samples),
            "mean_probability": _percent(means[1], num_samples),
            "confused_with": pa.array([each and tree.wnids[each.answer] for each in wrong], pa.string()),
            "num_confused": pa.array([each.times if each else 0 for each in wrong], pa.int64()),
        }
    )


def path_distance(tree: SemanticTree, one: int, other: int) -> int:
    """Return how many steps lead from one class to another, up and down; top classes lie one step below all.

    >>> tree = SemanticTree.from_parents("abcd", ["animal", "bird", "fish", "stone"], [-1, 0, 0, -1])
    >>> path_distance(tree, 1, 1), path_distance(tree, 1, 0), path_distance(tree, 1, 2), path_distance(tree, 1, 3)
    (0, 1, 2, 3)
    """
    above = set(tree.paths[one])
    shared = sum(index in above for index in tree.paths[other])
    return len(tree.paths[one]) + len(tree.paths[other]) - 2 * shared


class _Confusion(NamedTuple):
    label: int
    answer: int
    times: int
    distance: int


def _confusions(predictions: Predictions, tree: SemanticTree) -> Iterator[_Confusion]:
    """Yield the pairs of a class and a wrong answer for its images, the commonest first, equal ones by class."""
    labels, first = predictions.labels.numpy(), predictions.answers.top[:, 0].numpy()
    wrong = labels != first
    pairs, counts = np.unique(labels[wrong] * len(tree) + first[wrong], return_counts=True)
    for place in np.argsort(-counts, kind="stable"):
        label, answer = divmod(int(pairs[place]), len(tree))
        yield _Confusion(label, answer, int(counts[place]), path_distance(tree, label, answer))


def _named(confusion: _Confusion, tree: SemanticTree) -> dict[str, Any]:
    label, answer, times, distance = confusion
    return {
        "wnid": tree.wnids[label],
        "name": tree.names[label],
        "answer_wnid": tree.wnids[answer],
        "answer_name": tree.names[answer],
        "count": times,
        "distance": distance,
    }


_KINDS = ("precision", "recall", "f1")


def _precision_and_recall(answers: Tensor, labels: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Return {macro_precision, ...: a scalar; each_precision, ...: (num_classes,)}, 0..1."""
    from torchmetrics import MetricCollection
    from torchmetrics.classification import MulticlassF1Score, MulticlassPrecision, MulticlassRecall

    kinds = dict(zip(_KINDS, (MulticlassPrecision, MulticlassRecall, MulticlassF1Score), strict=True))
    averages: dict[str, Any] = {"macro": "macro", "each": "none"}
    metrics: dict[str, Any] = {
        # The answers are those of all ranks already.
        f"{word}_{name}": kind(num_classes, average=average, validate_args=False, sync_on_compute=False)
        for name, kind in kinds.items()
        for word, average in averages.items()
    }
    together = MetricCollection(metrics, compute_groups=[list(metrics)])
    together.update(answers, labels)
    return together.compute()


def _calibration_error(predictions: Predictions) -> float:
    from torchmetrics.functional.classification import binary_calibration_error

    answers = predictions.answers
    right = answers.top[:, 0] == predictions.labels
    # A probability of exactly 1 would lie in a bin of its own. In float64 a bin's sums lose nothing.
    sure = answers.top_probabilities[:, 0].double().clamp(max=1 - 1e-12)
    return float(binary_calibration_error(sure, right.int(), n_bins=NUM_BINS, validate_args=False))


def _percent(shares: Tensor, parts_of: Tensor) -> pa.Array:
    """Return shares in percent, null where they are parts of nothing."""
    return pa.array(100 * shares.double().numpy(), mask=(parts_of == 0).numpy())
