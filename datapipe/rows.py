"""Read a split by manifest rows: a loader that yields each image with its row, and images by key."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray

from ..shards.dataset import ShardSet, ShardSplit
from ..shards.manifest import pc, read_row_groups
from ..shards.reader import CorruptSampleError, SampleReader
from .create import create_loader
from .loader import Loader
from .pixels import decode


def create_row_loader(shards: ShardSet, split: ShardSplit, **settings: Any) -> Loader:
    """Make a loader of (images, rows) over every sample of a split, the training split too, in the order of the shards.

    rows:     int64 (B,), for each image its row among the split's in the manifest (0..len(split) - 1), which are sorted
              by wnid and key. A corrupt sample is left out, so its row does not appear.
    settings: as for `create_loader`, except split, training, seed and augment. dtype is uint8 and normalize None
              unless they say otherwise.

    Raises ValueError as `create_loader` does.
    """
    rows = replace(split, labels=split.manifest_rows - split.manifest_rows.min())
    defaults: dict[str, Any] = {"dtype": torch.uint8, "normalize": None}
    return create_loader(shards, split=rows, training=False, **{**defaults, **settings})


def read_images(shards: ShardSet, split: ShardSplit, keys: Sequence[str]) -> list[NDArray[np.uint8] | None]:
    """Return the stored image of each key, uint8 (height, width, 3); None for one that is corrupt.

    Raises ValueError for a key that is not in the split.
    """
    start = int(split.manifest_rows.min())
    row_of: dict[str, int] = {}
    wanted, first = pa.array(keys, pa.string()), start
    for table in read_row_groups(shards.manifest_path, ["key"], rows=range(start, start + len(split))):
        places = pc.index_in(wanted, value_set=table["key"].combine_chunks()).to_pylist()
        row_of |= {key: first + place for key, place in zip(keys, places, strict=True) if place is not None}
        first += table.num_rows
    reader = SampleReader(split)
    images: list[NDArray[np.uint8] | None] = []
    for key in keys:
        if key not in row_of:
            raise ValueError(f"{split.location}: its split {split.name} has no image {key}")
        (position,) = np.flatnonzero(split.manifest_rows == row_of[key])
        try:
            images.append(decode(reader.image(int(position))))
        except (CorruptSampleError, ValueError):
            images.append(None)
    reader.close()
    return images
