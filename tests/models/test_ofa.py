"""The once-for-all network: the published one's tensors, arithmetic and manners."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay
from torch import Tensor, nn
from torch.nn import functional as F

from in21k.models import create_model, load_weights

# Of the published network: kernel, stride, activation, squeeze and excitation, identity shortcut per block.
R, S = F.relu, F.silu
BLOCKS = [
    *[(3, 1, R, 0, 1), (3, 2, R, 0, 0), (5, 1, R, 0, 1), (3, 1, R, 0, 1), (5, 2, R, 1, 0)],
    *[(5, 1, R, 1, 1), (3, 1, R, 1, 1), (5, 1, R, 1, 1), (7, 2, S, 0, 0), (5, 1, S, 0, 1)],
    *[(3, 1, S, 0, 1), (5, 1, S, 0, 1), (3, 1, S, 1, 0), (5, 1, S, 1, 1), (7, 1, S, 1, 1)],
    *[(3, 1, S, 1, 1), (3, 2, S, 1, 0), (3, 1, S, 1, 1), (5, 1, S, 1, 1), (3, 1, S, 1, 1)],
]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    """The network with tensors of no special value anywhere, in evaluation mode."""
    torch.manual_seed(0)
    model = create_model("ofa_flops_595m_s", num_classes=10)
    for name, tensor in model.state_dict().items():
        if "bn." in name and tensor.is_floating_point():
            tensor.uniform_(0.5, 1.5)
        if "se." in name and name.endswith("bias"):
            tensor.normal_()
    return model.eval()


def shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def test_it_has_the_published_networks_size() -> None:
    with torch.device("meta"):
        model = create_model("ofa_flops_595m_s", num_classes=11221)
    assert sum(parameter.numel() for parameter in model.parameters()) == 24_845_605
    own = shapes(model)
    assert len(own) == 417
    assert own["first_conv.conv.weight"] == (24, 3, 3, 3)
    assert "blocks.0.mobile_inverted_conv.inverted_bottleneck.conv.weight" not in own
    assert own["blocks.7.mobile_inverted_conv.depth_conv.se.fc.reduce.weight"] == (40, 144, 1, 1)
    assert own["blocks.8.mobile_inverted_conv.depth_conv.conv.weight"] == (288, 1, 7, 7)
    assert own["feature_mix_layer.conv.weight"] == (1536, 1152, 1, 1)
    assert own["classifier.linear.weight"] == (11221, 1536, 1, 1)


def test_its_tensors_are_those_of_the_published_weights(data_folder: Path) -> None:
    with (data_folder / "ofa_flops_595m_s_state_dict.csv").open() as file:
        published = {row["key"]: tuple(map(int, filter(None, row["shape"].split("x")))) for row in csv.DictReader(file)}
    with torch.device("meta"):
        assert shapes(create_model("ofa_flops_595m_s", num_classes=11221)) == published


def plainly(weights: dict[str, Tensor], x: Tensor) -> Tensor:
    """The forward pass from the published facts, written out."""

    def convolve(x: Tensor, name: str, stride: int = 1, groups: int = 1) -> Tensor:
        kernel = weights[f"{name}.conv.weight"]
        x = F.conv2d(x, kernel, stride=stride, padding=kernel.shape[-1] // 2, groups=groups)
        mean, var, gain, bias = (weights[f"{name}.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(x, mean, var, gain, bias, eps=1e-5)

    x = F.silu(convolve(x, "first_conv", stride=2))
    for index, (kernel, stride, act, se, shortcut) in enumerate(BLOCKS):
        name = f"blocks.{index}.mobile_inverted_conv"
        y = x if index == 0 else act(convolve(x, f"{name}.inverted_bottleneck"))
        assert weights[f"{name}.depth_conv.conv.weight"].shape[-1] == kernel
        y = act(convolve(y, f"{name}.depth_conv", stride, groups=y.shape[1]))
        if se:
            fc = f"{name}.depth_conv.se.fc"
            scale = y.mean((2, 3), keepdim=True)
            scale = F.relu(F.conv2d(scale, weights[f"{fc}.reduce.weight"], weights[f"{fc}.reduce.bias"]))
            y = y * torch.sigmoid(F.conv2d(scale, weights[f"{fc}.expand.weight"], weights[f"{fc}.expand.bias"]))
        y = convolve(y, f"{name}.point_linear")
        x = x + y if shortcut else y
    x = F.silu(convolve(x, "final_expand_layer")).mean((2, 3))
    x = F.silu(x @ weights["feature_mix_layer.conv.weight"][:, :, 0, 0].T)
    return x @ weights["classifier.linear.weight"][:, :, 0, 0].T + weights["classifier.linear.bias"]


@torch.inference_mode()
def test_it_computes_what_the_published_facts_say(trained: nn.Module) -> None:
    images = torch.rand(2, 3, 96, 64)
    torch.testing.assert_close(trained(images), plainly(trained.state_dict(), images), rtol=1e-4, atol=1e-4)


@torch.inference_mode()
def test_it_is_used_as_timms_networks_are(trained: nn.Module) -> None:
    images = torch.rand(2, 3, 64, 64)
    features = trained.forward_features(images)
    assert features.shape == (2, trained.num_features, 2, 2)
    assert trained.forward_head(features, pre_logits=True).shape == (2, trained.head_hidden_size)
    assert torch.equal(trained.forward_head(features), trained(images))
    assert trained.get_classifier().weight.shape == (10, trained.head_hidden_size, 1, 1)
    assert trained.pretrained_cfg["classifier"] == "classifier.linear"
    assert dict(trained.named_modules())[trained.pretrained_cfg["first_conv"]].weight.shape[1] == 3
    assert create_model("ofa_flops_595m_s", num_classes=0)(images).shape == (2, 1536)


def test_its_head_can_be_exchanged() -> None:
    model = create_model("ofa_flops_595m_s", num_classes=4).eval()
    model.reset_classifier(6)
    assert model.num_classes == 6
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 6)
    model.reset_classifier(0)
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 1536)
    with pytest.raises(ValueError, match="has avg alone"):
        model.reset_classifier(6, "max")


def test_recomputed_activations_give_the_same_gradient(trained: nn.Module) -> None:
    images = torch.rand(2, 3, 32, 32)
    gradients = []
    for recompute in (False, True):
        trained.set_grad_checkpointing(recompute)
        trained.zero_grad()
        trained(images).square().mean().backward()
        gradients.append(trained.first_conv[0].weight.grad.clone())
    trained.set_grad_checkpointing(False)
    assert gradients[0].abs().max() > 0
    torch.testing.assert_close(gradients[0], gradients[1])


def test_timms_layer_decay_takes_its_blocks_one_by_one() -> None:
    model = create_model("ofa_flops_595m_s", num_classes=3)
    groups = param_groups_layer_decay(model, weight_decay=0.1, layer_decay=0.5)
    scale_of = {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    named = {name: scale_of[id(parameter)] for name, parameter in model.named_parameters()}
    assert len(named) == len(scale_of)
    assert named["classifier.linear.weight"] == 1
    assert named["final_expand_layer.conv.weight"] == named["feature_mix_layer.conv.weight"] == 0.5
    assert named["blocks.19.mobile_inverted_conv.point_linear.conv.weight"] == 0.25
    assert named["blocks.0.mobile_inverted_conv.point_linear.conv.weight"] == 0.5**21
    assert named["first_conv.conv.weight"] == 0.5**22


def test_blocks_are_left_out_by_chance_in_training_alone() -> None:
    model = create_model("ofa_flops_595m_s", num_classes=3, drop_path_rate=0.9, drop_rate=0.5)
    images = torch.rand(4, 3, 32, 32)
    assert not torch.equal(model(images), model(images))
    model.eval()
    assert torch.equal(model(images), model(images))


def test_a_freshly_made_network_keeps_the_scale_of_what_it_sees() -> None:
    torch.manual_seed(0)
    logits = create_model("ofa_flops_595m_s", num_classes=1000)(torch.rand(8, 3, 64, 64))
    assert 0.01 < logits.std() < 10


def test_weights_published_for_it_load_whole(trained: nn.Module, tmp_path: Path) -> None:
    torch.save({"state_dict": trained.state_dict()}, tmp_path / "ofa_flops_595m_s_miil_21k.pth")
    fresh = timm.create_model("ofa_flops_595m_s", num_classes=10).eval()
    assert load_weights(fresh, tmp_path / "ofa_flops_595m_s_miil_21k.pth").complete
    images = torch.rand(1, 3, 32, 32)
    assert torch.equal(fresh(images), trained(images))
