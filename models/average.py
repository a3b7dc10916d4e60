"""The mean of several networks' weights (Izmailov et al., 2018, https://arxiv.org/abs/1803.05407)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def average_weights(states: Iterable[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of each tensor of several state dicts; dtypes and integer tensors come from the last.

    states: read one after the other, and not kept. Sums are taken in float64.

    Raises ValueError for no state dict, or if names or shapes differ.

    >>> average_weights([{"w": torch.tensor([1.0])}, {"w": torch.tensor([2.0])}])
    {'w': tensor([1.5000])}
    """
    sums: dict[str, Tensor] = {}
    last: dict[str, Tensor] = {}
    count = 0
    for count, state in enumerate(states, start=1):
        if count > 1 and _shapes(state) != _shapes(last):
            differing = sorted(dict(_shapes(state).items() ^ _shapes(last).items()))
            raise ValueError(
                f"number {count} of the networks has other tensors than those before it ({', '.join(differing[:3])}"
                f"{', ...' if len(differing) > 3 else ''}); only networks of one architecture can be averaged"
            )
        last = dict(state)
        for name, tensor in state.items():
            if tensor.is_floating_point():
                sums[name] = sums[name] + tensor if name in sums else tensor.to(torch.float64)
    if not count:
        raise ValueError("there is nothing to average; wanted at least one network")
    return {name: (sums[name] / count).to(tensor.dtype) if name in sums else tensor for name, tensor in last.items()}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in state.items()}
