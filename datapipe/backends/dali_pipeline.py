"""DALI's pipeline for an augmentation policy, for DALI 1.34 and 2.x: its inputs, and the graph from JPEGs to images.

RandAugment is not part of the graph: as DALI operators it took 312 of them for a batch. `randaugment_triton.py` applies
it on a GPU, the functions of the other backends on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray

from ...shards.normalize import mean_std
from ..augment.policy import AugmentPolicy, Plans
from ..settings import LoaderConfig

PREFETCH_BATCHES = 2
# The share of the JPEGs for the hardware decoder. DALI's own default, except in some 2.x, where 0.9 made the slowest
# batches slower (github.com/NVIDIA/DALI/pull/6366). The best value depends on the GPU and the CPU threads.
HW_DECODER_LOAD = 0.65
NO_NORMALIZATION = ((0.0, 0.0, 0.0), (1 / 255, 1 / 255, 1 / 255))
Inputs = dict[str, Any]  # for each input of the pipeline a list of arrays, one a sample, or an array, one row a sample


def input_names(policy: AugmentPolicy) -> list[str]:
    """Return the names of a policy's inputs, in the order in which they are fed."""
    names = ["jpegs"]
    if policy.crops:
        names += ["starts", "shapes", "flips"]
    if policy.crop_pct is not None:
        names += ["resized", "across", "down"]
    if policy.erases:
        names += ["corner", "sides", "color"]
    return names


def inputs_of(policy: AugmentPolicy, jpegs: list[NDArray[np.uint8]], plans: Plans) -> Inputs:
    """Return a batch's input for each of `input_names`."""
    inputs: Inputs = {"jpegs": jpegs}
    if policy.crops:
        windows = plans.windows.astype(np.int32)
        inputs |= {"starts": windows[:, :2].copy(), "shapes": windows[:, 2:].copy()}
        inputs |= {"flips": plans.flips.astype(np.int32)}
    if policy.crop_pct is not None:
        room = np.maximum(plans.resized - policy.image_size, 1)
        parts = (plans.corners / room).astype(np.float32)
        inputs |= {"resized": plans.resized.astype(np.float32)}
        inputs |= {"across": parts[:, 1].copy(), "down": parts[:, 0].copy()}
    if policy.erases:
        boxes = plans.boxes.astype(np.float32)
        inputs |= {"corner": boxes[:, :2].copy(), "sides": boxes[:, 2:] - boxes[:, :2]}
        inputs |= {"color": plans.colors.astype(np.float32)}
    return inputs


def memory_hints(largest_sides: tuple[int, int]) -> dict[str, int]:
    """Return how much memory a thread of the GPU's JPEG decoder allocates at the start, for images up to these sides.

    It is that of three planes of 2-byte coefficients (guessed: a larger need costs one allocation). DALI's defaults, 16
    MiB on the device and 8 MiB on the host for each thread, are the limits.
    """
    height, width = largest_sides
    needed = -(-3 * 2 * height * width // 2**20) * 2**20
    return {
        "device_memory_padding": min(needed, 16 * 2**20),
        "host_memory_padding": min(needed, 8 * 2**20),
        "preallocate_height_hint": height,
        "preallocate_width_hint": width,
    }


def build_pipeline(
    settings: LoaderConfig,
    next_inputs: Callable[[], tuple[Any, ...]],
    *,
    threads: int,
    device_id: int | None,
    largest_sides: tuple[int, int] | None = None,
) -> Any:
    """Build DALI's pipeline from JPEG bytes to one output, the images before RandAugment.

    `next_inputs` returns each batch's inputs in the order of `input_names`, and raises StopIteration at the end. With a
    `device_id` the pipeline runs on that GPU, else on the CPU. `largest_sides` are the height and width of the largest
    image. DALI has no bfloat16; images are float32 instead.
    """
    from nvidia.dali import fn as dali_fn
    from nvidia.dali import types as dali_types
    from nvidia.dali.pipeline import pipeline_def

    fn, types = cast(Any, dali_fn), cast(Any, dali_types)  # created at run time, unseen by type checkers
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
        decoding |= memory_hints(largest_sides) if largest_sides else {}
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
        if policy.crops and skip_normalize:
            images = fn.flip(images, horizontal=fed["flips"])
        elif policy.crops:
            last["mirror"] = fed["flips"]
        if policy.erases:
            images = fn.erase(
                images, anchor=fed["corner"], shape=fed["sides"], axis_names="HW", fill_value=fed["color"]
            )
        return images if skip_normalize else fn.crop_mirror_normalize(images, **last)

    options = {"batch_size": settings.batch_size, "num_threads": threads, "device_id": device_id}
    definition: Any = cast(Any, pipeline_def)(graph)
    pipeline: Any = definition(prefetch_queue_depth=PREFETCH_BATCHES, **options)
    pipeline.build()
    return pipeline


def decoder_alone(next_jpegs: Callable[[], list[NDArray[np.uint8]]]) -> Any:
    """Build a pipeline that decodes one JPEG at a time on the CPU, to find those that do not decode."""
    from nvidia.dali import fn as dali_fn
    from nvidia.dali.pipeline import Pipeline

    fn = cast(Any, dali_fn)
    pipeline: Any = Pipeline(1, 1, None, prefetch_queue_depth=1, exec_async=False, exec_pipelined=False)
    with pipeline:
        jpegs = fn.external_source(source=next_jpegs, batch=True, device="cpu")
        pipeline.set_outputs(fn.decoders.image(jpegs, device="cpu"))
    pipeline.build()
    return pipeline
