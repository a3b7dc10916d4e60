"""The pixels that loaders hand out, held against each backend that runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torchvision.transforms.v2 import functional

from in21k.datapipe import Loader
from in21k.datapipe.catalog import AUGMENTATIONS
from in21k.datapipe.plan import EpochPlan
from in21k.datapipe.rows import create_row_loader, read_images
from in21k.shards import ShardSet
from in21k.shards.dataset import read_manifest
from in21k.shards.manifest import pc
from in21k.shards.normalize import NORMALIZATIONS

MakeLoader = Callable[..., Loader]


def images_of(loader: Loader) -> Tensor:
    return torch.cat([images for images, _ in loader])


# (augment, grey levels on average over all images, on average over the image that differs most)
TOLERANCES = [("none", 0.5, 1), ("miil", 2.5, 8), ("inception", 0.5, 1), ("inception-ra", 2.5, 8)]


@pytest.mark.parametrize("image_size", [20, 32, 48])
@pytest.mark.parametrize(("augment", "mean", "worst"), TOLERANCES)
def test_backends_augment_alike(
    make: MakeLoader, backend: str, image_size: int, augment: str, mean: float, worst: float
) -> None:
    """All are bilinear and antialiased, and round in other places."""
    settings = {"image_size": image_size, "augment": augment, "normalize": None, "seed": 1}
    expected, actual = (images_of(make(name, **settings)) for name in ("torch", backend))
    assert actual.shape == (48, 3, image_size, image_size)
    difference = (actual - expected).abs().flatten(1).mean(1)
    assert difference.mean() <= mean
    assert difference.max() <= worst
    assert difference.median() <= 0.5


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_augmentations_change_the_images_and_each_epoch_otherwise(
    make: MakeLoader, backend: str, augment: str, shard_set: ShardSet
) -> None:
    plain = make(backend, augment="none", normalize=None, dtype=torch.uint8, batch_size=4)
    loader = make(backend, augment=augment, normalize=None, dtype=torch.uint8, batch_size=4)
    by_position, sizes = [], shard_set.split("train").shard_sizes
    for epoch in range(2):
        loader.set_epoch(epoch)
        plain.set_epoch(epoch)
        images = images_of(loader)
        assert torch.equal(images, images_of(plain)) == (augment == "none")
        order = np.concatenate(list(EpochPlan(shard_sizes=sizes, batch_size=4, epoch=epoch).order()))
        by_position.append(images[np.argsort(order)])
    assert torch.equal(*by_position) == (augment == "none")


def test_a_centre_crop_is_that_of_torchvision(make: MakeLoader, backend: str, originals: dict[str, Tensor]) -> None:
    loader = make(backend, "val", image_size=24, crop_pct=0.9, normalize=None)
    resized = functional.resize(originals["val"], [26, 26], antialias=True)
    difference = (images_of(loader) - functional.center_crop(resized, [24, 24]).float()).abs()
    assert difference.mean() < 0.5
    assert difference.max() <= 2


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize(
    ("dtype", "normalize", "atol"),
    [
        (torch.float32, "unit", 1e-4),
        (torch.float32, "imagenet", 1e-4),
        (torch.float32, (0.5, 0.5), 1e-4),
        (torch.float32, None, 1e-4),
        (torch.float16, "imagenet", 4e-3),
        (torch.float16, ((0.4, 0.5, 0.6), [0.2, 0.3, 0.4]), 4e-3),
        (torch.float16, None, 1e-4),
        (torch.bfloat16, "unit", 4e-3),
        (torch.bfloat16, None, 0.5),
        (torch.uint8, None, 0),
    ],
)
def test_images_have_the_requested_dtype_scale_and_layout(
    make: MakeLoader,
    backend: str,
    originals: dict[str, Tensor],
    dtype: torch.dtype,
    normalize: Any,
    atol: float,
    channels_last: bool,
) -> None:
    loader = make(backend, "val", batch_size=15, dtype=dtype, normalize=normalize, channels_last=channels_last)
    ((images, _),) = loader
    wanted = originals["val"].float()
    if normalize:
        pair = NORMALIZATIONS[normalize] if isinstance(normalize, str) else normalize
        mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in pair)
        wanted = (wanted / 255 - mean) / deviation
    assert images.dtype == dtype
    torch.testing.assert_close(images.float(), wanted, rtol=0, atol=atol)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


def test_batches_are_the_consumers_own(make: MakeLoader, backend: str) -> None:
    """None of them is overwritten by a later one."""
    batches = [(images, images.clone()) for images, _ in make(backend)]
    assert all(torch.equal(images, copied) for images, copied in batches)


def test_cropping_squished_images_warns_with_the_way_out(make: MakeLoader, caplog: pytest.LogCaptureFixture) -> None:
    make("torch", augment="miil")
    assert not caplog.records
    make("torch", augment="inception")
    assert "--resize short-edge --size 256" in caplog.text


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_split_by_its_rows_comes_whole_and_each_image_with_its_row(
    backend: str, split: str, shard_set: ShardSet, originals: dict[str, Tensor]
) -> None:
    opened = shard_set.split(split)
    loader = create_row_loader(shard_set, opened, backend=backend, batch_size=7, image_size=32, workers=1)
    batches = list(loader)
    loader.close()
    assert torch.equal(torch.cat([images for images, _ in batches]), originals[split])  # in the order of the shards
    rows = torch.cat([rows for _, rows in batches]).tolist()
    assert sorted(rows) == list(range(len(opened)))
    keys = read_manifest(shard_set, ["key", "split"]).filter(pc.field("split") == split)["key"].to_pylist()
    for row, image in zip(rows, originals[split], strict=True):
        (pixels,) = read_images(shard_set, opened, [keys[row]])
        assert np.array_equal(pixels, image.permute(1, 2, 0))


def test_the_training_split_comes_whole_and_in_order_where_it_is_not_for_training(
    make: MakeLoader, backend: str, shard_set: ShardSet
) -> None:
    labels = torch.cat([labels for _, labels in make(backend, training=False, batch_size=7)])
    assert labels.tolist() == shard_set.split("train").labels.tolist()
