"""A trained network applied to images in files or in memory: predictions, or features."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeAlias, cast

import numpy as np
import torch
from PIL import Image
from timm.data.imagenet_info import ImageNetInfo, infer_imagenet_subset
from torch import Tensor

from ...models.trial import try_images
from ...shards.tree import SemanticTree
from ..losses.levels import InnerScores
from ..precision import autocast
from ..runs.saved_run import Weights
from .images import Picture, UnreadableImageError
from .layers import PRE_LOGITS, FeatureExtractor
from .open_model import OpenModel, open_model
from .predict import THRESHOLD, Describer, LabelDescriber
from .reading import ReadBatch, Source, read_batches

# An image as a caller has it: beside what is read, other bytes, and an open binary file.
Given: TypeAlias = "Picture | bytearray | memoryview | BinaryIO"
_ALONE = (str, os.PathLike, bytes, bytearray, memoryview, Image.Image, np.ndarray, Tensor)


class Classified(NamedTuple):
    """An image with its prediction (see `Classifier`), or with the reason why it could not be read."""

    source: Source
    prediction: dict[str, Any] | None
    error: str | None

    @property
    def row(self) -> dict[str, Any]:
        """The image's name with its prediction, or with its `error`."""
        return {"image": self.source.name, **(self.prediction or {"error": self.error})}


