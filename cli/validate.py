"""`in21k validate`: how good a trained network is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import (
    PATH,
    PATH_OR_URL,
    backend_option,
    batch_size_option,
    device_option,
    emit,
    file_options,
    json_option,
    loader_sets_option,
    overwrite_option,
    table,
    tta_option,
    weights_option,
    workers_option,
)
from .progress import ProgressLine
from .tables import check_table, write_table
from .terminal import printable

NUM_SHOWN = 5  # confused pairs, and hardest labels


@click.command()
@click.argument("model", metavar="[RUN|CHECKPOINT|FILE|TIMM_NAME]", required=False)
@click.option(
    "--data",
    type=PATH_OR_URL,
    help="The shards, or their URL, or what `in21k finetune` packed; the validation split is used.",
)
@click.option(
    "--imagenet1k",
    type=PATH_OR_URL,
    metavar="FOLDER|TAR|SHARDS",
    help="Instead: ImageNet-1K's validation images, in a folder or tar of wnids, or in shards, without training.",
)
@click.option("--from-predictions", type=PATH, metavar="FILE", help="Instead: what --save-predictions wrote.")
@weights_option
@file_options
@tta_option
@click.option("--per-class", type=PATH, metavar="OUT.parquet", help="Write a row for each class into this table.")
@click.option("--save-predictions", type=PATH, metavar="OUT.parquet", help="Write the answers for each image.")
@backend_option
@batch_size_option("as in training, else 64")
@device_option
@workers_option
@loader_sets_option
@overwrite_option
@json_option
def validate(
    model: str | None,
    data: Path | str | None,
    imagenet1k: Path | str | None,
    from_predictions: Path | None,
    per_class: Path | None,
    save_predictions: Path | None,
    tta: bool,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Measure a network on the validation split of shards that hold classes it knows.

    Semantic top-1 counts an image once for each level of the tree that its class reaches; the answer of a level is the
    likeliest of its classes. top-1 and top-5 are over all classes; precision, recall and F1 are means over classes.
    top-1 counts images (the micro accuracy), its mean over classes counts classes (the macro accuracy). Both also stand
    for thirds of the classes, sorted by their number of training images: many, medium and few.
    Confusions are counted within the class's own level. Under torchrun the ranks share the images, and the result is
    that of one rank. --from-predictions needs no network.

    A run on images of several labels is measured on the folder that `in21k finetune` packed from them (OUT-data): mean
    average precision, and precision, recall and F1 of the labels whose probability is 0.5 or more.

    A FILE holds published weights (`resnet50_miil_21k.pth`, or .safetensors). --model names its architecture where no
    network of the zoo alone has its keys (`in21k models --zoo`), --classes its classes where their number does not tell
    them: in1k, winter21p, fall11p, in12k, in21k, a list of wnids, or a tree.

    --imagenet1k measures a network that learnt ImageNet-21K as it is: the answer is the likeliest of the classes that
    both have (991 of 1,000 for the paper's), and images of other classes are left out.
    """
    from ..training.distributed import is_first_rank
    from ..training.jobs.imagenet1k_job import validate_imagenet1k
    from ..training.jobs.setup import EvalSettings, open_network
    from ..training.jobs.validate_job import measure_saved
    from ..training.jobs.validate_job import validate as validate_job

    _check_options(model, data, imagenet1k, from_predictions, per_class, save_predictions)
    if tta and from_predictions:
        raise ValueError("--tta goes with a network; the answers in --from-predictions are fixed, so leave it out")
    for path in (per_class, save_predictions):
        if path:
            check_table(path, overwrite=overwrite)
    if from_predictions:
        validation = measure_saved(from_predictions)
    else:
        assert model is not None
        chosen = EvalSettings.parse(**settings)
        opened = open_network(model, chosen)
        if opened.multi_label and (imagenet1k is not None or save_predictions):
            raise ValueError(
                f"{model} gives images several labels, and --imagenet1k and --save-predictions are about networks that "
                "give one; give --data, and no more than --per-class beside it"
            )
        with ProgressLine("validate") as progress:
            if imagenet1k is not None:
                validation = validate_imagenet1k(opened, imagenet1k, chosen, flip=tta, on_progress=progress)
            else:
                assert data is not None
                validation = validate_job(opened, data, chosen, flip=tta, on_progress=progress)
    if is_first_rank():
        if save_predictions:
            validation.save_predictions(save_predictions)
        if per_class:
            write_table(per_class, validation.per_class(), "classes of a validation")
        source = "{model} ({weights}) on {data}:\n" if from_predictions else ""
        source = source.format_map(printable(validation.provenance))
        emit(validation.metrics, lambda metrics: source + _render(metrics), as_json=as_json)


def _check_options(
    model: str | None,
    data: Path | str | None,
    imagenet1k: Path | str | None,
    from_predictions: Path | None,
    per_class: Path | None,
    save_predictions: Path | None,
) -> None:
    """Raise ValueError for options that do not go together."""
    if sum(place is not None for place in (data, imagenet1k, from_predictions)) != 1:
        raise ValueError("give one of --data SHARDS, --imagenet1k FOLDER|TAR|SHARDS and --from-predictions FILE")
    if (model is None) != (from_predictions is not None):
        raise ValueError("--from-predictions takes no network, all else takes one: RUN, CHECKPOINT, FILE or TIMM_NAME")
    if save_predictions and data is None:
        raise ValueError("--save-predictions goes with --data")
    if per_class and imagenet1k is not None:
        raise ValueError("--per-class goes with --data and --from-predictions")
    if per_class and per_class == save_predictions:
        raise ValueError(f"{per_class}: --per-class and --save-predictions name one file; wanted two")


def _render(metrics: dict[str, Any]) -> str:
    """Return every metric on a line, and the tables that there are rows for."""
    from ..training.metric_names import metric_lines

    tables = [_levels(metrics.get("per_level", [])), _thirds(metrics.get("per_third", []))]
    tables += [_confusions(metrics.get("confusions", [])), _hardest_labels(metrics.get("per_label", []))]
    return "\n\n".join(["\n".join(metric_lines(metrics)), *(table(rows) for rows in tables if len(rows) > 1)])


def _levels(levels: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["level", "classes", "samples", "top-1 %"]]
    for row in levels:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        rows.append([str(row["level"]), f"{row['num_classes']:,}", f"{row['num_samples']:,}", top1])
    return rows


def _thirds(thirds: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["training images", "each class", "classes", "samples", "top-1 %", "mean over classes %"]]
    for row in thirds:
        span = f"{row['min_train']:,} to {row['max_train']:,}"
        scores = ["-" if row[name] is None else f"{row[name]:.1f}" for name in ("top1", "macro_top1")]
        rows.append([row["third"], span, f"{row['num_classes']:,}", f"{row['num_samples']:,}", *scores])
    return rows


def _confusions(pairs: list[dict[str, Any]]) -> list[list[str]]:
    rows = [["most confused", "taken for", "times", "steps apart"]]
    for pair in pairs[:NUM_SHOWN]:
        rows.append([pair["name"], pair["answer_name"], f"{pair['count']:,}", str(pair["distance"])])
    return rows


def _hardest_labels(labels: list[dict[str, Any]]) -> list[list[str]]:
    present = [row for row in labels if row["num_samples"]]
    present.sort(key=lambda row: (row["average_precision"], row["name"]))
    rows = [["hardest labels", "samples", "average precision %"]]
    rows += [[row["name"], f"{row['num_samples']:,}", f"{row['average_precision']:.1f}"] for row in present[:NUM_SHOWN]]
    return rows
