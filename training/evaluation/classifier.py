"""A trained network at work on images of any format: what they show, or their features."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from ...shards.tree import SemanticTree
from ..precision import autocast
from .images import Picture
from .layers import PRE_LOGITS, FeatureExtractor
from .open_model import OpenModel, open_model
from .predict import Describer
from .reading import ReadBatch, Source, read_batches
from .saved_run import Weights


class Classified(NamedTuple):
    """What became of an image: its prediction (see `Describer`), or the reason why it could not be read."""

    source: Source
    prediction: dict[str, Any] | None
    error: str | None


class Classifier:
    """Says what images show: `Classifier("run/")("swan.jpg")[0]["chain"]`.

    model:       what `open_model` takes, or what it gave.
    weights:     of a run: `last`, `best` or `ema`.
    tree:        over the classes of a network that is no run's, whose levels nobody knows otherwise.
    definitions: by wnid; where given, each answer has its `definition`.
    device:      where the network computes; None: the GPU where there is one.
    batch_size:  images at a time.
    workers:     threads that read images; None: one for each core.
    flip:        answer by the mean of the logits of an image and of its mirror image.

    Raises ValueError where the model cannot be had, or has other classes than the tree.
    """

    def __init__(
        self,
        model: str | Path | OpenModel,
        *,
        weights: Weights = "last",
        tree: SemanticTree | None = None,
        definitions: Mapping[str, str] | None = None,
        device: str | torch.device | None = None,
        batch_size: int = 64,
        workers: int | None = None,
        flip: bool = False,
    ) -> None:
        opened = model if isinstance(model, OpenModel) else open_model(model, weights)
        tree = opened.tree or tree
        wnids, names = class_names(opened)
        if tree:
            if tree.wnids != wnids:
                raise ValueError(f"{opened.name}: its {len(names):,} outputs are not the tree's {len(tree):,} classes")
            names = tree.names
        self._describe = Describer(wnids, names, tree, definitions)
        self._opened, self._device = opened, _device(device)
        self._read = partial(read_batches, opened=opened, batch_size=batch_size, workers=workers)
        self._amp = opened.run.settings.amp if opened.run and self._device.type == "cuda" else "off"
        self._model = opened.model.to(self._device)
        self._flip = flip

    def __call__(self, images: Picture | Iterable[Picture]) -> list[dict[str, Any]]:
        """Return {levels, chain, top5} for each image, in their order; see `Describer`.

        images: a path, an image's bytes, a PIL image, or pixels (uint8, height x width x 3); one, or several.

        Raises ValueError where one cannot be read.
        """
        predictions: list[dict[str, Any]] = []
        for batch in self._read(_sources(images)):
            predictions += self._describe(self._logits(_whole(batch)))
        return predictions

    def stream(self, sources: Iterable[Source]) -> Iterator[Classified]:
        """Yield what becomes of each source, in their order, as they are read; few of them are in memory at a time."""
        for batch in self._read(sources):
            predictions = iter(() if batch.pixels is None else self._describe(self._logits(batch.pixels)))
            for source, error in batch.rows:
                yield Classified(source, next(predictions) if error is None else None, error)

    def _logits(self, pixels: Tensor) -> Tensor:
        images = self._opened.normalize(pixels.to(self._device))
        with torch.inference_mode(), autocast(self._device, self._amp):
            logits: Tensor = self._model(images).float()
            return (logits + self._model(images.flip(3)).float()) / 2 if self._flip else logits


def extract_features(
    model: str | Path | OpenModel,
    images: Picture | Iterable[Picture],
    *,
    layer: str = PRE_LOGITS,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> Tensor:
    """Return the features of images in their order, float32 (N, D) on the CPU.

    model:  what `open_model` takes, or what it gave.
    images: as `Classifier` takes them.
    layer:  see `FeatureExtractor`.

    Raises ValueError where the model cannot be had, lacks the layer, or an image cannot be read.
    """
    opened = model if isinstance(model, OpenModel) else open_model(model)
    own = _device(device)
    extractor = FeatureExtractor(opened.model, layer).to(own).eval()
    parts: list[Tensor] = []
    for batch in read_batches(_sources(images), opened, batch_size=batch_size, workers=workers):
        with torch.inference_mode():
            parts.append(extractor(opened.normalize(_whole(batch).to(own))).float().cpu())
    if not parts:
        raise ValueError("there is no image; wanted at least one")
    return torch.cat(parts)


def class_names(opened: OpenModel) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Return wnid (None where nobody knows it) and name of each output of a network: by its run, else by timm."""
    if opened.tree:
        return opened.tree.wnids, opened.tree.names
    config: dict[str, Any] = getattr(opened.model, "pretrained_cfg", None) or {}
    num_classes: int = cast(Any, opened.model).num_classes
    labels: Sequence[str] = config.get("label_names") or ()
    if len(labels) == num_classes:
        described: Mapping[str, str] = config.get("label_descriptions") or {}
        names = tuple(described.get(label, label) for label in labels)
    elif subset := infer_imagenet_subset(opened.model):
        info = ImageNetInfo(subset)
        names = tuple(info.index_to_description(index) for index in range(num_classes))
    else:
        names = opened.classes.wnids if opened.classes else tuple(f"class {index}" for index in range(num_classes))
    return opened.classes.wnids if opened.classes else (None,) * num_classes, names


def _sources(images: Picture | Iterable[Picture]) -> Iterator[Source]:
    """Name one image, or several, by their paths or by their numbers."""
    several = [images] if isinstance(images, (str, Path, bytes, Image.Image, np.ndarray)) else images
    for number, picture in enumerate(several):
        yield Source(str(picture) if isinstance(picture, (str, Path)) else f"image {number}", picture)


def _whole(batch: ReadBatch) -> Tensor:
    """Return the pixels of a batch; raises ValueError where an image could not be read."""
    for source, error in batch.rows:
        if error is not None:
            raise ValueError(f"{source.name}: {error}")
    assert batch.pixels is not None
    return batch.pixels


def _device(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
