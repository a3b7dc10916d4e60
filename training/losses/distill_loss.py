"""What a student loses where it disagrees with a teacher: in the semantic tree, or over all classes."""

from __future__ import annotations

from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from .fused_backward import Blocks, attach_gradient, gradient_unit, gradient_wanted, not_compiled
from .levels import Levels

_CONFIDENCE_SHARE = 20  # the reference takes the top twentieth of a level's classes


class SemanticKDLoss(nn.Module):
    """Knowledge distillation within the semantic tree, as the code of "ImageNet-21K Pretraining for the Masses" has it.

        L = sum_k sum over samples of c_k * sum_{H_k} (softmax(student) - softmax(teacher))^2

    with a softmax inside each hierarchy H_k, and c_k, the teacher's confidence, the sum of the ceil(N_k/20) largest of
    its probabilities of that sample and level. All samples count in all levels: it takes no labels.

    reduction: `mean` divides by the number of samples, `sum` does not.

    Student's and teacher's logits (B, num_classes), each of any float type, on one device; the loss is a float32 scalar
    on that device, computed in float32 without waiting for it. The gradient flows to the student only, has its logits'
    type, and is made along with the loss, which can be differentiated once. An empty batch has loss 0.

    >>> tree = SemanticTree.from_paths("abc", ["animal", "plant", "bird"], [[0], [1], [2, 0]])
    >>> teacher = torch.tensor([[100.0, 0, 0]])  # sure of the animal, so that its confidence is 1
    >>> round(SemanticKDLoss(tree)(torch.zeros(1, 3), teacher).item(), 4)  # (1/2 - 1)^2 + (1/2 - 0)^2
    0.5
    """

    def __init__(self, tree: SemanticTree, reduction: Literal["mean", "sum"] = "mean") -> None:
        super().__init__()
        if reduction not in ("mean", "sum"):
            raise ValueError(f"reduction is {reduction!r}; wanted mean or sum")
        self.reduction = reduction
        self.levels = Levels(tree)

    @not_compiled
    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        self.levels.check(student_logits)
        _check_pair(student_logits, teacher_logits)
        num_rows, num_levels = len(student_logits), len(self.levels.sizes)
        wanted, unit = gradient_wanted(student_logits), gradient_unit(student_logits)
        share = 1 / max(num_rows, 1) if self.reduction == "mean" else 1.0
        with torch.no_grad():
            students = Blocks(student_logits, num_levels, with_gradient=wanted)
            teachers = Blocks(teacher_logits, num_levels, with_gradient=False)
            addends = [student_logits.new_zeros(1, dtype=torch.float32)]
            for rows in torch.arange(num_rows, device=student_logits.device).split(students.num_rows):
                student, slopes = students.take(rows)
                teacher, _ = teachers.take(rows)
                addends.append(share * self._block(student, teacher, slopes, share * unit))
                students.give(rows)
        return attach_gradient(student_logits, torch.cat(addends), students.gradient, unit)

    def _block(self, student: Tensor, teacher: Tensor, slopes: Tensor | None, factor: float) -> Tensor:
        """Return the losses (R,) of float32 logits (R, C), and write `factor` times their gradient to slopes (R, C)."""
        losses = student.new_zeros(len(student))
        for classes in self.levels.classes:
            columns = classes.expand(len(student), -1)
            probabilities = student.gather(1, columns).softmax(dim=1)
            taught = teacher.gather(1, columns).softmax(dim=1)
            confidence = _sum_of_largest(taught, -(-len(classes) // _CONFIDENCE_SHARE))
            apart = probabilities - taught
            losses += confidence * apart.square().sum(dim=1)
            if slopes is not None:
                # d/dx of sum (p - q)^2 is 2 p (d - <d, p>), with d = p - q.
                apart -= (apart * probabilities).sum(dim=1, keepdim=True)
                slopes.scatter_(1, columns, apart.mul_(probabilities).mul_(2 * factor * confidence[:, None]))
        return losses


def _sum_of_largest(values: Tensor, count: int) -> Tensor:
    """Return the sum (R,) of the largest `count` of each row of values (R, N)."""
    if values.device.type != "cpu":
        return values.topk(count, dim=1, sorted=False).values.sum(dim=1)
    # NumPy's partition uses the processor's wide registers: a quarter of the time that torch's topk takes.
    first = values.shape[1] - count
    return torch.from_numpy(np.partition(values.numpy(), first, axis=1)[:, first:]).sum(dim=1)


class LogitKDLoss(nn.Module):
    """Knowledge distillation over all classes at once (Hinton et al., "Distilling the Knowledge in a Neural Network").

        L = T^2 / B * sum over samples of KL(softmax(teacher / T) || softmax(student / T))

    temperature: T > 0; T^2 keeps the size of the gradient when T changes.

    Student's and teacher's logits (B, C), each of any float type; the loss is a float32 scalar, computed in float32.
    The gradient flows to the student only. An empty batch has loss 0.

    >>> LogitKDLoss(temperature=2.0)(torch.ones(1, 3), torch.zeros(1, 3)).item()  # softmax sees no common shift
    0.0
    """

    def __init__(self, temperature: float = 1.0) -> None:
        super().__init__()
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature is {temperature}; wanted more than 0")
        self.temperature = temperature

    def forward(self, student_logits: Tensor, teacher_logits: Tensor) -> Tensor:
        """Return the loss of a batch, a float32 scalar."""
        _check_pair(student_logits, teacher_logits)
        student, teacher = (
            (logits.float() / self.temperature).log_softmax(dim=1)
            for logits in (student_logits, teacher_logits.detach())
        )
        divergence = F.kl_div(student, teacher, reduction="sum", log_target=True)
        return divergence * (self.temperature**2 / max(len(student), 1))


def _check_pair(student_logits: Tensor, teacher_logits: Tensor) -> None:
    if student_logits.shape != teacher_logits.shape:
        raise ValueError(
            f"the teacher's logits have the shape {tuple(teacher_logits.shape)}, the student's "
            f"{tuple(student_logits.shape)}; wanted the same classes in the same order"
        )
