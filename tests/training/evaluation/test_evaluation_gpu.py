"""What a trained network answers on a GPU (`pytest -m gpu`): what it answers on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from PIL import Image
from torch import nn

from in21k.training import Classifier, extract_features
from in21k.training.distributed import Ranks
from in21k.training.evaluation.measure import measure
from in21k.training.evaluation.multilabel import evaluate_labels
from in21k.training.evaluation.predictions import collect
from in21k.training.inference.heat_maps import heat_maps
from in21k.training.inference.open_model import OpenModel
from in21k.training.losses.multilabel import multi_hot

from ..conftest import small_data, small_model, small_tree

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"),
]
DEVICES = ("cpu", "cuda")


def opened() -> OpenModel:
    """A network of random weights, always the same, for the small tree."""
    torch.manual_seed(0)
    model = timm.create_model("resnet10t", num_classes=6).eval()
    words: dict[str, Any] = {"mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25), "image_size": 64, "crop_pct": None}
    return OpenModel(model=model, name="resnet10t", classes=None, tree=small_tree(), **words)


def batches(labels: torch.Tensor) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The small data in double precision, in which no two devices disagree about the likeliest class."""
    images = small_data()[0].double()
    return [(images[start : start + 20], labels[start : start + 20]) for start in range(0, len(labels), 20)]


def test_a_classifier_and_its_features(draw: Callable[..., Image.Image]) -> None:
    images = [draw(seed=seed) for seed in range(5)]
    items = [Classifier(opened(), device=device, batch_size=2, flip=True)(images) for device in DEVICES]
    for theirs, ours in zip(*items, strict=True):
        wanted = [row["probability"] for row in theirs["top5"]]
        assert [row["probability"] for row in ours["top5"]] == pytest.approx(wanted, abs=0.01)  # TF32
    theirs, ours = (extract_features(opened(), images, device=device, batch_size=2) for device in DEVICES)
    assert (ours.device.type, ours.dtype) == ("cpu", torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0.02, atol=0.02)


def test_a_validation_is_collected_and_measured() -> None:
    tree, labels = small_tree(), small_data()[1]
    rows = torch.arange(len(labels))
    theirs, ours = (
        collect(
            small_model().double().to(device),
            batches(rows),
            labels,
            tree,
            ranks=Ranks(device=torch.device(device)),
        )
        for device in DEVICES
    )
    assert ours.rows.device.type == ours.label_probabilities.device.type == "cpu"
    assert torch.equal(ours.rows, theirs.rows)
    assert torch.equal(ours.answers.top, theirs.answers.top)
    assert torch.equal(ours.answers.levels, theirs.answers.levels)
    torch.testing.assert_close(ours.label_probabilities, theirs.label_probabilities)
    actual, wanted = measure(ours, tree), measure(theirs, tree)
    assert actual.pop("calibration_error") == pytest.approx(wanted.pop("calibration_error"), abs=1e-3)
    assert actual == wanted


def test_the_mean_average_precision() -> None:
    tree = small_tree()
    table = multi_hot([[0, 3], [], [1], [2, 4, 5]], len(tree))
    sets = torch.arange(len(small_data()[1])) % 4
    theirs, ours = (
        evaluate_labels(
            small_model().double().to(device),
            batches(sets),
            tree,
            table=table.to(device),
            ranks=Ranks(device=torch.device(device)),
        )
        for device in DEVICES
    )
    for name in ("map", "map_chance", "cf1", "of1", "num_samples"):
        assert ours[name] == pytest.approx(theirs[name])


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224"])
def test_heat_maps(name: str) -> None:
    torch.manual_seed(0)
    model: nn.Module = timm.create_model(name, num_classes=6, **({"img_size": 64} if "vit" in name else {})).double()
    images = torch.rand(3, 3, 64, 64, dtype=torch.float64)
    theirs, ours = (heat_maps(model.to(device), images.to(device)) for device in DEVICES)
    assert ours.kind == theirs.kind
    assert torch.equal(ours.answers, theirs.answers)
    assert ours.maps.device.type == "cpu"
    torch.testing.assert_close(ours.maps, theirs.maps, rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(ours.probabilities, theirs.probabilities)
