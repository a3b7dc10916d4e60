"""The training loop: fetch, forward, backward, schedule, step, log, save."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grad_norm_, get_total_norm

from ..models.zoo import checkpoint_gradients, synchronize_batch_norms
from ..shards.tree import SemanticTree
from .distributed import Ranks
from .ema import MovingAverage
from .evaluation.validate import evaluate
from .optim import create_optimizer, scaled_lr, set_lr
from .precision import autocast, create_scaler
from .schedule import learning_rate_share
from .settings import TrainSettings
from .tracker import Batch, Tracker

# Mixes a batch: images, labels, epoch, and its number in the epoch (0..). Returns images, and (labels, other labels,
# the share of the first) of all.
Mix = Callable[[Tensor, Tensor, int, int], tuple[Tensor, tuple[Tensor, Tensor, float]]]


class Loader(Protocol):
    """Where batches come from: images (B, 3, H, W) and labels int64 (B,), on any device."""

    def __iter__(self) -> Iterator[Batch]:
        """Yield the batches that are left of the epoch."""
        ...

    def __len__(self) -> int:
        """Return the number of batches of a whole epoch on each rank."""
        ...

    def num_left(self) -> int:
        """Return the number of batches that are left of the epoch."""
        ...

    def set_epoch(self, epoch: int) -> None:
        """Pick an epoch (0..); another one than the current begins at its first sample."""
        ...

    def state_dict(self) -> dict[str, int]:
        """Return the place as {epoch, samples (handed out in it, to all ranks)}; ValueError: it has none to go on from.

        `load_state_dict` takes it up.
        """
        ...

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Take up a place."""
        ...

    def describe_batch(self, state: dict[str, int]) -> list[str]:
        """Name the samples of this rank's batch at a place."""
        ...


@dataclass
class Position:
    """Where a run stands: finished epochs and steps, its best headline (percent), its last validation."""

    epoch: int = 0
    step: int = 0
    best: float | None = None
    best_epoch: int | None = None
    validation: dict[str, Any] | None = None


class Measure(NamedTuple):
    """How good a model is: what `evaluate` returns, as a validation's line has it, of which `headline` ranks models."""

    headline: str
    evaluate: Callable[..., dict[str, Any]]


SEMANTIC = Measure("semantic_top1", evaluate)


