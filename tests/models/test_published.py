"""Files of published weights are recognised by their keys, whoever wrapped them and whatever they are called."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch

from in21k.models.published import ZOO, ZooNetwork, architectures_of, read_published

from .published_files import WRAPPERS, published_weights, write_published


@pytest.mark.parametrize("network", ZOO, ids=lambda network: network.word)
def test_each_file_of_the_zoo_is_known_by_its_keys_however_it_is_wrapped(network: ZooNetwork, tmp_path: Path) -> None:
    for wrapper in WRAPPERS:
        path = write_published(tmp_path / f"{wrapper}.pth", network.architecture, wrapper=wrapper)
        file = read_published(path)
        assert file.name.partition(".")[0] == network.architecture
        assert (file.zoo, file.num_classes, file.image_size, file.crop_pct) == (network, 11_221, 224, None)
        assert (file.mean, file.std, file.interpolation) == ((0, 0, 0), (1, 1, 1), "bilinear")


@pytest.mark.parametrize("network", ZOO, ids=lambda network: network.word)
def test_the_authors_word_for_a_network_means_the_one_of_the_file(network: ZooNetwork, tmp_path: Path) -> None:
    path = write_published(tmp_path / "weights.pth", network.architecture)
    for word in (network.word, network.word.upper()):
        assert read_published(path, word).name.partition(".")[0] == network.architecture


@pytest.mark.parametrize(
    ("word", "architecture"), [("tresnet_l", "tresnet_l"), ("vit_base_patch16_224", "vit_base_patch16_224")]
)
def test_a_word_of_the_zoo_that_timm_uses_otherwise_goes_by_the_keys(
    word: str, architecture: str, tmp_path: Path
) -> None:
    assert len(architectures_of(word)) == 2
    path = write_published(tmp_path / "weights.pth", architecture, 1_000)
    assert read_published(path, word).name.partition(".")[0] == architecture


def test_safetensors_are_taken_too(tmp_path: Path) -> None:
    tensors = {name: tensor.clone() for name, tensor in published_weights("mobilenetv3_large_100", 10_450).items()}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors")
    file = read_published(tmp_path / "w.safetensors")
    assert (file.zoo and file.zoo.word, file.num_classes) == ("mobilenetv3_large_100", 10_450)


@pytest.mark.parametrize(
    ("name", "mean", "crop_pct"),
    [
        ("resnet50_miil_1k.pth", 0.0, 0.875),
        ("resnet50_a1_in1k.pth", 0.485, 0.95),
        ("resnet50_tv_in1k.pth", 0.485, 0.875),
    ],
)
def test_fine_tuned_weights_have_the_images_of_those_who_published_them(
    name: str, mean: float, crop_pct: float, tmp_path: Path
) -> None:
    file = read_published(write_published(tmp_path / name, "resnet50", 1_000))
    assert (file.mean[0], file.crop_pct, bool(file.zoo)) == (mean, crop_pct, mean == 0)


def test_a_network_outside_the_zoo_needs_its_name(tmp_path: Path) -> None:
    path = write_published(tmp_path / "w.pth", "resnet18", 1_000)
    with pytest.raises(ValueError, match=r"w\.pth: its keys fit none of the zoo's networks .*name its architecture by"):
        read_published(path)
    assert read_published(path, "resnet18").num_classes == 1_000
    with pytest.raises(ValueError, match=r"w\.pth: hardly fits resnet34: .*these are weights of resnet18 \(--model r"):
        read_published(path, "resnet34")
    with pytest.raises(ValueError, match=r"unknown model 'resnet81'; nearest: "):
        read_published(path, "resnet81")


def test_weights_without_a_head_are_refused(tmp_path: Path) -> None:
    tensors = {key: tensor for key, tensor in published_weights("resnet50").items() if not key.startswith("fc.")}
    torch.save(tensors, tmp_path / "w.pth")
    with pytest.raises(ValueError, match=r"w\.pth: holds no head of this network"):
        read_published(tmp_path / "w.pth")
