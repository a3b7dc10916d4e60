"""Validation of a trained network on shards: the same for every kind of network, from its path to its metrics."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
from torch import Tensor

from ...datapipe import create_loader
from ...preprocess.pack_labelled import LabelledSet
from ...shards import SemanticTree, ShardSet
from ...shards.files.parallel import OnProgress, ignore_progress
from ..distributed import join_ranks
from ..evaluation.measure import measure, per_class
from ..evaluation.multilabel import evaluate_labels, per_label
from ..evaluation.predictions import Predictions, collect, load_predictions, save_predictions
from ..inference.open_model import OpenModel
from ..inference.pixel_model import PixelModel
from ..losses.multilabel import multi_hot
from .setup import EvalSettings, EvalSetup, ValImages, image_counter, open_data, open_network, val_images


@dataclass(frozen=True)
class Answered:
    """What a network that gives an image one class answered, and the tree and keys of the images.

    num_train: the training images of each class, in the tree's order; None where they are unknown.
    """

    predictions: Predictions
    tree: SemanticTree
    keys: pa.StringArray | None
    num_train: list[int] | None


@dataclass(frozen=True)
class Validation:
    """The result of a validation.

    metrics:    as `in21k validate --json` prints them: numbers by the names of `training.metric_names`, and lists.
    answered:   what the network answered for each image; None where images have several labels.
    provenance: what the answers were made with, as JSON values: model, weights, data, fingerprint, shards, tta.
    """

    metrics: dict[str, Any]
    answered: Answered | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def per_class(self) -> pa.Table:
        """Return a row for each class (see `evaluation.measure.per_class`), or for each label (see `per_label`)."""
        if self.answered is None:
            return per_label(self.metrics)
        return per_class(self.answered.predictions, self.answered.tree)

    def save_predictions(self, path: str | Path) -> None:
        """Write a row for each image into a Parquet file, which `measure_saved` reads.

        Raises ValueError where images have several labels, and for predictions that come from a file.
        """
        if self.answered is None or self.answered.keys is None:
            raise ValueError("no answers to save; wanted a validation, on shards, of a network with one class an image")
        answered = self.answered
        save_predictions(
            *(Path(path), answered.predictions, answered.tree, answered.keys, self.provenance),
            num_train=answered.num_train,
        )


def validate(
    model: str | Path | OpenModel,
    data: str | Path | ShardSet,
    settings: EvalSettings | None = None,
    *,
    flip: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> Validation:
    """Measure a network on the validation split of shards.

    model: what `open_model` takes, or what it returned.
    data:  a shard set, its path or URL, or a folder that `in21k finetune` packed (needed for images of several labels).
    flip:  average the logits of an image and of its mirror image (`--tta`).

    Under torchrun the ranks share the images, and each returns the result of all; it equals that of one rank.

    Raises ValueError where model or data cannot be opened, the network does not know all classes of the data, or one
    has several labels an image and the other has not.

    >>> validate("run/", "shards/", EvalSettings(weights="best")).metrics["semantic_top1"]  # doctest: +SKIP
    54.2
    """
    settings = settings or EvalSettings()
    opened = open_network(model, settings)
    labelled = open_data(data)
    data = labelled.shards.location if isinstance(data, ShardSet) else data
    if opened.multi_label:
        return Validation(_measure_labels(opened, labelled, settings, flip, on_progress))
    shards = labelled.shards
    outputs = _outputs(opened, data, labelled)
    with join_ranks(settings.device) as ranks:
        images = val_images(shards)
        setup = EvalSetup(opened, settings, ranks)
        predictions = collect_predictions(setup, shards, images, outputs, on_progress, flip=flip)
    num_train = [row.num_train for row in shards.classes if row.kept]
    answered = Answered(predictions, shards.tree, images.keys.take(predictions.rows.numpy()), num_train)
    provenance = {
        "model": opened.source or opened.name,
        "weights": settings.weights if opened.run else "published",
        "data": str(data),
        "fingerprint": opened.fingerprint(),
        "shards": shards.fingerprint,
        "tta": flip,
    }
    return Validation(measure(predictions, shards.tree, num_train), answered, provenance)


def measure_saved(path: str | Path) -> Validation:
    """Measure predictions that `Validation.save_predictions` wrote, without a network.

    Raises ValueError where the file holds none.
    """
    predictions, tree, provenance, num_train = load_predictions(path)
    answered = Answered(predictions, tree, None, num_train)
    return Validation(measure(predictions, tree, num_train), answered, provenance)


def collect_predictions(
    setup: EvalSetup,
    shards: ShardSet,
    images: ValImages,
    outputs: Tensor,
    on_progress: OnProgress = ignore_progress,
    *,
    flip: bool = False,
) -> Predictions:
    """Have a network answer every validation image; every rank has to call it, and gets the answers of all.

    outputs: for each class of the shards the network's output, int64 (C,); see `OpenModel.outputs_of`.
    flip:    average the logits of an image and of its mirror image.
    """
    with setup.row_loader(shards, images.split) as loader:
        return collect(
            PixelModel(setup.opened, outputs, shards.tree, flip=flip).to(setup.ranks.device),
            loader,
            images.classes,
            shards.tree,
            by_sigmoid=setup.opened.by_sigmoid,
            amp=setup.amp,
            ranks=setup.ranks,
            on_batch=image_counter(on_progress, len(images.split), num_ranks=setup.ranks.world_size),
        )


def _outputs(opened: OpenModel, data: str | Path, labelled: LabelledSet) -> Tensor:
    """Return the network's output for each class of the shards; raises ValueError where it lacks one."""
    name, tree = opened.source or opened.name, labelled.shards.tree
    wnids = tree.wnids[: tree.num_image_classes]
    if labelled.sets is not None:
        raise ValueError(f"{data}: its images have several labels, and {name} gives each image one; give other shards")
    if opened.classes is None:
        raise ValueError(
            f"{name}: the classes of its outputs are unknown; give a run, a model of ImageNet-21K, or by --classes "
            "those of a file of weights"
        )
    if opened.run and not set(wnids) <= set(opened.classes.wnids):
        raise ValueError(
            f"{name} knows {len(opened.classes):,} classes, {data} has {len(wnids):,}, and it does not know them all; "
            "give the shards it was trained on"
        )
    return opened.outputs_of(tree)


