"""Defaults for folders of one's own, whose classes are few and small beside ImageNet-21K's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median_low

from ..shards.image_files import DECODER_ERRORS
from .classes.select import SelectSettings
from .images.image import ImageSettings, RejectedImageError, open_image
from .sources.folders import WNID
from .sources.labelled import NUM_VAL, VAL_SHARE
from .sources.units import RawSource

log = logging.getLogger(__name__)

NUM_MEASURED = 1000


@dataclass(frozen=True)
class Defaults:
    """Settings of SelectSettings and ImageSettings that follow from the source."""

    rare_threshold: int = SelectSettings.rare_threshold
    val_share: float | None = None
    size: int = ImageSettings.size


def folder_defaults(source: RawSource, size: int | None = None) -> Defaults:
    """Return the defaults for a folder or a list: those for ImageNet-21K where one of its classes is a wnid.

    Otherwise every class is kept, a tenth of its images are for validation (see `num_held_back`), and the size, where
    None is given, is the median longer side of the first NUM_MEASURED images by name, 224 at most. The log says so.
    """
    if any(WNID.fullmatch(raw_class.wnid) for raw_class in source.classes() or ()):
        return Defaults(size=size or Defaults.size)
    if size is None:
        sides = list(islice(_longer_sides(source), NUM_MEASURED))
        size = min(median_low(sides), Defaults.size) if sides else Defaults.size
    log.info(
        "%s: no class is a wnid, so the defaults are --rare-threshold 0, a tenth of each class for validation (%d "
        "images at most), and --size %d",
        source.name,
        NUM_VAL,
        size,
    )
    return Defaults(rare_threshold=0, val_share=VAL_SHARE, size=size)


def _longer_sides(source: RawSource) -> Iterator[int]:
    for raw_class in source.classes() or ():
        with raw_class.open() as contents:
            for data in contents.read(contents.members):
                try:
                    yield max(open_image(data).image.size)
                except (*DECODER_ERRORS, RejectedImageError):  # it becomes a reject
                    continue
