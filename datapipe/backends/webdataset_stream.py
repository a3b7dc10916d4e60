"""A rank's shards as a stream of batches, by the webdataset library's pipeline, made in worker processes."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from itertools import count, islice
from subprocess import SubprocessError
from tarfile import ReadError, TarError
from typing import Any, NamedTuple, NoReturn

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import group_by_keys

from ...shards.members import IMAGE, LABEL
from ...shards.shuffle import permutation
from ..feed import MAX_TRIES, fill_rows
from ..loader import finish_pixels
from ..pixels import jpeg_size
from ..plan import PlannedBatch
from ..settings import LoaderConfig
from .cpu_transforms import cpu_transforms
from .webdataset_reading import ShardUrls, end_commands, read_members
from .worker_batches import SharedMemoryError, in_shared_memory

SHUFFLE_SAMPLES = 2_000  # JPEGs that a worker holds to draw from, 24 MB at 224 pixels; shards are shuffled when made
SHUFFLE_FIRST = 500  # of them are waited for at first


class StreamSample(NamedTuple):
    """A sample of a stream; `name` is its shard and key, for messages."""

    name: str
    label: int
    jpeg: bytes
    height: int
    width: int


class CorruptStreamError(ValueError):
    """Too many corrupt samples in a row to keep searching; holds the last one's name and reason."""


class WorkerBatch(NamedTuple):
    """A batch of a worker: images B x 3 x S x S, int64 labels, and (name, reason) of the corrupt samples.

    Images for a GPU are uint8, a quarter of the bytes to copy; others are normalised already.
    """

    images: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]


