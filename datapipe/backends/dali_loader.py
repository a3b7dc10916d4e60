"""Backends `dali_gpu` and `dali_cpu`: NVIDIA DALI decodes, resizes and augments the samples of the guarded feed."""

from __future__ import annotations

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
from ..augment.draws import Op, Operations
from ..batch import CorruptSample, LoaderBatch
from ..loader import finish_pixels
from ..plan import PlannedBatch
from ..planned_loader import PlannedLoader
from ..settings import LoaderConfig
from .cpu_transforms import cpu_transforms
from .dali_pipeline import build_pipeline, decoder_alone, input_names, inputs_of

READERS = 4  # threads that read batches for DALI (guessed): some read while others compute checksums
READ_AHEAD = 4  # batches that are read before DALI asks for them (guessed)
OPS_CHUNK = 16  # images that a thread augments at a time (guessed)

Item = TypeVar("Item")
Result = TypeVar("Result")


class _Read(NamedTuple):
    """A planned batch that was read.

    used:       the positions whose samples it holds.
    bad:        the corrupt samples met.
    inputs:     the pipeline's inputs; empty if no sample is left, and once they were fed.
    operations: RandAugment's, if the policy has them.
    """

    batch: PlannedBatch
    used: NDArray[np.int64]
    bad: list[CorruptSample]
    inputs: tuple[Any, ...] = ()
    operations: Operations | None = None


def read_ahead(read: Callable[[Item], Result], items: Iterable[Item]) -> Generator[Result]:
    """Yield `read(item)` for each item in order, while threads read the next few."""
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
    """Return the reason from a DALI message, which stands between the place in the graph and a stack trace.

    >>> dali_error_reason(RuntimeError("Critical error:\\nencountered:\\n\\nno JPEG\\nStacktrace (2 entries):"))
    'no JPEG'
    """
    lines = str(error).rpartition("encountered:")[2].strip().splitlines()
    return lines[0].strip(" :") if lines else type(error).__name__


def _apply_ops_to_each(pairs: list[tuple[NDArray[np.uint8], list[Op]]]) -> None:
    apply_ops = cpu_transforms().apply_ops
    for pixels, ops in pairs:
        apply_ops(pixels, ops)


