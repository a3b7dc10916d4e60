"""Backend `webdataset`: shards as streams, by the webdataset library's pipeline, decoded in worker processes.

It needs no index, and so takes what has none: paths, http, and whatever a command prints (`pipe:`). Shards are split
between the ranks, and a rank's between its workers; each worker reads one at a time, from its begin to its end.

It cannot promise what the plan does: the order follows the number of ranks and workers; a sample comes about once an
epoch (a worker whose shards are used up begins the next round of them while others are in the last one); an epoch
cannot be gone on with in the middle; and a sample is corrupt when it does not decode, as no checksums are at hand.
Equal runs, of as many ranks and workers, get equal batches.
"""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from importlib.util import find_spec
from itertools import count, islice
from subprocess import SubprocessError
from tarfile import ReadError, TarError
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import group_by_keys

from ..shards.shuffle import permutation
from .augment import SamplePlan
from .draws import Floats
from .feed import MAX_TRIES, Sample
from .loader import MIN_RATED, BadSamples, Loaded, Loader, LoaderSettings
from .pixels import decode, jpeg_size, normalize_pixels
from .plan import EpochPlan, PlannedBatch
from .to_device import one_ahead
from .webdataset_reading import ShardUrls, end_commands, read_members

SHUFFLE_SAMPLES = 2_000  # JPEGs that a worker holds to draw from, 24 MB at 224 pixels; shards are shuffled when made
SHUFFLE_FIRST = 500  # of them are waited for at first

NOWHERE = -1  # the position of what is in no index
WITH_INDEX = "take an indexed backend (dali_gpu, dali_cpu, opencv, torch) over the folder that `in21k shard` made"

log = logging.getLogger(__name__)


class StreamSample(NamedTuple):
    """A sample, its class index, and its shard and key for messages."""

    name: str
    label: int
    image: Sample


class CorruptStreamError(ValueError):
    """So many corrupt samples in a row that searching on makes no sense; the name of the last, and its reason."""


class _Made(NamedTuple):
    """A batch of a worker: images B x 3 x S x S, int64 labels, and (name, reason) of the corrupt samples.

    The images are as the loader hands them out; those for a GPU are uint8, which is a quarter to copy.
    """

    images: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]


Paint = Callable[[Sample, SamplePlan, NDArray[np.uint8]], None]


def painter() -> Paint:
    """Return what decodes a JPEG and carries its plan out into S x S x 3: OpenCV's functions, else torchvision's."""
    if find_spec("cv2"):
        from .opencv_transforms import draw

        return draw
    from .torch_transforms import transformed

    def paint(sample: Sample, plan: SamplePlan, out: NDArray[np.uint8]) -> None:
        pixels = torch.from_numpy(decode(sample.jpeg)).permute(2, 0, 1)
        np.copyto(out, transformed(pixels, plan, out.shape[0]).permute(1, 2, 0).numpy())

    return paint


