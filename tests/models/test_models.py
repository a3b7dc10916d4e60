"""Networks by name, weights in and out."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import timm
import torch
from timm.data import resolve_data_config
from torch import nn

from in21k.models import (
    check_image_size,
    create_model,
    list_models,
    load_weights,
    save_weights,
    timm_config,
)


@pytest.fixture
def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))


def other_weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


def test_a_model_has_as_many_outputs_as_asked_for() -> None:
    model = create_model("resnet10t", num_classes=7).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet51'; nearest: .*resnet50.*timm.list_models"):
        create_model("resnet51")
    with pytest.raises(ValueError, match="unknown model"):
        create_model("hf-hub:someone/model")


def test_arguments_that_the_architecture_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be built with windows=3"):
        create_model("resnet10t", windows=3)
    with pytest.raises(ValueError, match="pretrained=True; give the weights as `checkpoint`"):
        create_model("resnet10t", pretrained=True)


def test_models_are_listed_by_pattern_or_part() -> None:
    assert "resnet50" in list_models()
    assert list_models("resnet1?") == ["resnet18"]
    assert set(list_models("resnet")) > set(list_models("resnet*"))
    assert list_models("no such model") == []


def test_a_transformer_of_another_image_size_is_refused_with_the_way_out() -> None:
    args = {"depth": 1, "embed_dim": 8, "num_heads": 1, "num_classes": 3}
    with pytest.raises(ValueError, match=r"224 x 224 pixels, got 64 x 64; .*img_size: 64"):
        check_image_size(create_model("vit_tiny_patch16_224", **args), 64)
    check_image_size(create_model("vit_tiny_patch16_224", img_size=64, **args), 64)
    check_image_size(create_model("resnet10t"), 64)


@pytest.mark.parametrize("wrapping", ["plain", "module", "state_dict", "model", "safetensors"])
def test_weights_load_from_each_kind_of_file(small: nn.Module, tmp_path: Path, wrapping: str) -> None:
    weights = other_weights(small)
    path = tmp_path / ("weights.safetensors" if wrapping == "safetensors" else "weights.pth")
    if wrapping == "safetensors":
        safetensors.torch.save_file(weights, path)
    else:
        prefixed = {f"module.{name}": tensor for name, tensor in weights.items()}
        kinds = {
            "plain": weights,
            "module": prefixed,
            "state_dict": {"state_dict": prefixed, "epoch": 3},
            "model": {"model": weights, "step": 1},
        }
        torch.save(kinds[wrapping], path)
    report = load_weights(small, path)
    assert report.complete
    assert str(report) == f"{path.name}: 4 tensors fitted"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in small.state_dict().items())


def test_a_head_of_another_shape_is_dropped_and_reported(small: nn.Module, tmp_path: Path) -> None:
    weights = other_weights(small)
    weights |= {"2.weight": torch.zeros(9, 3), "extra": torch.zeros(1)}
    del weights["0.bias"]
    torch.save(weights, tmp_path / "w.pt")
    head = small[2].weight.clone()  # type: ignore[operator]
    report = load_weights(small, tmp_path / "w.pt")
    assert report.fitted == ("0.weight", "2.bias")
    assert report.missing == ("0.bias",)
    assert report.dropped == ("2.weight: (9, 3) for (4, 3)",)
    assert report.unused == ("extra",)
    assert not report.complete
    assert "2 tensors fitted; 1 missing: 0.bias; 1 dropped (another shape): 2.weight" in str(report)
    assert torch.equal(small[2].weight, head)  # type: ignore[arg-type]


def test_creating_a_model_with_weights_says_what_fitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_weights(create_model("resnet10t", num_classes=5), tmp_path / "w.safetensors")
    with caplog.at_level("INFO"):
        create_model("resnet10t", num_classes=5, checkpoint=tmp_path / "w.safetensors")
        create_model("resnet10t", num_classes=6, checkpoint=tmp_path / "w.safetensors")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING"]
    assert "2 dropped (another shape): fc.weight: (5, 512) for (6, 512)" in caplog.text


def test_weights_of_which_nothing_fits_are_refused(small: nn.Module, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"none of its 1 tensors fits the model \(a against 0.weight"):
        load_weights(small, tmp_path / "w.pt")


@pytest.mark.parametrize("name", ["missing.pt", "torn.pt", "torn.safetensors", "empty.pt", "number.pt", "folder.pt"])
def test_what_holds_no_weights_is_refused_in_one_line(small: nn.Module, tmp_path: Path, name: str) -> None:
    (tmp_path / "torn.pt").write_bytes(b"PK\x03\x04")
    (tmp_path / "torn.safetensors").write_bytes(b"\x10\x00\x00")
    torch.save({}, tmp_path / "empty.pt")
    torch.save(3, tmp_path / "number.pt")
    (tmp_path / "folder.pt").mkdir()
    with pytest.raises(ValueError, match=name) as refusal:
        load_weights(small, tmp_path / name)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("normalize", "mean", "std"), [("unit", 0.0, 1.0), ("imagenet", 0.485, 0.229)])
def test_timm_opens_the_folder_and_gives_the_same_logits(
    tmp_path: Path, normalize: str, mean: float, std: float
) -> None:
    wnids, names = ["n01440764", "n02102040", "n03000684"], ["tench", "springer", "chain saw"]
    model_args = {"drop_rate": 0.1}
    model = create_model("resnet10t", num_classes=3, **model_args).eval()
    save_weights(model, tmp_path / "model.safetensors")
    config = timm_config(
        model,
        architecture="resnet10t",
        model_args=model_args,
        image_size=64,
        normalize=normalize,
        wnids=wnids,
        names=names,
    )
    (tmp_path / "config.json").write_text(json.dumps(config))

    opened = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(opened(images), model(images))
    data = resolve_data_config({}, model=opened)
    assert data["input_size"] == [3, 64, 64]
    assert (data["interpolation"], data["crop_pct"], data["crop_mode"]) == ("bilinear", 1.0, "squash")
    assert (data["mean"][0], data["std"][0]) == (mean, std)
    assert opened.pretrained_cfg["label_names"] == wnids
    assert opened.pretrained_cfg["label_descriptions"]["n02102040"] == "springer"
    # Another head: timm drops ours.
    assert timm.create_model(f"local-dir:{tmp_path}", pretrained=True, num_classes=5)(images).shape == (2, 5)
