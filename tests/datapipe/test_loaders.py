"""What every loader promises, held against each backend that runs on a CPU."""

from __future__ import annotations

import gc
import io
import itertools
import multiprocessing
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import functional

from in21k.datapipe import Loader, available_backends
from in21k.datapipe.augment import AUGMENTATIONS
from in21k.datapipe.pixels import NORMALIZATIONS
from in21k.datapipe.plan import EpochPlan
from in21k.shards import ShardSet, open_dataset
from in21k.shards.reader import SampleReader

SIZE = 32  # as the images are stored
MakeLoader = Callable[..., Loader]


@pytest.fixture(params=itertools.permutations(("torch", "dali_cpu", "opencv"), 2), ids="-".join)
def two_backends(request: pytest.FixtureRequest) -> tuple[str, str]:
    if any(available_backends()[backend] for backend in request.param):
        pytest.skip("one of them is not installed")
    return request.param


@pytest.fixture(scope="session")
def originals(shard_set: ShardSet) -> dict[str, Tensor]:
    """Per split the stored pixels by position, decoded by Pillow: N x 3 x 32 x 32, uint8."""

    def pixels(split: str) -> Tensor:
        opened = shard_set.split(split)
        reader = SampleReader(opened)
        images = [Image.open(io.BytesIO(reader.image(position))).convert("RGB") for position in range(len(opened))]
        reader.close()
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2).contiguous()

    return {split: pixels(split) for split in ("train", "val")}


def positions_of(shards: ShardSet, start: int = 0, **plan: Any) -> list[int]:
    """Return the positions of a training epoch in the plan's order, of one rank."""
    opened = shards.split("train")
    batches = EpochPlan(shard_sizes=opened.shard_sizes, **({"batch_size": 8} | plan)).batches(0, start)
    return [position for batch in batches for position in batch.positions.tolist()]


def images_of(loader: Loader) -> Tensor:
    return torch.cat([images for images, _ in loader])


# Order and labels


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_training_epoch_hands_out_the_samples_in_the_plans_order_with_their_labels(
    make: MakeLoader, backend: str, shard_set: ShardSet, originals: dict[str, Tensor], epoch: int
) -> None:
    loader = make(backend, seed=5)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader) == 6
    order = positions_of(shard_set, seed=5, epoch=epoch)
    wanted = originals["train"][order].float() / 255
    images, labels = (torch.cat(parts) for parts in zip(*batches, strict=True))
    assert (images.shape, images.dtype, labels.dtype) == ((48, 3, SIZE, SIZE), torch.float32, torch.int64)
    torch.testing.assert_close(images, wanted, rtol=0, atol=1e-4)
    split = shard_set.split("train")
    assert labels.tolist() == [shard_set.tree.wnids.index(split.key(p).split("_")[0]) for p in order]


def test_epochs_and_seeds_have_orders_of_their_own(make: MakeLoader, backend: str) -> None:
    loader = make(backend)
    first = images_of(loader)
    loader.set_epoch(1)
    second = images_of(loader)
    assert not torch.equal(first, second)
    loader.set_epoch(0)
    assert torch.equal(images_of(loader), first)
    assert not torch.equal(images_of(make(backend, seed=1)), first)


