"""What a run begins with: another run, a checkpoint of one, a file, a model that timm opens."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from in21k.models import create_model
from in21k.models.export import save_weights, timm_config
from in21k.shards.tree import SemanticTree
from in21k.training import TrainSettings, load_run, open_model, train_model
from in21k.training.init_weights import create_network, load_init
from in21k.training.runs.saved_run import Weights

OTHERS = ["n3", "n9", "n0"]  # two of the small tree's classes, and one that it does not know


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one step, with a moving average."""
    from .conftest import MemoryLoader, small_data, small_tree

    path = tmp_path_factory.mktemp("start") / "run"
    settings = TrainSettings(
        model="resnet10t", model_args={"drop_rate": 0.1}, normalize="imagenet", image_size=16, batch_size=48, ema=0.5
    )
    train_model(
        model=create_model("resnet10t", num_classes=6, drop_rate=0.1),
        loader=MemoryLoader(*small_data(), batch_size=48),
        val_loader=None,
        tree=small_tree(),
        settings=replace(settings, epochs=1, max_steps=1),
        folder=path,
    )
    return path


def test_a_run_brings_its_model_and_its_average(finished: Path) -> None:
    init = load_init(str(finished))
    assert init.settings == {"model": "resnet10t", "model_args": {"drop_rate": 0.1}, "normalize": "imagenet"}
    settings = TrainSettings(init=str(finished), **init.settings)
    network = create_network(settings, OTHERS, init)
    averaged = load_run(finished, "ema").model.state_dict()
    for name, tensor in network.state_dict().items():
        if not name.startswith("fc."):
            assert torch.equal(tensor, averaged[name]), name
    assert network.get_parameter("fc.weight").shape == (3, 512)


def test_a_sliced_head_has_the_runs_rows_of_the_same_classes(finished: Path, tree: SemanticTree) -> None:
    init = load_init(str(finished / "checkpoints" / "last.pt"))
    settings = TrainSettings(init_head="slice", **init.settings)
    rows = create_network(settings, OTHERS, init).get_parameter("fc.weight")
    own = load_run(finished, "ema").model.get_parameter("fc.weight")
    assert torch.equal(rows[0], own[tree.wnids.index("n3")])
    assert torch.equal(rows[2], own[tree.wnids.index("n0")])
    assert not any(torch.equal(rows[1], row) for row in own)


@pytest.mark.parametrize(("name", "weights"), [("model", "last"), ("model_ema", "ema")])
def test_a_runs_file_of_weights_brings_its_model(name: str, weights: Weights, finished: Path) -> None:
    init = load_init(str(finished / f"{name}.safetensors"))
    assert init.settings["model"] == "resnet10t"
    assert init.opened
    own = load_run(finished, weights).model.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in init.opened.model.state_dict().items())


def test_a_head_of_other_classes_begins_anew_though_they_are_as_many(finished: Path, tree: SemanticTree) -> None:
    init = load_init(str(finished))
    own = load_run(finished, "ema").model.get_parameter("fc.weight")
    same, others = tree.wnids, [f"c{number}" for number in range(len(tree))]
    for wnids, is_kept in ((same, True), (others, False), (same[::-1], False)):
        network = create_network(TrainSettings(**init.settings), wnids, init)
        assert torch.equal(network.get_parameter("fc.weight"), own) is is_kept
        assert torch.equal(network.get_parameter("conv1.0.weight"), init.opened.model.get_parameter("conv1.0.weight"))


