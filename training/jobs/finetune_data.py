"""What a fine-tuning trains on: shards as they are, and any other images packed into shards first."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from ...datapipe.catalog import AUGMENTATIONS
from ...preprocess.images.image import ImageSettings
from ...preprocess.pack_labelled import (
    LabelledData,
    LabelledSet,
    Watch,
    describe_images,
    is_labelled_set,
    open_labelled,
    pack_labelled,
)
from ...preprocess.sources.annotations import is_annotated
from ...preprocess.sources.labelled import LabelledImage, has_several_labels, read_labelled
from ...preprocess.sources.members import from_os
from ...preprocess.sources.torchvision_set import TorchvisionSet
from ...shards import open_dataset
from ...shards.files.parallel import default_workers
from ..distributed import is_first_rank
from ..losses.create import check_loss
from ..settings import TrainSettings

log = logging.getLogger(__name__)

TORCHVISION = "torchvision:"
CROPPED = 0.875  # the share of the shorter side that crops take where crop_pct is not set: usual in timm and pycls
MAX_REJECT_RATE = 0.01
_LOG_SECONDS = 60.0


@dataclass(frozen=True, kw_only=True)
class Packing:
    """How images that are not yet in shards are packed into them; None takes the default.

    val_data:        class folders, a list or annotation files for validation.
    val_share:       without val_data: the share of each class to hold back for validation, 0 <= x < 1 (0.1).
    out:             the folder of the shards (`OUT-data` beside the run `OUT`).
    max_reject_rate: fail when a larger share of the images cannot be read, 0..1 (0.01).
    workers:         processes (one for each core).
    """

    val_data: Path | None = None
    val_share: float | None = None
    out: Path | None = None
    max_reject_rate: float | None = None
    workers: int | None = None

    def __post_init__(self) -> None:
        if self.val_share is not None and not 0 <= self.val_share < 1:
            raise ValueError(
                f"--val-share is {self.val_share}; wanted a share of the images, 0 or more and less than 1"
            )
        if self.max_reject_rate is not None and not 0 <= self.max_reject_rate <= 1:
            raise ValueError(f"--max-reject-rate is {self.max_reject_rate}; wanted a share of the images, 0 to 1")

    def check_unused(self, data: str, *also: str) -> None:
        """Raise ValueError where a setting was given (or an option of `also`), though `data` are shards already."""
        names = {"val_data": "--val-data", "val_share": "--val-share", "out": "--data-out"}
        names |= {"max_reject_rate": "--max-reject-rate"}
        options = [
            names[field.name] for field in fields(self) if field.name in names and getattr(self, field.name) is not None
        ]
        if options := [*options, *also]:
            raise ValueError(
                f"{data}: these are shards, with their own split; leave out what is about packing: {', '.join(options)}"
            )


def is_finished_data(data: str) -> bool:
    """Tell whether `data` is a shard set, here or at a URL, or a folder that an earlier fine-tuning packed."""
    return not data.startswith(TORCHVISION) and ("://" in data or (Path(data) / "dataset.json").is_file())


def open_finished(data: str) -> LabelledSet:
    """Open such `data`; raises ValueError where it is neither."""
    if "://" not in data and is_labelled_set(Path(data)):
        return open_labelled(Path(data))
    return LabelledSet(open_dataset(data), None)


def describe_data(data: str, packing: Packing, settings: TrainSettings) -> LabelledData:
    """Describe the images that are to be packed: class folders, a list, annotation files, or a data set of
    torchvision's.

    settings: with image_size filled in.

    Raises ValueError for anything else, and for a loss that does not fit the labels.
    """
    multi_label = settings.loss == "asymmetric"  # its labels are label sets, even when each image has one label
    image = _image_settings(settings)
    if data.startswith(TORCHVISION):
        name, colon, folder = data.removeprefix(TORCHVISION).partition(":")
        if not colon or packing.val_data or packing.val_share is not None:
            raise ValueError(
                f"--data {data}: wanted torchvision:NAME:FOLDER without --val-data and --val-share, as its own parts "
                "are taken for training and validation"
            )
        data_set = TorchvisionSet(name, Path(folder))
        return LabelledData(
            name=f"torchvision {name}",
            provenance=data_set.describe(),
            list_images=lambda work: data_set.save_images(work / "images", image),
            list_labels=data_set.list_labels,
            image=image,
            several=multi_label,
        )
    path = Path(data)
    if not is_annotated(path) and not path.exists():
        raise ValueError(
            f"{data}: does not exist; wanted shards, class folders, a list of `path label[,label]` lines, "
            "coco:IMAGES,FILE.json, voc:FOLDER or torchvision:NAME:FOLDER"
        )
    images = read_labelled(path, packing.val_data, packing.val_share)
    multi_label = multi_label or is_annotated(path) or has_several_labels(images)
    check_loss(settings, multi_label=multi_label)
    return LabelledData(
        name=from_os(path.resolve().name),
        provenance=describe_images(images),
        list_images=lambda _: images,
        list_labels=lambda: _list_present(data, images),
        image=image,
        several=multi_label,
    )


def pack_data(data: LabelledData, out: Path, packing: Packing, watch: Watch, *, overwrite: bool) -> LabelledSet:
    """Pack images into the folder `out` on rank 0; the other ranks wait until they are there."""
    if is_first_rank():
        return pack_labelled(
            data,
            out,
            max_reject_rate=MAX_REJECT_RATE if packing.max_reject_rate is None else packing.max_reject_rate,
            workers=packing.workers or default_workers(),
            overwrite=overwrite,
            watch=watch,
        )
    logged_s = time.monotonic()
    while not data.is_packed(out):  # if rank 0 fails, torchrun ends this rank too
        time.sleep(1)
        if time.monotonic() - logged_s > _LOG_SECONDS:
            logged_s = time.monotonic()
            log.info("%s: waiting for rank 0 to pack the images (without a shared disk: --pack-only on each)", out)
    return open_labelled(out)


def _list_present(data: str, images: Sequence[LabelledImage]) -> list[LabelledImage]:
    """Return the images whose files exist, and warn of the others; raises ValueError where none exists."""
    present = [image for image in images if image.path.is_file()]
    if len(present) < len(images):
        missing = next(image.path for image in images if not image.path.is_file())
        if not present:
            raise ValueError(f"{data}: none of the listed images exists (the first: {missing})")
        log.warning(
            "%s: %d of %d images listed do not exist (the first: %s); packing counts them as rejects",
            *(data, len(images) - len(present), len(images), missing),
        )
    return present


def _image_settings(settings: TrainSettings) -> ImageSettings:
    """Return how images are stored: stretched to the size, or with a margin where training or validation crops."""
    assert settings.image_size is not None
    policy = AUGMENTATIONS[settings.augment]
    if policy.crops or settings.crop_pct is not None:
        return ImageSettings(resize="short-edge", size=round(settings.image_size / (settings.crop_pct or CROPPED)))
    return ImageSettings(resize="squish", size=settings.image_size)
