"""What a training run is going to do, said before it begins."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from torch import nn

    from ..training import TrainSettings
    from ..training.distributed import Ranks


class PlannedData(NamedTuple):
    """What a plan has to know of the data."""

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
    """Return the resolved plan as plain values; `lr` is the peak for this many images a step.

    Raises ValueError where an epoch's batches do not fill one step.
    """
    from ..datapipe import machine
    from ..training.optim import scaled_lr
    from ..training.schedule import count_steps

    steps_per_epoch = count_steps(data.num_batches, settings)
    steps = settings.epochs * steps_per_epoch
    num_steps = min(steps, settings.max_steps or steps)
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


def add_memory(
    plan: dict[str, Any], settings: TrainSettings, network: nn.Module, teacher: nn.Module | None = None
) -> dict[str, Any]:
    """Return the plan with what a rank's step holds, by purpose, in MB; takes seconds."""
    from ..training.memory import estimate_memory

    sizes = estimate_memory(network, settings, teacher)
    return {**plan, "memory_mb": {name: round(size / 1e6, 1) for name, size in sizes.items()}}


def render_plan(plan: dict[str, Any]) -> str:
    """Return the plan as lines of text."""
    from ..datapipe.machine import describe_load

    settings: dict[str, Any] = plan["settings"]
    samples = " + ".join(f"{count:,} {split}" for split, count in plan["num_samples"].items())
    lines = [
        f"{plan['data']}: {plan['num_classes']:,} classes, {samples}",
        f"{settings['model']}: {plan['num_parameters'] / 1e6:.1f} M parameters on {plan['device']} "
        f"(ranks: {plan['world_size']}), fed by {plan['backend']}",
        describe_load(**plan["machine"]),
        f"{plan['num_steps']:,} steps of {plan['global_batch']:,} images, {plan['steps_per_epoch']:,} an epoch, "
        f"{plan['num_images']:,} images in all",
        *([_describe_skipped(plan)] if plan["skipped_per_epoch"] else []),
        f"{settings['optimizer']}, {settings['schedule']}: {_describe_lr(plan)}",
        *([_describe_memory(plan["memory_mb"])] if "memory_mb" in plan else []),
        f"settings beside the defaults: {_changed(settings)}",
    ]
    return "\n".join(lines)


def _describe_lr(plan: dict[str, Any]) -> str:
    settings: dict[str, Any] = plan["settings"]
    if not settings["auto_scale_lr"]:
        return f"learning rate {plan['lr']:.4g}"
    return (
        f"learning rate {plan['lr']:.4g}, which is {settings['lr']:.4g} x {plan['global_batch']:,} / "
        f"{settings['base_batch']:,} (auto_scale_lr)"
    )


def _describe_skipped(plan: dict[str, Any]) -> str:
    skipped = plan["skipped_per_epoch"]
    epoch_images = skipped + plan["steps_per_epoch"] * plan["global_batch"]
    return (
        f"each epoch skips {skipped:,} of {epoch_images:,} images ({skipped / epoch_images:.2%}), which fill no step; "
        "other ones each time"
    )


def _describe_memory(sizes: dict[str, float]) -> str:
    parts = ", ".join(f"{name} {size:,.0f}" for name, size in sizes.items() if name != "total")
    unknown = [what for what in ("optimizer", "activations") if what not in sizes]
    note = f"; of {' and '.join(unknown)} nothing is known" if unknown else ""
    return f"memory of a rank, estimated: {sizes['total']:,.0f} MB or more ({parts}{note})"


def _changed(settings: dict[str, Any]) -> str:
    from ..training import TrainSettings

    defaults = asdict(TrainSettings())
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value != defaults[name]) or "none"
