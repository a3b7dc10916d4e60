"""Every metric of a validation, computed from the predictions; the model is not needed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor

from ...shards.tree import SemanticTree
from ..losses.levels import Levels
from ..metrics import SemanticAccuracy, TopAccuracy, macro_average
from .predictions import Predictions
from .validate import summary

NUM_BINS = 15  # of the calibration error (Guo et al., 2017, arXiv:1706.04599)
NUM_CONFUSIONS = 20
THIRDS = ("many", "medium", "few")  # training images
BLOCK = 2_048  # classes at a time: torchmetrics counts in a table of all pairs, which so has 34 MB


def measure(predictions: Predictions, tree: SemanticTree, num_train: Sequence[int] | None = None) -> dict[str, Any]:
    """Return what `evaluate` returns, and more (percent, unless said otherwise):

    per_third: by how many training images the classes have, see `per_third`; only with num_train.
    macro_precision, macro_recall, macro_f1: means over the classes that have an image or were answered.
    calibration_error:  the expected one of the likeliest class of all, over 15 bins of equal width.
    mistake_distance:   how many steps through the tree lie between class and answer, the mean over confused images;
                        None without confused images.
    confusions:         the commonest pairs {wnid, name, answer_wnid, answer_name, count, distance}, 20 at most.

    An image is confused when the likeliest class of its own class's level is another one (`own_level_answers`). The
    overall argmax mostly reflects a class's level: semantic softmax never compares swan with bird, and the ancestor
    mostly wins. The rule is the same for every network, so that any two can be compared: answers on other levels count
    in top-1, precision and recall alone, also for a network that was trained with one softmax over all classes.

    num_train: the training images of each class.

    torchmetrics computes the counts behind precision, recall and F1, and the calibration error. It takes 0.3 GB beside
    the predictions for 21,841 classes with 50 images each.
    """
    labels, first = predictions.labels, predictions.answers.top[:, 0]
    semantic, top = SemanticAccuracy(tree), TopAccuracy(tree.num_image_classes)
    semantic.count(predictions.answers.levels, labels)
    top.count(predictions.answers.top, labels)
    of_classes = _precision_and_recall(first, labels, tree.num_image_classes)
    there = of_classes.is_there
    confused = list(_confusions(predictions, tree))
    distances = [path_distance(tree, pair.label, pair.answer) for pair in confused]
    steps = sum(pair.times * distance for pair, distance in zip(confused, distances, strict=True))
    return {
        **summary(semantic, top, tree),
        **({} if num_train is None else {"per_third": per_third(top, num_train)}),
        "macro_precision": 100 * float(of_classes.precision[there].mean()),
        "macro_recall": 100 * float(of_classes.recall[there].mean()),
        "macro_f1": 100 * float(of_classes.f1[there].mean()),
        "calibration_error": 100 * _calibration_error(predictions),
        "mistake_distance": steps / sum(pair.times for pair in confused) if confused else None,
        "confusions": [
            {**_named(pair, tree), "distance": distance}
            for pair, distance in zip(confused[:NUM_CONFUSIONS], distances, strict=False)
        ],
    }


def per_third(top: TopAccuracy, num_train: Sequence[int]) -> list[dict[str, Any]]:
    """Return the accuracy on classes of many, medium and few training images.

    The classes are sorted by num_train, the most first and equal ones by class index, and cut into thirds by number of
    classes; the first thirds take what does not divide. Classes without training images are in none.

    Each third is {third (`many`, `medium`, `few`), num_classes, min_train, max_train, num_samples, top1, macro_top1}:
    the last two in percent, None without samples. A third without classes is left out.
    """
    counts = np.array(num_train, np.int64)
    order = [index for index in np.argsort(-counts, kind="stable").tolist() if counts[index] > 0]
    rows: list[dict[str, Any]] = []
    for name, third in zip(THIRDS, np.array_split(np.array(order, np.int64), len(THIRDS)), strict=True):
        if not len(third):
            continue
        classes = torch.from_numpy(third)
        hits, samples = top.class_hits[classes], top.class_counts[classes]
        num_samples = int(samples.sum())
        rows.append(
            {
                "third": name,
                "num_classes": len(third),
                "min_train": int(counts[third].min()),
                "max_train": int(counts[third].max()),
                "num_samples": num_samples,
                "top1": 100 * int(hits.sum()) / num_samples if num_samples else None,
                "macro_top1": 100 * macro_average(hits, samples) if num_samples else None,
            }
        )
    return rows


def per_class(predictions: Predictions, tree: SemanticTree) -> pa.Table:
    """Return a row for each class, in the tree's order: class_index, wnid, name, level, num_samples, num_answered (how
    often it was the likeliest of all), top1, top5, precision, recall (as top1), f1, mean_probability (of the class for
    its own images; all percent), and what it is confused with most (see `measure`): confused_with (wnid), num_confused.

    What has nothing to be a part of is null: of a class without images all but precision.
    """
    labels, answers, num_classes = predictions.labels, predictions.answers, tree.num_image_classes
    of_classes = _precision_and_recall(answers.top[:, 0], labels, num_classes)
    num_samples = torch.bincount(labels, minlength=num_classes)
    num_answered = torch.bincount(answers.top[:, 0], minlength=num_classes)
    hits = (answers.top == labels[:, None]).any(dim=1)
    worst: dict[int, _Confusion] = {}
    for confusion in _confusions(predictions, tree):  # the commonest come first
        worst.setdefault(confusion.label, confusion)
    wrong = [worst.get(index) for index in range(num_classes)]
    top1 = _percent(of_classes.recall, num_samples)
    sums = torch.zeros(2, num_classes, dtype=torch.float64)
    sums[0].index_add_(0, labels, hits.double())
    sums[1].index_add_(0, labels, predictions.label_probabilities.double())
    means = sums / num_samples
    return pa.table(
        {
            "class_index": pa.array(range(num_classes), pa.int32()),
            "wnid": tree.wnids[:num_classes],
            "name": tree.names[:num_classes],
            "level": pa.array(tree.levels[:num_classes], pa.int32()),
            "num_samples": num_samples.numpy(),
            "num_answered": num_answered.numpy(),
            "top1": top1,
            "top5": _percent(means[0], num_samples),
            "precision": _percent(of_classes.precision, num_answered),
            "recall": top1,
            "f1": _percent(of_classes.f1, num_samples),
            "mean_probability": _percent(means[1], num_samples),
            "confused_with": pa.array([pair and tree.wnids[pair.answer] for pair in wrong], pa.string()),
            "num_confused": pa.array([pair.times if pair else 0 for pair in wrong], pa.int64()),
        }
    )


def own_level_answers(predictions: Predictions, tree: SemanticTree) -> Tensor:
    """Return for each image the likeliest class of the level of its own class, int64 (N,).

    -1 where the level has one class alone, which cannot be confused.
    """
    place_of = {level: place for place, level in enumerate(Levels(tree).numbers)}
    places = torch.tensor([place_of.get(level, -1) for level in tree.levels])[predictions.labels]
    answers = predictions.answers.levels.gather(1, places.clamp(min=0)[:, None])[:, 0]
    return answers.where(places >= 0, -1)


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


def _confusions(predictions: Predictions, tree: SemanticTree) -> Iterator[_Confusion]:
    """Yield the pairs of a class and a wrong answer at its level, both with images, the commonest first."""
    labels, answers = predictions.labels.numpy(), own_level_answers(predictions, tree).numpy()
    wrong = (answers >= 0) & (answers < tree.num_image_classes) & (answers != labels)
    pairs, counts = np.unique(labels[wrong] * len(tree) + answers[wrong], return_counts=True)
    for place in np.argsort(-counts, kind="stable"):
        label, answer = divmod(int(pairs[place]), len(tree))
        yield _Confusion(label, answer, int(counts[place]))


def _named(confusion: _Confusion, tree: SemanticTree) -> dict[str, Any]:
    label, answer, times = confusion
    return {
        "wnid": tree.wnids[label],
        "name": tree.names[label],
        "answer_wnid": tree.wnids[answer],
        "answer_name": tree.names[answer],
        "count": times,
    }


class _OfClasses(NamedTuple):
    """Per class precision, recall and F1, float64 (C,), 0..1, and whether it has an image or was answered."""

    precision: Tensor
    recall: Tensor
    f1: Tensor
    is_there: Tensor


def _precision_and_recall(answers: Tensor, labels: Tensor, num_classes: int) -> _OfClasses:
    """Return precision, recall and F1 of each class, 0 where they are parts of nothing."""
    from torchmetrics.functional.classification import multiclass_stat_scores

    parts: list[Tensor] = []
    for first in range(0, num_classes, BLOCK):
        size = min(BLOCK, num_classes - first)
        # All classes but these count as one, the last.
        mine = [
            classes.sub(first).where((classes >= first) & (classes < first + size), size)
            for classes in (answers, labels)
        ]
        counts = multiclass_stat_scores(*mine, num_classes=size + 1, average="none", validate_args=False)
        parts.append(counts[:size])
    right, wrong, _, missed, _ = torch.cat(parts).double().unbind(dim=1)
    return _OfClasses(
        precision=right / (right + wrong).clamp(min=1),
        recall=right / (right + missed).clamp(min=1),
        f1=2 * right / (2 * right + wrong + missed).clamp(min=1),
        is_there=right + wrong + missed > 0,
    )


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
