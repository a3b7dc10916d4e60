"""Contact sheets: the samples that loaders begin with, and a picture in which rows can be compared."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from in21k.datapipe import Loader
from in21k.datapipe.backends.torch_loader import TorchLoader
from in21k.datapipe.browse import COLUMNS, BrowseSample, Sheet, browse, difference, draw_sheet, tile_side
from in21k.shards import ShardSet, open_dataset

from .conftest import BACKENDS, SIZE


def collect(shards: ShardSet, backends: list[str] = BACKENDS, **changed: Any) -> Sheet:
    return browse(shards, backends, **({"image_size": SIZE, "num_images": 5} | changed))


@pytest.mark.parametrize("split", ["train", "val"])
@pytest.mark.parametrize("augment", ["none", "inception"])
def test_every_backend_shows_the_same_samples(split: str, augment: str, shard_set: ShardSet) -> None:
    sheet = collect(shard_set, split=split, augment=augment, seed=3, epoch=2)
    assert list(sheet.pixels) == BACKENDS
    assert sheet.failed == {}
    assert {pixels.shape for pixels in sheet.pixels.values()} == {(5, SIZE, SIZE, 3)}
    assert sheet.differences[BACKENDS[0]] == (0, 0)
    for far in sheet.differences.values():
        assert far.mean < 1.5


def test_without_augmentation_the_rows_are_the_stored_images(backend: str, shard_set: ShardSet) -> None:
    sheet = collect(shard_set, [backend])
    stored = np.stack([sample.original for sample in sheet.samples])
    assert difference(stored, sheet.pixels[backend]).largest <= 1
    split = shard_set.split("train")
    keys = {split.key(position) for position in range(len(split))}
    assert {sample.key for sample in sheet.samples} <= keys
    for sample in sheet.samples:
        assert sample.key.startswith(sample.wnid)
        assert sample.name == shard_set.tree.names[shard_set.tree.wnids.index(sample.wnid)]


def test_other_seeds_and_epochs_begin_with_other_samples(shard_set: ShardSet) -> None:
    def keys(**changed: Any) -> list[str]:
        return [sample.key for sample in collect(shard_set, BACKENDS[:1], **changed).samples]

    assert keys() == keys(augment="inception")
    assert keys() != keys(seed=1)
    assert keys() != keys(epoch=1)
    assert keys(split="val") == keys(split="val", seed=1, epoch=1)


def test_a_difference_is_in_grey_levels() -> None:
    one, two = np.array([0, 255, 9], np.uint8), np.array([255, 0, 9], np.uint8)
    assert difference(one, two) == (170, 255)
    assert difference(two, two) == (0, 0)


def test_a_corrupt_sample_is_seen_and_named(damage: Callable[..., Path], shard_set: ShardSet) -> None:
    val = open_dataset(damage({0: "changed"}, "val"))
    with pytest.raises(ValueError, match="no backend gave images: torch: gave 4 of 5 images"):
        collect(val, ["torch"], split="val")
    position = shard_set.split("train")
    first = collect(shard_set, ["torch"]).samples[0].key
    at = next(number for number in range(len(position)) if position.key(number) == first)
    sheet = collect(open_dataset(damage({at: "changed"})), ["torch"])
    assert sheet.samples[0].original is None
    assert sheet.samples[1].original is not None
    assert draw_sheet(sheet, "shards", "train").mode == "RGB"


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"num_images": 0}, "num_images is 0"),
        ({"num_images": 53}, r"wanted 1 to 52 \(train has 52\)"),
        ({"split": "test"}, "has no split 'test'"),
        ({"augment": "incepton"}, "augment is 'incepton'"),
        ({"epoch": -1}, "epoch is -1"),
        ({"seed": -1}, "seed is -1"),
        ({"image_size": 0}, "image_size is 0"),
    ],
)
def test_what_cannot_be_shown_is_refused(changed: dict[str, Any], message: str, shard_set: ShardSet) -> None:
    with pytest.raises(ValueError, match=message):
        collect(shard_set, **changed)


def test_a_backend_that_fails_is_named_beside_the_others(shard_set: ShardSet) -> None:
    sheet = collect(shard_set, ["nonesuch", "torch"])
    assert list(sheet.pixels) == ["torch"]
    assert "unknown" in sheet.failed["nonesuch"]


def test_a_backend_without_a_plan_is_marked(shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch) -> None:
    def of_another_epoch(self: TorchLoader, epoch: int) -> None:
        Loader.set_epoch(self, epoch + 1)

    monkeypatch.setattr(TorchLoader, "set_epoch", of_another_epoch)
    with pytest.raises(ValueError, match="gave other samples"):
        collect(shard_set, ["torch"], num_images=20)


# The picture.


def sheet_of(num_images: int, size: int, backends: int) -> Sheet:
    pixels = np.full((num_images, size, size, 3), 200, np.uint8)
    samples = [
        BrowseSample(
            key=f"n{number}", wnid="n", name="an animal " * 9, original=np.zeros((40 + number, 60, 3), np.uint8)
        )
        for number in range(num_images)
    ]
    return Sheet(samples=samples, pixels={f"b{number}": pixels for number in range(backends)}, failed={})


def test_a_sheet_grows_by_a_row_for_each_backend_and_a_block_for_each_eight_images() -> None:
    one = draw_sheet(sheet_of(COLUMNS, 32, 1), "t", "s")
    two = draw_sheet(sheet_of(COLUMNS, 32, 2), "t", "s")
    assert (
        two.height - one.height == draw_sheet(sheet_of(COLUMNS, 32, 3), "t", "s").height - two.height >= tile_side(32)
    )
    assert draw_sheet(sheet_of(COLUMNS + 1, 32, 1), "t", "s").height > one.height
    assert draw_sheet(sheet_of(COLUMNS + 1, 32, 1), "t", "s").width == one.width == two.width


@pytest.mark.parametrize(("size", "side"), [(32, 128), (224, 224), (160, 160), (448, 224), (1, 112)])
def test_images_are_drawn_at_a_size_to_look_at(size: int, side: int) -> None:
    assert tile_side(size) == side
    picture = draw_sheet(sheet_of(2, size, 1), "t", "s")
    assert (200, 200, 200) in {color for _, color in picture.getcolors(10**6) or []}