def test_two_ranks_share_the_batches_of_one(make: MakeLoader, backend: str) -> None:
    whole = list(make(backend, batch_size=8))
    ranks = [list(make(backend, batch_size=4, rank=rank, world_size=2)) for rank in range(2)]
    assert [len(batches) for batches in ranks] == [6, 6]
    for (images, labels), *parts in zip(whole, *ranks, strict=True):
        assert torch.equal(images, torch.cat([part[0] for part in parts]))
        assert torch.equal(labels, torch.cat([part[1] for part in parts]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")  # of more workers than cores
@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_does_not_show(make: MakeLoader, backend: str, workers: int) -> None:
    assert torch.equal(images_of(make(backend, workers=workers)), images_of(make(backend, workers=2)))


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (1, 15), (1, 100), (2, 4), (2, 7), (3, 4), (3, 8)])
def test_validation_hands_out_every_sample_once_over_all_ranks_also_with_empty_batches(
    make: MakeLoader, backend: str, originals: dict[str, Tensor], world_size: int, batch_size: int
) -> None:
    ranks = []
    for rank in range(world_size):
        loader = make(backend, "val", batch_size=batch_size, rank=rank, world_size=world_size)
        ranks.append(list(loader))
        assert len(ranks[-1]) == len(loader) == -(-15 // (batch_size * world_size))
    in_order = [batch for batches in zip(*ranks, strict=True) for batch in batches]
    assert all(images.shape == (len(labels), 3, SIZE, SIZE) for images, labels in in_order)
    assert all(labels.dtype == torch.int64 for _, labels in in_order)
    images = torch.cat([images for images, _ in in_order])
    torch.testing.assert_close(images, originals["val"].float() / 255, rtol=0, atol=1e-4)


# Pixels


def test_backends_agree_at_the_stored_size(make: MakeLoader, two_backends: tuple[str, str]) -> None:
    one, two = (list(make(backend)) for backend in two_backends)
    for (images, labels), (other_images, other_labels) in zip(one, two, strict=True):
        torch.testing.assert_close(images, other_images, rtol=0, atol=1e-4)
        assert torch.equal(labels, other_labels)


# (augment, grey levels on average over all images, on average over the image that differs most)
TOLERANCES = [("none", 0.5, 1), ("miil", 2.5, 8), ("inception", 0.5, 1), ("inception-ra", 2.5, 8)]


@pytest.mark.parametrize("image_size", [20, 32, 48])
@pytest.mark.parametrize(("augment", "mean", "worst"), TOLERANCES)
def test_backends_augment_alike(
    make: MakeLoader, backend: str, image_size: int, augment: str, mean: float, worst: float
) -> None:
    """All are bilinear and antialiased, and round in other places; DALI equalizes by another formula."""
    settings = {"image_size": image_size, "augment": augment, "normalize": None, "seed": 1}
    expected, found = (images_of(make(name, **settings)) for name in ("torch", backend))
    assert found.shape == (48, 3, image_size, image_size)
    difference = (found - expected).abs().flatten(1).mean(1)
    assert difference.mean() <= mean
    if backend != "dali_cpu" or augment in ("none", "inception"):
        assert difference.max() <= worst
    assert difference.median() <= 0.5


@pytest.mark.parametrize("augment", AUGMENTATIONS)
def test_augmentations_change_the_images_and_each_epoch_otherwise(
    make: MakeLoader, backend: str, augment: str, originals: dict[str, Tensor], shard_set: ShardSet
) -> None:
    plain = make(backend, augment="none", normalize=None, dtype=torch.uint8, batch_size=4)
    loader = make(backend, augment=augment, normalize=None, dtype=torch.uint8, batch_size=4)
    by_position = []
    for epoch in range(2):
        loader.set_epoch(epoch)
        plain.set_epoch(epoch)
        images = images_of(loader)
        assert torch.equal(images, images_of(plain)) == (augment == "none")
        order = positions_of(shard_set, epoch=epoch, batch_size=4)
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
        (torch.float32, None, 1e-4),
        (torch.float16, "imagenet", 4e-3),
        (torch.float16, None, 1e-4),
        (torch.bfloat16, "unit", 4e-3),
        (torch.bfloat16, None, 0.5),
        (torch.uint8, None, 0),
    ],
)
def test_images_come_in_the_type_scale_and_layout_asked_for(
    make: MakeLoader,
    backend: str,
    originals: dict[str, Tensor],
    dtype: torch.dtype,
    normalize: str | None,
    atol: float,
    channels_last: bool,
) -> None:
    loader = make(backend, "val", batch_size=15, dtype=dtype, normalize=normalize, channels_last=channels_last)
    ((images, _),) = loader
    wanted = originals["val"].float()
    if normalize:
        mean, deviation = (torch.tensor(values).view(1, 3, 1, 1) for values in NORMALIZATIONS[normalize])
        wanted = (wanted / 255 - mean) / deviation
    assert images.dtype == dtype
    torch.testing.assert_close(images.float(), wanted, rtol=0, atol=atol)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    assert images.is_contiguous(memory_format=layout)


def test_batches_are_the_consumers_own(make: MakeLoader, backend: str) -> None:
    """None of them is overwritten by a later one."""
    batches = [(images, images.clone()) for images, _ in make(backend)]
    assert all(torch.equal(images, copied) for images, copied in batches)


# A place in the epoch


@pytest.mark.parametrize("taken", [0, 1, 3, 6])
def test_a_state_goes_on_with_exactly_the_next_sample_in_another_backend(
    make: MakeLoader, two_backends: tuple[str, str], taken: int
) -> None:
    first, second = two_backends
    whole = list(make(second, seed=2))
    loader = make(first, seed=2)
    batches = iter(loader)
    for _ in range(taken):
        next(batches)
    state = loader.state_dict()
    assert state == {"epoch": 0, "samples": 8 * taken}
    other = make(second, seed=2, workers=2)
    other.load_state_dict(state)
    rest = list(other)
    assert len(rest) == 6 - taken
    assert all(torch.equal(a[0], b[0]) for a, b in zip(rest, whole[taken:], strict=True))


@pytest.mark.parametrize("augment", ["miil", "inception", "inception-ra"])
def test_going_on_augments_as_the_uninterrupted_epoch_also_in_another_world_and_with_other_workers(
    make: MakeLoader, backend: str, augment: str
) -> None:
    whole = images_of(make(backend, augment=augment, seed=3))
    first = make(backend, augment=augment, seed=3, batch_size=5, world_size=2, rank=1)
    list(itertools.islice(iter(first), 2))
    rest = [
        list(make_from(make(backend, augment=augment, seed=3, batch_size=4, world_size=3, rank=rank, workers=2), first))
        for rank in range(3)
    ]
    found = torch.cat([images for batches in zip(*rest, strict=True) for images, _ in batches])
    assert torch.equal(found, whole[20:44])


