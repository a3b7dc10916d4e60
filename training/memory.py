"""How much memory a training step takes, before there is one: counted from tensors' sizes, activations measured."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from ..models.zoo import checkpoint_gradients
from .optim import create_optimizer
from .precision import autocast
from .settings import TrainSettings

_FEW, _MORE = 2, 4  # images; batch norm wants more than one


def estimate_memory(model: nn.Module, settings: TrainSettings, teacher: nn.Module | None = None) -> dict[str, int]:
    """Return what one rank's training step holds at its fullest, in bytes by purpose, and the `total`.

    weights, gradients, ema, teacher: their tensors' sizes.
    optimizer:   what a step leaves in it, taken over tensors without content; not there for the few that read values.
    images:      one batch in float32.
    activations: what the network keeps for its backward pass, measured on the CPU with a few images and scaled to the
                 batch. Not in it: the loss, a layer's scratch space, what grad_checkpointing computes anew, and what
                 the device's libraries take.

    model: on the CPU, and unchanged afterwards.  settings: with image_size and amp filled in.
    """
    assert settings.image_size is not None
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    state = _optimizer_bytes(model, settings)
    sizes = {
        "weights": _module_bytes(model),
        "gradients": _bytes(trained),
        **({"optimizer": state} if state is not None else {}),
        **({"ema": _module_bytes(model)} if settings.ema else {}),
        **({"teacher": _module_bytes(teacher)} if teacher else {}),
        "images": settings.batch_size * 3 * settings.image_size**2 * 4,
        "activations": _activation_bytes(model, settings),
    }
    return {**sizes, "total": sum(sizes.values())}


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def _module_bytes(module: nn.Module) -> int:
    return _bytes(module.parameters()) + _bytes(module.buffers())


def _optimizer_bytes(model: nn.Module, settings: TrainSettings) -> int | None:
    """Return the size of the optimizer's state after a step; None where it cannot step over tensors without content."""
    empty = {id(each): nn.Parameter(each.to("meta"), each.requires_grad) for each in model.parameters()}
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
        for each in cast(Iterable[Any], value.values() if isinstance(value, Mapping) else value):
            yield from _tensors(each)


def _activation_bytes(model: nn.Module, settings: TrainSettings) -> int:
    """Return what is kept of a batch: a line through two small ones, as some of it (cast weights) does not grow."""
    own = copy.deepcopy(model, {id(parameter): parameter for parameter in model.parameters()}).train()
    if settings.grad_checkpointing:
        checkpoint_gradients(own, settings.model)
    few, more = (_kept_bytes(own, settings, num_images) for num_images in (_FEW, _MORE))
    return few + (more - few) * (settings.batch_size - _FEW) // (_MORE - _FEW)


def _kept_bytes(model: nn.Module, settings: TrainSettings, num_images: int) -> int:
    """Return what the backward pass of some images would read, beside the model's own tensors and the images."""
    size, kept = settings.image_size or 0, dict[int, int]()

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    images = torch.zeros(num_images, 3, size, size)
    with (
        torch.random.fork_rng(devices=[]),
        torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor),
        autocast(torch.device("cpu"), settings.amp),
    ):
        # While there is an output its graph holds what was saved, so that no address stands for two tensors.
        output = model(images)
    own = {each.untyped_storage().data_ptr() for each in (*model.parameters(), *model.buffers(), images)}
    total = sum(size for address, size in kept.items() if address not in own)
    del output
    return total
