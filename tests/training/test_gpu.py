"""What only a GPU can show of the losses (`pytest -m gpu`): the kernels against the plain path, and no waiting."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor, nn

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards.tree import SemanticTree
from in21k.training import (
    BinaryCrossEntropyLoss,
    CrossEntropyLoss,
    LogitKDLoss,
    SemanticAccuracy,
    SemanticKDLoss,
    SemanticSoftmaxLoss,
)
from in21k.training.losses import semantic

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]


@pytest.fixture(scope="module")
def fall11() -> SemanticTree:
    return build_tree(read_classes("fall11p"))


def thousand_levels() -> SemanticTree:
    names = [f"n{i}" for i in range(2000)]
    return SemanticTree.from_parents(names, names, [-1, -1, *range(1998)])


def one_level() -> SemanticTree:
    names = [f"n{i}" for i in range(21_843)]
    return SemanticTree.from_parents(names, names, [-1] * 21_843)


def make_batch(tree: SemanticTree, dtype: torch.dtype, size: int = 100) -> tuple[Tensor, Tensor]:
    """Logits whose levels lie hundreds apart, and labels, on the CPU."""
    generator = torch.Generator().manual_seed(0)
    apart = 300 * torch.randn(max(tree.levels) + 1, generator=generator)[list(tree.levels)]
    logits = (3 * torch.randn(size, len(tree), generator=generator) + apart).to(dtype)
    return logits, torch.randint(len(tree), (size,), generator=generator)


def value_and_gradient(loss: nn.Module, logits: Tensor, other: Tensor, scale: float = 8.0) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of it times a scale, on the CPU."""
    logits = logits.detach().requires_grad_()
    value = loss(logits, other)
    (gradient,) = torch.autograd.grad(value * scale, logits)
    assert value.device == gradient.device == logits.device
    return value.detach().cpu(), gradient.cpu()


def assert_same(actual: tuple[Tensor, Tensor], wanted: tuple[Tensor, Tensor]) -> None:
    torch.testing.assert_close(actual[0], wanted[0], rtol=1e-5, atol=1e-6)
    rounding = {torch.float32: 1e-4, torch.bfloat16: 2**-7, torch.float16: 2**-9}[actual[1].dtype]
    torch.testing.assert_close(actual[1], wanted[1], rtol=rounding, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("eps", [0.0, 0.2])
def test_the_kernels_equal_the_plain_path(fall11: SemanticTree, dtype: torch.dtype, eps: float) -> None:
    pytest.importorskip("triton")
    for tree in (fall11, thousand_levels(), one_level()):
        logits, labels = make_batch(tree, dtype)
        wanted = value_and_gradient(SemanticSoftmaxLoss(tree, eps), logits, labels)
        actual = value_and_gradient(SemanticSoftmaxLoss(tree, eps).cuda(), logits.cuda(), labels.cuda())
        assert_same(actual, wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_plain_path_on_a_gpu_equals_that_on_the_cpu(
    fall11: SemanticTree, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    logits, labels = make_batch(fall11, dtype)
    wanted = value_and_gradient(SemanticSoftmaxLoss(fall11), logits, labels)
    monkeypatch.setattr(semantic, "has_kernels", lambda _: False)
    loss = SemanticSoftmaxLoss(fall11).cuda()
    logits, labels = logits.cuda(), labels.cuda()
    assert_same(value_and_gradient(loss, logits, labels), wanted)
    with no_waiting():
        loss(logits.requires_grad_(), labels).backward()


def test_logits_of_any_strides_and_an_empty_batch(fall11: SemanticTree) -> None:
    logits, labels = make_batch(fall11, torch.float32)
    loss = SemanticSoftmaxLoss(fall11)
    wanted = value_and_gradient(loss, logits, labels)
    turned = logits.cuda().T.contiguous().T
    assert_same(value_and_gradient(loss.cuda(), turned, labels.cuda()), wanted)
    value, gradient = value_and_gradient(loss, turned[:0], labels.cuda()[:0])
    assert (value.item(), gradient.shape) == (0, (0, len(fall11)))


@contextmanager
def no_waiting() -> Iterator[None]:
    """Raise where the CPU waits for the GPU."""
    torch.cuda.synchronize()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch warns once that the mode is a prototype
            torch.cuda.set_sync_debug_mode("error")
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("kind", ["semantic", "kd", "logit-kd", "cross-entropy", "bce"])
def test_no_loss_waits_for_the_gpu_and_each_equals_that_of_the_cpu(fall11: SemanticTree, kind: str) -> None:
    losses: dict[str, nn.Module] = {
        "semantic": SemanticSoftmaxLoss(fall11),
        "kd": SemanticKDLoss(fall11),
        "logit-kd": LogitKDLoss(2.0),
        "cross-entropy": CrossEntropyLoss(0.2),
        "bce": BinaryCrossEntropyLoss(0.1),
    }
    loss = losses[kind]
    logits, labels = make_batch(fall11, torch.float32)
    other = logits.flip(0) if kind.endswith("kd") else labels
    wanted = value_and_gradient(loss, logits, other)
    logits, other = logits.cuda(), other.cuda()
    assert_same(value_and_gradient(loss.cuda(), logits, other), wanted)  # and the kernels are compiled
    logits.requires_grad_()
    with no_waiting():
        loss(logits, other).backward()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_accuracy_does_not_wait_and_equals_that_of_the_cpu(fall11: SemanticTree, dtype: torch.dtype) -> None:
    logits, labels = make_batch(fall11, dtype)
    wanted, actual = SemanticAccuracy(fall11), SemanticAccuracy(fall11, "cuda")
    wanted.update(logits, labels)
    logits, labels = logits.cuda(), labels.cuda()
    with no_waiting():
        actual.update(logits, labels)
    assert torch.equal(actual.sums.cpu(), wanted.sums)
