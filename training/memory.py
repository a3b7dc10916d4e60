"""How much memory a training step takes, before there is one: counted from the sizes of its tensors."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode

from ..models.speed import LATENCY_BATCHES, SpeedSettings, largest_that_fits
from ..models.zoo import checkpoint_gradients
from .optim import create_optimizer
from .precision import autocast
from .settings import TrainSettings

_FEW, _MORE = 2, 4  # images; batch norm wants more than one
_FAR_APART = (128, 256)  # images: more than a pass for a latency takes


def estimate_memory(model: nn.Module, settings: TrainSettings, teacher: nn.Module | None = None) -> dict[str, int]:
    """Return what one rank's training step holds at its fullest, in bytes by purpose, and the `total`.

    weights, gradients, ema, teacher: their tensors' sizes.
    optimizer:   what a step leaves in it, taken over tensors without content; not there for the few that read values.
    images:      one batch in float32.
    activations: what the network keeps for its backward pass on a CPU, of a few images without content, scaled to the
                 batch; another device's kernels may keep something else. Not in it: the loss, a layer's scratch space,
                 what grad_checkpointing computes anew, and what the device's libraries take. Not there for networks
                 whose way depends on the images' values.

    model: on the CPU, and unchanged afterwards.  settings: with image_size and amp filled in.

    Raises ValueError where the network knows no grad_checkpointing.
    """
    assert settings.image_size is not None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state, activations = _optimizer_bytes(model, settings), _activation_bytes(model, settings)
    sizes = {
        "weights": _module_bytes(model),
        "gradients": _bytes(trained),
        **({"optimizer": state} if state is not None else {}),
        **({"ema": _module_bytes(model)} if settings.ema else {}),
        **({"teacher": _module_bytes(teacher)} if teacher else {}),
        "images": settings.batch_size * 3 * settings.image_size**2 * 4,
        **({"activations": activations} if activations is not None else {}),
    }
    return {**sizes, "total": sum(sizes.values())}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _module_bytes(module: nn.Module) -> int:
    return _bytes(module.parameters()) + _bytes(module.buffers())


def _optimizer_bytes(model: nn.Module, settings: TrainSettings) -> int | None:
    """Return the size of the optimizer's state after a step; None where it cannot step over tensors without content."""
    empty = {id(weight): nn.Parameter(weight.to("meta"), weight.requires_grad) for weight in model.parameters()}
    shell = copy.deepcopy(model, dict(empty))
    optimizer = create_optimizer(shell, settings)
    for parameter in shell.parameters():
        parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
    try:
        optimizer.step()
    except (NotImplementedError, RuntimeError):
        return None
    return _bytes(_tensors(optimizer.state_dict()["state"]))


def _tensors(value: object) -> Iterator[Tensor]:
    """Yield the tensors in nested dicts, lists and tuples."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (Mapping, list, tuple)):
        for item in cast(Iterable[Any], value.values() if isinstance(value, Mapping) else value):
            yield from _tensors(item)


def _activation_bytes(model: nn.Module, settings: TrainSettings) -> int | None:
    """Return what is kept of a batch: a line through two small ones, as some of it (cast weights) does not grow.

    None where images without content do not come through.
    """
    # Tensors that know their shape, kind and device and have no content: images of any size take a second, no memory.
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    weights = {id(w): nn.Parameter(mode.from_tensor(w.detach()), w.requires_grad) for w in model.parameters()}
    buffers = {id(buffer): mode.from_tensor(buffer) for buffer in model.buffers()}
    shell = copy.deepcopy(model, {**weights, **buffers}).train()
    if settings.grad_checkpointing:
        checkpoint_gradients(shell, settings.model)
    try:
        with mode:
            few, more = (_kept_bytes(shell, settings, num_images) for num_images in (_FEW, _MORE))
    except (DataDependentOutputException, DynamicOutputShapeException):
        return None
    return few + (more - few) * (settings.batch_size - _FEW) // (_MORE - _FEW)


def _kept_bytes(model: nn.Module, settings: TrainSettings, num_images: int) -> int:
    """Return what the backward pass of some images would read, beside the model's own tensors and the images."""
    size, kept = settings.image_size or 0, dict[int, torch.UntypedStorage]()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[id(storage)] = storage  # which is held, so that no number stands for two
        return tensor

    images = torch.zeros(num_images, 3, size, size)
    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        autocast(torch.device("cpu"), settings.amp),
    ):
        model(images)
    own = {id(tensor.untyped_storage()) for tensor in (*model.parameters(), *model.buffers(), images)}
    return sum(storage.nbytes() for number, storage in kept.items() if number not in own)


def free_bytes() -> int:
    """Return the memory that can be had without swapping."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    raise ValueError("/proc/meminfo names no MemAvailable; wanted Linux 3.14 or later")


def lacks_memory(network: nn.Module, settings: SpeedSettings) -> str:
    """Return in one line why `models.speed.measure_speed` does not fit into this machine's memory; empty if it may."""
    size, batch_size = settings.image_size, settings.batch_size
    needed, free = _needed_bytes(network, settings, batch_size), free_bytes()
    if needed is None or needed <= free:
        return ""
    most = max(batch_size, *LATENCY_BATCHES)
    return (
        f"steps of {batch_size:,} and passes of up to {most:,} images of {size} pixels take "
        f"{needed / 1e9:,.1f} GB of memory or more, and {free / 1e9:,.1f} GB are free; lower --batch-size or "
        "--image-size"
    )


def largest_batch(network: nn.Module, settings: SpeedSettings, num_bytes: int) -> int:
    """Return the most images of a batch with which `measure_speed` fits into so much memory of a CPU; 0: none.

    By the estimate of `estimate_memory`, which grows evenly with the batch: nothing is allocated.

    Raises ValueError where the network refuses such images.
    """
    few, more = (_needed_bytes(network, settings, num_images) for num_images in _FAR_APART)
    if few is None or more is None:
        raise ValueError(
            f"its memory for images of {settings.image_size} pixels cannot be estimated; give --batch-size"
        )
    first, second = _FAR_APART
    per_image = (more - few) / (second - first)
    most = int(first + (num_bytes - few) / per_image)
    return most if most >= first else _largest_of_few(network, settings, num_bytes)


def _largest_of_few(network: nn.Module, settings: SpeedSettings, num_bytes: int) -> int:
    """Search among batches so small that passes of other sizes may take more than their steps do."""

    def fits(num_images: int) -> bool:
        needed = _needed_bytes(network, settings, num_images)
        return needed is not None and needed <= num_bytes

    return largest_that_fits(fits, most=_FAR_APART[0])


def _needed_bytes(network: nn.Module, settings: SpeedSettings, batch_size: int) -> int | None:
    """Return what `measure_speed` takes at its fullest; None where the network refuses such images."""
    size = settings.image_size
    amp = "off" if settings.precision == "float32" else settings.precision
    step = TrainSettings(image_size=size, batch_size=batch_size, optimizer="sgd", momentum=0.9, amp=amp)
    try:
        sizes = estimate_memory(network, step)
    except (AssertionError, RuntimeError, ValueError):
        return None  # `model_stats` says so
    most = max(batch_size, *LATENCY_BATCHES)
    activations = sizes.get("activations", 0)
    # A copy for inference lies beside the network that trains; its images and the activations are never there at once.
    return sizes["total"] - activations + sizes["weights"] + max(activations, 12 * most * size**2)
