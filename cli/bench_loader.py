"""`in21k bench-loader`: how fast each loader is here, and whether that suffices."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, device_option, emit, json_option, num_workers, overwrite_option, table
from .pictures import check_picture, save_picture
from .progress import ProgressLine

if TYPE_CHECKING:
    from ..datapipe.bench.measure import TrainingSteps
    from ..datapipe.bench.rounds import BenchSettings
    from ..shards import ShardSet


@click.command("bench-loader")
@click.argument("shards", type=PATH)
@click.option("--backend", "backends", multiple=True, metavar="NAME", help="Only this one; may be given several times.")
@click.option("--batch-size", default=256, show_default=True, help="Images of a batch.")
@click.option(
    "--seconds", default=10.0, show_default=True, help="How long each backend is measured, all rounds together."
)
@click.option(
    "--workers", type=click.IntRange(1, 1024), help="Decode threads or processes.  [default: one for each core]"
)
@click.option(
    "--augment", default="none", show_default=True, metavar="NAME", help="none, miil, inception, inception-ra."
)
@click.option("--image-size", type=int, help="Pixels.  [default: the size that the shards hold]")
@click.option("--rounds", default=3, show_default=True, help="How many turns each backend has.")
@click.option(
    "--sweep",
    is_flag=True,
    help="Also with 1, 2, 4, ... workers, to as many as there are cores; dali_gpu with several loads of the hardware "
    "decoder, too.",
)
@click.option("--model", metavar="NAME", help="A timm architecture: how many images its training steps take here.")
@click.option(
    "--dtype",
    type=click.Choice(["float32", "float16", "bfloat16", "uint8"]),
    default="float32",
    show_default=True,
    help="Of the batches.",
)
@click.option("--channels-last", is_flag=True, help="Batches in this memory format.")
@click.option("--plot", type=PATH, metavar="OUT.png", help="Also draw the result.")
@device_option
@overwrite_option
@json_option
def bench_loader(
    shards: Path,
    backends: tuple[str, ...],
    model: str | None,
    sweep: bool,
    plot: Path | None,
    device: str | None,
    overwrite: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Measure the loaders over SHARDS in turns: every installed backend, on the same samples, workers and augmentation.

    Images a second (the median of the rounds, the least and the most), for each second of a core, and with the files
    read from the disk; how long a batch is waited for; memory. Beside them what reading alone gives and, with --model,
    what a network's training steps take. The last line says what that means.
    """
    from ..datapipe.bench.measure import measure
    from ..datapipe.bench.summary import draw_rates, summarize
    from ..shards import open_dataset

    if plot:
        check_picture(plot, overwrite=overwrite)
    opened = open_dataset(shards)
    settings = _settings(opened, device, sweep=sweep, **given)
    chosen = _choose(backends, settings.device)
    steps = _steps(opened, model, settings) if model else None
    with ProgressLine("bench-loader") as progress:
        measured = measure(opened, chosen, settings, steps, progress)
    result = {**_facts(opened, settings), **summarize(measured, settings, model)}
    if plot:
        title = f"Loaders: images a second over {opened.path.resolve().name}"
        save_picture(draw_rates(result, title, _describe(result)), plot)
    emit(result, _render, as_json=as_json)


def _settings(
    shards: ShardSet, device: str | None, *, sweep: bool, image_size: int | None, workers: int | None, **given: Any
) -> BenchSettings:
    import torch

    from ..datapipe.bench.measure import SWEPT_LOADS, sweep_of
    from ..datapipe.bench.rounds import BenchSettings

    if image_size is None and shards.image_size is None:
        raise ValueError(f"{shards.path}: its images keep their own sizes; give --image-size")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("--device cuda: no GPU is seen here; look into the driver with nvidia-smi")
    return BenchSettings(
        image_size=image_size or shards.image_size or 0,
        workers=num_workers(workers),
        sweep=sweep_of() if sweep else (),
        sweep_loads=SWEPT_LOADS if sweep else (),
        device=device or ("cuda" if torch.cuda.is_available() else "cpu"),
        **given,
    )


def _choose(backends: tuple[str, ...], device: str) -> list[str]:
    """Return the backends that were asked for, or all that run here; raises ValueError for what is none."""
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
        **{name: value for name, value in asdict(settings).items() if not name.startswith("sweep")},
    }


def _describe(result: dict[str, Any]) -> str:
    layout = ", channels last" if result["channels_last"] else ""
    return (
        f"batches of {result['batch_size']}, {result['image_size']} pixels, {result['dtype']}{layout} on the "
        f"{'GPU' if result['device'] == 'cuda' else 'CPU'}, augment {result['augment']}, {result['workers']} workers, "
        f"{result['cores']} cores"
    )


