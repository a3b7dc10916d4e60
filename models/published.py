"""The networks that were published with semantic softmax, and what a file of published weights belongs to."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import timm
from timm.models import get_pretrained_cfg
from torch import Tensor, nn

from .fit import convert, measure_fit, model_that_fits
from .hollow import hollow
from .weights import WeightsReport, fit_weights, head_rows
from .weights_file import read_part
from .zoo import check_name, create_model


class ZooNetwork(NamedTuple):
    """A row of the published table, https://github.com/Alibaba-MIIL/ImageNet21K/blob/main/MODEL_ZOO.md.

    word:         the authors' name of the model; any case.
    architecture: timm's name of the same network.
    file:         the file of its ImageNet-21K-P weights.
    semantic_top1, imagenet1k_top1: in percent, at 224 pixels; the latter after fine-tuning.
    largest_batch, training_rate, inference_rate: on a V100; images/s at 90 % of the largest batch.
    """

    title: str
    word: str
    architecture: str
    file: str
    semantic_top1: float
    imagenet1k_top1: float
    largest_batch: int
    training_rate: int
    inference_rate: int


# All numbers are as published.
ZOO = (
    ZooNetwork(
        *("MobilenetV3_large_100", "mobilenetv3_large_100", "mobilenetv3_large_100"),
        *("mobilenetv3_large_100_miil_21k.pth", 73.1, 78.0, 488, 1210, 5980),
    ),
    ZooNetwork(
        *("OFA_flops_595m_s", "ofa_flops_595m_s", "ofa_flops_595m_s"),
        *("ofa_flops_595m_s_miil_21k.pth", 75.0, 81.0, 288, 500, 3240),
    ),
    ZooNetwork("ResNet50", "resnet50", "resnet50", "resnet50_miil_21k.pth", 75.6, 82.0, 320, 720, 2760),
    ZooNetwork("Mixer-B-16", "mixer", "mixer_b16_224", "mixer_b16_224_miil_in21k.pth", 76.3, 82.3, 160, 420, 1420),
    ZooNetwork("TResNet-M", "tresnet_m", "tresnet_m", "tresnet_m_miil_21k.pth", 76.4, 83.1, 520, 670, 2970),
    ZooNetwork("TResNet-L (V2)", "tresnet_l", "tresnet_v2_l", "tresnet_l_v2_miil_21k.pth", 76.7, 83.9, 240, 300, 1460),
    # Without a bias of queries, keys and values; timm calls the network with one vit_base_patch16_224.
    ZooNetwork(
        *("ViT-B-16", "vit_base_patch16_224", "vit_base_patch16_224_miil"),
        *("vit_base_patch16_224_miil_21k.pth", 77.6, 84.4, 160, 340, 1140),
    ),
)
_OF_ZOO = {11_221, 10_450}  # outputs: the heads that these networks were pretrained with
_FINE_TUNED = 1_000  # outputs, for ImageNet-1K
_SIZE, _CROP = 224, 0.875


def zoo_network(architecture: str) -> ZooNetwork | None:
    """Return the zoo's row of an architecture of timm; None where the zoo lacks it."""
    return next((network for network in ZOO if network.architecture == architecture), None)


def architectures_of(word: str) -> list[str]:
    """Return the architectures that a name may mean: the zoo's, if it is a word of the zoo, and timm's own.

    >>> architectures_of("tresnet_l"), architectures_of("Mixer")
    (['tresnet_v2_l', 'tresnet_l'], ['mixer_b16_224'])
    """
    lower = word.lower()
    own = [name for name in dict.fromkeys((word, lower)) if timm.is_model(name)][:1]
    of_zoo = [network.architecture for network in ZOO if network.word == lower]
    return list(dict.fromkeys([*of_zoo, *own]))


def identify(raw: Mapping[str, Tensor], path: Path, word: str | None = None) -> str | None:
    """Return the architecture that tensors by name belong to; None where none fits.

    word: a name of timm or of the zoo; None: one of the zoo's, which has to be the only one that fits.
    """
    if word is not None:
        return next((name for name in architectures_of(word) if not _problem(raw, path, name)), None)
    matches = [network.architecture for network in ZOO if not _problem(raw, path, network.architecture)]
    return matches[0] if len(matches) == 1 else None


