"""`in21k train`: shards to a trained network."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from .options import PATH, PATH_OR_URL, device_option, emit, json_option, overwrite_option
from .pictures import check_picture, save_picture
from .progress import TrainLine
from .terminal import in_lines, in_one_line, printable
from .train_plan import PlannedData, add_memory, make_plan, render_plan
from .tree import say_flat

if TYPE_CHECKING:
    from torch import Tensor

    from ..datapipe import Loader
    from ..shards import ShardSet
    from ..shards.tree import SemanticTree
    from ..training import TrainSettings
    from ..training.distributed import Ranks
    from ..training.start import Start


class Labels(NamedTuple):
    """What outputs stand for, where it is not the shards' classes, and which go with each class: bool (classes, C)."""

    tree: SemanticTree
    label_sets: Tensor


@click.command()
@click.option("--data", type=PATH_OR_URL, required=True, help="The shards: a folder, or its URL.")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--recipe", help="A recipe by name, or a YAML file of settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; may be given several times.")
@click.option("--backend", help="The loader: auto, dali_gpu, dali_cpu, opencv, torch or webdataset.")
@click.option("--model", help="A timm architecture.")
@click.option("--loss", help="semantic, cross-entropy, bce or asymmetric.")
@click.option("--teacher", "teacher_name", help="Who is distilled: a run, its export, a checkpoint, or a timm model.")
@device_option
@click.option("--dry-run", is_flag=True, help="Show the resolved plan and stop.")
@click.option("--plot-schedule", "plot", type=PATH, metavar="OUT.png", help="With --dry-run: draw the learning rate.")
@overwrite_option
@json_option
def train(
    data: Path | str,
    out: Path,
    recipe: str | None,
    sets: tuple[str, ...],
    backend: str | None,
    model: str | None,
    loss: str | None,
    teacher_name: str | None,
    device: str | None,
    dry_run: bool,
    plot: Path | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a network on shards, with one rank or with several under torchrun.

    Run the same command again to resume an unfinished run from its last checkpoint, which is written after each
    epoch, every `save_every_steps` steps, and on SIGTERM or SIGUSR1, which stop the run. Several GPUs:
    `torchrun --nproc-per-node 8 --no-python in21k train ...`.
    """
    from ..shards import open_dataset
    from ..training import resolve_settings
    from ..training.start import open_start

    if plot:
        if not dry_run:
            raise ValueError("--plot-schedule goes with --dry-run, which draws and does not train")
        check_picture(plot, overwrite=overwrite)
    shards = open_dataset(data)
    flags = {"backend": backend, "model": model, "loss": loss, "teacher": teacher_name}
    settings = resolve_settings(recipe, sets, flags)
    run_training(
        shards,
        out,
        settings,
        start=open_start(settings.init) if settings.init else None,
        device=device,
        dry_run=dry_run,
        plot=plot,
        overwrite=overwrite,
        as_json=as_json,
    )


def run_training(
    shards: ShardSet,
    out: Path,
    settings: TrainSettings,
    *,
    start: Start | None,
    labels: Labels | None = None,
    device: str | None = None,
    dry_run: bool = False,
    plot: Path | None = None,
    overwrite: bool = False,
    as_json: bool = False,
) -> None:
    """Train on shards as the settings say, or show the plan, and print what came of it.

    start:  the weights of settings.init.
    labels: what the outputs stand for where it is not the shards' classes.
    """
    from ..datapipe.augment.mixup import MixSettings, create_mix
    from ..training import load_teacher
    from ..training import train as training_train
    from ..training.distributed import join_ranks
    from ..training.evaluation.multilabel import check_num_scores
    from ..training.job import Stopped, seed_everything
    from ..training.losses.create import check_loss
    from ..training.precision import resolve_amp
    from ..training.runs.run_folder import RunFolder, run_config
    from ..training.start import check_network, create_network

    settings = _with_image_size(settings, shards)
    tree, label_sets = labels or (shards.tree, None)
    check_loss(settings, multi_label=label_sets is not None)
    with join_ranks(check_device(device, settings.backend)) as ranks:
        seed_everything(settings)
        facts: dict[str, Any] = {"shards": shards.fingerprint, "num_samples": shards.num_samples}
        if label_sets is not None:
            facts["label_sets"] = len(label_sets)
            check_num_scores(shards.num_samples.get("val", 0) * len(tree), len(tree))
        teacher = load_teacher(settings, tree, ranks.device) if settings.teacher else None
        if teacher:
            facts["teacher_weights"] = teacher.fingerprint
        config = run_config(resolve_amp(settings, ranks.device), facts, ranks.world_size)
        RunFolder(out).check(config, overwrite=overwrite)
        network = create_network(settings, tree.wnids, start)
        check_network(network, settings, len(tree), ranks.world_size)
        loader = _loader(shards, "train", settings, ranks)
        try:
            if ranks.is_first and settings.loss == "semantic":
                say_flat(tree)
            data = PlannedData(shards.location, len(tree), shards.num_samples, loader.backend, len(loader))
            plan = make_plan(data, out, settings, network, ranks)
            if dry_run:
                if ranks.is_first:
                    plan = add_memory(plan, resolve_amp(settings, ranks.device), network, teacher)
                    if plot:
                        _draw_schedule(plot, settings, plan)
                    emit(plan, render_plan, as_json=as_json)
                return
            if ranks.is_first:
                click.echo(in_lines(render_plan(printable(plan))), err=True)
            val_loader = _loader(shards, "val", settings, ranks) if "val" in shards.num_samples else None
            mix = MixSettings(mixup=settings.mixup, cutmix=settings.cutmix)
            with TrainLine() as progress:
                result = training_train(
                    model=network,
                    loader=loader,
                    val_loader=val_loader,
                    tree=tree,
                    settings=settings,
                    folder=out,
                    ranks=ranks,
                    teacher=teacher,
                    mix=create_mix(mix, settings.seed) if settings.mixup or settings.cutmix else None,
                    label_sets=label_sets,
                    data=facts,
                    overwrite=overwrite,
                    progress=progress,
                )
            if val_loader:
                val_loader.close()
        finally:
            loader.close()
        if ranks.is_first:
            if isinstance(result, Stopped):
                stopped = f"stopped at step {result.step} of {result.num_steps}"
                emit({"path": str(out), "stopped": asdict(result)}, stopped, as_json=as_json)
            else:
                emit({"path": str(out), **result}, in_one_line(_render_metrics(out, result)), as_json=as_json)


def check_device(device: str | None, backend: str) -> str | None:
    """Return the device; raises ValueError where the backend cannot feed it."""
    if backend == "dali_gpu" and device == "cpu":
        raise ValueError("backend dali_gpu needs a GPU and --device cpu was given; take backend dali_cpu")
    return device


def _with_image_size(settings: TrainSettings, shards: ShardSet) -> TrainSettings:
    if settings.image_size is not None:
        return settings
    if shards.image_size is None:
        raise ValueError(f"{shards.location}: its images keep their own sizes; give --set image_size=...")
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
        crop_pct=None if split == "train" else settings.crop_pct,
        max_bad_rate=settings.max_bad_rate,
        epoch_samples=settings.epoch_samples if split == "train" else None,
    )


def _draw_schedule(path: Path, settings: TrainSettings, plan: dict[str, Any]) -> None:
    from .schedule_picture import draw_schedule

    subtitle = f"{settings.model}: {plan['num_steps']:,} steps of {plan['global_batch']:,} images"
    sizes = {name: plan[name] for name in ("lr", "num_steps", "steps_per_epoch")}
    save_picture(draw_schedule(settings, subtitle=subtitle, **sizes), path)


def _render_metrics(out: Path, metrics: dict[str, Any]) -> str:
    done = f"{out}: {metrics['num_epochs']} epochs, {metrics['num_steps']:,} steps"
    if "map" in metrics:
        return (
            f"{done}; mAP {metrics['map']:.1f} % over {metrics['num_labels']:,} labels (equal scores for all: "
            f"{metrics['map_chance']:.1f} %), best {metrics['best_map']:.1f} % in epoch {metrics['best_epoch']}"
        )
    if "semantic_top1" not in metrics:
        return f"{done}; the shards have no validation split"
    whose = " of the moving average" if "ema" in metrics else ""
    return (
        f"{done}; semantic top-1 {metrics['semantic_top1']:.1f} % "
        f"(always the commonest answer: {metrics['semantic_top1_commonest']:.1f} %), top-1 {metrics['top1']:.1f} %; "
        f"best semantic top-1{whose} {metrics['best_semantic_top1']:.1f} % in epoch {metrics['best_epoch']}"
    )
