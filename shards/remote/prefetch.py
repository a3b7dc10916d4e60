"""Prefetching the shards of an epoch, in the order of their use."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from threading import Condition
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..dataset import ShardSplit
from ..files.lock import FileLock
from .background import Background
from .object_store import task_group
from .remote_set import Fetcher


class Use(NamedTuple):
    """A shard that an epoch reads, and the position of its last sample in the epoch's order."""

    shard: int
    last: int


def uses(shard_ends: NDArray[np.int64], windows: Iterable[NDArray[np.int64]], start: int) -> Iterator[Use]:
    """Yield the shards in the order of their first use; each shard belongs to one window of positions.

    >>> list(uses(np.array([3, 6, 9]), [np.array([4, 0, 5]), np.array([7])], 100))
    [Use(shard=1, last=102), Use(shard=0, last=101), Use(shard=2, last=103)]
    """
    for positions in windows:
        shards = np.searchsorted(shard_ends, positions, side="right")
        distinct, first = np.unique(shards, return_index=True)
        _, from_end = np.unique(shards[::-1], return_index=True)
        for index in np.argsort(first):
            yield Use(int(distinct[index]), start + len(shards) - 1 - int(from_end[index]))
        start += len(shards)


class ShardPrefetcher:
    """Keeps the shards that are read now and next in the cache. One thread fetches; other threads may wait for it.

    split:    of a remote shard set.
    windows:  the positions of the epoch's samples in their order, see `EpochPlan.order`.
    start:    the position of the first of them in the epoch's order.
    at_once:  the number of shards kept or fetched at a time; more if more are waited for.
    """

    def __init__(self, split: ShardSplit, windows: Iterable[NDArray[np.int64]], start: int, at_once: int) -> None:
        assert split.remote is not None
        self._split, self._remote, self._at_once = split, split.remote, at_once
        self._uses = uses(split.shard_ends, windows, start)
        self._condition = Condition()
        self._held: dict[int, FileLock] = {}
        self._last: dict[int, int] = {}  # of the shards that are held, or about to be
        self._awaited: set[int] = set()
        self._ended = False
        self._moved = asyncio.Event()
        self._background = Background(self._fetch)
        self._background.future.add_done_callback(self._end)

    async def _fetch(self) -> None:
        async with self._remote.fetching(self._is_awaited) as fetcher, task_group() as group:
            for use in self._uses:
                while not self._may_begin(use):
                    await self._moved.wait()
                group.create_task(self._hold(fetcher, use.shard))

    def _may_begin(self, use: Use) -> bool:
        with self._condition:
            self._moved.clear()
            may = len(self._last) < self._at_once or bool(self._awaited - self._last.keys())
            if may:
                self._last[use.shard] = use.last
            return may

    async def _hold(self, fetcher: Fetcher, shard: int) -> None:
        name, num_bytes = self._split.shard_names[shard], int(self._split.shard_bytes[shard])
        lock = await fetcher.obtain(name, num_bytes)
        with self._condition:
            self._held[shard] = lock
            self._condition.notify_all()

    def _is_awaited(self, name: str) -> bool:
        with self._condition:
            return any(self._split.shard_names[shard] == name for shard in self._awaited)

    def _end(self, _: object) -> None:
        with self._condition:
            self._ended = True
            self._condition.notify_all()

    def wait(self, positions: NDArray[np.int64]) -> None:
        """Return when the shards of some samples are in the cache; raises RemoteError, and OSError of the disk."""
        wanted = set(np.unique(np.searchsorted(self._split.shard_ends, positions, side="right")).tolist())
        with self._condition:
            self._awaited = wanted - self._held.keys()
            if self._awaited:
                self._background.call(self._moved.set)
                self._condition.wait_for(lambda: self._ended or wanted <= self._held.keys())
                self._awaited = set()
            if not wanted <= self._held.keys():
                self._background.future.result()  # raises the error of the fetching thread

    def done(self, number: int) -> None:
        """Release the shards whose last sample comes before `number` in the epoch's order."""
        with self._condition:
            shards = [shard for shard in self._held if self._last[shard] < number]
            for shard in shards:
                self._held.pop(shard).release()
                del self._last[shard]
        if shards:
            self._background.call(self._moved.set)

    def close(self) -> None:
        """Stop fetching and release every shard; fetched shards stay in the cache as long as there is room."""
        self._background.stop()
        while self._held:
            self._held.popitem()[1].release()
