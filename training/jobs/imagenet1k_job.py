"""Validation on ImageNet-1K's images, in class folders or in shards, of a network that learnt ImageNet-21K."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ...datapipe import create_loader
from ...preprocess.sources.members import ignored_kind, is_image
from ...shards import open_dataset
from ...shards.files.parallel import OnProgress, ignore_progress
from ..distributed import join_ranks
from ..evaluation.imagenet1k import SharedClasses, evaluate_imagenet1k, shared_with_imagenet1k
from ..inference.open_model import OpenModel
from ..inference.pixel_model import PixelModel
from ..inference.reading import Source, read_batches
from .image_sources import own_limit, walk_folder
from .setup import EvalSettings, EvalSetup, image_counter, open_network
from .validate_job import Validation

log = logging.getLogger(__name__)


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
    data:  a folder with a folder of images for each class, named by its wnid; or shards, at a path or a URL, whose
           validation split is taken.

    The metrics are those of `evaluate_imagenet1k`, and for folders `num_unreadable`; the log names unreadable images.
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
    is_folder = "://" not in str(data) and not (Path(data) / "dataset.json").is_file()
    with join_ranks(settings.device) as ranks, own_limit():
        setup = EvalSetup(opened, settings, ranks)
        folder = None
        if is_folder:
            folder = _Folder(setup, Path(data), shared)
            loader, num_images = folder, len(folder)
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
        if folder:
            num_unreadable = torch.tensor(folder.num_unreadable, device=ranks.device)
            metrics["num_unreadable"] = int(ranks.sum(num_unreadable))
    return Validation(metrics)


class _Folder:
    """The images of class folders in batches, shared by the ranks: pixels uint8 (B, 3, S, S), labels int64 (B,).

    Unreadable images are logged, counted, and left out.
    """

    def __init__(self, setup: EvalSetup, folder: Path, shared: SharedClasses) -> None:
        if not folder.is_dir():
            raise ValueError(f"{folder}: no such folder; wanted one of class folders, or shards")
        files = [path for path in walk_folder(folder) if is_image(path.name) and not ignored_kind(path.name)]
        wnids = [path.relative_to(folder).parts[0] for path in files]
        known = {*shared.wnids, *shared.lacking}
        self._sources = [
            Source(f"{wnid}/{path.name}", path) for wnid, path in zip(wnids, files, strict=True) if wnid in known
        ]
        if not self._sources:
            raise ValueError(f"{folder}: has no folder of images named by a wnid of ImageNet-1K (n01440764, ...)")
        self._setup = setup
        names = list(dict.fromkeys(wnids))
        self._label_of = dict(zip(names, shared.labels_of(names).tolist(), strict=True))
        self.num_unreadable = 0

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        setup, size = self._setup, self._setup.batch_size
        starts = range(setup.ranks.rank * size, len(self._sources), setup.ranks.world_size * size)
        mine = itertools.chain.from_iterable(self._sources[start : start + size] for start in starts)
        for rows, pixels in read_batches(mine, setup.opened, batch_size=size, workers=setup.settings.workers):
            for source, error in rows:
                if error is not None:
                    log.warning("%s: %s; left out", source.picture, error)
                    self.num_unreadable += 1
            labels = [self._label_of[source.name.partition("/")[0]] for source, error in rows if error is None]
            if pixels is not None:
                yield pixels, torch.tensor(labels)
