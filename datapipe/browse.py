"""Contact sheets: what is stored, and below it what each backend hands out for the same samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from ..shards.dataset import ShardSet, ShardSplit
from ..shards.drawing import FAINT, INK, Pixels, TileSheet
from ..shards.fonts import drawable
from ..shards.reader import SampleReader
from .create import create_loader
from .loader import Loader
from .pixels import decode
from .plan import EpochPlan, PlannedBatch
from .settings import LoaderSettings

MAX_IMAGES = 400


class Difference(NamedTuple):
    """How far two backends' pixels are from each other, in grey levels (0..255): on average, and where it is most."""

    mean: float
    largest: int


@dataclass(frozen=True, kw_only=True)
class BrowseSample:
    """One sample: its name, and its stored image, height x width x 3; None where that does not decode."""

    key: str
    wnid: str
    name: str
    original: Pixels | None


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """The first samples of an epoch, and per backend its pixels of them: B x S x S x 3; `failed` says who has none."""

    samples: list[BrowseSample]
    pixels: Mapping[str, Pixels]
    failed: Mapping[str, str]

    @property
    def differences(self) -> dict[str, Difference]:
        """How far each backend is from the first; which is 0 from itself."""
        first = next(iter(self.pixels.values()))
        return {name: difference(first, pixels) for name, pixels in self.pixels.items()}


def difference(one: Pixels, two: Pixels) -> Difference:
    """Compare pixels of the same shape.

    >>> difference(np.array([0, 10, 20], np.uint8), np.array([0, 13, 20], np.uint8))
    Difference(mean=1.0, largest=3)
    """
    apart = np.abs(one.astype(np.int16) - two)
    return Difference(float(apart.mean()), int(apart.max()))


def browse(
    shards: ShardSet,
    backends: Sequence[str],
    *,
    split: str = "train",
    num_images: int = 8,
    image_size: int,
    augment: str = "none",
    seed: int = 0,
    epoch: int = 0,
) -> Sheet:
    """Collect the first images of an epoch from each backend; one that fails is named. Raises ValueError."""
    opened = shards.split(split)
    if not 1 <= num_images <= min(MAX_IMAGES, len(opened)):
        raise ValueError(
            f"num_images is {num_images}; wanted 1 to {min(MAX_IMAGES, len(opened)):,} ({split} has {len(opened):,})"
        )
    if epoch < 0:
        raise ValueError(f"epoch is {epoch}; wanted 0 or more")
    LoaderSettings(batch_size=num_images, image_size=image_size, augment=augment, seed=seed)  # which checks them
    batch = first_batch(opened, num_images, seed=seed, epoch=epoch)
    pixels, failed = dict[str, Pixels](), dict[str, str]()
    for name in backends:
        try:
            loader = create_loader(
                shards,
                split=split,
                backend=name,
                batch_size=num_images,
                image_size=image_size,
                augment=augment,
                seed=seed,
                dtype=torch.uint8,
                normalize=None,
            )
            pixels[name] = _take_first(loader, epoch, opened.labels[batch.positions])
        except (RuntimeError, OSError, ValueError) as error:
            failed[name] = " ".join(str(error).split())
    if not pixels:
        raise ValueError("no backend gave images: " + "; ".join(f"{name}: {why}" for name, why in failed.items()))
    return Sheet(samples=_originals(shards, opened, batch), pixels=pixels, failed=failed)


def _take_first(loader: Loader, epoch: int, labels: NDArray[np.int32]) -> Pixels:
    """Return the pixels of a loader's first batch; raises ValueError where it is not the one that was planned."""
    loader.set_epoch(epoch)
    try:
        images, batch_labels = next(iter(loader))
        num_bad, images = loader.num_bad, images.permute(0, 2, 3, 1).cpu().numpy().copy()
    finally:
        loader.close()
    if len(images) != len(labels):
        raise ValueError(f"gave {len(images)} of {len(labels)} images; the others are corrupt, and left out")
    if not num_bad and batch_labels.tolist() != labels.tolist():
        raise ValueError("gave other samples than the first of the epoch; it follows no plan")
    return images


