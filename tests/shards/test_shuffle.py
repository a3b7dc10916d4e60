from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.shuffle import permutation


@given(st.integers(0, 300), st.lists(st.integers(0, 2**64), max_size=4))
def test_every_position_comes_once_in_an_order_of_the_entropy_alone(count: int, entropy: list[int]) -> None:
    order = permutation(count, *entropy)
    assert order.dtype == np.int64
    assert sorted(order.tolist()) == list(range(count))
    assert order.tolist() == permutation(count, *entropy).tolist()


def test_the_permutation_is_this_one_for_ever() -> None:
    assert permutation(8, 0, 0).tolist() == [0, 3, 7, 5, 1, 2, 6, 4]
    assert permutation(8, 1, 0).tolist() == [2, 0, 1, 4, 5, 6, 7, 3]


def test_other_entropy_gives_another_order() -> None:
    orders = {
        tuple(permutation(50, *entropy).tolist()) for entropy in [(0,), (1,), (0, 1), (1, 1), (2, 1), (0, 1, 0, 3)]
    }
    assert len(orders) == 6


def test_entropy_below_zero_is_refused() -> None:
    with pytest.raises(ValueError, match="non-negative"):
        permutation(3, -1)
