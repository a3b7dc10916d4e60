"""What is counted of a network, against slow references and published numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from in21k.models import create_model, model_stats
from in21k.models.stats import count_parameters
from in21k.models.zoo import create_model_for


def counted_by_hooks(model: nn.Module, image_size: int) -> tuple[int, int]:
    """Return multiplications and outputs of the convolutions and linear layers, layer by layer."""
    macs = outputs = 0

    def note(layer: nn.Module, _: object, output: Tensor) -> None:
        nonlocal macs, outputs
        # Each output of a layer is a sum over the weights that lead to it.
        macs += output.numel() * layer.weight[0].numel()
        outputs += output.numel()

    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            layer.register_forward_hook(note)
    with torch.inference_mode():
        model.eval()(torch.zeros(1, 3, image_size, image_size))
    return macs, outputs


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv3_small_050", "ofa_flops_595m_s"])
def test_a_convolutional_network_is_counted_as_layer_by_layer(name: str) -> None:
    stats = model_stats(create_model(name), 64)
    assert (stats.num_macs, stats.num_activations) == counted_by_hooks(create_model(name), 64)
    assert stats.num_flops == 2 * stats.num_macs


def test_attention_is_counted_with_its_two_products() -> None:
    model = create_model("vit_tiny_patch16_224", img_size=64, depth=2)
    macs, outputs = counted_by_hooks(create_model("vit_tiny_patch16_224", img_size=64, depth=2), 64)
    tokens, width, heads, depth = 4 * 4 + 1, 192, 3, 2
    stats = model_stats(model, 64)
    assert stats.num_macs == macs + depth * 2 * tokens**2 * width
    assert stats.num_activations == outputs + depth * (heads * tokens**2 + tokens * width)


def test_resnet18_has_its_published_numbers() -> None:
    """timm's table of results: 11.69 M parameters, 1.82 GMACs, 2.48 M activations at 224 pixels."""
    stats = model_stats(create_model("resnet18"), 224)
    assert stats.num_parameters / 1e6 == pytest.approx(11.69, abs=0.005)
    assert stats.num_macs / 1e9 == pytest.approx(1.82, abs=0.01)
    assert stats.num_activations / 1e6 == pytest.approx(2.48, abs=0.005)


def test_counting_leaves_the_network_in_its_mode() -> None:
    model = create_model("resnet10t").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model_stats(model, 32)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_a_size_that_a_network_does_not_take_is_said() -> None:
    with pytest.raises(ValueError, match="takes no images of 63 x 63"):
        model_stats(create_model("vit_tiny_patch16_224", depth=1), 63)


@pytest.mark.parametrize(
    ("name", "num_classes"),
    [
        *[("resnet10t", None), ("resnet10t", 11_221), ("vit_tiny_patch16_224.augreg_in21k", 21_843)],
        *[("ofa_flops_595m_s", 5), ("swin_tiny_patch4_window7_224", None), ("mobilenetv3_small_050", 0)],
    ],
)
def test_parameters_counted_without_making_them_are_the_real_ones(name: str, num_classes: int | None) -> None:
    real = create_model(name, num_classes)
    assert count_parameters(name, num_classes) == sum(parameter.numel() for parameter in real.parameters())


def test_networks_made_after_counting_are_filled() -> None:
    count_parameters("resnet10t")
    weights = create_model("resnet10t").get_parameter("fc.weight")
    assert weights.device.type == "cpu"
    assert weights.std() > 0


def test_an_unknown_name_is_refused_with_the_nearest() -> None:
    with pytest.raises(ValueError, match="resnet50"):
        count_parameters("resnet5O")


@pytest.mark.parametrize(
    ("name", "options", "size"),
    [
        *[("resnet10t", None, 176), ("resnet10t", 64, 64), ("vit_tiny_patch16_224", 64, 64)],
        *[("vit_tiny_patch16_224", None, 224), ("ofa_flops_595m_s", 96, 96)],
    ],
)
def test_a_network_for_a_size_takes_images_of_it(name: str, options: int | None, size: int) -> None:
    model, got = create_model_for(name, options, num_classes=4)
    assert got == size
    with torch.inference_mode():
        assert model.eval()(torch.zeros(1, 3, size, size)).shape == (1, 4)
