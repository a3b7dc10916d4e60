"""Optimizers, and which tensors decay."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from .settings import TrainSettings


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Split what trains into tensors that decay (of more than one dimension) and those that do not (biases, norms)."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, object]] = [
        {"params": [parameter for parameter in trained if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in trained if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def create_optimizer(model: nn.Module, settings: TrainSettings) -> Optimizer:
    """Build the optimizer that the settings name over the model's parameters."""
    groups = parameter_groups(model, settings.weight_decay)
    match settings.optimizer:
        case "adam":
            return torch.optim.Adam(groups, lr=settings.lr)
        case "adamw":
            return torch.optim.AdamW(groups, lr=settings.lr)
        case "sgd":
            return torch.optim.SGD(groups, lr=settings.lr, momentum=settings.momentum)
