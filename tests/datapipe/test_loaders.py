"""What every loader promises, held against each backend that runs on a CPU."""

from __future__ import annotations

import io
import itertools
import multiprocessing
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from in21k.datapipe import Loader, create_loader
from in21k.datapipe.pixels import NORMALIZATIONS
from in21k.datapipe.plan import EpochPlan
from in21k.shards import ShardSet, open_dataset
from in21k.shards.reader import SampleReader

SIZE = 32  # as the images are stored
HAS_DALI = bool(find_spec("nvidia") and find_spec("nvidia.dali"))
WITH_DALI = pytest.mark.skipif(not HAS_DALI, reason="DALI is not installed")
MakeLoader = Callable[..., Loader]


@pytest.fixture(params=["torch", pytest.param("dali_cpu", marks=WITH_DALI)])
def backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(params=[("torch", "dali_cpu"), ("dali_cpu", "torch")], ids="-".join)
def two_backends(request: pytest.FixtureRequest) -> tuple[str, str]:
    if not HAS_DALI:
        pytest.skip("DALI is not installed")
    return request.param


@pytest.fixture
def make(shard_set: ShardSet) -> Iterator[MakeLoader]:
    """Make loaders over `shard_set`, or the one named; they are closed at the end."""
    made: list[Loader] = []

    def make(backend: str, split: str = "train", shards: ShardSet | Path | None = None, **settings: Any) -> Loader:
        settings = {"batch_size": 8, "image_size": SIZE, "workers": 1} | settings
        made.append(create_loader(shards or shard_set, split=split, backend=backend, **settings))
        return made[-1]

    yield make
    for loader in made:
        loader.close()


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
    return [position for batch in batches for position in batch.tolist()]


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


@pytest.mark.parametrize("image_size", [20, 48])
def test_backends_agree_when_they_resize(make: MakeLoader, image_size: int) -> None:
    """Both are bilinear and antialiased, and round in other places: they differ by a grey level here and there."""
    if not HAS_DALI:
        pytest.skip("DALI is not installed")
    one, two = (images_of(make(backend, image_size=image_size)) for backend in ("torch", "dali_cpu"))
    difference = (one - two).abs() * 255
    assert one.shape[2:] == (image_size, image_size)
    assert difference.mean() < 0.5
    assert difference.max() < 4


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

    loader = make(backend)
    held = iter(loader)
    next(held)
    loader.close()
    assert open_shards() == []
    assert multiprocessing.active_children() == []
    loader.close()
    del held


# Samples that are broken


@pytest.fixture
def corrupt(shards_copy: Path) -> tuple[Path, str, str]:
    """A shard set with one changed byte in the tenth training sample: (folder, shard, key)."""
    split = open_dataset(shards_copy).split("train")
    shard = split.shard_names[split.shard_of(9)]
    data = bytearray((shards_copy / shard).read_bytes())
    data[int(split.offsets[9]) + 200] ^= 0xFF
    (shards_copy / shard).write_bytes(data)
    return shards_copy, shard, split.key(9)


def test_changed_bytes_raise_an_error_of_one_line_with_shard_and_key(
    make: MakeLoader, backend: str, corrupt: tuple[Path, str, str]
) -> None:
    folder, shard, key = corrupt
    with pytest.raises(ValueError, match=f"{shard}: sample {key} has other bytes") as caught:
        list(make(backend, shards=folder))
    assert "Traceback" not in str(caught.value)


def test_a_sample_that_does_not_decode_raises_an_error_of_one_line_with_shard_and_key(
    make: MakeLoader, backend: str, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its bytes are those that were written, and no JPEG all the same."""
    split, read = shard_set.split("train"), SampleReader.image
    bad = positions_of(shard_set)[12]
    monkeypatch.setattr(SampleReader, "image", lambda self, at: b"no JPEG" * 9 if at == bad else read(self, at))
    shard = split.shard_names[split.shard_of(bad)]
    with pytest.raises(ValueError, match=rf"{shard}: sample {split.key(bad)} does not decode") as caught:
        list(make(backend))
    assert "Traceback" not in str(caught.value)


def test_a_shard_that_is_gone_is_named(make: MakeLoader, backend: str, shards_copy: Path) -> None:
    (shards_copy / "train" / "in21k-train-000001.tar").unlink()
    with pytest.raises(OSError, match=r"in21k-train-000001\.tar"):
        list(make(backend, shards=shards_copy))
