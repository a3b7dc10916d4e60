"""The Triton kernels, run by Triton's interpreter on the CPU, beside the plain path; a script of test_kernels.py."""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from torch import Tensor

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards.tree import SemanticTree
from in21k.training import SemanticSoftmaxLoss
from in21k.training.losses import semantic_triton
from in21k.training.losses.fused_backward import gradient_unit


def with_kernels(loss: SemanticSoftmaxLoss, logits: Tensor, labels: Tensor, incoming: float) -> tuple[Tensor, Tensor]:
    """The loss, and its gradient times `incoming`."""
    unit, ancestors = gradient_unit(logits), loss.levels.ancestors_of(labels)
    addends, gradient = semantic_triton.semantic_softmax(
        logits, ancestors, loss.levels, loss.weights, loss.label_smoothing, unit, with_gradient=True
    )
    assert gradient is not None
    return addends.sum(), semantic_triton.scaled(gradient, torch.tensor(incoming), unit)


def compare(tree: SemanticTree, logits: Tensor, labels: Tensor, eps: float) -> None:
    loss, incoming = SemanticSoftmaxLoss(tree, eps), 4.0
    wanted = loss(logits.requires_grad_(), labels)
    (wanted * incoming).backward()
    actual, gradient = with_kernels(loss, logits.detach(), labels, incoming)
    torch.testing.assert_close(actual, wanted.detach(), rtol=1e-5, atol=1e-6)
    rounding = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-9}[logits.dtype]
    torch.testing.assert_close(gradient, logits.grad, rtol=rounding, atol=1e-6)


def grow(parent_of: Callable[[int], int], size: int) -> SemanticTree:
    names = [f"n{i}" for i in range(size)]
    return SemanticTree.from_parents(names, names, [parent_of(i) for i in range(size)])


def main() -> None:
    generator = torch.Generator().manual_seed(0)
    chains = grow(lambda i: i - 2 if i > 1 else -1, 24)  # twelve levels of two
    flat = grow(lambda _: -1, 2500)  # one level, of more classes than a program holds
    fall11 = build_tree(read_classes("fall11p"))
    for tree in (chains, flat, fall11):
        apart = 300 * torch.randn(max(tree.levels) + 1, generator=generator)[list(tree.levels)]
        labels = torch.randint(len(tree), (3,), generator=generator)
        for dtype, eps in ((torch.float32, 0.0), (torch.bfloat16, 0.2), (torch.float16, 0.2)):
            compare(tree, (3 * torch.randn(3, len(tree), generator=generator) + apart).to(dtype), labels, eps)
    turned = torch.randn(24, 4, generator=generator).T  # neither rows nor columns at their usual distance
    labels = torch.arange(4) * 7
    compare(chains, turned, labels, 0.2)
    compare(chains, torch.zeros(0, 24), labels[:0], 0.2)
    loss = SemanticSoftmaxLoss(chains)
    addends, gradient = semantic_triton.semantic_softmax(
        turned, loss.levels.ancestors_of(labels), loss.levels, loss.weights, 0.2, 1.0, with_gradient=False
    )
    torch.testing.assert_close(addends.sum(), loss(turned, labels).detach())
    assert gradient is None
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