def test_a_head_whose_classes_nobody_knows_begins_anew(tmp_path: Path) -> None:
    donor = create_model("resnet10t", num_classes=3)
    config = timm_config(
        donor,
        architecture="resnet10t",
        model_args={},
        image_size=16,
        crop_pct=None,
        normalize="unit",
        wnids=OTHERS,
        names=OTHERS,
    )
    del config["pretrained_cfg"]["label_names"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(donor, tmp_path / "model.safetensors")
    init = load_init(f"local-dir:{tmp_path}")
    assert init.opened
    assert init.opened.classes is None
    network = create_network(TrainSettings(model="resnet10t"), OTHERS, init)
    assert not torch.equal(network.get_parameter("fc.weight"), donor.get_parameter("fc.weight"))
    assert torch.equal(network.get_parameter("conv1.0.weight"), donor.get_parameter("conv1.0.weight"))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_begin_nothing_and_answer_nothing(
    value: float, finished: Path, tmp_path: Path
) -> None:
    broken = shutil.copytree(finished, tmp_path / "run")
    tensors = load_file(broken / "model_ema.safetensors")
    tensors["fc.bias"][1] = value
    for name in ("model", "model_ema"):
        save_file(tensors, broken / f"{name}.safetensors")
    for refused in (
        lambda: load_init(str(broken)),
        lambda: load_run(broken),
        lambda: open_model(f"local-dir:{broken}"),
        lambda: create_network(TrainSettings(model="resnet10t"), OTHERS, load_init(str(broken / "model.safetensors"))),
    ):
        with pytest.raises(ValueError, match=r"fc\.bias holds numbers that are not finite"):
            refused()


def test_a_file_brings_weights_alone(tmp_path: Path) -> None:
    donor = create_model("resnet10t", num_classes=7)
    save_weights(donor, tmp_path / "weights.safetensors")
    torch.save(donor.state_dict(), tmp_path / "weights.pth")
    for name in ("weights.safetensors", "weights.pth"):
        init = load_init(str(tmp_path / name))
        assert init.settings == {}
        network = create_network(TrainSettings(model="resnet10t"), OTHERS, init)
        assert torch.equal(network.get_parameter("conv1.0.weight"), donor.get_parameter("conv1.0.weight"))


def test_a_folder_that_timm_opens_brings_its_architecture(finished: Path) -> None:
    init = load_init(f"local-dir:{finished}")
    assert init.settings == {"model": "resnet10t", "normalize": "imagenet"}
    network = create_network(TrainSettings(model="resnet10t"), OTHERS, init)
    own = load_run(finished).model
    assert torch.equal(network.get_parameter("conv1.0.weight"), own.get_parameter("conv1.0.weight"))


def test_weights_of_another_normalisation_say_what_happens_and_how_to_take_theirs(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    donor = create_model("resnet10t", num_classes=3)
    described: dict[str, Any] = {"architecture": "resnet10t", "model_args": {}, "image_size": 16, "crop_pct": None}
    config = timm_config(donor, **described, normalize=[0.5, [0.5, 0.5, 0.4]], wnids=OTHERS, names=OTHERS)
    (tmp_path / "config.json").write_text(json.dumps(config))
    save_weights(donor, tmp_path / "model.safetensors")
    init = load_init(str(tmp_path))
    create_network(TrainSettings(model="resnet10t"), OTHERS, init)
    assert (
        "these weights were trained with normalize [0.5, [0.5, 0.5, 0.4]], and this run trains with unit; "
        "give --set 'normalize=[0.5, [0.5, 0.5, 0.4]]' to train as they were"
    ) in caplog.text
    caplog.clear()
    create_network(TrainSettings(**init.settings), OTHERS, init)
    assert "these weights were trained" not in caplog.text


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
    with pytest.raises(ValueError, match=message) as actual:
        load_init(name)
    assert "\n" not in str(actual.value)


def test_weights_of_another_architecture_are_refused(finished: Path) -> None:
    init: Any = load_init(str(finished))
    with pytest.raises(ValueError, match=r"hardly fits vit_tiny_patch16_224: .*; these are weights of resnet10t"):
        create_network(TrainSettings(model="vit_tiny_patch16_224"), OTHERS, init)


def test_weights_that_hardly_fit_begin_a_run_only_where_asked(tmp_path: Path) -> None:
    deeper = create_model("resnet14t", num_classes=3)
    save_weights(deeper, tmp_path / "weights.safetensors")
    init = load_init(str(tmp_path / "weights.safetensors"))
    with pytest.raises(ValueError, match=r"these are weights of resnet14t \(--set model=resnet14t\)"):
        create_network(TrainSettings(model="resnet10t"), OTHERS, init)
    network = create_network(TrainSettings(model="resnet10t", init_partial=True), OTHERS, init)
    assert torch.equal(network.get_parameter("conv1.0.weight"), deeper.get_parameter("conv1.0.weight"))
