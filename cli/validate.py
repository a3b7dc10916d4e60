"""`in21k validate`: how good a trained network is."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import (
    BATCH_SIZE,
    PATH,
    PATH_OR_URL,
    device_option,
    emit,
    json_option,
    overwrite_option,
    table,
    weights_option,
    workers_option,
)
from .tables import check_table, table_writer
from .terminal import in_one_line
from .validation import Work, ask_network, open_data, val_images

if TYPE_CHECKING:
    from torch import Tensor

    from ..shards import SemanticTree, ShardSet
    from ..training.evaluation.predictions import Predictions
    from ..training.inference.open_model import OpenModel

NUM_SHOWN = 5  # of the confused pairs


@click.command()
@click.argument("model", metavar="[RUN|CHECKPOINT|TIMM_NAME]", required=False)
@click.option(
    "--data",
    type=PATH_OR_URL,
    help="The shards, or their URL, or what `in21k finetune` packed; the validation split is used.",
)
@click.option(
    "--imagenet1k",
    type=PATH_OR_URL,
    metavar="FOLDER|SHARDS",
    help="Instead: ImageNet-1K's validation images, in folders named by wnid or in shards, without any training.",
)
@click.option("--from-predictions", type=PATH, metavar="FILE", help="Instead: what --save-predictions wrote.")
@weights_option
@click.option("--per-class", type=PATH, metavar="OUT.parquet", help="Write a row for each class into this table.")
@click.option("--save-predictions", type=PATH, metavar="OUT.parquet", help="Write what was answered for each image.")
@click.option(
    "--backend", default="auto", show_default=True, help="The loader: auto, dali_gpu, dali_cpu, opencv or torch."
)
@click.option("--batch-size", type=BATCH_SIZE, help="Images per rank.  [default: as in training, else 64]")
@device_option
@workers_option
@overwrite_option
@json_option
def validate(
    model: str | None,
    data: Path | str | None,
    imagenet1k: Path | str | None,
    from_predictions: Path | None,
    weights: Literal["last", "best", "ema"],
    per_class: Path | None,
    save_predictions: Path | None,
    backend: str,
    batch_size: int | None,
    device: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Measure a network on the validation split of shards that hold classes it knows.

    Semantic top-1 counts an image once for each level of the tree that its class reaches; the answer of a level is the
    likeliest of its classes. top-1 and top-5 are over all classes; precision, recall and F1 are means over classes.
    A class is confused with others of its own level alone: with that level's answer, where it is wrong. Under torchrun
    the ranks share the images, and the result is that of one. --from-predictions needs no network.

    A run on images of several labels is measured on the folder that `in21k finetune` packed from such (OUT-data): mean
    average precision, and what is compared for MS-COCO of the labels whose probability is 0.5 or more.

    --imagenet1k takes a network that learnt ImageNet-21K as it is: the answer is the likeliest of the classes that both
    have (991 of 1,000 for the paper's), and images of other classes are left out.
    """
    from ..training import open_model
    from ..training.distributed import join_ranks
    from ..training.evaluation.predictions import load_predictions
    from ..training.evaluation.predictions import save_predictions as training_save_predictions

    _check_words(model, data, imagenet1k, from_predictions, per_class, save_predictions)
    for path in (per_class, save_predictions):
        if path:
            check_table(path, overwrite=overwrite)
    if from_predictions:
        predictions, tree, provenance = load_predictions(from_predictions)
        _tell(predictions, tree, per_class, provenance, as_json=as_json)
        return
    assert model is not None
    opened = open_model(model, weights)
    batch_size = batch_size or (opened.run.settings.batch_size if opened.run else 64)
    work = Work(model, opened, backend, batch_size, workers)
    several = opened.multi_label
    if several and (imagenet1k is not None or save_predictions):
        raise ValueError(
            f"{model} gives images several labels, and --imagenet1k and --save-predictions are about networks that "
            "give one; give --data, and no more than --per-class beside it"
        )
    if imagenet1k is not None:
        from .imagenet1k import render, validate_imagenet1k

        with join_ranks(device) as ranks:
            result = validate_imagenet1k(work, imagenet1k, ranks)
            if ranks.is_first:
                emit(result, render, as_json=as_json)
        return
    assert data is not None
    found = open_data(data)
    if several:
        from .several_labels import validate_labels

        validate_labels(work, found, device, per_class, as_json=as_json)
        return
    if found.sets is not None:
        raise ValueError(f"{data}: its images have several labels, and {model} gives each image one; give other shards")
    shards = found.shards
    outputs = _outputs(model, opened, data, shards)
    with join_ranks(device) as ranks:
        images = val_images(shards)
        predictions = ask_network(work, shards, images, outputs, ranks, "validate")
        if ranks.is_first:
            if save_predictions:
                keys = images.keys.take(predictions.rows.numpy())
                provenance = {
                    "model": model,
                    "weights": weights if opened.run else "published",
                    "data": str(data),
                    "fingerprint": opened.fingerprint(),
                    "shards": shards.fingerprint,
                }
                training_save_predictions(save_predictions, predictions, shards.tree, keys, provenance)
            _tell(predictions, shards.tree, per_class, {}, as_json=as_json)


