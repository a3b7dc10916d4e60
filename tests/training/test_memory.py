"""The estimate of a step's memory, against sizes counted by hand."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from in21k.training import TrainSettings
from in21k.training.memory import estimate_memory

SIZE, BATCH = 4, 6
INPUTS = 3 * SIZE * SIZE


def network() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(INPUTS, 8), nn.ReLU(), nn.BatchNorm1d(8), nn.Linear(8, 2))


def estimate(model: nn.Module, **changes: Any) -> dict[str, int]:
    return estimate_memory(model, TrainSettings(image_size=SIZE, batch_size=BATCH, **{"amp": "off", **changes}))


def test_every_part_is_what_its_tensors_take() -> None:
    model = network()
    actual = estimate(model, optimizer="adam", ema=0.9)
    num_trained = (INPUTS * 8 + 8) + (8 + 8) + (8 * 2 + 2)
    weights = num_trained * 4 + (8 + 8) * 4 + 8  # running statistics, and an int64 count of batches
    steps = 6 * 4  # Adam counts the steps of each tensor
    assert actual["weights"] == actual["ema"] == weights
    assert actual["gradients"] == num_trained * 4
    assert actual["optimizer"] == 2 * num_trained * 4 + steps
    assert actual["images"] == BATCH * INPUTS * 4
    # What ReLU and batch norm hand on, eight numbers each, and batch norm's mean and deviation.
    assert actual["activations"] == BATCH * (8 + 8) * 4 + 2 * 8 * 4
    assert actual["total"] == sum(size for name, size in actual.items() if name != "total")


@pytest.mark.parametrize("name", ["resnet10t", "mobilenetv3_small_050"])
def test_activations_are_what_a_real_forward_pass_keeps(name: str) -> None:
    model = timm.create_model(name, num_classes=3).train()
    settings = TrainSettings(image_size=48, batch_size=4, amp="off", model=name)
    actual = estimate_memory(model, settings)["activations"]
    saved: list[Tensor] = []

    def note(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    images = torch.rand(4, 3, 48, 48)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = model(images)
    sizes = {item.untyped_storage().data_ptr(): item.untyped_storage().nbytes() for item in saved}
    for parameter in (*model.parameters(), *model.buffers(), images):
        sizes.pop(parameter.untyped_storage().data_ptr(), None)
    assert actual == sum(sizes.values())
    assert output.shape == (4, 3)


def test_images_of_any_size_are_counted_without_being_there() -> None:
    """A batch of these would take 137 GB."""
    model = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), nn.ReLU())
    settings = TrainSettings(image_size=8192, batch_size=8, amp="off")
    assert estimate_memory(model, settings)["activations"] == 8 * 64 * 8192**2 * 4


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 1), ("lion", 1), ("adan", 4)])
def test_each_optimizer_keeps_its_own(optimizer: str, copies: int) -> None:
    actual = estimate(network(), optimizer=optimizer)
    assert copies * actual["gradients"] <= actual["optimizer"] <= copies * actual["gradients"] + 6 * 8


def test_an_optimizer_that_cannot_be_counted_is_left_out_and_not_guessed() -> None:
    assert "optimizer" not in estimate(network(), optimizer="adamp")


def test_activations_that_depend_on_the_images_values_are_left_out_and_not_guessed() -> None:
    class Choosy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = network()

        def forward(self, images: Tensor) -> Tensor:
            return self.body(images if images.sum() > 0 else -images)

    actual = estimate(Choosy())
    assert "activations" not in actual
    assert actual["gradients"] == estimate(network())["gradients"]


def test_a_teacher_counts_with_its_weights() -> None:
    teacher = nn.Linear(10, 10)
    settings = TrainSettings(image_size=SIZE, batch_size=BATCH, amp="off")
    assert estimate_memory(network(), settings, teacher)["teacher"] == 110 * 4


def test_frozen_tensors_have_no_gradient() -> None:
    model = network()
    model[1].requires_grad_(False)
    assert estimate(model)["gradients"] == (16 + 18) * 4


def test_half_precision_and_checkpointing_save_activations() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=3, img_size=32)
    settings = TrainSettings(image_size=32, batch_size=256, amp="off")

    def activations(**changes: Any) -> int:
        return estimate_memory(model, TrainSettings(**{**vars(settings), **changes}))["activations"]

    assert activations(amp="bf16") < 0.7 * activations()
    assert activations(grad_checkpointing=True) < 0.3 * activations()
    with pytest.raises(ValueError, match="knows no grad_checkpointing"):
        estimate(network(), grad_checkpointing=True)


def test_nothing_of_the_model_or_the_random_state_changes() -> None:
    model = nn.Sequential(network(), nn.Dropout(0.5)).eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    state = torch.random.get_rng_state()
    estimate(model)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert not model.training
    assert all(parameter.grad is None for parameter in model.parameters())
