"""The semantic softmax loss on a GPU: one kernel makes loss and gradient, one scales the gradient on the way back."""

from __future__ import annotations

from typing import Any, cast

import torch
import triton
import triton.language as tl
from torch import Tensor

from .levels import Levels

_BLOCK = 1024  # elements that a program holds at a time (guessed; a level of 21K-P has at most 2,605)
# Both kernels say `enable_fp_fusion`: Triton 3.9 warns where it is left open.


@triton.jit
def _semantic_softmax(
    logits: tl.tensor,
    row_stride: tl.tensor,
    column_stride: tl.tensor,
    ancestors: tl.tensor,
    order: tl.tensor,
    begins: tl.tensor,
    weights: tl.tensor,
    addends: tl.tensor,
    gradient: tl.tensor,
    num_levels: tl.tensor,
    batch_size: tl.tensor,
    unit: tl.tensor,
    eps: tl.tensor,
    num_classes: tl.tensor,
    with_gradient: tl.constexpr,
    block: tl.constexpr,
):
    """One program per row and level: a first walk over the level's logits for the loss, a second for the gradient.

    The second finds them in the cache, so that the logits come from memory once. A row without a target at the level
    walks nowhere.
    """
    place = tl.program_id(0).to(tl.int64)
    row, level = place // num_levels, place % num_levels
    right = tl.load(ancestors + place)
    begin, end = tl.load(begins + level), tl.load(begins + level + 1)
    size = (end - begin).to(tl.float32)
    end = tl.where(right < 0, begin, end)
    share = tl.load(weights + level) / batch_size
    scores_of_row = logits + row * row_stride

    maximum, total, score_sum = float("-inf"), 0.0, 0.0
    for first in range(begin, end, block):
        places = first + tl.arange(0, block)
        inside = places < end
        classes = tl.load(order + places, mask=inside, other=0)
        scores = tl.load(scores_of_row + classes * column_stride, mask=inside, other=float("-inf")).to(tl.float32)
        higher = tl.maximum(maximum, tl.max(scores, 0))
        total = total * tl.exp(maximum - higher) + tl.sum(tl.exp(scores - higher), 0)
        score_sum += tl.sum(tl.where(inside, scores, 0.0), 0)  # pyright: ignore[reportOperatorIssue]
        maximum = higher
    # Logits are compared with their maximum before anything else, so that a common shift of hundreds costs no digits.
    score = tl.load(scores_of_row + tl.maximum(right, 0) * column_stride).to(tl.float32)
    loss = tl.log(total) + (1 - eps) * (maximum - score) + eps * (maximum - score_sum / size)
    tl.store(addends + place, tl.where(right < 0, 0.0, share * loss))

    if with_gradient:
        for first in range(begin, end, block):
            places = first + tl.arange(0, block)
            inside = places < end
            classes = tl.load(order + places, mask=inside, other=0)
            scores = tl.load(scores_of_row + classes * column_stride, mask=inside, other=float("-inf")).to(tl.float32)
            wanted = eps / size + tl.where(classes == right, 1 - eps, 0.0)
            slope = share * unit * (tl.exp(scores - maximum) / total - wanted)
            tl.store(gradient + row * num_classes + classes, slope, mask=inside)


@triton.jit
def _scale(
    gradient: tl.tensor,
    incoming: tl.tensor,
    scaled: tl.tensor,
    unit: tl.tensor,
    num_elements: tl.tensor,
    block: tl.constexpr,
):
    places = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    inside = places < num_elements
    factor = tl.load(incoming) / unit
    tl.store(scaled + places, tl.load(gradient + places, mask=inside).to(tl.float32) * factor, mask=inside)


def semantic_softmax(
    logits: Tensor,
    ancestors: Tensor,
    levels: Levels,
    weights: Tensor,
    label_smoothing: float,
    unit: float,
    *,
    with_gradient: bool,
) -> tuple[Tensor, Tensor | None]:
    """Return what adds up to the loss, float32 (B, K), and `unit` times its gradient, in the logits' type.

    ancestors: int64 (B, K) as `Levels.ancestors_of` gives them. weights: float32 (K,). Takes any number of classes and
    levels, and logits of any strides.
    """
    addends = torch.empty(ancestors.shape, dtype=torch.float32, device=logits.device)
    # Zeros for the classes of no hierarchy and the levels below a label's own.
    gradient = torch.zeros(logits.shape, dtype=logits.dtype, device=logits.device) if with_gradient else None
    if addends.numel():
        with torch.cuda.device_of(logits):
            cast(Any, _semantic_softmax)[(addends.numel(),)](
                logits,
                *logits.stride(),
                ancestors.contiguous(),
                levels.order,
                levels.begins,
                weights,
                addends,
                addends if gradient is None else gradient,
                ancestors.shape[1],
                float(len(logits)),
                unit,
                label_smoothing,
                levels.num_classes,
                with_gradient=with_gradient,
                block=_BLOCK,
                enable_fp_fusion=True,
            )
    return addends, gradient


def scaled(gradient: Tensor, incoming: Tensor, unit: float) -> Tensor:
    """Return gradient * incoming / unit in the gradient's type, computed in float32; incoming: a float32 scalar."""
    result = torch.empty_like(gradient)
    if gradient.numel():
        with torch.cuda.device_of(gradient):
            blocks = triton.cdiv(gradient.numel(), _BLOCK)
            cast(Any, _scale)[(blocks,)](
                gradient, incoming, result, unit, gradient.numel(), block=_BLOCK, enable_fp_fusion=True
            )
    return result
