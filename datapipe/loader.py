"""What all loaders share: their settings, iteration, saved position, and the count of corrupt samples."""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Hashable, Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..shards.files.parallel import default_workers
from ..shards.normalize import Normalize, mean_std
from .augment.policy import AugmentPolicy
from .batch import LoaderBatch
from .catalog import AUGMENTATIONS
from .pixels import normalize_pixels
from .to_device import one_ahead

DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.uint8)

# The rate is taken over at least this many samples, or the first corrupt one would stop the epoch (guessed).
MIN_RATED = 10_000
MIN_BAD = 3  # always tolerated, in a split of any size (guessed)

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class LoaderSettings:
    """What a loader hands out.

    batch_size:     samples per rank.
    image_size:     pixels; images are stretched to image_size x image_size.
    augment:        `none`: the whole image, stretched. `miil`: that, a box of half the side filled with one colour, two
                    of RandAugment's operations. `inception`: random resized crop, flip. `inception-ra`: that, and
                    RandAugment's operations.
    crop_pct:       with augment `none`: the shorter side is resized to image_size / crop_pct (0..1), and the middle
                    taken; None: the whole image, stretched.
    training:       shuffle, and leave out what fills no global batch; otherwise every sample once, in shard order.
    seed, rank, world_size: see `EpochPlan`.
    workers:        decode threads or processes; None: one for each core, shared between the ranks of a node.
    device:         where batches come out.
    dtype:          float32, float16, bfloat16; or uint8, which goes with normalize None.
    normalize:      `unit` (0..1); `imagenet` (its mean and deviation); a pair of mean and deviation of pixels in 0..1,
                    each a number or one for each channel; None (0..255).
    channels_last:  memory format of the images.
    max_bad_rate:   corrupt samples stop the epoch once they are more than this part of the samples that this rank was
                    handed, counted as 10,000 (or all of a smaller split) until they are more; three are always let
                    pass, unless it is 0.
    hw_decoder_load: of dali_gpu alone: the part of the JPEGs (0..1) that the GPU's hardware decoder gets, where it has
                    one; None: 0.65. `in21k bench-loader --sweep` measures what is best.
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
    normalize: Normalize | None = "unit"
    channels_last: bool = False
    crop_pct: float | None = None
    max_bad_rate: float = 0.001
    hw_decoder_load: float | None = None

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
        if self.crop_pct is not None and not 0 < self.crop_pct <= 1:
            raise ValueError(f"crop_pct is {self.crop_pct}; wanted more than 0, and 1 at most")
        if self.crop_pct is not None and self.augment != "none":
            raise ValueError(f"crop_pct goes with augment none; augment is {self.augment!r}")
        if not 0 <= self.max_bad_rate <= 1:
            raise ValueError(f"max_bad_rate is {self.max_bad_rate}; wanted 0 to 1")
        if self.hw_decoder_load is not None and not 0 <= self.hw_decoder_load <= 1:
            raise ValueError(f"hw_decoder_load is {self.hw_decoder_load}; wanted 0 to 1")
        if self.normalize is not None:
            mean_std(self.normalize)  # which checks it
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype is {self.dtype}; known: {', '.join(map(str, DTYPES))}")
        if self.dtype == torch.uint8 and self.normalize is not None:
            raise ValueError(f"dtype uint8 holds pixels as they are; normalize is {self.normalize!r}, wanted None")

    @property
    def policy(self) -> AugmentPolicy:
        """How images are augmented."""
        return AugmentPolicy(image_size=self.image_size, augment=self.augment, crop_pct=self.crop_pct, seed=self.seed)

    @property
    def num_workers(self) -> int:
        """Decode threads or processes of this rank: `workers`, or its share of the node's cores."""
        return self.workers or max(1, default_workers() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


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


def finish_pixels(images: Tensor, settings: LoaderSettings) -> Tensor:
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

    def __init__(self, settings: LoaderSettings) -> None:
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
