"""Reads tensors by name from the kinds of files that training scripts write."""

from __future__ import annotations

import argparse
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from ..shards.files.torch_zip import check_unpacked

# Keys of the weights in checkpoints: averaged weights (timm's and ours), and weights of the last step.
_AVERAGES = ("state_dict_ema", "model_ema", "ema")
_RAW = ("state_dict", "model")
# What DataParallel and DistributedDataParallel, and torch.compile, put before every name.
_WRAPPERS = ("module.", "_orig_mod.")


def read_weights(path: Path, *, average: bool = True) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name, on the CPU; see `read_part`."""
    return read_part(path, average=average)[1]


def read_part(path: Path, *, average: bool = True) -> tuple[str, dict[str, Tensor]]:
    """Read the tensors of a weights file by name, on the CPU, and name the part of the file that held them.

    path:    `.safetensors`, or a PyTorch file: a plain state dict (its part is ""), or a checkpoint that holds one as
             `state_dict` or `model`.
    average: prefer the averaged weights of a checkpoint that holds them (`state_dict_ema`, `model_ema`, `ema`).

    `module.` and `_orig_mod.` before the names are cut off. Only tensors and plain values are unpickled.

    Raises ValueError if the file is missing, not readable, or holds no tensors by name.
    """
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted weights (.safetensors, .pt, .pth)")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            with path.open("rb") as file:
                check_unpacked(file)
            # timm's training script leaves its arguments beside the weights.
            with torch.serialization.safe_globals([argparse.Namespace]):
                content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file ends torch's readers in a dozen kinds
        raise ValueError(f"{path}: {_explain(path, error)}") from error
    if isinstance(content, Mapping):
        keys = (*_AVERAGES, *_RAW) if average else _RAW
        part = next((key for key in keys if isinstance(content.get(key), Mapping)), "")
        named = content[part] if part else content
        tensors = {str(name): value for name, value in named.items() if isinstance(value, Tensor)}
        if tensors:
            return part, _unwrapped(path, tensors)
    raise ValueError(f"{path}: holds no tensors by name; wanted a state dict")


def check_finite(path: str | Path, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError for weights that are NaN or infinite: training diverged, or the file is damaged."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise ValueError(f"{path}: its {name} holds numbers that are not finite; give finite weights")


def _unwrapped(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    names = {name: _without_wrappers(name) for name in tensors}
    if len(set(names.values())) < len(names):
        raise ValueError(f"{path}: holds names both with and without {' or '.join(_WRAPPERS)}; wanted one network")
    return {names[name]: tensor for name, tensor in tensors.items()}


def _without_wrappers(name: str) -> str:
    while name.startswith(_WRAPPERS):
        name = name.partition(".")[2]
    return name


def _explain(path: Path, error: Exception) -> str:
    """Say in one line why a file was not read; what would have to be unpickled is named with the way out."""
    if foreign := re.search(r"Unsupported (?:global: GLOBAL|class) (\S+)", str(error)):
        return (
            f"holds more than weights ({foreign[1]}), and nothing is unpickled here; if you trust the file, save its "
            f"weights alone: torch.save(torch.load({path.name!r}, weights_only=False)['state_dict'], 'weights.pth')"
        )
    # torch explains at length how to load without `weights_only`; the first sentence says what is wrong.
    first_line = (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
    return f"not readable as weights ({first_line})"