class Classifier:
    """Predicts what images show: `Classifier("run/")("swan.jpg")[0]["chain"]`.

    A prediction is {levels, chain, top5} (see `Describer`), and {labels, top5} (see `LabelDescriber`) of a network that
    was trained on images of several labels.

    model:       what `open_model` takes, or what it gave.
    weights:     of a run: `last`, `best` or `ema`.
    tree:        over the classes of a network that is not a run's, whose levels are unknown otherwise.
    definitions: by wnid; where given, each answer has its `definition`.
    device:      where the network computes; None: the GPU where there is one.
    batch_size:  images at a time.
    workers:     threads that read images; None: one for each core.
    flip:        answer by the mean of the logits of an image and of its mirror image.
    threshold:   of a network for images of several labels, from which probability on a label is present; None: 0.5.

    Raises ValueError where the model cannot be had, or has other classes than the tree, and where a threshold is given
    to a network of one label an image.
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
        threshold: float | None = None,
    ) -> None:
        opened = model if isinstance(model, OpenModel) else open_model(model, weights)
        opened.check()
        tree = opened.tree or tree
        wnids, names = class_names(opened)
        if tree:
            if tree.wnids != wnids:
                raise ValueError(f"{opened.name}: its {len(names):,} outputs are not the tree's {len(tree):,} classes")
            names = tree.names
        self._describe: Callable[[Tensor], list[dict[str, Any]]]
        if opened.multi_label:
            threshold = THRESHOLD if threshold is None else threshold
            self._describe = LabelDescriber(wnids, names, definitions, threshold=threshold)
        elif threshold is None:
            self._describe = Describer(wnids, names, tree, definitions, by_sigmoid=opened.by_sigmoid)
        else:
            raise ValueError(
                f"the threshold {threshold} goes with networks for images of several labels; {opened.name} gives each "
                "image one, so leave it out"
            )
        self._opened, self._device = opened, _device(device)
        self._read = partial(read_batches, opened=opened, batch_size=batch_size, workers=workers)
        self._amp = opened.run.settings.amp if opened.run and self._device.type == "cuda" else "off"
        self._model = opened.model.to(self._device)
        self._flip = flip
        self._inner_scores = None
        if tree and tree.num_inner and not opened.trains_inner:
            self._inner_scores = InnerScores(tree).to(self._device)

    def __call__(self, images: Given | Iterable[Given]) -> list[dict[str, Any]]:
        """Return what each image shows, in their order.

        images: one, or several: the path of a JPEG, PNG, GIF, BMP or WebP file, its bytes, the open binary file (read
                from its beginning, where it can go there), a PIL image, or a NumPy array of RGB pixels (uint8, height x
                width x 3).

        Raises ValueError for anything else, and where one cannot be read.
        """
        predictions: list[dict[str, Any]] = []
        for batch in self._read(_sources(images)):
            predictions += self._describe(self._logits(_whole(batch)))
        return predictions

    def stream(self, sources: Iterable[Source]) -> Iterator[Classified]:
        """Yield the result for each source, in their order, as the sources are read; a few are in memory at a time.

        Raises ValueError for a source whose picture is of another type than `Classifier.__call__` takes.
        """
        for batch in self._read(map(_checked, sources)):
            predictions = iter(() if batch.pixels is None else self._describe(self._logits(batch.pixels)))
            for source, error in batch.rows:
                yield Classified(source, next(predictions) if error is None else None, error)

    def _logits(self, pixels: Tensor) -> Tensor:
        images = self._opened.normalize(pixels.to(self._device))
        with torch.inference_mode(), autocast(self._device, self._amp):
            logits: Tensor = self._model(images).float()
            logits = (logits + self._model(images.flip(3)).float()) / 2 if self._flip else logits
            return self._inner_scores(logits) if self._inner_scores else logits


def extract_features(
    model: str | Path | OpenModel,
    images: Given | Iterable[Given],
    *,
    weights: Weights = "last",
    layer: str = PRE_LOGITS,
    device: str | torch.device | None = None,
    batch_size: int = 64,
    workers: int | None = None,
) -> Tensor:
    """Return the features of images in their order, float32 (N, D) on the CPU.

    model:   what `open_model` takes, or what it gave.
    images:  as `Classifier` takes them.
    weights: of a run: `last`, `best` or `ema`.
    layer:   see `FeatureExtractor`.

    Raises ValueError where the model cannot be had, lacks the layer, or an image cannot be read.
    """
    opened = model if isinstance(model, OpenModel) else open_model(model, weights)
    own = _device(device)
    extractor = FeatureExtractor(opened.model, layer)
    try_images(extractor, opened.image_size, name=opened.name)
    extractor.to(own).eval()
    parts: list[Tensor] = []
    for batch in read_batches(_sources(images), opened, batch_size=batch_size, workers=workers):
        with torch.inference_mode():
            parts.append(extractor(opened.normalize(_whole(batch).to(own))).float().cpu())
    if not parts:
        raise ValueError("no image; wanted at least one")
    return torch.cat(parts)


def class_names(opened: OpenModel) -> tuple[tuple[str | None, ...], tuple[str, ...]]:
    """Return wnid (None where it is unknown) and name of each output of a network: by its run, else by timm."""
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


def _sources(images: Any) -> Iterator[Source]:
    """Name one image, or several, by their paths or by their numbers."""
    is_one = isinstance(images, _ALONE) or hasattr(images, "read") or not isinstance(images, Iterable)
    several: Iterable[Any] = cast(Any, [images] if is_one else images)
    for number, given in enumerate(several):
        name = os.fsdecode(given) if isinstance(given, (str, os.PathLike)) else f"image {number}"
        yield Source(name, _picture(name, given))


def _checked(source: Source) -> Source:
    if isinstance(source.picture, UnreadableImageError):
        return source
    return source._replace(picture=_picture(source.name, source.picture))


def _picture(name: str, given: Any) -> Picture:
    """Return an image as `read_image` takes it; raises ValueError for what is none."""
    if isinstance(given, (str, os.PathLike)):
        return os.fsdecode(given)
    if isinstance(given, Image.Image) or _is_pixels(given):
        return given
    content: Any = given
    if hasattr(given, "read"):
        if hasattr(given, "seekable") and given.seekable():
            given.seek(0)
        content = given.read()
    if isinstance(content, (bytes, bytearray, memoryview)):
        return bytes(content)
    shape = f" of {given.dtype} {tuple(given.shape)}" if isinstance(given, (np.ndarray, Tensor)) else ""
    raise ValueError(
        f"{name}: is a {type(given).__name__}{shape}; wanted a path, an image's bytes or an open binary file of them, "
        "a PIL image, or a NumPy array of pixels (uint8, height x width x 3)"
    )


def _is_pixels(given: Any) -> bool:
    if not isinstance(given, np.ndarray):
        return False
    return given.dtype == np.uint8 and given.ndim == 3 and given.shape[2] == 3 and given.size > 0


def _whole(batch: ReadBatch) -> Tensor:
    """Return the pixels of a batch; raises ValueError where an image could not be read."""
    for source, error in batch.rows:
        if error is not None:
            raise ValueError(f"{source.name}: {error}")
    assert batch.pixels is not None
    return batch.pixels


def _device(device: str | torch.device | None) -> torch.device:
    return torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
