"""Backends `dali_gpu` and `dali_cpu`: NVIDIA DALI decodes, resizes and augments what the guarded feed gives it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from itertools import chain
from typing import Any, NamedTuple, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...shards.dataset import ShardSplit
from ..batch import CorruptSample, LoaderBatch
from ..loader import LoaderSettings
from ..pixels import normalize_pixels
from ..plan import PlannedBatch
from ..planned_loader import PlannedLoader
from .dali_pipeline import build_pipeline, decoder_alone, inputs_of

READERS = 4  # threads that read batches for DALI (guessed): the disk has something to do while others check sums
READ_AHEAD = 4  # batches that are read before DALI asks for them (guessed)

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Read(NamedTuple):
    """A batch as planned, whose pixels will come of it, the corrupt samples met, and what the pipeline is fed.

    inputs: none where no sample is left, and once they were fed.
    """

    batch: PlannedBatch
    used: NDArray[np.int64]
    bad: list[CorruptSample]
    inputs: tuple[Any, ...]


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield `read(item)` of each item in order, while threads do so for a few of the next."""
    threads = ThreadPoolExecutor(READERS, "in21k-read")
    under_way: deque[Future[Result]] = deque()
    try:
        for item in items:
            under_way.append(threads.submit(read, item))
            if len(under_way) > READ_AHEAD:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()
    finally:
        threads.shutdown(wait=True, cancel_futures=True)


def dali_error_reason(error: RuntimeError) -> str:
    """Return the line of DALI's message that tells: before it comes where in the graph that was, after it a stack.

    >>> dali_error_reason(RuntimeError("Critical error:\\nencountered:\\n\\nno JPEG\\nStacktrace (2 entries):"))
    'no JPEG'
    """
    lines = str(error).rpartition("encountered:")[2].strip().splitlines()
    return lines[0].strip(" :") if lines else type(error).__name__


