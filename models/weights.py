"""Weights from files into a network, with a report of what fitted."""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

# Where training scripts keep the weights in a checkpoint: ours (and many others) in "model", timm's in "state_dict".
_INSIDE = ("model", "state_dict")


@dataclass(frozen=True)
class WeightsReport:
    """What became of the tensors of a weights file.

    fitted:      names of tensors that were copied into the network.
    missing:     names of the network's tensors that the file does not hold; they keep their values.
    dropped:     per tensor of another shape, `name: (its shape) for (the network's)`; the network keeps its values.
    unused:      names in the file that the network does not have.
    """

    path: Path
    fitted: tuple[str, ...]
    missing: tuple[str, ...]
    dropped: tuple[str, ...]
    unused: tuple[str, ...]

    @property
    def complete(self) -> bool:
        """Whether every tensor of the file fitted and every tensor of the network was filled."""
        return not (self.missing or self.dropped or self.unused)

    def __str__(self) -> str:
        lists = {"missing": self.missing, "dropped (another shape)": self.dropped, "unused": self.unused}
        rest = [f"{len(names)} {what}: {_few(names)}" for what, names in lists.items() if names]
        return f"{self.path.name}: " + "; ".join([f"{len(self.fitted)} tensors fitted", *rest])


def load_weights(model: nn.Module, path: str | Path) -> WeightsReport:
    """Copy the tensors of a file into `model` where name and shape agree, and say what did not.

    path: `.safetensors`, or a PyTorch file (a plain state dict, `{"state_dict": ...}`, or a checkpoint of ours); a
    `module.` before every name is cut off. A head of another number of classes so keeps its random weights.

    Raises ValueError where the file is missing, holds no weights, or holds none that fits.
    """
    path = Path(path)
    given = read_weights(path)
    own = model.state_dict()
    known = own.keys() & given.keys()
    fitting = {name: given[name] for name in own if name in known and given[name].shape == own[name].shape}
    if not fitting:
        raise ValueError(
            f"{path}: none of its {len(given)} tensors fits the model "
            f"({_few(tuple(given))} against {_few(tuple(own))}); give weights of this architecture"
        )
    model.load_state_dict(fitting, strict=False)
    return WeightsReport(
        path,
        fitted=tuple(fitting),
        missing=tuple(name for name in own if name not in known),
        dropped=tuple(
            f"{name}: {tuple(given[name].shape)} for {tuple(own[name].shape)}"
            for name in own
            if name in known and name not in fitting
        ),
        unused=tuple(name for name in given if name not in known),
    )


def read_weights(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a weights file by name, on the CPU; raises ValueError where there are none."""
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted weights (.safetensors, .pt, .pth)")
    try:
        if path.suffix == ".safetensors":
            content: Any = safetensors.torch.load_file(path)
        else:
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError, OSError) as error:
        raise ValueError(f"{path}: not readable as weights ({_first_line(error)})") from error
    if isinstance(content, Mapping):
        content = next((content[key] for key in _INSIDE if isinstance(content.get(key), Mapping)), content)
        tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
        if tensors:
            return _without_prefix(tensors)
    raise ValueError(f"{path}: holds no tensors by name; wanted a state dict")


def _without_prefix(tensors: dict[str, Tensor], prefix: str = "module.") -> dict[str, Tensor]:
    if not all(name.startswith(prefix) for name in tensors):
        return tensors
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}


def _few(names: tuple[str, ...], most: int = 3) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")


def _first_line(error: Exception) -> str:
    # torch explains at length how to load without `weights_only`; the first sentence says what is wrong.
    return (str(error).splitlines() or [type(error).__name__])[0].split(". ")[0]
