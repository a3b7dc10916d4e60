"""The contact sheet: images drawn by chance from each branch, read from the prepared tars, as small JPEGs."""

from __future__ import annotations

import base64
import io
import random
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import pyarrow as pa
from PIL import Image

from ....shards.dataset import PreparedSet
from ....shards.files.names import archive_name
from ....shards.manifest import STORED, TableReader, check_labels
from ....shards.reader import FileCache
from ....shards.sample import checksum
from ....shards.tree import SemanticTree

MAX_ROWS = 12
SMALL_BRANCH = 0.1  # of all images: a larger branch is opened, so that no one branch fills the sheet
THUMBNAIL_PIXELS = 112
THUMBNAIL_QUALITY = 78
COLUMNS = ["key", "class_index", "split", "archive", "offset", "num_bytes", "source_name", "checksum"]


@dataclass(frozen=True)
class SheetRow:
    """A branch: its path of names from the top down, how many images lie in it, and those that were drawn."""

    path: list[str]
    num_images: int
    images: list[SheetImage]


@dataclass(frozen=True)
class SheetImage:
    """An image: its class, its name in the source, and a data URI of it."""

    class_name: str
    source_name: str
    uri: str


def branches(tree: SemanticTree, below: Sequence[int]) -> list[int]:
    """Return the largest branches, those above SMALL_BRANCH opened into the branches below them."""
    frontier = list(tree.classes_by_level[0])
    limit = SMALL_BRANCH * sum(below[node] for node in frontier)
    small: list[int] = []
    while frontier:
        node = frontier.pop()
        if below[node] > limit and tree.children[node]:
            frontier += tree.children[node]
        else:
            small.append(node)
    return sorted(small, key=lambda node: (-below[node], node))[:MAX_ROWS]


def contact_sheet(prepared: PreparedSet, num_images: int, seed: int) -> list[SheetRow]:
    """Draw about `num_images` training images, as many from each branch; raises ValueError for a damaged data set."""
    tree = prepared.tree
    num_train = [row.num_train for row in prepared.classes if row.kept]
    below = tree.branch_sums(num_train)
    rows = branches(tree, below)[: max(1, num_images)]
    drawn = {
        node: _draw(tree, node, num_train, num_images // len(rows) + (place < num_images % len(rows)), seed)
        for place, node in enumerate(rows)
    }
    pictures = _read(prepared, sorted(place for places in drawn.values() for place in places))
    return [
        SheetRow([tree.names[up] for up in reversed(tree.paths[node])], below[node], [pictures[p] for p in drawn[node]])
        for node in rows
        if drawn[node]
    ]


def _draw(tree: SemanticTree, branch: int, num_train: Sequence[int], count: int, seed: int) -> list[int]:
    """Draw manifest rows of a branch's training images; those of a class lie together, in class order."""
    first_rows = [0, *accumulate(num_train)]
    classes = [index for index, path in enumerate(tree.paths) if branch in path]
    first_places = [0, *accumulate(num_train[index] for index in classes)]
    total = first_places[-1]
    chance = random.Random(f"{seed} {tree.wnids[branch]}")
    rows: list[int] = []
    for place in chance.sample(range(total), min(count, total)):
        number = bisect_right(first_places, place) - 1
        rows.append(first_rows[classes[number]] + place - first_places[number])
    return sorted(rows)


def _read(prepared: PreparedSet, rows: Sequence[int]) -> dict[int, SheetImage]:
    """Read the images of some manifest rows (ascending)."""
    wanted, images, files = list(rows), dict[int, SheetImage](), FileCache()
    try:
        with TableReader(prepared.manifest_path, pa.schema([STORED.field(name) for name in COLUMNS])) as reader:
            if wanted and wanted[-1] >= reader.num_rows:
                raise ValueError(
                    f"{reader.path}: has {reader.num_rows:,} rows; the classes have more images; run `in21k verify`"
                )
            first = 0
            for group, num_rows in enumerate(reader.group_rows):
                here = [row for row in wanted if first <= row < first + num_rows]
                if here:
                    table = reader.read(group).take(pa.array([row - first for row in here]))
                    check_labels(table["class_index"].to_numpy(), prepared.num_image_classes, reader.path)
                    for row, entry in zip(here, table.to_pylist(), strict=True):
                        images[row] = _image(prepared, entry, files)
                first += num_rows
    finally:
        files.close()
    return images


def _image(prepared: PreparedSet, entry: dict[str, Any], files: FileCache) -> SheetImage:
    archive = prepared.path / archive_name(entry["archive"], str(prepared.path))
    data = files.read(archive, entry["offset"], entry["num_bytes"])
    if checksum(data) != entry["checksum"] or entry["split"] != "train":
        raise ValueError(f"{archive}: image {entry['key']} is not what was written; run `in21k verify`")
    with Image.open(io.BytesIO(data)) as image:
        return SheetImage(prepared.tree.names[entry["class_index"]], entry["source_name"], data_uri(image))


def data_uri(image: Image.Image) -> str:
    """Return an image, which it shrinks, as a small JPEG in a data URI."""
    image.thumbnail((THUMBNAIL_PIXELS, THUMBNAIL_PIXELS))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=THUMBNAIL_QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getbuffer()).decode()}"
