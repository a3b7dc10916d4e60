"""Losses that make their gradient while they have the logits in hand, so that the way back only scales it."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

# A block's logits and its gradient, 2 MB each, stay in a core's cache: 32 to 64 rows of 11,221 were fastest on cores
# with 1 MB (L2) each and 32 MB (L3) together; 16 and 128 took a tenth to a quarter longer.
_BLOCK_ELEMENTS = 2**19

_Function = TypeVar("_Function", bound=Callable[..., Any])


def not_compiled(function: _Function) -> _Function:
    """Have `torch.compile` leave a function as it is: it would unroll blocks and levels that are fused by hand."""
    return cast(_Function, torch.compiler.disable(function))


def gradient_wanted(logits: Tensor) -> bool:
    """Return whether anyone can ask for the gradient of these logits."""
    return torch.is_grad_enabled() and logits.requires_grad


def gradient_unit(logits: Tensor) -> float:
    """Return how many times too large to store the gradient of a mean over the batch.

    In float16 what is divided by the batch vanishes before the loss scaler's factor comes to its help, so that there
    the division waits for that factor. The other types reach far enough.
    """
    return float(max(len(logits), 1)) if logits.dtype == torch.float16 else 1.0


def has_kernels(logits: Tensor) -> bool:
    """Return whether the fused kernels take these logits: on a GPU, where Triton is installed."""
    return logits.is_cuda and _has_triton()


@cache
def _has_triton() -> bool:
    return find_spec("triton") is not None


def attach_gradient(logits: Tensor, addends: Tensor, gradient: Tensor | None, unit: float) -> Tensor:
    """Return the sum of the addends, a scalar, and `gradient` / `unit` as its gradient by the logits; None: without."""
    return addends.sum() if gradient is None else _apply(logits, addends, gradient, unit)


class _ComputedAhead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits: Tensor, addends: Tensor, gradient: Tensor, unit: float) -> Tensor:  # noqa: ARG004
        ctx.save_for_backward(gradient)
        ctx.unit = unit
        return addends.sum()

    @staticmethod
    @once_differentiable
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]  # the decorator loses the names
        ctx: Any, incoming: Tensor
    ) -> tuple[Tensor, None, None, None]:
        (gradient,) = ctx.saved_tensors
        return _scaled(gradient, incoming, ctx.unit), None, None, None


_apply: Any = _ComputedAhead.apply  # typed by nobody


def _scaled(gradient: Tensor, incoming: Tensor, unit: float) -> Tensor:
    """Return gradient * incoming / unit, computed in float32, in the gradient's type; incoming is a float32 scalar."""
    if has_kernels(gradient):
        from .semantic_triton import scaled

        return scaled(gradient, incoming, unit)
    scale = incoming / unit
    if scale.device.type == "cpu" and scale == 1:  # the usual case; looking costs no wait there, and saves a pass
        return gradient
    # A tensor of one dimension, as a scalar would first be rounded to the gradient's own type.
    return torch.mul(gradient, scale.view(1), out=torch.empty_like(gradient))


class Blocks:
    """Logits (B, C) in blocks of rows, each in float32 and with room for its gradient.

    The room is taken once, for one block after another: it stays in the cache, and new memory costs a CPU more than the
    sums that go there.

    num_rows: of a block: what the cache holds on a CPU, the whole batch elsewhere.
    gradient: like the logits, or None; filled block by block.
    """

    def __init__(self, logits: Tensor, num_levels: int, *, with_gradient: bool) -> None:
        num_rows = len(logits)
        if logits.device.type == "cpu":
            # Each level costs a dozen calls a block, so that many levels want few blocks.
            num_rows = min(num_rows, max(_BLOCK_ELEMENTS // logits.shape[1], num_levels))
        self.num_rows = max(num_rows, 1)
        self.gradient = torch.empty_like(logits) if with_gradient else None
        self._logits = logits
        self._block = logits.new_empty((self.num_rows, logits.shape[1]), dtype=torch.float32)
        self._slopes = torch.empty_like(self._block) if with_gradient else None

    def take(self, rows: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return the logits of those rows, and zeros like them for the gradient (None without); both until the next."""
        block = self._block[: len(rows)]
        if self._logits.dtype == block.dtype:
            torch.index_select(self._logits, 0, rows, out=block)
        else:
            block.copy_(self._logits.index_select(0, rows))
        return block, None if self._slopes is None else self._slopes[: len(rows)].zero_()

    def give(self, rows: Tensor) -> None:
        """Put what the zeros have become into those rows of the gradient."""
        if self.gradient is not None and self._slopes is not None:
            self.gradient.index_copy_(0, rows, self._slopes[: len(rows)].to(self.gradient.dtype))
