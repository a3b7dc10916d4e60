"""Weights from files into networks, and what is said of them."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from in21k.models import create_model, label_space_of, load_weights
from in21k.models.export import save_weights
from in21k.models.weights_file import read_weights

Weights = dict[str, Tensor]


@pytest.fixture
def small() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4))


def other_weights(model: nn.Module) -> Weights:
    return {name: tensor + 1 for name, tensor in model.state_dict().items()}


def behind(prefix: str, weights: Weights) -> Weights:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


KINDS: dict[str, tuple[str, Callable[[Weights], Any]]] = {
    "a state dict": ("", lambda w: w),
    "of DataParallel": ("", lambda w: behind("module.", w)),
    "of torch.compile": ("", lambda w: behind("_orig_mod.", w)),
    "of both": ("", lambda w: behind("module._orig_mod.", w)),
    "of both, the other way": ("", lambda w: behind("_orig_mod.module.", w)),
    "a checkpoint": ("state_dict", lambda w: {"state_dict": behind("module.", w), "epoch": 3, "optimizer": {}}),
    "a checkpoint of ours": ("model", lambda w: {"model": w, "step": 1, "ema": None}),
    "of timm's training": ("state_dict", lambda w: {"state_dict": w, "args": argparse.Namespace(lr=1.0)}),
    "with timm's average": ("state_dict_ema", lambda w: {"state_dict": old(w), "state_dict_ema": w}),
    "with an average": ("model_ema", lambda w: {"model": old(w), "model_ema": behind("module.", w)}),
    "with our average": ("ema", lambda w: {"model": old(w), "ema": w}),
}


def old(weights: Weights) -> Weights:
    return {name: tensor - 5 for name, tensor in weights.items()}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_weights_load_from_each_kind_of_file(small: nn.Module, tmp_path: Path, kind: str, zipped: bool) -> None:
    weights = other_weights(small)
    part, wrap = KINDS[kind]
    torch.save(wrap(weights), tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    report = load_weights(small, tmp_path / "w.pth")
    assert report.complete
    assert report.part == part
    assert str(report) == f"w.pth{f' [{part}]' if part else ''}: 4 tensors fitted"
    assert all(torch.equal(tensor, weights[name]) for name, tensor in small.state_dict().items())


def test_safetensors_load(small: nn.Module, tmp_path: Path) -> None:
    weights = other_weights(small)
    safetensors.torch.save_file(weights, tmp_path / "w.safetensors")
    assert load_weights(small, tmp_path / "w.safetensors").complete
    assert all(torch.equal(tensor, weights[name]) for name, tensor in small.state_dict().items())


def test_weights_of_the_last_step_are_taken_instead_of_the_average_where_asked(
    small: nn.Module, tmp_path: Path
) -> None:
    weights = other_weights(small)
    torch.save({"state_dict": weights, "state_dict_ema": old(weights)}, tmp_path / "w.pth")
    assert load_weights(small, tmp_path / "w.pth", average=False).part == "state_dict"
    assert torch.equal(small.state_dict()["0.bias"], weights["0.bias"])


@given(
    names=st.lists(st.from_regex(r"[a-z]{1,3}(\.[a-z0-9]{1,3}){0,2}", fullmatch=True), min_size=1, unique=True),
    prefix=st.sampled_from(["", "module.", "_orig_mod.", "module._orig_mod."]),
)
def test_what_goes_in_comes_out_under_its_own_name(
    names: list[str], prefix: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    weights = {name: torch.full((2,), float(index)) for index, name in enumerate(names)}
    path = tmp_path_factory.mktemp("weights") / "w.pt"
    torch.save({"state_dict": behind(prefix, weights)}, path)
    read = read_weights(path)
    assert list(read) == names
    assert all(torch.equal(read[name], weights[name]) for name in names)


def test_two_networks_in_one_state_dict_are_refused(small: nn.Module, tmp_path: Path) -> None:
    weights = other_weights(small)
    torch.save(weights | behind("module.", weights), tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"names both with and without module\. or _orig_mod\."):
        read_weights(tmp_path / "w.pt")


def test_what_does_not_fit_is_left_out_and_named(small: nn.Module, tmp_path: Path) -> None:
    weights = other_weights(small)
    weights |= {"2.weight": torch.zeros(9, 3), "extra": torch.zeros(1)}
    del weights["0.bias"]
    torch.save(weights, tmp_path / "w.pt")
    head = small[2].weight.clone()  # type: ignore[operator]
    report = load_weights(small, tmp_path / "w.pt", partial=True)
    assert report.fitted == ("0.weight", "2.bias")
    assert report.missing == ("0.bias",)
    assert report.dropped == ("2.weight: (9, 3) for (4, 3)",)
    assert report.unused == ("extra",)
    assert not report.complete
    assert "2 tensors fitted; 1 missing: 0.bias; 1 dropped (another shape): 2.weight" in str(report)
    assert torch.equal(small[2].weight, head)  # type: ignore[arg-type]


def test_weights_of_which_nothing_fits_are_refused(small: nn.Module, tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(1)}, tmp_path / "w.pt")
    with pytest.raises(ValueError, match=r"none of its 1 tensors fits the model \(a against 0.weight"):
        load_weights(small, tmp_path / "w.pt", partial=True)


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


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
@given(cut=st.integers(0, 400), place=st.integers(0, 400), byte=st.integers(0, 255))
def test_a_damaged_file_is_refused_in_one_line_or_read(
    zipped: bool, cut: int, place: int, byte: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.mktemp("damaged") / "w.pth"
    torch.save({"a.weight": torch.rand(3, 4), "b": torch.rand(3)}, path, _use_new_zipfile_serialization=zipped)
    data = bytearray(path.read_bytes())
    data[place] = byte
    path.write_bytes(data[: len(data) - cut])
    refusal = ""
    try:
        read_weights(path)
    except ValueError as error:
        refusal = str(error)
    assert not refusal or refusal.startswith(f"{path}: ")
    assert "\n" not in refusal


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_a_file_that_would_have_to_be_unpickled_is_refused_with_the_way_out(
    small: nn.Module, tmp_path: Path, zipped: bool
) -> None:
    content = {"state_dict": small.state_dict(), "best": np.float64(3)}
    torch.save(content, tmp_path / "w.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(ValueError, match=r"holds more than weights \(numpy\..*nothing is unpickled") as refusal:
        load_weights(small, tmp_path / "w.pth")
    (way_out,) = re.findall(r"torch\.save.*", str(refusal.value))
    assert way_out == "torch.save(torch.load('w.pth', weights_only=False)['state_dict'], 'weights.pth')"
    torch.save(torch.load(tmp_path / "w.pth", weights_only=False)["state_dict"], tmp_path / "weights.pth")
    assert load_weights(small, tmp_path / "weights.pth").complete


# Heads


@pytest.fixture(scope="module")
def of_21k(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, nn.Module]:
    """A network with a head of the 11,221 classes of fall11-P, and its file."""
    torch.manual_seed(1)
    model = create_model("test_efficientnet", num_classes=11221).eval()
    path = tmp_path_factory.mktemp("published") / "of_21k.pth"
    torch.save({"state_dict": behind("module.", model.state_dict())}, path)
    return path, model


def test_a_head_is_dropped(of_21k: tuple[Path, nn.Module]) -> None:
    path, published = of_21k
    model = create_model("test_efficientnet", num_classes=3)
    head = model.get_classifier().weight.clone()
    report = load_weights(model, path)
    assert report.dropped == ("classifier.weight: (11221, 256) for (3, 256)", "classifier.bias: (11221,) for (3,)")
    assert torch.equal(model.get_classifier().weight, head)
    assert torch.equal(model.conv_stem.weight, published.conv_stem.weight)


def test_a_head_is_kept(of_21k: tuple[Path, nn.Module]) -> None:
    path, published = of_21k
    model = create_model("test_efficientnet", num_classes=3)
    report = load_weights(model, path, head="keep")
    assert report.complete
    assert "the file's head of 11,221 classes" in str(report)
    assert model.num_classes == 11221
    assert label_space_of(model).name == "fall11p"
    images = torch.rand(2, 3, 64, 64)
    assert torch.equal(model.eval()(images), published(images))


def test_a_head_is_sliced_by_class(of_21k: tuple[Path, nn.Module]) -> None:
    path, published = of_21k
    known = label_space_of(11221).wnids
    wnids = [known[7000], known[0], known[11220]]
    model = create_model("test_efficientnet", num_classes=3, checkpoint=path, head="slice", wnids=wnids).eval()
    images = torch.rand(2, 3, 64, 64)
    torch.testing.assert_close(model(images), published(images)[:, [7000, 0, 11220]])


def test_rows_of_classes_that_the_file_lacks_stay_random_and_are_said(of_21k: tuple[Path, nn.Module]) -> None:
    path, published = of_21k
    known = label_space_of(11221).wnids
    model = create_model("test_efficientnet", num_classes=3)
    head = model.get_classifier().weight.clone()
    report = load_weights(model, path, head="slice", wnids=["mine", known[5], "yours"])
    assert report.lacking == ("mine", "yours")
    assert not report.complete
    assert "its head sliced for 1 of 3 classes (fall11p)" in str(report)
    assert "2 classes lacking (their rows keep random weights): mine, yours" in str(report)
    rows = model.get_classifier().weight
    assert torch.equal(rows[[0, 2]], head[[0, 2]])
    assert torch.equal(rows[1], published.get_classifier().weight[5])


def test_a_head_of_a_users_own_classes_is_sliced_by_the_list_that_is_given(tmp_path: Path) -> None:
    source = create_model("test_efficientnet", num_classes=4)
    save_weights(source, tmp_path / "w.safetensors")
    model = create_model("test_efficientnet", num_classes=4)
    names = ["ant", "bee", "cat", "dog"]
    report = load_weights(model, tmp_path / "w.safetensors", head="slice", wnids=names[::-1], file_wnids=names)
    assert report.complete
    assert torch.equal(model.get_classifier().weight, source.get_classifier().weight.flip(0))


def test_a_head_that_cannot_be_sliced_is_refused(of_21k: tuple[Path, nn.Module], tmp_path: Path) -> None:
    path, _ = of_21k
    model = create_model("test_efficientnet", num_classes=2)
    with pytest.raises(ValueError, match=r"its head \(fall11p\) knows none of the 2 classes; take head='drop'"):
        load_weights(model, path, head="slice", wnids=["mine", "yours"])
    with pytest.raises(ValueError, match="head has 11,221 classes and the network 2; got the names of 11,221 and 3"):
        load_weights(model, path, head="slice", wnids=["n00007846"] * 3)
    with pytest.raises(ValueError, match="head has 11,221 classes and the network 2; got the names of 1 and 2"):
        load_weights(model, path, head="slice", wnids=["n1", "n2"], file_wnids=["n1"])
    save_weights(create_model("test_efficientnet", num_classes=9), tmp_path / "nine.safetensors")
    with pytest.raises(ValueError, match="no label space of 9 classes is known"):
        load_weights(model, tmp_path / "nine.safetensors", head="slice", wnids=["n1", "n2"])
    save_weights(create_model("test_efficientnet", num_classes=0), tmp_path / "headless.safetensors")
    with pytest.raises(ValueError, match=r"holds no head of this network; wanted classifier\."):
        load_weights(model, tmp_path / "headless.safetensors", head="keep")


def test_both_heads_of_a_distilled_network_are_sliced(tmp_path: Path) -> None:
    args = {"img_size": 32, "depth": 1}
    source = create_model("deit_tiny_distilled_patch16_224", num_classes=1000, **args)
    save_weights(source, tmp_path / "w.safetensors")
    wnids = label_space_of(1000).wnids[3:5]
    model = create_model(
        *("deit_tiny_distilled_patch16_224", 2, tmp_path / "w.safetensors"), head="slice", wnids=wnids, **args
    )
    assert torch.equal(model.head.weight, source.head.weight[3:5])
    assert torch.equal(model.head_dist.bias, source.head_dist.bias[3:5])


# What timm converts


def as_its_authors_publish(name: str) -> str:
    """A tensor's name in TResNet's own code, from timm's."""
    # A strided convolution lies below its blur.
    name = re.sub(r"(layer2\.0\.conv1|layer[34]\.0\.conv2)\.", r"\1.0.", name)
    return re.sub(r"\.(conv|bn)\.", lambda actual: f".{['conv', 'bn'].index(actual[1])}.", name)


