"""What `in21k finetune` trains on: shards as they are, and anything else packed into shards first."""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from .options import num_workers
from .progress import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ..preprocess.images.image import ImageSettings
    from ..preprocess.pack_labelled import LabelledData, LabelledSet
    from ..preprocess.sources.labelled import LabelledImage
    from ..training import TrainSettings

log = logging.getLogger(__name__)

TORCHVISION = "torchvision:"
CROPPED = 0.875  # of the shorter side, where a recipe crops and says no crop_pct: timm's and pycls' usual part
_SAY_SECONDS = 60.0


def is_finished_data(data: str) -> bool:
    """Tell whether DATA is a shard set, here or at a URL, or a folder that an earlier `in21k finetune` packed."""
    return not data.startswith(TORCHVISION) and ("://" in data or (Path(data) / "dataset.json").is_file())


def open_finished(data: str) -> LabelledSet:
    """Open such DATA; raises ValueError where it is neither."""
    from ..preprocess.pack_labelled import LabelledSet, is_labelled_set, open_labelled
    from ..shards import open_dataset

    if "://" not in data and is_labelled_set(Path(data)):
        return open_labelled(Path(data))
    return LabelledSet(open_dataset(data), None)


def find_data(data: str, val_data: Path | None, val_share: float | None, settings: TrainSettings) -> LabelledData:
    """Describe what DATA is: class folders, a list, or a data set of torchvision's.

    val_share: None: nobody said.  settings: with image_size filled in.

    Raises ValueError for none of these, and for a loss that does not go with it.
    """
    from ..preprocess.pack_labelled import LabelledData, describe_images
    from ..preprocess.sources.archive import from_os
    from ..preprocess.sources.labelled import has_several_labels, read_labelled
    from ..preprocess.sources.torchvision_set import TorchvisionSet
    from ..training.losses.create import check_loss

    several = settings.loss == "asymmetric"  # which is for label sets, be they of one label each
    image = _image_settings(settings)
    if data.startswith(TORCHVISION):
        name, given, folder = data.removeprefix(TORCHVISION).partition(":")
        if not given or val_data or val_share is not None:
            raise ValueError(
                f"--data {data}: wanted torchvision:NAME:FOLDER without --val-data and --val-share, as its own parts "
                "are taken for training and validation"
            )
        known = TorchvisionSet(name, Path(folder))
        return LabelledData(
            name=f"torchvision {name}",
            provenance=known.describe(),
            list_images=lambda work: known.save_images(work / "images", image),
            list_labels=known.list_labels,
            image=image,
            several=several,
        )
    path = Path(data)
    if not path.exists():
        raise ValueError(
            f"{data}: does not exist; wanted shards, class folders, a list of `path label[,label]` lines, or "
            "torchvision:NAME:FOLDER"
        )
    images = read_labelled(path, val_data, val_share)
    several = several or has_several_labels(images)
    check_loss(settings, multi_label=several)
    return LabelledData(
        name=from_os(path.resolve().name),
        provenance=describe_images(images),
        list_images=lambda _: images,
        list_labels=lambda: _list_present(data, images),
        image=image,
        several=several,
    )


def pack_data(
    data: LabelledData, out: Path, *, max_reject_rate: float, workers: int | None, overwrite: bool
) -> LabelledSet:
    """Pack images into the folder `out`, on rank 0; the other ranks wait until they are there."""
    from ..preprocess.pack_labelled import open_labelled, pack_labelled

    if os.environ.get("RANK", "0") == "0":
        return pack_labelled(
            data,
            out,
            max_reject_rate=max_reject_rate,
            workers=num_workers(workers),
            overwrite=overwrite,
            watch=ProgressLine,
        )
    said = time.monotonic()
    while not data.is_packed(out):  # should rank 0 fail, torchrun ends this one too
        time.sleep(1)
        if time.monotonic() - said > _SAY_SECONDS:
            said = time.monotonic()
            log.info("%s: waiting for rank 0 to pack the images (without a shared disk: --pack-only on each)", out)
    return open_labelled(out)


def _list_present(data: str, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return the images whose files exist, and warn of the others; raises ValueError where none exists."""
    present = [image for image in images if image.path.is_file()]
    if len(present) < len(images):
        missing = next(image.path for image in images if not image.path.is_file())
        if not present:
            raise ValueError(f"{data}: none of the images listed is there (the first: {missing})")
        log.warning(
            "%s: %d of %d images listed do not exist (the first: %s); packing counts them as rejects",
            *(data, len(images) - len(present), len(images), missing),
        )
    return present


def _image_settings(settings: TrainSettings) -> ImageSettings:
    """Return how images are stored: stretched to the size, or with a margin where training or validation crops."""
    from ..preprocess.images.image import ImageSettings

    assert settings.image_size is not None
    if settings.augment.startswith("inception") or settings.crop_pct is not None:
        return ImageSettings(resize="short-edge", size=round(settings.image_size / (settings.crop_pct or CROPPED)))
    return ImageSettings(resize="squish", size=settings.image_size)
