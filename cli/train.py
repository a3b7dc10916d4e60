"""`in21k train`: shards to a trained network."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import BACKEND_HELP, PATH, PATH_OR_URL, device_option, emit, json_option, overwrite_option
from .pictures import check_picture
from .progress import TrainLine
from .registries import loss_names
from .terminal import in_lines, in_one_line, printable
from .train_plan import draw_plan, render_plan

if TYPE_CHECKING:
    from ..training.run import Stopped


@click.command()
@click.option("--data", type=PATH_OR_URL, required=True, help="The shards: a folder, or its URL.")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--recipe", help="A recipe by name, or a YAML file of settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; may be given several times.")
@click.option("--backend", help=BACKEND_HELP)
@click.option("--model", help="A timm architecture.")
@click.option("--loss", help=f"One of {loss_names()}.")
@click.option("--teacher", help="Teacher for distillation: a run, an export, a checkpoint or a timm model.")
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
    teacher: str | None,
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
    from ..training import jobs
    from ..training.recipes import parse_sets

    if plot:
        if not dry_run:
            raise ValueError("--plot-schedule goes with --dry-run, which draws and does not train")
        check_picture(plot, overwrite=overwrite)
    settings = parse_sets(sets, {"backend": backend, "model": model, "loss": loss, "teacher": teacher})
    job: dict[str, Any] = {"recipe": recipe, "settings": settings, "device": device, "overwrite": overwrite}
    if dry_run:
        emit_plan(jobs.plan_training(data, out, **job), plot, as_json=as_json)
        return
    with TrainLine() as line:
        result = jobs.train(data, out, **job, **callbacks(line))
    emit_result(out, result, as_json=as_json)


def callbacks(line: TrainLine) -> dict[str, Any]:
    """Return what shows a training on stderr: its plan, then its progress."""
    return {
        "on_plan": lambda plan: click.echo(in_lines(render_plan(printable(plan))), err=True),
        "on_start": line.on_start,
        "on_step": line.on_step,
        "on_validation": line.on_validation,
    }


def emit_plan(plan: dict[str, Any], plot: Path | None = None, *, note: str = "", as_json: bool) -> None:
    """Print the plan on stdout, on rank 0, and draw its learning rate if asked."""
    from ..training.distributed import is_first_rank

    if is_first_rank():
        if plot:
            draw_plan(plan, plot)
        emit(plan, lambda shown: f"{render_plan(shown)}{note}", as_json=as_json)


def emit_result(out: Path, result: dict[str, Any] | Stopped, *, as_json: bool) -> None:
    """Print what came of a training on stdout, on rank 0."""
    from ..training.distributed import is_first_rank

    if not is_first_rank():
        return
    if isinstance(result, dict):
        emit({"path": str(out), **result}, in_one_line(_render_metrics(out, result)), as_json=as_json)
    else:
        stopped = f"stopped at step {result.step} of {result.num_steps}"
        emit({"path": str(out), "stopped": asdict(result)}, stopped, as_json=as_json)


def _render_metrics(out: Path, metrics: dict[str, Any]) -> str:
    from ..training.metric_names import BY_NAME

    done = f"{out}: {metrics['num_epochs']} epochs, {metrics['num_steps']:,} steps"
    if "best_epoch" not in metrics:
        return f"{done}; the shards have no validation split"
    best_by = next(name for name in BY_NAME if f"best_{name}" in metrics)
    whose = " of the moving average" if "ema" in metrics else ""
    best = f"; best {BY_NAME[best_by].title}{whose} {metrics[f'best_{best_by}']:.1f} % in epoch {metrics['best_epoch']}"
    if "map" in metrics:
        return (
            f"{done}; mAP {metrics['map']:.1f} % over {metrics['num_labels']:,} labels (equal scores for all: "
            f"{metrics['map_chance']:.1f} %){best}"
        )
    return (
        f"{done}; semantic top-1 {metrics['semantic_top1']:.1f} % "
        f"(always the commonest answer: {metrics['semantic_top1_commonest']:.1f} %), "
        f"top-1 {metrics['top1']:.1f} %{best}"
    )
