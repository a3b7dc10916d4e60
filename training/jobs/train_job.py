"""Training on shards: from paths and settings to a run's folder."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from ...datapipe import Loader, create_loader
from ...datapipe.augment.mixup import MixSettings, create_mix
from ...shards import ShardSet, open_dataset
from ...shards.tree import SemanticTree, warn_if_flat
from ..distill import Teacher, load_teacher
from ..distributed import Ranks, join_ranks
from ..evaluation.multilabel import check_num_scores
from ..init_weights import InitWeights, check_network, create_network, load_init
from ..losses.create import check_loss
from ..precision import resolve_amp
from ..recipes import resolve_settings
from ..run import Stopped, seed_everything, train_model
from ..runs.run_folder import RunFolder, run_config
from ..settings import TrainSettings
from .plan import PlannedData, make_plan, plan_memory

Line = Mapping[str, Any]


def _ignore(*_: object) -> None:
    pass


class Callbacks:
    """The callbacks of a training, of which each may be None; see `train`."""

    def __init__(
        self,
        on_plan: Callable[[dict[str, Any]], None] | None,
        on_start: Callable[[int, int], None] | None,
        on_step: Callable[[Line], None] | None,
        on_validation: Callable[[Line], None] | None,
    ) -> None:
        self.on_plan, self.on_start = on_plan or _ignore, on_start or _ignore
        self.on_step, self.on_validation = on_step or _ignore, on_validation or _ignore


class Labels(NamedTuple):
    """What a network's outputs stand for where they are not the shards' classes."""

    tree: SemanticTree
    """Of the labels."""
    label_sets: Tensor
    """Which labels go with each class of the shards: bool (classes, labels)."""


def train(
    shards: str | Path | ShardSet,
    out: str | Path,
    *,
    recipe: str | None = None,
    settings: Mapping[str, object] | None = None,
    device: str | None = None,
    overwrite: bool = False,
    on_plan: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[int, int], None] | None = None,
    on_step: Callable[[Line], None] | None = None,
    on_validation: Callable[[Line], None] | None = None,
) -> dict[str, Any] | Stopped:
    """Train a network on shards, as `in21k train` does, and return the content of metrics.json.

    shards:    a shard set, its folder, or its URL.
    out:       the run's folder. An unfinished run of the same settings resumes after its last checkpoint, a finished
               one returns its metrics, and one of other settings is refused unless `overwrite`.
    recipe:    a recipe by name (`in21k config list`), or a YAML file of settings.
    settings:  by name, over the recipe: `{"model": "resnet50", "epochs": 10}`; see `TrainSettings`.
    device:    `cuda` or `cpu`; None: the GPU where there is one. Under torchrun every rank calls this function.

    Callbacks, called on rank 0 only:

    on_plan:       before the first step, with what `plan_training` returns, the memory excepted.
    on_start:      with the number of steps that the run has already done, and the number it will have at its end.
    on_step:       after each step, with its line of log.jsonl: step, epoch, loss, lr, images_per_s, ...
    on_validation: after each validation, with its line of log.jsonl: step, epoch, validation.

    Returns `Stopped` where SIGTERM or SIGUSR1 stopped the run; the same call resumes it. Raises ValueError where data,
    settings and folder do not fit together, and where the loss becomes NaN or infinite.
    """
    callbacks = Callbacks(on_plan, on_start, on_step, on_validation)
    return _open_job(shards, out, recipe, settings, device, overwrite=overwrite).run(callbacks)


def plan_training(
    shards: str | Path | ShardSet,
    out: str | Path,
    *,
    recipe: str | None = None,
    settings: Mapping[str, object] | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Return what `train` would do, and write nothing: steps, images, learning rate, settings, memory (in MB).

    The arguments and errors are those of `train`.
    """
    return _open_job(shards, out, recipe, settings, device, overwrite=overwrite).plan()


def _open_job(
    shards: str | Path | ShardSet,
    out: str | Path,
    recipe: str | None,
    settings: Mapping[str, object] | None,
    device: str | None,
    *,
    overwrite: bool,
) -> TrainJob:
    shards = shards if isinstance(shards, ShardSet) else open_dataset(shards)
    resolved = resolve_settings(recipe, settings)
    init = load_init(resolved.init) if resolved.init else None
    if init:
        resolved = replace(resolved, model=init.architecture_for(resolved.model))
    return TrainJob(shards, Path(out), resolved, init, device=device, overwrite=overwrite)


