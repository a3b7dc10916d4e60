"""What every indexed backend promises to the sample: one suite, run over each that is installed.

Which samples a loader handed out is told by their pixels, so that no promise rests on the loader's own word.
"""

from __future__ import annotations

import ctypes
import errno
import gc
import itertools
import multiprocessing
import os
import statistics
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from in21k.datapipe import Loader
from in21k.datapipe.plan import EpochPlan
from in21k.shards import ShardSet

from .conftest import BACKENDS, SIZE

ON_GPU = pytest.param(
    "dali_gpu",
    marks=[
        pytest.mark.gpu,
        pytest.mark.skipif(not torch.cuda.is_available() or "dali_cpu" not in BACKENDS, reason="no GPU, or no DALI"),
    ],
)
ALL = [*BACKENDS, ON_GPU]
NUM_TRAIN, NUM_VAL, BATCH = 52, 15, 8
NEAR = 3 / 255  # how far an image may be from the stored one that it is of, on average (the GPU decodes otherwise)

MakeLoader = Callable[..., Loader]
Batches = list[tuple[Tensor, Tensor]]


@pytest.fixture(params=ALL)
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def stored(originals: dict[str, Tensor]) -> dict[str, Tensor]:
    """Per split the stored pixels by position: N x 3072, 0..1."""
    values = {split: images.flatten(1) / 255 for split, images in originals.items()}
    for images in values.values():
        apart = torch.cdist(images, images, p=1) / images.shape[1]
        assert apart.fill_diagonal_(1).min() > 2 * NEAR
    return values


@pytest.fixture
def recognised(stored: dict[str, Tensor]) -> Callable[..., list[int]]:
    """Return the positions of the samples that batches are of, as their pixels say."""

    def recognised(batches: Iterable[tuple[Tensor, Tensor]], split: str = "train") -> list[int]:
        images = joined(batches)
        apart = torch.cdist(images.flatten(1), stored[split], p=1) / stored[split].shape[1]
        assert apart.min(dim=1).values.max() < NEAR
        return apart.argmin(dim=1).tolist()

    return recognised


