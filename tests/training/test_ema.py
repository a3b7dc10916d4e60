"""The moving average of weights: timm's bits, with less to do."""

from __future__ import annotations

from collections import Counter

import pytest
import timm
import torch
from timm.utils.model_ema import ModelEmaV3
from torch import nn
from torch.profiler import ProfilerActivity, profile

from in21k.training.ema import MovingAverage


def network() -> nn.Module:
    """A network with batch norm, whose buffers include counts."""
    torch.manual_seed(0)
    return timm.create_model("test_resnet", num_classes=6).train()


def move(model: nn.Module) -> None:
    """Change weights and buffers as a step does."""
    with torch.no_grad():
        model(torch.rand(2, 3, 32, 32))
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter))


def test_the_average_has_the_bits_of_timms() -> None:
    model = network()
    ours, theirs = MovingAverage(model, 0.7), ModelEmaV3(model, decay=0.7, use_warmup=True)
    for step in range(1, 12):
        move(model)
        ours.update(step)
        theirs.update(model, step=step)
        assert ours.decay_at(step) == theirs.get_decay(step)
    ours.copy_counters()
    wanted = theirs.module.state_dict()
    averaged = ours.module.state_dict()
    assert averaged.keys() == wanted.keys()
    assert all(torch.equal(averaged[name], wanted[name]) for name in wanted)
    assert averaged["layer1.0.bn1.num_batches_tracked"] == 11


def test_an_update_neither_reads_a_state_dict_nor_copies_counters(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    monkeypatch.setattr(nn.Module, "state_dict", None)
    with profile(activities=[ProfilerActivity.CPU], acc_events=True) as profiled:
        average.update(5)
    operators = Counter(event.name for event in profiled.events() or [] if event.name.startswith("aten::"))
    assert operators["aten::_foreach_lerp_"] == 1
    assert set(operators) <= {
        "aten::_foreach_lerp_",
        "aten::lerp_",
    }  # the CPU has no fused kernel and takes each tensor
    assert "layer1.0.bn1.num_batches_tracked" in dict(average.module.named_buffers())


def test_weights_that_are_loaded_later_are_followed() -> None:
    model = network()
    average = MovingAverage(model, 0.9)
    model.load_state_dict({name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()})
    average.update(1)  # d is 0: the weights themselves
    average.copy_counters()
    assert all((tensor == 1).all() for tensor in average.module.state_dict().values())