class _BatchStream(IterableDataset[_Made | Exception]):
    """Batches of one rank's shards, or what is wrong with them; each worker process reads its part.

    batches: what each batch of the rank counts as: its size, and where its random numbers come from. They end where a
             training epoch does; in validation the shards end before.
    """

    def __init__(
        self, shards: ShardUrls, settings: LoaderSettings, epoch: int, batches: Iterable[PlannedBatch]
    ) -> None:
        self._shards, self._settings, self._epoch, self._batches = shards, settings, epoch, batches
        self._recipe = settings.recipe
        self._paint = painter()
        self._worker, self._num_workers = 0, 1
        self._url = ""
        self._num_samples = self._num_in_a_row = 0
        self._bad: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[_Made | Exception]:
        info: Any = get_worker_info()
        self._worker, self._num_workers = info.id, info.num_workers
        samples = self._samples()
        try:
            for batch in islice(self._batches, self._worker, None, self._num_workers):
                made = self._make(samples, batch)
                if len(made.labels) or made.bad:
                    yield made
                if len(made.labels) < len(batch):
                    break
        except CorruptStreamError as error:
            yield error  # raised by the main process: torch would wrap it in the worker's traceback
        except (OSError, TarError, SubprocessError) as error:
            yield OSError(f"{self._url}: cannot be read to its end ({getattr(error, 'strerror', None) or error})")

    def _samples(self) -> Iterator[StreamSample]:
        """Yield this worker's samples: once, or round after round, each split anew and in another order."""
        settings = self._settings
        for number in count():
            before = self._num_samples
            stages: list[Any] = [partial(self._urls, number), self._members, partial(group_by_keys, handler=_refuse)]
            stages += [self._counted]
            if settings.training:
                draws = random.Random(f"{settings.seed} {self._epoch} {number} {settings.rank} {self._worker}")
                stages += [shuffle(SHUFFLE_SAMPLES, initial=SHUFFLE_FIRST, rng=draws)]
            yield from DataPipeline(*stages, self._parsed)
            if not settings.training:
                return
            if self._num_samples == before:
                raise OSError("it holds no sample, nor do the others of its worker")

    def _urls(self, number: int) -> Iterator[dict[str, str]]:
        """Yield this worker's shards of a round."""
        settings, urls = self._settings, self._shards.urls
        order = np.arange(len(urls))
        if settings.training:
            order = permutation(len(urls), settings.seed, self._epoch, 0, number)
        for shard in order[settings.rank :: settings.world_size][self._worker :: self._num_workers].tolist():
            yield {"url": urls[shard]}

    def _members(self, urls: Iterable[dict[str, str]]) -> Iterator[dict[str, Any]]:
        for each in urls:
            self._url = each["url"]
            for name, content in read_members(self._url):
                yield {"fname": name, "data": content, "__url__": self._url}
            yield {}  # no sample goes on in the next shard

    def _counted(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        for sample in samples:
            self._num_samples += 1
            yield sample

    def _parsed(self, samples: Iterable[dict[str, Any]]) -> Iterator[StreamSample]:
        for sample in samples:
            name = f"{sample['__url__']}: sample {sample['__key__']}"
            try:
                parsed = parse(name, sample)
            except ValueError as error:
                self._num_in_a_row += 1
                self._pass_over(name, str(error), self._num_in_a_row)
                continue
            self._num_in_a_row = 0
            yield parsed

    def _pass_over(self, name: str, reason: str, in_a_row: int) -> None:
        self._bad.append((name, reason))
        if self._settings.training and in_a_row >= MAX_TRIES:
            raise CorruptStreamError(name, reason)

    def _make(self, samples: Iterator[StreamSample], batch: PlannedBatch) -> _Made:
        """Fill a batch; it is short where the samples end."""
        size = self._recipe.image_size
        images = torch.empty(len(batch), size, size, 3, dtype=torch.uint8)
        pixels, labels = images.numpy(), list[int]()
        numbers = self._recipe.numbers(batch)
        taken = list(islice(samples, len(batch)))
        for number, planned in enumerate(zip(taken, self._plans(numbers, taken), strict=True)):
            for tries in count(1):
                sample, plan = planned
                try:
                    self._paint(sample.image, plan, pixels[len(labels)])
                    labels.append(sample.label)
                    break
                except ValueError as error:
                    self._pass_over(sample.name, str(error), tries)
                following = next(samples, None)
                if following is None:
                    break
                planned = (following, *self._plans(numbers[number:], [following]))
        bad, self._bad = self._bad, []
        images = images[: len(labels)].permute(0, 3, 1, 2)
        if self._settings.device.type != "cuda":
            images = finished(images, self._settings)
        return _Made(images, torch.tensor(labels, dtype=torch.int64), bad)

    def _plans(self, numbers: Floats, samples: list[StreamSample]) -> list[SamplePlan]:
        heights = np.array([sample.image.height for sample in samples], np.int64)
        widths = np.array([sample.image.width for sample in samples], np.int64)
        return self._recipe.plan(numbers[: len(samples)], heights, widths).rows()


def finished(images: Tensor, settings: LoaderSettings) -> Tensor:
    """Return uint8 images in the layout that was asked for, and normalised."""
    images = images.contiguous(memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)
    if settings.device.type == "cuda" or settings.dtype == torch.uint8:
        return normalize_pixels(images, settings.normalize, settings.dtype)
    normalized = torch.empty_like(images, dtype=settings.dtype)
    for image, out in zip(images.split(1), normalized.split(1), strict=True):  # one by one they stay in the cache
        out.copy_(normalize_pixels(image, settings.normalize, settings.dtype))
    return normalized


def parse(name: str, sample: dict[str, Any]) -> StreamSample:
    """Return a sample of the library's, {"jpg": bytes, "cls": digits, ...}; raises ValueError where it is none."""
    for extension in ("cls", "jpg"):
        if extension not in sample:
            raise ValueError(f"has no .{extension}")
    if not sample["cls"].strip().isdigit():
        raise ValueError(f"has {sample['cls'][:20]!r} as its class index; wanted digits")
    jpeg = sample["jpg"]
    return StreamSample(name, int(sample["cls"]), Sample(NOWHERE, jpeg, *jpeg_size(jpeg)))


def _refuse(error: Exception) -> NoReturn:
    raise ReadError(error.args[0])  # the library has put what was being read behind the reason


def _begin_worker(_worker: int) -> None:
    def leave(number: int, _frame: object) -> None:
        end_commands()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, leave)  # which comes where the command stalls
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(0)  # its threads were not forked along


