"""Optimizers by name, which tensors decay, and the learning rate of each layer."""

from __future__ import annotations

from typing import Any

from timm.optim import create_optimizer_v2  # pyright: ignore[reportPrivateImportUsage]
from torch import nn
from torch.optim import Optimizer

from .settings import TrainSettings

# torch's own optimizers that have a kernel over whole tensors. On a CPU it takes 0.6 (sgd), 0.4 (adamw) and 0.2 (adam)
# of the plain form's time over resnet18, and gives the same bits with any number of threads (measured).
FUSED, FUSED_DEVICES = ("adam", "adamw", "sgd"), {"cpu", "cuda"}
_OWN_SETTINGS = ("lr", "weight_decay", "momentum", "layer_decay")


def create_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Build the optimizer that the settings name over what trains of a model.

    Weight decay leaves out tensors of one dimension and those that `model.no_weight_decay()` names. Every group has
    `lr_scale`, its share of the learning rate (see `set_lr`): 1, or with layer_decay a power of it.

    `adam`, `adamw` and `sgd` are torch's (without Nesterov's momentum, unless optimizer_args asks), all others timm's.

    Raises ValueError where the optimizer cannot be built with settings.optimizer_args.
    """
    for name in settings.optimizer_args:
        if name in _OWN_SETTINGS:
            raise ValueError(f"optimizer_args holds {name}, which is a setting of its own; give it as --set {name}=...")
    options: dict[str, Any] = {}
    if settings.optimizer == "sgd":
        options["nesterov"] = False  # timm's has it on
    if settings.optimizer in FUSED:
        options["fused"] = {parameter.device.type for parameter in model.parameters()} <= FUSED_DEVICES
    try:
        optimizer = create_optimizer_v2(
            model,
            settings.optimizer,
            lr=settings.lr,
            weight_decay=settings.weight_decay,
            momentum=settings.momentum,
            layer_decay=settings.layer_decay,
            **{**options, **settings.optimizer_args},
        )
    except (AssertionError, ImportError, RuntimeError, TypeError, ValueError) as error:
        given = f"with optimizer_args {settings.optimizer_args}" if settings.optimizer_args else "here"
        raise ValueError(f"optimizer {settings.optimizer}: cannot be built {given} ({error})") from error
    for group in optimizer.param_groups:
        group.setdefault("lr_scale", 1.0)
    return optimizer


def set_lr(optimizer: Optimizer, lr: float) -> None:
    """Give every group of an optimizer of `create_optimizer` its share of a learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]


def scaled_lr(settings: TrainSettings, global_batch: int) -> float:
    """Return the peak learning rate for a global batch (images of one step on all ranks together).

    With auto_scale_lr it grows with the batch in proportion (Goyal et al., 2017, arXiv:1706.02677).

    >>> scaled_lr(TrainSettings(lr=0.1, base_batch=128, auto_scale_lr=True), global_batch=256)
    0.2
    """
    if settings.auto_scale_lr and settings.base_batch is not None:
        return settings.lr * global_batch / settings.base_batch
    return settings.lr
