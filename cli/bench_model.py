"""`in21k bench-model`: how large and how fast networks are."""

from __future__ import annotations

import math
import statistics
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import click

from .count_line import CountLine
from .options import device_option, emit, json_option, table

if TYPE_CHECKING:
    from torch import nn

    from ..models.speed import Rounds, SpeedSettings

Precision = Literal["float32", "bf16", "fp16"]  # as `models.speed` has it, which would import torch
CPU_BATCH, GPU_BATCH = 16, 256


@click.command("bench-model")
@click.argument("names", metavar="NAME...", nargs=-1, required=True)
@click.option("--image-size", type=click.IntRange(1, 8192), help="Pixels.  [default: each network's own]")
@click.option("--num-classes", type=click.IntRange(1), help="Of named networks.  [default: each one's own]")
@click.option(
    "--batch-size",
    type=click.IntRange(2, 65_536),
    help=f"Images of a step and of a pass.  [default: {CPU_BATCH} on a CPU; on a GPU {GPU_BATCH}, or what fits]",
)
@click.option(
    "--precision",
    "precisions",
    type=click.Choice(get_args(Precision)),
    multiple=True,
    help="May be given several times: a row for each.  [default: bf16 on a GPU, float32 on a CPU]",
)
@click.option("--channels-last", is_flag=True, help="Lay images and weights out channels last.")
@click.option("--compile", "compiled", is_flag=True, help="Compile with torch.compile.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True, help="Turns of each network.")
@click.option("--seconds", type=click.FloatRange(0), default=2.0, show_default=True, help="Of each measurement.")
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

    Parameters; multiplications with their additions (MACs, half of the FLOPs that torch counts) and activations of an
    image; the largest batch that trains (on a GPU, found by trying); images a second of training (forward, backward,
    SGD) and of inference, the median of the rounds and how far they lie apart; and how long a batch of 1 and of 64
    takes. The images are random numbers that lie on the device. Several networks have their turns one after the other.
    """
    import torch

    from ..models import model_stats
    from ..models.speed import Contender, SpeedSettings, measure_speed
    from ..training.distributed import lone_device

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
            if not on_gpu and (problem := _lacks_memory(network, settings)):
                failed[key] = problem
                continue
            stats = model_stats(network, size)
            if on_gpu:
                try:
                    settings, fitting = _fit(network, settings, asked=batch_size)
                except (RuntimeError, ValueError) as error:  # the others are measured all the same
                    failed[key] = str(error).splitlines()[0]
                    continue
            contenders[key] = Contender(network, settings)
            rows[key] = {
                **{"name": name, "precision": precision, "image_size": size},
                **{"num_parameters": stats.num_parameters, "num_flops": stats.num_flops, "num_macs": stats.num_macs},
                **{"num_activations": stats.num_activations, "batch_size": settings.batch_size, **fitting},
            }
    with CountLine("bench-model", rounds * len(contenders)) as line:
        found, failed_later = measure_speed(contenders, rounds=rounds, seconds=seconds, on_turn=line.next)
    failed |= failed_later
    if not found:
        raise ValueError("; ".join(f"{key} failed: {why}" for key, why in failed.items()))
    result = {
        "device": torch.cuda.get_device_name(where) if on_gpu else "cpu",
        "torch": torch.__version__,
        **{"channels_last": channels_last, "compile": compiled, "rounds": rounds, "seconds": seconds},
        "models": [{**rows[key], **_summarize(rounds)} for key, rounds in found.items()],
        "failed": failed,
    }
    emit(result, lambda shown: _render(shown, markdown=markdown), as_json=as_json)


def _open(name: str, image_size: int | None, num_classes: int | None) -> tuple[nn.Module, int]:
    """Return a network on the CPU, and the side of its images; raises ValueError for a run of other classes."""
    from ..models.zoo import create_model_for

    path = Path(name)
    if path.is_file() or (path / "config.yaml").is_file():
        from ..training import load_run

        if num_classes is not None:
            raise ValueError(f"{name}: is a run, and has the classes that it was trained on; leave --num-classes out")
        saved = load_run(path)
        return saved.model, image_size or saved.settings.image_size or 224
    return create_model_for(name, image_size, num_classes)


def _lacks_memory(network: nn.Module, settings: SpeedSettings) -> str:
    """Return in one line that the measurements do not fit into this machine's memory; empty where they may."""
    from ..models.speed import LATENCY_BATCHES
    from ..training import TrainSettings
    from ..training.features.feature_file import free_bytes
    from ..training.memory import estimate_memory

    size, batch_size = settings.image_size, settings.batch_size
    amp = "off" if settings.precision == "float32" else settings.precision
    step = TrainSettings(image_size=size, batch_size=batch_size, optimizer="sgd", momentum=0.9, amp=amp)
    try:
        sizes = estimate_memory(network, step)
    except (AssertionError, RuntimeError, ValueError):
        return ""  # it takes no such images, which is said where it is counted
    most = max(batch_size, *LATENCY_BATCHES)
    activations = sizes.get("activations", 0)
    # The copy that answers lies beside the one that trains; its images are there when activations are not.
    needed = sizes["total"] - activations + sizes["weights"] + max(activations, 12 * most * size**2)
    free = free_bytes()
    if needed <= free:
        return ""
    return (
        f"steps of {batch_size:,} and passes of up to {most:,} images of {size} pixels take "
        f"{needed / 1e9:,.1f} GB of memory or more, and {free / 1e9:,.1f} GB are free; lower --batch-size or "
        "--image-size"
    )


def _fit(network: nn.Module, settings: SpeedSettings, *, asked: int | None) -> tuple[SpeedSettings, dict[str, int]]:
    """Return settings whose batch fits the GPU, and what the largest one is.

    Raises ValueError where the batch that was asked for does not fit.
    """
    from dataclasses import replace

    from ..models.speed import largest_training_batch

    largest = largest_training_batch(network, settings)
    room = asked or min(settings.batch_size, max(2, 3 * largest // 4))  # guessed: the copy that answers lies beside it
    if largest < room:
        raise ValueError(
            f"at most {largest:,} images of {settings.image_size} pixels train on this GPU in "
            f"{settings.precision}, wanted {room:,}; lower --batch-size or --image-size"
        )
    return replace(settings, batch_size=room), {"largest_training_batch": largest}


def _summarize(rounds: Rounds) -> dict[str, Any]:
    import numpy as np

    from ..datapipe.bench.summary import spread

    return {
        "training_images_per_s": spread(rounds.training),
        "inference_images_per_s": spread(rounds.inference),
        "latency_ms": {
            str(num_images): {
                "median": 1000 * statistics.median(seconds),
                "min": 1000 * min(seconds),
                "p95": 1000 * float(np.percentile(seconds, 95)),
                "num_passes": len(seconds),
            }
            for num_images, seconds in rounds.latencies.items()
        },
    }


def _render(result: dict[str, Any], *, markdown: bool) -> str:
    models: list[dict[str, Any]] = result["models"]
    on_gpu = "largest_training_batch" in models[0]
    head = ["model", "precision", "pixels", "params (M)", "GMACs", "activations (M)"]
    head += [*(["largest batch"] if on_gpu else []), "batch", "training img/s", "inference img/s"]
    head += [f"batch of {num_images} (ms)" for num_images in models[0]["latency_ms"]]
    rows = [head]
    for each in models:
        row = [each["name"], each["precision"], str(each["image_size"])]
        row += [f"{each['num_parameters'] / 1e6:.1f}", f"{each['num_macs'] / 1e9:.2f}"]
        row += [f"{each['num_activations'] / 1e6:.1f}"]
        row += [*([f"{each['largest_training_batch']:,}"] if on_gpu else []), f"{each['batch_size']:,}"]
        row += [_rate(each["training_images_per_s"]), _rate(each["inference_images_per_s"])]
        row += [f"{latency['median']:.2f} (p95 {latency['p95']:.2f})" for latency in each["latency_ms"].values()]
        rows.append(row)
    if markdown:
        lines = [f"| {' | '.join(row)} |" for row in rows]
        lines.insert(1, f"|---|{'---:|' * (len(head) - 1)}")
        body = "\n".join(lines)
    else:
        body = table(rows)
    form = [
        *(["channels last"] if result["channels_last"] else []),
        *(["compiled"] if result["compile"] else []),
        f"medians of {result['rounds']} rounds, in brackets their least and most",
    ]
    failed = [f"{key}: failed ({why})" for key, why in result["failed"].items()]
    return "\n".join([body, "", f"{result['device']}, torch {result['torch']}, {', '.join(form)}", *failed])


def _rate(spread: dict[str, float]) -> str:
    digits = 0 if spread["min"] >= 10 else 2
    return f"{spread['median']:,.{digits}f} ({spread['min']:,.{digits}f} to {spread['max']:,.{digits}f})"
