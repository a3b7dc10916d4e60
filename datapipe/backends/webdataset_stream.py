"""A rank's shards as a stream of batches, by the webdataset library's pipeline, made in worker processes."""

from __future__ import annotations

import os
import random
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
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
from torch.utils.data import IterableDataset, get_worker_info
from webdataset.filters import shuffle
from webdataset.pipeline import DataPipeline
from webdataset.tariterators import group_by_keys

from ...shards.members import IMAGE, LABEL
from ...shards.shuffle import permutation
from ..augment.draws import Floats
from ..augment.policy import SamplePlan
from ..feed import MAX_TRIES, JpegSample
from ..loader import LoaderSettings
from ..pixels import decode, jpeg_size, normalize_pixels
from ..plan import PlannedBatch
from .webdataset_reading import ShardUrls, end_commands, read_members
from .worker_batches import SharedMemoryError, in_shared_memory

SHUFFLE_SAMPLES = 2_000  # JPEGs that a worker holds to draw from, 24 MB at 224 pixels; shards are shuffled when made
SHUFFLE_FIRST = 500  # of them are waited for at first

NOWHERE = -1  # the position of what is in no index


class StreamSample(NamedTuple):
    """A sample, its class index, and its shard and key for messages."""

    name: str
    label: int
    image: JpegSample


class CorruptStreamError(ValueError):
    """So many corrupt samples in a row that searching on makes no sense; the name of the last, and its reason."""


class WorkerBatch(NamedTuple):
    """A batch of a worker: images B x 3 x S x S, int64 labels, and (name, reason) of the corrupt samples.

    The images are as the loader hands them out; those for a GPU are uint8, which is a quarter to copy.
    """

    images: Tensor
    labels: Tensor
    bad: list[tuple[str, str]]


WriteSample = Callable[[JpegSample, SamplePlan, NDArray[np.uint8]], None]


def sample_writer() -> WriteSample:
    """Return what decodes a JPEG and carries its plan out into S x S x 3: OpenCV's functions, else torchvision's."""
    if find_spec("cv2"):
        from .opencv_transforms import decode_and_transform

        return decode_and_transform
    from .torch_transforms import transformed

    def write_sample(sample: JpegSample, plan: SamplePlan, out: NDArray[np.uint8]) -> None:
        pixels = torch.from_numpy(decode(sample.jpeg)).permute(2, 0, 1)
        np.copyto(out, transformed(pixels, plan, out.shape[0]).permute(1, 2, 0).numpy())

    return write_sample


class BatchStream(IterableDataset[WorkerBatch | Exception]):
    """Batches of one rank's shards, or what is wrong with them; each worker process reads its part.

    batches: what each batch of the rank counts as: its size, and where its random numbers come from. They end where a
             training epoch does; in validation the shards end before.
    """

    def __init__(
        self, shards: ShardUrls, settings: LoaderSettings, epoch: int, batches: Iterable[PlannedBatch]
    ) -> None:
        self._shards, self._settings, self._epoch, self._batches = shards, settings, epoch, batches
        self._policy = settings.policy
        self._write_sample = sample_writer()
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
            for batch in islice(self._batches, self._worker, None, self._num_workers):
                made = self._make(samples, batch)
                if len(made.labels) or made.bad:
                    yield made._replace(images=in_shared_memory(made.images), labels=in_shared_memory(made.labels))
                if len(made.labels) < len(batch):
                    break
        except (CorruptStreamError, SharedMemoryError) as error:
            yield error  # raised by the main process: torch would wrap it in the worker's traceback
        except (OSError, TarError, SubprocessError) as error:
            yield OSError(f"{self._url}: cannot be read to its end ({getattr(error, 'strerror', None) or error})")

    def _samples(self) -> Iterator[StreamSample]:
        """Yield this worker's samples: once, or round after round, each split anew and in another order."""
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
            yield {}  # no sample goes on in the next shard
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
                self._pass_over(name, str(error), self._num_in_a_row)
                continue
            self._num_in_a_row = 0
            yield parsed

    def _pass_over(self, name: str, reason: str, in_a_row: int) -> None:
        self._corrupt.append((name, reason))
        if self._settings.training and in_a_row >= MAX_TRIES:
            raise CorruptStreamError(name, reason)

    def _make(self, samples: Iterator[StreamSample], batch: PlannedBatch) -> WorkerBatch:
        """Fill a batch; it is short where the samples end."""
        size = self._policy.image_size
        images = torch.empty(len(batch), size, size, 3, dtype=torch.uint8)
        pixels, labels = images.numpy(), list[int]()
        numbers = self._policy.random_numbers(batch)
        taken = list(islice(samples, len(batch)))
        for number, planned in enumerate(zip(taken, self._plans(numbers, taken), strict=True)):
            for tries in count(1):
                sample, plan = planned
                try:
                    self._write_sample(sample.image, plan, pixels[len(labels)])
                    labels.append(sample.label)
                    break
                except ValueError as error:
                    self._pass_over(sample.name, str(error), tries)
                following = next(samples, None)
                if following is None:
                    break
                planned = (following, *self._plans(numbers[number:], [following]))
        bad, self._corrupt = self._corrupt, []
        images = images[: len(labels)].permute(0, 3, 1, 2)
        if self._settings.device.type != "cuda":
            images = finished(images, self._settings)
        return WorkerBatch(images, torch.tensor(labels, dtype=torch.int64), bad)

    def _plans(self, numbers: Floats, samples: list[StreamSample]) -> list[SamplePlan]:
        heights = np.array([sample.image.height for sample in samples], np.int64)
        widths = np.array([sample.image.width for sample in samples], np.int64)
        return self._policy.plan(numbers[: len(samples)], heights, widths).rows()


def finished(images: Tensor, settings: LoaderSettings) -> Tensor:
    """Return uint8 images in the layout that was asked for, and normalised."""
    images = images.contiguous(memory_format=torch.channels_last if settings.channels_last else torch.contiguous_format)
    if settings.device.type == "cuda" or settings.dtype == torch.uint8:
        return normalize_pixels(images, settings.normalize, settings.dtype)
    normalized = torch.empty_like(images, dtype=settings.dtype)
    for image, out in zip(images.split(1), normalized.split(1), strict=True):  # one by one they stay in the cache
        out.copy_(normalize_pixels(image, settings.normalize, settings.dtype))
    return normalized


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
    """Return a sample of the library's, {"jpg": bytes, "cls": digits, ...}; raises ValueError where it is none."""
    for extension in (LABEL, IMAGE):
        if extension not in sample:
            held = ", ".join(f".{name}" for name in sample if not name.startswith("__"))
            raise ValueError(f"has no .{extension}; it has {held}")
    if not sample[LABEL].strip().isdigit():
        raise ValueError(f"has {sample[LABEL][:20]!r} as its class index; wanted digits")
    jpeg = sample[IMAGE]
    return StreamSample(name, int(sample[LABEL]), JpegSample(NOWHERE, jpeg, *jpeg_size(jpeg)))


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
