"""The losses that know no tree, against torch's own over dense targets."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from in21k.shards.tree import SemanticTree
from in21k.training import BinaryCrossEntropyLoss, CrossEntropyLoss, SemanticSoftmaxLoss, TrainSettings
from in21k.training.losses.create import create_loss


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    logits = 5 * torch.randn(6, 9, generator=generator)
    logits[0] *= 1000  # far beyond where a sigmoid is 0 or 1
    return logits.to(dtype), torch.randint(9, (6,), generator=generator)


def dense(labels: Tensor, eps: float) -> Tensor:
    return F.one_hot(labels, 9) * (1 - eps) + eps / 9


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("eps", [0.0, 0.1])
def test_bce_sums_over_classes_and_averages_over_samples(dtype: torch.dtype, eps: float) -> None:
    logits, labels = batch(dtype)
    fast, slow = logits.clone().requires_grad_(), logits.double().requires_grad_()
    loss = BinaryCrossEntropyLoss(eps)(fast, labels)
    wanted = F.binary_cross_entropy_with_logits(slow, dense(labels, eps).double(), reduction="sum") / 6
    loss.backward()
    wanted.backward()
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    torch.testing.assert_close(fast.grad, slow.grad, check_dtype=False, rtol=2**-7, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_cross_entropy_is_torchs_in_float32(dtype: torch.dtype) -> None:
    logits, labels = batch(dtype)
    loss = CrossEntropyLoss(0.2)(logits, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, F.cross_entropy(logits.float(), dense(labels, 0.2)))


@pytest.mark.parametrize("kind", [CrossEntropyLoss, BinaryCrossEntropyLoss])
def test_an_empty_batch_has_loss_zero(kind: Any) -> None:
    logits = torch.zeros(0, 9, requires_grad=True)
    loss = kind(0.1)(logits, torch.zeros(0, dtype=torch.int64))
    loss.backward()
    assert loss.item() == 0


@pytest.mark.parametrize("kind", [CrossEntropyLoss, BinaryCrossEntropyLoss])
def test_smoothing_is_a_share(kind: Any) -> None:
    with pytest.raises(ValueError, match="label_smoothing is 1; wanted at least 0 and less than 1"):
        kind(1)


def test_the_setting_names_the_loss(settings: TrainSettings, tree: SemanticTree) -> None:
    kinds = {"semantic": SemanticSoftmaxLoss, "cross-entropy": CrossEntropyLoss, "bce": BinaryCrossEntropyLoss}
    for name, kind in kinds.items():
        loss: Any = create_loss(replace(settings, loss=name, label_smoothing=0.3), tree)  # type: ignore[arg-type]
        assert type(loss) is kind
        assert loss.label_smoothing == 0.3
