"""Backends `dali_gpu` and `dali_cpu`: NVIDIA DALI decodes, resizes and augments what the guarded feed gives it."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from itertools import chain
from typing import Any, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..shards.dataset import ShardSplit
from .augment import Plans, Recipe
from .feed import Bad
from .loader import Loaded, Loader, LoaderSettings
from .pixels import NORMALIZATIONS
from .plan import PlannedBatch

PREFETCH_BATCHES = 2
AS_THEY_ARE = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
Inputs = dict[str, Any]  # per input of the pipeline a list of arrays, one a sample, or one array of a row each


def inputs_of(recipe: Recipe, jpegs: list[NDArray[np.uint8]], plans: Plans) -> Inputs:
    """Return what the pipeline of a recipe is fed for a batch; an input that it has no use for is not there."""
    inputs: Inputs = {"jpegs": jpegs}
    if recipe.crops:
        windows = plans.windows.astype(np.int32)
        inputs |= {"starts": windows[:, :2].copy(), "shapes": windows[:, 2:].copy()}
        inputs |= {"flips": plans.flips.astype(np.int32)}
    if recipe.crop_pct is not None:
        room = np.maximum(plans.resized - recipe.image_size, 1)
        parts = (plans.corners / room).astype(np.float32)
        inputs |= {
            "resized": plans.resized.astype(np.float32),
            "across": parts[:, 1].copy(),
            "down": parts[:, 0].copy(),
        }
    if recipe.erases:
        boxes = plans.boxes.astype(np.float32)
        inputs |= {"corner": boxes[:, :2].copy(), "sides": boxes[:, 2:] - boxes[:, :2]}
        inputs |= {"color": plans.colors.astype(np.float32)}
    if plans.operations:
        from .dali_transforms import operation_inputs

        inputs |= operation_inputs(plans.operations, recipe.image_size)
    return inputs


def input_names(recipe: Recipe) -> list[str]:
    """Return the names of a recipe's inputs, in the order in which they are fed."""
    one = np.ones(1, np.int64)
    return list(inputs_of(recipe, [], recipe.plan(recipe.numbers(PlannedBatch(one, 0, 0)), one, one)))


def build_pipeline(
    settings: LoaderSettings, next_inputs: Callable[[], tuple[Any, ...]], *, threads: int, device_id: int | None
) -> Any:
    """Build DALI's pipeline from JPEG bytes to one output, the images; `device_id` None: all on the CPU.

    `next_inputs` is asked for each batch's `inputs_of`, and raises StopIteration at the end. One code path serves DALI
    1.34 and 2.x.
    """
    from nvidia.dali import fn as dali_fn
    from nvidia.dali import types as dali_types
    from nvidia.dali.pipeline import pipeline_def

    from .dali_transforms import operate

    fn, types = cast(Any, dali_fn), cast(Any, dali_types)  # made at run time, where type checkers do not see them
    size, recipe = settings.image_size, settings.recipe
    names = input_names(recipe)
    decoding = {
        "device": "cpu" if device_id is None else "mixed",
        "output_type": types.RGB,
        "jpeg_fancy_upsampling": True,  # as libjpeg-turbo does by default, and so every other backend
    }
    means, deviations = NORMALIZATIONS.get(settings.normalize or "", AS_THEY_ARE)
    finishing = {
        "dtype": {torch.uint8: types.UINT8, torch.float16: types.FLOAT16}.get(settings.dtype, types.FLOAT),
        "output_layout": "HWC" if settings.channels_last else "CHW",
        "mean": [255 * mean for mean in means],
        "std": [255 * deviation for deviation in deviations],
    }

    as_they_are = settings.dtype == torch.uint8 and settings.channels_last and recipe.crop_pct is None

    def graph() -> Any:
        outputs = fn.external_source(source=next_inputs, num_outputs=len(names), batch=True, device="cpu")
        fed = {name: outputs[number] for number, name in enumerate(names)}
        if recipe.crops:
            window = {"start": fed["starts"], "shape": fed["shapes"], "axis_names": "HW"}
            images = fn.decoders.image_slice(fed["jpegs"], **window, **decoding)
        else:
            images = fn.decoders.image(fed["jpegs"], **decoding)
        target = fed["resized"] if recipe.crop_pct is not None else [size, size]
        images = fn.resize(images, size=target, interp_type=types.INTERP_LINEAR, antialias=True)
        last = dict(finishing)
        if recipe.crop_pct is not None:
            last |= {"crop": [size, size], "crop_pos_x": fed["across"], "crop_pos_y": fed["down"]}
        if recipe.crops and (recipe.operates or as_they_are):
            images = fn.flip(images, horizontal=fed["flips"])
        elif recipe.crops:
            last["mirror"] = fed["flips"]
        if recipe.erases:
            images = fn.erase(
                images, anchor=fed["corner"], shape=fed["sides"], axis_names="HW", fill_value=fed["color"]
            )
        if recipe.operates:
            for slot in ("0", "1"):
                value = fed["value" + slot] if device_id is None else fed["value" + slot].gpu()  # where the images are
                others = [fed[name + slot] for name in ("matrix", "corner", "sides")]
                images = operate(images, fed["branch" + slot], value, *others)
        return images if as_they_are else fn.crop_mirror_normalize(images, **last)

    options = {"batch_size": settings.batch_size, "num_threads": threads, "device_id": device_id}
    definition: Any = cast(Any, pipeline_def)(graph, enable_conditionals=recipe.operates)
    pipeline: Any = definition(prefetch_queue_depth=PREFETCH_BATCHES, **options)
    pipeline.build()
    return pipeline


