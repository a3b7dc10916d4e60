"""The exponential moving average of a network's weights."""

from __future__ import annotations

from copy import deepcopy

import torch
from torch import Tensor, nn


class MovingAverage:
    """An exponential moving average of a network's floating-point weights and buffers, on its device.

    After step t (1..) the average is d * average + (1 - d) * weights with d = min(decay, 1 - t^(-2/3)): the warm-up of
    timm's ModelEmaV3, whose bits it gives. An update is one fused operation over all tensors and asks for no
    state_dict; integer buffers, which no step needs, come along by `copy_counters`.

    model: its tensors have to stay the same objects, filled in place.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.module, self._decay = deepcopy(model).eval(), decay
        pairs = list(zip(_tensors(self.module), _tensors(model), strict=True))
        self._averaged = [(own, other) for own, other in pairs if own.is_floating_point()]
        self._counters = [(own, other) for own, other in pairs if not own.is_floating_point()]

    def decay_at(self, step: int) -> float:
        """Return d of a step (1..)."""
        return min(1 - step ** (-2 / 3), self._decay)

    def update(self, step: int) -> None:
        """Take up the weights after a step (1..)."""
        with torch.no_grad():
            own, others = zip(*self._averaged, strict=True)
            torch._foreach_lerp_(own, others, weight=1 - self.decay_at(step))  # pyright: ignore[reportPrivateImportUsage, reportPrivateUsage]

    def copy_counters(self) -> None:
        """Take up the integer buffers, such as batch norm's counts; before the module is used or saved."""
        for own, other in self._counters:
            own.copy_(other)


def _tensors(module: nn.Module) -> list[Tensor]:
    """Return what a checkpoint would hold, as the module itself holds it."""
    return list(module.state_dict(keep_vars=True).values())
