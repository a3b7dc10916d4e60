"""Backend `webdataset`: worker processes stream a rank's shards.

It needs no index, so it reads paths, http URLs and the output of commands (`pipe:`). Shards are split between the
ranks, and a rank's shards between its workers. Each worker reads one shard at a time, from start to end.

Limitations: the order depends on the number of ranks and workers. A sample comes about once an epoch: a worker that
has finished its shards starts over while others are still in their last one. An epoch cannot be resumed in the middle.
There are no checksums, so only samples that do not decode count as corrupt. Equal runs, with equal numbers of ranks and
workers, get equal batches.
"""

from __future__ import annotations

import logging
from collections.abc import Generator, Iterator
from contextlib import closing
from itertools import count
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader

from ..batch import LoaderBatch
from ..catalog import INDEXED
from ..feed import MAX_TRIES
from ..loader import MIN_RATED, CorruptSampleCounter, Loader, ended_early, finish_pixels
from ..plan import EpochPlan, PlannedBatch
from ..settings import LoaderConfig
from .webdataset_reading import ShardUrls
from .webdataset_stream import BatchStream, CorruptStreamError, WorkerBatch, begin_worker
from .worker_batches import from_workers

WITH_INDEX = f"take an indexed backend ({', '.join(INDEXED)}) over the folder that `in21k shard` made"

log = logging.getLogger(__name__)


class WebDatasetLoader(Loader):
    """Streams shards in `workers` processes, or one for each shard if there are fewer; a GPU normalises its batches.

    A training epoch has `epoch_samples` // (ranks x batch_size) batches on every rank, whatever its shards hold. In
    validation each sample of a rank's shards comes once: ranks may differ in length, the length is not known before the
    end, and each worker's last batch may be short. Every iteration starts at the start of an epoch.

    Raises ValueError if there are fewer shards than ranks, or fewer samples than a global batch.
    """

    backend = "webdataset"

    def __init__(self, shards: ShardUrls, settings: LoaderConfig) -> None:
        self._shards = shards
        self._num_samples = settings.epoch_samples or (None if shards.sizes is None else sum(shards.sizes))
        plan = EpochPlan(  # which checks the numbers
            shard_sizes=np.array([self._num_samples or 0]),
            batch_size=settings.batch_size,
            world_size=settings.world_size,
            seed=settings.seed,
        )
        self._num_batches = _batches_of(plan) if settings.training else None
        self._workers = _workers_of(len(shards.urls), settings)
        super().__init__(settings)

    def _new_corrupt_counter(self) -> CorruptSampleCounter:
        return CorruptSampleCounter(
            self.settings.max_bad_rate,
            MIN_RATED if self._num_samples is None else self._num_samples,
            instead="the next one of the stream stands in" if self.settings.training else "it is left out",
            way_out=self._shards.way_out,
        )

    def _batches(self) -> Iterator[PlannedBatch]:
        """Yield the planned batches of this rank, for the numbers of its samples in the epoch."""
        size, settings = self.settings.batch_size, self.settings
        for number in count() if self._num_batches is None else range(self._num_batches):
            first = (number * settings.world_size + settings.rank) * size
            yield PlannedBatch(np.arange(first, first + size), first, self._epoch)

    def _iteration(self) -> Generator[LoaderBatch]:
        settings = self.settings
        loader: Any = DataLoader(
            BatchStream(self._shards, settings, self._epoch, self._batches()),
            batch_size=None,
            num_workers=self._workers,
            pin_memory=settings.device.type == "cuda",
            worker_init_fn=begin_worker,
            generator=torch.Generator(),  # as for `TorchLoader`: the global one is the network's
            multiprocessing_context="fork",  # see `from_workers`
        )
        handed = num_batches = 0
        with closing(from_workers(loader)) as batches:
            for batch in self._raising(batches):
                handed += settings.batch_size
                for name, reason in batch.bad:
                    self._corrupt.add(name, reason, handed)
                if len(batch.labels):
                    num_batches += 1
                    images = batch.images  # normalised by the worker, unless they go to a GPU
                    if settings.device.type == "cuda":
                        images = finish_pixels(images, settings)
                    yield LoaderBatch(images, batch.labels.to(settings.device, non_blocking=True), [])
        if self._num_batches is not None and num_batches < self._num_batches:
            raise ended_early(self.backend, num_batches, self._num_batches)

    def _raising(self, batches: Iterator[WorkerBatch]) -> Iterator[WorkerBatch]:
        """Yield the batches; raise ValueError if a worker finds no good sample any more."""
        try:
            yield from batches
        except CorruptStreamError as error:
            name, reason = error.args
            raise self._corrupt.stopped(name, reason, f"all of {MAX_TRIES} in a row are corrupt") from error

    def __len__(self) -> int:
        """Return how many batches a training epoch has, the same on every rank; raises TypeError in validation."""
        if self._num_batches is None:  # `list(loader)` asks for the length, and does without after a TypeError
            raise TypeError(f"a stream's length is known at its end; count while iterating, or {WITH_INDEX}")
        return self._num_batches

    def __bool__(self) -> bool:
        return True  # or `if loader` would ask for the length

    def num_left(self) -> int:
        """Return `len()`: every iteration starts at the start of an epoch."""
        return len(self)

    def state_dict(self) -> dict[str, int]:
        """Raise ValueError: a stream has no position to resume from."""
        raise ValueError(f"a stream has no place in mid-epoch to go on from; save between epochs, or {WITH_INDEX}")

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise ValueError: a stream cannot resume from a position."""
        raise ValueError(f"a stream cannot go on from {state}; begin an epoch by set_epoch(), or {WITH_INDEX}")

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Raise ValueError: no batch is planned."""
        raise ValueError(f"which samples a stream hands out at {state} is not planned; {WITH_INDEX}")


def _batches_of(plan: EpochPlan) -> int:
    """Return how many batches each rank gets in an epoch; raises ValueError if it gets none."""
    if not plan.num_samples:
        raise ValueError(
            "how many samples a pattern's shards hold is not known; say by epoch_samples how many make an epoch, or "
            f"{WITH_INDEX}"
        )
    if plan.num_samples < plan.global_batch:
        raise ValueError(
            f"an epoch has {plan.num_samples:,} samples, fewer than one global batch of {plan.global_batch:,} "
            f"({plan.world_size} ranks x {plan.batch_size}); lower batch_size or raise epoch_samples"
        )
    return plan.num_batches()


def _workers_of(num_shards: int, settings: LoaderConfig) -> int:
    """Return how many workers this rank gets: each needs a shard. Raises ValueError if a rank has no shard."""
    rank, world_size = settings.rank, settings.world_size
    if num_shards < world_size:
        raise ValueError(
            f"{num_shards} shards for {world_size} ranks, each of which needs one; make more shards (`in21k shard "
            f"--shard-samples`), run fewer ranks, or {WITH_INDEX}"
        )
    mine = len(range(rank, num_shards, world_size))
    wanted = settings.num_workers
    if mine < wanted:
        message = "webdataset: rank %d has %d of %d shards, and a worker needs one: %d workers run, not %d"
        log.warning(message, rank, mine, num_shards, mine, wanted)
    return min(mine, wanted)