def test_weights_under_their_authors_names_are_converted_as_timm_converts_them(tmp_path: Path) -> None:
    torch.manual_seed(0)
    source = create_model("tresnet_m", num_classes=6).eval()
    published = {
        as_its_authors_publish(name): tensor
        for name, tensor in source.state_dict().items()
        if not name.endswith("num_batches_tracked")  # in-place batch norm has no such count
    }
    assert {"body.conv1.0.weight", "body.layer2.0.conv1.0.1.bias", "body.layer3.0.downsample.1.0.weight"} < set(
        published
    )
    for name, tensor in published.items():
        if name.endswith(".1.weight") and tensor.ndim == 1:
            tensor.uniform_(-1, 1)  # in-place batch norm takes the amount of a weight
    torch.save({"state_dict": published}, tmp_path / "tresnet_m_miil_21k.pth")
    model = create_model("tresnet_m", num_classes=6).eval()
    report = load_weights(model, tmp_path / "tresnet_m_miil_21k.pth")
    assert report.complete
    assert len(report.converted) == len(published) - 2 - sum(".se." in name for name in published)
    assert f"{len(report.converted)} converted: body.conv1.conv.weight" in str(report)
    for name, tensor in source.state_dict().items():
        if name.endswith("bn.weight"):
            torch.testing.assert_close(model.state_dict()[name], tensor.abs() + 1e-5, rtol=0, atol=0)
        elif not name.endswith("num_batches_tracked"):
            assert torch.equal(model.state_dict()[name], tensor)
    # Once converted, the same weights load as they are.
    save_weights(model, tmp_path / "w.safetensors")
    again = load_weights(source, tmp_path / "w.safetensors")
    assert (again.complete, again.converted) == (True, ())
    assert torch.equal(source.body.conv1.bn.weight, model.body.conv1.bn.weight)


def test_position_embeddings_of_another_image_size_are_resized_and_said(tmp_path: Path) -> None:
    args = {"depth": 1, "embed_dim": 16, "num_heads": 1, "num_classes": 3}
    save_weights(create_model("vit_tiny_patch16_224", img_size=64, **args), tmp_path / "w.safetensors")
    report = load_weights(create_model("vit_tiny_patch16_224", img_size=96, **args), tmp_path / "w.safetensors")
    assert report.complete
    assert report.converted == ("pos_embed",)
