"""The losses by name: a new loss is declared here, and `--set loss=`, `--loss` and its help know it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

from torch import Tensor, nn

from ...shards.tree import SemanticTree
from .cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from .multilabel import MultiLabelLoss
from .semantic import SemanticSoftmaxLoss

Settings: TypeAlias = Any  # TrainSettings, which imports this module


class NamedLoss(NamedTuple):
    """How a loss is made of the settings of a training; None where it does not fit such images."""

    of_one_label: Callable[[Settings, SemanticTree], nn.Module] | None = None
    of_label_sets: Callable[[Settings, Tensor], nn.Module] | None = None
    """The tensor tells which labels are in each label set: bool (num_sets, num_classes)."""
    binary: bool = False
    """A yes or no for each class, in place of one answer of all classes."""
    knows_tree: bool = False
    """It trains inner classes too; other losses take the outputs of classes with images alone."""


def _asymmetric(settings: Settings, label_sets: Tensor) -> nn.Module:
    return MultiLabelLoss(
        label_sets,
        label_smoothing=settings.label_smoothing,
        gamma_positive=settings.asl_gamma_positive,
        gamma_negative=settings.asl_gamma_negative,
        margin=settings.asl_margin,
    )


LOSSES = {
    "semantic": NamedLoss(lambda settings, tree: SemanticSoftmaxLoss(tree, settings.label_smoothing), knows_tree=True),
    "cross-entropy": NamedLoss(lambda settings, _: CrossEntropyLoss(settings.label_smoothing)),
    "bce": NamedLoss(
        lambda settings, _: BinaryCrossEntropyLoss(settings.label_smoothing),
        lambda settings, label_sets: MultiLabelLoss(label_sets, label_smoothing=settings.label_smoothing),
        binary=True,
    ),
    "asymmetric": NamedLoss(of_label_sets=_asymmetric, binary=True),
}
