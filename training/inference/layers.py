"""The features that a network computes inside: one vector an image, of any layer."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from contextlib import suppress
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ...models.trial import try_images

PRE_LOGITS = "pre-logits"  # what the classifier takes


class Layer(NamedTuple):
    """A layer whose output can be had: its name, its module's kind, its output's shape, and the features of an image.

    shape: of one image.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    num_features: int


class FeatureExtractor(nn.Module):
    """Images (B, 3, H, W), as the network takes them, to float features (B, D) of one layer.

    layer: `pre-logits`: what the classifier takes, pooled as the network pools it (timm's `forward_features`, then
           `forward_head(pre_logits=True)`); else the name of a module, whose output is averaged over space: of 4
           dimensions over the two that are space, of 3 (B, tokens, D) over the tokens without those of the network's
           own (class token, registers). Of a module that is called several times the last call counts.

    Raises ValueError for a layer that the network lacks; when called, for one that gives no such output.
    """

    def __init__(self, model: nn.Module, layer: str = PRE_LOGITS) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        if layer == PRE_LOGITS:
            if not hasattr(model, "forward_head"):
                raise ValueError(f"{type(model).__name__} is not a timm network, and has no {PRE_LOGITS} layer")
        elif layer not in dict(model.named_modules()) or not layer:
            raise ValueError(f"the network has no layer {layer!r}; {_near(model, layer)} (--layer list shows all)")

    def forward(self, images: Tensor) -> Tensor:
        """Return the features of a batch; call it in `torch.inference_mode()` where no gradient is wanted."""
        model = cast(Any, self.model)
        if self.layer == PRE_LOGITS:
            output = model.forward_head(model.forward_features(images), pre_logits=True)
            return pooled(output, len(images), self.model, self.layer)
        outputs: list[Tensor] = []

        def keep(*call: Any) -> None:
            # At once, as what comes next may write over it (activations in place).
            outputs.append(pooled(call[-1], len(images), self.model, self.layer))

        hook = self.model.get_submodule(self.layer).register_forward_hook(keep)
        try:
            model(images)
        finally:
            hook.remove()
        if not outputs:
            raise ValueError(f"layer {self.layer} is not used when the network answers; take another (--layer list)")
        return outputs[-1]


def list_layers(model: nn.Module, image_size: int) -> list[Layer]:
    """Return every layer whose output makes features, in the order in which a network on the CPU is through with it.

    Raises ValueError where the network takes no images of that size.
    """
    try_images(FeatureExtractor(model), image_size, name=type(model).__name__, option="--image-size ")
    layers: dict[str, Layer] = {}

    def note(name: str) -> Callable[..., None]:
        def note(module: nn.Module, _: Any, output: Any) -> None:
            with suppress(ValueError):
                num_features = pooled(output, 1, model, name).shape[1]
                layers[name] = Layer(name, type(module).__name__, tuple(output.shape[1:]), num_features)

        return note

    hooks = [module.register_forward_hook(note(name)) for name, module in model.named_modules() if name]
    images = torch.zeros(1, 3, image_size, image_size)
    try:
        with torch.inference_mode():
            model(images)
            (num_features,) = FeatureExtractor(model)(images).shape[1:]
    finally:
        for hook in hooks:
            hook.remove()
    return [*layers.values(), Layer(PRE_LOGITS, "the default", (num_features,), num_features)]


def pooled(output: object, num_images: int, model: nn.Module, layer: str) -> Tensor:
    """Return a layer's output for a batch averaged over space: (B, D); raises ValueError for other outputs."""
    wanted = "wanted a tensor of 2 to 4 dimensions, the first of them the images (--layer list)"
    if not isinstance(output, Tensor):
        raise ValueError(f"layer {layer} gives a {type(output).__name__}; {wanted}")
    if not output.is_floating_point() or output.ndim not in (2, 3, 4) or len(output) != num_images:
        # Some layers work on windows, many of an image.
        raise ValueError(f"layer {layer} gives {tuple(output.shape)} for {num_images} images; {wanted}")
    output = output.float()  # half precision would round the means
    if output.ndim == 4:
        return output.mean((1, 2) if _is_channels_last(output, model) else (2, 3))
    if output.ndim == 3:
        return output[:, _num_own_tokens(output, model) :].mean(1)
    return output


def _is_channels_last(output: Tensor, model: nn.Module) -> bool:
    """Tell by the two sides of a square which dimensions are space; where both could be, by what the network says."""
    _, one, two, three = output.shape
    if (one == two) != (two == three):
        return one == two
    return getattr(model, "output_fmt", "NCHW") == "NHWC"


def _num_own_tokens(output: Tensor, model: nn.Module) -> int:
    """Return how many tokens come before those of the patches (class token, registers); some layers have none yet."""
    own: int = getattr(model, "num_prefix_tokens", 0)
    patches: Any = getattr(getattr(model, "patch_embed", None), "num_patches", None)
    return own if patches is not None and output.shape[1] == patches + own else 0


def _near(model: nn.Module, layer: str) -> str:
    names = [PRE_LOGITS, *(name for name, _ in model.named_modules() if name)]
    near = difflib.get_close_matches(layer, names, n=4, cutoff=0.4) or names[:4]
    return f"near ones: {', '.join(near)}"
