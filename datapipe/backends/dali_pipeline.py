"""DALI's pipeline for a recipe, of versions 1.34 and 2.x: what it is fed, and the graph from JPEG bytes to images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...shards.normalize import mean_std
from ..augment.policy import AugmentPolicy, Plans
from ..loader import LoaderSettings
from ..plan import PlannedBatch

PREFETCH_BATCHES = 2
# The part of the JPEGs for the hardware decoder. DALI's own default, save in some 2.x, where 0.9 made the slowest
# batches slower (github.com/NVIDIA/DALI/pull/6366). What is best depends on the GPU and the threads beside it.
HW_DECODER_LOAD = 0.65
NO_NORMALIZATION = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
Inputs = dict[str, Any]  # per input of the pipeline a list of arrays, one a sample, or one array of a row each


def inputs_of(policy: AugmentPolicy, jpegs: list[NDArray[np.uint8]], plans: Plans) -> Inputs:
    """Return what the pipeline of a recipe is fed for a batch; an input that it has no use for is not there."""
    inputs: Inputs = {"jpegs": jpegs}
    if policy.crops:
        windows = plans.windows.astype(np.int32)
        inputs |= {"starts": windows[:, :2].copy(), "shapes": windows[:, 2:].copy()}
        inputs |= {"flips": plans.flips.astype(np.int32)}
    if policy.crop_pct is not None:
        room = np.maximum(plans.resized - policy.image_size, 1)
        parts = (plans.corners / room).astype(np.float32)
        inputs |= {
            "resized": plans.resized.astype(np.float32),
            "across": parts[:, 1].copy(),
            "down": parts[:, 0].copy(),
        }
    if policy.erases:
        boxes = plans.boxes.astype(np.float32)
        inputs |= {"corner": boxes[:, :2].copy(), "sides": boxes[:, 2:] - boxes[:, :2]}
        inputs |= {"color": plans.colors.astype(np.float32)}
    if plans.operations:
        from .dali_transforms import operation_inputs

        inputs |= operation_inputs(plans.operations, policy.image_size)
    return inputs


def input_names(policy: AugmentPolicy) -> list[str]:
    """Return the names of a recipe's inputs, in the order in which they are fed."""
    one = np.ones(1, np.int64)
    return list(inputs_of(policy, [], policy.plan(policy.random_numbers(PlannedBatch(one, 0, 0)), one, one)))


def build_pipeline(
    settings: LoaderSettings, next_inputs: Callable[[], tuple[Any, ...]], *, threads: int, device_id: int | None
) -> Any:
    """Build DALI's pipeline from JPEG bytes to one output, the images.

    `next_inputs` is asked for each batch's `inputs_of`, and raises StopIteration at the end. With a `device_id` images
    are decoded and augmented on that GPU; None: all on the CPU. DALI knows no bfloat16; images are float32 then.
    """
    from nvidia.dali import fn as dali_fn
    from nvidia.dali import types as dali_types
    from nvidia.dali.pipeline import pipeline_def

    from .dali_transforms import apply_op

    fn, types = cast(Any, dali_fn), cast(Any, dali_types)  # made at run time, where type checkers do not see them
    size, policy = settings.image_size, settings.policy
    names = input_names(policy)
    decoding: dict[str, Any] = {
        "device": "cpu" if device_id is None else "mixed",
        "output_type": types.RGB,
        "jpeg_fancy_upsampling": True,  # as libjpeg-turbo does by default, and so every other backend
    }
    if device_id is not None:
        load = settings.hw_decoder_load
        decoding["hw_decoder_load"] = HW_DECODER_LOAD if load is None else load
    means, deviations = NO_NORMALIZATION if settings.normalize is None else mean_std(settings.normalize)
    finishing = {
        "dtype": {torch.uint8: types.UINT8, torch.float16: types.FLOAT16}.get(settings.dtype, types.FLOAT),
        "output_layout": "HWC" if settings.channels_last else "CHW",
        "mean": [255 * mean for mean in means],
        "std": [255 * deviation for deviation in deviations],
    }

    skip_normalize = settings.dtype == torch.uint8 and settings.channels_last and policy.crop_pct is None

    def graph() -> Any:
        outputs = fn.external_source(source=next_inputs, num_outputs=len(names), batch=True, device="cpu")
        fed = {name: outputs[number] for number, name in enumerate(names)}
        if policy.crops:
            window = {"start": fed["starts"], "shape": fed["shapes"], "axis_names": "HW"}
            images = fn.decoders.image_slice(fed["jpegs"], **window, **decoding)
        else:
            images = fn.decoders.image(fed["jpegs"], **decoding)
        target = fed["resized"] if policy.crop_pct is not None else [size, size]
        images = fn.resize(images, size=target, interp_type=types.INTERP_LINEAR, antialias=True)
        last = dict(finishing)
        if policy.crop_pct is not None:
            last |= {"crop": [size, size], "crop_pos_x": fed["across"], "crop_pos_y": fed["down"]}
        if policy.crops and (policy.uses_randaugment or skip_normalize):
            images = fn.flip(images, horizontal=fed["flips"])
        elif policy.crops:
            last["mirror"] = fed["flips"]
        if policy.erases:
            images = fn.erase(
                images, anchor=fed["corner"], shape=fed["sides"], axis_names="HW", fill_value=fed["color"]
            )
        if policy.uses_randaugment:
            for slot in ("0", "1"):
                value = fed["value" + slot] if device_id is None else fed["value" + slot].gpu()  # where the images are
                others = [fed[name + slot] for name in ("matrix", "corner", "sides")]
                images = apply_op(images, fed["branch" + slot], value, *others)
        return images if skip_normalize else fn.crop_mirror_normalize(images, **last)

    options = {"batch_size": settings.batch_size, "num_threads": threads, "device_id": device_id}
    definition: Any = cast(Any, pipeline_def)(graph, enable_conditionals=policy.uses_randaugment)
    pipeline: Any = definition(prefetch_queue_depth=PREFETCH_BATCHES, **options)
    pipeline.build()
    return pipeline


def decoder_alone(next_jpegs: Callable[[], list[NDArray[np.uint8]]]) -> Any:
    """Build a pipeline that decodes one JPEG at a time on the CPU, to see whether it does."""
    from nvidia.dali import fn as dali_fn
    from nvidia.dali.pipeline import Pipeline

    fn = cast(Any, dali_fn)
    pipeline: Any = Pipeline(1, 1, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    with pipeline:
        jpegs = fn.external_source(source=next_jpegs, batch=True, device="cpu")
        pipeline.set_outputs(fn.decoders.image(jpegs, device="cpu"))
    pipeline.build()
    return pipeline
