"""How large, how fast and how good networks are, beside one another."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ...datapipe.bench.summary import spread
from ...models.speed import LEAST, MOST, Contender, Precision, Rounds, SpeedSettings, fit_batch, measure_speed
from ...models.stats import model_stats
from ...models.zoo import create_model_for
from ...shards.files.atomic import read_json
from ..distributed import lone_device
from ..inference.open_model import holds_weights, open_model
from ..memory import free_bytes, lacks_memory, largest_batch
from ..runs.saved_run import load_run
from .setup import open_data

CPU_BATCH, GPU_BATCH = 16, 256


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """How networks are measured.

    image_size:    side in pixels; None: the network's.
    num_classes:   of networks that are named; None: the network's.
    batch_size:    images; None: 16 on a CPU, and on a GPU 256 or as many as fit.
    fill:          instead: this share of the largest batch that trains, 0..1.
    memory_bytes:  of a CPU, which bounds the largest batch; None: what is free.
    precisions:    none: bf16 on a GPU, float32 on a CPU.
    rounds:        turns of each network.
    seconds:       of each measurement.
    epochs:        of the training whose hours are computed.
    architecture:  of files of published weights; None: by their keys.
    results:       by network, files that `in21k validate --json` printed, with and without --imagenet1k.

    Raises ValueError for settings that do not go together.
    """

    image_size: int | None = None
    num_classes: int | None = None
    batch_size: int | None = None
    fill: float | None = None
    memory_bytes: int | None = None
    precisions: Sequence[Precision] = ()
    channels_last: bool = False
    compile: bool = False
    rounds: int = 5
    seconds: float = 2.0
    epochs: int = 100
    architecture: str | None = None
    results: Sequence[tuple[str, Path]] = field(default_factory=tuple[tuple[str, Path], ...])
    device: str | None = None

    def __post_init__(self) -> None:
        if self.fill is not None and self.batch_size is not None:
            raise ValueError("--fill computes the batch size from the largest one; leave --batch-size out")
        if self.memory_bytes is not None and self.fill is None:
            raise ValueError("--memory bounds the largest batch, of which --fill takes a share; give --fill too")
        if not np.isfinite(self.seconds):
            raise ValueError(f"--seconds is {self.seconds}; wanted a number of seconds, 0 or more")


def bench_models(
    names: Sequence[str],
    settings: BenchSettings,
    *,
    data: str | Path | None = None,
    on_turn: Callable[[str, float], object] = lambda *_: None,
) -> dict[str, Any]:
    """Count and measure networks in turns; return JSON values: `models`, `failed`, and how it was measured.

    names:   of timm's architectures, ours, runs, and files of published weights.
    data:    shards, for whose training images the hours of `settings.epochs` epochs are computed.
    on_turn: called before each turn with the network and the share that is done.

    Raises ValueError where a network cannot be opened, and where every one failed.
    """
    device = lone_device(settings.device)
    on_gpu = device.type == "cuda"
    if settings.memory_bytes is not None and on_gpu:
        raise ValueError("--memory bounds batches on a CPU; a GPU's own memory bounds them there, so leave it out")
    num_images = open_data(data).shards.num_samples["train"] if data is not None else None
    accuracies = _accuracies(names, settings.results)
    rows: dict[str, dict[str, Any]] = {}
    contenders: dict[str, Contender] = {}
    failed: dict[str, str] = {}
    for name in dict.fromkeys(names):
        for precision in dict.fromkeys(settings.precisions or ("bf16" if on_gpu else "float32",)):
            network, size = _open(name, settings)
            speed = SpeedSettings(
                device=device,
                image_size=size,
                batch_size=settings.batch_size or (GPU_BATCH if on_gpu else CPU_BATCH),
                precision=precision,
                channels_last=settings.channels_last,
                compile=settings.compile,
            )
            key = f"{name} {precision}"
            if not on_gpu and settings.fill is None and (problem := lacks_memory(network, speed)):
                failed[key] = problem
                continue
            stats = model_stats(network, size)
            try:
                speed, fitting = _fit(network, speed, settings)
            except (RuntimeError, ValueError) as error:  # the other networks are measured
                failed[key] = str(error).splitlines()[0]
                continue
            contenders[key] = Contender(network, speed)
            rows[key] = {
                **{"name": name, "precision": precision, "image_size": size},
                **{"num_parameters": stats.num_parameters, "num_flops": stats.num_flops, "num_macs": stats.num_macs},
                **{"num_activations": stats.num_activations, "batch_size": speed.batch_size, **fitting},
                **accuracies[name],
            }
    turns, num_turns = count(), settings.rounds * len(contenders)
    measured, failed_later = measure_speed(
        contenders,
        rounds=settings.rounds,
        seconds=settings.seconds,
        on_turn=lambda key: on_turn(key, next(turns) / num_turns),
    )
    failed |= failed_later
    if not measured:
        raise ValueError("; ".join(f"{key} failed: {why}" for key, why in failed.items()))
    models = [{**rows[key], **_summarize(rounds)} for key, rounds in measured.items()]
    if num_images is not None:
        for row in models:
            row["train_hours"] = num_images * settings.epochs / row["training_images_per_s"]["median"] / 3600
    return {
        "device": torch.cuda.get_device_name(device) if on_gpu else "cpu",
        "torch": torch.__version__,
        **{"channels_last": settings.channels_last, "compile": settings.compile},
        **{"rounds": settings.rounds, "seconds": settings.seconds, "fill": settings.fill},
        **({"epochs": settings.epochs, "num_train": num_images} if num_images is not None else {}),
        "models": models,
        "failed": failed,
    }


def _open(name: str, settings: BenchSettings) -> tuple[nn.Module, int]:
    """Return a network on the CPU, and the side of its images; raises ValueError for other classes than it has."""
    path = Path(name)
    has_weights = holds_weights(path)
    if has_weights or path.is_file() or (path / "config.yaml").is_file():
        if settings.num_classes is not None:
            kind = "a file of weights" if has_weights else "a run"
            raise ValueError(f"{name}: is {kind}, whose classes are fixed; leave --num-classes out")
        if has_weights:
            opened = open_model(path, architecture=settings.architecture)
            return opened.model, settings.image_size or opened.image_size
        saved = load_run(path)
        return saved.model, settings.image_size or saved.settings.image_size or 224
    return create_model_for(name, settings.image_size, settings.num_classes)


def _fit(network: nn.Module, speed: SpeedSettings, settings: BenchSettings) -> tuple[SpeedSettings, dict[str, int]]:
    """Return the settings with a batch that fits, and {largest_training_batch}, where that is known."""
    if speed.device.type == "cuda":
        return fit_batch(network, speed, num_images=settings.batch_size, fill=settings.fill)
    if settings.fill is None:
        return speed, {}
    num_bytes = free_bytes() if settings.memory_bytes is None else settings.memory_bytes
    largest = largest_batch(network, speed, num_bytes)
    if largest < LEAST:
        raise ValueError(
            f"not even {LEAST} images of {speed.image_size} pixels train in {num_bytes / 1e9:,.2f} GB; give more "
            "--memory or a smaller --image-size"
        )
    return speed.filled(settings.fill, min(largest, MOST)), {"largest_training_batch": min(largest, MOST)}


def _accuracies(names: Sequence[str], results: Sequence[tuple[str, Path]]) -> dict[str, dict[str, Any]]:
    """Return {semantic_top1, imagenet1k_top1} (percent) by network, as far as it was validated."""
    accuracies: dict[str, dict[str, Any]] = {}
    for name in names:
        metrics = Path(name) / "metrics.json"
        own = read_json(metrics) if metrics.is_file() else {}
        accuracies[name] = {"semantic_top1": own.get("semantic_top1")} if "semantic_top1" in own else {}
    for name, path in results:
        if name not in accuracies:
            raise ValueError(f"--results {name}={path}: {name} is none of the networks; wanted {', '.join(names)}")
        accuracies[name] |= _validated(path)
    return accuracies


def _validated(path: Path) -> dict[str, Any]:
    """Return the accuracy in what `in21k validate --json` printed; raises ValueError for anything else."""
    metrics: Mapping[str, Any] = read_json(path)
    if "semantic_top1" in metrics:
        return {"semantic_top1": metrics["semantic_top1"]}
    if "num_imagenet1k_classes" in metrics:
        return {"imagenet1k_top1": metrics["top1"]}
    raise ValueError(
        f"{path}: has neither a semantic top-1 nor ImageNet-1K's top-1; wanted what `in21k validate --json` prints"
    )


def _summarize(rounds: Rounds) -> dict[str, Any]:
    """Return the rates and latencies of a network's rounds, as JSON values."""
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
