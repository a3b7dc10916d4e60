"""Multi-label validation: mean average precision, precision and recall."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor, nn

from ...shards.tree import SemanticTree
from ..distributed import Ranks
from ..tracker import Batch
from .validate import answered

MAX_SCORES = 1 << 28  # of a validation, images x labels: every rank holds all of them, 1 GB of logits
_PER_LABEL = pa.schema(
    [
        ("wnid", pa.string()),
        ("name", pa.string()),
        ("num_samples", pa.int64()),
        ("average_precision", pa.float64()),
    ]
)


def average_precisions(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the average precision of each label, 0..1, float64 (C,); NaN for a label that no sample has.

    logits: (N, C), any float type; targets: bool (N, C). It is sum_n (R_n - R_(n-1)) P_n over the distinct scores, from
    the highest down, R_n and P_n being recall and precision of all samples of at least that score: equal scores stand
    and fall together, so that the order of samples, and the number of ranks, play no part.
    """
    from torchmetrics.functional.classification import multilabel_average_precision

    precisions = torch.full((logits.shape[1],), float("nan"), dtype=torch.float64)
    held = targets.any(dim=0)
    # In double precision no two logits of float32 in -36..36 get one probability.
    scores = logits[:, held].double().sigmoid()
    if len(scores) and held.any():
        num_held = int(held.sum())
        if num_held == 1:  # torchmetrics wants two labels at least
            scores, of_held = scores.repeat(1, 2), targets[:, held].repeat(1, 2)
        else:
            of_held = targets[:, held]
        values: Any = multilabel_average_precision(scores, of_held.long(), scores.shape[1], average="none")
        precisions[held.cpu()] = values[:num_held].double().cpu()
    return precisions


def precision_and_recall(logits: Tensor, targets: Tensor) -> dict[str, float]:
    """Return the other usual metrics of MS-COCO, percent: {cp, cr, cf1, op, or, of1}.

    A label is taken as present from the probability 0.5 on.

    cp, cr:     precision and recall of each label, 0 where none was taken as present, their means over the labels that
                some sample has.
    op, or, of1: of all labels of all samples together.
    cf1, of1:   2PR / (P + R) of the two before. cf1 so is not the mean of the labels' F1: as in the published tables
                (ML-GCN, Chen et al., 2019, arXiv:1904.03582).

    logits: (N, C), any float type; targets: bool (N, C), of which one at least holds.
    """
    from torchmetrics.functional.classification import multilabel_stat_scores

    options: dict[str, Any] = {"average": "none", "validate_args": False}
    counts: Tensor = multilabel_stat_scores((logits >= 0).int(), targets.int(), targets.shape[1], **options)
    right, wrong, _, missed, num_held = counts.double().reshape(-1, 5).unbind(dim=1)  # of one label (5,)
    precisions, recalls = right / (right + wrong).clamp(min=1), right / (right + missed).clamp(min=1)
    means = {
        "c": (float(precisions[num_held > 0].mean()), float(recalls[num_held > 0].mean())),
        "o": (float(right.sum() / (right + wrong).sum().clamp(min=1)), float(right.sum() / num_held.sum())),
    }
    result: dict[str, float] = {}
    for word, (precision, recall) in means.items():
        f1 = 2 * precision * recall / (precision + recall) if precision or recall else 0.0
        result |= {f"{word}p": 100 * precision, f"{word}r": 100 * recall, f"{word}f1": 100 * f1}
    return result


def evaluate_labels(
    model: nn.Module,
    loader: Iterable[Batch],
    tree: SemanticTree,
    *,
    table: Tensor,
    amp: str = "off",
    ranks: Ranks | None = None,
    on_batch: Callable[[int], object] | None = None,
) -> dict[str, Any]:
    """Validate a multi-label model that lies on the ranks' device; as `evaluate`, but for what it measures.

    tree:  its classes are the labels.
    table: bool (num_sets, len(tree)).

    Returns {map, map_chance (percent), what `precision_and_recall` returns, num_samples, num_labels, per_label}. map is
    the mean average precision over the num_labels labels that some sample has, map_chance what equal scores for all
    samples would give: the mean share of samples that have a label. per_label is a list of {wnid, name, num_samples,
    average_precision}, the last in percent, None where no sample has it.

    Every rank holds all logits, 4 bytes per sample and label: 13 MB for MS-COCO. Raises ValueError where no
    sample has a label, and above `MAX_SCORES`.
    """
    ranks = ranks or Ranks()
    all_logits: list[Tensor] = [torch.empty(0, len(tree))]
    all_sets: list[Tensor] = [torch.empty(0, dtype=torch.int64)]
    num_scores = 0
    for logits, sets in answered(model, loader, amp=amp, ranks=ranks, on_batch=on_batch):
        all_logits.append(logits.float().cpu())
        all_sets.append(sets.cpu())
        num_scores += logits.numel()
        check_num_scores(num_scores * ranks.world_size, len(tree))
    logits, sets = ranks.gather_rows(torch.cat(all_logits), torch.cat(all_sets))
    targets = table.cpu()[sets]
    if not targets.any():
        raise ValueError("no validation sample has a label; wanted at least one (a val list, or a held-back part)")
    precisions, counts = average_precisions(logits, targets), targets.sum(dim=0)
    held = counts > 0
    return {
        "map": 100 * float(precisions[held].mean()),
        "map_chance": 100 * float(counts[held].double().mean()) / len(sets),
        **precision_and_recall(logits, targets),
        "num_samples": len(sets),
        "num_labels": int(held.sum()),
        "per_label": [
            {
                "wnid": wnid,
                "name": name,
                "num_samples": count,
                "average_precision": 100 * precision if count else None,
            }
            for wnid, name, count, precision in zip(
                tree.wnids, tree.names, counts.tolist(), precisions.tolist(), strict=True
            )
        ],
    }


def per_label(result: Mapping[str, Any]) -> pa.Table:
    """Return the rows of `per_label` in a result of `evaluate_labels` as a table; its columns are their names."""
    return pa.Table.from_pylist(result["per_label"], schema=_PER_LABEL)


def check_num_scores(num_scores: int, num_labels: int) -> None:
    """Raise ValueError where the scores of a validation are more than a rank should hold."""
    if num_scores > MAX_SCORES:
        raise ValueError(
            f"there are more than {MAX_SCORES // num_labels:,} validation images for {num_labels:,} labels, and every "
            "rank would hold all their scores; give a smaller validation list"
        )
