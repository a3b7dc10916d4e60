"""The losses by name."""

from __future__ import annotations

from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..settings import BINARY_LOSSES, TrainSettings
from .cross_entropy import BinaryCrossEntropyLoss, CrossEntropyLoss
from .distill_loss import LogitKDLoss, SemanticKDLoss
from .multilabel import MultiLabelLoss
from .semantic import SemanticSoftmaxLoss


def create_loss(settings: TrainSettings, tree: SemanticTree, label_sets: Tensor | None = None) -> nn.Module:
    """Build the loss that the settings name: of logits (B, num_classes) and labels (B,), a mean.

    label_sets: of images with several labels, bool (num_sets, num_classes); labels are then numbers of label sets.
    Raises ValueError as `check_loss`.
    """
    check_loss(settings, multi_label=label_sets is not None)
    if label_sets is not None:
        dials = {
            "gamma_positive": settings.asl_gamma_positive,
            "gamma_negative": settings.asl_gamma_negative,
            "margin": settings.asl_margin,
        }
        asked = dials if settings.loss == "asymmetric" else {}
        return MultiLabelLoss(label_sets, label_smoothing=settings.label_smoothing, **asked)
    if settings.loss == "semantic":
        return SemanticSoftmaxLoss(tree, settings.label_smoothing)
    if settings.loss == "bce":
        return BinaryCrossEntropyLoss(settings.label_smoothing)
    return CrossEntropyLoss(settings.label_smoothing)


def check_loss(settings: TrainSettings, *, multi_label: bool) -> None:
    """Raise ValueError where the settings do not go with data of one label an image, or of several."""
    if multi_label and settings.loss not in BINARY_LOSSES:
        raise ValueError(
            f"loss is {settings.loss!r}, and the images have several labels; wanted --loss asymmetric or --loss bce "
            "(--recipe finetune-multilabel has the former)"
        )
    if multi_label and settings.teacher is not None:
        raise ValueError("images of several labels are not distilled; leave --teacher out")
    if not multi_label and settings.loss == "asymmetric":
        raise ValueError("loss 'asymmetric' is for images of several labels, and these have one; take --loss bce")


def create_distillation(settings: TrainSettings, tree: SemanticTree) -> nn.Module:
    """Build the loss of student's and teacher's logits, each (B, num_classes): in the tree, or over all classes."""
    if settings.kd_temperature is None:
        return SemanticKDLoss(tree, settings.kd_reduction)
    return LogitKDLoss(settings.kd_temperature)
