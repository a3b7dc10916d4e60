"""The once-for-all network of 595 MFLOPs in the variant that was pretrained on ImageNet-21K-P, as a timm architecture.

Once-for-all: Cai et al., 2020 (https://arxiv.org/abs/1908.09791). The variant has plain sigmoids throughout: SiLU for
hard swish, sigmoid for hard sigmoid. Modules are named as in the published weights, so that those load as they are.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from typing import Any, Literal, NamedTuple

from timm.layers.drop import DropPath
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["OnceForAllNet"]  # timm adds the names of the architectures

_STEM, _EXPANDED, _MIXED = 24, 1152, 1536


class _Block(NamedTuple):
    """An inverted residual: channels in, out and between, and what the depthwise convolution is like."""

    num_in: int
    num_out: int
    kernel: int
    stride: int
    num_mid: int
    act: Literal["relu", "silu"]
    se: bool


_BLOCKS = [
    _Block(24, 24, 3, 1, 24, "relu", se=False),  # as wide inside as outside: it has no expansion
    _Block(24, 32, 3, 2, 72, "relu", se=False),
    _Block(32, 32, 5, 1, 128, "relu", se=False),
    _Block(32, 32, 3, 1, 96, "relu", se=False),
    _Block(32, 48, 5, 2, 128, "relu", se=True),
    _Block(48, 48, 5, 1, 192, "relu", se=True),
    _Block(48, 48, 3, 1, 288, "relu", se=True),
    _Block(48, 48, 5, 1, 144, "relu", se=True),
    _Block(48, 96, 7, 2, 288, "silu", se=False),
    _Block(96, 96, 5, 1, 576, "silu", se=False),
    _Block(96, 96, 3, 1, 288, "silu", se=False),
    _Block(96, 96, 5, 1, 384, "silu", se=False),
    _Block(96, 136, 3, 1, 576, "silu", se=True),
    _Block(136, 136, 5, 1, 816, "silu", se=True),
    _Block(136, 136, 7, 1, 816, "silu", se=True),
    _Block(136, 136, 3, 1, 544, "silu", se=True),
    _Block(136, 192, 3, 2, 816, "silu", se=True),
    _Block(192, 192, 3, 1, 1152, "silu", se=True),
    _Block(192, 192, 5, 1, 1152, "silu", se=True),
    _Block(192, 192, 3, 1, 576, "silu", se=True),
]

default_cfgs = generate_default_cfgs(
    {
        "ofa_flops_595m_s": {
            "input_size": (3, 224, 224),
            "pool_size": (7, 7),
            "crop_pct": 0.875,
            "interpolation": "bilinear",
            "mean": (0.0, 0.0, 0.0),
            "std": (1.0, 1.0, 1.0),
            "num_classes": 1000,
            "first_conv": "first_conv.conv",
            "classifier": "classifier.linear",
        }
    }
)


class OnceForAllNet(nn.Module):
    """Images (B, in_chans, H, W) to logits (B, num_classes); timm's common methods.

    num_classes:    0 leaves the classifier out: the output is then (B, 1536).
    drop_rate:      dropout before the classifier.
    drop_path_rate: chance that the last block is left out of an image's pass; it rises evenly from 0 at the first.
    """

    def __init__(
        self, num_classes: int = 1000, in_chans: int = 3, drop_rate: float = 0.0, drop_path_rate: float = 0.0
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.num_features = _EXPANDED  # channels of `forward_features`
        self.head_hidden_size = _MIXED  # what the classifier takes

        self.first_conv = _convolution(in_chans, _STEM, 3, stride=2, act="silu")
        rates = [drop_path_rate * index / (len(_BLOCKS) - 1) for index in range(len(_BLOCKS))]
        self.blocks = nn.Sequential(
            *(_InvertedResidual(block, rate) for block, rate in zip(_BLOCKS, rates, strict=True))
        )
        self.final_expand_layer = _convolution(_BLOCKS[-1].num_out, _EXPANDED, 1, act="silu")
        self.feature_mix_layer = nn.Sequential(
            OrderedDict(conv=nn.Conv2d(_EXPANDED, _MIXED, 1, bias=False), act=nn.SiLU(inplace=True))
        )
        self.classifier = _classifier(num_classes)
        self.apply(_init_weights)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits (B, num_classes) of images (B, in_chans, H, W)."""
        return self.forward_head(self.forward_features(images))

    def forward_features(self, images: Tensor) -> Tensor:
        """Return features (B, 1152, H/32, W/32)."""
        x = self.first_conv(images)
        x = checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)
        return self.final_expand_layer(x)

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Return logits (B, num_classes) of features, or what the classifier takes, (B, 1536)."""
        x = self.feature_mix_layer(x.mean((2, 3), keepdim=True))
        x = F.dropout(x, self.drop_rate, self.training)
        return (x if pre_logits else self.classifier(x)).flatten(1)

    def get_classifier(self) -> nn.Module:
        """Return the last layer, a 1 x 1 convolution."""
        return self.classifier[0]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Give the network a new last layer with random weights; the pooling is always `avg`."""
        if global_pool not in (None, "avg"):
            raise ValueError(f"global_pool is {global_pool!r}; ofa_flops_595m_s has avg alone")
        self.num_classes = num_classes
        like = next(self.parameters())
        self.classifier = _classifier(num_classes).apply(_init_weights).to(like.device, like.dtype)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Compute the blocks' activations a second time in the backward pass instead of keeping them."""
        self.grad_checkpointing = enable

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:  # noqa: ARG002 - timm asks; blocks are not nested
        """Return how timm's layer decay tells the layers apart by their names."""
        return {
            "stem": r"^first_conv",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^(?:final_expand|feature_mix)_layer", (len(_BLOCKS),))],
        }

    def no_weight_decay(self) -> set[str]:
        """Return the parameters of more than one dimension that take no weight decay: none."""
        return set()


