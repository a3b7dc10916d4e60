"""One training run, from its first check to the files that it leaves."""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..models.export import save_weights
from ..shards.files.atomic import whole_file, write_json
from ..shards.tree import SemanticTree
from .distill import Teacher, self_test
from .distributed import Ranks
from .evaluation.multilabel import evaluate_labels
from .evaluation.validate import evaluate
from .init_weights import check_network
from .logs import check_trackers, open_logs
from .loop import Loader, Measure, Mix, Trainer, place_of
from .losses.create import create_distillation, create_loss, trains_inner
from .metric_names import best_metric
from .precision import resolve_amp
from .runs.checkpoint import (
    keep_checkpoints,
    newest_checkpoint,
    open_parts,
    parse_checkpoint,
    save_checkpoint,
    tree_content,
    tree_digest,
)
from .runs.run_folder import (
    RESUMABLE_SETTINGS,
    RESUMABLE_UNLESS_DETERMINISTIC,
    RunFolder,
    network_config,
    open_run,
    run_config,
)
from .schedule import count_steps
from .settings import TrainSettings
from .signals import StopRequests
from .tracker import NonFiniteLossError, Progress, Tracker

log = logging.getLogger(__name__)


def seed_everything(settings: TrainSettings) -> None:
    """Seed torch, and hold it to deterministic algorithms where the settings ask.

    Call it before anything computes on a GPU, a teacher included, and before building the model.
    """
    torch.manual_seed(settings.seed)
    if settings.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS reads it when it starts
    torch.use_deterministic_algorithms(settings.deterministic)
    torch.backends.cudnn.benchmark = not settings.deterministic


@dataclass(frozen=True)
class Stopped:
    """A run that a signal stopped: after which step, of how many. The same call or command resumes it."""

    step: int
    num_steps: int


def train_model(
    *,
    model: nn.Module,
    loader: Loader,
    val_loader: Loader | None,
    tree: SemanticTree,
    settings: TrainSettings,
    folder: Path,
    ranks: Ranks | None = None,
    teacher: Teacher | None = None,
    mix: Mix | None = None,
    label_sets: Tensor | None = None,
    data: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    progress: Progress | None = None,
) -> dict[str, Any] | Stopped:
    """Train a model and leave a run folder; return what metrics.json holds, or where a signal stopped it.

    model:      on any device; its output is logits (B, len(tree)).
    val_loader: yields over all ranks each validation sample once; None: no validation, and no `best` checkpoint.
    settings:   with image_size filled in.
    folder:     the run's folder. A finished run of the same settings is left alone, an unfinished one resumes after its
                last checkpoint, one of other settings is refused unless `overwrite`.
    teacher:    the teacher for distillation, on the ranks' device; it is tested before the first step.
    mix:        mixes batches (`in21k.datapipe.augment.mixup`).
    label_sets: of images with several labels, bool (num_sets, len(tree)): the loaders' labels are numbers of its rows,
                validation measures what `evaluate_labels` does, and the best is by the mean average precision.
    data:       plain facts of the data set (fingerprint, counts); they go into config.yaml, equal ones may go on.

    Raises ValueError where folder, model and data do not fit together, and NonFiniteLossError (a ValueError) when the
    loss becomes NaN or infinite; nonfinite.json then names the batch.
    """
    ranks = ranks or Ranks()
    settings = resolve_amp(settings, ranks.device)
    facts = {"label_sets": len(label_sets)} if label_sets is not None else {}
    config = run_config(settings, {**facts, **(data or {})}, ranks.world_size)
    _check(model, loader, val_loader, tree, settings, ranks)
    free = (*RESUMABLE_SETTINGS, *(() if settings.deterministic else RESUMABLE_UNLESS_DETERMINISTIC))
    fixed = {name: value for name, value in config.items() if name not in free}
    versions = {name: version(name) for name in ("in21k", "torch", "timm")}
    ranks.check_alike({**fixed, "tree": tree_digest(tree), **versions})
    trainer = Trainer(
        model,
        create_loss(settings, tree, label_sets),
        settings,
        ranks,
        teacher=teacher,
        distillation=create_distillation(settings, tree) if teacher else None,
        mix=mix,
        measure=_measure_of(settings, tree, label_sets),
    )
    if teacher and (overwrite or not ranks.from_first(RunFolder(folder).last.exists)):
        tested, split = (val_loader, "validation") if val_loader is not None else (loader, "training")
        self_test_result = self_test(teacher, tested, tree, split=split, amp=settings.amp, ranks=ranks)
        log.log(logging.INFO if ranks.is_first else logging.DEBUG, "%s", self_test_result)
    with StopRequests() as stop_requests, open_run(folder, config, ranks, overwrite=overwrite) as run:
        if _is_finished(run, ranks):
            log.info("%s: this run is finished already", folder)
            return ranks.from_first(run.metrics)
        _resume(trainer, loader, run)
        return _run(trainer, loader, val_loader, tree, run, config, progress, stop_requests)


