"""Folders that timm would open: only weights are read from them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from in21k.models import create_model
from in21k.models.export import save_weights, timm_config
from in21k.training import open_model
from in21k.training.inference.open_model import OpenModel

pytestmark = pytest.mark.security

CLASSES = ["ant", "bee", "cat"]


class Harmful:
    """Unpickling it makes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.path,)


@pytest.fixture
def network() -> nn.Module:
    return create_model("resnet10t", num_classes=3)


@pytest.fixture
def folder(network: nn.Module, tmp_path: Path) -> Path:
    """A model's folder without weights."""
    sizes: dict[str, Any] = {"image_size": 32, "crop_pct": None, "normalize": "unit"}
    config = timm_config(network, architecture="resnet10t", model_args={}, wnids=CLASSES, names=CLASSES, **sizes)
    path = tmp_path / "model"
    path.mkdir()
    (path / "config.json").write_text(json.dumps(config))
    return path


def write_pickle(path: Path, content: object, how: str) -> None:
    if how == "torch":
        torch.save(content, path)
    elif how == "legacy":
        torch.save(content, path, _use_new_zipfile_serialization=False)
    else:
        path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    "name", ["pytorch_model.bin", "pytorch_model.pth", "model.pth", "weights.pth.tar", "other.bin"]
)
@pytest.mark.parametrize("how", ["torch", "legacy", "pickle"])
def test_a_pickle_in_a_models_folder_is_neither_run_nor_read(name: str, how: str, folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    write_pickle(folder / name, {"state_dict": Harmful(trace)}, how)
    for opened in (folder, f"local-dir:{folder}"):
        with pytest.raises(ValueError, match=rf"no model\.safetensors, but {name}, which may run code") as refusal:
            open_model(opened)
        assert "\n" not in str(refusal.value)
    assert not trace.exists()


def test_beside_weights_a_pickle_is_left_alone(folder: Path, network: nn.Module, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    save_weights(network, folder / "model.safetensors")
    for name in ("pytorch_model.bin", "model.pth"):
        write_pickle(folder / name, {"state_dict": Harmful(trace)}, "torch")
    opened = open_model(folder)
    assert not trace.exists()
    own: dict[str, Tensor] = opened.model.state_dict()
    assert all(torch.equal(tensor, own[key]) for key, tensor in network.state_dict().items())
    assert opened.classes
    assert (opened.classes.wnids, opened.image_size, opened.crop_pct) == (tuple(CLASSES), 32, None)


@pytest.mark.parametrize("change", ["lacks one", "another network's"])
def test_weights_that_are_not_the_networks_are_refused_in_one_line(
    change: str, folder: Path, network: nn.Module
) -> None:
    if change == "lacks one":
        del network.bn1
    else:
        network = create_model("resnet14t", num_classes=3)
    save_weights(network, folder / "model.safetensors")
    with pytest.raises(ValueError, match=r"model\.safetensors: its weights are not those of config\.json") as refusal:
        open_model(folder)
    assert "\n" not in str(refusal.value)


def test_a_folder_without_weights_is_one_line(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model\.safetensors, and nothing to take instead"):
        open_model(folder)


def test_normalizing_makes_its_constants_once_for_a_device() -> None:
    torch.manual_seed(0)
    words: dict[str, Any] = {"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "image_size": 8, "crop_pct": None}
    opened = OpenModel(model=torch.nn.Identity(), name="none", classes=None, **words)
    images = torch.randint(256, (2, 3, 8, 8), dtype=torch.uint8)
    with torch.inference_mode():
        normalized = opened.normalize(images)
    mean, std = (torch.tensor(words[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    assert torch.equal(normalized, images.float().div(255).sub(mean).div(std))
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], acc_events=True) as profiled:
        opened.normalize(images)
    operators = [event.name for event in profiled.events() or [] if event.name.startswith("aten::")]
    assert {"aten::div_", "aten::sub_"} <= set(operators)
    assert not {"aten::view", "aten::lift_fresh", "aten::empty"} & set(operators)  # what making them takes
