"""`in21k validate --imagenet1k`: ImageNet-1K's validation images, in folders or in shards."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..datapipe import create_loader
from ..preprocess.sources.members import ignored_kind, is_image
from ..shards import open_dataset
from ..training.evaluation.imagenet1k import evaluate_imagenet1k, shared_with_imagenet1k
from ..training.inference.pixel_model import PixelModel
from ..training.inference.reading import Source, read_batches
from .image_sources import own_limit, walk_folder
from .progress import ProgressLine
from .terminal import say
from .validation import Work, counted

if TYPE_CHECKING:
    from ..training.distributed import Ranks
    from ..training.evaluation.imagenet1k import SharedClasses


def validate_imagenet1k(work: Work, data: Path | str, ranks: Ranks) -> dict[str, Any]:
    """Return what `evaluate_imagenet1k` returns, and of folders `num_unreadable`; every rank has to call it.

    data: a folder with a folder of images for each class, named by its wnid; or shards, whose split `val` is taken.
    """
    opened = work.opened
    if opened.classes is None:
        raise ValueError(f"{work.name}: nobody knows which classes its outputs are; give a model of ImageNet-21K")
    shared = shared_with_imagenet1k(opened.classes.wnids)
    network = PixelModel(opened, shared.outputs).to(ranks.device)
    is_folder = "://" not in str(data) and not (Path(data) / "dataset.json").is_file()
    with own_limit(), ProgressLine("validate") as progress:
        if is_folder:
            images = _Folder(work, Path(data), shared, ranks)
            loader, num_images = images, len(images)
        else:
            shards = open_dataset(data)
            labels = shared.labels_of(shards.tree.wnids)
            stored = create_loader(
                shards, split="val", dtype=torch.uint8, normalize=None, **work.loader_settings(shards, ranks)
            )
            images, num_images = None, shards.num_samples["val"]
            loader = ((pixels, labels.to(classes.device)[classes]) for pixels, classes in stored)
        result = evaluate_imagenet1k(
            network, loader, shared, amp=work.amp(ranks), ranks=ranks, on_batch=counted(progress, num_images, ranks)
        )
    if images:
        result["num_unreadable"] = int(ranks.sum(torch.tensor(images.num_unreadable, device=ranks.device)))
    return result


class _Folder:
    """The images of class folders in batches, shared out over the ranks: pixels uint8 (B, 3, S, S), labels (B,).

    What cannot be read is said on stderr, counted, and left out.
    """

    def __init__(self, work: Work, folder: Path, shared: SharedClasses, ranks: Ranks) -> None:
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
        self._work, self._ranks = work, ranks
        names = list(dict.fromkeys(wnids))
        self._label_of = dict(zip(names, shared.labels_of(names).tolist(), strict=True))
        self.num_unreadable = 0

    def __len__(self) -> int:
        return len(self._sources)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        size = self._work.batch_size
        starts = range(self._ranks.rank * size, len(self._sources), self._ranks.world_size * size)
        mine = itertools.chain.from_iterable(self._sources[start : start + size] for start in starts)
        for rows, pixels in read_batches(mine, self._work.opened, batch_size=size, workers=self._work.workers):
            for source, error in rows:
                if error is not None:
                    say(f"{source.picture}: {error}; left out", err=True)
                    self.num_unreadable += 1
            labels = [self._label_of[source.name.partition("/")[0]] for source, error in rows if error is None]
            if pixels is not None:
                yield pixels, torch.tensor(labels)


def render(result: dict[str, Any]) -> str:
    """Return a result as text."""
    unreadable = result.get("num_unreadable")
    return (
        f"ImageNet-1K without training: top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} % over the "
        f"{result['num_classes']:,} of {result['num_imagenet1k_classes']:,} classes that the network knows too, "
        f"{result['num_samples']:,} images\n"
        f"left out: {result['num_left_out']:,} images of the other classes"
        + (f", {unreadable:,} unreadable ones" if unreadable else "")
    )
