from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from in21k.datapipe.plan import EpochPlan

SIZES = st.lists(st.integers(0, 13), min_size=1, max_size=12)
WORLD = st.integers(1, 5)
BATCH = st.integers(1, 7)


def plan_of(sizes: list[int], **settings: Any) -> EpochPlan:
    return EpochPlan(shard_sizes=np.array(sizes, np.int64), **({"batch_size": 2, "window_shards": 3} | settings))


def order_of(plan: EpochPlan, start: int = 0) -> list[int]:
    return [position for window in plan.order(start) for position in window.tolist()]


def rank_batches(plan: EpochPlan, start: int = 0) -> list[list[list[int]]]:
    """Return per rank its batches."""
    return [[batch.positions.tolist() for batch in plan.batches(rank, start)] for rank in range(plan.world_size)]


def consumed(plan: EpochPlan, start: int = 0) -> list[int]:
    """Return the positions in the order in which all ranks together take them."""
    return [p for batches in zip(*rank_batches(plan, start), strict=True) for batch in batches for p in batch]


def test_a_small_order_is_this_one_for_ever() -> None:
    sizes = [3, 4, 2, 3]  # positions 0-2, 3-6, 7-8, 9-11; two shards a window
    assert order_of(plan_of(sizes, window_shards=2)) == [10, 1, 2, 0, 11, 9, 7, 4, 3, 6, 8, 5]
    assert order_of(plan_of(sizes, window_shards=2, epoch=1)) == [10, 11, 8, 7, 9, 2, 0, 5, 3, 1, 4, 6]
    assert order_of(plan_of(sizes, window_shards=2, seed=1)) == [1, 2, 8, 0, 7, 11, 6, 4, 5, 3, 10, 9]
    assert rank_batches(plan_of(sizes, window_shards=2, world_size=2)) == [
        [[10, 1], [11, 9], [3, 6]],
        [[2, 0], [7, 4], [8, 5]],
    ]


@given(SIZES, st.integers(0, 9), st.integers(0, 9), st.integers(1, 4), st.booleans())
def test_the_order_is_a_permutation_that_the_same_numbers_give_again(
    sizes: list[int], seed: int, epoch: int, window_shards: int, shuffle: bool
) -> None:
    plan = plan_of(sizes, seed=seed, epoch=epoch, window_shards=window_shards, shuffle=shuffle)
    order = order_of(plan)
    assert sorted(order) == list(range(sum(sizes)))
    assert order == order_of(plan)
    if not shuffle:
        assert order == list(range(sum(sizes)))


@given(SIZES, st.integers(0, 90))
def test_an_order_begun_later_is_its_rest(sizes: list[int], start: int) -> None:
    plan = plan_of(sizes)
    assert order_of(plan, start) == order_of(plan)[start:]


def test_seeds_and_epochs_give_orders_of_their_own() -> None:
    orders = [order_of(plan_of([10] * 6, seed=seed, epoch=epoch)) for seed in range(3) for epoch in range(3)]
    assert len({tuple(order) for order in orders}) == 9


@given(SIZES, WORLD, BATCH, st.booleans())
def test_the_batches_are_the_order_cut_between_the_ranks_and_the_world_does_not_change_it(
    sizes: list[int], world_size: int, batch_size: int, training: bool
) -> None:
    plan = plan_of(sizes, world_size=world_size, batch_size=batch_size, drop_last=training)
    kept = len(order_of(plan)) // plan.global_batch * plan.global_batch if training else sum(sizes)
    assert consumed(plan) == order_of(plan)[:kept]
    assert order_of(plan) == order_of(plan_of(sizes))


@given(SIZES, WORLD, BATCH)
def test_in_training_every_rank_gets_as_many_full_batches_and_no_sample_comes_twice(
    sizes: list[int], world_size: int, batch_size: int
) -> None:
    plan = plan_of(sizes, world_size=world_size, batch_size=batch_size)
    ranks = rank_batches(plan)
    assert {len(batches) for batches in ranks} == {plan.num_batches()}
    assert plan.num_batches() == sum(sizes) // (world_size * batch_size)
    assert all(len(batch) == batch_size for batches in ranks for batch in batches)
    taken = [position for batches in ranks for batch in batches for position in batch]
    assert len(set(taken)) == len(taken) > sum(sizes) - world_size * batch_size


@given(SIZES, WORLD, BATCH)
def test_in_validation_the_ranks_together_take_every_sample_once_in_as_many_batches_each(
    sizes: list[int], world_size: int, batch_size: int
) -> None:
    plan = plan_of(sizes, world_size=world_size, batch_size=batch_size, shuffle=False, drop_last=False)
    ranks = rank_batches(plan)
    assert {len(batches) for batches in ranks} == {plan.num_batches()}
    taken = sorted(position for batches in ranks for batch in batches for position in batch)
    assert taken == list(range(sum(sizes)))
    for batches in ranks:
        assert all(len(batch) == batch_size for batch in batches[:-1])
        assert all(len(batch) <= batch_size for batch in batches[-1:])


@given(SIZES, WORLD, BATCH, WORLD, BATCH, st.data())
def test_resuming_after_any_global_batch_gives_the_rest_with_any_world_size(
    sizes: list[int], world_size: int, batch_size: int, later_world: int, later_batch: int, data: st.DataObject
) -> None:
    before = plan_of(sizes, world_size=world_size, batch_size=batch_size)
    start = before.global_batch * data.draw(st.integers(0, before.num_batches()))
    assert consumed(before, start) == consumed(before)[start:]
    assert before.num_batches(start) == before.num_batches() - start // before.global_batch
    after = plan_of(sizes, world_size=later_world, batch_size=later_batch)
    rest = consumed(after, start)
    assert rest == order_of(before)[start:][: len(rest)]
    assert len(rest) > sum(sizes) - start - after.global_batch


