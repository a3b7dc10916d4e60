"""What every loader is: batches in the plan's order, and a place in it that can be saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass, field
from itertools import takewhile
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shards.dataset import ShardSplit
from ..shards.parallel import default_workers
from ..shards.reader import CorruptSampleError
from .pixels import NORMALIZATIONS
from .plan import EpochPlan

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)
AUGMENTATIONS = ("none",)


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """What a loader hands out.

    batch_size:     samples per rank.
    image_size:     pixels; images are stretched to image_size x image_size.
    augment:        `none`.
    training:       shuffle, and leave out what fills no global batch; otherwise every sample once, in shard order.
    seed, rank, world_size: see `EpochPlan`.
    workers:        decode threads or processes; None: one for each core, shared between the ranks of a node.
    device:         where batches come out.
    dtype:          float32, float16, bfloat16; or uint8, which goes with normalize None.
    normalize:      `unit` (0..1), `imagenet` (mean and deviation), None (0..255).
    channels_last:  memory format of the images.
    """

    batch_size: int
    image_size: int
    augment: str = "none"
    training: bool = True
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    workers: int | None = None
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32
    normalize: str | None = "unit"
    channels_last: bool = False

    def __post_init__(self) -> None:
        for name in ("batch_size", "image_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; wanted 1 or more")
        if not 0 <= self.rank < max(1, self.world_size):
            raise ValueError(f"rank is {self.rank}; wanted 0 to {self.world_size - 1}")
        if self.workers is not None and self.workers < 1:
            raise ValueError(f"workers is {self.workers}; wanted 1 or more")
        if self.augment not in AUGMENTATIONS:
            raise ValueError(f"augment is {self.augment!r}; known: {', '.join(AUGMENTATIONS)}")
        if self.normalize is not None and self.normalize not in NORMALIZATIONS:
            raise ValueError(f"normalize is {self.normalize!r}; known: {', '.join(NORMALIZATIONS)} and None")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype}; known: {', '.join(map(str, DTYPES))}")
        if self.dtype == torch.uint8 and self.normalize is not None:
            raise ValueError(f"dtype uint8 holds pixels as they are; normalize is {self.normalize!r}, wanted None")

    def num_workers(self, ranks_per_node: int) -> int:
        """Return how many decode threads or processes this rank gets."""
        return self.workers or max(1, default_workers() // ranks_per_node)


class Loader(ABC):
    """Iterates (images B x 3 x H x W, labels int64 (B,)) over one epoch of a split.

    `set_epoch(n)` picks the epoch; `state_dict()` says where the iteration is, and a loader of any backend, worker
    count or world size goes on from there after `load_state_dict()`. `close()` lets go of threads, processes and files.
    """

    backend: ClassVar[str]

    def __init__(self, split: ShardSplit, settings: LoaderSettings) -> None:
        self.split = split
        self.settings = settings
        self._epoch = 0
        self._consumed = 0
        self._active: Generator[tuple[Tensor, Tensor]] | None = None
        plan = self._plan()  # which checks the numbers
        if settings.training and len(split) < plan.global_batch:
            raise ValueError(
                f"{split.folder}: {split.name} has {len(split):,} samples, fewer than one global batch of "
                f"{plan.global_batch:,} ({settings.world_size} ranks x {settings.batch_size}); "
                "lower batch_size"
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
    def _stream(self, batches: Iterable[NDArray[np.int64]]) -> Generator[tuple[Tensor, Tensor]]:
        """Yield (images, labels) for each array of positions, in order; none of them is empty."""

    def _empty(self) -> tuple[Tensor, Tensor]:
        settings = self.settings
        shape = (0, 3, settings.image_size, settings.image_size)
        images = torch.empty(shape, dtype=settings.dtype, device=settings.device)
        return images, torch.empty(0, dtype=torch.int64, device=settings.device)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches that are left of the epoch; an earlier iteration that is still held ends."""
        if self._active is not None:
            self._active.close()
        plan = self._plan()
        left = plan.num_batches(self._consumed)
        stream = self._stream(takewhile(len, plan.batches(self.settings.rank, self._consumed)))
        self._active = stream
        try:
            for _ in range(left):
                if self._active is not stream:
                    return  # a newer iteration goes on from here
                batch = self._next(stream) or self._empty()
                self._consumed = min(self._consumed + plan.global_batch, plan.num_samples)
                yield batch
            self._consumed = 0
        finally:
            stream.close()

    def _next(self, stream: Iterator[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor] | None:
        try:
            return next(stream, None)
        except CorruptSampleError as error:
            raise ValueError(
                f"{self.split.describe(error.position)} {error.reason}; "
                f"`in21k verify --deep {self.split.folder}` lists all such"
            ) from error

    def __len__(self) -> int:
        """Return the batches of a whole epoch, the same on every rank."""
        return self._plan().num_batches()

    def set_epoch(self, epoch: int) -> None:
        """Pick the epoch whose order comes next; another one than the current begins at its first sample."""
        if epoch != self._epoch:
            self._epoch, self._consumed = epoch, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its samples all ranks together have been handed."""
        return {"epoch": self._epoch, "samples": self._consumed}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Go on from where a `state_dict()` was taken; raises ValueError where that is no place in this split."""
        if not 0 <= state["samples"] <= len(self.split):
            raise ValueError(f"state has {state['samples']} samples consumed of {len(self.split)}")
        self._epoch, self._consumed = state["epoch"], state["samples"]

    @abstractmethod
    def close(self) -> None:
        """Let go of threads, processes and files."""
