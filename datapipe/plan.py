"""The order of samples: one for each (seed, epoch), the same for every backend, worker count and world size.

Nothing is read here. A sample's position counts through the shards of a split, 0-based. Shards are permuted, then the
samples inside each window of shards, so that reads stay sequential in the large; every node so reads all shards over
time.

Measured at 21K-P's size, 1,240 shards of 10,000 samples: a batch of 256 draws from all 16 shards of its window (from 8
in the last window, which has no more), samples that lie side by side come 46,600 places apart in the median, and 0.16 %
of them share a batch, as chance would have it; a sample travels 53,200 places on average, a third of its window. The
shards themselves were filled in a random order, so that 16 of them are a fair draw from the whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..shards.shuffle import permutation

WINDOW_SHARDS = 16  # guessed: 160,000 samples of 21K-P's size mix, 1.8 GB of them stay in the page cache


@dataclass(frozen=True, eq=False)
class PlannedBatch:
    """One rank's part of a global batch.

    positions:  which samples of the split, int64 (B,).
    first:      the number of its first sample in the epoch's order; the others follow it. Random draws come from it.
    epoch:      the epoch that the order is of.
    """

    positions: NDArray[np.int64]
    first: int
    epoch: int

    def __len__(self) -> int:
        return len(self.positions)


@dataclass(frozen=True, kw_only=True)
class EpochPlan:
    """Which samples each rank's batches of one epoch hold.

    Global batch g is the next world_size x batch_size samples of the order; rank r takes the r-th batch_size of them.

    shard_sizes:  samples per shard, int64.
    shuffle:      permute by (seed, epoch); otherwise samples come by position.
    drop_last:    leave out the samples that do not fill a last global batch (training); otherwise they make a last
                  one that is short, or empty, on some ranks (validation).
    """

    shard_sizes: NDArray[np.int64]
    batch_size: int
    world_size: int = 1
    seed: int = 0
    epoch: int = 0
    shuffle: bool = True
    drop_last: bool = True
    window_shards: int = WINDOW_SHARDS

    def __post_init__(self) -> None:
        for name in ("batch_size", "world_size", "window_shards"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        for name in ("seed", "epoch"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 0 or more")

    @property
    def num_samples(self) -> int:
        """Samples in the split."""
        return int(self.shard_sizes.sum())

    @property
    def global_batch(self) -> int:
        """Samples that all ranks together take at a time."""
        return self.world_size * self.batch_size

    def num_batches(self, start: int = 0) -> int:
        """Return how many batches every rank gets when `start` samples are consumed already."""
        left = self.num_samples - start
        return left // self.global_batch if self.drop_last else -(-left // self.global_batch)

    def has_samples(self, rank: int, start: int) -> bool:
        """Tell whether a rank's next batch after `start` samples has any: in validation its last may be empty."""
        return start + rank * self.batch_size < self.num_samples

    def order(self, start: int = 0) -> Iterator[NDArray[np.int64]]:
        """Yield the positions in their order from number `start` on, a window of shards at a time."""
        starts = (np.cumsum(self.shard_sizes) - self.shard_sizes).tolist()
        shards = np.arange(len(self.shard_sizes))
        if self.shuffle:
            shards = permutation(len(shards), self.seed, self.epoch, 0)
        for window, first in enumerate(range(0, len(shards), self.window_shards)):
            members = shards[first : first + self.window_shards]
            size = int(self.shard_sizes[members].sum())
            if start >= size:
                start -= size
                continue
            positions = np.concatenate(
                [np.arange(starts[s], starts[s] + self.shard_sizes[s]) for s in members.tolist()]
            )
            if self.shuffle:
                positions = positions[permutation(size, self.seed, self.epoch, 1, window)]
            yield positions[start:]
            start = 0

    def batches(self, rank: int, start: int = 0) -> Iterator[PlannedBatch]:
        """Yield each batch of a rank when `start` samples were consumed already; the last may be short, or empty."""
        if not 0 <= rank < self.world_size:
            raise ValueError(f"rank is {rank}; wanted 0 to {self.world_size - 1}")
        left, size = self.num_batches(start), self.global_batch
        mine = slice(rank * self.batch_size, (rank + 1) * self.batch_size)
        waiting = np.empty(0, np.int64)
        for positions in self.order(start):
            waiting = np.concatenate([waiting, positions])
            while left and len(waiting) >= size:
                yield PlannedBatch(waiting[:size][mine], start + mine.start, self.epoch)
                waiting, left, start = waiting[size:], left - 1, start + size
        if left:
            yield PlannedBatch(waiting[mine], start + mine.start, self.epoch)
