"""`in21k train`: shards to a trained network."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, device_option, emit, json_option, overwrite_option
from .progress import TrainLine

if TYPE_CHECKING:
    from torch import nn

    from ..datapipe import Loader
    from ..shards import ShardSet
    from ..training import Ranks, TrainSettings


@click.command()
@click.option("--data", type=PATH, required=True, help="The shards.")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--recipe", help="A recipe by name, or a YAML file of settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; may be given several times.")
@click.option("--backend", help="The loader: auto, dali_gpu, dali_cpu or torch.")
@click.option("--model", help="A timm architecture.")
@click.option("--loss", help="semantic or cross-entropy.")
@device_option
@click.option("--dry-run", is_flag=True, help="Show the resolved plan and stop.")
@overwrite_option
@json_option
def train(
    data: Path,
    out: Path,
    recipe: str | None,
    sets: tuple[str, ...],
    backend: str | None,
    model: str | None,
    loss: str | None,
    device: str | None,
    dry_run: bool,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a network on shards, with one rank or with several under torchrun.

    An unfinished run of the same settings goes on after its last whole epoch. Several GPUs:
    `torchrun --nproc-per-node 8 --no-python in21k train ...`.
    """
    from .. import training
    from ..models import create_model
    from ..shards import open_dataset

    shards = open_dataset(data)
    flags = {"backend": backend, "model": model, "loss": loss}
    settings = _with_image_size(training.resolve_settings(recipe, sets, flags), shards)
    with training.join_ranks(_device(device, settings.backend)) as ranks:
        facts = {"shards": shards.fingerprint, "num_samples": shards.num_samples}
        config = training.run_config(training.resolve_amp(settings, ranks.device), facts, ranks.world_size)
        training.RunFolder(out).check(config, overwrite=overwrite)
        training.seed_everything(settings)
        network = create_model(
            settings.model, num_classes=len(shards.tree), checkpoint=settings.init, **settings.model_args
        )
        loader = _loader(shards, "train", settings, ranks)
        try:
            plan = _plan(shards, out, settings, network, loader, ranks)
            if dry_run:
                if ranks.is_first:
                    emit(plan, _render_plan(plan), as_json=as_json)
                return
            if ranks.is_first:
                click.echo(_render_plan(plan), err=True)
            val_loader = _loader(shards, "val", settings, ranks) if "val" in shards.num_samples else None
            with TrainLine() as progress:
                metrics = training.train(
                    model=network,
                    loss=training.create_loss(settings, shards.tree),
                    loader=loader,
                    val_loader=val_loader,
                    tree=shards.tree,
                    settings=settings,
                    folder=out,
                    ranks=ranks,
                    data=facts,
                    overwrite=overwrite,
                    progress=progress,
                )
            if val_loader:
                val_loader.close()
        finally:
            loader.close()
        if ranks.is_first:
            emit({"path": str(out), **metrics}, _render_metrics(out, metrics), as_json=as_json)


def _device(device: str | None, backend: str) -> str | None:
    if backend == "dali_gpu" and device == "cpu":
        raise ValueError("backend dali_gpu needs a GPU and --device cpu was given; take backend dali_cpu")
    return device


def _with_image_size(settings: TrainSettings, shards: ShardSet) -> TrainSettings:
    from dataclasses import replace

    if settings.image_size is not None:
        return settings
    if shards.image_size is None:
        raise ValueError(f"{shards.path}: its images keep their own sizes; give --set image_size=...")
    return replace(settings, image_size=shards.image_size)


def _loader(shards: ShardSet, split: str, settings: TrainSettings, ranks: Ranks) -> Loader:
    from ..datapipe import create_loader

    assert settings.image_size is not None
    return create_loader(
        shards,
        split=split,
        backend=settings.backend,
        batch_size=settings.batch_size,
        image_size=settings.image_size,
        augment=settings.augment if split == "train" else "none",
        seed=settings.seed,
        rank=ranks.rank,
        world_size=ranks.world_size,
        workers=settings.workers,
        device=ranks.device,
        normalize=settings.normalize,
        channels_last=settings.channels_last,
        max_bad_rate=settings.max_bad_rate,
    )


def _plan(
    shards: ShardSet, out: Path, settings: TrainSettings, network: nn.Module, loader: Loader, ranks: Ranks
) -> dict[str, Any]:
    from dataclasses import asdict

    steps = settings.epochs * len(loader)
    return {
        "data": str(shards.path),
        "out": str(out),
        "num_classes": len(shards.tree),
        "num_samples": shards.num_samples,
        "num_parameters": sum(parameter.numel() for parameter in network.parameters()),
        "device": str(ranks.device),
        "backend": loader.backend,
        "world_size": ranks.world_size,
        "global_batch": ranks.world_size * settings.batch_size,
        "steps_per_epoch": len(loader),
        "num_steps": min(steps, settings.max_steps or steps),
        "settings": asdict(settings),
    }


def _render_plan(plan: dict[str, Any]) -> str:
    settings: dict[str, Any] = plan["settings"]
    samples = " + ".join(f"{count:,} {split}" for split, count in plan["num_samples"].items())
    shown = ", ".join(f"{name} {value}" for name, value in settings.items() if value not in (None, {}, False))
    return (
        f"{plan['data']}: {plan['num_classes']:,} classes, {samples}\n"
        f"{settings['model']}: {plan['num_parameters'] / 1e6:.1f} M parameters on {plan['device']} "
        f"(ranks: {plan['world_size']}), fed by {plan['backend']}\n"
        f"{plan['num_steps']:,} steps of {plan['global_batch']} images, {plan['steps_per_epoch']:,} an epoch\n"
        f"settings: {shown}"
    )


def _render_metrics(out: Path, metrics: dict[str, Any]) -> str:
    done = f"{out}: {metrics['num_epochs']} epochs, {metrics['num_steps']:,} steps"
    if "semantic_top1" not in metrics:
        return f"{done}; the shards have no validation split"
    return (
        f"{done}; semantic top-1 {metrics['semantic_top1']:.1f} % "
        f"(always the commonest answer: {metrics['semantic_top1_commonest']:.1f} %), "
        f"best {metrics['best_semantic_top1']:.1f} % in epoch {metrics['best_epoch']}"
    )
