"""Optimizer groups, and the schedule against torch's own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from in21k.training import TrainSettings
from in21k.training.optim import create_optimizer, parameter_groups
from in21k.training.schedule import one_cycle


def test_only_tensors_of_more_than_one_dimension_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    decaying, plain = parameter_groups(model, 1e-4)
    assert decaying == {"params": [model[0].weight, model[2].weight], "weight_decay": 1e-4}
    assert plain == {"params": [model[0].bias, model[1].weight, model[1].bias], "weight_decay": 0.0}


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_the_named_one(name: str, kind: type) -> None:
    settings = TrainSettings(optimizer=name, lr=0.5, momentum=0.8, weight_decay=0.1)  # type: ignore[arg-type]
    optimizer = create_optimizer(nn.Linear(2, 2), settings)
    assert type(optimizer) is kind
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.1), (0.5, 0.0)]
    if name == "sgd":
        assert optimizer.param_groups[0]["momentum"] == 0.8


def test_adam_has_its_weight_decay_in_the_gradient() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    optimizer = create_optimizer(layer, TrainSettings(lr=0.1, weight_decay=1e-4))
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    # Adam scales the (tiny) L2 gradient up to a whole step; AdamW would move by lr * weight_decay only.
    assert layer.weight.item() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize(("total", "warmup"), [(100, 0.1), (7, 0.1), (13, 0.3), (1000, 0.1), (2, 0.1), (20, 0.0)])
def test_one_cycle_is_torchs(total: int, warmup: float) -> None:
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    torchs = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=2.0, total_steps=total, pct_start=warmup, div_factor=20, cycle_momentum=False
    )
    for step in range(total):
        assert 2.0 * one_cycle(step, total, warmup) == pytest.approx(
            optimizer.param_groups[0]["lr"], rel=1e-9, abs=1e-15
        )
        optimizer.step()
        if step < total - 1:
            torchs.step()


@pytest.mark.parametrize(("total", "warmup"), [(1, 0.1), (10, 0.1), (5, 1.0), (1, 1.0)])
def test_one_cycle_copes_where_torchs_divides_by_zero(total: int, warmup: float) -> None:
    assert all(0 < one_cycle(step, total, warmup) <= 1 for step in range(total))


def test_a_step_outside_the_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="step 5 lies outside"):
        one_cycle(5, 5)
