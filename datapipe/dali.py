"""Backends `dali_gpu` and `dali_cpu`: NVIDIA DALI decodes and resizes; samples are fed to it in the plan's order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shards.dataset import ShardSplit
from ..shards.reader import CorruptSampleError, SampleReader
from .loader import Loader, LoaderSettings
from .pixels import NORMALIZATIONS, decode_squished

PREFETCH_BATCHES = 2
AS_THEY_ARE = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))


def build_pipeline(
    settings: LoaderSettings, next_jpegs: Callable[[], list[NDArray[np.uint8]]], *, threads: int, device_id: int | None
) -> Any:
    """Build DALI's pipeline from JPEG bytes to one output, the images; `device_id` None: all on the CPU.

    `next_jpegs` is asked for each batch, and raises StopIteration at the end. One code path serves DALI 1.34 and 2.x.
    """
    from nvidia.dali import fn as dali_fn
    from nvidia.dali import types as dali_types
    from nvidia.dali.pipeline import Pipeline

    fn, types = cast(Any, dali_fn), cast(Any, dali_types)  # made at run time, where type checkers do not see them
    size = settings.image_size
    layout = "HWC" if settings.channels_last else "CHW"
    dtype = {torch.uint8: types.UINT8, torch.float16: types.FLOAT16}.get(settings.dtype, types.FLOAT)
    means, deviations = NORMALIZATIONS.get(settings.normalize or "", AS_THEY_ARE)
    pipeline: Any = Pipeline(settings.batch_size, threads, device_id, prefetch_queue_depth=PREFETCH_BATCHES)
    with pipeline:
        jpegs = fn.external_source(source=next_jpegs, batch=True, device="cpu", dtype=types.UINT8, ndim=1)
        images = fn.decoders.image(
            jpegs,
            device="cpu" if device_id is None else "mixed",
            output_type=types.RGB,
            jpeg_fancy_upsampling=True,  # as libjpeg-turbo does by default, and so every other backend
        )
        images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(
            fn.crop_mirror_normalize(
                images,
                dtype=dtype,
                output_layout=layout,
                mean=[255 * mean for mean in means],
                std=[255 * deviation for deviation in deviations],
            )
        )
    pipeline.build()
    return pipeline


class DaliCpuLoader(Loader):
    """All on the CPU: feed a DALI pipeline batch by batch, a few ahead of the consumer."""

    backend = "dali_cpu"

    def __init__(self, split: ShardSplit, settings: LoaderSettings) -> None:
        super().__init__(split, settings)
        self._reader = SampleReader(split)
        self._coming: Iterator[NDArray[np.int64]] = iter(())
        self._scheduled: deque[NDArray[np.int64]] = deque()
        threads = settings.num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        device_id = (settings.device.index or 0) if settings.device.type == "cuda" else None
        self._pipeline: Any = build_pipeline(settings, self._next_jpegs, threads=threads, device_id=device_id)

    def _next_jpegs(self) -> list[NDArray[np.uint8]]:
        """Read the next batch for the pipeline."""
        positions = next(self._coming)
        jpegs = [np.frombuffer(self._reader.image(int(position)), np.uint8) for position in positions]
        self._scheduled.append(positions)
        return jpegs

    def _stream(self, batches: Iterable[NDArray[np.int64]]) -> Generator[tuple[Tensor, Tensor]]:
        if self._pipeline is None:
            raise RuntimeError("the loader is closed")
        self._coming = iter(batches)
        try:
            self._pipeline.schedule_run()  # the first time this schedules all that is prefetched
            while self._scheduled:
                images, labels = self._collect(self._scheduled.popleft())
                self._pipeline.schedule_run()
                yield images, labels
        finally:
            self._rewind()

    def _rewind(self) -> None:
        """Take what is still scheduled off the pipeline, so that the next epoch finds it empty."""
        self._coming = iter(())
        if self._pipeline is None:
            return
        while self._scheduled:
            self._scheduled.popleft()
            self._pipeline.share_outputs()
            self._pipeline.release_outputs()
        self._pipeline.schedule_run()  # meets the end of the feed, which reset() asks for
        self._pipeline.reset()

    def _collect(self, positions: NDArray[np.int64]) -> tuple[Tensor, Tensor]:
        """Copy the oldest scheduled batch out of DALI's buffers, which it uses again."""
        from nvidia.dali.plugin import pytorch

        settings, size = self.settings, self.settings.image_size
        try:
            (output,) = self._pipeline.share_outputs()
        except RuntimeError as error:
            self._pipeline = None  # a pipeline that met an error is of no more use
            raise self._blame(positions, error) from error
        shape = (len(positions), size, size, 3) if settings.channels_last else (len(positions), 3, size, size)
        dtype = torch.float32 if settings.dtype == torch.bfloat16 else settings.dtype
        images = torch.empty(shape, dtype=dtype, device=settings.device)
        stream = torch.cuda.current_stream(settings.device) if settings.device.type == "cuda" else None
        cast(Any, pytorch).feed_ndarray(output.as_tensor(), images, cuda_stream=stream)
        self._pipeline.release_outputs()
        if settings.channels_last:
            images = images.permute(0, 3, 1, 2)
        labels = torch.from_numpy(self.split.labels[positions].astype(np.int64))
        return images.to(settings.dtype), labels.to(settings.device, non_blocking=True)

    def _blame(self, positions: NDArray[np.int64], error: Exception) -> Exception:
        """Find the sample that DALI could not decode: it does not tell, so each of the batch is tried."""
        for position in positions.tolist():
            try:
                decode_squished(self._reader.image(position), self.settings.image_size)
            except CorruptSampleError as corrupt:
                return corrupt
            except ValueError as reason:
                return CorruptSampleError(position, str(reason))
        return error

    def close(self) -> None:
        """Free the pipeline and close the shards; the loader cannot be used on."""
        self._pipeline = None
        self._reader.close()


class DaliGpuLoader(DaliCpuLoader):
    """The same pipeline with mixed decoding, and everything after it, on the GPU that the batches are for."""

    backend = "dali_gpu"
