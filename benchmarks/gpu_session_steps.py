"""The measured steps of `benchmarks.gpu_session`: each prints a JSON line for each result as soon as it has it.

On the CPU they run with tiny sizes, which show that they run and no more.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner
from torch import Tensor
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from in21k.cli.main import cli
from in21k.datapipe import create_loader
from in21k.datapipe.catalog import AUGMENTATIONS
from in21k.datapipe.create import unavailable
from in21k.datapipe.loader import Loader
from in21k.datapipe.machine import synchronize
from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.preprocess.sample_data.archive import write_sample_archive
from in21k.shards import ShardSet, open_dataset

from .loaders import hardware, make_shards
from .semantic_loss import compare, make_batch, ways
from .train_step import Steps, median_ratio, network, one_batch, ours, rates_of, step_settings, timms

Results = Iterator[dict[str, Any]]
PROFILED_STEPS = 3
# On the CPU these stand in; they take images of 160 pixels.
SMALL_MODELS = {"resnet50": "test_resnet", "vit_base_patch16_224": "test_vit"}


def machine(options: argparse.Namespace) -> Results:
    """Say what the machine is."""
    gpu = options.device == "cuda" and torch.cuda.is_available()
    yield {
        "date": datetime.now(UTC).date().isoformat(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "gpu_memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1) if gpu else None,
        "dali": next(
            (
                f"{name[12:]} {dist.version}"
                for dist in metadata.distributions()
                if (name := dist.name).startswith("nvidia-dali-")
            ),
            None,
        ),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "timm": metadata.version("timm"),
        "python": platform.python_version(),
        "cores": len(os.sched_getaffinity(0)),
        "hardware": hardware(),
    }


def doctor(options: argparse.Namespace) -> Results:  # noqa: ARG001 – every step takes them
    """Say what `in21k doctor` says."""
    answer = CliRunner().invoke(cli, ["doctor", "--json"], catch_exceptions=False)
    if answer.exit_code:
        raise ValueError(f"in21k doctor ended with code {answer.exit_code}: {answer.output}")
    yield json.loads(answer.stdout)


def semantic_loss(options: argparse.Namespace) -> Results:
    """Measure the losses beside torch's cross-entropy, over 21K-P's classes."""
    on_gpu = options.device == "cuda"
    tree = build_tree(read_classes("fall11p"))
    logits, teacher, labels = (tensor.to(options.device) for tensor in make_batch(tree, 256 if on_gpu else 4))
    for dtype in (torch.float32, torch.bfloat16) if on_gpu else (torch.float32,):
        compared = ways(tree, labels, teacher.to(dtype))
        for timing in compare(compared, logits.to(dtype).requires_grad_(), rounds=20 if on_gpu else 2):
            yield {"dtype": str(dtype).removeprefix("torch."), **rounded(timing._asdict())}


def train_step(options: argparse.Namespace) -> Results:
    """Measure training steps beside timm's loop, with channels_last and compile on and off; compiled ones come last."""
    on_gpu, device = options.device == "cuda", torch.device(options.device)
    tree = build_tree(read_classes("fall11p"))
    batch_size, image_size, steps, rounds = (256, 224, 8, 3) if on_gpu else (2, 160, 1, 1)
    model = options.model if on_gpu else SMALL_MODELS[options.model]
    base = step_settings(model, batch_size, image_size, device)
    loader = one_batch(base, len(tree), device)
    for compiled in (False, True) if on_gpu else (False,):
        for channels_last in (False, True):
            settings = replace(base, compile=compiled, channels_last=channels_last)
            runs = {
                "timm": timms(network(model, len(tree)), settings, loader, device),
                "in21k": ours(network(model, len(tree)), settings, tree, loader, device),
            }
            if on_gpu:
                torch.cuda.reset_peak_memory_stats()
            rates = rates_of(runs, steps, batch_size, device, rounds)
            yield {
                "model": model,
                "amp": settings.amp,
                "channels_last": channels_last,
                "compile": compiled,
                **{f"{name}_images_per_s": round(statistics.median(own), 1) for name, own in rates.items()},
                "ratio": round(median_ratio(rates["in21k"], rates["timm"]), 3),
                **profile_steps(runs["in21k"], device),
                "peak_memory_gb": round(torch.cuda.max_memory_allocated() / 1e9, 2) if on_gpu else None,
            }
            del runs


def profile_steps(run: Steps, device: torch.device) -> dict[str, Any]:
    """Return of some steps: kernels a step and the share of time without one, on a GPU; operators a step on a CPU."""
    on_gpu = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities, acc_events=True) as profiled:
        run(PROFILED_STEPS)
        synchronize(device.type)
    events = profiled.events() or []
    if not on_gpu:
        operators = sum(event.name.startswith("aten::") for event in events)
        return {"operators_per_step": round(operators / PROFILED_STEPS)}
    spans = [
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.device_type == DeviceType.CUDA and not event.is_user_annotation and not event.name.startswith("Mem")
    ]
    return {
        "kernels_per_step": round(len(spans) / PROFILED_STEPS),
        "gap_share": round(gap_share(spans), 4),
    }


def gap_share(spans: Sequence[tuple[float, float]]) -> float:
    """Return the share of the time from the first span's start to the last one's end that no span covers.

    >>> gap_share([(0, 2), (1, 4), (6, 8)])
    0.25
    """
    ordered = sorted(spans)
    if not ordered:
        return 0.0
    covered, end = 0.0, ordered[0][0]
    for begin, stop in ordered:
        covered += max(0.0, stop - max(begin, end))
        end = max(end, stop)
    return 1 - covered / max(end - ordered[0][0], 1e-9)


