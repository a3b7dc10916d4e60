"""What every loader does with samples that cannot be used."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from in21k.datapipe import Loader
from in21k.datapipe.plan import EpochPlan
from in21k.shards import ShardSet, open_dataset

MakeLoader = Callable[..., Loader]
Damage = Callable[..., Path]
KINDS = ["changed", "headless", "undecodable"]


def order_of(shards: ShardSet, split: str = "train", **plan: int) -> list[int]:
    """Return the positions of an epoch of one rank in the plan's order."""
    sizes, training = shards.split(split).shard_sizes, split == "train"
    settings = {"batch_size": 8, "seed": 0} | plan
    batches = EpochPlan(shard_sizes=sizes, shuffle=training, drop_last=training, **settings).batches(0)
    return [position for batch in batches for position in batch.positions.tolist()]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("augment", ["none", "inception"])
def test_in_training_the_next_good_sample_of_the_shard_stands_in_with_its_label(
    make: MakeLoader,
    backend: str,
    damage: Damage,
    shard_set: ShardSet,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    augment: str,
) -> None:
    whole = list(make(backend))
    order, split = order_of(shard_set), shard_set.split("train")
    bad = next(p for p in order if p + 1 in order and split.shard_of(p) == split.shard_of(p + 1))
    shards = damage({bad: kind})
    loader = make(backend, shards=shards, augment=augment)
    with caplog.at_level(logging.WARNING):
        actual = list(loader)
    assert [len(labels) for _, labels in actual] == [len(labels) for _, labels in whole]
    stand_in = [bad + 1 if position == bad else position for position in order]
    assert torch.cat([labels for _, labels in actual]).tolist() == split.labels[stand_in].tolist()
    (message,) = [record.getMessage() for record in caplog.records if record.name.endswith("loader")]
    assert f"{split.shard_names[split.shard_of(bad)]}: sample {split.key(bad)} " in message
    assert ("has other bytes" if kind == "changed" else "does not decode") in message
    assert "the next good one of its shard stands in" in message
    assert loader.num_bad == 1
    if augment == "none":
        images = torch.cat([images for images, _ in actual])
        wanted = torch.cat([images for images, _ in whole])
        assert torch.equal(images[order.index(bad)], wanted[order.index(bad + 1)])
        others = [number for number, position in enumerate(order) if position != bad]
        assert torch.equal(images[others], wanted[others])


def test_the_stand_in_of_a_shards_last_samples_is_its_first(
    make: MakeLoader, backend: str, damage: Damage, shard_set: ShardSet
) -> None:
    split = shard_set.split("train")
    end = int(split.shard_ends[1])
    shards = damage({end - 1: "changed", end - 2: "undecodable"})
    labels = torch.cat([labels for _, labels in make(backend, shards=shards)])
    first = int(split.shard_ends[0])
    wanted = [first if position in (end - 1, end - 2) else position for position in order_of(shard_set)]
    assert labels.tolist() == split.labels[wanted].tolist()


@pytest.mark.parametrize("world_size", [1, 2])
def test_in_validation_a_corrupt_sample_is_left_out_and_the_ranks_agree_on_the_number_of_batches(
    make: MakeLoader, backend: str, damage: Damage, shard_set: ShardSet, world_size: int
) -> None:
    op_indices = {0: "changed", 4: "headless", 9: "undecodable"}
    shards, split = damage(op_indices, "val"), shard_set.split("val")
    ranks = [
        list(make(backend, "val", shards=shards, batch_size=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    assert {len(batches) for batches in ranks} == {-(-15 // (4 * world_size))}
    in_order = [batch for batches in zip(*ranks, strict=True) for batch in batches]
    assert all(images.shape == (len(labels), 3, 32, 32) for images, labels in in_order)
    good = [position for position in range(15) if position not in op_indices]
    assert torch.cat([labels for _, labels in in_order]).tolist() == split.labels[good].tolist()


@pytest.mark.parametrize("kind", KINDS)
def test_a_batch_of_which_nothing_is_left_is_empty_and_the_next_one_comes(
    make: MakeLoader, backend: str, damage: Damage, kind: str
) -> None:
    shards = damage({4: kind, 5: kind, 6: kind}, "val")
    assert [len(labels) for _, labels in make(backend, "val", shards=shards, batch_size=3)] == [3, 1, 2, 3, 3]


@pytest.mark.parametrize("kind", KINDS)
def test_past_the_rate_the_epoch_stops_and_names_shard_and_key(
    make: MakeLoader, backend: str, damage: Damage, kind: str
) -> None:
    shards = damage(dict.fromkeys(range(20, 26), kind))
    pattern = r"train/in21k-train-\d{6}\.tar: sample n\d{8}_\d+ .*; 4 of \d+ samples are corrupt, past"
    with pytest.raises(ValueError, match=pattern) as caught:
        list(make(backend, shards=shards))
    assert "\n" not in str(caught.value)
    assert len(list(make(backend, shards=shards, max_bad_rate=0.2))) == 6


def test_a_rate_of_nothing_stops_at_the_first_corrupt_sample(make: MakeLoader, backend: str, damage: Damage) -> None:
    shards = damage({1: "changed"}, "val")
    with pytest.raises(ValueError, match="1 of 8 samples are corrupt, past max_bad_rate 0"):
        list(make(backend, "val", shards=shards, max_bad_rate=0))


def test_a_shard_without_any_good_sample_stops_the_epoch_whatever_the_rate(
    make: MakeLoader, backend: str, damage: Damage, shard_set: ShardSet
) -> None:
    split = shard_set.split("train")
    shards = damage(dict.fromkeys(range(int(split.shard_ends[0])), "changed"))
    with pytest.raises(ValueError, match=r"has other bytes.*no sample near it can stand in"):
        list(make(backend, shards=shards, max_bad_rate=1))


def test_a_corrupt_sample_is_named_once_an_epoch(
    make: MakeLoader, backend: str, damage: Damage, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where it is met twice: in its own turn, and as a stand-in."""
    shards = damage({3: "changed", 4: "changed", 5: "undecodable"})
    loader = make(backend, shards=shards, batch_size=4)
    for epoch in range(2):
        caplog.clear()
        loader.set_epoch(epoch)
        list(loader)
        messages = [record.getMessage() for record in caplog.records]
        assert len(messages) == len(set(messages)) == loader.num_bad == 3


def test_a_corrupt_sample_moves_no_other_draw_and_no_place(
    make: MakeLoader, backend: str, damage: Damage, shard_set: ShardSet
) -> None:
    order = order_of(shard_set)
    whole = torch.cat([images for images, _ in make(backend, augment="inception")])
    shards = damage({order[11]: "undecodable"})
    loader = make(backend, shards=shards, augment="inception")
    batches = iter(loader)
    next(batches)
    next(batches)
    state = loader.state_dict()
    assert state == {"epoch": 0, "samples": 16}
    other = make(backend, shards=open_dataset(shards), augment="inception")
    other.load_state_dict(state)
    assert torch.equal(torch.cat([images for images, _ in other]), whole[16:])
