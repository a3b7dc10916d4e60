"""Permutations that are the same everywhere, for ever."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray


def permutation(count: int, *entropy: int) -> NDArray[np.int64]:
    """Return a permutation of 0..count-1, int64, that depends on `count` and `entropy` (integers >= 0) alone.

    It sorts raw Philox draws, whose stream NumPy promises to keep, as it does not for `Generator.permutation`.
    """
    philox: Any = np.random.Philox(np.random.SeedSequence(entropy))
    draws: NDArray[np.uint64] = philox.random_raw(count)
    order = np.argsort(draws)  # several times as fast as a stable sort, and the same where no two draws are equal
    drawn = draws[order]
    return np.argsort(draws, kind="stable") if (drawn[1:] == drawn[:-1]).any() else order
