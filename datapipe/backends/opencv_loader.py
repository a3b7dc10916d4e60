"""Backend `opencv`: libjpeg-turbo decodes and OpenCV resizes in worker threads; both release the GIL."""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shards.dataset import ShardSplit
from ..augment.policy import SamplePlan
from ..batch import CorruptSample, LoaderBatch
from ..feed import JpegSample
from ..loader import finish_pixels
from ..pixels import normalization_table
from ..plan import PlannedBatch
from ..planned_loader import PlannedLoader
from ..settings import LoaderConfig
from .opencv_transforms import decode_and_transform

CHUNK = 32  # samples a task (measured): smaller ones cost the main thread more, larger ones leave threads idle
AHEAD = 2  # batches under way, or more where they are small
STORED = {torch.float32: np.float32, torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.uint8: np.uint8}


class BufferPool:
    """Reuses arrays of one shape once they are unreferenced: fresh memory costs a page fault every 4 KB."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], keep: int) -> None:
        self._shape, self._dtype, self._keep = shape, dtype, keep
        self._free: list[NDArray[Any]] = []

    def take(self) -> NDArray[Any]:
        """Return an array; it returns to the pool when the last tensor made from it is freed."""
        array = self._free.pop() if self._free else np.empty(self._shape, self._dtype)
        lent = array[:]
        weakref.finalize(lent, self._give_back, array).atexit = False
        return lent

    def _give_back(self, array: NDArray[Any]) -> None:
        if len(self._free) < self._keep:
            self._free.append(array)


class _Scratch(threading.local):
    """The memory of one thread for an image, S x S x 3, and for its three planes."""

    def __init__(self, size: int) -> None:
        self.pixels = np.empty((size, size, 3), np.uint8)
        self.planes = list(np.empty((3, size, size), np.uint8))


class _Job(NamedTuple):
    """A batch being decoded: the memory for its pixels, and its tasks, each of which returns what `Feed.fill` does."""

    images: Tensor
    tasks: list[Future[tuple[NDArray[np.int64], list[CorruptSample]]]]


class OpenCVLoader(PlannedLoader):
    """Decode, resize and normalise in `workers` threads, straight into the batch; on a GPU the device normalises."""

    backend = "opencv"

    def __init__(self, split: ShardSplit, settings: LoaderConfig) -> None:
        super().__init__(split, settings)
        self._policy = settings.policy
        self._workers = settings.num_workers
        self._on_gpu = settings.device.type == "cuda"
        self._dtype = torch.uint8 if self._on_gpu else settings.dtype
        self._channels_last = settings.channels_last or self._on_gpu
        self._scratch = _Scratch(settings.image_size)
        self._table: NDArray[Any] | None = None
        if self._dtype != torch.uint8:
            table = normalization_table(settings.normalize, self._dtype)
            self._table = (table.view(torch.uint16) if table.element_size() == 2 else table).numpy()
        self._ahead = max(AHEAD, -(-2 * CHUNK * self._workers // settings.batch_size))
        self._pool = self._make_pool()

    def _make_pool(self) -> BufferPool:
        count, size = self.settings.batch_size, self.settings.image_size
        shape = (count, size, size, 3) if self._channels_last else (count, 3, size, size)
        return BufferPool(shape, STORED[self._dtype], keep=self._ahead + 2)

    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        jobs: deque[_Job] = deque()
        threads = ThreadPoolExecutor(self._workers, "in21k-decode")
        try:
            for batch in batches:
                jobs.append(self._start(threads, batch))
                if len(jobs) > self._ahead:
                    yield self._finish(jobs.popleft())
            while jobs:
                yield self._finish(jobs.popleft())
        finally:
            threads.shutdown(wait=True, cancel_futures=True)

    def _start(self, threads: ThreadPoolExecutor, batch: PlannedBatch) -> _Job:
        images, arrays = self._buffer()
        write_sample = partial(self._write_sample, arrays)
        rows = (range(start, min(start + CHUNK, len(batch))) for start in range(0, len(batch), CHUNK))
        make = partial(self._feed.fill, self._policy, batch, self._policy.random_numbers(batch))
        tasks = [threads.submit(make, chunk, write_sample) for chunk in rows]
        return _Job(images[: len(batch)], tasks)

    def _buffer(self) -> tuple[Tensor, NDArray[Any]]:
        """Return the memory of a batch as a tensor and as the array that threads write to."""
        if self._on_gpu:  # torch reuses pinned memory only after the copy from it is done
            shape = (self.settings.batch_size, self.settings.image_size, self.settings.image_size, 3)
            images = torch.empty(shape, dtype=torch.uint8, pin_memory=True)
            return images, images.numpy()
        array = self._pool.take()
        return torch.from_numpy(array).view(self._dtype), array

    def _write_sample(self, images: NDArray[Any], sample: JpegSample, plan: SamplePlan, row: int) -> None:
        out = images[row]
        if self._table is None and self._channels_last:
            decode_and_transform(sample, plan, out)
            return
        pixels = self._scratch.pixels
        decode_and_transform(sample, plan, pixels)
        if self._table is None:
            cv2.split(pixels, list(out))
        elif self._channels_last:
            cv2.LUT(pixels, self._table.T[None], dst=out)
        else:
            cv2.split(pixels, self._scratch.planes)
            for plane, values, plane_out in zip(self._scratch.planes, self._table, out, strict=True):
                cv2.LUT(plane, values, dst=plane_out)

    def _finish(self, job: _Job) -> LoaderBatch:
        parts = [task.result() for task in job.tasks]
        used = np.concatenate([positions for positions, _ in parts])
        bad = [sample for _, corrupt in parts for sample in corrupt]
        images, kept = job.images, used >= 0
        if not kept.all():
            images, used = images[torch.from_numpy(kept)], used[kept]
        if self._channels_last:
            images = images.permute(0, 3, 1, 2)
        if self._on_gpu:
            images = finish_pixels(images, self.settings)
        return LoaderBatch(images, self._labels(used), bad)

    def close(self) -> None:
        """Stop the threads, close the shards and free the buffers; iterating again opens them again."""
        super().close()
        self._pool = self._make_pool()
