"""Where a network looked when it answered: Grad-CAM, or the roll-out of its attention."""

from __future__ import annotations

import math
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, Literal, NamedTuple, cast

import torch
from torch import Tensor, nn

from ..evaluation.answers import probabilities_of

LEAST_SIDE = 4  # of a feature map, in places; of small images a network's last one may have a single place
GRAD_CAM, ROLL_OUT = "Grad-CAM", "attention roll-out"


class HeatMaps(NamedTuple):
    """What B images are answered, and where in them that lies.

    maps:          float32 (B, h, w), each from 0 to 1, its own lowest and highest value; 0 where all are equal.
    answers:       int64 (B,), the likeliest class of all.
    probabilities: float32 (B,), of that class.
    kind:          how the maps were made.
    """

    maps: Tensor
    answers: Tensor
    probabilities: Tensor
    kind: Literal["Grad-CAM", "attention roll-out"]


def heat_maps(model: nn.Module, images: Tensor, *, by_sigmoid: bool = False) -> HeatMaps:
    """Ask a network of timm's about images (B, 3, H, W) as it takes them; all are in memory at once.

    A network of blocks of attention over one sequence of tokens gives the roll-out (Abnar and Zuidema, 2020,
    arXiv:2005.00928): of each block the mean attention of its heads, half of it the token itself, multiplied through
    all blocks; it does not depend on the answer. Any other gives Grad-CAM (Selvaraju et al., 2017, arXiv:1610.02391):
    the last feature map (of small images the last of 4 x 4 places or more), each channel weighed by the mean gradient
    of the answer's logit, and what speaks against the answer left out.

    by_sigmoid: what the probabilities are; see `OpenModel.by_sigmoid`.

    Raises ValueError for a network whose features have no places.
    """
    model.eval()
    attention, logits = _attention(model, images)
    if attention:
        maps, kind = _roll_out(model, attention), ROLL_OUT
    else:
        maps, logits = _grad_cam(model, images)
        kind = GRAD_CAM
    answers = logits.argmax(dim=1)
    probabilities = probabilities_of(logits, by_sigmoid=by_sigmoid).gather(1, answers[:, None])[:, 0]
    lowest, highest = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    maps = torch.where(highest > lowest, (maps - lowest) / (highest - lowest), 0.0)
    return HeatMaps(maps.cpu(), answers.cpu(), probabilities.cpu(), kind)


def _attention(model: nn.Module, images: Tensor) -> tuple[list[Tensor], Tensor]:
    """Return per block its attention (B, tokens, tokens), the mean over heads, and the logits; or no attention."""
    maps: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> None:
        maps.append(output.mean(dim=1))

    blocks = getattr(model, "blocks", None)
    blocks = cast(list[Any], [*blocks] if isinstance(blocks, nn.Sequential | nn.ModuleList) else [])
    drops = [block.attn.attn_drop for block in blocks if hasattr(getattr(block, "attn", None), "attn_drop")]
    if not drops or len(drops) < len(blocks):
        return [], torch.empty(0)
    hooks = [drop.register_forward_hook(keep) for drop in drops]
    try:
        with torch.inference_mode(), _plain_attention(model):
            logits: Tensor = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    # Attention between other things (windows, channels, a class token of late blocks) does not multiply through.
    num_tokens = _num_own_tokens(model) + getattr(getattr(model, "patch_embed", None), "num_patches", 0)
    between_tokens = [tokens.shape == (len(images), num_tokens, num_tokens) for tokens in maps]
    return (maps, logits) if len(maps) == len(blocks) and all(between_tokens) else ([], logits)


def _num_own_tokens(model: nn.Module) -> int:
    """Return how many tokens come before those of the patches: a class token, registers."""
    return getattr(model, "num_prefix_tokens", 0)


@contextmanager
def _plain_attention(model: nn.Module) -> Generator[None]:
    """Have attention computed step by step: fused kernels do not return their weights."""
    fused: list[Any] = [module for module in model.modules() if getattr(module, "fused_attn", False)]
    for module in fused:
        module.fused_attn = False
    try:
        yield
    finally:
        for module in fused:
            module.fused_attn = True


def _roll_out(model: nn.Module, attention: list[Tensor]) -> Tensor:
    """Return how much of each patch is in what the head takes: (B, h, w)."""
    num_tokens = attention[0].shape[-1]
    own = torch.eye(num_tokens, device=attention[0].device)
    flow = own
    for weights in attention:
        flow = (0.5 * weights.float() + 0.5 * own) @ flow
    num_own = _num_own_tokens(model)
    takes_token = num_own > 0 and getattr(model, "global_pool", "") == "token"
    from_patches = flow[:, 0, num_own:] if takes_token else flow[:, num_own:, num_own:].mean(dim=1)
    return _on_grid(from_patches, model)


def _grad_cam(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor]:
    """Return the maps (B, h, w) and the logits (B, C)."""
    features, gradient, logits = _features_and_gradient(model, images)
    if features.ndim == 3:
        weights = gradient.mean(dim=1, keepdim=True)
        return _on_grid((features * weights).sum(dim=2).relu()[:, _num_own_tokens(model) :], model), logits
    space, channel = ((1, 2), 3) if getattr(model, "output_fmt", "NCHW") == "NHWC" else ((2, 3), 1)
    weights = gradient.mean(space, keepdim=True)
    return (features * weights).sum(dim=channel).relu(), logits


def _features_and_gradient(model: nn.Module, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return a late feature map, the gradient of the answers' logits by it, both float32, and the logits."""
    network, kept = cast(Any, model), list[Tensor]()

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[-1].clone()  # what comes next may write over it

    layer = _fine_layer(model, images.shape[-1])
    hook = model.get_submodule(layer).register_forward_hook(keep) if layer else None
    try:
        with torch.enable_grad():
            if hook:
                logits = network(images)
            elif hasattr(model, "forward_head"):
                with torch.no_grad():
                    features = network.forward_features(images)
                if not isinstance(features, Tensor) or features.ndim not in (3, 4):
                    raise ValueError(f"the features of {type(model).__name__} have no places in the image")
                logits = network.forward_head(keep(model, None, features))
            else:
                raise ValueError(f"{type(model).__name__} is not a timm network: its features cannot be located")
            (gradient,) = torch.autograd.grad(logits.amax(dim=1).sum(), kept[-1])
    finally:
        if hook:
            hook.remove()
    return kept[-1].detach().float(), gradient.float(), logits.detach()


def _fine_layer(model: nn.Module, image_size: int) -> str | None:
    """Return the last layer of LEAST_SIDE places a side, where the last feature map of all has fewer; else None."""
    stages: Any = getattr(model, "feature_info", None)
    stages = stages if isinstance(stages, list) else []
    sides = [(image_size // stage["reduction"], stage["module"]) for stage in stages]
    if not sides or sides[-1][0] >= LEAST_SIDE:
        return None
    return next((name for side, name in reversed(sides) if side >= LEAST_SIDE), None)


def _on_grid(patches: Tensor, model: nn.Module) -> Tensor:
    """Lay values of patches (B, h w) out as (B, h, w)."""
    num_patches = patches.shape[1]
    grid: Any = getattr(getattr(model, "patch_embed", None), "grid_size", None)
    height, width = grid if grid and math.prod(grid) == num_patches else (math.isqrt(num_patches),) * 2
    if height * width != num_patches:
        raise ValueError(f"the {num_patches} tokens of {type(model).__name__} do not make a square of patches")
    return patches.reshape(-1, height, width)
