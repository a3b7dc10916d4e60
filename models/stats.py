"""How large a network is, by count: parameters, multiplications, activations. `speed.py` measures how fast."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from .hollow import hollow
from .zoo import create_model


def count_parameters(name: str, num_classes: int | None = None, **model_args: Any) -> int:
    """Return the number of parameters of a network, without making them: a tenth of a second, and no memory.

    name, num_classes, model_args: as for `create_model`, which says what ValueErrors there are.

    >>> count_parameters("resnet18", num_classes=10)
    11181642
    """
    with hollow():
        model = create_model(name, num_classes, **model_args)
    return sum(parameter.numel() for parameter in model.parameters())


@dataclass(frozen=True, kw_only=True)
class ModelStats:
    """What a network is made of, and what one image takes."""

    num_parameters: int
    num_flops: int
    """Of the convolutions and matrix products of one image's pass, attention's included, as torch's `FlopCounterMode`
    counts them: a multiplication and its addition are two."""
    num_activations: int
    """Elements of the outputs of the same operations (Radosavovic et al., 2020, https://arxiv.org/abs/2003.13678)."""

    @property
    def num_macs(self) -> int:
        """Multiplications, each with its addition: what tables often call FLOPs."""
        return self.num_flops // 2


def model_stats(model: nn.Module, image_size: int) -> ModelStats:
    """Count a network's parameters, and what an image (3 x image_size x image_size) takes in evaluation mode.

    Raises ValueError where the network takes no such image.
    """
    device = next(model.parameters()).device
    flops = FlopCounterMode(display=False)
    activations = FlopCounterMode(display=False, custom_mapping=dict.fromkeys(flop_registry, _num_outputs))
    was_training = model.training
    model.eval()
    try:
        # Plain attention is matrix products; which of the fused ones are counted depends on device and version.
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), flops, activations:
            model(torch.zeros(1, 3, image_size, image_size, device=device))
    except (AssertionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"the network takes no images of {image_size} x {image_size} pixels "
            f"({' '.join(str(error).split())}); give another --image-size"
        ) from error
    finally:
        model.train(was_training)
    return ModelStats(
        num_parameters=sum(parameter.numel() for parameter in model.parameters()),
        num_flops=flops.get_total_flops(),
        num_activations=activations.get_total_flops(),
    )


def _num_outputs(*_: Any, out_shape: Sequence[int], **__: Any) -> int:
    return math.prod(out_shape)
