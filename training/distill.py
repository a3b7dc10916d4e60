"""Distillation: who teaches, the pixels that the teacher sees, and whether it knows the data set's classes at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..models.export import weights_fingerprint
from ..models.label_space import LabelSpace, class_map, label_space_of
from ..models.trial import try_images
from ..models.zoo import pretrained_21k
from ..shards.normalize import mean_std
from ..shards.tree import SemanticTree
from .distributed import Ranks
from .inference.open_model import OpenModel, holds_weights, num_published, open_model
from .losses.levels import InnerScores, Levels
from .precision import autocast
from .settings import TrainSettings

if TYPE_CHECKING:
    from .loop import Loader

# Cohen's kappa up to which a teacher is at chance. Simulated on the 11,221 classes with 512 images: a flawless teacher
# whose outputs are taken for the classes one or two further along has 0.07 at most, a rightly mapped one of 47 % 0.44.
AT_CHANCE = 0.1


class Teacher(nn.Module):
    """A trained network that answers for the classes of a data set. It stays in evaluation mode and learns nothing.

    It takes images (B, 3, H, W) of any float type as the student sees them, on its device, gives them its own mean and
    standard deviation, and its own size where it has one, and returns float32 logits (B, classes of the data set) in
    the data set's order. They are ordinary tensors without gradient, which a loss may keep for its backward pass. It
    computes in the precision of the autocast context that it is called in.

    name:        what it was asked for as.
    fingerprint: of its weights, its classes and its normalisation, short hex; equal ones teach equally.
    """

    _scale: Tensor
    _shift: Tensor
    _outputs: Tensor

    def __init__(
        self,
        network: nn.Module,
        *,
        name: str,
        outputs: Tensor,
        mean_std: tuple[Sequence[float], Sequence[float]],
        student_mean_std: tuple[Sequence[float], Sequence[float]],
        size: int | None = None,
        inner_scores: nn.Module | None = None,
    ) -> None:
        """Make a teacher of a network on the CPU.

        outputs:          int64, for each class of the data set the network's output.
        mean_std:         of the network's images, per channel of pixels in 0..1.
        student_mean_std: of the images that it will be handed.
        size:             side in pixels to which these are resized; None: they stay as they are.
        inner_scores:     adds logits for inner classes to those of `outputs`; see `InnerScores`.
        """
        super().__init__()
        self.inner_scores = inner_scores
        self.name, self.size = name, size
        facts = [outputs.tolist(), [list(values) for values in mean_std]]
        self.fingerprint = weights_fingerprint(network, also=json.dumps(facts))
        self.network = network.requires_grad_(False)
        own, given = torch.tensor(mean_std).view(2, 3, 1, 1), torch.tensor(student_mean_std).view(2, 3, 1, 1)
        self._as_given = torch.equal(own, given)
        # (pixel - own mean) / own std, with pixel = image * given std + given mean
        self.register_buffer("_scale", given[1] / own[1], persistent=False)
        self.register_buffer("_shift", (given[0] - own[0]) / own[1], persistent=False)
        self.register_buffer("_outputs", outputs, persistent=False)
        self.train(False)

    def train(self, mode: bool = True) -> Self:  # noqa: ARG002 – nn.Module's signature
        """Stay in evaluation mode, whatever is asked."""
        return super().train(False)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits of a batch."""
        with torch.inference_mode():
            images = images.float()
            if not self._as_given:
                images = images * self._scale + self._shift
            if self.size and images.shape[-2:] != (self.size, self.size):
                images = F.interpolate(images, (self.size, self.size), mode="bilinear", antialias=True)
            logits: Tensor = self.network(images)
        # What is taken out here, and not in there, is an ordinary tensor.
        logits = logits.index_select(1, self._outputs).float()
        return self.inner_scores(logits) if self.inner_scores else logits


def load_teacher(settings: TrainSettings, tree: SemanticTree, device: torch.device) -> Teacher:
    """Load the teacher that the settings name, onto a device, compiled where they say so.

    settings.teacher is what `open_model` takes; of a run, the moving average of its weights teaches, where it has one,
    else the last. A run's classes are those of its tree, a timm model's those that its configuration names, or of the
    known label space of that many classes.

    Raises ValueError where it is none of these, cannot be had, lacks a class of the tree, or takes no images of
    `teacher_size` (without: `image_size`).
    """
    assert settings.teacher is not None
    with torch.random.fork_rng(devices=[]):  # the weights that a network begins with draw none of the student's numbers
        opened, outputs = _open(settings.teacher, tree)
    side = settings.teacher_size or settings.image_size or opened.image_size
    teacher = Teacher(
        opened.model,
        name=settings.teacher,
        outputs=outputs,
        mean_std=(opened.mean, opened.std),
        student_mean_std=mean_std(settings.normalize),
        size=settings.teacher_size,
        inner_scores=InnerScores(tree) if len(outputs) < len(tree) else None,
    ).to(device)
    if settings.channels_last:
        teacher.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    try_images(
        teacher.network,
        side,
        name=f"teacher {teacher.name}",
        num_outputs=cast(int, opened.model.num_classes),
        option="--set teacher_size=",
    )
    if settings.compile:
        teacher.network.compile()
    return teacher


@dataclass(frozen=True, kw_only=True)
class SelfTest:
    """How well a teacher knows a few labelled images; as text the line to print."""

    name: str
    split: str
    num_images: int
    semantic_top1: float
    """Percent."""
    commonest: float
    """The semantic top-1 of always answering each level's commonest class, percent."""
    kappa: float
    """What the teacher gets right beyond chance, as a share of what chance leaves (Cohen, 1960): 1 is flawless, 0 are
    answers without any relation to the images, also if they are always the same."""

    def __str__(self) -> str:
        return (
            f"teacher {self.name}: semantic top-1 {self.semantic_top1:.1f} % on {self.num_images:,} {self.split} "
            f"images (always the commonest answer: {self.commonest:.1f} %)"
        )