@dataclass(frozen=True, kw_only=True)
class PublishedFile:
    """A file of published weights: the network that they belong to, and how its images look.

    part, raw:     where in the file its tensors are, and the tensors by name.
    name:          the network's in timm, with a tag where one was given or is known.
    zoo:           the zoo's row, where these are weights of the zoo.
    num_classes:   outputs.
    mean, std:     per RGB channel of pixels in 0..1.
    image_size:    side in pixels.
    crop_pct:      the shorter side is resized to image_size / crop_pct and the middle taken; None: the whole image is
                   stretched to a square.
    interpolation: how images are resized.
    """

    path: Path
    part: str
    raw: dict[str, Tensor]
    name: str
    zoo: ZooNetwork | None
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    image_size: int
    crop_pct: float | None
    interpolation: str

    def build(self) -> tuple[nn.Module, WeightsReport]:
        """Build the network and fill it: in evaluation mode, on the CPU; raises ValueError where it stays unfilled."""
        model = create_model(self.name, self.num_classes)
        report = fit_weights(model, self.raw, self.path, part=self.part, head="keep")
        if lacking := (*report.missing, *report.dropped):
            raise ValueError(f"{self.path}: does not fill {self.name}: {lacking[0]}; wanted all of its tensors")
        return model.eval(), report


def read_published(path: Path, word: str | None = None) -> PublishedFile:
    """Read a file of weights, and find out to which network they belong.

    path: see `weights_file.read_part`.
    word: its architecture, as timm (with a tag, if wanted) or the zoo names it; None: the zoo's that alone fits.

    Raises ValueError where the architecture remains unknown, or the file has no head.
    """
    if word is not None and not architectures_of(word):
        check_name(word)
    part, raw = read_part(path)
    architecture = identify(raw, path, word)
    if architecture is None:
        raise ValueError(_unknown(raw, path, word))
    outline = _outline(architecture)
    num_classes = head_rows(outline, convert(outline, raw, path), path)[1]
    name = _with_tag(architecture, num_classes, path.stem)
    row = zoo_network(architecture)
    zoo = row if num_classes in _OF_ZOO or "miil" in path.stem.lower() else None
    images = _zoo_images(num_classes) if zoo else _timm_images(name)
    return PublishedFile(path=path, part=part, raw=raw, name=name, zoo=zoo, num_classes=num_classes, **images)


def _zoo_images(num_classes: int) -> dict[str, Any]:
    """Return how the zoo's images look: stretched, but cropped after fine-tuning on ImageNet-1K; 0..1 always."""
    return {
        **{"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0), "image_size": _SIZE, "interpolation": "bilinear"},
        "crop_pct": _CROP if num_classes == _FINE_TUNED else None,
    }


def _timm_images(name: str) -> dict[str, Any]:
    config = get_pretrained_cfg(name)
    assert config is not None, name
    return {
        **{"mean": tuple(config.mean), "std": tuple(config.std), "image_size": config.input_size[-1]},
        "crop_pct": None if config.crop_mode == "squash" else config.crop_pct,
        "interpolation": config.interpolation or "bilinear",
    }


def _with_tag(architecture: str, num_classes: int, stem: str) -> str:
    """Return an architecture with the tag of timm's that the file's name has, else the first of as many classes."""
    if "." in architecture:
        return architecture
    tags = [name for name in timm.list_pretrained(f"{architecture}.*") if _num_classes(name) == num_classes]
    return next((name for name in tags if name in (stem, stem.replace("_", ".", 1))), tags[0] if tags else architecture)


def _num_classes(name: str) -> int | None:
    config = get_pretrained_cfg(name)
    return config and config.num_classes


def _problem(raw: Mapping[str, Tensor], path: Path, architecture: str) -> str:
    """Say why tensors do not fit an architecture; empty where they do."""
    outline = _outline(architecture)
    try:
        fit = measure_fit(outline, convert(outline, raw, path))
    except ValueError as error:  # what converts this architecture's weights cannot read them
        return str(error)
    return f"{fit.problem} ({fit.counts})" if fit.problem else ""


@functools.lru_cache(maxsize=len(ZOO))
def _outline(architecture: str) -> nn.Module:
    with hollow():
        return create_model(architecture)


def _unknown(raw: Mapping[str, Tensor], path: Path, word: str | None) -> str:
    """Return the message for weights whose network is unknown."""
    if word is None:
        words = ", ".join(network.word for network in ZOO)
        return f"{path}: its keys fit none of the zoo's networks ({words}); name its architecture by --model"
    name = architectures_of(word)[0]
    other = model_that_fits(_outline(name), raw, path)
    way_out = f"these are weights of {other} (--model {other})" if other else "give another --model"
    return f"{path}: hardly fits {name}: {_problem(raw, path, name)}; {way_out}"
