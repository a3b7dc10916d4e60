"""Files with the keys and shapes of published weights, of a few kilobytes: every tensor repeats one number."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from in21k.models.hollow import hollow
from in21k.models.zoo import create_model

WRAPPERS: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "bare": dict,
    "state_dict": lambda tensors: {"epoch": 80, "state_dict": tensors},
    "model": lambda tensors: {"model": tensors, "optimizer": {}},
    "module": lambda tensors: {"state_dict": {f"module.{name}": tensor for name, tensor in tensors.items()}},
    # What is beside the average is of another network, so that taking it would show.
    "ema": lambda tensors: {"state_dict": {"other.weight": torch.zeros(1)}, "state_dict_ema": tensors},
}


def published_weights(architecture: str, num_classes: int = 11_221) -> dict[str, Tensor]:
    """Return tensors under the names by which the authors published them."""
    with hollow():
        own = create_model(architecture, num_classes).state_dict()
    tensors = {name: torch.zeros((), dtype=tensor.dtype).expand(tensor.shape) for name, tensor in own.items()}
    if not architecture.startswith("tresnet"):
        return tensors
    basic = r"layer2\.0\.conv1|layer[34]\.0\.conv2"
    blurred = basic if architecture == "tresnet_m" else r"layer[234]\.0\.conv2"
    return {_authors_name(name, blurred): tensor for name, tensor in tensors.items()}


def _authors_name(name: str, blurred: str) -> str:
    """Return what TResNet's authors call a tensor: by number, and once more within where a blur follows the norm."""
    stride = re.search(rf"({blurred})(?=\.(?:conv|bn)\.)", name)
    name = name.replace(".conv.", ".0.").replace(".bn.", ".1.")
    return name.replace(stride[1], f"{stride[1]}.0") if stride else name


def write_published(path: Path, architecture: str, num_classes: int = 11_221, wrapper: str = "state_dict") -> Path:
    """Write such a file as one of the authors' ways to wrap weights has it."""
    torch.save(WRAPPERS[wrapper](published_weights(architecture, num_classes)), path)
    return path
