"""`in21k validate` of a run on images of several labels."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa
import torch

from ..datapipe import create_loader
from ..training.distributed import join_ranks
from ..training.evaluation.multilabel import evaluate_labels
from ..training.inference.pixel_model import PixelModel
from ..training.losses.multilabel import multi_hot
from .options import emit, table
from .progress import ProgressLine
from .tables import table_writer
from .validation import Work, counted

if TYPE_CHECKING:
    from torch import Tensor

    from ..preprocess.pack_labelled import LabelledSet
    from ..training.distributed import Ranks

NUM_SHOWN = 5  # of the labels


def validate_labels(
    work: Work, found: LabelledSet, device: str | None, per_class: Path | None, *, as_json: bool
) -> None:
    """Measure on packed images, write the table of labels where it was asked for, and print.

    Raises ValueError where the images have one label each, or labels that the network does not know.
    """
    label_sets = _label_sets(work, found)
    with join_ranks(device) as ranks:
        result = _measure(work, found, label_sets, ranks)
        if ranks.is_first:
            if per_class:
                _write(result, per_class)
            emit(result, _render, as_json=as_json)


def _label_sets(work: Work, found: LabelledSet) -> Tensor:
    """Return which of the network's labels each class of the shards stands for: bool (classes, labels)."""
    assert work.opened.tree is not None
    if found.sets is None:
        raise ValueError(
            f"{work.name} gives images several labels, and those of {found.shards.location} have one class each; give "
            "the folder that `in21k finetune` packed from a list of several labels (OUT-data), not the shards in it"
        )
    place = {name: number for number, name in enumerate(work.opened.tree.names)}
    strangers = [label for label in found.labels if label not in place]
    if strangers:
        raise ValueError(
            f"{work.name} knows {len(place):,} labels, the images have {len(found.labels):,}, and it does not know "
            f"{strangers[0]!r}; give images of the labels it was trained on"
        )
    return multi_hot([[place[label] for label in labels] for labels in found.sets], len(place))


def _measure(work: Work, found: LabelledSet, label_sets: Tensor, ranks: Ranks) -> dict[str, Any]:
    """Return what `evaluate_labels` returns; every rank has to call it."""
    assert work.opened.tree is not None
    shards = found.shards
    network = PixelModel(work.opened).to(ranks.device)
    loader = create_loader(
        shards, split="val", dtype=torch.uint8, normalize=None, **work.loader_settings(shards, ranks)
    )
    try:
        with ProgressLine("validate") as progress:
            return evaluate_labels(
                network,
                loader,
                work.opened.tree,
                table=label_sets,
                amp=work.amp(ranks),
                ranks=ranks,
                on_batch=counted(progress, shards.num_samples["val"], ranks),
            )
    finally:
        loader.close()


def _write(result: dict[str, Any], path: Path) -> None:
    schema = pa.schema(
        [
            ("wnid", pa.string()),
            ("name", pa.string()),
            ("num_samples", pa.int64()),
            ("average_precision", pa.float64()),
        ]
    )
    with table_writer(path, schema, "labels of a validation") as writer:
        writer.write_table(pa.Table.from_pylist(result["per_label"], schema=writer.schema))


def _render(result: dict[str, Any]) -> str:
    rows = [row for row in result["per_label"] if row["num_samples"]]
    rows.sort(key=lambda row: (row["average_precision"], row["name"]))
    worst = [["hardest labels", "samples", "average precision %"]]
    worst += [[row["name"], f"{row['num_samples']:,}", f"{row['average_precision']:.1f}"] for row in rows[:NUM_SHOWN]]
    of_labels, of_all = (
        ", ".join(f"{name} {result[name.lower()]:.1f} %" for name in names)
        for names in (("CP", "CR", "CF1"), ("OP", "OR", "OF1"))
    )
    return (
        f"mAP {result['map']:.1f} % over {result['num_labels']:,} labels "
        f"(equal scores for all: {result['map_chance']:.1f} %), {result['num_samples']:,} samples\n"
        f"labels of probability 0.5 or more: {of_labels} (means over labels); {of_all} (all together)\n\n{table(worst)}"
    )
