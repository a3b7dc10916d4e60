"""Measures how well a weights file fits a network, and finds the architecture that it fits."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
from timm.models import model_entrypoint
from torch import Tensor, nn

from .hollow import hollow

LEAST_FILLED, MOST_UNUSED = 0.9, 0.1
_MOST_TRIED = 50  # architectures, a tenth of a second each; a family has up to 163


@dataclass(frozen=True, kw_only=True)
class Fit:
    """How well the tensors of a file fit a network, both without their heads."""

    filled: float
    """The share of the network's parameters, in elements, that the file fills."""
    unused: float
    """The share of the file, in elements, that the network does not use. Top-level modules that the network lacks
    altogether (a text encoder, a decoder) are not counted."""
    odd_bias: str
    """A bias of queries, keys and values that one of the two alone has; empty: none."""
    counts: str
    """How many tensors fitted, and how many did not."""

    @property
    def problem(self) -> str:
        """What is wrong, in words; empty if the weights fit the network."""
        if self.filled < LEAST_FILLED:
            return f"fills {self.filled:.1%} of the network; wanted {LEAST_FILLED:.0%} or more"
        if self.unused > MOST_UNUSED:
            return f"only {1 - self.unused:.1%} of its weights fit the network; wanted {1 - MOST_UNUSED:.0%}"
        return self.odd_bias


def measure_fit(model: nn.Module, tensors: Mapping[str, Tensor]) -> Fit:
    """Compare the names and shapes of a file's tensors with a network's; heads do not count."""
    heads, own = head_prefixes(model), model.state_dict()
    body = {name: tensor for name, tensor in tensors.items() if not name.startswith(heads)}
    fitting = {name for name, tensor in body.items() if name in own and own[name].shape == tensor.shape}
    parameters = {name: own.numel() for name, own in model.named_parameters() if not name.startswith(heads)}
    modules = {name.partition(".")[0] for name in own}
    counted = {name: tensor.numel() for name, tensor in body.items() if name.partition(".")[0] in modules}
    dropped = sum(name in own and name not in fitting for name in body)
    missing = sum(name not in body for name in parameters)
    unused = sum(name not in own for name in body)
    return Fit(
        filled=_share(parameters, fitting),
        unused=1 - _share(counted, fitting),
        odd_bias=_odd_bias(own, body, fitting),
        counts=f"{len(fitting)} tensors fitted, {missing} missing, {dropped} of another shape, {unused} unused",
    )


def model_that_fits(model: nn.Module, raw: Mapping[str, Tensor], path: Path) -> str | None:
    """Return the timm architecture, of the network's family or with a name like the file's, whose weights these are.

    None if none of those nearest by name fits, or if the network's architecture is unknown. It takes seconds.
    """
    architecture = architecture_of(model)
    if architecture is None:
        return None
    family = timm.list_models(module=_module_name(architecture))
    alike = difflib.get_close_matches(path.stem, timm.list_models(), n=5)
    best: tuple[float, str] | None = None
    nearest = sorted({*family, *alike}, key=lambda name: _likeness(name, architecture, path.stem), reverse=True)
    for name in nearest[:_MOST_TRIED]:
        with hollow():
            other = timm.create_model(name)
        try:
            fit = measure_fit(other, convert(other, raw, path))
        except ValueError:  # what converts this architecture's weights cannot read them
            continue
        rank = fit.filled - fit.unused
        if not fit.problem and (best is None or rank > best[0]):
            best = rank, name
        if best and best[0] == 1:
            break
    return best and best[1]


def convert(model: nn.Module, tensors: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
    """Return tensors as timm's architecture names and shapes them; those that already fit, but for the head, as is.

    Raises ValueError where timm cannot make weights of the architecture of them; `path` is for the message.
    """
    own, heads = model.state_dict(), head_prefixes(model)
    if all(name in own and (own[name].shape == tensors[name].shape or name.startswith(heads)) for name in tensors):
        return dict(tensors)
    architecture = architecture_of(model)
    if architecture is None:
        return dict(tensors)
    # By timm's convention the module of an architecture holds the converter of its original weights under this name.
    filter_weights = getattr(sys.modules[model_entrypoint(architecture).__module__], "checkpoint_filter_fn", None)
    if filter_weights is None:
        return dict(tensors)
    try:
        return filter_weights(dict(tensors), model)
    except (AssertionError, AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path}: timm cannot make weights of {architecture} of it ({type(error).__name__}: {error}); "
            "give weights of this architecture"
        ) from error


def architecture_of(model: nn.Module) -> str | None:
    """Return the name by which timm built a network; None where it did not."""
    name: str | None = (getattr(model, "pretrained_cfg", None) or {}).get("architecture")
    return name if name is not None and timm.is_model(name) else None


def head_prefixes(model: nn.Module) -> tuple[str, ...]:
    """Return what the names of the last layer's tensors begin with; a distilled network has two last layers."""
    named: str | Sequence[str] = (getattr(model, "pretrained_cfg", None) or {}).get("classifier") or ()
    return tuple(f"{name}." for name in ([named] if isinstance(named, str) else named))


def _share(sizes: Mapping[str, int], names: set[str]) -> float:
    whole = sum(sizes.values())
    return sum(size for name, size in sizes.items() if name in names) / whole if whole else 1.0


def _odd_bias(own: Mapping[str, Any], body: Mapping[str, Any], fitting: set[str]) -> str:
    for name in sorted(name for name in fitting if name.endswith("qkv.weight")):
        bias = name.removesuffix("weight") + "bias"
        if (bias in own) != (bias in body):
            having, lacking = ("the network", "the file") if bias in own else ("the file", "the network")
            return f"{having} has {bias} and {lacking} has none; wanted both alike"
    return ""


def _module_name(architecture: str) -> str:
    return model_entrypoint(architecture).__module__.rpartition(".")[2]


def _likeness(name: str, *others: str) -> float:
    return sum(difflib.SequenceMatcher(None, name, other).ratio() for other in others)