class DaliCpuLoader(PlannedLoader):
    """All on the CPU: feed a DALI pipeline batch by batch, a few ahead of the consumer.

    Where batches go to a GPU, they do so as uint8, and the GPU normalises.
    """

    backend = "dali_cpu"

    def __init__(self, split: ShardSplit, settings: LoaderSettings) -> None:
        super().__init__(split, settings)
        self._policy = settings.policy
        self._pipeline_settings = self._settings_for_pipeline()
        self._coming: Iterator[_Read] = iter(())
        self._scheduled: deque[_Read] = deque()
        self._undecoded: set[int] = set()
        self._threads = settings.num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._pipeline: Any = None

    def _settings_for_pipeline(self) -> LoaderSettings:
        """Return what the pipeline is to make: a quarter of the bytes where they go to a GPU."""
        if self.settings.device.type == "cpu":
            return self.settings
        skip_normalize: dict[str, Any] = {"dtype": torch.uint8, "normalize": None, "channels_last": True}
        return replace(self.settings, device=torch.device("cpu"), **skip_normalize)

    def _device_id(self) -> int | None:
        """Return the number of the GPU that the pipeline runs on; None: the CPU."""
        return None

    def _read(self, batch: PlannedBatch) -> _Read:
        bad = list[CorruptSample]()
        read = [self._feed.read(position, bad) for position in batch.positions.tolist()]
        samples = [sample for sample in read if sample]
        used = np.array([sample.position for sample in samples], np.int64)
        if not samples:
            return _Read(batch, used, bad, ())
        kept = [sample is not None for sample in read]
        sizes = (np.array(sides) for sides in zip(*((s.height, s.width) for s in samples), strict=True))
        plans = self._policy.plan(self._policy.random_numbers(batch)[kept], *sizes)
        jpegs = [np.frombuffer(sample.jpeg, np.uint8) for sample in samples]
        return _Read(batch, used, bad, tuple(inputs_of(self._policy, jpegs, plans).values()))

    def _next_inputs(self) -> tuple[Any, ...]:
        """Hand the next batch to the pipeline; one of which nothing is left is passed by."""
        while True:
            read = next(self._coming)
            if not self._undecoded.isdisjoint(read.used.tolist()):  # it was read before that was known
                read = self._read(read.batch)
            self._scheduled.append(read._replace(inputs=()))
            if read.inputs:
                return read.inputs

    def _begin(self) -> None:
        if self._pipeline is None:
            self._pipeline = build_pipeline(
                self._pipeline_settings, self._next_inputs, threads=self._threads, device_id=self._device_id()
            )
        self._pipeline.schedule_run()  # the first time this schedules all that is prefetched

    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        coming = read_ahead(self._read, batches)
        self._coming = coming
        try:
            self._begin()
            while self._scheduled:
                try:
                    images = self._take(len(self._scheduled[0].used))
                except RuntimeError as error:
                    self._restart_without_corrupt(error)
                    continue
                done = self._scheduled.popleft()
                if images is None:
                    yield self._empty()._replace(bad=done.bad)
                    continue
                self._pipeline.schedule_run()
                yield LoaderBatch(self._finished(images), self._labels(done.used), done.bad)
        finally:
            coming.close()
            self._rewind()

    def _restart_without_corrupt(self, error: RuntimeError) -> None:
        """Begin anew with what is scheduled, after an image that did not decode: DALI does not tell which one.

        Raises the error itself where each of them decodes: it was of the GPU, of memory, or of ours.
        """
        self._pipeline = None  # a pipeline that met an error is of no more use
        found = False
        for scheduled in self._scheduled:
            for position, reason in self._undecodable(scheduled.used):
                self._feed.exclude(position, reason)
                found = True
        if not found:
            raise error
        again = map(self._read, [scheduled.batch for scheduled in self._scheduled])
        self._scheduled.clear()
        self._coming = chain(again, self._coming)
        self._begin()

    def _undecodable(self, positions: NDArray[np.int64]) -> Iterator[CorruptSample]:
        """Try each sample by itself, on the CPU: a GPU that failed would take every one for corrupt."""
        current: list[NDArray[np.uint8]] = []
        probe: Any = None
        for position in positions.tolist():
            sample = self._feed.read(position, [])
            assert sample is not None
            current[:] = [np.frombuffer(sample.jpeg, np.uint8)]
            probe = probe or decoder_alone(lambda: current)
            try:
                probe.run()
            except RuntimeError as error:
                probe = None
                self._undecoded.add(position)
                yield CorruptSample(position, f"does not decode ({dali_error_reason(error)})")

    def _rewind(self) -> None:
        """Take what is still scheduled off the pipeline, so that the next epoch finds it empty."""
        self._coming = iter(())
        scheduled, self._scheduled = self._scheduled, deque()
        if self._pipeline is None:
            return
        try:
            for each in scheduled:
                if len(each.used):
                    self._pipeline.share_outputs()
                    self._pipeline.release_outputs()
            self._pipeline.schedule_run()  # meets the end of the feed, which reset() asks for
            self._pipeline.reset()
        except RuntimeError:
            self._pipeline = None  # it met an image that does not decode; the next epoch builds another

    def _take(self, count: int) -> Tensor | None:
        """Take a batch of so many images out of the pipeline, as the consumer's own; None where there are none.

        DALI 2's executor gives its outputs away: nothing is copied, the consumer's stream waits for them by an event,
        and DALI uses their memory again only when all that the GPU had been told by the time they were let go is done
        (`DLTensorGraveyard` in its dltensor.cc). Earlier ones overwrite their buffers, so that images are copied, on
        the consumer's stream, and DALI's waits for that.
        """
        from nvidia.dali.plugin import pytorch

        if not count:
            return None
        device = self._pipeline_settings.device
        stream = torch.cuda.current_stream(device) if device.type == "cuda" else None
        if getattr(self._pipeline, "exec_dynamic", False):
            (output,) = self._pipeline.share_outputs(cuda_stream=stream)
            images = torch.from_dlpack(output.as_tensor())
        else:
            (output,) = self._pipeline.share_outputs()
            size, dtype = self._pipeline_settings.image_size, self._pipeline_settings.dtype
            shape = (count, size, size, 3) if self._pipeline_settings.channels_last else (count, 3, size, size)
            images = torch.empty(shape, dtype=torch.float32 if dtype == torch.bfloat16 else dtype, device=device)
            cast(Any, pytorch).feed_ndarray(output.as_tensor(), images, cuda_stream=stream)
        self._pipeline.release_outputs()
        return images

    def _finished(self, images: Tensor) -> Tensor:
        """Return what the pipeline made as the settings have it."""
        settings = self.settings
        if self._pipeline_settings.channels_last:
            images = images.permute(0, 3, 1, 2)
        if self._pipeline_settings.device == settings.device:
            return images.to(settings.dtype)
        images = images.pin_memory().to(settings.device, non_blocking=True)
        images = normalize_pixels(images, settings.normalize, settings.dtype)
        layout = torch.channels_last if settings.channels_last else torch.contiguous_format
        return images.contiguous(memory_format=layout)

    def close(self) -> None:
        """Free the pipeline and close the shards; iterating again builds another."""
        super().close()
        self._pipeline = None


class DaliGpuLoader(DaliCpuLoader):
    """The same pipeline with mixed decoding, and everything after it, on the GPU that the batches are for."""

    backend = "dali_gpu"

    def _settings_for_pipeline(self) -> LoaderSettings:
        return self.settings

    def _device_id(self) -> int | None:
        device = self.settings.device
        return torch.cuda.current_device() if device == torch.device("cuda") else device.index
