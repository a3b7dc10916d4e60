"""The training loop: fetch, forward, backward, schedule, step, log, save."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_

from ..shards.tree import SemanticTree
from .checkpoint import random_state, restore_random_state
from .distributed import Ranks
from .evaluation.validate import evaluate
from .optim import create_optimizer
from .precision import autocast, create_scaler
from .schedule import one_cycle
from .settings import TrainSettings
from .tracker import Batch, Tracker


class Loader(Protocol):
    """Where batches come from: images (B, 3, H, W) and labels int64 (B,), on any device."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches of the epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of batches of an epoch on each rank."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Begin that epoch (0..) at its first sample."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Return the position as plain values."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take up a position."""
        ...


@dataclass
class Position:
    """Where a run stands: finished epochs and steps, its best semantic top-1 (percent), its last validation."""

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    validation: dict[str, Any] | None = None


class Trainer:
    """A model on its way through the epochs: everything a step changes, and a checkpoint holds.

    model, criterion: go to the ranks' device; the criterion takes float32 logits (B, C) and labels (B,), gives a scalar
    that is a mean over the batch. settings.amp is resolved (no `auto`).
    """

    def __init__(self, model: nn.Module, criterion: nn.Module, settings: TrainSettings, ranks: Ranks) -> None:
        self.settings, self.ranks, self.position = settings, ranks, Position()
        self._layout = torch.channels_last if settings.channels_last else torch.preserve_format
        self.model = model.to(ranks.device).to(memory_format=self._layout)  # pyright: ignore[reportCallIssue]
        self._criterion = criterion.to(ranks.device)
        self._optimizer = create_optimizer(self.model, settings)
        self._scaler = create_scaler(ranks.device, settings.amp)
        self._network = DistributedDataParallel(self.model) if ranks.world_size > 1 else self.model
        torch.manual_seed(settings.seed * 1_000_003 + ranks.rank)  # so that the ranks' dropout differs

    def train_epoch(self, loader: Loader, total_steps: int, tracker: Tracker) -> None:
        """Take the steps of one epoch, or those that are left of `total_steps`."""
        settings, position, device = self.settings, self.position, self.ranks.device
        begun_at = position.step
        loader.set_epoch(position.epoch)
        self._network.train()
        for images, labels in tracker.watch(islice(loader, total_steps - position.step)):
            images = images.to(device, non_blocking=True, memory_format=self._layout)
            labels = labels.to(device, non_blocking=True)

            with autocast(device, settings.amp):
                logits: Tensor = self._network(images)
            loss: Tensor = self._criterion(logits.float(), labels)

            self._optimizer.zero_grad()
            self._scaler.scale(loss).backward()
            if settings.clip_grad is not None:
                self._scaler.unscale_(self._optimizer)
                clip_grad_norm_(self.model.parameters(), settings.clip_grad)

            lr = settings.lr * one_cycle(position.step, total_steps, settings.warmup)
            for group in self._optimizer.param_groups:
                group["lr"] = lr
            self._scaler.step(self._optimizer)
            self._scaler.update()

            position.step += 1
            tracker.add_step(position.step, position.epoch, loss, lr, num_images=len(labels))
        if position.step == begun_at:
            raise RuntimeError(f"the loader promised {len(loader)} batches an epoch and gave none")
        self.ranks.copy_buffers(self.model)
        position.epoch += 1

    def validate(self, loader: Loader, tree: SemanticTree, tracker: Tracker) -> bool:
        """Measure the model as it is; return whether it is the best so far."""
        position = self.position
        position.validation = evaluate(self.model, loader, tree, amp=self.settings.amp, ranks=self.ranks)
        reached: float = position.validation["semantic_top1"]
        better = position.best is None or reached > position.best
        if better:
            position.best, position.best_epoch = reached, position.epoch - 1
        tracker.add_validation(position.step, position.epoch - 1, position.validation)
        return better

    def state_dict(self) -> dict[str, Any]:
        """Return everything a run needs to go on; all ranks have to ask."""
        return {
            "position": dict(vars(self.position)),
            "model": self.model.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "random": random_state(self.ranks),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.position = Position(**state["position"])
        self.model.load_state_dict(state["model"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])
        restore_random_state(state["random"], self.ranks)
