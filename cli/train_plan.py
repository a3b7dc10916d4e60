"""The plan of a training, as text and as a picture of its learning rate."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from .pictures import save_picture


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


def draw_plan(plan: dict[str, Any], path: Path) -> None:
    """Draw the learning rate of the plan into a PNG."""
    from ..training import TrainSettings
    from .schedule_picture import draw_schedule

    settings = TrainSettings(**plan["settings"])
    subtitle = f"{settings.model}: {plan['num_steps']:,} steps of {plan['global_batch']:,} images"
    sizes = {name: plan[name] for name in ("lr", "num_steps", "steps_per_epoch")}
    save_picture(draw_schedule(settings, subtitle=subtitle, **sizes), path)


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
    unknown = [part for part in ("optimizer", "activations") if part not in sizes]
    note = f"; {' and '.join(unknown)} not counted" if unknown else ""
    return f"memory of a rank, estimated: {sizes['total']:,.0f} MB or more ({parts}{note})"


def _changed(settings: dict[str, Any]) -> str:
    from dataclasses import asdict

    from ..training import TrainSettings

    defaults = asdict(TrainSettings())
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value != defaults[name]) or "none"