class DaliCpuLoader(PlannedLoader):
    """Feeds a DALI pipeline on the CPU batch by batch, a few batches ahead of the consumer.

    Batches for a GPU are copied as uint8 and normalised there.
    """

    backend = "dali_cpu"

    def __init__(self, split: ShardSplit, settings: LoaderConfig) -> None:
        super().__init__(split, settings)
        self._policy = settings.policy
        self._pipeline_settings = self._settings_for_pipeline()
        self._coming: Iterator[_Read] = iter(())
        self._scheduled: deque[_Read] = deque()
        self._undecoded: set[int] = set()
        self._threads = settings.num_workers
        self._pipeline: Any = None

    def _settings_for_pipeline(self) -> LoaderConfig:
        """Return the settings of the pipeline's output: uint8 if RandAugment or another device follows."""
        device = torch.device("cpu") if self._device_id() is None else self.settings.device
        if device == self.settings.device and not self._policy.uses_randaugment:
            return self.settings
        return replace(self.settings, device=device, dtype=torch.uint8, normalize=None, channels_last=True)

    def _device_id(self) -> int | None:
        """Return the index of the GPU that the pipeline runs on; None: the CPU."""
        return None

    def _read(self, batch: PlannedBatch) -> _Read:
        bad = list[CorruptSample]()
        read = self._feed.read_all(batch.positions, bad)
        samples = [sample for sample in read if sample]
        used = np.array([sample.position for sample in samples], np.int64)
        if not samples:
            return _Read(batch, used, bad)
        kept = [sample is not None for sample in read]
        sizes = (np.array(sides) for sides in zip(*((s.height, s.width) for s in samples), strict=True))
        plans = self._policy.plan(self._policy.random_numbers(batch)[kept], *sizes)
        jpegs = [np.frombuffer(sample.jpeg, np.uint8) for sample in samples]
        inputs = inputs_of(self._policy, jpegs, plans)
        return _Read(batch, used, bad, tuple(inputs[name] for name in input_names(self._policy)), plans.operations)

    def _next_inputs(self) -> tuple[Any, ...]:
        """Return the inputs of the next batch for the pipeline; skip batches without a good sample."""
        while True:
            read = next(self._coming)
            if not self._undecoded.isdisjoint(read.used.tolist()):  # it was read before they were known to be corrupt
                read = self._read(read.batch)
            self._scheduled.append(read._replace(inputs=()))
            if read.inputs:
                return read.inputs

    def _begin(self) -> None:
        if self._pipeline is None:
            self._pipeline = build_pipeline(
                self._pipeline_settings,
                self._next_inputs,
                threads=self._threads,
                device_id=self._device_id(),
                largest_sides=self.split.largest_sides,
            )
        self._pipeline.schedule_run()  # the first call schedules all batches that are prefetched

    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        coming = read_ahead(self._read, batches)
        self._coming = coming
        self._augmenters = ThreadPoolExecutor(self._threads, "in21k-augment")  # threads start with the first task
        try:
            self._begin()
            while self._scheduled:
                try:
                    images = self._take(len(self._scheduled[0].used))
                except RuntimeError as error:
                    self._restart_without_corrupt(error)
                    continue
                read = self._scheduled.popleft()
                if images is None:
                    yield self._empty()._replace(bad=read.bad)
                    continue
                self._pipeline.schedule_run()
                yield LoaderBatch(self._finish(images, read.operations), self._labels(read.used), read.bad)
        finally:
            coming.close()
            self._augmenters.shutdown()
            self._rewind()
            if not self.settings.training:
                self._pipeline = None  # a validation's memory is free for training until the next one

    def _restart_without_corrupt(self, error: RuntimeError) -> None:
        """Restart with the scheduled batches after an image did not decode; DALI does not tell which one.

        Raises the error itself if all of them decode: the cause is the GPU, memory, or a bug.
        """
        self._pipeline = None  # a pipeline cannot be used after an error
        corrupt = [sample for scheduled in self._scheduled for sample in self._undecodable(scheduled.used)]
        if not corrupt:
            raise error
        for position, reason in corrupt:
            self._feed.exclude(position, reason)
        again = map(self._read, [scheduled.batch for scheduled in self._scheduled])
        self._scheduled.clear()
        self._coming = chain(again, self._coming)
        self._begin()

    def _undecodable(self, positions: NDArray[np.int64]) -> Iterator[CorruptSample]:
        """Decode each sample by itself on the CPU, as after a GPU error every sample would seem corrupt."""
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
        """Empty the pipeline for the next epoch."""
        self._coming = iter(())
        scheduled, self._scheduled = self._scheduled, deque()
        if self._pipeline is None:
            return
        try:
            for read in scheduled:
                if len(read.used):
                    self._pipeline.share_outputs()
                    self._pipeline.release_outputs()
            self._pipeline.schedule_run()  # reaches the end of the feed, which reset() needs
            self._pipeline.reset()
        except RuntimeError:
            self._pipeline = None  # an image did not decode; the next epoch builds another pipeline

    def _take(self, count: int) -> Tensor | None:
        """Return the next `count` images of the pipeline, owned by the consumer; None for a count of 0.

        The executor of DALI 2 hands over its outputs without a copy. The consumer's stream waits for them by an event,
        and DALI reuses their memory only after the GPU work that was queued when they were released
        (`DLTensorGraveyard` in its dltensor.cc). Earlier executors overwrite their buffers, so images are copied on the
        consumer's stream, for which DALI's waits.
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

    def _finish(self, images: Tensor, operations: Operations | None) -> Tensor:
        """Return the pipeline's output as the settings want it, with RandAugment applied."""
        output, settings = self._pipeline_settings, self.settings
        if operations:
            images = self._randaugment(images, operations)
        if output.channels_last:
            images = images.permute(0, 3, 1, 2)
        if output is settings:
            return images.to(settings.dtype)
        if output.device != settings.device:
            images = images.pin_memory()
        return finish_pixels(images, settings)

    def _randaugment(self, images: Tensor, operations: Operations) -> Tensor:
        """Return uint8 images B x S x S x 3 after their operations."""
        if images.device.type == "cuda":
            from .randaugment_triton import apply_operations, pack_operations

            packed = pack_operations(operations, self.settings.image_size)
            codes, parameters = (part.pin_memory().to(images.device, non_blocking=True) for part in packed)
            return apply_operations(images, codes, parameters)
        pairs = list(zip(images.numpy(), operations.rows(), strict=True))
        chunks = (pairs[first : first + OPS_CHUNK] for first in range(0, len(pairs), OPS_CHUNK))
        list(self._augmenters.map(_apply_ops_to_each, chunks))
        return images

    def close(self) -> None:
        """Free the pipeline and close the shards; iterating again builds another pipeline."""
        super().close()
        self._pipeline = None


class DaliGpuLoader(DaliCpuLoader):
    """Decodes with DALI's mixed decoder, and does everything after it on the GPU that the batches are for."""

    backend = "dali_gpu"

    def _device_id(self) -> int | None:
        device = self.settings.device
        return torch.cuda.current_device() if device == torch.device("cuda") else device.index
