"""Turns and their bookkeeping, and the search for the largest batch. No time is asserted."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from in21k.models import create_model, speed
from in21k.models.speed import (
    LATENCY_BATCHES,
    MOST,
    Contender,
    Precision,
    SpeedSettings,
    largest_that_fits,
    largest_training_batch,
    measure_speed,
)


def settings(**given: object) -> SpeedSettings:
    return SpeedSettings(**{"device": torch.device("cpu"), "image_size": 8, "batch_size": 4, **given})  # pyright: ignore


class Narrow(nn.Module):
    """A network that takes so many images at most."""

    def __init__(self, most: int = 64) -> None:
        super().__init__()
        self.most, self.seen = most, set[int]()
        self.layer = nn.Linear(3 * 8 * 8, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.seen.add(len(images))
        if len(images) > self.most:
            raise RuntimeError(f"{len(images)} images\nare too many")
        return self.layer(images.flatten(1))


def test_networks_have_their_turns_one_after_the_other() -> None:
    turns: list[str] = []
    contenders = {name: Contender(Narrow(), settings()) for name in ("a", "b")}
    actual, failed = measure_speed(contenders, rounds=3, seconds=0, on_turn=turns.append)
    assert turns == ["a", "b"] * 3
    assert failed == {}
    for rounds in actual.values():
        assert (len(rounds.training), len(rounds.inference)) == (3, 3)
        assert all(rate > 0 and math.isfinite(rate) for rate in (*rounds.training, *rounds.inference))
        assert {images: len(taken) for images, taken in rounds.latencies.items()} == dict.fromkeys(LATENCY_BATCHES, 3)
    assert {4, *LATENCY_BATCHES} >= contenders["a"].model.seen  # pyright: ignore[reportOperatorIssue]


def test_one_that_fails_is_named_and_the_others_go_on() -> None:
    contenders = {"narrow": Contender(Narrow(most=63), settings()), "wide": Contender(Narrow(), settings())}
    turns: list[str] = []
    actual, failed = measure_speed(contenders, rounds=2, seconds=0, on_turn=turns.append)
    assert failed == {"narrow": "RuntimeError: 64 images are too many"}
    assert list(actual) == ["wide"]
    assert turns == ["narrow", "wide", "wide"]


@pytest.mark.parametrize("precision", ["float32", "bf16", "fp16"])
def test_every_precision_trains_and_answers(precision: Precision) -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    before = model[0].weight.detach().clone()
    actual, failed = measure_speed(
        {"model": Contender(model, settings(precision=precision, channels_last=True))}, rounds=1, seconds=0
    )
    assert failed == {}
    assert actual["model"].training
    assert not torch.equal(model[0].weight, before)


@given(most_that_fit=st.integers(2, 3 * MOST))
def test_the_search_finds_the_largest_within_a_64th(most_that_fit: int) -> None:
    tried: list[int] = []

    def fits(number: int) -> bool:
        tried.append(number)
        return number <= most_that_fit

    actual = largest_that_fits(fits)
    wanted = min(most_that_fit, MOST)
    assert wanted - wanted // 64 <= actual <= wanted
    assert len(tried) <= 24


def test_where_not_even_the_least_fits_it_is_0() -> None:
    assert largest_that_fits(lambda _: False) == 0


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_the_largest_batch_trains_on_the_gpu_and_twice_as_many_images_do_not() -> None:
    device = torch.device("cuda")
    total = torch.cuda.get_device_properties(device).total_memory
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        on_gpu = settings(device=device, image_size=64, precision="bf16")
        model = create_model("resnet18")
        largest = largest_training_batch(model, on_gpu)
        assert next(model.parameters()).device.type == "cpu"
        assert torch.cuda.memory_allocated() < 1e8
        contenders = {
            name: Contender(create_model("resnet18"), replace(on_gpu, batch_size=batch))
            for name, batch in (("less", 3 * largest // 4), ("twice", 2 * largest))
        }
        actual, failed = measure_speed(contenders, rounds=1, seconds=0)
        assert list(actual) == ["less"]
        assert failed["twice"].startswith("OutOfMemoryError")
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_batch_that_fits_leaves_room_for_the_copy_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "largest_training_batch", lambda *_: 100)
    settings = SpeedSettings(device=torch.device("cpu"), image_size=32, batch_size=256)
    fitted, sizes = speed.fit_batch(nn.Identity(), settings)
    assert (fitted.batch_size, sizes) == (75, {"largest_training_batch": 100})
    assert speed.fit_batch(nn.Identity(), settings, num_images=100)[0].batch_size == 100
    with pytest.raises(ValueError, match="at most 100 images of 32 pixels train on this GPU in float32, wanted 101"):
        speed.fit_batch(nn.Identity(), settings, num_images=101)
