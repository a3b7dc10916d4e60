"""Any layer of a network gives one vector an image."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from in21k.models import create_model
from in21k.training.inference.layers import FeatureExtractor, list_layers

SIZES = {"resnet10t": 32, "vit_tiny_patch16_224": 224, "swin_tiny_patch4_window7_224": 224, "convnext_atto": 32}
SMALL = {
    "resnet10t": {},
    "vit_tiny_patch16_224": {"depth": 2, "embed_dim": 24},
    "swin_tiny_patch4_window7_224": {"depths": (1, 1, 1, 1), "embed_dim": 12},
    "convnext_atto": {"depths": (1, 1, 1, 1), "dims": (8, 12, 16, 20)},
}


def network(name: str) -> nn.Module:
    torch.manual_seed(0)
    return create_model(name, num_classes=5, **SMALL[name]).eval()


def features(model: nn.Module, images: Tensor, layer: str) -> Tensor:
    with torch.inference_mode():
        return FeatureExtractor(model, layer)(images)


@pytest.mark.parametrize("name", SIZES)
def test_the_default_is_what_the_classifier_takes(name: str) -> None:
    model = network(name)
    images = torch.rand(2, 3, SIZES[name], SIZES[name])
    seen: list[Tensor] = []
    hook = model.get_classifier().register_forward_hook(lambda *call: seen.append(call[1][0]))
    with torch.inference_mode():
        model(images)
    hook.remove()
    assert torch.allclose(features(model, images, "pre-logits"), seen[0].flatten(1), atol=1e-6)


@pytest.mark.parametrize("name", SIZES)
def test_every_listed_layer_can_be_had_with_the_width_that_the_list_says(name: str) -> None:
    model = network(name)
    layers = list_layers(model, SIZES[name])
    assert layers[-1].name == "pre-logits"
    images = torch.rand(2, 3, SIZES[name], SIZES[name])
    for layer in layers[:: max(1, len(layers) // 12)] + layers[-1:]:
        actual = features(model, images, layer.name)
        assert actual.shape == (2, layer.num_features)
        assert actual.isfinite().all()


def test_space_is_what_is_averaged_over() -> None:
    model = network("resnet10t")
    images = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        maps = model.layer1(model.maxpool(model.act1(model.bn1(model.conv1(images)))))
    assert torch.allclose(features(model, images, "layer1"), maps.mean((2, 3)), atol=1e-6)
    swin = network("swin_tiny_patch4_window7_224")
    layers = {layer.name: layer for layer in list_layers(swin, 224)}
    assert layers["layers.1"].shape == (28, 28, 24)  # its channels are last
    assert layers["layers.1"].num_features == 24
    vit = network("vit_tiny_patch16_224")
    images = torch.rand(1, 3, 224, 224)
    with torch.inference_mode():
        tokens = vit.forward_features(images)
    assert tokens.shape[1] == 197
    assert torch.allclose(features(vit, images, "norm"), tokens[:, 1:].mean(1), atol=1e-6)  # the first is of the class


def test_what_comes_next_does_not_write_over_a_layer() -> None:
    model = network("resnet10t")
    images = torch.rand(2, 3, 32, 32)
    assert features(model, images, "layer1.0.bn1").min() < 0  # the activation after it works in place


def test_a_layer_that_is_none_is_refused_with_near_ones() -> None:
    model = network("resnet10t")
    with pytest.raises(ValueError, match=r"no layer 'layer9'; near ones: layer"):
        FeatureExtractor(model, "layer9")
    swin = network("swin_tiny_patch4_window7_224")
    with pytest.raises(ValueError, match=r"\(128, 49, 12\) for 2 images"):  # it works on windows
        features(swin, torch.rand(2, 3, 224, 224), "layers.0.blocks.0.attn")
    model.add_module("idle", nn.Linear(2, 2))
    with pytest.raises(ValueError, match="idle is not used when the network answers"):
        features(model, torch.rand(1, 3, 32, 32), "idle")
    with pytest.raises(ValueError, match="is not a timm network"):
        FeatureExtractor(nn.Linear(2, 2))
