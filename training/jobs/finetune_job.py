"""Fine-tuning: a trained network to other data, of one label an image or of several."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...datapipe.create import choose_backend
from ...preprocess.pack_labelled import LabelledData, LabelledSet, Outline, Watch, outline_labelled
from ...preprocess.sources.labelled import classes_of_labels
from ...shards.files.parallel import ignore_progress
from ...shards.tree import SemanticTree, warn_if_flat
from ..distill import load_teacher
from ..distributed import join_ranks
from ..evaluation.multilabel import check_num_scores
from ..init_weights import InitWeights, check_init, create_network, load_init
from ..losses.create import check_loss
from ..losses.multilabel import multi_hot
from ..recipes import resolve_with_sources
from ..run import Stopped, seed_everything
from ..runs.run_folder import RunFolder
from ..settings import TrainSettings
from .finetune_data import Packing, describe_data, is_finished_data, open_finished, pack_data
from .plan import PlannedData, make_plan, plan_memory
from .train_job import Callbacks, Labels, Line, TrainJob, checked_device

DEFAULT_SIZE = 224  # of images, where neither settings nor weights name one


def finetune(
    init: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | None = None,
    settings: Mapping[str, object] | None = None,
    packing: Packing | None = None,
    device: str | None = None,
    overwrite: bool = False,
    on_pack: Watch | None = None,
    on_plan: Callable[[dict[str, Any]], None] | None = None,
    on_start: Callable[[int, int], None] | None = None,
    on_step: Callable[[Line], None] | None = None,
    on_validation: Callable[[Line], None] | None = None,
) -> dict[str, Any] | Stopped:
    """Train a network on other data from the weights of `init`, as `in21k finetune` does; returns as `jobs.train`.

    init:      a run, a checkpoint of one, a file of weights, or a timm model. The model, its arguments and the
               normalisation are its own, unless `settings` names them.
    data:      shards (a folder or a URL); class folders, a list of images, `coco:IMAGES,FILE.json`, `voc:FOLDER`
               or `torchvision:NAME:FOLDER`, which are first packed into shards.
    packing:   how they are packed.
    on_pack:   called with the name of each step of packing; returns a context manager of what is called with the
               progress.

    The other arguments are those of `jobs.train`. Raises ValueError as it does, and for images that cannot be packed.
    """
    job = _describe(init, data, out, recipe, settings, packing, device=device, overwrite=overwrite)
    return job.train_job(job.open_images(on_pack)).run(Callbacks(on_plan, on_start, on_step, on_validation))


def plan_finetuning(
    init: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | None = None,
    settings: Mapping[str, object] | None = None,
    packing: Packing | None = None,
    device: str | None = None,
    overwrite: bool = False,
) -> dict[str, Any]:
    """Return what `finetune` would do, as `plan_training`; nothing is written.

    The plan of images that are not packed yet has `packed: False`: it counts those that packing will leave out, too.
    """
    job = _describe(init, data, out, recipe, settings, packing, device=device, overwrite=overwrite)
    if job.images and not job.images.is_packed(job.data_out):
        return _plan_unpacked(job, job.images)
    return job.train_job(job.open_images()).plan()


def pack_images(
    init: str | Path,
    data: str | Path,
    out: str | Path,
    *,
    recipe: str | None = None,
    settings: Mapping[str, object] | None = None,
    packing: Packing | None = None,
    overwrite: bool = False,
    on_pack: Watch | None = None,
) -> LabelledSet:
    """Pack the images of a fine-tuning into shards, and train nothing; the arguments are those of `finetune`.

    Raises ValueError where `data` are shards already.
    """
    if is_finished_data(str(data)):
        (packing or Packing()).check_unused(str(data), "--pack-only")
    job = _describe(init, data, out, recipe, settings, packing, device=None, overwrite=overwrite)
    return job.open_images(on_pack)


@dataclass(frozen=True, kw_only=True)
class _Finetuning:
    """A fine-tuning that is described.

    images: those to pack; None: `data` is a shard set, or images that were packed earlier.
    """

    init: InitWeights
    data: str
    out: Path
    settings: TrainSettings
    packing: Packing
    images: LabelledData | None
    device: str | None
    overwrite: bool

    @property
    def data_out(self) -> Path:
        """The folder for images packed into shards."""
        return self.packing.out or self.out.with_name(f"{self.out.name}-data")

    def open_images(self, on_pack: Watch | None = None) -> LabelledSet:
        """Open the shards, which images are first packed into."""
        if self.images is None:
            return open_finished(self.data)
        watch = on_pack or (lambda _: nullcontext(ignore_progress))
        return pack_data(self.images, self.data_out, self.packing, watch, overwrite=self.overwrite)

    def train_job(self, images: LabelledSet) -> TrainJob:
        """Return the training on these shards."""
        return TrainJob(
            images.shards,
            self.out,
            self.settings,
            self.init,
            labels=_labels(images),
            device=self.device,
            overwrite=self.overwrite,
        )


def _describe(
    init: str | Path,
    data: str | Path,
    out: str | Path,
    recipe: str | None,
    settings: Mapping[str, object] | None,
    packing: Packing | None,
    *,
    device: str | None,
    overwrite: bool,
) -> _Finetuning:
    """Resolve the settings, load the weights and look at the data; raises ValueError where no training can begin."""
    data, packing = str(data), packing or Packing()
    weights, resolved = _resolve(str(init), recipe, settings or {})
    if is_finished_data(data):
        packing.check_unused(data)
        images = None
    else:
        own_size = weights.opened.image_size if weights.opened else DEFAULT_SIZE
        resolved = replace(resolved, image_size=resolved.image_size or own_size)
        images = describe_data(data, packing, resolved)
        check_init(resolved, weights, int(os.environ.get("WORLD_SIZE", "1")))
    return _Finetuning(
        init=weights,
        data=data,
        out=Path(out),
        settings=resolved,
        packing=packing,
        images=images,
        device=device,
        overwrite=overwrite,
    )


def _resolve(init: str, recipe: str | None, settings: Mapping[str, object]) -> tuple[InitWeights, TrainSettings]:
    """Return the weights, and the settings with what the weights come with where `settings` do not name it.

    Raises ValueError for another model than theirs, and where nothing names their model.
    """
    resolved, sources = resolve_with_sources(recipe, {**settings, "init": init})
    weights = load_init(init)
    own_model = weights.settings.get("model")
    resolved = replace(resolved, model=weights.architecture_for(resolved.model))
    if "model" in settings and own_model and resolved.model.partition(".")[0] != own_model.partition(".")[0]:
        raise ValueError(f"--init {init} is a {own_model}, and --model {resolved.model} was given; leave it out")
    if not own_model and sources["model"] == "default":
        raise ValueError(f"--init {init} holds weights alone; name their network by --model")
    own = {name: value for name, value in weights.settings.items() if name not in settings}
    return weights, replace(resolved, **own)


def _plan_unpacked(job: _Finetuning, images: LabelledData) -> dict[str, Any]:
    """Return the plan of a training on images that are not packed yet, from their names alone."""
    settings, outline = job.settings, outline_labelled(images)
    labels = _labels(outline)
    tree = labels.tree if labels else outline.tree
    check_loss(settings, multi_label=labels is not None)
    if labels:
        check_num_scores(outline.num_samples.get("val", 0) * len(tree), len(tree))
    with join_ranks(checked_device(job.device, settings.backend)) as ranks:
        RunFolder(job.out).check({}, overwrite=True)  # the fingerprint of the packed images is not known yet
        seed_everything(settings)
        teacher = load_teacher(settings, tree, ranks.device) if settings.teacher else None
        epoch_samples = settings.epoch_samples or outline.num_samples["train"]
        network = create_network(settings, tree.wnids, job.init)
        data = PlannedData(
            location=str(job.data_out),
            num_classes=len(tree),
            num_samples=outline.num_samples,
            backend=choose_backend(settings.backend, ranks.device),
            num_batches=epoch_samples // (settings.batch_size * ranks.world_size),
        )
        plan = make_plan(data, job.out, settings, network, ranks)
        if ranks.is_first:
            if settings.loss == "semantic":
                warn_if_flat(tree)
            plan["memory_mb"] = plan_memory(settings, network, ranks, teacher)
        return {**plan, "packed": False}


def _labels(images: LabelledSet | Outline) -> Labels | None:
    """Return what the outputs stand for where images have several labels; None where each has one."""
    if images.sets is None:
        return None
    names = images.labels
    wnid_of = classes_of_labels(names)
    index_of = {name: index for index, name in enumerate(names)}
    tree = SemanticTree.from_parents([wnid_of[name] for name in names], names, [-1] * len(names))
    return Labels(tree, multi_hot([[index_of[name] for name in labels] for labels in images.sets], len(names)))