class _InvertedResidual(nn.Module):
    """Expand, convolve each channel by itself, shrink; the input is added where it has the shape of the output."""

    def __init__(self, block: _Block, drop_path_rate: float) -> None:
        super().__init__()
        layers = OrderedDict[str, nn.Module]()
        if block.num_mid != block.num_in:
            layers["inverted_bottleneck"] = _convolution(block.num_in, block.num_mid, 1, act=block.act)
        layers["depth_conv"] = _convolution(
            block.num_mid, block.num_mid, block.kernel, stride=block.stride, groups=block.num_mid, act=block.act
        )
        if block.se:
            layers["depth_conv"].add_module("se", _SqueezeExcite(block.num_mid))
        layers["point_linear"] = _convolution(block.num_mid, block.num_out, 1)
        self.mobile_inverted_conv = nn.Sequential(layers)
        self.has_shortcut = block.num_in == block.num_out and block.stride == 1
        self.drop_path = DropPath(drop_path_rate) if self.has_shortcut and drop_path_rate else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = self.mobile_inverted_conv(x)
        return x + self.drop_path(y) if self.has_shortcut else y


class _SqueezeExcite(nn.Module):
    """Scale each channel by a number in 0..1 that follows from the means of all."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        reduced = _round_to_8(num_channels / 4)
        self.fc = nn.Sequential(
            OrderedDict(
                reduce=nn.Conv2d(num_channels, reduced, 1),
                relu=nn.ReLU(inplace=True),
                expand=nn.Conv2d(reduced, num_channels, 1),
                sigmoid=nn.Sigmoid(),
            )
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.fc(x.mean((2, 3), keepdim=True))


def _convolution(
    num_in: int, num_out: int, kernel: int, *, stride: int = 1, groups: int = 1, act: str | None = None
) -> nn.Sequential:
    """A convolution without bias, batch norm, and an activation."""
    layers = OrderedDict[str, nn.Module](
        conv=nn.Conv2d(num_in, num_out, kernel, stride, kernel // 2, groups=groups, bias=False),
        bn=nn.BatchNorm2d(num_out, eps=1e-5, momentum=0.1),
    )
    if act is not None:
        layers["act"] = nn.ReLU(inplace=True) if act == "relu" else nn.SiLU(inplace=True)
    return nn.Sequential(layers)


def _classifier(num_classes: int) -> nn.Sequential:
    return nn.Sequential(OrderedDict(linear=nn.Conv2d(_MIXED, num_classes, 1) if num_classes else nn.Identity()))


def _round_to_8(number: float) -> int:
    """Return the nearest multiple of 8, at least 8, and not under nine tenths of the number."""
    rounded = max(8, int(number + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * number else rounded + 8


def _init_weights(module: nn.Module) -> None:
    """He et al., 2015 (https://arxiv.org/abs/1502.01852), by outgoing connections; batch norms begin as torch's do."""
    if isinstance(module, nn.Conv2d):
        fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
        nn.init.normal_(module.weight, 0.0, math.sqrt(2 / fan_out))
        if module.bias is not None:
            nn.init.zeros_(module.bias)


@register_model
def ofa_flops_595m_s(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Build the network as `timm.create_model("ofa_flops_595m_s", ...)` does; timm has no weights to fetch for it."""
    return build_model_with_cfg(OnceForAllNet, "ofa_flops_595m_s", pretrained, **kwargs)