def joined(batches: Iterable[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the images of all batches, on the CPU."""
    return torch.cat([images.cpu() for images, _ in batches])


def in_turns(ranks: Iterable[Iterable[tuple[Tensor, Tensor]]]) -> Batches:
    """Return the batches of all ranks in the order in which these take them together."""
    return [batch for batches in zip(*map(list, ranks), strict=True) for batch in batches]


def order_of(shards: ShardSet, **plan: Any) -> list[int]:
    """Return the positions of a training epoch in the plan's order, those left out at its end too."""
    windows = EpochPlan(shard_sizes=shards.split("train").shard_sizes, batch_size=1, **plan).order()
    return np.concatenate(list(windows)).tolist()


def moved(loader: Loader, state: dict[str, int]) -> Loader:
    """Let a loader go on from a state."""
    loader.load_state_dict(state)
    return loader


# Order, coverage, lengths


@pytest.mark.parametrize("epoch", [0, 1])
def test_a_training_epoch_is_the_plans_order_with_the_samples_labels(
    make: MakeLoader, backend: str, shard_set: ShardSet, recognised: Callable[..., list[int]], epoch: int
) -> None:
    loader = make(backend, seed=5)
    loader.set_epoch(epoch)
    batches = list(loader)
    assert len(batches) == len(loader) == NUM_TRAIN // BATCH
    assert all(images.shape == (BATCH, 3, SIZE, SIZE) for images, _ in batches)
    order = order_of(shard_set, seed=5, epoch=epoch)[: len(batches) * BATCH]
    assert recognised(batches) == order
    labels, split = torch.cat([labels for _, labels in batches]), shard_set.split("train")
    assert labels.dtype == torch.int64
    assert labels.tolist() == [shard_set.tree.wnids.index(split.key(position).split("_")[0]) for position in order]


def test_an_epoch_repeats_its_order_and_another_epoch_has_another_order(
    make: MakeLoader, backend: str, recognised: Callable[..., list[int]]
) -> None:
    loader = make(backend)
    first = recognised(loader)
    assert loader.state_dict() == {"epoch": 0, "samples": 0}
    assert recognised(loader) == first
    loader.set_epoch(1)
    assert recognised(loader) != first
    loader.set_epoch(0)
    assert recognised(loader) == first
    assert recognised(make(backend, seed=1)) != first


@pytest.mark.parametrize(("world_size", "batch_size"), [(2, 4), (3, 5)])
def test_in_training_the_ranks_share_the_order_without_a_sample_twice(
    make: MakeLoader,
    backend: str,
    shard_set: ShardSet,
    recognised: Callable[..., list[int]],
    world_size: int,
    batch_size: int,
) -> None:
    ranks = [make(backend, batch_size=batch_size, rank=rank, world_size=world_size) for rank in range(world_size)]
    num_batches = NUM_TRAIN // (world_size * batch_size)
    batches = in_turns(ranks)
    assert {len(rank) for rank in ranks} == {num_batches}
    assert [len(labels) for _, labels in batches] == [batch_size] * (num_batches * world_size)
    assert recognised(batches) == order_of(shard_set)[: num_batches * world_size * batch_size]


@pytest.mark.parametrize(("world_size", "batch_size"), [(1, 4), (1, 15), (1, 100), (2, 7), (3, 4), (3, 8)])
def test_in_validation_the_ranks_together_hand_out_every_sample_once_also_with_empty_batches(
    make: MakeLoader, backend: str, recognised: Callable[..., list[int]], world_size: int, batch_size: int
) -> None:
    settings = {"batch_size": batch_size, "world_size": world_size}
    ranks = [make(backend, "val", rank=rank, **settings) for rank in range(world_size)]
    batches = in_turns(ranks)
    assert {len(rank) for rank in ranks} == {-(-NUM_VAL // (batch_size * world_size))}
    assert all(images.shape == (len(labels), 3, SIZE, SIZE) for images, labels in batches)
    assert all(labels.dtype == torch.int64 for _, labels in batches)
    assert recognised(batches, "val") == list(range(NUM_VAL))


# Torch says so of more workers than cores.
@pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")
def test_the_number_of_workers_does_not_show(make: MakeLoader, backend: str) -> None:
    one, three = (joined(make(backend, augment="inception", workers=workers)) for workers in (1, 3))
    assert_alike(one, three, (backend, backend), "inception")


# A place in the epoch


def test_a_state_resumes_at_exactly_the_next_sample_after_any_batch(
    make: MakeLoader, backend: str, shard_set: ShardSet, recognised: Callable[..., list[int]]
) -> None:
    order, loader = order_of(shard_set, epoch=3), make(backend)
    loader.set_epoch(3)
    states = [loader.state_dict(), *(loader.state_dict() for _ in loader)]
    assert states == [{"epoch": 3, "samples": BATCH * taken} for taken in range(7)]
    other = make(backend)
    for state in states:
        rest = list(moved(other, state))
        assert len(rest) == (48 - state["samples"]) // BATCH
        assert not rest or recognised(rest) == order[state["samples"] : 48]


# Grey levels between two backends: on average over all images, and over half of them. All are bilinear and
# antialiased, and round in other places; RandAugment's thresholds enlarge small differences.
APART = {"none": (0.5, 0.5), "inception": (0.5, 0.5), "miil": (2.5, 0.5), "inception-ra": (2.5, 0.5)}
APART_ON_GPU = {"none": (2, 2), "inception": (2, 2), "miil": (4, 2), "inception-ra": (4, 2)}


def assert_alike(actual: Tensor, expected: Tensor, backends: tuple[str, str], augment: str) -> None:
    """Images (0..1) are equal to the bit where one backend of the CPU made both, else close."""
    assert actual.shape == expected.shape
    if "dali_gpu" not in backends and len(set(backends)) == 1:
        assert torch.equal(actual, expected)
        return
    mean, median = (APART_ON_GPU if "dali_gpu" in backends else APART)[augment]
    apart = 255 * (actual - expected).abs().flatten(1).mean(1)
    assert apart.mean() <= mean
    assert apart.median() <= median


@pytest.mark.parametrize("second", ALL)
@pytest.mark.parametrize("augment", ["none", "miil", "inception", "inception-ra"])
def test_resuming_with_another_backend_world_size_and_workers_gives_the_uninterrupted_epoch(
    make: MakeLoader, backend: str, second: str, augment: str
) -> None:
    """In samples and augmentation: to the bit in each backend, between two within the tolerance."""
    settings = {"augment": augment, "seed": 2}
    whole = list(make(backend, **settings))
    first = make(backend, **settings, batch_size=5, world_size=2, rank=1)
    list(itertools.islice(iter(first), 2))
    state = first.state_dict()
    assert state == {"epoch": 0, "samples": 20}
    settings |= {"batch_size": 4, "world_size": 3, "workers": 2}
    rest = in_turns(moved(make(second, **settings, rank=rank), state) for rank in range(3))
    assert_alike(joined(rest), joined(whole)[20:44], (backend, second), augment)
    assert (
        torch.cat([labels.cpu() for _, labels in rest]).tolist()
        == [label for _, labels in whole for label in labels.tolist()][20:44]
    )


@pytest.mark.parametrize("split", ["train", "val"])
def test_an_abandoned_iteration_resumes_where_it_stopped(
    make: MakeLoader, backend: str, split: str, recognised: Callable[..., list[int]]
) -> None:
    loader = make(backend, split)
    whole = recognised(loader, split)
    actual = Batches()
    while len(actual) < len(loader):
        actual += itertools.islice(loader, 2)
    assert recognised(actual, split) == whole


def test_a_new_iteration_continues_one_that_is_still_open(
    make: MakeLoader, backend: str, recognised: Callable[..., list[int]]
) -> None:
    loader = make(backend)
    whole, held = recognised(loader), iter(loader)
    assert recognised([next(held), *loader]) == whole
    assert list(held) == []


def test_a_new_epoch_starts_at_its_first_sample_and_the_same_epoch_continues(
    make: MakeLoader, backend: str, shard_set: ShardSet, recognised: Callable[..., list[int]]
) -> None:
    loader = make(backend)
    next(iter(loader))
    loader.set_epoch(0)
    assert loader.state_dict() == {"epoch": 0, "samples": BATCH}
    loader.set_epoch(4)
    assert loader.state_dict() == {"epoch": 4, "samples": 0}
    assert recognised(loader) == order_of(shard_set, epoch=4)[:48]


@pytest.mark.parametrize("samples", [-1, NUM_TRAIN + 1])
def test_a_state_of_another_split_is_refused(make: MakeLoader, backend: str, samples: int) -> None:
    with pytest.raises(ValueError, match=f"{samples} samples consumed of {NUM_TRAIN}"):
        make(backend).load_state_dict({"epoch": 0, "samples": samples})


# What is left behind


def held_here() -> tuple[list[str], list[str], int]:
    """Return the names of the threads, the open files, and the number of child processes."""
    gc.collect()
    files = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    children = sum(len(path.read_text().split()) for path in Path("/proc/self/task").glob("*/children"))
    return sorted(thread.name for thread in threading.enumerate()), sorted(files), children


def settled(wanted: tuple[list[str], list[str], int]) -> tuple[list[str], list[str], int]:
    """Return what is held as soon as it is what is wanted, or after ten seconds; a queue's thread ends by itself."""
    deadline = time.monotonic() + 10
    while (held := held_here()) != wanted and time.monotonic() < deadline:
        time.sleep(0.01)
    return held


def resident_bytes() -> int:
    """Return the memory in use; what is free but kept by the allocator comes and goes by more than any leak."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_loader_closed_in_mid_epoch_releases_everything_and_reopens_where_it_was(
    make: MakeLoader, backend: str
) -> None:
    loader = make(backend, augment="inception")
    whole = joined(loader)
    loader.close()
    before = held_here()  # after a first time: libraries open files for good
    iteration = iter(loader)
    items = [next(iteration), next(iteration)]
    assert held_here() != before
    loader.close()
    assert settled(before) == before
    assert multiprocessing.active_children() == []
    assert list(iteration) == []
    assert loader.state_dict() == {"epoch": 0, "samples": 2 * BATCH}
    assert_alike(joined([*items, *loader]), whole, (backend, backend), "inception")
    loader.close()
    assert settled(before) == before


@pytest.mark.slow
def test_fifty_epochs_whole_or_left_leave_nothing_behind(make: MakeLoader, backend: str) -> None:
    """Threads, files and processes are counted; memory may not grow by half a batch an epoch."""
    loader = make(backend, augment="inception", batch_size=16, image_size=96)
    batch_bytes = 16 * 3 * 96 * 96 * 4
    held, resident = [], []
    for epoch in range(50):
        loader.set_epoch(epoch)
        batches = iter(loader)
        list(batches if epoch % 2 else itertools.islice(batches, 1))
        del batches
        if epoch % 30 in (15, 16, 17, 18, 19):
            held.append(held_here())
            resident.append(resident_bytes())
    assert settled(held[0]) == held[0]
    growth = statistics.median(resident[5:]) - statistics.median(resident[:5])
    assert growth < 30 * batch_bytes / 2


def test_a_shard_that_is_gone_is_named(make: MakeLoader, backend: str, shards_copy: Path) -> None:
    (shards_copy / "train" / "in21k-train-000001.tar").unlink()
    with pytest.raises(OSError, match=r"in21k-train-000001\.tar"):
        list(make(backend, shards=shards_copy))


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_shard_that_the_disk_fails_to_read_ends_the_epoch_by_its_name(
    make: MakeLoader, backend: str, shard_set: ShardSet, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also within a sample: the disk gives what lies before, and the sample is not taken for corrupt."""
    failing, bad_sector = shard_set.path / shard_set.shard_names(split)[1], 5000
    pread = os.pread

    def failing_pread(descriptor: int, num_bytes: int, offset: int) -> bytes:
        if Path(f"/proc/self/fd/{descriptor}").readlink() != failing or offset + num_bytes <= bad_sector:
            return pread(descriptor, num_bytes, offset)
        if offset >= bad_sector:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return pread(descriptor, bad_sector - offset, offset)

    loader = make(backend, split)
    monkeypatch.setattr(os, "pread", failing_pread)
    with pytest.raises(OSError, match=r"Input/output error") as caught:
        list(loader)
    assert (caught.value.errno, caught.value.filename) == (errno.EIO, str(failing))
    assert loader.num_bad == 0
    monkeypatch.undo()
    list(loader)