class BatchStream(IterableDataset[WorkerBatch | Exception]):
    """Yields batches of one rank's shards, or an error; each worker process reads its own shards.

    batches: the planned batches, for their sizes and random numbers. They end with a training epoch; in validation the
             shards end first.
    """

    def __init__(self, shards: ShardUrls, settings: LoaderConfig, epoch: int, batches: Iterable[PlannedBatch]) -> None:
        self._shards, self._settings, self._epoch, self._batches = shards, settings, epoch, batches
        self._policy = settings.policy
        self._write_sample = cpu_transforms().decode_and_transform
        self._worker, self._num_workers = 0, 1
        self._url = ""
        self._keys: set[str] = set()  # of the shard that is read
        self._num_in_a_row = 0
        self._corrupt: list[tuple[str, str]] = []

    def __iter__(self) -> Iterator[WorkerBatch | Exception]:
        info: Any = get_worker_info()
        self._worker, self._num_workers = info.id, info.num_workers
        samples = self._samples()
        try:
            for planned in islice(self._batches, self._worker, None, self._num_workers):
                batch = self._make(samples, planned)
                if len(batch.labels) or batch.bad:
                    yield batch._replace(images=in_shared_memory(batch.images), labels=in_shared_memory(batch.labels))
                if len(batch.labels) < len(planned):
                    break
        except (CorruptStreamError, SharedMemoryError) as error:
            yield error  # raised by the main process: torch would wrap it in the worker's traceback
        except (OSError, TarError, SubprocessError) as error:
            yield OSError(f"{self._url}: cannot be read to its end ({getattr(error, 'strerror', None) or error})")

    def _samples(self) -> Iterator[StreamSample]:
        """Yield this worker's samples: once in validation; in training round after round, each in a new order."""
        settings = self._settings
        for number in count():
            self._num_samples = 0
            stages: list[Any] = [
                partial(self._shards_of, number),
                self._members,
                partial(group_by_keys, handler=_refuse),
            ]
            stages += [self._checked]
            if settings.training:
                draws = random.Random(f"{settings.seed} {self._epoch} {number} {settings.rank} {self._worker}")
                stages += [shuffle(SHUFFLE_SAMPLES, initial=SHUFFLE_FIRST, rng=draws)]
            yield from DataPipeline(*stages, self._parsed)
            if not settings.training:
                return
            if not self._num_samples:
                raise OSError("it holds no sample, nor do the others of its worker")

    def _shards_of(self, number: int) -> Iterator[int]:
        """Yield this worker's shards of a round, by their place in the list."""
        settings, num_shards = self._settings, len(self._shards.urls)
        order = np.arange(num_shards)
        if settings.training:
            order = permutation(num_shards, settings.seed, self._epoch, 0, number)
        yield from order[settings.rank :: settings.world_size][self._worker :: self._num_workers].tolist()

    def _members(self, shards: Iterable[int]) -> Iterator[dict[str, Any]]:
        sizes = self._shards.sizes
        for shard in shards:
            self._url = self._shards.urls[shard]
            self._keys.clear()
            for name, content in read_members(self._url):
                yield {"fname": name, "data": content, "__url__": self._url}
            yield {}  # a sample never spans two shards
            if sizes and len(self._keys) != sizes[shard]:
                raise ReadError(f"it holds {len(self._keys):,} samples; wanted {sizes[shard]:,}, as dataset.json says")

    def _checked(self, samples: Iterable[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Raise ReadError where a shard has two samples of one key: the library would lose or mingle them."""
        for sample in samples:
            key = sample["__key__"]
            if key in self._keys:
                raise ReadError(f"it holds two samples of key {key}")
            if mingled := several_in_one(sample):
                raise ReadError(f"it holds {mingled} of one key, {key}, as a key ends at the first dot")
            self._keys.add(key)
            self._num_samples += 1
            yield sample

    def _parsed(self, samples: Iterable[dict[str, Any]]) -> Iterator[StreamSample]:
        for sample in samples:
            name = f"{sample['__url__']}: sample {sample['__key__']}"
            try:
                parsed = parse(name, sample)
            except ValueError as error:
                self._num_in_a_row += 1
                self._skip(name, str(error), self._num_in_a_row)
                continue
            self._num_in_a_row = 0
            yield parsed

    def _skip(self, name: str, reason: str, in_a_row: int) -> None:
        self._corrupt.append((name, reason))
        if self._settings.training and in_a_row >= MAX_TRIES:
            raise CorruptStreamError(name, reason)

    def _make(self, samples: Iterator[StreamSample], batch: PlannedBatch) -> WorkerBatch:
        """Decode the next samples into a batch; it is short at the end of the stream."""
        size = self._policy.image_size
        images = torch.empty(len(batch), size, size, 3, dtype=torch.uint8)
        pixels = images.numpy()
        tries = Counter[int]()

        def replace(sample: StreamSample, reason: str, row: int) -> StreamSample | None:
            tries[row] += 1
            self._skip(sample.name, reason, tries[row])
            return next(samples, None)

        written = fill_rows(
            self._policy,
            list(islice(samples, len(batch))),
            self._policy.random_numbers(batch),
            lambda sample, plan, row: self._write_sample(sample, plan, pixels[row]),
            replace,
        )
        rows = [row for row, sample in enumerate(written) if sample]
        labels = torch.tensor([sample.label for sample in written if sample], dtype=torch.int64)
        images = (images[: len(rows)] if len(rows) == len(written) else images[rows]).permute(0, 3, 1, 2)
        if self._settings.device.type != "cuda":
            images = finish_pixels(images, self._settings)
        bad, self._corrupt = self._corrupt, []
        return WorkerBatch(images, labels, bad)


def several_in_one(sample: dict[str, Any]) -> str:
    """Return two files of what the library took for one sample and is several, by their extensions; or nothing.

    >>> several_in_one({"__key__": "a", "b.0.jpg": b"", "b.0.cls": b"", "b.1.jpg": b"", "b.1.cls": b""})
    '.b.0.cls and .b.1.cls'
    """
    for last in (LABEL, IMAGE):
        names = [name for name in sample if name.rpartition(".")[2] == last]
        if len(names) > 1 and (last == LABEL or last not in names):  # an image may have others beside it
            return " and ".join(f".{name}" for name in names[:2])
    return ""


def parse(name: str, sample: dict[str, Any]) -> StreamSample:
    """Return a sample of the library's, {"jpg": bytes, "cls": digits, ...}; raises ValueError if it is incomplete."""
    for extension in (LABEL, IMAGE):
        if extension not in sample:
            held = ", ".join(f".{name}" for name in sample if not name.startswith("__"))
            raise ValueError(f"has no .{extension}; it has {held}")
    if not sample[LABEL].strip().isdigit():
        raise ValueError(f"has {sample[LABEL][:20]!r} as its class index; wanted digits")
    jpeg = sample[IMAGE]
    return StreamSample(name, int(sample[LABEL]), jpeg, *jpeg_size(jpeg))


def _refuse(error: Exception) -> NoReturn:
    raise ReadError(error.args[0])  # the library has put what was being read behind the reason


def begin_worker(_worker: int) -> None:
    """Make a worker process end what it started when it is told to end, and OpenCV work in it."""

    def leave(number: int, _frame: object) -> None:
        end_commands()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)

    signal.signal(signal.SIGTERM, leave)  # which comes where the command stalls
    if "cv2" in sys.modules:
        import cv2

        cv2.setNumThreads(0)  # its threads were not forked along
