"""`in21k bench-loader`: how fast each loader is here, and whether that is fast enough."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .bench_loader_table import describe, render
from .options import (
    AUGMENT_HELP,
    PATH,
    device_option,
    emit,
    json_option,
    loader_sets_option,
    num_workers,
    overwrite_option,
)
from .pictures import check_picture, save_picture
from .progress import ProgressLine

if TYPE_CHECKING:
    from ..datapipe.bench.measure import TrainingSteps
    from ..datapipe.bench.rounds import BenchSettings
    from ..shards import ShardSet


@click.command("bench-loader")
@click.argument("shards", type=PATH)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Measure only this one; repeatable.")
@click.option("--batch-size", default=256, show_default=True, help="Images in a batch.")
@click.option("--seconds", default=10.0, show_default=True, help="Time for each backend, in all its rounds.")
@click.option(
    "--workers", type=click.IntRange(1, 1024), help="Decode threads or processes.  [default: one for each core]"
)
@click.option("--augment", default="none", show_default=True, metavar="NAME", help=AUGMENT_HELP)
@click.option("--image-size", type=int, help="Side of the images in pixels.  [default: that of the shards]")
@click.option("--rounds", default=3, show_default=True, help="Turns of each backend.")
@click.option(
    "--sweep",
    is_flag=True,
    help="Also try 1, 2, 4, ... workers, up to one for each core; then, for dali_gpu with the fastest number, several "
    "loads of the hardware decoder. A trial each.",
)
@click.option("--budget", type=click.FloatRange(1), help="Seconds that everything may take, in place of --seconds.")
@click.option("--model", metavar="NAME", help="Also measure the training steps of this timm architecture.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "uint8"]),
    default="float32",
    show_default=True,
    help="Data type of the batches.",
)
@click.option("--channels-last", is_flag=True, help="Lay batches out channels last.")
@loader_sets_option
@click.option("--plot", type=PATH, metavar="OUT.png", help="Also draw the rates into this PNG.")
@device_option
@overwrite_option
@json_option
def bench_loader(
    shards: Path,
    backends: tuple[str, ...],
    model: str | None,
    sweep: bool,
    budget: float | None,
    plot: Path | None,
    device: str | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure the loaders over SHARDS: every installed backend, on the same samples, workers and augmentation.

    The backends take turns. For each: images a second (median, minimum and maximum of the rounds), images for each
    second of a core, images a second with the files read from the disk, the wait for a batch, and memory. Also the rate
    of reading alone and, with --model, of a network's training steps. The last line says which of them is the limit.
    """
    from ..datapipe.bench.measure import measure
    from ..datapipe.bench.schedule import within_budget
    from ..datapipe.bench.summary import draw_rates, summarize
    from ..shards import open_dataset

    if plot:
        check_picture(plot, overwrite=overwrite)
    opened = open_dataset(shards)
    bench_settings = _settings(opened, device, sweep=sweep, **settings)
    chosen = _choose(backends, bench_settings.device)
    if budget:
        bench_settings = within_budget(bench_settings, chosen, budget, with_model=bool(model))
    steps = _steps(opened, model, bench_settings) if model else None
    with ProgressLine("bench-loader") as progress:
        measured = measure(opened, chosen, bench_settings, steps, progress)
    result = {**_facts(opened, bench_settings), **summarize(measured, bench_settings, model)}
    if plot:
        title = f"Loaders: images a second over {opened.path.resolve().name}"
        save_picture(draw_rates(result, title, describe(result)), plot)
    emit(result, render, as_json=as_json)


def _settings(
    shards: ShardSet, device: str | None, *, sweep: bool, sets: tuple[str, ...], **options: Any
) -> BenchSettings:
    import torch

    from ..datapipe import LoaderSettings
    from ..datapipe.bench.rounds import BenchSettings
    from ..datapipe.bench.schedule import SWEPT_LOADS, sweep_of
    from ..training.recipes import parse_sets

    values = {**options, **parse_sets(sets, declared=LoaderSettings)}
    image_size = values.pop("image_size") or shards.image_size
    if image_size is None:
        raise ValueError(f"{shards.path}: its images keep their own sizes; give --image-size")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is seen here; look into the driver with nvidia-smi")
    return BenchSettings(
        image_size=image_size,
        workers=num_workers(values.pop("workers")),
        sweep=sweep_of() if sweep else (),
        sweep_loads=SWEPT_LOADS if sweep else (),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        **values,
    )


def _choose(backends: tuple[str, ...], device: str) -> list[str]:
    """Return the named backends, or all that run here; raises ValueError for an unknown one."""
    import torch

    from ..datapipe import available_backends
    from ..datapipe.create import choose_backend

    if not backends:
        ready = [name for name, reason in available_backends().items() if reason is None]
        return [name for name in ready if name != "dali_gpu" or device == "cuda"]
    chosen = list(dict.fromkeys(choose_backend(name, torch.device(device)) for name in backends))
    if "dali_gpu" in chosen and device == "cpu":
        raise ValueError("backend dali_gpu needs a GPU and --device cpu was given; take backend dali_cpu")
    return chosen


def _steps(shards: ShardSet, model: str, settings: BenchSettings) -> TrainingSteps:
    from ..datapipe.bench.measure import TrainingSteps
    from ..models import create_model
    from ..models.trial import try_images

    network = create_model(model, num_classes=len(shards.tree))
    try_images(network, settings.image_size, name=model, num_outputs=len(shards.tree), option="--image-size ")
    return TrainingSteps(network, settings)


def _facts(shards: ShardSet, settings: BenchSettings) -> dict[str, Any]:
    from dataclasses import asdict

    from ..shards.files.parallel import default_workers

    return {
        "shards": str(shards.path),
        "num_samples": shards.num_samples["train"],
        "cores": default_workers(),
        **{name: value for name, value in asdict(settings).items() if name != "backend" and "sweep" not in name},
    }
