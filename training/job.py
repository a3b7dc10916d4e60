"""A training job from its first check to the files it leaves."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..models.export import save_weights, timm_config
from ..models.zoo import check_image_size
from ..shards.files import whole_file, write_json
from ..shards.tree import SemanticTree
from .checkpoint import load_checkpoint, save_checkpoint, tree_content, tree_digest
from .distributed import Ranks
from .loop import Loader, Trainer
from .precision import resolve_amp
from .run_folder import FREE, RunFolder, open_run, run_config
from .semantic import SemanticSoftmaxLoss
from .settings import TrainSettings
from .tracker import JsonLog, Progress, Tracker

log = logging.getLogger(__name__)


def seed_everything(settings: TrainSettings) -> None:
    """Seed torch, and hold it to deterministic algorithms where the settings ask. Call it before building a model."""
    torch.manual_seed(settings.seed)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic


def create_loss(settings: TrainSettings, tree: SemanticTree) -> nn.Module:
    """Build the loss that the settings name: of float32 logits (B, num_classes) and labels (B,), a mean."""
    if settings.loss == "semantic":
        return SemanticSoftmaxLoss(tree, settings.label_smoothing)
    return nn.CrossEntropyLoss(label_smoothing=settings.label_smoothing)


def train(
    *,
    model: nn.Module,
    loss: nn.Module,
    loader: Loader,
    val_loader: Loader | None,
    tree: SemanticTree,
    settings: TrainSettings,
    folder: Path,
    ranks: Ranks | None = None,
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Train a model and leave a run folder; return what metrics.json holds.

    model:      on any device; its output is logits (B, len(tree)).
    val_loader: yields over all ranks each validation sample once; None: no validation, and no `best` checkpoint.
    settings:   with image_size filled in.
    folder:     the run's folder. A finished run of the same settings is left alone, an unfinished one goes on after its
                last whole epoch, one of other settings is refused unless `overwrite`.
    data:       plain facts of the data set (fingerprint, counts); they go into config.yaml, equal ones may go on.

    Raises ValueError where folder, model and data do not fit together, NonFiniteLossError (a ValueError) where the loss
    is lost.
    """
    ranks = ranks or Ranks()
    settings = resolve_amp(settings, ranks.device)
    config = run_config(settings, data or {}, ranks.world_size)
    total_steps = _check(model, loader, tree, settings)
    facts = {name: value for name, value in config.items() if name not in FREE}
    ranks.check_alike({**facts, "tree": tree_digest(tree), "torch": torch.__version__})
    with open_run(folder, config, ranks, overwrite=overwrite) as run:
        finished, begun = run.finished, run.last.exists()
        ranks.barrier()  # no rank may look after another has gone on
        if finished:
            log.info("%s: this run is finished already", folder)
            return run.metrics()
        trainer = Trainer(model, loss, settings, ranks)
        if begun:
            _go_on(trainer, loader, run)
        position = trainer.position
        if ranks.is_first:
            tree.save(run.path / "tree.json")
            if progress:
                progress.on_start(position.step, total_steps)
        lines = JsonLog(run.path / "log.jsonl", after_step=position.step) if ranks.is_first else None
        tracker = Tracker(ranks, lines, progress)

        while position.step < total_steps:
            trainer.train_epoch(loader, total_steps, tracker)
            better, ends = False, position.step == total_steps
            if val_loader is not None and (ends or position.epoch % settings.validate_every_epochs == 0):
                better = trainer.validate(val_loader, tree, tracker)
            state = trainer.state_dict()
            if ranks.is_first:
                content = {**state, "loader": loader.state_dict(), "config": config, "tree": tree_content(tree)}
                if better:  # before `last`: a kill between the two repeats the epoch and finds it the best again
                    save_checkpoint(run.best, content)
                save_checkpoint(run.last, content)

        if ranks.is_first:
            _finish(trainer, tree, run)
        ranks.barrier()
        return run.metrics()


def _check(model: nn.Module, loader: Loader, tree: SemanticTree, settings: TrainSettings) -> int:
    """Return the number of steps of the whole run; raises ValueError where model, data and settings do not fit."""
    num_outputs = getattr(model, "num_classes", len(tree))
    if num_outputs != len(tree):
        raise ValueError(f"the model has {num_outputs} classes, the data set {len(tree)}; wanted equally many")
    if settings.image_size is not None:
        check_image_size(model, settings.image_size)
    if not len(loader):
        raise ValueError(
            f"the training images do not fill one batch of {settings.batch_size} on each rank; "
            "give a smaller --set batch_size"
        )
    steps = settings.epochs * len(loader)
    return min(steps, settings.max_steps or steps)


def _go_on(trainer: Trainer, loader: Loader, run: RunFolder) -> None:
    state = load_checkpoint(run.last)
    trainer.load_state_dict(state)
    loader.load_state_dict(state["loader"])
    log.info("%s: going on after epoch %d, step %d", run.path, trainer.position.epoch, trainer.position.step)


def _finish(trainer: Trainer, tree: SemanticTree, run: RunFolder) -> None:
    """Write what timm loads, and metrics.json last: it says that the run is finished."""
    settings, position = trainer.settings, trainer.position
    with whole_file(run.path / "model.safetensors") as aside:
        save_weights(trainer.model, aside)
    config = timm_config(
        trainer.model,
        architecture=settings.model,
        model_args=settings.model_args,
        image_size=settings.image_size or 224,
        normalize=settings.normalize,
        wnids=tree.wnids,
        names=tree.names,
    )
    write_json(run.path / "config.json", config)
    metrics: dict[str, Any] = {"num_epochs": position.epoch, "num_steps": position.step}
    if position.validation is not None:
        metrics |= position.validation
        metrics |= {"best_semantic_top1": position.best, "best_epoch": position.best_epoch}
    write_json(run.path / "metrics.json", metrics)
