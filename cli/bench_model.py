"""`in21k bench-model`: how large, how fast and how good networks are."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal, get_args

import click

from .bench_model_table import render
from .options import PATH_OR_URL, device_option, emit, json_option
from .progress import ProgressLine

Precision = Literal["float32", "bf16", "fp16"]  # a copy of `models.speed`'s, whose import would load torch
GIGABYTE = 10**9


@click.command("bench-model")
@click.argument("names", metavar="NAME|RUN|FILE...", nargs=-1, required=True)
@click.option("--image-size", type=click.IntRange(1, 8192), help="Side of images in pixels.  [default: the network's]")
@click.option("--num-classes", type=click.IntRange(1), help="Classes of named networks.  [default: the network's]")
@click.option("--model", "architecture", metavar="NAME", help="Architecture of files of weights.  [default: by keys]")
@click.option(
    "--batch-size",
    type=click.IntRange(2, 65_536),
    help="Images in a batch.  [default: 16 on a CPU; on a GPU 256, or fewer if these do not fit]",
)
@click.option(
    "--fill",
    type=click.FloatRange(0, 1, min_open=True),
    help="Instead: measure with this share of the largest batch that trains (0.9 in the published tables).",
)
@click.option(
    "--memory",
    type=click.FloatRange(0, min_open=True),
    metavar="GB",
    help="With --fill on a CPU: the memory that bounds the largest batch.  [default: what is free]",
)
@click.option("--data", type=PATH_OR_URL, help="Shards: also the hours of a training on them.")
@click.option("--epochs", type=click.IntRange(1), default=100, show_default=True, help="Of that training.")
@click.option(
    "--results",
    multiple=True,
    metavar="NAME=FILE",
    help="What `in21k validate NAME --json` printed, with or without --imagenet1k; repeatable.",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(get_args(Precision)),
    multiple=True,
    help="Precision; repeatable, a row for each.  [default: bf16 on a GPU, float32 on a CPU]",
)
@click.option("--channels-last", is_flag=True, help="Lay images and weights out channels last.")
@click.option("--compile", is_flag=True, help="Compile with torch.compile.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each network.")
@click.option("--seconds", type=click.FloatRange(0), default=2.0, show_default=True, help="Time of each measurement.")
@device_option
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@json_option
def bench_model(
    names: tuple[str, ...],
    memory: float | None,
    data: Path | str | None,
    results: tuple[str, ...],
    markdown: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Count and measure networks: each is a timm architecture, ours, a run, or a file of published weights.

    Counted: parameters, and for an image MACs (half of the FLOPs that torch counts) and activations. Measured: images a
    second of training (forward, backward, SGD) and of inference (median, minimum and maximum of the rounds), the time
    of a batch of 1 and of 64, and on a GPU the largest batch that trains. The images are random numbers on the device.
    Several networks take turns.

    With --fill the speeds are those at a share of the largest batch, as in published tables; on a CPU the largest batch
    is computed from --memory. With --data the table has the hours of --epochs epochs. Accuracies are those of runs, and
    of --results.
    """
    from ..training.jobs.bench_model_job import BenchSettings, bench_models

    if markdown and as_json:
        raise ValueError("got --markdown and --json; wanted one of them")
    num_bytes = None if memory is None else int(memory * GIGABYTE)
    chosen = BenchSettings(**settings, memory_bytes=num_bytes, results=[_result(word) for word in results])
    with ProgressLine("bench-model") as line:
        result = bench_models(names, chosen, data=data, on_turn=line.show)
    emit(result, lambda result: render(result, markdown=markdown), as_json=as_json)


def _result(word: str) -> tuple[str, Path]:
    name, equals, path = word.rpartition("=")
    if not equals or not Path(path).is_file():
        raise ValueError(f"--results {word}: wanted NAME=FILE, with a file that `in21k validate NAME --json` printed")
    return name, Path(path)
