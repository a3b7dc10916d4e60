"""What all loaders share: their settings, iteration, saved position, and the count of corrupt samples."""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor

from .batch import LoaderBatch
from .pixels import normalize_pixels
from .settings import LoaderConfig
from .to_device import one_ahead

# The rate is taken over at least this many samples, or the first corrupt one would stop the epoch (guessed).
MIN_RATED = 10_000
MIN_BAD = 3  # always tolerated, in a split of any size (guessed)

log = logging.getLogger(__name__)


class CorruptSampleCounter:
    """Counts the corrupt samples of an epoch, each once, and names them in the log.

    rate:        `max_bad_rate`.
    num_samples: samples in the epoch.
    instead:     what happens to a corrupt sample, for the log.
    way_out:     what the user can do, for the end of a message.
    describe:    returns the name of a sample for messages.
    """

    def __init__(
        self, rate: float, num_samples: int, *, instead: str, way_out: str, describe: Callable[[Any], str] = str
    ) -> None:
        self._rate, self._num_rated = rate, min(MIN_RATED, num_samples)
        self._instead, self._way_out, self._describe = instead, way_out, describe
        self._samples: set[Hashable] = set()

    def __len__(self) -> int:
        return len(self._samples)

    def add(self, sample: Hashable, reason: str, handed: int) -> None:
        """Count a sample among the first `handed` of the epoch; raises ValueError once there are too many."""
        if sample in self._samples:
            return
        self._samples.add(sample)
        if len(self._samples) > (self._rate and max(MIN_BAD, self._rate * max(handed, self._num_rated))):
            count = f"{len(self._samples)} of {handed:,} samples are corrupt"
            raise self.stopped(sample, reason, f"{count}, past max_bad_rate {self._rate}")
        log.warning("%s %s; %s", self._describe(sample), reason, self._instead)

    def stopped(self, sample: Hashable, reason: str, why: str) -> ValueError:
        """Return the error that ends the epoch."""
        return ValueError(f"{self._describe(sample)} {reason}; {why}; {self._way_out}")


def finish_pixels(images: Tensor, settings: LoaderConfig) -> Tensor:
    """Return uint8 images (B x 3 x H x W) on the settings' device, normalised, in their dtype and memory format."""
    images = images.to(settings.device, non_blocking=True)
    images = images.contiguous(memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)
    if settings.device.type != "cpu" or settings.dtype == torch.uint8:
        return normalize_pixels(images, settings.normalize, settings.dtype)
    normalized = torch.empty_like(images, dtype=settings.dtype)
    for image, out in zip(images.split(1), normalized.split(1), strict=True):  # one by one they stay in the CPU's cache
        out.copy_(normalize_pixels(image, settings.normalize, settings.dtype))
    return normalized


def ended_early(backend: str, num_batches: int, promised: int) -> RuntimeError:
    """Return the error of a loader that has no more batches before the end of the epoch."""
    return RuntimeError(f"backend {backend} ended after {num_batches:,} of {promised:,} batches of the epoch")


class Loader(ABC):
    """Iterates (images B x 3 x H x W, labels int64 (B,)) over one epoch.

    `set_epoch(n)` chooses the epoch. `state_dict()` returns the position; `load_state_dict()` resumes there, also with
    another backend, worker count or world size (webdataset streams and cannot resume). `close()` releases threads,
    processes and files.
    """

    backend: ClassVar[str]

    def __init__(self, settings: LoaderConfig) -> None:
        self.settings = settings
        self._epoch = 0
        self._active: Generator[LoaderBatch] | None = None
        self._corrupt = self._new_corrupt_counter()

    @abstractmethod
    def _new_corrupt_counter(self) -> CorruptSampleCounter:
        """Return a new counter of corrupt samples, for an iteration."""

    @abstractmethod
    def _iteration(self) -> Generator[LoaderBatch]:
        """Yield the batches that are left of the epoch."""

    def _hand_out(self, stream: Generator[LoaderBatch]) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the images and labels that the consumer gets."""
        for images, labels, _ in stream:
            yield images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches that are left of the epoch; this ends an earlier iteration that is still open."""
        if self._active is not None:
            self._active.close()
        self._corrupt = self._new_corrupt_counter()
        stream = self._iteration()
        if self.settings.device.type == "cuda":
            stream = one_ahead(stream, self.settings.device)
        self._active = stream
        try:
            yield from self._hand_out(stream)
        finally:
            stream.close()

    @property
    def num_bad(self) -> int:
        """Corrupt samples that this rank has met in this epoch, since it started or resumed."""
        return len(self._corrupt)

    @abstractmethod
    def __len__(self) -> int:
        """Return how many batches a whole epoch has, the same on every rank."""

    @abstractmethod
    def num_left(self) -> int:
        """Return how many batches of the epoch are left, the same on every rank."""

    @abstractmethod
    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Name the samples, by shard and key, of this rank's batch at a `state_dict()`, as planned."""

    def set_epoch(self, epoch: int) -> None:
        """Pick the epoch whose order comes next; a new epoch starts at its first sample."""
        self._epoch = epoch

    @abstractmethod
    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its samples all ranks together have received."""

    @abstractmethod
    def load_state_dict(self, state: dict[str, int]) -> None:
        """Resume at a `state_dict()`; raises ValueError if the state is outside of this split."""

    def close(self) -> None:
        """Release threads, processes, files and buffers; iterating again opens them again."""
        if self._active is not None:
            self._active.close()
            self._active = None
