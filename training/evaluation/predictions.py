"""The predictions of a model for every validation image, collected over any number of ranks and kept in a file.

They hold what the metrics need: for each image the 5 likeliest classes and the likeliest class of each level, with
probabilities. All logits of 21K-P's validation images would take 25 GB.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from ...shards.files.atomic import whole_file
from ...shards.tree import SemanticTree
from ..distributed import Ranks
from ..losses.levels import Levels
from ..runs.checkpoint import tree_content, tree_from
from ..tracker import Batch
from .answers import Answers, answers_of, probabilities_of
from .validate import answered

FORMAT, VERSION = "in21k-predictions", 1
METADATA = b"in21k"  # the key of the JSON in the file's metadata
ROW_GROUP_ROWS = 65_536


@dataclass(frozen=True, eq=False)
class Predictions:
    """The answers for N images, on the CPU, in the order of `rows`.

    rows:                int64 (N,), the number of each image in its split, ascending.
    labels:              int64 (N,), its class.
    label_probabilities: float32 (N,), of that class.
    answers:             what `answers_of` read out of its logits.
    """

    rows: Tensor
    labels: Tensor
    label_probabilities: Tensor
    answers: Answers

    def __len__(self) -> int:
        return len(self.rows)


def collect(
    model: nn.Module,
    loader: Iterable[Batch],
    classes: Tensor,
    tree: SemanticTree,
    *,
    by_sigmoid: bool = False,
    amp: str = "off",
    ranks: Ranks | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> Predictions:
    """Collect the predictions of a model on the ranks' device; every rank has to call it, and gets those of all ranks.

    loader:     this rank's batches: images as the model takes them, and the number (0..) of each, int64 (B,).
    classes:    int64, the class of each number.
    by_sigmoid: what the probabilities are; see `OpenModel.by_sigmoid`.

    The other arguments are those of `evaluate`. Ranks whose batches together are a single rank's give
    exactly its predictions. Raises ValueError without images.
    """
    ranks = ranks or Ranks()
    levels, classes = Levels(tree).to(ranks.device), classes.to(ranks.device)
    width = 1 + min(5, tree.num_image_classes) + len(levels.numbers)
    whole = [torch.empty(0, 1 + width, dtype=torch.int64, device=ranks.device)]
    shares = [torch.empty(0, width, device=ranks.device)]
    for logits, rows in answered(model, loader, amp=amp, ranks=ranks, on_batch=on_batch):
        labels = classes[rows]
        answers = answers_of(logits, levels, by_sigmoid=by_sigmoid)
        of_images = logits[:, : tree.num_image_classes]
        of_label = probabilities_of(of_images, by_sigmoid=by_sigmoid).gather(1, labels[:, None])
        whole.append(torch.cat([rows[:, None], labels[:, None], answers.top, answers.levels], dim=1))
        shares.append(torch.cat([of_label, answers.top_probabilities, answers.level_probabilities], dim=1))
    numbers, probabilities = ranks.gather_rows(torch.cat(whole), torch.cat(shares))
    if not len(numbers):
        raise ValueError("no validation sample; wanted at least one (shards with a val split)")
    order = numbers[:, 0].argsort()
    return _unpacked(numbers[order], probabilities[order], len(levels.numbers))


def _unpacked(numbers: Tensor, probabilities: Tensor, num_levels: int) -> Predictions:
    num_top = numbers.shape[1] - 2 - num_levels
    rows, labels, top, levels = numbers.split([1, 1, num_top, num_levels], dim=1)
    of_label, of_top, of_levels = probabilities.split([1, num_top, num_levels], dim=1)
    return Predictions(rows[:, 0], labels[:, 0], of_label[:, 0], Answers(top, of_top, levels, of_levels))


class PredictionFile(NamedTuple):
    """Predictions out of a file, the tree of their classes, and what they were made with.

    num_train: the training images of each class; None where the file does not know them.
    """

    predictions: Predictions
    tree: SemanticTree
    provenance: dict[str, Any]
    num_train: list[int] | None = None


def save_predictions(
    path: Path,
    predictions: Predictions,
    tree: SemanticTree,
    keys: Sequence[str] | pa.Array,
    provenance: Mapping[str, Any],
    *,
    num_train: Sequence[int] | None = None,
) -> None:
    """Write predictions to a Parquet file, whole or not at all: 150 bytes an image, less what compression saves.

    keys:      of the images, in the order of `predictions`.
    provenance: what they were made with, as JSON values: model, weights and data as they were called, and fingerprint
               (of the weights) and shards (their fingerprint), by which others can tell whose answers they are.
    num_train: the training images of each class.

    Columns: key, row, class_index, probability (of that class), top and top_probability (the likeliest classes of all),
    level and level_probability (the likeliest of each hierarchy). The tree stands in the metadata.
    """
    answers = predictions.answers
    columns: dict[str, Any] = {
        "key": pa.array(keys, pa.string()),
        "row": predictions.rows.numpy(),
        "class_index": predictions.labels.int().numpy(),
        "probability": predictions.label_probabilities.numpy(),
        "top": _lists(answers.top.int()),
        "top_probability": _lists(answers.top_probabilities),
        "level": _lists(answers.levels.int()),
        "level_probability": _lists(answers.level_probabilities),
    }
    content: dict[str, Any] = {
        "format": FORMAT,
        "version": VERSION,
        "provenance": dict(provenance),
        "tree": tree_content(tree),
    }
    content["num_train"] = None if num_train is None else list(num_train)
    table = pa.table(columns).replace_schema_metadata({METADATA: json.dumps(content)})
    with whole_file(path) as aside:
        pq.write_table(table, aside, row_group_size=ROW_GROUP_ROWS, compression="zstd")


def load_predictions(path: str | Path) -> PredictionFile:
    """Read a file that `save_predictions` wrote; raises ValueError for any other."""
    path = Path(path)
    if not path.is_file():
        raise ValueError(f"{path}: no such file; wanted one that `in21k validate --save-predictions` wrote")
    try:
        table = pq.read_table(path)
        content: Any = json.loads((table.schema.metadata or {}).get(METADATA, b"{}"))
        if (content.get("format"), content.get("version")) != (FORMAT, VERSION):
            raise ValueError(f"it says nothing of {FORMAT} version {VERSION}")
        tree = tree_from(content["tree"])
        flat = {name: torch.from_numpy(_array(table[name])) for name in table.column_names if name != "key"}
        answers = Answers(flat["top"].long(), flat["top_probability"], flat["level"].long(), flat["level_probability"])
        predictions = Predictions(flat["row"], flat["class_index"].long(), flat["probability"], answers)
    except (pa.ArrowException, AttributeError, KeyError, OSError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: no predictions that `in21k validate` saved ({reason})") from error
    return PredictionFile(predictions, tree, content["provenance"], content.get("num_train"))


def _lists(values: Tensor) -> pa.Array:
    return pa.FixedSizeListArray.from_arrays(pa.array(values.reshape(-1).numpy()), values.shape[1])


def _array(column: pa.ChunkedArray) -> np.ndarray[Any, Any]:
    """Return a column of numbers, or of lists of one size, as an array that may be written to."""
    whole = column.combine_chunks()
    if not pa.types.is_fixed_size_list(whole.type):
        return np.array(whole)
    return np.array(whole.flatten()).reshape(-1, whole.type.list_size)