def make_from(loader: Loader, other: Loader) -> Loader:
    """Let a loader go on where another is."""
    loader.load_state_dict(other.state_dict())
    return loader


def test_a_state_goes_on_in_another_world(make: MakeLoader, backend: str, originals: dict[str, Tensor]) -> None:
    ranks = [make(backend, batch_size=5, rank=rank, world_size=2) for rank in range(2)]
    for rank in ranks:
        rank.set_epoch(3)
        list(itertools.islice(iter(rank), 2))
    states = [rank.state_dict() for rank in ranks]
    assert states == [{"epoch": 3, "samples": 20}] * 2
    alone = make(backend, batch_size=7)
    alone.load_state_dict(states[1])
    order = positions_of(open_dataset(alone.split.folder), 20, batch_size=7, epoch=3)
    assert len(order) == 28
    torch.testing.assert_close(images_of(alone), originals["train"][order].float() / 255, rtol=0, atol=1e-4)


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_iteration_that_was_left_goes_on_where_it_was(make: MakeLoader, backend: str, split: str) -> None:
    loader = make(backend, split, batch_size=4)
    whole = list(loader)
    found = []
    while len(found) < len(whole):
        for batch in loader:
            found.append(batch)
            if len(found) % 2:
                break
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found, whole, strict=True))


def test_a_new_iteration_goes_on_from_one_that_is_still_held(make: MakeLoader, backend: str) -> None:
    whole = list(make(backend))
    loader = make(backend)
    held = iter(loader)
    found = [next(held), *loader]
    assert len(found) == len(whole)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found, whole, strict=True))


def test_an_epoch_that_ended_begins_anew(make: MakeLoader, backend: str) -> None:
    loader = make(backend)
    assert torch.equal(images_of(loader), images_of(loader))
    assert loader.state_dict() == {"epoch": 0, "samples": 0}


def test_another_epoch_begins_at_its_first_sample_and_the_same_goes_on(make: MakeLoader, backend: str) -> None:
    loader = make(backend)
    next(iter(loader))
    loader.set_epoch(0)
    assert loader.state_dict() == {"epoch": 0, "samples": 8}
    loader.set_epoch(4)
    assert loader.state_dict() == {"epoch": 4, "samples": 0}
    fresh = make(backend)
    fresh.set_epoch(4)
    assert torch.equal(images_of(loader), images_of(fresh))


@pytest.mark.parametrize("samples", [-1, 53])
def test_a_state_of_another_split_is_refused(make: MakeLoader, backend: str, samples: int) -> None:
    with pytest.raises(ValueError, match=f"{samples} samples consumed of 52"):
        make(backend).load_state_dict({"epoch": 0, "samples": samples})


def test_a_closed_loader_lets_go_of_its_files_and_processes(
    make: MakeLoader, backend: str, shard_set: ShardSet
) -> None:
    def open_shards() -> list[str]:
        links = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return [link for link in links if link.startswith(str(shard_set.path))]

    threads = threading.active_count()
    loader = make(backend)
    held = iter(loader)
    next(held)
    loader.close()
    assert open_shards() == []
    assert multiprocessing.active_children() == []
    deadline = time.monotonic() + 10
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)  # a queue's own thread ends by itself
    assert threading.active_count() == threads
    assert list(held) == []
    loader.close()


def test_a_shard_that_is_gone_is_named(make: MakeLoader, backend: str, shards_copy: Path) -> None:
    (shards_copy / "train" / "in21k-train-000001.tar").unlink()
    with pytest.raises(OSError, match=r"in21k-train-000001\.tar"):
        list(make(backend, shards=shards_copy))


def test_a_closed_loader_opens_again_and_goes_on(make: MakeLoader, backend: str) -> None:
    whole = list(make(backend, augment="inception"))
    loader = make(backend, augment="inception")
    found = list(itertools.islice(iter(loader), 2))
    loader.close()
    found += list(loader)
    assert all(torch.equal(a[0], b[0]) for a, b in zip(found, whole, strict=True))
    assert len(found) == len(whole)


def test_fifty_epochs_leave_nothing_behind(make: MakeLoader, backend: str) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        descriptors = len(list(Path("/proc/self/fd").iterdir()))
        return threading.active_count(), descriptors, len(multiprocessing.active_children())

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    loader = make(backend, augment="inception", batch_size=16)
    epochs = 20 if backend == "torch" else 50  # it starts processes each time
    before: tuple[tuple[int, int, int], int] | None = None
    for epoch in range(epochs):
        loader.set_epoch(epoch)
        batches = iter(loader)
        list(batches if epoch % 2 else itertools.islice(batches, 1))
        del batches
        if epoch == epochs // 3:
            before = held(), resident_bytes()
    assert before is not None
    assert held() == before[0]
    assert resident_bytes() - before[1] < 16 * 2**20


def test_cropping_what_is_squished_earns_a_warning_with_the_way_out(
    make: MakeLoader, caplog: pytest.LogCaptureFixture
) -> None:
    make("torch", augment="miil")
    assert not caplog.records
    make("torch", augment="inception")
    assert "--resize short-edge --size 256" in caplog.text
