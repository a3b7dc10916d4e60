"""Networks by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from in21k.models import create_model, list_models, pretrained_21k
from in21k.models.export import save_weights

PUBLISHED_ZOO = [
    "mobilenetv3_large_100",
    "ofa_flops_595m_s",
    "resnet50",
    "mixer_b16_224",
    "tresnet_m",
    "tresnet_v2_l",
    "vit_base_patch16_224_miil",
]
PYCLS_BASELINES = [
    "resnet101",
    "resnet152",
    "efficientnet_b0",
    "efficientnet_b1",
    "regnetx_064",
    "regnety_064",
    "resnext50_32x4d",
]


def test_a_model_has_as_many_outputs_as_asked_for() -> None:
    model = create_model("resnet10t", num_classes=7).eval()
    assert model(torch.zeros(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("name", [*PUBLISHED_ZOO, *PYCLS_BASELINES])
def test_the_published_zoo_and_the_pycls_baselines_are_there_under_timms_names(name: str) -> None:
    assert name in list_models()
    with torch.device("meta"):
        model = create_model(name, num_classes=11221)
    (head,) = [module for module in model.modules() if module is model.get_classifier()]  # type: ignore[operator]
    assert head.weight.shape[0] == head.bias.shape[0] == 11221  # type: ignore[union-attr]


def test_the_vision_transformer_of_the_zoo_has_no_bias_on_its_queries_keys_and_values() -> None:
    with torch.device("meta"):
        names = create_model("vit_base_patch16_224_miil").state_dict().keys()
    assert "blocks.0.attn.qkv.weight" in names
    assert "blocks.0.attn.qkv.bias" not in names


def test_an_unknown_model_is_refused_with_the_nearest_names() -> None:
    with pytest.raises(ValueError, match=r"unknown model 'resnet51'; nearest: .*resnet50.*timm.list_models"):
        create_model("resnet51")
    with pytest.raises(ValueError, match=r"unknown model 'ofa_flops_595m'; nearest: ofa_flops_595m_s"):
        create_model("ofa_flops_595m")
    with pytest.raises(ValueError, match="unknown model"):
        create_model("hf-hub:someone/model")


def test_arguments_that_the_architecture_does_not_take_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be built with windows=3"):
        create_model("resnet10t", windows=3)
    with pytest.raises(ValueError, match="cannot be built with width=2"):
        create_model("ofa_flops_595m_s", width=2)
    with pytest.raises(ValueError, match="pretrained=True; give the weights as `checkpoint`"):
        create_model("resnet10t", pretrained=True)


@pytest.mark.parametrize(
    ("name", "argument", "nearest"),
    [
        ("resnet10t", "drop_path_rat", "drop_path_rate"),
        ("vit_tiny_patch16_224", "image_size", "img_size"),
        ("tresnet_m", "drop_rates", "drop_rate"),
        ("hrnet_w18_small", "drop_rat", "drop_rate"),
        ("regnetx_002", "group_sizes", "group_size"),
        ("ofa_flops_595m_s", "drop_path", "drop_path_rate"),
    ],
)
def test_an_unknown_argument_is_refused_with_the_nearest(name: str, argument: str, nearest: str) -> None:
    with torch.device("meta"), pytest.raises(ValueError, match=rf"{argument}=0\.1 .*; nearest: .*\b{nearest}\b"):
        create_model(name, **{argument: 0.1})


def test_what_to_do_with_a_files_head_must_make_sense(tmp_path: Path) -> None:
    weights = tmp_path / "w.pt"
    torch.save(create_model("resnet10t", num_classes=3).state_dict(), weights)
    with pytest.raises(ValueError, match="num_classes=3 and head='keep', by which the file gives them"):
        create_model("resnet10t", num_classes=3, checkpoint=weights, head="keep")
    with pytest.raises(ValueError, match="head='slice' needs a checkpoint"):
        create_model("resnet10t", head="slice", wnids=["n1"])
    with pytest.raises(ValueError, match="head is 'cut'; wanted one of drop, slice, keep"):
        create_model("resnet10t", checkpoint=weights, head="cut")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="goes by the network's wnids"):
        create_model("resnet10t", checkpoint=weights, head="slice")


def test_models_are_listed_by_pattern_or_part() -> None:
    assert "resnet50" in list_models()
    assert list_models("resnet1?") == ["resnet18"]
    assert set(list_models("resnet")) > set(list_models("resnet*"))
    assert list_models("ofa") == ["ofa_flops_595m_s"]
    assert list_models("no such model") == []


def test_creating_a_model_with_weights_says_what_fitted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_weights(create_model("resnet10t", num_classes=5), tmp_path / "w.safetensors")
    with caplog.at_level("INFO"):
        create_model("resnet10t", num_classes=5, checkpoint=tmp_path / "w.safetensors")
        create_model("resnet10t", num_classes=6, checkpoint=tmp_path / "w.safetensors")
        kept = create_model("resnet10t", checkpoint=tmp_path / "w.safetensors", head="keep")
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "INFO"]
    assert "2 dropped (another shape): fc.weight: (5, 512) for (6, 512)" in caplog.text
    assert "the file's head of 5 classes" in caplog.text
    assert kept.num_classes == 5


def test_the_published_weights_of_21k_classes_are_listed_with_their_label_space() -> None:
    published = {weights.name: weights for weights in pretrained_21k()}
    assert published["tresnet_m.miil_in21k"].label_space == "fall11p"
    assert published["tresnet_m.miil_in21k"].mean == (0.0, 0.0, 0.0)
    assert published["convnext_tiny.fb_in22k"].num_classes == 21841
    assert published["mixer_b16_224.goog_in21k"].label_space == "fall11-goog"
    assert published["mobilenetv4_conv_medium.e180_r384_in12k"].input_size == (3, 384, 384)
    assert all(weights.source and weights.num_classes > 10_000 for weights in published.values())
    assert "resnet50.a1_in1k" not in published
    assert "mvitv2_base_cls.fb_inw21k" not in published  # 19,168 classes, whose list nobody ships
