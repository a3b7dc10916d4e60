"""The losses between student and teacher, on small trees."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import settings as effort
from hypothesis import strategies as st
from torch import Tensor

from in21k.shards.tree import SemanticTree
from in21k.training import LogitKDLoss, SemanticKDLoss


def grow(places: list[int]) -> SemanticTree:
    """A tree of two tops, and one more class per place, each below one that came before it or a top itself."""
    parents = [-1, -1, *(place % (i + 3) - 1 for i, place in enumerate(places))]
    names = [f"n{i}" for i in range(len(parents))]
    return SemanticTree.from_parents(names, names, parents)


trees = st.lists(st.integers(0, 10**6), max_size=40).map(grow)


def slow_kd(tree: SemanticTree, student: Tensor, teacher: Tensor) -> Tensor:
    total = student.new_zeros(())
    for classes in (list(classes) for classes in tree.classes_by_level if len(classes) > 1):
        for row in range(len(student)):
            taught = teacher[row, classes].softmax(dim=0)
            top = sorted(taught.tolist(), reverse=True)[: math.ceil(len(classes) / 20)]
            total = total + sum(top) * ((student[row, classes].softmax(dim=0) - taught) ** 2).sum()
    return total


def pair(tree: SemanticTree, batch: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    student = 2 * torch.randn(batch, len(tree), generator=generator)
    return student.requires_grad_(), 3 * torch.randn(batch, len(tree), generator=generator)


@effort(max_examples=60, deadline=None)
@given(trees, st.integers(1, 6), st.integers(0, 2**31))
def test_semantic_kd_equals_the_loop_on_any_tree(tree: SemanticTree, batch: int, seed: int) -> None:
    student, teacher = pair(tree, batch, seed)
    exact = student.detach().double().requires_grad_()
    wanted = slow_kd(tree, exact, teacher.double()) / batch
    loss = SemanticKDLoss(tree)(student, teacher)
    torch.testing.assert_close(loss.double(), wanted, rtol=1e-5, atol=1e-7)
    (slope,), (wanted_slope,) = torch.autograd.grad(loss, student), torch.autograd.grad(wanted, exact)
    torch.testing.assert_close(slope.double(), wanted_slope, rtol=1e-4, atol=1e-7)


def test_the_sum_is_the_mean_times_the_batch(tree: SemanticTree) -> None:
    student, teacher = pair(tree, 5)
    mean, total = SemanticKDLoss(tree)(student, teacher), SemanticKDLoss(tree, reduction="sum")(student, teacher)
    torch.testing.assert_close(total, 5 * mean)
    with pytest.raises(ValueError, match="'batchmean'; wanted mean or sum"):
        SemanticKDLoss(tree, reduction="batchmean")  # type: ignore[arg-type]


def test_logit_kd_equals_the_loop() -> None:
    student, teacher = (torch.randn(4, 7, generator=torch.Generator().manual_seed(i)) for i in (0, 1))
    for temperature in (1.0, 2.5):
        total = 0.0
        for row in range(4):
            p, q = ((logits[row].double() / temperature).softmax(dim=0).tolist() for logits in (teacher, student))
            total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True)) / 4
        loss = LogitKDLoss(temperature)(student, teacher)
        assert loss.item() == pytest.approx(temperature**2 * total, rel=1e-5)


def test_logit_kd_wants_a_temperature() -> None:
    with pytest.raises(ValueError, match="temperature is 0; wanted more than 0"):
        LogitKDLoss(0)


@pytest.mark.parametrize("kind", ["semantic", "logits"])
def test_only_the_student_learns(tree: SemanticTree, kind: str) -> None:
    loss = SemanticKDLoss(tree) if kind == "semantic" else LogitKDLoss(2.0)
    student, teacher = pair(tree, 3)
    teacher.requires_grad_()
    loss(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad is not None
    assert student.grad.any()
    assert loss(teacher.detach(), teacher).item() == pytest.approx(0, abs=1e-7)


@pytest.mark.parametrize("kind", ["semantic", "logits"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_computed_in_float32(tree: SemanticTree, kind: str, dtype: torch.dtype) -> None:
    loss = SemanticKDLoss(tree) if kind == "semantic" else LogitKDLoss(2.0)
    student, teacher = (logits.detach().to(dtype) for logits in pair(tree, 3))
    half, full = student.clone().requires_grad_(), student.float().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        actual = loss(half, teacher)
    wanted = loss(full, teacher.float())
    assert torch.equal(actual, wanted)
    torch.testing.assert_close(
        torch.autograd.grad(actual, half)[0],
        torch.autograd.grad(wanted, full)[0].to(dtype),
        rtol=2**-7,
        atol=1e-6,
    )


@pytest.mark.parametrize("kind", ["semantic", "logits"])
def test_an_empty_batch_has_loss_zero(tree: SemanticTree, kind: str) -> None:
    loss = SemanticKDLoss(tree) if kind == "semantic" else LogitKDLoss()
    student = torch.zeros(0, len(tree), requires_grad=True)
    actual = loss(student, torch.zeros(0, len(tree)))
    actual.backward()
    assert actual.item() == 0


@pytest.mark.parametrize("kind", ["semantic", "logits"])
def test_a_teacher_of_another_number_of_classes_is_refused(tree: SemanticTree, kind: str) -> None:
    loss = SemanticKDLoss(tree) if kind == "semantic" else LogitKDLoss()
    with pytest.raises(ValueError, match=r"teacher's logits have the shape \(2, 5\), the student's \(2, 6\)"):
        loss(torch.zeros(2, 6), torch.zeros(2, 5))


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # the compiler's own look at what lies between its graphs
def test_semantic_kd_may_stand_in_a_compiled_step(tree: SemanticTree) -> None:
    student, teacher = pair(tree, 3)
    loss = SemanticKDLoss(tree)
    actual = torch.compile(lambda logits: 10 * loss(logits * 2, teacher), backend="eager")(student)
    wanted = 10 * loss(student * 2, teacher)
    assert torch.equal(torch.autograd.grad(actual, student)[0], torch.autograd.grad(wanted, student)[0])
