"""What a run begins with: another run, a checkpoint of one, a file, a model that timm opens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from in21k.models import create_model, save_weights
from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, create_network, load_run, open_start, train

OTHERS = ["n3", "n9", "n0"]  # two of the small tree's classes, and one that it does not know


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with a moving average."""
    from .conftest import MemoryLoader, small_data, small_tree

    path = tmp_path_factory.mktemp("start") / "run"
    settings = TrainSettings(
        model="resnet10t", model_args={"drop_rate": 0.1}, normalize="imagenet", image_size=16, batch_size=48, ema=0.5
    )
    train(
        model=create_model("resnet10t", num_classes=6, drop_rate=0.1),
        loader=MemoryLoader(*small_data(), batch_size=48),
        val_loader=None,
        tree=small_tree(),
        settings=replace(settings, epochs=1, max_steps=1),
        folder=path,
    )
    return path


def test_a_run_brings_its_model_and_its_average(finished: Path) -> None:
    start = open_start(str(finished))
    assert start.settings == {"model": "resnet10t", "model_args": {"drop_rate": 0.1}, "normalize": "imagenet"}
    settings = TrainSettings(init=str(finished), **start.settings)
    network = create_network(settings, OTHERS, start)
    averaged = load_run(finished, "ema").model.state_dict()
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, averaged[name]), name
    assert network.get_parameter("fc.weight").shape == (3, 512)


def test_a_sliced_head_has_the_runs_rows_of_the_same_classes(finished: Path, tree: SemanticTree) -> None:
    start = open_start(str(finished / "checkpoints" / "last.pt"))
    settings = TrainSettings(init_head="slice", **start.settings)
    rows = create_network(settings, OTHERS, start).get_parameter("fc.weight")
    own = load_run(finished, "ema").model.get_parameter("fc.weight")
    assert torch.equal(rows[0], own[tree.wnids.index("n3")])
    assert torch.equal(rows[2], own[tree.wnids.index("n0")])
    assert not any(torch.equal(rows[1], row) for row in own)


def test_a_file_brings_weights_alone(tmp_path: Path) -> None:
    donor = create_model("resnet10t", num_classes=7)
    save_weights(donor, tmp_path / "weights.safetensors")
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        start = open_start(str(tmp_path / name))
        assert start.settings == {}
        network = create_network(TrainSettings(model="resnet10t"), OTHERS, start)
        assert torch.equal(network.get_parameter("conv1.0.weight"), donor.get_parameter("conv1.0.weight"))


def test_a_folder_that_timm_opens_brings_its_architecture(finished: Path) -> None:
    start = open_start(f"local-dir:{finished}")
    assert start.settings == {"model": "resnet10t", "normalize": "imagenet"}
    network = create_network(TrainSettings(model="resnet10t"), OTHERS, start)
    own = load_run(finished).model
    assert torch.equal(network.get_parameter("conv1.0.weight"), own.get_parameter("conv1.0.weight"))


def test_without_a_start_weights_are_random() -> None:
    torch.manual_seed(0)
    first = create_network(TrainSettings(model="resnet10t", init_head="slice"), OTHERS)
    torch.manual_seed(0)
    again = create_network(TrainSettings(model="resnet10t"), OTHERS)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "message"),
    [("nothing/here", "does not exist"), ("local-dir:/nothing/here", "timm cannot open it")],
)
def test_what_cannot_be_had_is_one_line(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as found:
        open_start(name)
    assert "\n" not in str(found.value)


def test_weights_of_another_architecture_are_refused(finished: Path) -> None:
    start: Any = open_start(str(finished))
    with pytest.raises(ValueError, match="none of its"):
        create_network(TrainSettings(model="vit_tiny_patch16_224"), OTHERS, start)