def _measure_labels(
    opened: OpenModel, labelled: LabelledSet, settings: EvalSettings, flip: bool, on_progress: OnProgress
) -> dict[str, Any]:
    """Return what `evaluate_labels` returns for packed images of several labels."""
    assert opened.tree is not None
    label_sets, shards = _label_sets(opened, labelled), labelled.shards
    with join_ranks(settings.device) as ranks:
        setup = EvalSetup(opened, settings, ranks)
        loader = create_loader(shards, split="val", **setup.loader_settings(shards))
        try:
            return evaluate_labels(
                PixelModel(opened, flip=flip).to(ranks.device),
                loader,
                opened.tree,
                table=label_sets,
                amp=setup.amp,
                ranks=ranks,
                on_batch=image_counter(on_progress, shards.num_samples["val"], num_ranks=ranks.world_size),
            )
        finally:
            loader.close()


def _label_sets(opened: OpenModel, labelled: LabelledSet) -> Tensor:
    """Return which of the network's labels each class of the shards stands for, bool (classes, labels)."""
    assert opened.tree is not None
    name, index_of = opened.source or opened.name, {label: index for index, label in enumerate(opened.tree.names)}
    if labelled.sets is None:
        raise ValueError(
            f"{name} gives images several labels, and those of {labelled.shards.location} have one class each; give "
            "the folder that `in21k finetune` packed from a list of several labels (OUT-data), not the shards in it"
        )
    unknown = [label for label in labelled.labels if label not in index_of]
    if unknown:
        raise ValueError(
            f"{name} knows {len(index_of):,} labels, the images have {len(labelled.labels):,}, and it does not know "
            f"{unknown[0]!r}; give images of the labels it was trained on"
        )
    return multi_hot([[index_of[label] for label in labels] for labels in labelled.sets], len(index_of))
