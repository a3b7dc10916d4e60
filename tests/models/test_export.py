"""A run's folder as timm opens it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data import create_transform, resolve_data_config
from torch import nn

from in21k.models import create_model, save_weights, timm_config

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


@pytest.mark.parametrize(("normalize", "mean", "std"), [("unit", 0.0, 1.0), ("imagenet", 0.485, 0.229)])
def test_the_folder_says_how_images_are_prepared_and_what_the_outputs_are(
    tmp_path: Path, normalize: str, mean: float, std: float
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
