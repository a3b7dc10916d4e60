"""What a training is going to do, told before it begins."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ...datapipe import machine
from ..distributed import Ranks
from ..memory import estimate_memory
from ..optim import scaled_lr
from ..precision import resolve_amp
from ..schedule import count_steps
from ..settings import TrainSettings


class PlannedData(NamedTuple):
    """What a plan needs to know of the data."""

    location: str
    num_classes: int
    num_samples: Mapping[str, int]
    """By split."""
    backend: str
    num_batches: int
    """Of an epoch, on each rank."""


def make_plan(
    data: PlannedData, out: Path, settings: TrainSettings, network: nn.Module, ranks: Ranks
) -> dict[str, Any]:
    """Return the plan as plain values; `lr` is the peak learning rate for this global batch.

    Raises ValueError where the batches of an epoch do not fill one step.
    """
    steps_per_epoch = count_steps(data.num_batches, settings)
    num_steps = settings.epochs * steps_per_epoch
    num_steps = min(num_steps, settings.max_steps or num_steps)
    global_batch = ranks.world_size * settings.batch_size * settings.accumulate
    epoch_images = settings.epoch_samples or data.num_samples["train"]
    return {
        "data": data.location,
        "out": str(out),
        "num_classes": data.num_classes,
        "num_samples": dict(data.num_samples),
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": str(ranks.device),
        "backend": data.backend,
        "world_size": ranks.world_size,
        "global_batch": global_batch,
        "steps_per_epoch": steps_per_epoch,
        "skipped_per_epoch": epoch_images - steps_per_epoch * global_batch,
        "num_steps": num_steps,
        "num_images": num_steps * global_batch,
        "lr": scaled_lr(settings, global_batch),
        "machine": machine.load(),
        "settings": asdict(settings),
    }


def plan_memory(
    settings: TrainSettings, network: nn.Module, ranks: Ranks, teacher: nn.Module | None = None
) -> dict[str, float]:
    """Return what a training step of a rank holds, in MB by purpose, and the `total`; takes seconds."""
    sizes = estimate_memory(network, resolve_amp(settings, ranks.device), teacher)
    return {name: round(size / 1e6, 1) for name, size in sizes.items()}
