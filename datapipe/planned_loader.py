"""Loaders over an index: batches in the plan's order, with a position that can be saved and restored."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import takewhile
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shards.dataset import ShardSplit
from ..shards.reader import CorruptSampleError
from .batch import LoaderBatch
from .feed import Feed
from .loader import CorruptSampleCounter, Loader, ended_early
from .plan import EpochPlan, PlannedBatch
from .settings import LoaderConfig

if TYPE_CHECKING:
    from ..shards.remote.prefetch import ShardPrefetcher

WINDOWS_AT_ONCE = 2  # of remote shards in the cache: the one that is read, and the next


def _once_fetched(batches: Iterable[PlannedBatch], ahead: ShardPrefetcher) -> Iterator[PlannedBatch]:
    """Yield each batch once its shards are in the cache, so that every reader, forked workers too, finds the files."""
    for batch in batches:
        ahead.wait(batch.positions)
        yield batch


class PlannedLoader(Loader):
    """Iterates over one epoch of a split, starting at any sample of it."""

    def __init__(self, split: ShardSplit, settings: LoaderConfig) -> None:
        self.split = split
        self._consumed = 0
        super().__init__(settings)
        self._feed = Feed(split, stand_in=settings.training)
        plan = self._plan()  # checks the settings
        if split.remote and settings.training:
            split.remote.check_room(split.shard_bytes, WINDOWS_AT_ONCE * plan.window_shards)
        if settings.training and len(split) < plan.global_batch:
            raise ValueError(
                f"{split.location}: {split.name} has {len(split):,} samples, fewer than one global batch of "
                f"{plan.global_batch:,} ({settings.world_size} ranks x {settings.batch_size}); "
                "lower batch_size"
            )

    def _new_corrupt_counter(self) -> CorruptSampleCounter:
        split, training = self.split, self.settings.training
        folder = "A-LOCAL-COPY" if split.remote else split.folder
        return CorruptSampleCounter(
            self.settings.max_bad_rate,
            len(split),
            instead="the next good one of its shard stands in" if training else "it is left out",
            way_out=f"`in21k verify --deep {folder}` lists all such",
            describe=split.describe,
        )

    def _plan(self) -> EpochPlan:
        settings = self.settings
        return EpochPlan(
            shard_sizes=self.split.shard_sizes,
            batch_size=settings.batch_size,
            world_size=settings.world_size,
            seed=settings.seed,
            epoch=self._epoch,
            shuffle=settings.training,
            drop_last=settings.training,
        )

    @abstractmethod
    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        """Yield a `LoaderBatch` for each planned batch, in order; no planned batch is empty."""

    def _empty(self) -> LoaderBatch:
        settings = self.settings
        shape = (0, 3, settings.image_size, settings.image_size)
        images = torch.empty(shape, dtype=settings.dtype, device=settings.device)
        return LoaderBatch(images, torch.empty(0, dtype=torch.int64, device=settings.device), [])

    def _labels(self, positions: NDArray[np.int64]) -> Tensor:
        labels = torch.from_numpy(self.split.labels[positions].astype(np.int64))
        if self.settings.device.type == "cuda":
            labels = labels.pin_memory()  # the host waits for copies from pageable memory
        return labels.to(self.settings.device, non_blocking=True)

    def _iteration(self) -> Generator[LoaderBatch]:
        plan = self._plan()
        batches = takewhile(len, plan.batches(self.settings.rank, self._consumed))
        return self._stream(batches) if self.split.remote is None else self._remote_stream(plan, batches)

    def _hand_out(self, stream: Generator[LoaderBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        plan, handed = self._plan(), 0
        promised = plan.num_batches(self._consumed)
        for number in range(promised):
            if self._active is not stream:
                return  # a newer iteration continues from here
            loaded = self._next(stream)
            if loaded is None and plan.has_samples(self.settings.rank, self._consumed):
                raise ended_early(self.backend, number, promised)
            images, labels, bad = loaded or self._empty()
            handed += self.settings.batch_size
            for sample in bad:
                self._corrupt.add(sample.position, sample.reason, handed)
            self._consumed = min(self._consumed + plan.global_batch, plan.num_samples)
            yield images, labels
        self._consumed = 0

    def _remote_stream(self, plan: EpochPlan, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        """Yield as `_stream` does, while shards are prefetched."""
        from ..shards.remote.prefetch import ShardPrefetcher

        done, windows = self._consumed, plan.order(self._consumed)
        ahead = ShardPrefetcher(self.split, windows, done, WINDOWS_AT_ONCE * plan.window_shards)
        with closing(ahead), closing(self._stream(_once_fetched(batches, ahead))) as stream:
            for loaded in stream:
                yield loaded
                done += plan.global_batch
                ahead.done(done)

    def _next(self, stream: Iterator[LoaderBatch]) -> LoaderBatch | None:
        try:
            return next(stream, None)
        except CorruptSampleError as error:
            why = "no sample near it can stand in"
            raise self._corrupt.stopped(error.position, error.reason, why) from error

    def __len__(self) -> int:
        """Return the batches of a whole epoch, the same on every rank."""
        return self._plan().num_batches()

    def num_left(self) -> int:
        """Return how many batches of the epoch are left, the same on every rank."""
        return self._plan().num_batches(self._consumed)

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Name the samples, by shard and key, of this rank's batch at a `state_dict()`, as planned."""
        plan = replace(self._plan(), epoch=state["epoch"])
        batch = next(plan.batches(self.settings.rank, state["samples"]))
        return [self.split.describe(position) for position in batch.positions.tolist()]

    def set_epoch(self, epoch: int) -> None:
        """Pick the epoch whose order comes next; a new epoch starts at its first sample."""
        if epoch != self._epoch:
            self._consumed = 0
        super().set_epoch(epoch)

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its samples all ranks together have received."""
        return {"epoch": self._epoch, "samples": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a `state_dict()`; raises ValueError if the state is outside of this split."""
        if not 0 <= state["samples"] <= len(self.split):
            raise ValueError(f"state has {state['samples']} samples consumed of {len(self.split)}")
        self._epoch, self._consumed = state["epoch"], state["samples"]

    def close(self) -> None:
        """Release threads, processes, files and buffers; iterating again opens them again."""
        super().close()
        self._feed.close()
