"""Several labels an image: the loss against a slow loop, and a run."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, train_model
from in21k.training.losses.create import check_loss, create_loss
from in21k.training.losses.multilabel import MultiLabelLoss, multi_hot

TABLE = multi_hot([[0], [1, 2], [], [0, 1, 2, 3]], 4)
LABELS = SemanticTree.from_parents(list("abcd"), list("ABCD"), [-1] * 4)


def slow_loss(logits: Tensor, sets: Tensor, *, positive: float, negative: float, margin: float, eps: float) -> float:
    """Add up, one sample and label at a time, what the docstring says."""
    total = 0.0
    for row, number in zip(logits.double().tolist(), sets.tolist(), strict=True):
        for x, held in zip(row, TABLE[number].tolist(), strict=True):
            p = 1 / (1 + math.exp(-x))
            q = max(p - margin, 0.0)
            t = (1 - eps) * held + eps / 2
            total -= t * (1 - p) ** positive * math.log(p) + (1 - t) * q**negative * math.log(1 - q)
    return total / len(sets)


@pytest.mark.parametrize("eps", [0.0, 0.2])
@pytest.mark.parametrize(("positive", "negative", "margin"), [(0, 0, 0.0), (0, 4, 0.05), (1, 2, 0.0), (2, 0, 0.3)])
def test_the_loss_is_that_of_a_slow_loop(positive: float, negative: float, margin: float, eps: float) -> None:
    logits = 3 * torch.randn(7, 4, generator=torch.Generator().manual_seed(1))
    sets = torch.tensor([0, 1, 2, 3, 3, 2, 0])
    loss = MultiLabelLoss(TABLE, gamma_positive=positive, gamma_negative=negative, margin=margin, label_smoothing=eps)
    wanted = slow_loss(logits, sets, positive=positive, negative=negative, margin=margin, eps=eps)
    assert loss(logits, sets).item() == pytest.approx(wanted, rel=1e-5)
    assert loss(logits.bfloat16(), sets).dtype == torch.float32


def test_without_its_dials_it_is_binary_cross_entropy_of_every_label() -> None:
    logits = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    sets = torch.tensor([3, 1, 0, 2, 1])
    wanted = nn.BCEWithLogitsLoss(reduction="sum")(logits, TABLE[sets].float()) / 5
    assert MultiLabelLoss(TABLE)(logits, sets).item() == pytest.approx(wanted.item())


def test_the_gradient_takes_the_focusing_factors_as_constants() -> None:
    logits = (2 * torch.randn(6, 4, generator=torch.Generator().manual_seed(3))).requires_grad_()
    sets = torch.tensor([0, 1, 2, 3, 1, 0])
    MultiLabelLoss(TABLE, gamma_positive=1, gamma_negative=4, margin=0.05)(logits, sets).backward()
    p, targets = logits.detach().double().sigmoid(), TABLE[sets].double()
    q = (p - 0.05).clamp(min=0)
    # d(-log p)/dx = p - 1;  d(-log(1-q))/dx = p (1-p) / (1-q) above the margin, and 0 below it
    of_absent = torch.where(p > 0.05, p * (1 - p) / (1 - q), 0.0)
    wanted = (targets * (1 - p) * (p - 1) + (1 - targets) * q**4 * of_absent) / len(sets)
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad.double(), wanted, rtol=1e-5, atol=1e-8)


def test_huge_logits_and_empty_batches_give_numbers() -> None:
    loss = MultiLabelLoss(TABLE, gamma_negative=4, margin=0.05)
    logits = torch.tensor([[300.0, -300.0, 300.0, -300.0]], requires_grad=True)
    value = loss(logits, torch.tensor([1]))
    value.backward()
    assert value.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
    assert loss(torch.empty(0, 4), torch.empty(0, dtype=torch.int64)).item() == 0
    with pytest.raises(ValueError, match="wanted gammas of 0 or more"):
        MultiLabelLoss(TABLE, margin=1.0)


@pytest.mark.parametrize(
    ("settings", "multi_label", "message"),
    [
        (TrainSettings(), True, "wanted --loss bce or --loss asymmetric"),
        (TrainSettings(loss="cross-entropy"), True, "wanted --loss bce or --loss asymmetric"),
        (TrainSettings(loss="bce", teacher="x"), True, "leave --teacher out"),
        (TrainSettings(loss="asymmetric"), False, "take --loss bce"),
    ],
)
def test_a_loss_that_does_not_go_with_the_labels_is_refused(
    settings: TrainSettings, multi_label: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        check_loss(settings, multi_label=multi_label)


def test_the_settings_name_the_dials() -> None:
    settings = TrainSettings(loss="asymmetric", asl_gamma_positive=1, asl_gamma_negative=3, asl_margin=0.1)
    loss = create_loss(settings, LABELS, TABLE)
    assert isinstance(loss, MultiLabelLoss)
    assert (loss.gamma_positive, loss.gamma_negative, loss.margin) == (1, 3, 0.1)
    assert loss.label_smoothing == 0.2
    plain = create_loss(TrainSettings(loss="bce", label_smoothing=0), LABELS, TABLE)
    assert isinstance(plain, MultiLabelLoss)
    assert (plain.gamma_positive, plain.gamma_negative, plain.margin, plain.label_smoothing) == (0, 0, 0, 0)


def test_a_run_learns_labels_and_keeps_the_best_by_map(
    make_loader: Any, settings: TrainSettings, run_path: Path
) -> None:
    # The six colours of the small data are six label sets of five labels.
    sets = [[0], [1], [0, 1], [2, 3], [], [0, 4]]
    labels = SemanticTree.from_parents(list("vwxyz"), list("vwxyz"), [-1] * 5)
    settings = replace(settings, loss="asymmetric", label_smoothing=0.0, epochs=20, lr=0.05, ema=0.9)

    def train_on() -> Any:
        torch.manual_seed(0)
        body = [nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        return train_model(
            model=nn.Sequential(*body, nn.Linear(8, 5)),
            loader=make_loader(),
            val_loader=make_loader(batch_size=48),
            tree=labels,
            label_sets=multi_hot(sets, 5),
            settings=settings,
            folder=run_path,
        )

    result = train_on()
    assert result["num_labels"] == 5
    assert result["map"] > 2 * result["map_chance"]
    lines = [json.loads(line) for line in (run_path / "log.jsonl").read_text().splitlines()]
    by_epoch = [line["validation"]["ema"]["map"] for line in lines if "validation" in line]
    assert result["best_map"] == max(by_epoch)
    assert result["best_epoch"] == by_epoch.index(max(by_epoch))
    assert json.loads((run_path / "metrics.json").read_text()) == result
    best = torch.load(run_path / "checkpoints" / "best.pt", weights_only=True)
    assert best["position"]["best"] == result["best_map"]
    assert train_on() == result  # finished already