def decoder_alone(next_jpegs: Callable[[], list[NDArray[np.uint8]]], device_id: int | None) -> Any:
    """Build a pipeline that decodes one JPEG at a time, to see whether it does."""
    from nvidia.dali import fn as dali_fn
    from nvidia.dali.pipeline import Pipeline

    fn = cast(Any, dali_fn)
    pipeline: Any = Pipeline(1, 1, device_id, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    with pipeline:
        jpegs = fn.external_source(source=next_jpegs, batch=True, device="cpu")
        pipeline.set_outputs(fn.decoders.image(jpegs, device="cpu" if device_id is None else "mixed"))
    pipeline.build()
    return pipeline


def device_id_of(settings: LoaderSettings) -> int | None:
    """Return the number of the GPU that batches are for; None: the CPU."""
    return (settings.device.index or 0) if settings.device.type == "cuda" else None


class _Scheduled(NamedTuple):
    """A batch that is in the pipeline: as planned, whose pixels come out, and the corrupt samples met."""

    batch: PlannedBatch
    used: NDArray[np.int64]
    bad: list[Bad]


class DaliCpuLoader(Loader):
    """All on the CPU: feed a DALI pipeline batch by batch, a few ahead of the consumer."""

    backend = "dali_cpu"

    def __init__(self, split: ShardSplit, settings: LoaderSettings) -> None:
        super().__init__(split, settings)
        self._recipe = settings.recipe
        self._coming: Iterator[PlannedBatch] = iter(())
        self._scheduled: deque[_Scheduled] = deque()
        self._threads = settings.num_workers(int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
        self._pipeline: Any = None

    def _next_inputs(self) -> tuple[Any, ...]:
        """Read the next batch for the pipeline; one of which nothing is left is passed by."""
        while True:
            batch, bad = next(self._coming), list[Bad]()
            read = [self._feed.read(position, bad) for position in batch.positions.tolist()]
            samples = [sample for sample in read if sample]
            self._scheduled.append(_Scheduled(batch, np.array([s.position for s in samples], np.int64), bad))
            if samples:
                kept = [sample is not None for sample in read]
                sizes = (np.array(sides) for sides in zip(*((s.height, s.width) for s in samples), strict=True))
                plans = self._recipe.plan(self._recipe.numbers(batch)[kept], *sizes)
                jpegs = [np.frombuffer(sample.jpeg, np.uint8) for sample in samples]
                return tuple(inputs_of(self._recipe, jpegs, plans).values())

    def _begin(self, batches: Iterator[PlannedBatch]) -> None:
        self._coming = batches
        if self._pipeline is None:
            self._pipeline = build_pipeline(
                self.settings, self._next_inputs, threads=self._threads, device_id=device_id_of(self.settings)
            )
        self._pipeline.schedule_run()  # the first time this schedules all that is prefetched

    def _stream(self, batches: Iterable[PlannedBatch]) -> Generator[Loaded]:
        try:
            self._begin(iter(batches))
            while self._scheduled:
                try:
                    outputs = self._pipeline.share_outputs() if len(self._scheduled[0].used) else ()
                except RuntimeError as error:
                    self._begin_without_bad(error)
                    continue
                done = self._scheduled.popleft()
                if not outputs:
                    yield self._empty()._replace(bad=done.bad)
                    continue
                loaded = self._collect(outputs[0], done)
                self._pipeline.schedule_run()
                yield loaded
        finally:
            self._rewind()

    def _begin_without_bad(self, error: RuntimeError) -> None:
        """Begin anew with what is scheduled, after an image that did not decode: DALI does not tell which one."""
        self._pipeline = None  # a pipeline that met an error is of no more use
        found = False
        for scheduled in self._scheduled:
            for position, reason in self._undecodable(scheduled.used):
                self._feed.exclude(position, reason)
                found = True
        if not found:
            raise error
        batches = [scheduled.batch for scheduled in self._scheduled]
        self._scheduled.clear()
        self._begin(chain(batches, self._coming))

    def _undecodable(self, positions: NDArray[np.int64]) -> Iterator[Bad]:
        """Try each sample by itself."""
        current: list[NDArray[np.uint8]] = []
        probe: Any = None
        for position in positions.tolist():
            sample = self._feed.read(position, [])
            assert sample is not None
            current[:] = [np.frombuffer(sample.jpeg, np.uint8)]
            probe = probe or decoder_alone(lambda: current, device_id_of(self.settings))
            try:
                probe.run()
            except RuntimeError as error:
                probe = None
                yield Bad(position, f"does not decode ({str(error).strip().splitlines()[-1]})")

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

    def _collect(self, output: Any, scheduled: _Scheduled) -> Loaded:
        """Take a batch out of the pipeline."""
        images = self._owned(output, len(scheduled.used))
        self._pipeline.release_outputs()
        if self.settings.channels_last:
            images = images.permute(0, 3, 1, 2)
        return Loaded(images.to(self.settings.dtype), self._labels(scheduled.used), scheduled.bad)

    def _owned(self, output: Any, count: int) -> Tensor:
        """Return DALI's output as the consumer's own.

        DALI 2's executor gives its outputs away, so that on a CPU nothing is copied; earlier ones use their buffers
        again, and on a GPU DALI does not know which stream reads them.
        """
        from nvidia.dali.plugin import pytorch

        if self.settings.device.type == "cpu" and getattr(self._pipeline, "exec_dynamic", False):
            return torch.from_dlpack(output.as_tensor())
        settings, size = self.settings, self.settings.image_size
        shape = (count, size, size, 3) if settings.channels_last else (count, 3, size, size)
        dtype = torch.float32 if settings.dtype == torch.bfloat16 else settings.dtype
        images = torch.empty(shape, dtype=dtype, device=settings.device)
        stream = torch.cuda.current_stream(settings.device) if settings.device.type == "cuda" else None
        cast(Any, pytorch).feed_ndarray(output.as_tensor(), images, cuda_stream=stream)
        return images

    def close(self) -> None:
        """Free the pipeline and close the shards; iterating again builds another."""
        super().close()
        self._pipeline = None


class DaliGpuLoader(DaliCpuLoader):
    """The same pipeline with mixed decoding, and everything after it, on the GPU that the batches are for."""

    backend = "dali_gpu"
