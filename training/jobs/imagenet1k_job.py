"""Validation on ImageNet-1K's images, in folders, a tar or shards, of a network that learnt ImageNet-21K."""

from __future__ import annotations

import csv
import logging
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import torch
from torch import Tensor

from ...datapipe import create_loader
from ...shards import open_dataset
from ...shards.files.parallel import OnProgress, ignore_progress
from ..distributed import join_ranks
from ..evaluation.imagenet1k import SharedClasses, evaluate_imagenet1k, shared_with_imagenet1k
from ..inference.images import UnreadableImageError
from ..inference.open_model import OpenModel
from ..inference.pixel_model import PixelModel
from ..inference.reading import Source, read_batches
from .image_sources import image_sources, is_tar, own_limit
from .setup import EvalSettings, EvalSetup, image_counter, open_network
from .validate_job import Validation

log = logging.getLogger(__name__)

WNID = re.compile(r"n\d{8}")
SOLUTION = "LOC_val_solution.csv"  # of Kaggle's archive of ILSVRC, whose validation images lie in one folder
NUM_VAL = 50_000  # images of ILSVRC 2012's validation


def validate_imagenet1k(
    model: str | Path | OpenModel,
    data: str | Path,
    settings: EvalSettings | None = None,
    *,
    flip: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Validation:
    """Measure a network on ImageNet-1K without training it, over the classes that both have.

    model: what `open_model` takes, or what it returned.
    data:  a folder or a tar of images that lie, at any depth, in folders or tars named by a wnid; the ILSVRC folder of
           Kaggle's archive, whose LOC_val_solution.csv names the classes; or shards, at a path or a URL, whose
           validation split is taken.

    The metrics are those of `evaluate_imagenet1k`, and except for shards `num_unreadable`; the log names unreadable
    images. Each rank reads a tar whole.
    Under torchrun the ranks share the images, and each returns the result of all.

    Raises ValueError where model or data cannot be opened, and where they share no class.

    >>> validate_imagenet1k("tresnet_m.miil_in21k", "imagenet/val/").metrics["top1"]  # doctest: +SKIP
    71.3
    """
    settings = settings or EvalSettings()
    opened = open_network(model, settings)
    if opened.multi_label:
        raise ValueError(f"{opened.source or opened.name} gives images several labels; wanted one label an image")
    if opened.classes is None:
        raise ValueError(
            f"{opened.source or opened.name}: the classes of its outputs are unknown; give a model of "
            "ImageNet-21K, or by --classes those of a file of weights"
        )
    num_image_classes = opened.tree.num_image_classes if opened.tree else None
    shared = shared_with_imagenet1k(opened.classes.wnids[:num_image_classes])
    is_shards = "://" in str(data) or (Path(data) / "dataset.json").is_file()
    with join_ranks(settings.device) as ranks, own_limit():
        setup = EvalSetup(opened, settings, ranks)
        images = None if is_shards else _Images(setup, Path(data), shared)
        if images:
            loader, num_images = images, images.num_images
        else:
            shards = open_dataset(data)
            labels = shared.labels_of(shards.tree.wnids)
            stored = create_loader(shards, split="val", **setup.loader_settings(shards))
            loader = ((pixels, labels.to(classes.device)[classes]) for pixels, classes in stored)
            num_images = shards.num_samples["val"]
        metrics = evaluate_imagenet1k(
            PixelModel(opened, shared.outputs, flip=flip).to(ranks.device),
            loader,
            shared,
            amp=setup.amp,
            ranks=ranks,
            on_batch=image_counter(on_progress, num_images, num_ranks=ranks.world_size),
        )
        if images:
            num_unreadable = torch.tensor(images.num_unreadable, device=ranks.device)
            metrics["num_unreadable"] = int(ranks.sum(num_unreadable))
    return Validation(metrics)


class _Images:
    """The images of a folder or a tar in batches, shared by the ranks: pixels uint8 (B, 3, S, S), labels int64 (B,).

    The class of an image is the innermost wnid in its path, or else the one that LOC_val_solution.csv has for it.
    Unreadable images are logged, counted, and left out.

    num_images: of a folder; of a tar, whose images are not known before it is read, those of the published validation.
    """

    def __init__(self, setup: EvalSetup, path: Path, shared: SharedClasses) -> None:
        if not path.exists():
            raise ValueError(f"{path}: does not exist; wanted a folder or a tar of ImageNet-1K's images, or shards")
        if path.is_file() and not is_tar(path.name):
            raise ValueError(f"{path}: is not a tar; wanted a folder or a tar of ImageNet-1K's images, or shards")
        self._setup, self._path = setup, _val_folder(path)
        self._wnid_of_stem = _read_solution(path)
        wnids = [*shared.wnids, *shared.lacking]
        self._label_of = dict(zip(wnids, shared.labels_of(wnids).tolist(), strict=True))
        self.num_unreadable = 0
        self.num_images = NUM_VAL if path.is_file() else sum(1 for _ in self._labelled())
        if not self.num_images:
            raise self._no_image()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        setup, size = self._setup, self._setup.batch_size
        rank, world_size = setup.ranks.rank, setup.ranks.world_size
        num_images = 0

        def mine() -> Iterator[Source]:
            nonlocal num_images
            for source in self._labelled():
                if num_images // size % world_size == rank:
                    yield source
                num_images += 1

        for rows, pixels in read_batches(mine(), setup.opened, batch_size=size, workers=setup.settings.workers):
            for source, error in rows:
                if error is not None:
                    log.warning("%s: %s; left out", source.name, error)
                    self.num_unreadable += 1
            labels = [self._label_of[self._wnid_of(source.name)] for source, error in rows if error is None]
            if pixels is not None:
                yield pixels, torch.tensor(labels)
        if not num_images:
            raise self._no_image()

    def _labelled(self) -> Iterator[Source]:
        """Yield the images of ImageNet-1K's classes; raises ValueError for a damaged tar."""
        for source in image_sources([self._path]):
            if isinstance(source.picture, UnreadableImageError) and is_tar(source.name):
                raise ValueError(f"{source.name}: {source.picture}; give a tar that is whole")
            if self._wnid_of(source.name) in self._label_of:
                yield source

    def _wnid_of(self, name: str) -> str:
        inside = PurePosixPath(name.removeprefix(str(self._path)))
        parts = (part.partition(".")[0] for part in reversed(inside.parts[:-1]))
        return next((part for part in parts if WNID.fullmatch(part)), self._wnid_of_stem.get(inside.stem, ""))

    def _no_image(self) -> ValueError:
        return ValueError(
            f"{self._path}: has no image in a folder or a tar named by a wnid of ImageNet-1K (n01440764, ...), and no "
            f"{SOLUTION} beside it tells the classes of the images; sort them into such folders"
        )


def _val_folder(path: Path) -> Path:
    """Return the folder of the validation images of an ILSVRC folder; any other path is returned as it is."""
    inside = (path / "Data" / "CLS-LOC" / "val", path / "ILSVRC" / "Data" / "CLS-LOC" / "val", path / "val")
    return next((folder for folder in inside if folder.is_dir()), path)


def _read_solution(path: Path) -> dict[str, str]:
    """Return the wnid of each image by its stem, as LOC_val_solution.csv in `path` or the folders above has it."""
    folders = [path, *path.absolute().parents[:4]]
    file = next((file for folder in folders if (file := folder / SOLUTION).is_file()), None)
    if file is None:
        return {}
    with file.open(encoding="utf-8", newline="") as lines:
        rows = list(csv.reader(lines))[1:]
    wnids = {row[0]: row[1].partition(" ")[0] for row in rows if len(row) == 2}
    if len(wnids) < len(rows) or not all(map(WNID.fullmatch, wnids.values())):
        raise ValueError(f"{file}: wanted a header, and rows such as ILSVRC2012_val_00048981,n03995372 85 1 499 272")
    return wnids
