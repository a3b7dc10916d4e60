"""Defaults for folders of one's own, whose classes are few and small beside ImageNet-21K's."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from statistics import median_low

from .classes.wordnet import WordNet
from .images.image import DECODER_ERRORS, ImageSettings, RejectedImageError, open_image
from .sources.labelled import VAL_SHARE
from .sources.units import RawSource

log = logging.getLogger(__name__)

NUM_MEASURED = 1000


@dataclass(frozen=True)
class Defaults:
    """The settings of `preprocess` that follow from the source; see SelectSettings and ImageSettings."""

    rare_threshold: int = 500
    val_share: float | None = None
    size: int = ImageSettings.size


def defaults_of(source: RawSource) -> Defaults:
    """Return the defaults for a folder: those of ImageNet-21K where one of its classes is a WordNet synset.

    For any other folder every class is kept, a tenth of its images are for validation (see `num_held_back`), and the
    size is the median longer side of the first NUM_MEASURED images by name, where that is below ImageNet-21K's 224.
    """
    classes, nouns = source.classes() or (), WordNet.packaged()
    if not classes or any(raw_class.wnid in nouns for raw_class in classes):
        return Defaults()
    sides = list(islice(_longer_sides(source), NUM_MEASURED))
    size = min(median_low(sides), Defaults.size) if sides else Defaults.size
    return Defaults(rare_threshold=0, val_share=VAL_SHARE, size=size)


def _longer_sides(source: RawSource) -> Iterator[int]:
    for raw_class in source.classes() or ():
        with raw_class.open() as contents:
            for data in contents.read(contents.members):
                try:
                    yield max(open_image(data).image.size)
                except (*DECODER_ERRORS, RejectedImageError):  # it becomes a reject
                    continue