def first_batch(split: ShardSplit, size: int, *, seed: int, epoch: int) -> PlannedBatch:
    """Return what loaders hand out first; the training split is shuffled, any other is not."""
    training = split.name == "train"
    plan = EpochPlan(
        shard_sizes=split.shard_sizes, batch_size=size, seed=seed, epoch=epoch, shuffle=training, drop_last=training
    )
    return next(plan.batches(0))


def _originals(shards: ShardSet, split: ShardSplit, batch: PlannedBatch) -> list[BrowseSample]:
    reader, tree, samples = SampleReader(split), shards.tree, list[BrowseSample]()
    for position in batch.positions.tolist():
        label = int(split.labels[position])
        try:
            original = decode(reader.image(position))
        except ValueError:  # corrupt: in training another stands in for it, which the backends' rows then show
            original = None
        samples.append(
            BrowseSample(key=split.key(position), wnid=tree.wnids[label], name=tree.names[label], original=original)
        )
    reader.close()
    return samples


# The picture.

COLUMNS = 8
TILE_FROM, TILE_TO = 112, 224  # pixels: smaller images are drawn larger by a whole factor, larger ones smaller
GAP, MARGIN, LEFT, CAPTION, TITLE, BETWEEN = 6, 24, 138, 46, 64, 22


def tile_side(image_size: int) -> int:
    """Return how large an image is drawn, in pixels.

    >>> tile_side(32), tile_side(160), tile_side(448)
    (128, 160, 224)
    """
    return min(image_size * -(-TILE_FROM // image_size), TILE_TO)


def draw_sheet(sheet: Sheet, title: str, subtitle: str) -> Image.Image:
    """Draw a sheet as an RGB picture: blocks of up to 8 columns, the stored images over a row for each backend."""
    side = tile_side(next(iter(sheet.pixels.values())).shape[1])
    num = len(sheet.samples)
    columns = min(num, COLUMNS)
    block = (side + CAPTION) + len(sheet.pixels) * (side + GAP)
    num_blocks = -(-num // columns)
    width = max(2 * MARGIN + LEFT + columns * (side + GAP) - GAP, 640)
    height = MARGIN + TITLE + num_blocks * (block + BETWEEN) - BETWEEN - GAP + MARGIN
    canvas = _Sheet(width, height, side)
    canvas.heading(MARGIN, title, subtitle)
    for number in range(num_blocks):
        _draw_block(
            canvas, sheet, range(number * columns, min(num, (number + 1) * columns)), number * (block + BETWEEN)
        )
    return canvas.picture


def _draw_block(canvas: _Sheet, sheet: Sheet, members: range, top: int) -> None:
    side, y, differences = canvas.side, MARGIN + TITLE + top, sheet.differences
    canvas.row_label(y, "stored", [])
    lefts = {member: MARGIN + LEFT + place * (side + GAP) for place, member in enumerate(members)}
    for member, left in lefts.items():
        sample = sheet.samples[member]
        canvas.tile(left, y, sample.original)
        canvas.text(left, y + side + 4, drawable(sample.name, sample.wnid), INK, 14, side)
        canvas.text(left, y + side + 22, sample.key, FAINT, 12, side)
    y += side + CAPTION
    for place, (name, pixels) in enumerate(sheet.pixels.items()):
        far = differences[name]
        against = [f"mean {far.mean:.2f}", f"largest {far.largest}", "grey levels off"] if place else ["the reference"]
        canvas.row_label(y, name, against if len(sheet.pixels) > 1 else [])
        for member, left in lefts.items():
            canvas.tile(left, y, pixels[member])
        y += side + GAP


class _Sheet(TileSheet):
    def row_label(self, y: int, name: str, lines: Sequence[str]) -> None:
        y += max(0, (self.side - 24 - 19 * len(lines)) // 2)
        self.text(MARGIN, y, name, INK, 17, LEFT - 10)
        for number, line in enumerate(lines):
            self.text(MARGIN, y + 26 + 19 * number, line, FAINT, 14, LEFT - 10)
