"""Optimizers: the named one, over the right groups, with the learning rate of each."""

from __future__ import annotations

import re
from typing import Any

import pytest
import timm
import torch
from torch import nn
from torch.optim import Optimizer

from in21k.training import TrainSettings
from in21k.training.optim import create_optimizer, scaled_lr, set_lr


def groups_by_name(model: nn.Module, optimizer: Optimizer) -> dict[str, dict[str, Any]]:
    """The group of each parameter, by the parameter's name."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return {names[id(param)]: group for group in optimizer.param_groups for param in group["params"]}


def give_gradients(model: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


def test_only_tensors_of_more_than_one_dimension_decay() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2))
    model[2].bias.requires_grad_(False)
    groups = groups_by_name(model, create_optimizer(model, TrainSettings(weight_decay=1e-4)))
    decays = {name: group["weight_decay"] for name, group in groups.items()}
    assert decays == {"0.weight": 1e-4, "2.weight": 1e-4, "0.bias": 0.0, "1.weight": 0.0, "1.bias": 0.0}


def test_what_the_model_excepts_does_not_decay() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    groups = groups_by_name(model, create_optimizer(model, TrainSettings(weight_decay=0.1)))
    assert (groups["pos_embed"]["weight_decay"], groups["cls_token"]["weight_decay"]) == (0.0, 0.0)
    assert groups["blocks.0.attn.qkv.weight"]["weight_decay"] == 0.1


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_the_optimizer_is_torchs_own_and_fused(name: str, kind: type) -> None:
    optimizer = create_optimizer(nn.Linear(2, 2), TrainSettings(optimizer=name, lr=0.5, momentum=0.8))
    assert type(optimizer) is kind
    (group,) = optimizer.param_groups
    assert (group["lr"], group["lr_scale"], group["fused"]) == (0.5, 1.0, True)
    if name == "sgd":
        assert (group["momentum"], group["nesterov"]) == (0.8, False)


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_fused_steps_are_the_plain_ones_and_the_same_bits_each_time(name: str) -> None:
    def trained(**options: object) -> nn.Module:
        torch.manual_seed(0)
        model = nn.Linear(7, 5)
        settings = TrainSettings(optimizer=name, lr=0.1, weight_decay=0.1, optimizer_args=dict(options))
        optimizer = create_optimizer(model, settings)
        for step in range(4):
            give_gradients(model, step)
            optimizer.step()
        return model

    fused, again, plain = trained(), trained(), trained(fused=False)
    assert torch.equal(fused.weight, again.weight)
    torch.testing.assert_close(fused.weight, plain.weight)


@pytest.mark.parametrize("name", ["lamb", "lion", "muon", "lookahead_adamw", "rmsproptf"])
def test_every_other_name_is_timms_and_takes_steps(name: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    optimizer = create_optimizer(model, TrainSettings(optimizer=name, weight_decay=0.1))
    groups = groups_by_name(model, optimizer)
    assert groups["0.bias"]["weight_decay"] == 0.0
    assert groups["0.weight"]["weight_decay"] == 0.1
    before = model[0].weight.clone()
    set_lr(optimizer, 0.1)
    give_gradients(model, seed=0)
    optimizer.step()
    assert not torch.equal(model[0].weight, before)


def test_adam_has_its_weight_decay_in_the_gradient() -> None:
    layer = nn.Linear(1, 1, bias=False)
    nn.init.constant_(layer.weight, 1.0)
    optimizer = create_optimizer(layer, TrainSettings(lr=0.1, weight_decay=1e-4))
    layer.weight.grad = torch.zeros_like(layer.weight)
    optimizer.step()
    # Adam scales the (tiny) L2 gradient up to a whole step; AdamW would move by lr * weight_decay only.
    assert layer.weight.item() == pytest.approx(0.9, abs=1e-3)


@pytest.mark.parametrize("name", ["adamw", "lamb"])
def test_layers_further_down_learn_more_slowly(name: str) -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    optimizer = create_optimizer(model, TrainSettings(optimizer=name, layer_decay=0.5, weight_decay=0.1))
    set_lr(optimizer, 0.3)
    groups = groups_by_name(model, optimizer)
    assert groups["head.weight"]["lr"] == pytest.approx(0.3)
    assert groups["blocks.11.mlp.fc1.weight"]["lr"] == pytest.approx(0.15)
    assert groups["blocks.0.mlp.fc1.weight"]["lr"] == pytest.approx(0.3 * 0.5**12)
    assert groups["blocks.0.mlp.fc1.bias"]["weight_decay"] == 0.0


def test_the_learning_rate_of_a_step_goes_to_every_group() -> None:
    model = nn.Linear(2, 2)
    optimizer = create_optimizer(model, TrainSettings(weight_decay=0.1))
    set_lr(optimizer, 0.25)
    assert [group["lr"] for group in optimizer.param_groups] == [0.25, 0.25]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"optimizer_args": {"beta": 1}}, "optimizer adam: cannot be built with optimizer_args {'beta': 1}"),
        ({"optimizer_args": {"betas": [0.9, 2]}}, "Invalid beta"),
        ({"optimizer_args": {"lr": 1}}, "give it as --set lr="),
    ],
)
def test_arguments_that_an_optimizer_does_not_take_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        create_optimizer(nn.Linear(2, 2), TrainSettings(**changes))


def test_the_learning_rate_follows_the_batch_only_when_asked() -> None:
    request = TrainSettings(lr=0.1, base_batch=128, auto_scale_lr=True)
    assert [scaled_lr(request, batch) for batch in (64, 128, 1024)] == pytest.approx([0.05, 0.1, 0.8])
    assert scaled_lr(TrainSettings(lr=0.1, base_batch=128), 1024) == 0.1