def _check_words(
    model: str | None,
    data: Path | str | None,
    imagenet1k: Path | str | None,
    from_predictions: Path | None,
    per_class: Path | None,
    save_predictions: Path | None,
) -> None:
    """Raise ValueError for words that do not go together."""
    if sum(given is not None for given in (data, imagenet1k, from_predictions)) != 1:
        raise ValueError("give one of --data SHARDS, --imagenet1k FOLDER|SHARDS and --from-predictions FILE")
    if (model is None) != (from_predictions is not None):
        raise ValueError("--from-predictions takes no network, all else takes one: RUN, CHECKPOINT or TIMM_NAME")
    if save_predictions and data is None:
        raise ValueError("--save-predictions goes with --data")
    if per_class and imagenet1k is not None:
        raise ValueError("--per-class goes with --data and --from-predictions")
    if per_class and per_class == save_predictions:
        raise ValueError(f"{per_class}: --per-class and --save-predictions name one file; wanted two")


def _outputs(model: str, opened: OpenModel, data: Path | str, shards: ShardSet) -> Tensor:
    """Return for each class of the shards the network's output; raises ValueError where it lacks one."""
    from ..models import class_map

    wnids = shards.tree.wnids
    if opened.classes is None:
        raise ValueError(f"{model}: nobody knows which classes its outputs are; give a run, or a model of ImageNet-21K")
    if opened.run and not set(wnids) <= set(opened.classes.wnids):
        raise ValueError(
            f"{model} knows {len(opened.classes):,} classes, {data} has {len(wnids):,}, and it does not know them all; "
            "give the shards it was trained on"
        )
    return class_map(opened.classes, wnids)


def _tell(
    predictions: Predictions, tree: SemanticTree, per_class: Path | None, provenance: dict[str, Any], *, as_json: bool
) -> None:
    """Measure, write the table of classes where it was asked for, and print."""
    from ..training.evaluation.measure import measure
    from ..training.evaluation.measure import per_class as training_per_class

    if per_class:
        rows = training_per_class(predictions, tree)
        with table_writer(per_class, rows.schema, "classes of a validation") as writer:
            writer.write_table(rows)
    result = measure(predictions, tree)
    came_from = ""
    if provenance:
        came_from = in_one_line(f"{provenance['model']} ({provenance['weights']}) on {provenance['data']}:") + "\n"
    emit(result, lambda shown: came_from + _render(shown), as_json=as_json)


def _render(result: dict[str, Any]) -> str:
    levels = [["level", "classes", "samples", "top-1 %"]]
    for row in result["per_level"]:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        levels.append([str(row["level"]), f"{row['num_classes']:,}", f"{row['num_samples']:,}", top1])
    text = (
        f"semantic top-1 {result['semantic_top1']:.1f} % "
        f"(always the commonest answer: {result['semantic_top1_commonest']:.1f} %)\n"
        f"top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} % over all classes, "
        f"{result['num_samples']:,} samples\n"
        f"means over classes: precision {result['macro_precision']:.1f} %, recall {result['macro_recall']:.1f} %, "
        f"F1 {result['macro_f1']:.1f} %; calibration error {result['calibration_error']:.1f} %\n\n{table(levels)}"
    )
    if not result["confusions"]:
        return text
    pairs = [["most confused", "taken for", "times", "steps apart"]]
    for row in result["confusions"][:NUM_SHOWN]:
        pairs.append([row["name"], row["answer_name"], f"{row['count']:,}", str(row["distance"])])
    distance = f"{result['mistake_distance']:.1f} steps through the tree"
    return f"{text}\n\n{table(pairs)}\nwrong answers at the level of their class lie {distance} away"
