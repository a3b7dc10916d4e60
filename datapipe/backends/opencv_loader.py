"""Backend `opencv`: libjpeg-turbo decodes and OpenCV resizes in worker threads, which let go of the GIL for both."""

from __future__ import annotations

import os
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
from ..feed import JpegSample, fill_batch
from ..loader import LoaderSettings
from ..pixels import normalization_table, normalize_pixels
from ..plan import PlannedBatch
from ..planned_loader import PlannedLoader
from .opencv_transforms import decode_and_transform

CHUNK = 32  # samples a task: measured, smaller ones cost the main thread more, larger ones wait for one another
AHEAD = 2  # batches under way, or more where they are small
STORED = {torch.float32: np.float32, torch.float16: np.uint16, torch.bfloat16: np.uint16, torch.uint8: np.uint8}


class BufferPool:
    """Arrays of one shape that are used again once nobody holds them: fresh memory costs a page fault every 4 KB."""

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], keep: int) -> None:
        self._shape, self._dtype, self._keep = shape, dtype, keep
        self._free: list[NDArray[Any]] = []

    def take(self) -> NDArray[Any]:
        """Return an array; it comes back by itself when the last tensor made from it goes."""
        array = self._free.pop() if self._free else np.empty(self._shape, self._dtype)
        lent = array[:]
        weakref.finalize(lent, self._give_back, array).atexit = False
        return lent

    def _give_back(self, array: NDArray[Any]) -> None:
        if len(self._free) < self._keep:
            self._free.append(array)


class _Scratch(threading.local):
    """Each thread's own memory for an image, S x S x 3, and for its three planes."""

    def __init__(self, size: int) -> None:
        self.pixels = np.empty((size, size, 3), np.uint8)
        self.planes = list(np.empty((3, size, size), np.uint8))


class _Job(NamedTuple):
    """A batch under way: where its pixels go, and its tasks, whose results are those of `fill_batch`."""

    images: Tensor
    tasks: list[Future[tuple[NDArray[np.int64], list[CorruptSample]]]]


class OpenCVLoader(PlannedLoader):
    """Decode, resize and normalise in `workers` threads, straight into the batch; on a GPU the device normalises."""

    backend = "opencv"

    def __init__(self, split: ShardSplit, settings: LoaderSettings) -> None:
        super().__init__(split, settings)
        self._policy = settings.policy
        self._workers = settings.num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._on_gpu = settings.device.type == "cuda"
        self._dtype = torch.uint8 if self._on_gpu else settings.dtype
        self._channels_last = settings.channels_last or self._on_gpu
        self._scratch = _Scratch(settings.image_size)
        self._table: NDArray[Any] | None = None
        self._values: list[list[float]] = []
        if self._dtype != torch.uint8:
            table = normalization_table(settings.normalize, self._dtype)
            self._values = table.float().tolist()
            self._table = table.view(torch.uint16).numpy() if table.element_size() == 2 else table.numpy()
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
        make = partial(fill_batch, self._feed, self._policy, batch, self._policy.random_numbers(batch))
        tasks = [threads.submit(make, chunk, write_sample) for chunk in rows]
        return _Job(images[: len(batch)], tasks)

    def _buffer(self) -> tuple[Tensor, NDArray[Any]]:
        """Return a batch's memory twice: as a tensor, and as the array that threads write to."""
        if self._on_gpu:  # torch uses pinned memory again only after the copy from it is done
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
        pixels, planes = self._scratch.pixels, self._scratch.planes
        decode_and_transform(sample, plan, pixels)
        if self._table is None:
            cv2.split(pixels, list(out))
        elif self._dtype == torch.float32 and not self._channels_last:  # as the table has it, and a third faster
            cv2.split(pixels, planes)
            for plane, values, plane_out in zip(planes, self._values, out, strict=True):
                scale, shift = (values[-1] - values[0]) / 255, values[0]
                cv2.addWeighted(plane, scale, plane, 0, shift, dst=plane_out, dtype=cv2.CV_32F)
        elif self._channels_last:
            cv2.LUT(pixels, np.ascontiguousarray(self._table.T)[None], dst=out)
        else:
            cv2.split(pixels, planes)
            for plane, values, plane_out in zip(planes, self._table, out, strict=True):
                cv2.LUT(plane, values, dst=plane_out)

    def _finish(self, job: _Job) -> LoaderBatch:
        parts = [task.result() for task in job.tasks]
        used = np.concatenate([positions for positions, _ in parts])
        bad = [each for _, found in parts for each in found]
        images, kept = job.images, used >= 0
        if not kept.all():
            images, used = images[torch.from_numpy(kept)], used[kept]
        if self._channels_last:
            images = images.permute(0, 3, 1, 2)
        if self._on_gpu:
            images = images.to(self.settings.device, non_blocking=True)
            images = normalize_pixels(images, self.settings.normalize, self.settings.dtype)
            if not self.settings.channels_last:
                images = images.contiguous()
        return LoaderBatch(images, self._labels(used), bad)

    def close(self) -> None:
        """Stop the threads, close the shards, give the buffers up; iterating again takes them up again."""
        super().close()
        self._pool = self._make_pool()
