"""A run's folder as timm opens it, ONNX files, means of weights."""

from __future__ import annotations

import copy
import json
import subprocess
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from timm.data import create_transform, resolve_data_config
from torch import nn

from in21k.models import create_model
from in21k.models.average import average_weights
from in21k.models.export import save_weights, timm_config, weights_fingerprint, write_checksums
from in21k.models.onnx_file import TOLERANCE, export_onnx

WNIDS, NAMES = ["n01440764", "n02102040", "n03000684"], ["tench", "springer", "chain saw"]


def export(model: nn.Module, folder: Path, architecture: str, **settings: Any) -> None:
    save_weights(model, folder / "model.safetensors")
    config = timm_config(
        model,
        **{
            "architecture": architecture,
            "model_args": {},
            "image_size": 64,
            "crop_pct": None,
            "normalize": "unit",
            "wnids": WNIDS,
            "names": NAMES,
            **settings,
        },
    )
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("architecture", "model_args"),
    [
        ("resnet10t", {"drop_rate": 0.1}),
        ("vit_tiny_patch16_224.augreg_in21k", {"img_size": 64, "depth": 2, "drop_path_rate": 0.1}),
        ("ofa_flops_595m_s", {}),
        ("deit_tiny_distilled_patch16_224", {"img_size": 64, "depth": 1}),
    ],
)
def test_timm_opens_the_folder_and_gives_the_same_logits(
    tmp_path: Path, architecture: str, model_args: dict[str, Any]
) -> None:
    model = create_model(architecture, num_classes=3, **model_args)
    model(torch.rand(4, 3, 64, 64))  # moves the statistics of batch norms
    model.eval()
    export(model, tmp_path, architecture, model_args=model_args)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(opened(images), model(images))
    assert resolve_data_config({}, model=opened)["input_size"][1:] in ([64, 64], (64, 64))
    # Another head: timm drops ours.
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5).eval()(images).shape == (2, 5)


@pytest.mark.parametrize(
    ("normalize", "mean", "std"), [("unit", 0.0, 1.0), ("imagenet", 0.485, 0.229), ([0.5, 0.25], 0.5, 0.25)]
)
def test_the_folder_says_how_images_are_prepared_and_what_the_outputs_are(
    tmp_path: Path, normalize: Any, mean: float, std: float
) -> None:
    export(create_model("resnet10t", num_classes=3), tmp_path, "resnet10t", normalize=normalize)
    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True)
    data = resolve_data_config({}, model=opened)
    assert (data["interpolation"], data["crop_pct"], data["crop_mode"]) == ("bilinear", 1.0, "squash")
    assert (data["mean"][0], data["std"][0]) == (mean, std)
    assert opened.pretrained_cfg["label_names"] == WNIDS
    assert opened.pretrained_cfg["label_descriptions"]["n02102040"] == "springer"


def test_timm_crops_the_middle_where_the_run_did(tmp_path: Path) -> None:
    export(create_model("resnet10t", num_classes=3), tmp_path, "resnet10t", crop_pct=0.875, image_size=56)
    data = resolve_data_config({}, model=timm.create_model(f"local-dir:{tmp_path}", pretrained=True))
    assert (data["crop_pct"], data["crop_mode"], data["input_size"][1:]) == (0.875, "center", [56, 56])
    resize, crop, *_ = create_transform(**data, is_training=False).transforms
    assert (resize.size, tuple(crop.size)) == (64, (56, 56))


def test_a_pretrained_tag_is_no_part_of_the_architecture(tmp_path: Path) -> None:
    model = create_model("resnet50.a1_in1k", num_classes=3)
    config = timm_config(
        model,
        architecture="resnet50.a1_in1k",
        model_args={},
        image_size=64,
        crop_pct=None,
        normalize="unit",
        wnids=WNIDS,
        names=NAMES,
    )
    assert config["architecture"] == "resnet50"
    assert (config["pretrained_cfg"]["first_conv"], config["pretrained_cfg"]["classifier"]) == ("conv1", "fc")


def test_a_fingerprint_is_of_names_and_values() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    before = weights_fingerprint(model)
    assert weights_fingerprint(copy.deepcopy(model)) == before
    assert weights_fingerprint(nn.Sequential(OrderedDict(a=model[0], b=model[1]))) != before
    with torch.no_grad():
        model[1].running_mean[1] += 1e-6  # pyright: ignore
    assert weights_fingerprint(model) != before


def test_checksums_are_those_that_sha256sum_reads(tmp_path: Path) -> None:
    (tmp_path / "b.bin").write_bytes(b"two")
    (tmp_path / "a.bin").write_bytes(b"one")
    write_checksums(tmp_path)
    write_checksums(tmp_path)  # its own file is none of them
    check = subprocess.run(["sha256sum", "-c", "SHA256SUMS"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert check.stdout.split() == ["a.bin:", "OK", "b.bin:", "OK"]


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=3, max_size=3), min_size=1, max_size=5))
def test_an_average_is_the_mean_and_counts_are_the_lasts(rows: list[list[float]]) -> None:
    states = [
        {"w": torch.tensor(row), "half": torch.tensor(row).bfloat16(), "n": torch.tensor(i)}
        for i, row in enumerate(rows)
    ]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    mean = average_weights(iter(states))
    assert torch.allclose(mean["w"], torch.tensor(np.mean(rows, axis=0), dtype=torch.float32), atol=1e-4)
    assert mean["half"].dtype == torch.bfloat16
    assert int(mean["n"]) == len(rows) - 1
    assert all(torch.equal(old[name], state[name]) for old, state in zip(before, states, strict=True) for name in old)


@pytest.mark.parametrize(
    "other", [{"w": torch.zeros(2)}, {"v": torch.zeros(3)}, {"w": torch.zeros(3), "v": torch.zeros(1)}]
)
def test_networks_of_other_tensors_are_not_averaged(other: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ValueError, match="one architecture"):
        average_weights([{"w": torch.zeros(3)}, other])


def test_nothing_cannot_be_averaged() -> None:
    with pytest.raises(ValueError, match="at least one"):
        average_weights([])


class Noisy(nn.Module):
    """A network that never answers twice alike."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) + torch.rand(images.shape[0], 3)


class Branching(nn.Module):
    """A network whose graph depends on the values of its images, which ONNX cannot hold."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) if float(images.sum()) > 0 else images.amax((2, 3))


class Small(nn.Module):
    """A network of few weights."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.layer(images.mean((2, 3)))


@pytest.mark.parametrize(("network", "message"), [(Noisy, "from the network's"), (Branching, "cannot write")])
def test_a_network_that_onnx_does_not_hold_is_refused(network: type[nn.Module], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        export_onnx(network(), tmp_path / "model.onnx", 8)


def test_a_large_network_has_its_weights_beside_the_file(tmp_path: Path) -> None:
    check = export_onnx(Small(), tmp_path / "model.onnx", 8, largest_single_file=10)
    assert {path.name for path in tmp_path.iterdir()} == {"model.onnx", "model.onnx.data"}
    assert check.largest_difference <= TOLERANCE * check.largest_logit
