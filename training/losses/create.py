"""The losses that the settings of a training name."""

from __future__ import annotations

from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..metric_names import best_metric
from ..settings import TrainSettings
from .distill_loss import LogitKDLoss, SemanticKDLoss
from .registry import LOSSES


def create_loss(settings: TrainSettings, tree: SemanticTree, label_sets: Tensor | None = None) -> nn.Module:
    """Build the loss that the settings name: of logits (B, num_classes) and labels (B,), a mean.

    A loss that does not know the tree takes the outputs of classes with images alone.

    label_sets: of images with several labels, bool (num_sets, num_classes); labels are then numbers of label sets.
    Raises ValueError as `check_loss`.
    """
    check_loss(settings, multi_label=label_sets is not None)
    named = LOSSES[settings.loss]
    if label_sets is not None:
        assert named.of_label_sets
        return named.of_label_sets(settings, label_sets)
    assert named.of_one_label
    loss = named.of_one_label(settings, tree)
    return loss if named.knows_tree else _on_image_classes(loss, tree)


def trains_inner(settings: TrainSettings) -> bool:
    """Tell whether the outputs for inner classes are trained: by a loss that knows the tree, or a teacher in it."""
    return LOSSES[settings.loss].knows_tree or (settings.teacher is not None and settings.kd_temperature is None)


class ImageClassLoss(nn.Module):
    """A loss of the outputs for classes with images, the first of logits (B, num_classes).

    num_image_classes: how many these are; of targets (B, num_classes), as a teacher's logits, as many count.
    """

    def __init__(self, loss: nn.Module, num_image_classes: int) -> None:
        super().__init__()
        self.loss, self.num_image_classes = loss, num_image_classes

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        if targets.ndim > 1:
            targets = targets[:, : self.num_image_classes]
        return self.loss(logits[:, : self.num_image_classes], targets)


def _on_image_classes(loss: nn.Module, tree: SemanticTree) -> nn.Module:
    return ImageClassLoss(loss, tree.num_image_classes) if tree.num_inner else loss


def check_loss(settings: TrainSettings, *, multi_label: bool) -> None:
    """Raise ValueError where loss, teacher or best_by do not fit images of one label each, or of several."""
    named = LOSSES[settings.loss]
    if multi_label and not named.of_label_sets:
        fitting = " or ".join(f"--loss {name}" for name, other in LOSSES.items() if other.of_label_sets)
        raise ValueError(
            f"loss is {settings.loss!r}, and the images have several labels; wanted {fitting} "
            "(--recipe finetune-multilabel sets one)"
        )
    if multi_label and settings.teacher is not None:
        raise ValueError("images of several labels are not distilled; leave --teacher out")
    if not multi_label and not named.of_one_label:
        raise ValueError(f"loss {settings.loss!r} is for images of several labels, and these have one; take --loss bce")
    best_metric(settings.best_by, multi_label=multi_label)


def create_distillation(settings: TrainSettings, tree: SemanticTree) -> nn.Module:
    """Build the loss of student's and teacher's logits, each (B, num_classes): in the tree, or over all classes."""
    if settings.kd_temperature is None:
        return SemanticKDLoss(tree, settings.kd_reduction)
    return _on_image_classes(LogitKDLoss(settings.kd_temperature), tree)