@given(SIZES, st.lists(st.tuples(WORLD, BATCH, st.integers(0, 3)), max_size=6))
def test_an_epoch_interrupted_any_number_of_times_keeps_one_order(
    sizes: list[int], parts: list[tuple[int, int, int]]
) -> None:
    items: list[int] = []
    for world_size, batch_size, num_taken in parts:
        plan = plan_of(sizes, world_size=world_size, batch_size=batch_size)
        items += consumed(plan, len(items))[: num_taken * plan.global_batch]
    assert items == order_of(plan_of(sizes))[: len(items)]


def test_other_samples_are_left_out_in_other_epochs() -> None:
    left_out = [set(range(23)) - set(consumed(plan_of([8, 7, 8], batch_size=10, epoch=epoch))) for epoch in range(12)]
    assert {len(left) for left in left_out} == {3}
    assert len(set.union(*left_out)) > 12


@given(SIZES, st.integers(1, 4), st.integers(0, 3))
def test_a_window_holds_the_samples_of_its_few_shards_alone(sizes: list[int], window_shards: int, epoch: int) -> None:
    """Samples travel no further: while a window is read, no other shard is."""
    plan = plan_of(sizes, window_shards=window_shards, epoch=epoch)
    ends = np.cumsum(sizes)
    seen: set[int] = set()
    for window in plan.order():
        shards = set(np.searchsorted(ends, window, side="right").tolist())
        assert len(shards) <= window_shards
        assert len(window) == sum(sizes[shard] for shard in shards)
        assert not shards & seen
        seen |= shards


# How good the shuffle is, on 40 shards of 1,000 samples in windows of 16, 16 and 8


@pytest.fixture(scope="module")
def windows() -> list[NDArray[np.int64]]:
    return list(plan_of([1000] * 40, window_shards=16).order())


def test_a_batch_draws_from_nearly_all_shards_of_its_window(windows: list[NDArray[np.int64]]) -> None:
    for window in windows:
        num_shards = len(window) // 1000
        for start in range(0, len(window) - 255, 256):
            assert len(np.unique(window[start : start + 256] // 1000)) >= num_shards - 2


def test_a_sample_travels_a_third_of_its_window_as_in_any_fair_shuffle(windows: list[NDArray[np.int64]]) -> None:
    for window in windows:
        read = np.argsort(np.argsort(window))  # where it comes when the window's shards are read from end to end
        travelled = np.abs(read - np.arange(len(window)))
        assert travelled.mean() == pytest.approx(len(window) / 3, rel=0.05)
        assert travelled.max() > 0.9 * len(window)


def test_samples_that_lie_side_by_side_are_parted_and_do_not_meet_more_often_than_others(
    windows: list[NDArray[np.int64]],
) -> None:
    batch_of = np.empty(40_000, np.int64)
    batch_of[np.concatenate(windows)] = np.arange(40_000) // 250
    met = (batch_of[1:] == batch_of[:-1]).mean()
    assert met == pytest.approx(250 / 16_000, rel=0.25)


def test_a_sample_has_a_new_place_in_the_next_epoch(windows: list[NDArray[np.int64]]) -> None:
    places = np.empty((2, 40_000), np.int64)
    places[0, np.concatenate(windows)] = np.arange(40_000)
    after = plan_of([1000] * 40, window_shards=16, epoch=1)
    places[1, np.concatenate(list(after.order()))] = np.arange(40_000)
    # Two random places are a third of the epoch apart on average; shards move together, so few shards vary it.
    assert np.abs(places[0] - places[1]).mean() / 40_000 == pytest.approx(1 / 3, abs=0.1)


def test_shards_come_in_another_order_each_epoch() -> None:
    first_shards = {order_of(plan_of([5] * 20, window_shards=1, epoch=epoch))[0] // 5 for epoch in range(10)}
    assert len(first_shards) > 3


def test_a_large_plan_makes_its_first_batch_without_its_last() -> None:
    """21K-P: 12.4 million samples in 1,240 shards; a window of them is 160,000."""
    plan = EpochPlan(shard_sizes=np.full(1240, 10_000), batch_size=256, world_size=8)
    assert plan.num_batches() == 12_400_000 // 2048
    window = next(plan.order())
    assert len(window) == 160_000
    assert next(plan.batches(3)).positions.tolist() == window[3 * 256 : 4 * 256].tolist()


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"batch_size": 0}, "batch_size is 0; wanted 1 or more"),
        ({"world_size": 0}, "world_size is 0; wanted 1 or more"),
        ({"window_shards": 0}, "window_shards is 0; wanted 1 or more"),
        ({"seed": -1}, "seed is -1; wanted 0 or more"),
        ({"epoch": -1}, "epoch is -1; wanted 0 or more"),
    ],
)
def test_numbers_out_of_range_are_refused(settings: dict[str, int], wanted: str) -> None:
    with pytest.raises(ValueError, match=wanted):
        plan_of([3], **settings)


@pytest.mark.parametrize("rank", [-1, 2])
def test_a_rank_outside_the_world_is_refused(rank: int) -> None:
    with pytest.raises(ValueError, match=f"rank is {rank}; wanted 0 to 1"):
        next(plan_of([9], world_size=2).batches(rank))