@dataclass(frozen=True)
class TrainJob:
    """A training that is described and can be planned or run.

    init:   the weights of settings.init.
    labels: None: the outputs are the shards' classes.
    """

    shards: ShardSet
    out: Path
    settings: TrainSettings
    init: InitWeights | None
    labels: Labels | None = None
    device: str | None = None
    overwrite: bool = False

    def plan(self) -> dict[str, Any]:
        """Return the plan; the rank 0's has an estimate of the memory."""
        with self._assembled() as parts:
            if not parts.ranks.is_first:
                return parts.plan
            return {
                **parts.plan,
                "memory_mb": plan_memory(parts.settings, parts.network, parts.ranks, parts.teacher),
            }

    def run(self, callbacks: Callbacks) -> dict[str, Any] | Stopped:
        """Train; return the content of metrics.json, or where a signal stopped the run."""
        with self._assembled() as parts:
            settings, ranks = parts.settings, parts.ranks
            if ranks.is_first:
                callbacks.on_plan(parts.plan)
            mix = MixSettings(mixup=settings.mixup, cutmix=settings.cutmix)
            val_loader = (
                _create_loader(self.shards, "val", settings, ranks) if "val" in self.shards.num_samples else None
            )
            try:
                return train_model(
                    model=parts.network,
                    loader=parts.loader,
                    val_loader=val_loader,
                    tree=parts.tree,
                    settings=settings,
                    folder=self.out,
                    ranks=ranks,
                    teacher=parts.teacher,
                    mix=create_mix(mix, settings.seed) if settings.mixup or settings.cutmix else None,
                    label_sets=self.labels.label_sets if self.labels else None,
                    data=parts.facts,
                    overwrite=self.overwrite,
                    progress=callbacks,
                )
            finally:
                if val_loader:
                    val_loader.close()

    @contextmanager
    def _assembled(self) -> Generator[_Parts]:
        """Join the ranks, make everything that the training needs, and check that it fits together."""
        shards, settings = self.shards, _with_image_size(self.settings, self.shards)
        tree = self.labels.tree if self.labels else shards.tree
        check_loss(settings, multi_label=self.labels is not None)
        with join_ranks(checked_device(self.device, settings.backend)) as ranks:
            seed_everything(settings)
            facts: dict[str, Any] = {"shards": shards.fingerprint, "num_samples": shards.num_samples}
            if self.labels:
                facts["label_sets"] = len(self.labels.label_sets)
                check_num_scores(shards.num_samples.get("val", 0) * len(tree), len(tree))
            teacher = load_teacher(settings, tree, ranks.device) if settings.teacher else None
            if teacher:
                facts["teacher_weights"] = teacher.fingerprint
            config = run_config(resolve_amp(settings, ranks.device), facts, ranks.world_size)
            RunFolder(self.out).check(config, overwrite=self.overwrite)
            network = create_network(settings, tree.wnids, self.init)
            check_network(network, settings, len(tree), ranks.world_size)
            loader = _create_loader(shards, "train", settings, ranks)
            try:
                if ranks.is_first and settings.loss == "semantic":
                    warn_if_flat(tree)
                data = PlannedData(shards.location, len(tree), shards.num_samples, loader.backend, len(loader))
                plan = make_plan(data, self.out, settings, network, ranks)
                yield _Parts(settings, ranks, tree, facts, teacher, network, loader, plan)
            finally:
                loader.close()


class _Parts(NamedTuple):
    """What a training is made of."""

    settings: TrainSettings
    """With image_size filled in."""
    ranks: Ranks
    tree: SemanticTree
    """Of the network's outputs."""
    facts: dict[str, Any]
    """Of the data, for config.yaml."""
    teacher: Teacher | None
    network: nn.Module
    loader: Loader
    plan: dict[str, Any]


def checked_device(device: str | None, backend: str) -> str | None:
    """Return the device; raises ValueError where the backend cannot feed it."""
    if backend == "dali_gpu" and device == "cpu":
        raise ValueError("backend dali_gpu needs a GPU and --device cpu was given; take backend dali_cpu")
    return device


def _with_image_size(settings: TrainSettings, shards: ShardSet) -> TrainSettings:
    if settings.image_size is not None:
        return settings
    if shards.image_size is None:
        raise ValueError(f"{shards.location}: its images keep their own sizes; give --set image_size=...")
    return replace(settings, image_size=shards.image_size)


def _create_loader(shards: ShardSet, split: str, settings: TrainSettings, ranks: Ranks) -> Loader:
    """Make the loader of a split: only training augments and counts epoch_samples, only validation crops."""
    only: dict[str, Any] = {"crop_pct": None} if split == "train" else {"augment": "none", "epoch_samples": None}
    return create_loader(
        shards,
        split=split,
        settings=settings,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
        **only,
    )
