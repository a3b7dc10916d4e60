"""Runs two images through a network, to check that it takes them before anything is written, packed or compiled."""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm  # pyright: ignore[reportPrivateUsage] - the base of all batch norms

from .fit import architecture_of
from .hollow import hollow

NUM_IMAGES = 2
_SIDES = range(32, 545, 32)  # tried for a message, beside the network's own
_MOST_NAMED = 4


class Trial(NamedTuple):
    """The outcome of running two images through a network.

    num_outputs: columns of its output.
    norm:        the batch norm that sees the fewest values of a channel in an image, and how many these are; None
                 for a network without batch norm.
    """

    num_outputs: int
    norm: tuple[str, int] | None

    def check_batch(self, batch_size: int) -> None:
        """Raise ValueError if batches are so small that a batch norm sees a single value of a channel."""
        if self.norm and self.norm[1] * batch_size == 1:
            raise ValueError(
                f"batch_size is {batch_size}, and the batch norm {self.norm[0]} takes one value of a channel from an "
                "image, and needs more to train; give --set batch_size=2 or more"
            )


def try_images(
    network: nn.Module,
    image_size: int,
    *,
    name: str,
    num_outputs: int | None = None,
    option: str = "",
    rebuilds: bool = False,
) -> Trial:
    """Run two black images through a network in evaluation mode, on its device.

    Its buffers and modes and the random state do not change.

    name:        of the network, for messages.
    num_outputs: the required number of output columns; None: any.
    option:      the option that sets the size (`--image-size `), for messages.
    rebuilds:    whether messages may advise building the network for another size (`model_args`).

    Raises ValueError if it does not take such images, naming sizes that it takes, or if its output is not a tensor
    (2, num_outputs).
    """
    norms: dict[str, int] = {}
    like = next(network.parameters(), torch.empty(0))
    with torch.random.fork_rng(devices=[like.device] if like.device.type == "cuda" else []):
        try:
            output = _answer(network, image_size, like.device, norms)
        except Exception as error:  # a network is foreign code, which may raise anything
            if _is_of_machine(error):
                raise
            problem = " ".join(str(error).split()) or type(error).__name__
            raise ValueError(
                f"{name}: takes no images of {image_size} x {image_size} pixels ({problem}); "
                f"{_way_out(network, image_size, option, rebuilds=rebuilds)}"
            ) from error
    shape = tuple(output.shape) if isinstance(output, Tensor) else f"a {type(output).__name__}"
    if not isinstance(output, Tensor) or output.ndim != 2 or shape != (NUM_IMAGES, num_outputs or output.shape[1]):
        raise ValueError(
            f"{name}: gives {shape} for {NUM_IMAGES} images; wanted logits ({NUM_IMAGES}, {num_outputs or 'classes'}); "
            "leave out of model_args what changes its output (features_only, global_pool, ...)"
        )
    return Trial(output.shape[1], min(norms.items(), key=lambda norm: norm[1]) if norms else None)


def _answer(network: nn.Module, image_size: int, device: torch.device, norms: dict[str, int]) -> Any:
    """Return a network's output for two images; note how many values of a channel each batch norm sees in one."""

    def note(norm_name: str) -> Callable[..., None]:
        def count_values(norm: _BatchNorm, inputs: tuple[Tensor, ...]) -> None:
            norms[norm_name] = inputs[0].numel() // norm.num_features // NUM_IMAGES

        return count_values

    batch_norms = [(name, module) for name, module in network.named_modules() if isinstance(module, _BatchNorm)]
    hooks = [norm.register_forward_pre_hook(note(name)) for name, norm in batch_norms]
    buffers = {name: buffer.clone() for name, buffer in network.named_buffers()}
    try:
        with _evaluating(network), torch.no_grad():
            images = torch.zeros(NUM_IMAGES, 3, image_size, image_size, device=device)
            return functional_call(network, buffers, (images,))
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _evaluating(network: nn.Module) -> Generator[None]:
    """Put a network into evaluation mode, and restore the mode of every module at the end."""
    modes = {module: module.training for module in network.modules()}
    network.eval()
    try:
        yield
    finally:
        network.train(modes[network])  # some networks drop here what they cache in evaluation mode
        for module, is_training in modes.items():
            module.training = is_training


def _way_out(network: nn.Module, image_size: int, option: str, *, rebuilds: bool) -> str:
    """Say which sizes fit, or how to build the network for this one."""
    if rebuilds and _can_be_built_for(network, image_size):
        return f"give --set 'model_args={{img_size: {image_size}}}'"
    own: dict[str, Any] = getattr(network, "pretrained_cfg", None) or {}
    sides = {*_SIDES, *own.get("input_size", ())[1:]}
    fitting: list[int] = []
    empty = _without_content(network)
    for side in sorted(sides, key=lambda side: (abs(side - image_size), side)):
        if len(fitting) < _MOST_NAMED and _takes(empty, side):
            fitting.append(side)
    if not fitting:
        return "it takes images of no usual size; give another model or other model_args"
    named = ", ".join(f"{side} x {side}" for side in sorted(fitting))
    return f"it takes {named}{f' ({option}{fitting[0]})' if option else ''}"


def _can_be_built_for(network: nn.Module, image_size: int) -> bool:
    architecture = architecture_of(network)
    if architecture is None:
        return False
    try:
        with hollow():
            built = timm.create_model(architecture, img_size=image_size)
    except Exception:  # as above
        return False
    return _takes(built, image_size)


def _takes(empty: nn.Module, image_size: int) -> bool:
    try:
        with torch.no_grad():
            empty.eval()(torch.empty(NUM_IMAGES, 3, image_size, image_size, device="meta"))
    except Exception:  # as above
        return False
    return True


def _without_content(network: nn.Module) -> nn.Module:
    """Return a copy on the meta device, whose passes take no memory and a fraction of a second."""
    parameters = {id(own): nn.Parameter(own.to("meta"), own.requires_grad) for own in network.parameters()}
    return copy.deepcopy(network, {**parameters, **{id(own): own.to("meta") for own in network.buffers()}})


def _is_of_machine(error: Exception) -> bool:
    """Return whether memory, driver or GPU failed rather than the network."""
    words = ("out of memory", "can't allocate memory", "CUDA error", "CUDA driver")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