def shards(options: argparse.Namespace) -> Results:
    """Make the shards that loaders read, once for all parts: of the pack's images, or of drawn ones."""
    out = options.work / "shards"
    if not out.exists():
        options.work.mkdir(parents=True, exist_ok=True)
        archive = options.work / "images.tar"
        if not archive.is_file():
            few = options.device == "cpu"
            write_sample_archive(archive, num_classes=8 if few else 24, images_per_class=3 if few else 60)
        with tempfile.TemporaryDirectory(dir=options.work) as folder:
            make_shards(Path(folder), archive, copies=1 if options.device == "cpu" else 20)
            (Path(folder) / "shards").rename(out)
    opened = open_dataset(out)
    yield {"num_samples": opened.num_samples["train"], "mean_bytes": round(opened.split("train").num_bytes.mean())}


def open_loader(opened: ShardSet, backend: str, options: argparse.Namespace, **settings: Any) -> Loader:
    """Return a loader of 224-pixel batches on the device of the step."""
    return create_loader(opened, split="train", backend=backend, image_size=224, device=options.device, **settings)


def rates(options: argparse.Namespace) -> Results:
    """Measure loaders by batch size and augmentation, and dali_gpu by the hardware decoder's share of the JPEGs."""
    opened, on_gpu = open_dataset(options.work / "shards"), options.device == "cuda"
    seconds = 1.5 if on_gpu else 0.1
    for backend in options.backend:
        if reason := unavailable(backend):
            yield {"backend": backend, "left_out": reason}
            continue
        loads = (0.0, 0.5, 0.65, 0.8, 1.0) if backend == "dali_gpu" else ()
        cases: list[dict[str, Any]] = [
            *({"batch_size": 256, "augment": "none", "hw_decoder_load": load} for load in loads),
            *(
                {"batch_size": batch_size, "augment": augment}
                for batch_size in ((256, 64) if backend == "dali_gpu" else (256 if on_gpu else 4,))
                for augment in (AUGMENTATIONS if backend == "dali_gpu" else ("none", "inception"))
            ),
        ]
        for case in cases:
            for dtype in (torch.float32, torch.uint8) if backend != "dali_gpu" else (torch.float16,):
                extra = {"dtype": dtype, "normalize": None if dtype == torch.uint8 else "unit"}
                loader = open_loader(opened, backend, options, **case, **extra)
                rate = loader_rate(loader, seconds, options.device)
                loader.close()
                yield {"backend": backend, **case, "dtype": str(dtype)[6:], "images_per_s": round(rate, 1)}


def loader_rate(loader: Loader, seconds: float, device: str) -> float:
    """Return images/s over at least that many seconds, after some batches; the GPU has them when a time is taken."""
    batches = iter(Endless(loader))
    for _ in range(4):
        next(batches)
    synchronize(device)
    begun, images = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        images += len(next(batches)[1])
    synchronize(device)
    return images / (time.perf_counter() - begun)


class Endless:
    """A loader whose epochs follow one another without an end, as one epoch."""

    def __init__(self, loader: Loader) -> None:
        self._loader, self._epoch = loader, 0
        self._batches = self._all()

    def _all(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            self._loader.set_epoch(self._epoch)
            yield from self._loader
            self._epoch += 1

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._batches

    def __len__(self) -> int:
        return 10**9

    num_left = __len__

    def set_epoch(self, epoch: int) -> None:
        """Its epochs follow one another by themselves."""

    def state_dict(self) -> dict[str, int]:
        """Return a position that nothing resumes from."""
        return {"epoch": 0, "samples": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """It does not resume."""

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Name the position."""
        return [str(state)]


def train_fed(options: argparse.Namespace) -> Results:
    """Train 200 steps from a loader, and the same steps on one batch that stays on the device, in turns."""
    on_gpu, device = options.device == "cuda", torch.device(options.device)
    opened = open_dataset(options.work / "shards")
    name, batch_size, steps, rounds = ("resnet50", 256, 50, 4) if on_gpu else ("test_resnet", 4, 1, 1)
    # dali_gpu needs a GPU: elsewhere the step shows that it runs with the fastest backend that does.
    backend = options.backend[0] if on_gpu else "auto"
    settings = step_settings(name, batch_size, 224, device)
    tree = opened.tree
    layout = {"channels_last": settings.channels_last, "dtype": torch.float16 if on_gpu else torch.float32}
    loader = open_loader(opened, backend, options, batch_size=batch_size, augment="inception", **layout)
    resident = one_batch(settings, len(tree), device)
    runs = {
        "resident": ours(network(name, len(tree)), settings, tree, resident, device),
        "fed": ours(network(name, len(tree)), settings, tree, Endless(loader), device),
    }
    measured = rates_of(runs, steps, batch_size, device, rounds)
    loader.close()
    yield {
        "model": name,
        "backend": backend,
        "steps": steps * rounds,
        **{f"{way}_images_per_s": round(statistics.median(own), 1) for way, own in measured.items()},
        "ratio": round(median_ratio(measured["fed"], measured["resident"]), 3),
    }


def rounded(values: dict[str, Any]) -> dict[str, Any]:
    """Return numbers with four decimals."""
    return {name: round(value, 4) if isinstance(value, float) else value for name, value in values.items()}


STEPS = {
    "machine": machine,
    "doctor": doctor,
    "semantic-loss": semantic_loss,
    "train-step": train_step,
    "shards": shards,
    "rates": rates,
    "train-fed": train_fed,
}


def main(words: Sequence[str] | None = None) -> None:
    """Run one step."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("step", choices=list(STEPS))
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--work", type=Path, required=True, help="where the shards are")
    parser.add_argument("--model", default="resnet50")
    parser.add_argument("--backend", action="append", default=[])
    options = parser.parse_args(words)
    for result in STEPS[options.step](options):
        print(json.dumps(result), flush=True)


if __name__ == "__main__":
    main()