def _is_finished(run: RunFolder, ranks: Ranks) -> bool:
    """Return whether rank 0's folder holds a finished run; raises ValueError where it lacks what another rank's has."""
    held = ranks.gather_json([run.finished, run.last.exists()])
    for rank, (_, begun) in enumerate(held):
        if begun and not held[0][1]:
            raise ValueError(
                f"{run.path}: rank {rank} has a run there, and rank 0 has none; start its node as rank 0 "
                "(torchrun --node-rank 0), or copy the folder there"
            )
    return held[0][0]


def _run(
    trainer: Trainer,
    loader: Loader,
    val_loader: Loader | None,
    tree: SemanticTree,
    run: RunFolder,
    config: Mapping[str, Any],
    progress: Progress | None,
    stop_requests: StopRequests,
) -> dict[str, Any] | Stopped:
    """Take a run from where it stands to its end, or until a signal comes."""
    ranks, settings, position = trainer.ranks, trainer.settings, trainer.position
    loader.set_epoch(position.epoch)
    total_steps = trainer.plan(loader)
    if ranks.is_first:
        tree.save(run.path / "tree.json")
        if progress:
            progress.on_start(position.step, total_steps)
    with open_logs(
        run.path,
        settings.trackers,
        config,
        after_step=position.step,
        epoch=position.epoch,
        here=ranks.is_first,
    ) as logs:
        tracker = Tracker(ranks, logs, progress, steps_per_read=settings.log_every_steps, wants_stop=stop_requests)

        def save(path: Path = run.last) -> None:
            trainer.share_buffers()
            if ranks.is_first:
                place = place_of(loader) if _within_epoch(loader) else None
                content = {**trainer.state_dict(), "loader": place, "config": config, "tree": tree_content(tree)}
                save_checkpoint(path, content)
                if path == run.last:
                    keep_checkpoints(run.last, position.step, settings.keep_last)

        while (position.step < total_steps or _within_epoch(loader)) and not trainer.is_out_of_patience():
            try:
                whole = trainer.train_epoch(loader, tracker, save)
            except NonFiniteLossError as error:
                _write_down(error, loader, run, ranks)
                raise
            ends = position.step == total_steps
            validates = val_loader if ends or (position.epoch + 1) % settings.validate_every_epochs == 0 else None
            if place_of(loader) and (
                validates is not None or not whole
            ):  # a kill while it validates costs no more than that
                save()
            if not whole:
                return Stopped(position.step, total_steps)
            position.epoch += 1
            loader.set_epoch(position.epoch)
            if validates is not None and trainer.validate(validates, tree, tracker):
                save(run.best)  # before `last`: a kill between the two validates again, and finds it the best again
            save()
    if trainer.is_out_of_patience() and position.step < total_steps:
        log.log(
            logging.INFO if ranks.is_first else logging.DEBUG,
            "%s: no better %s since epoch %s, so the run ends after %d epochs (patience %s)",
            *(run.path, trainer.measure.headline, position.best_epoch, position.epoch, settings.patience),
        )
    if ranks.is_first:
        _finish(trainer, tree, run, config)
    return ranks.from_first(run.metrics)


def _within_epoch(loader: Loader) -> bool:
    return loader.num_left() < len(loader)


