"""The losses by name."""

from __future__ import annotations

from torch import nn

from ..shards.tree import SemanticTree
from .cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from .distill_loss import LogitKDLoss, SemanticKDLoss
from .semantic import SemanticSoftmaxLoss
from .settings import TrainSettings


def create_loss(settings: TrainSettings, tree: SemanticTree) -> nn.Module:
    """Build the loss that the settings name: of logits (B, num_classes) and labels (B,), a mean."""
    if settings.loss == "semantic":
        return SemanticSoftmaxLoss(tree, settings.label_smoothing)
    if settings.loss == "bce":
        return BinaryCrossEntropyLoss(settings.label_smoothing)
    return CrossEntropyLoss(settings.label_smoothing)


def create_distillation(settings: TrainSettings, tree: SemanticTree) -> nn.Module:
    """Build the loss of student's and teacher's logits, each (B, num_classes): in the tree, or over all classes."""
    if settings.kd_temperature is None:
        return SemanticKDLoss(tree, settings.kd_reduction)
    return LogitKDLoss(settings.kd_temperature)