class Trainer:
    """A model on its way through the epochs: everything a step changes, and a checkpoint holds.

    model:        goes to the ranks' device.
    criterion:    takes logits (B, C) and labels (B,), gives a scalar that is a mean over the batch.
    settings:     settings.amp is resolved (no `auto`).
    teacher, distillation: who is distilled, on the ranks' device, from images to logits (B, C); and the loss of
                  (logits, the teacher's).
    mix:          what mixes batches.
    measure:      what validation measures, by the arguments of `evaluation.evaluate`.
    """

    def __init__(
        self,
        model: nn.Module,
        criterion: nn.Module,
        settings: TrainSettings,
        ranks: Ranks,
        *,
        teacher: nn.Module | None = None,
        distillation: nn.Module | None = None,
        mix: Mix | None = None,
        measure: Measure = SEMANTIC,
    ) -> None:
        self.settings, self.ranks, self.position = settings, ranks, Position()
        self.measure = measure
        self._layout = torch.channels_last if settings.channels_last else torch.preserve_format
        self.model = _prepared(model, settings, ranks).to(memory_format=self._layout)  # pyright: ignore[reportCallIssue]
        self.ema = MovingAverage(self.model, settings.ema) if settings.ema else None
        self._criterion = criterion.to(ranks.device)
        self._teacher, self._mix = teacher, mix
        self._distillation = distillation.to(ranks.device) if distillation else None
        self._optimizer = create_optimizer(self.model, settings)
        self._scaler = create_scaler(ranks.device, settings.amp)
        self._distributed, self._network = _network(self.model, settings, ranks)
        self._total = self._span = 0
        self._lr = scaled_lr(settings, ranks.world_size * settings.batch_size * settings.accumulate)

    def plan(self, loader: Loader) -> int:
        """Find out how many steps the run has in all, those that are done included; the loader is at its place.

        After a change of the number of ranks what is left has another number of steps: the schedule then spans as many
        as a run of these ranks alone would have, and ends with the last.
        """
        settings, position = self.settings, self.position
        per_epoch = len(loader) // settings.accumulate
        epochs_left = settings.epochs - position.epoch
        left = loader.num_left() // settings.accumulate + (epochs_left - 1) * per_epoch if epochs_left > 0 else 0
        self._total, self._span = position.step + left, settings.epochs * per_epoch
        if settings.max_steps:
            self._total, self._span = min(self._total, settings.max_steps), min(self._span, settings.max_steps)
        return self._total

    def train_epoch(self, loader: Loader, tracker: Tracker, save: Callable[[], None]) -> bool:
        """Take the steps that are left of an epoch; return whether it is whole, and not stopped on the way."""
        settings, position = self.settings, self.position
        steps = min(loader.num_left() // settings.accumulate, self._total - position.step)
        begun_at = len(loader) - loader.num_left()
        self.model.train()
        batches = tracker.watch(loader)
        for first in range(begun_at, begun_at + steps * settings.accumulate, settings.accumulate):
            place = place_of(loader)
            self._optimizer.zero_grad()
            losses = [self._backward(*next(batches), first, turn) for turn in range(settings.accumulate)]
            norm = self._gradient_norm()
            lr = self._lr * learning_rate_share(settings, position.step + self._span - self._total, self._span)
            set_lr(self._optimizer, lr)
            self._scaler.step(self._optimizer)
            self._scaler.update()
            position.step += 1
            rates = {"lr": lr}
            if self.ema:
                self.ema.update(position.step)
                rates["ema_decay"] = self.ema.decay_at(position.step)

            means = {name: torch.stack([batch[name] for batch in losses]).mean() for name in losses[0]}
            images = settings.accumulate * settings.batch_size
            scalars = means | {"grad_norm": norm}
            tracker.add_step(position.step, position.epoch, rates, scalars, images=images, place=place)
            due = bool(settings.save_every_steps) and position.step % settings.save_every_steps == 0
            if (due or tracker.due) and tracker.tell():
                return False
            if due:
                save()
        return not tracker.tell()

    def _backward(self, images: Tensor, labels: Tensor, first: int, turn: int) -> dict[str, Tensor]:
        """Add the gradient of the step's batch of that turn, counted from `first`; return its losses, scalars."""
        settings, device = self.settings, self.ranks.device
        images = images.to(device, non_blocking=True, memory_format=self._layout)
        labels = labels.to(device, non_blocking=True)
        mixed = (labels, labels, 1.0)
        if self._mix:
            images, mixed = self._mix(images, labels, self.position.epoch, first + turn)
        with self._no_sync(last=turn == settings.accumulate - 1):
            with autocast(device, settings.amp):
                taught = self._teacher(images) if self._teacher else None
                # As late as can be: what the loader, mixing, the teacher and validation draw changes nothing.
                _seed_forward(settings.seed, self.position.step, turn, self.ranks.rank)
                logits: Tensor = self._network(images)
            losses = self._losses(logits, mixed, taught)
            self._scaler.scale(losses["loss"] / settings.accumulate).backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def _losses(self, logits: Tensor, mixed: tuple[Tensor, Tensor, float], taught: Tensor | None) -> dict[str, Tensor]:
        labels, others, share = mixed
        loss: Tensor = self._criterion(logits, labels)
        if share < 1:
            loss = share * loss + (1 - share) * self._criterion(logits, others)
        if taught is None or self._distillation is None:
            return {"loss": loss}
        distilled: Tensor = self._distillation(logits, taught)
        return {"loss": loss + self.settings.kd_weight * distilled, "label_loss": loss, "kd_loss": distilled}

    def _gradient_norm(self) -> Tensor:
        """Clip the gradient, where asked; return the norm that it had."""
        self._scaler.unscale_(self._optimizer)
        parameters = [parameter for parameter in self.model.parameters() if parameter.grad is not None]
        if self.settings.clip_grad is not None:
            return clip_grad_norm_(parameters, self.settings.clip_grad)
        return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])

    def _no_sync(self, *, last: bool) -> AbstractContextManager[Any]:
        return nullcontext() if last or self._distributed is None else self._distributed.no_sync()

    def validate(self, loader: Loader, tree: SemanticTree, tracker: Tracker) -> bool:
        """Measure the model as it is, and its moving average; return whether it is the best so far.

        Where there is a moving average, the best is the best of its.
        """
        position = self.position
        headline = self.measure.headline
        measure = partial(self.measure.evaluate, loader=loader, tree=tree, amp=self.settings.amp, ranks=self.ranks)
        self.share_buffers()
        position.validation = measure(self.model)
        reached: float = position.validation[headline]
        if self.ema:
            position.validation["ema"] = measure(self.ema.module)
            reached = position.validation["ema"][headline]
        # Rank 0 decides: ranks on different machines may round a metric differently.
        better = self.ranks.gather_json(position.best is None or reached > position.best)[0]
        if better:
            position.best, position.best_epoch = reached, position.epoch - 1
        tracker.add_validation(position.step, position.epoch - 1, position.validation)
        return better

    def share_buffers(self) -> None:
        """Give all ranks rank 0's buffers, before these are used or saved; in steps each rank has its own."""
        self.ranks.copy_buffers(self.model)
        if self.ema:
            self.ema.copy_counters()
            self.ranks.copy_buffers(self.ema.module)

    def is_out_of_patience(self) -> bool:
        """Tell whether the last validation came settings.patience epochs, or more, after the best one."""
        patience, best_epoch = self.settings.patience, self.position.best_epoch
        if patience is None or best_epoch is None:
            return False
        num_validated = self.position.epoch - self.position.epoch % self.settings.validate_every_epochs
        return num_validated - 1 - best_epoch >= patience

    def state_dict(self) -> dict[str, Any]:
        """Return everything a run needs to resume; random draws come from the number of the step."""
        return {
            "position": dict(vars(self.position)),
            "model": self.model.state_dict(),
            "ema": self.ema.module.state_dict() if self.ema else None,
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there."""
        self.position = Position(**state["position"])
        self.model.load_state_dict(state["model"])
        if self.ema:
            self.ema.module.load_state_dict(state["ema"])
        self._optimizer.load_state_dict(state["optimizer"])
        self._scaler.load_state_dict(state["scaler"])


def place_of(loader: Loader) -> dict[str, int] | None:
    """Return a loader's place; None where it has none to go on from."""
    try:
        return loader.state_dict()
    except ValueError:
        return None


def _prepared(model: nn.Module, settings: TrainSettings, ranks: Ranks) -> nn.Module:
    """Bring a model to its device, in the forms that the settings ask for; raises ValueError where it has none."""
    if settings.grad_checkpointing:
        checkpoint_gradients(model, settings.model)
    if settings.sync_bn and ranks.world_size > 1:
        if ranks.device.type == "cpu":
            raise ValueError("sync_bn needs GPUs, and these ranks are on the CPU; leave it off")
        model = synchronize_batch_norms(model)
    return model.to(ranks.device)


def _network(
    model: nn.Module, settings: TrainSettings, ranks: Ranks
) -> tuple[DistributedDataParallel | None, Callable[[Tensor], Tensor] | Any]:
    """Return the model as all ranks share it, and as it is called."""
    distributed = None
    if ranks.world_size > 1:
        # A graph is static where each backward pass ends in a reduction, which accumulated ones do not.
        distributed = DistributedDataParallel(
            model,
            gradient_as_bucket_view=True,
            static_graph=settings.accumulate == 1,
            broadcast_buffers=False,  # at each forward pass; see `Trainer.share_buffers`
        )
    network = distributed or model
    return distributed, torch.compile(network) if settings.compile else network


def _seed_forward(seed: int, step: int, turn: int, rank: int) -> None:
    """Seed torch for one forward pass, so that dropout and the like draw the same after any number of resumes."""
    words = np.random.SeedSequence([seed, step, turn, rank]).generate_state(1, np.uint64)
    torch.manual_seed(int(words[0]) >> 1)