class WebDatasetLoader(Loader):
    """Stream shards in `workers` processes, fewer where there are fewer shards; a GPU normalises what it gets.

    epoch_samples: of training: how many make an epoch, of all ranks together; None: as many as the shards hold.

    A training epoch has `epoch_samples` // (ranks x batch_size) batches on every rank, whatever their shards hold.
    Otherwise every sample of a rank's shards comes once: ranks may differ in length, nobody knows it before, and each
    worker's last batch may be short. Every iteration begins at the begin of an epoch.

    Raises ValueError where there are fewer shards than ranks, or samples than a global batch.
    """

    backend = "webdataset"

    def __init__(self, shards: ShardUrls, settings: LoaderSettings, epoch_samples: int | None = None) -> None:
        # Without `Loader.__init__`, which opens a split and plans its order.
        self.settings = settings
        self._shards = shards
        self._epoch = self._consumed = 0
        self._active = None
        self._num_samples = epoch_samples or shards.num_samples
        plan = EpochPlan(  # which checks the numbers
            shard_sizes=np.array([self._num_samples or 0]),
            batch_size=settings.batch_size,
            world_size=settings.world_size,
            seed=settings.seed,
        )
        self._num_batches = _batches_of(plan) if settings.training else None
        self._workers = _workers_of(len(shards.urls), settings)
        self._bad = self._no_bad()

    def _no_bad(self) -> BadSamples:
        return BadSamples(
            self.settings.max_bad_rate,
            MIN_RATED if self._num_samples is None else self._num_samples,
            instead="the next one of the stream stands in" if self.settings.training else "it is left out",
            way_out=self._shards.way_out,
        )

    def _batches(self) -> Iterator[PlannedBatch]:
        """Yield what each batch of this rank counts as: the numbers of its samples in the epoch."""
        size, settings = self.settings.batch_size, self.settings
        for number in count() if self._num_batches is None else range(self._num_batches):
            first = (number * settings.world_size + settings.rank) * size
            yield PlannedBatch(np.arange(first, first + size), first, self._epoch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of the epoch from its begin on; an earlier iteration that is still held ends."""
        if self._active is not None:
            self._active.close()
        stream = self._stream(self._batches())
        if self.settings.device.type == "cuda":
            stream = one_ahead(stream, self.settings.device)
        self._active = stream
        try:
            for images, labels, _ in stream:
                yield images, labels
        finally:
            stream.close()

    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[Loaded]:
        settings = self.settings
        loader: Any = DataLoader(
            _BatchStream(self._shards, settings, self._epoch, batches),
            batch_size=None,
            num_workers=self._workers,
            pin_memory=settings.device.type == "cuda",
            worker_init_fn=_begin_worker,
            multiprocessing_context="fork",  # see `TorchLoader`
        )
        self._bad, handed = self._no_bad(), 0
        gc.collect()
        running: Any = iter(loader)
        try:
            for made in running:
                if isinstance(made, CorruptStreamError):
                    name, reason = made.args
                    raise self._bad.stopped(name, reason, f"all of {MAX_TRIES} in a row are corrupt") from made
                if isinstance(made, Exception):
                    raise made
                handed += settings.batch_size
                for name, reason in made.bad:
                    self._bad.add(name, reason, handed)
                if len(made.labels):
                    images = made.images.to(settings.device, non_blocking=True)
                    if settings.device.type == "cuda":
                        images = finished(images, settings)
                    yield Loaded(images, made.labels.to(settings.device, non_blocking=True), [])
        finally:
            running._shutdown_workers()

    def __len__(self) -> int:
        """Return the batches of a training epoch, the same on every rank; TypeError: nobody knows before its end."""
        if self._num_batches is None:  # `list(loader)` asks for the length, and goes on without it after a TypeError
            raise TypeError(f"a stream's length is known at its end; count while iterating, or {WITH_INDEX}")
        return self._num_batches

    def __bool__(self) -> bool:
        return True  # or `if loader` would ask for the length

    def num_left(self) -> int:
        """Return `len()`: an iteration begins at the begin."""
        return len(self)

    def state_dict(self) -> dict[str, int]:
        """Raise ValueError: a stream has no place that one could go on from."""
        raise ValueError(f"a stream has no place in mid-epoch to go on from; save between epochs, or {WITH_INDEX}")

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Raise ValueError: a stream cannot go on from a place."""
        raise ValueError(f"a stream cannot go on from {state}; begin an epoch by set_epoch(), or {WITH_INDEX}")

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Raise ValueError: no batch is planned."""
        raise ValueError(f"which samples a stream hands out at {state} is not planned; {WITH_INDEX}")

    def close(self) -> None:
        """Let go of the processes; iterating again starts new ones."""
        if self._active is not None:
            self._active.close()
            self._active = None


def _batches_of(plan: EpochPlan) -> int:
    """Return how many batches each rank gets of an epoch; raises ValueError where that is none."""
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


def _workers_of(num_shards: int, settings: LoaderSettings) -> int:
    """Return how many workers this rank gets: each needs a shard. Raises ValueError where a rank has none."""
    rank, world_size = settings.rank, settings.world_size
    if num_shards < world_size:
        raise ValueError(
            f"{num_shards} shards for {world_size} ranks, each of which needs one; make more shards (`in21k shard "
            f"--shard-samples`), run fewer ranks, or {WITH_INDEX}"
        )
    mine = len(range(rank, num_shards, world_size))
    wanted = settings.num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    if mine < wanted:
        message = "webdataset: rank %d has %d of %d shards, and a worker needs one: %d workers run, not %d"
        log.warning(message, rank, mine, num_shards, mine, wanted)
    return min(mine, wanted)
