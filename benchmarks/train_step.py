"""Our training step beside timm's, on the same network and batch: `python -m benchmarks.train_step [MODEL]`.

timm's is what its train.py does for a step: its loss, optimizer, scaler and meters, on batches that lie on the device.
Ours is the `Trainer` as `in21k train` runs it; once with the same loss, once with semantic softmax over the tree of
ImageNet-21K-P. They go in turns for some rounds; ratios are medians over the rounds, over 1 where ours is the faster.
"""

from __future__ import annotations

import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import timm
import torch
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import AverageMeter, NativeScaler
from torch import Tensor, nn

from in21k.datapipe.machine import synchronize
from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.shards import SemanticTree
from in21k.training import TrainSettings
from in21k.training.distributed import Ranks
from in21k.training.loop import Loader, Trainer
from in21k.training.losses.create import create_loss
from in21k.training.precision import resolve_amp
from in21k.training.tracker import Tracker

ROUNDS, LOG_INTERVAL = 7, 50
Steps = Callable[[int], None]


class OneBatch:
    """A loader that gives one batch over and over."""

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.batch = images, labels

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return itertools.repeat(self.batch)

    def __len__(self) -> int:
        return 10**9

    num_left = __len__

    def set_epoch(self, epoch: int) -> None:
        """There is but one."""

    def state_dict(self) -> dict[str, int]:
        """It is always the same place."""
        return {"epoch": 0, "samples": 0}

    def load_state_dict(self, state: dict[str, int]) -> None:
        """It is always the same place."""

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Name the batch."""
        return [str(state)]


def ours(model: nn.Module, settings: TrainSettings, tree: SemanticTree, loader: Loader, device: torch.device) -> Steps:
    """Return what takes a number of steps of our loop."""
    ranks = Ranks(device=device)
    trainer = Trainer(model, create_loss(settings, tree), settings, ranks)
    tracker = Tracker(ranks, [], None)

    def run(steps: int) -> None:
        trainer.settings = replace(settings, max_steps=trainer.position.step + steps)
        trainer.plan(loader)
        trainer.train_epoch(loader, tracker, lambda: None)

    return run


def timms(model: nn.Module, settings: TrainSettings, loader: OneBatch, device: torch.device) -> Steps:
    """Return what takes a number of steps as timm's train.py does."""
    layout = torch.channels_last if settings.channels_last else torch.contiguous_format
    model = model.to(device, memory_format=layout)
    network = torch.compile(model) if settings.compile else model
    criterion = LabelSmoothingCrossEntropy(settings.label_smoothing).to(device)
    optimizer = create_optimizer_v2(model, "sgd", lr=settings.lr, momentum=settings.momentum, weight_decay=5e-5)
    scaler = NativeScaler(device=device.type) if settings.amp == "fp16" else None
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(settings.amp)
    losses, data_time, update_time = AverageMeter(), AverageMeter(), AverageMeter()

    def run(steps: int) -> None:
        model.train()
        begun = time.time()
        for number, (images, labels) in enumerate(itertools.islice(loader, steps)):
            images, labels = images.to(device, memory_format=layout), labels.to(device)
            data_time.update(time.time() - begun)
            with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
                loss = criterion(network(images), labels)
            if scaler:
                scaler(loss, optimizer, parameters=model.parameters())
            else:
                loss.backward()
                optimizer.step()
            optimizer.zero_grad()
            if number % LOG_INTERVAL == 0:
                losses.update(loss.item(), len(labels))
            update_time.update(time.time() - begun)
            begun = time.time()

    return run


def step_settings(model: str, batch_size: int, image_size: int, device: torch.device) -> TrainSettings:
    """Return the settings that both loops train with; bf16 and channels_last on a GPU."""
    settings = TrainSettings(
        model=model,
        loss="cross-entropy",
        optimizer="sgd",
        lr=1e-3,
        weight_decay=5e-5,
        schedule="constant",
        warmup=0,
        batch_size=batch_size,
        image_size=image_size,
        channels_last=device.type == "cuda",
        epochs=1,
    )
    return resolve_amp(settings, device)


def one_batch(settings: TrainSettings, num_classes: int, device: torch.device) -> OneBatch:
    """Return a loader of one random batch on the device."""
    size = settings.image_size or 224
    images = torch.rand(settings.batch_size, 3, size, size, device=device)
    return OneBatch(images, torch.randint(num_classes, (settings.batch_size,), device=device))


def network(name: str, num_classes: int) -> nn.Module:
    """Return a network, always of the same weights."""
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=num_classes)


def rates_of(
    runs: dict[str, Steps], steps: int, batch_size: int, device: torch.device, rounds: int = ROUNDS
) -> dict[str, list[float]]:
    """Let the runs take their steps in turns, after 3 to warm up; return images/s by run and round."""
    rates: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run(3)
    for _ in range(rounds):
        for name, run in runs.items():
            synchronize(device.type)
            begun = time.perf_counter()
            run(steps)
            synchronize(device.type)
            rates[name].append(steps * batch_size / (time.perf_counter() - begun))
    return rates


def median_ratio(rates: list[float], base: list[float]) -> float:
    """Return the median over the rounds of one run's rate by another's."""
    return statistics.median(own / other for own, other in zip(rates, base, strict=True))


def main() -> None:
    """Print images a second and ratios."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    name = sys.argv[1] if len(sys.argv) > 1 else ("resnet50" if on_gpu else "resnet18")
    batch_size, image_size, steps = (256, 224, 50) if on_gpu else (32, 64, 10)
    tree = build_tree(read_classes("fall11p"))
    settings = step_settings(name, batch_size, image_size, device)
    loader = one_batch(settings, len(tree), device)
    semantic = replace(settings, loss="semantic")
    runs = {
        "timm's loop, cross-entropy": timms(network(name, len(tree)), settings, loader, device),
        "ours, cross-entropy": ours(network(name, len(tree)), settings, tree, loader, device),
        "ours, semantic": ours(network(name, len(tree)), semantic, tree, loader, device),
    }
    if on_gpu:
        compiled = replace(semantic, compile=True)
        runs["ours, semantic, compiled"] = ours(network(name, len(tree)), compiled, tree, loader, device)
    rates = rates_of(runs, steps, batch_size, device)
    hardware = torch.cuda.get_device_name() if on_gpu else f"CPU, {torch.get_num_threads()} threads"
    print(
        f"{name}, {len(tree):,} classes, batches of {batch_size} at {image_size} pixels, amp {settings.amp}, {hardware}"
    )
    first = next(iter(rates.values()))
    for label, own_rates in rates.items():
        print(f"{label:28}  {statistics.median(own_rates):8.1f} images/s  {median_ratio(own_rates, first):.2f}")
    print(json.dumps({label: statistics.median(own_rates) for label, own_rates in rates.items()}))


if __name__ == "__main__":
    main()