def self_test(
    teacher: Teacher,
    loader: Loader,
    tree: SemanticTree,
    *,
    split: str = "validation",
    amp: str = "off",
    ranks: Ranks | None = None,
    num_images: int = 512,
) -> SelfTest:
    """Ask the teacher for the labels of a few images, before it teaches any; all ranks call it, and get one result.

    loader:     of the validation images, or of the training images where there are none; it is left where it was.
    split:      whose images they are, for the line.
    amp:        `off`, `bf16` or `fp16`.
    num_images: how many to take, over all ranks; fewer where there are not as many.

    Raises ValueError where the teacher is at chance (its kappa is `AT_CHANCE` or less), or without any image.
    """
    ranks = ranks or Ranks()
    levels = Levels(tree).to(ranks.device)
    counts = torch.zeros(3, len(tree), dtype=torch.int64, device=ranks.device)
    left = num_images * (ranks.rank + 1) // ranks.world_size - num_images * ranks.rank // ranks.world_size
    taken = torch.zeros((), dtype=torch.int64, device=ranks.device)
    place = _place_of(loader)
    for images, labels in loader:
        if len(labels):
            with autocast(ranks.device, amp):
                logits: Tensor = teacher(images.to(ranks.device))
            labels = labels[:left].to(ranks.device)  # of the answers, so that a compiled teacher sees one batch size
            counts += _count(levels, logits[:left], labels)
            taken += len(labels)
            left -= len(labels)
        if not left:
            break
    if place is not None:
        loader.load_state_dict(place)
    counts, taken = ranks.sum(counts), ranks.sum(taken)
    if not counts.any():
        raise ValueError(f"teacher {teacher.name}: no {split} image to test it with; wanted at least one")
    result = SelfTest(name=teacher.name, split=split, num_images=int(taken), **_judge(levels, counts))
    if result.kappa <= AT_CHANCE:
        raise ValueError(
            f"{result}; it is at chance (kappa {result.kappa:.2f}, wanted more than {AT_CHANCE}): its outputs may be "
            "other classes than its label space says, its mean and standard deviation others, its images larger "
            "(--set teacher_size=...), or it has learnt too little"
        )
    return result


def _place_of(loader: Loader) -> dict[str, int] | None:
    try:
        return loader.state_dict()
    except ValueError:  # a stream, which starts over by itself
        return None


def _count(levels: Levels, logits: Tensor, labels: Tensor) -> Tensor:
    """Return int64 (3, num_classes): how often each class was its hierarchy's answer, its target, and both at once."""
    of_levels = zip(levels.classes, levels.split(logits), strict=True)
    answers = torch.stack([classes[level_logits.argmax(dim=1)] for classes, level_logits in of_levels], dim=1)
    targets = levels.ancestors_of(labels)
    has_target = targets >= 0
    answers, targets = answers[has_target], targets[has_target]
    rows = (answers, targets, targets[answers == targets])
    return torch.stack([torch.bincount(row, minlength=levels.num_classes) for row in rows])


def _judge(levels: Levels, counts: Tensor) -> dict[str, float]:
    """Return semantic_top1, commonest and kappa of what `_count` counted."""
    _, valid, right = counts.sum(dim=1).tolist()
    by_chance, commonest = 0.0, 0
    for classes in levels.classes:
        answers, targets = counts[0, classes].double(), counts[1, classes].double()
        # Answers that know nothing of the images hit as often as these frequencies let them meet a target.
        by_chance += float(answers @ targets / targets.sum().clamp(min=1))
        commonest += int(targets.max())
    # Where every level has one target, and that was always the answer, chance leaves nothing to get wrong.
    kappa = (right - by_chance) / (valid - by_chance) if by_chance < valid else 1.0
    return {"semantic_top1": 100 * right / valid, "commonest": 100 * commonest / valid, "kappa": kappa}


def _open(name: str, tree: SemanticTree) -> tuple[OpenModel, Tensor]:
    """Return the network, and for each class of the tree its output."""
    num_outputs = num_published(name)
    if num_outputs is not None:  # then refuse it before its weights travel
        _outputs(name, num_outputs, tree)
    try:
        opened = open_model(name, "ema-or-last")
    except ValueError as error:
        is_file = holds_weights(Path(name))
        way_out = "; to name a teacher's network and classes, give --teacher the folder of `in21k export`"
        raise ValueError(f"teacher {error}{way_out if is_file else ''}") from error
    outputs = _outputs(name, opened.classes or opened.model, tree)
    return opened, outputs if opened.trains_inner else outputs[: tree.num_image_classes]


def _outputs(name: str, classes: LabelSpace | int | nn.Module, tree: SemanticTree) -> Tensor:
    """Return for each class of the tree its output (int64), of image classes alone where it lacks an inner class.

    Raises ValueError where the teacher lacks an image class.
    """
    try:
        space = classes if isinstance(classes, LabelSpace) else label_space_of(classes)
        has_inner = set(tree.wnids) <= set(space.wnids)
        return class_map(space, tree.wnids if has_inner else tree.wnids[: tree.num_image_classes])
    except ValueError as error:
        architecture = name.partition(".")[0]
        known = [model.name for model in pretrained_21k() if model.name != name]
        others = [other for other in known if other.partition(".")[0] == architecture]
        hint = f"; of its architecture these know ImageNet-21K: {', '.join(others)}" if others else ""
        raise ValueError(f"teacher {name}: {error}{hint}") from error
