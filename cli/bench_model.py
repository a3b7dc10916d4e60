"""`in21k bench-model`: how large and how fast networks are."""

from __future__ import annotations

import math
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from .bench_model_table import render, summarize
from .options import device_option, emit, json_option
from .progress import ProgressLine

if TYPE_CHECKING:
    from torch import nn

Precision = Literal["float32", "bf16", "fp16"]  # a copy of `models.speed`'s, whose import would load torch
CPU_BATCH, GPU_BATCH = 16, 256


@click.command("bench-model")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--image-size", type=click.IntRange(1, 8192), help="Side of images in pixels.  [default: the network's]")
@click.option("--num-classes", type=click.IntRange(1), help="Classes of named networks.  [default: the network's]")
@click.option(
    "--batch-size",
    type=click.IntRange(2, 65_536),
    help=f"Images in a batch.  [default: {CPU_BATCH} on a CPU; on a GPU {GPU_BATCH}, or fewer if these do not fit]",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(get_args(Precision)),
    multiple=True,
    help="Precision; repeatable, a row for each.  [default: bf16 on a GPU, float32 on a CPU]",
)
@click.option("--channels-last", is_flag=True, help="Lay images and weights out channels last.")
@click.option("--compile", "compiled", is_flag=True, help="Compile with torch.compile.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each network.")
@click.option("--seconds", type=click.FloatRange(0), default=2.0, show_default=True, help="Time of each measurement.")
@device_option
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@json_option
def bench_model(
    names: tuple[str, ...],
    image_size: int | None,
    num_classes: int | None,
    batch_size: int | None,
    precisions: tuple[Precision, ...],
    channels_last: bool,
    compiled: bool,
    rounds: int,
    seconds: float,
    device: str | None,
    markdown: bool,
    as_json: bool,
) -> None:
    """Count and measure networks: each NAME is a timm architecture, ours, or a trained run.

    Counted: parameters, and for an image MACs (half of the FLOPs that torch counts) and activations. Measured: images a
    second of training (forward, backward, SGD) and of inference (median, minimum and maximum of the rounds), the time
    of a batch of 1 and of 64, and on a GPU the largest batch that trains. The images are random numbers on the device.
    Several networks take turns.
    """
    import torch

    from ..models import model_stats
    from ..models.speed import Contender, SpeedSettings, fit_batch, measure_speed
    from ..training.distributed import lone_device
    from ..training.memory import lacks_memory

    if markdown and as_json:
        raise ValueError("got --markdown and --json; wanted one of them")
    if not math.isfinite(seconds):
        raise ValueError(f"--seconds is {seconds}; wanted a number of seconds, 0 or more")
    where = lone_device(device)
    on_gpu = where.type == "cuda"
    rows: dict[str, dict[str, Any]] = {}
    contenders: dict[str, Contender] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        for precision in dict.fromkeys(precisions or ("bf16" if on_gpu else "float32",)):
            network, size = _open(name, image_size, num_classes)
            settings = SpeedSettings(
                device=where,
                image_size=size,
                batch_size=batch_size or (GPU_BATCH if on_gpu else CPU_BATCH),
                precision=precision,
                channels_last=channels_last,
                compile=compiled,
            )
            key, fitting = f"{name} {precision}", dict[str, int]()
            if not on_gpu and (problem := lacks_memory(network, settings)):
                failed[key] = problem
                continue
            stats = model_stats(network, size)
            if on_gpu:
                try:
                    settings, fitting = fit_batch(network, settings, num_images=batch_size)
                except (RuntimeError, ValueError) as error:  # the other networks are measured
                    failed[key] = str(error).splitlines()[0]
                    continue
            contenders[key] = Contender(network, settings)
            rows[key] = {
                **{"name": name, "precision": precision, "image_size": size},
                **{"num_parameters": stats.num_parameters, "num_flops": stats.num_flops, "num_macs": stats.num_macs},
                **{"num_activations": stats.num_activations, "batch_size": settings.batch_size, **fitting},
            }
    turns, num_turns = count(), rounds * len(contenders)
    with ProgressLine("bench-model") as line:
        measured, failed_later = measure_speed(
            contenders,
            rounds=rounds,
            seconds=seconds,
            on_turn=lambda name: line.show(name, next(turns) / num_turns),
        )
    failed |= failed_later
    if not measured:
        raise ValueError("; ".join(f"{key} failed: {why}" for key, why in failed.items()))
    result = {
        "device": torch.cuda.get_device_name(where) if on_gpu else "cpu",
        "torch": torch.__version__,
        **{"channels_last": channels_last, "compile": compiled, "rounds": rounds, "seconds": seconds},
        "models": [{**rows[key], **summarize(rounds)} for key, rounds in measured.items()],
        "failed": failed,
    }
    emit(result, lambda result: render(result, markdown=markdown), as_json=as_json)


def _open(name: str, image_size: int | None, num_classes: int | None) -> tuple[nn.Module, int]:
    """Return a network on the CPU, and the side of its images; raises ValueError for a run of other classes."""
    from ..models.zoo import create_model_for

    path = Path(name)
    if path.is_file() or (path / "config.yaml").is_file():
        from ..training import load_run

        if num_classes is not None:
            raise ValueError(f"{name}: is a run, whose classes are fixed; leave --num-classes out")
        saved = load_run(path)
        return saved.model, image_size or saved.settings.image_size or 224
    return create_model_for(name, image_size, num_classes)
