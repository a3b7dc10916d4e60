"""Weights that hardly fit a network are refused, and whose they are is said."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from in21k.models import create_model, load_weights
from in21k.models.export import save_weights
from in21k.models.fit import measure_fit, model_that_fits
from in21k.models.hollow import hollow
from in21k.models.weights import fit_weights

SMALL = {"depth": 2, "embed_dim": 16, "num_heads": 2, "num_classes": 3, "img_size": 32}


def hollow_model(name: str, num_classes: int = 11221) -> nn.Module:
    with hollow():
        return create_model(name, num_classes)


def weights_of(name: str, num_classes: int = 11221) -> dict[str, Tensor]:
    """Weights of a network's names and shapes, which take no memory."""
    own = hollow_model(name, num_classes).state_dict()
    return {key: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for key, tensor in own.items()}


@pytest.mark.parametrize(
    ("model", "weights", "problem"),
    [
        # Of the published zoo, whose words for these are `tresnet_l` and `vit_base_patch16_224`.
        ("tresnet_l", "tresnet_v2_l", r"fills \d+\.\d% of the network; wanted 90% or more \(\d+ tensors"),
        ("vit_base_patch16_224", "vit_base_patch16_224_miil", r"the network has blocks\.0\.attn\.qkv\.bias"),
        ("vit_base_patch16_224_miil", "vit_base_patch16_224", r"the file has blocks\.0\.attn\.qkv\.bias"),
        ("resnet50", "resnet101", r"only \d+\.\d% of its weights fit the network; wanted 90% .*, 306 unused\)"),
        ("resnet101", "resnet50", r"fills \d+\.\d% of the network; wanted 90%"),
        ("efficientnet_b1", "efficientnet_b0", r"fills \d+\.\d% of the network"),
        (
            "vit_small_patch16_224",
            "vit_tiny_patch16_224",
            r"fills 0\.0% of the network; wanted 90% or more \(0 t",
        ),
    ],
)
def test_weights_that_hardly_fit_are_refused_with_the_model_that_they_fit(
    model: str, weights: str, problem: str
) -> None:
    network = hollow_model(model, 7)
    with pytest.raises(ValueError, match=rf"w\.pth: hardly fits {model}: .*{problem}") as refusal:
        fit_weights(network, weights_of(weights), Path("w.pth"))
    assert f"these are weights of {weights} (--set model={weights}), or take what fits" in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_the_zoos_own_names_for_its_tensors_are_recognised() -> None:
    published = {
        re.sub(r"\.(conv|bn)\.", lambda actual: f".{['conv', 'bn'].index(actual[1])}.", name): tensor
        for name, tensor in weights_of("tresnet_v2_l").items()
    }
    with pytest.raises(ValueError, match=r"these are weights of tresnet_v2_l \(--set model=tresnet_v2_l\)"):
        fit_weights(hollow_model("tresnet_l"), published, Path("tresnet_l_v2.pth"))


@pytest.mark.parametrize("name", ["resnet50", "vit_base_patch16_224_miil", "tresnet_v2_l", "mixer_b16_224"])
def test_weights_of_a_network_fit_it_whatever_the_classes(name: str) -> None:
    for num_classes in (11221, 3):
        fit = measure_fit(hollow_model(name, 3), weights_of(name, num_classes))
        assert (fit.filled, fit.unused, fit.problem) == (1, 0, "")


def test_resized_position_embeddings_count_as_filled(tmp_path: Path) -> None:
    save_weights(create_model("vit_tiny_patch16_224", **SMALL), tmp_path / "w.safetensors")
    larger = create_model("vit_tiny_patch16_224", **SMALL | {"img_size": 512})
    assert larger.pos_embed.numel() > 0.1 * sum(parameter.numel() for parameter in larger.parameters())
    assert load_weights(larger, tmp_path / "w.safetensors").converted == ("pos_embed",)


@pytest.mark.parametrize(
    ("lacking", "is_refused"), [(0.09, False), (0.11, True)], ids=["under a tenth", "over a tenth"]
)
def test_a_tenth_may_be_lacking_and_a_tenth_left_over(lacking: float, is_refused: bool) -> None:
    missing = round(1000 * lacking)
    network = nn.ModuleDict({"a": nn.Linear(1000 - missing, 1, bias=False), "b": nn.Linear(missing, 1, bias=False)})
    fit = measure_fit(network, {"a.weight": torch.zeros(1, 1000 - missing)})
    assert (bool(fit.problem), round(fit.filled, 3)) == (is_refused, 1 - lacking)
    whole = nn.ModuleDict({"a": nn.Linear(1000 - missing, 1, bias=False)})
    given = {"a.weight": torch.zeros(1, 1000 - missing), "a.more": torch.zeros(missing)}
    fit = measure_fit(whole, given)
    assert (bool(fit.problem), round(fit.unused, 3)) == (is_refused, lacking)


def test_another_tower_in_the_file_is_not_counted() -> None:
    network = nn.ModuleDict({"image": nn.Linear(4, 4)})
    given = {"image.weight": torch.zeros(4, 4), "image.bias": torch.zeros(4), "text.weight": torch.zeros(100, 100)}
    assert measure_fit(network, given).problem == ""


def test_weights_that_hardly_fit_are_taken_where_asked(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    source = create_model("vit_tiny_patch16_224", qkv_bias=False, **SMALL)
    save_weights(source, tmp_path / "w.safetensors")
    with pytest.raises(ValueError, match=r"hardly fits vit_tiny_patch16_224: .*\(--set init_partial=true\)"):
        create_model("vit_tiny_patch16_224", checkpoint=tmp_path / "w.safetensors", **SMALL)
    caplog.clear()
    model = create_model("vit_tiny_patch16_224", checkpoint=tmp_path / "w.safetensors", partial=True, **SMALL)
    assert torch.equal(model.blocks[1].mlp.fc1.weight, source.blocks[1].mlp.fc1.weight)
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "2 missing: blocks.0.attn.qkv.bias, blocks.1.attn.qkv.bias" in record.message


def test_of_a_network_that_is_not_timms_no_other_is_named() -> None:
    network = nn.Sequential(nn.Linear(2, 3))
    assert model_that_fits(network, {"a": torch.zeros(1)}, Path("w.pth")) is None
    with pytest.raises(ValueError, match=r"hardly fits Sequential: .*; give weights of this architecture, or take"):
        fit_weights(network, {"a": torch.zeros(1)}, Path("w.pth"))