def _render(result: dict[str, Any]) -> str:
    parts = [
        f"{result['shards']}: {result['num_samples']:,} samples; {_describe(result)}",
        table([_head(result), *(_row(each, result) for each in result["backends"]), *_lines(result)]),
    ]
    parts += [_render_sweep(result)] if result["sweep"] else []
    return "\n\n".join([*parts, "\n".join([*_notes(result), result["verdict"]])])


def _head(result: dict[str, Any]) -> list[str]:
    head = ["img/s", "min - max", "per core s", "cold", "p50 ms", "p95 ms", "p99 ms", "first s", "MB", "workers' MB"]
    return ["", *head, *(["GPU MB"] if _has_gpu(result) else [])]


def _has_gpu(result: dict[str, Any]) -> bool:
    return any(each["gpu_memory_mb"] is not None for each in result["backends"])


def _row(each: dict[str, Any], result: dict[str, Any]) -> list[str]:
    cold = each["cold_images_per_s"]
    waits = [f"{each['latency_ms'][name]:,.1f}" for name in ("p50", "p95", "p99")]
    first = each["first_batch_s"]
    row = [each["backend"], *_rate_cells(each["images_per_s"]), _or_dash(each["images_per_core_s"])]
    row += [_or_dash(cold and cold["median"]), *waits, "-" if first is None else f"{first:.2f}"]
    row += [f"{each['memory_mb'][name]:,.0f}" for name in ("own", "children")]
    return [*row, *([_or_dash(each["gpu_memory_mb"])] if _has_gpu(result) else [])]


def _rate_cells(rate: dict[str, Any]) -> list[str]:
    return [f"{rate['median']:,.0f}", f"{rate['min']:,.0f} - {rate['max']:,.0f}"]


def _or_dash(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _lines(result: dict[str, Any]) -> list[list[str]]:
    """Return the rows below the backends: what reading alone gives, what the network takes."""
    width, ceiling, demand = len(_head(result)), result["ceiling"], result["demand"]
    cold = ceiling.get("cold")
    rows = [["reading alone", *_rate_cells(ceiling["warm"]["images_per_s"]), "-"]]
    rows[0] += [_or_dash(cold and cold["images_per_s"]["median"])]
    rows += [[f"{demand['model']} takes", *_rate_cells(demand["images_per_s"])]] if demand else []
    return [row + [""] * (width - len(row)) for row in rows]


def _render_sweep(result: dict[str, Any]) -> str:
    medians: dict[str, dict[int, float]] = {}
    for each in result["sweep"]:
        load = each.get("hw_decoder_load")
        row = each["backend"] if load is None else f"{each['backend']}, hardware {load:g}"
        medians.setdefault(row, {})[each["workers"]] = each["images_per_s"]["median"]
    numbers = sorted({workers for row in medians.values() for workers in row})
    rows = [[name, *(_or_dash(row.get(number)) for number in numbers)] for name, row in medians.items()]
    return table([["img/s by workers", *map(str, numbers)], *rows])


def _best(each: dict[str, Any]) -> str:
    load = each.get("hw_decoder_load")
    hardware = "" if load is None else f", hw_decoder_load {load:g}"
    workers = f"{each['workers']} worker{'s' if each['workers'] > 1 else ''}"
    return f"{each['backend']} {workers}{hardware} ({each['images_per_s']['median']:,.0f} img/s)"


def _notes(result: dict[str, Any]) -> list[str]:
    reading = result["ceiling"]
    rates = {"memory": reading["warm"], "the disk": reading.get("cold")}
    found = ", ".join(f"{rate['mb_per_s']:,.0f} MB/s from {place}" for place, rate in rates.items() if rate)
    notes = [f"reading alone: {found}"]
    if result["cold_left_out"]:
        notes += [f"cold: not measured, as {result['cold_left_out']}"]
    short = [each["backend"] for each in result["backends"] if each["num_epochs"] > 2 * result["rounds"]]
    if short:
        notes += [f"{', '.join(short)}: epochs so short that beginning them counts; measure on more samples"]
    if result["sweep_best"]:
        notes += ["best of the sweep: " + "; ".join(map(_best, result["sweep_best"]))]
    notes += [
        f"{each['backend']}: its samples are of the same shards in another order, and each of its workers needs a shard"
        for each in result["backends"]
        if not each["same_samples"]
    ]
    notes += [
        f"{each['backend']}: {each['num_bad']} corrupt samples an epoch; `in21k verify --deep` names them"
        for each in result["backends"]
        if each["num_bad"]
    ]
    return notes + [f"{name}: failed ({reason})" for name, reason in result["failed"].items()]
