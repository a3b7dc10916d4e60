"""Losses and accuracy over the 11,221 classes of 21K-P, against loops over samples and levels in double precision."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards.tree import SemanticTree
from in21k.training import LogitKDLoss, SemanticAccuracy, SemanticKDLoss, SemanticSoftmaxLoss

BATCH = 70  # more than a block has rows
APART = [0.0, 700.0, -400.0, 150.0, -900.0, 300.0, 0.0, -200.0, 500.0, -50.0, 900.0, 100.0]  # added to levels 0...11


@pytest.fixture(scope="module")
def fall11() -> SemanticTree:
    return build_tree(read_classes("fall11p"))


def make_logits(tree: SemanticTree, dtype: torch.dtype, seed: int = 0, *, apart: bool = True) -> Tensor:
    """Logits (BATCH, 11221) whose levels lie hundreds apart, some classes 100 above the others of their level."""
    generator = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(BATCH, len(tree), generator=generator)
    logits += 100 * (torch.rand(logits.shape, generator=generator) < 1e-4)
    if apart:
        logits += torch.tensor(APART)[list(tree.levels)]
    return logits.to(dtype)


def make_labels(tree: SemanticTree) -> Tensor:
    """Labels of every level, also of level 11, which is not a hierarchy."""
    by_level = [classes[i % len(classes)] for i, classes in enumerate(tree.classes_by_level * 6)]
    return torch.tensor(by_level[:BATCH])


def slow_levels(tree: SemanticTree) -> Iterator[tuple[list[int], float]]:
    sizes = [tree.levels.count(k) for k in range(12)]
    for k in range(11):
        yield [i for i in range(len(tree)) if tree.levels[i] == k], min(sum(sizes) / sum(sizes[k:]), 20.0)


def slow_semantic(tree: SemanticTree, logits: Tensor, labels: Tensor, eps: float = 0.2) -> Tensor:
    total = logits.new_zeros(())
    for classes, weight in slow_levels(tree):
        for row, label in enumerate(labels.tolist()):
            answer = [node for node in tree.paths[label] if node in classes]
            if answer:
                target = torch.full((len(classes),), eps / len(classes), dtype=logits.dtype)
                target[classes.index(answer[0])] += 1 - eps
                total = total - weight * (target * logits[row, classes].log_softmax(dim=0)).sum() / len(labels)
    return total


def slow_kd(tree: SemanticTree, student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for classes, _ in slow_levels(tree):
        for row in range(len(student)):
            taught = teacher[row, classes].softmax(dim=0)
            confidence = sum(sorted(taught.tolist(), reverse=True)[: (len(classes) + 19) // 20])
            total = total + confidence * ((student[row, classes].softmax(dim=0) - taught) ** 2).sum()
    return total


def check(loss: Tensor, logits: Tensor, slow: Callable[[Tensor], Tensor], atol: float = 1e-8) -> None:
    """Compare a loss of some logits, and its gradient, with that of a slow loop over the same in double precision."""
    exact = logits.detach().double().requires_grad_()
    wanted = slow(exact)
    (slope,), (wanted_slope,) = torch.autograd.grad(loss, logits), torch.autograd.grad(wanted, exact)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=2e-6)
    assert slope.dtype == logits.dtype
    # A gradient of half precision is the exact one, rounded: once, and where a scale comes after it once more.
    rounding = {torch.float32: 2e-5, torch.bfloat16: 2**-8, torch.float16: 2**-10}[logits.dtype]
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=rounding, atol=atol)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_semantic_loss_equals_the_loop(fall11: SemanticTree, dtype: torch.dtype) -> None:
    logits, labels = make_logits(fall11, dtype).requires_grad_(), make_labels(fall11)
    loss = SemanticSoftmaxLoss(fall11)(logits, labels)
    check(loss, logits, lambda exact: slow_semantic(fall11, exact, labels))


def test_float16_keeps_what_the_loss_scaler_brings_back(fall11: SemanticTree) -> None:
    logits, labels = make_logits(fall11, torch.float16, apart=False).requires_grad_(), make_labels(fall11)
    # Most of the gradient is about 1e-6, where float16 has steps of 6e-8, and times the scale 4e-3: divided by the
    # batch before the scale comes, it would be wrong by 1e-4.
    scale = 2.0**12
    loss = scale * SemanticSoftmaxLoss(fall11)(logits, labels)
    check(loss, logits, lambda exact: scale * slow_semantic(fall11, exact, labels), atol=4e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_semantic_kd_equals_the_loop(fall11: SemanticTree, dtype: torch.dtype, reduction: Any) -> None:
    student, teacher = make_logits(fall11, dtype).requires_grad_(), make_logits(fall11, dtype, seed=1)
    loss = SemanticKDLoss(fall11, reduction=reduction)(student, teacher)
    share = 1 / BATCH if reduction == "mean" else 1
    check(loss, student, lambda exact: share * slow_kd(fall11, exact, teacher.double()), atol=share * 1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_semantic_accuracy_equals_the_loop_and_adds_over_ranks(fall11: SemanticTree, dtype: torch.dtype) -> None:
    labels = make_labels(fall11)
    logits = make_logits(fall11, dtype)
    for row, label in enumerate(labels.tolist()):  # right at some levels
        logits[row, list(fall11.paths[label][row % 3 :])] += 8
    correct, valid = [0] * 11, [0] * 11
    for k, (classes, _) in enumerate(slow_levels(fall11)):
        for row, label in enumerate(labels.tolist()):
            answer = [node for node in fall11.paths[label] if node in classes]
            valid[k] += len(answer)
            correct[k] += answer == [classes[int(logits[row, classes].argmax())]]
    ranks = [SemanticAccuracy(fall11), SemanticAccuracy(fall11)]  # of unequal shares: averages would not do
    ranks[0].update(logits[:50], labels[:50])
    ranks[1].update(logits[50:], labels[50:])
    ranks[0].sums += ranks[1].sums
    assert 0 < sum(correct) < sum(valid)
    assert ranks[0].compute() == sum(correct) / sum(valid)
    assert [(item["num_samples"], item["top1"]) for item in ranks[0].per_level()] == [
        (of_level, 100 * right / of_level) for right, of_level in zip(correct, valid, strict=True)
    ]


@pytest.mark.parametrize("kind", ["semantic", "kd"])
def test_the_gradient_is_the_only_large_tensor(fall11: SemanticTree, kind: str) -> None:
    class Large(TorchDispatchMode):
        made = 0

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            result = func(*args, **(kwargs or {}))
            if isinstance(result, Tensor) and result.numel() >= 0.8 * logits.numel() and result is not args[0]:
                Large.made += 1
            return result

    logits, labels = make_logits(fall11, torch.float32).requires_grad_(), make_labels(fall11)
    other = make_logits(fall11, torch.float32, seed=1)
    loss: nn.Module = SemanticSoftmaxLoss(fall11) if kind == "semantic" else SemanticKDLoss(fall11)
    with Large():
        loss(logits, labels if kind == "semantic" else other).backward()
    assert Large.made == 1 + 1  # made, and handed to the leaf as its own


def test_on_a_device_nothing_waits_for_values(fall11: SemanticTree) -> None:
    """Meta tensors have no values: whoever looks at one, or makes a shape of them, fails."""
    logits = torch.empty(BATCH, len(fall11), device="meta", requires_grad=True)
    labels = torch.empty(BATCH, dtype=torch.int64, device="meta")
    for loss in (SemanticSoftmaxLoss(fall11), SemanticKDLoss(fall11), LogitKDLoss()):
        other = labels if isinstance(loss, SemanticSoftmaxLoss) else logits.detach()
        loss.to("meta")(logits, other).backward()
    assert logits.grad is not None
    SemanticAccuracy(fall11, "meta").update(logits, labels)