def _check(
    model: nn.Module,
    loader: Loader,
    val_loader: Loader | None,
    tree: SemanticTree,
    settings: TrainSettings,
    ranks: Ranks,
) -> None:
    """Raise ValueError where model, data and settings do not fit."""
    num_outputs = getattr(model, "num_classes", len(tree))
    if num_outputs != len(tree):
        raise ValueError(f"the model has {num_outputs} classes, the data set {len(tree)}; wanted equally many")
    if settings.patience is not None and val_loader is None:
        raise ValueError(
            f"patience is {settings.patience}, and there are no validation images to judge by; leave patience out, or "
            "give data with a validation split"
        )
    if settings.image_size is not None:
        check_network(model, settings, len(tree), ranks.world_size)
    count_steps(len(loader), settings)
    if settings.save_every_steps and place_of(loader) is None:
        raise ValueError(
            f"save_every_steps is {settings.save_every_steps}, and backend {settings.backend} cannot resume within an "
            "epoch; take an indexed backend, or make epochs shorter by --set epoch_samples"
        )
    check_trackers(settings.trackers)


def _resume(trainer: Trainer, loader: Loader, run: RunFolder) -> None:
    """Resume from the newest whole checkpoint of rank 0's folder, where it has one; all ranks raise its ValueError."""
    ranks, newest = trainer.ranks, None

    def look() -> None:
        nonlocal newest
        newest = newest_checkpoint(run.last)

    ranks.from_first(look)
    content = ranks.share_bytes(newest[1] if newest else b"")
    if not content:
        return
    state = newest[2] if newest else parse_checkpoint(content, run.last)
    path = newest[0] if newest else run.last
    open_parts(state, path)
    try:
        trainer.load_state_dict(state)
        if state["loader"]:
            loader.load_state_dict(state["loader"])
    except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
        problem = (str(error).splitlines() or [""])[0]
        raise ValueError(f"{path}: does not fit this run ({type(error).__name__}: {problem})") from error
    position = trainer.position
    log.info("%s: resuming after step %d, in epoch %d", run.path, position.step, position.epoch)


def _write_down(error: NonFiniteLossError, loader: Loader, run: RunFolder, ranks: Ranks) -> None:
    """Write the batch that lost the loss to nonfinite.json; all ranks call it."""
    names = loader.describe_batch(error.place) if error.place and not math.isfinite(error.losses[ranks.rank]) else []
    samples = ranks.gather_json(names)
    if ranks.is_first:
        by_rank = [
            {"rank": rank, "loss": str(loss), "samples": names}
            for rank, (loss, names) in enumerate(zip(error.losses, samples, strict=True))
            if not math.isfinite(loss)
        ]
        write_json(run.nonfinite, {**error.line, "place": error.place, "ranks": by_rank})


def _finish(trainer: Trainer, tree: SemanticTree, run: RunFolder, config: Mapping[str, Any]) -> None:
    """Write what timm loads, and metrics.json last: it says that the run is finished."""
    position = trainer.position
    with whole_file(run.path / "model.safetensors") as aside:
        save_weights(trainer.model, aside)
    if trainer.ema:
        with whole_file(run.path / "model_ema.safetensors") as aside:
            save_weights(trainer.ema.module, aside)
    write_json(run.path / "config.json", network_config(trainer.model, config, tree))
    run.nonfinite.unlink(missing_ok=True)  # of a try before this one
    metrics: dict[str, Any] = {"num_epochs": position.epoch, "num_steps": position.step}
    if position.validation is not None:
        metrics |= position.validation
        metrics |= {f"best_{trainer.measure.headline}": position.best, "best_epoch": position.best_epoch}
    write_json(run.path / "metrics.json", metrics)


def _measure_of(settings: TrainSettings, tree: SemanticTree, label_sets: Tensor | None) -> Measure:
    headline = best_metric(settings.best_by, multi_label=label_sets is not None)
    if label_sets is not None:
        return Measure(headline, partial(evaluate_labels, table=label_sets))
    fill_inner = bool(tree.num_inner) and not trains_inner(settings)
    return Measure(headline, partial(evaluate, fill_inner=True) if fill_inner else evaluate)
