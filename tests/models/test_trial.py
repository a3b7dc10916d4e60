"""Two images through a network before anything is written."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in21k.models import create_model
from in21k.models.trial import try_images

VIT = {"depth": 1, "embed_dim": 16, "num_heads": 1}


@pytest.mark.parametrize(
    ("name", "args", "size", "message"),
    [
        ("levit_128s", {}, 64, r"takes no images of 64 x 64 pixels \(.*\); give --set 'model_args={img_size: 64}'"),
        ("vit_tiny_patch16_224", VIT, 64, r"takes no images of 64 x 64 .*; give --set 'model_args={img_size: 64}'"),
        ("efficientformer_l1", {}, 64, r"takes no images of 64 x 64 .*; it takes 224 x 224 \(--set image_size=224\)"),
        ("maxvit_nano_rw_256", {}, 33, r".* of 33 x 33 .*; it takes 256 x 256, 512 x 512 \(--set image_size=256\)"),
        ("inception_v4", {}, 64, r".*; it takes 96 x 96, 128 x 128, 160 x 160, 192 x 192 \(--set image_size=96\)"),
        (
            "resnet10t",
            {"features_only": True},
            64,
            r"gives a list for 2 .* wanted logits \(2, 5\); .*features_only",
        ),
        ("vit_tiny_patch16_224", VIT | {"global_pool": ""}, 224, r"gives \(2, 197, 5\) for 2 images; .* global_pool"),
    ],
)
def test_a_network_that_takes_no_such_images_is_refused_in_one_line(
    name: str, args: dict[str, Any], size: int, message: str
) -> None:
    network = create_model(name, num_classes=5, **args)
    with pytest.raises(ValueError, match=rf"{name}: {message}") as refusal:
        try_images(network, size, name=name, num_outputs=5, option="--set image_size=", rebuilds=True)
    assert "\n" not in str(refusal.value)


def test_a_network_that_is_trained_already_is_not_advised_to_be_built_anew() -> None:
    network = create_model("vit_tiny_patch16_224", num_classes=5, **VIT)
    with pytest.raises(ValueError, match=r"it takes 224 x 224$"):
        try_images(network, 64, name="run/", num_outputs=5)


class Restless(nn.Module):
    """Draws numbers, and counts its calls in buffers, whatever its mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("last", torch.zeros(1), persistent=False)
        self.layers[1].eval()  # as of a frozen norm in a network that trains

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        self.last = torch.rand(2)
        return self.layers(images) + torch.rand(1)


@pytest.mark.parametrize("fails", [False, True])
def test_nothing_of_the_network_or_the_random_state_changes(fails: bool) -> None:
    network = Restless()
    modes = [module.training for module in network.modules()]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    state = torch.random.get_rng_state()
    if fails:
        with pytest.raises(ValueError, match="of 1 x 1 pixels"):
            try_images(network, 1, name="restless")
    else:
        assert try_images(network, 8, name="restless").num_outputs == 4
    assert torch.equal(torch.random.get_rng_state(), state)
    assert [module.training for module in network.modules()] == modes
    assert {name: buffer.tolist() for name, buffer in network.named_buffers()} == {
        name: buffer.tolist() for name, buffer in buffers.items()
    }
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(parameter.grad is None for parameter in network.parameters())


def test_what_a_network_keeps_for_evaluation_is_gone_when_it_trains() -> None:
    network = create_model("levit_128s", num_classes=3)
    images = torch.zeros(2, 3, 224, 224)
    try_images(network, 224, name="levit_128s")
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.mul_(1.1)
        kept = network.eval()(images)
        fresh = network.train().eval()(images)
    assert torch.equal(kept, fresh)


@pytest.mark.parametrize(
    ("make", "size", "fewest"),
    [
        (lambda: create_model("resnet10t", num_classes=3), 32, 1),
        (lambda: create_model("resnet10t", num_classes=3), 64, 4),
        (lambda: create_model("vit_tiny_patch16_224", num_classes=3, **VIT), 224, None),
    ],
)
def test_the_values_that_a_batch_norm_sees_in_an_image_are_counted(
    make: Callable[[], nn.Module], size: int, fewest: int | None
) -> None:
    trial = try_images(make(), size, name="network")
    assert (trial.norm and trial.norm[1]) == fewest


def test_a_batch_of_one_image_is_refused_exactly_where_torch_cannot_train_on_it() -> None:
    for size in (32, 64):
        network = create_model("resnet10t", num_classes=3)
        trial = try_images(network, size, name="resnet10t")
        if size == 32:
            with pytest.raises(ValueError, match=r"batch_size is 1, .* batch norm layer4\..*; give --set batch_size=2"):
                trial.check_batch(1)
            with pytest.raises(ValueError, match="more than 1 value per channel"):
                network.train()(torch.zeros(1, 3, size, size))
        else:
            trial.check_batch(1)
            network.train()(torch.zeros(1, 3, size, size))
        trial.check_batch(2)


def test_a_lack_of_memory_is_not_blamed_on_the_network() -> None:
    class Hungry(nn.Module):
        def forward(self, _: Tensor) -> Tensor:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    with pytest.raises(RuntimeError, match="can't allocate memory"):
        try_images(Hungry(), 8, name="hungry")
