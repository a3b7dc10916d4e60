"""`in21k knn`: nearest-neighbour classification of cached features."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, device_option, emit, json_option, table, tree_option
from .progress import ProgressLine

if TYPE_CHECKING:
    from ..shards import SemanticTree


@click.command()
@click.argument("train_features", type=PATH)
@click.argument("test_features", type=PATH)
@click.option(
    "--k", "ks", type=int, multiple=True, help="Neighbours; may be given several times.  [default: 10, 20, 100, 200]"
)
@click.option("--temperature", type=float, default=0.07, show_default=True, help="Of the votes, exp(cosine / it).")
@tree_option
@device_option
@json_option
def knn(
    train_features: Path,
    test_features: Path,
    ks: tuple[int, ...],
    temperature: float,
    tree: SemanticTree | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Classify TEST_FEATURES by the nearest of TRAIN_FEATURES: files that `in21k features` wrote.

    Each of the k nearest by cosine votes for its class with the weight exp(cosine / temperature), as Wu et al. (2018)
    and DINO have it. Both files are read a part at a time. In the semantic top-1 a vote counts for the ancestors too.
    """
    from ..training.distributed import lone_device
    from ..training.features.feature_file import open_features
    from ..training.features.knn import default_ks
    from ..training.features.knn import knn as training_knn

    where = lone_device(device)
    train, test = open_features(train_features), open_features(test_features)
    with ProgressLine("knn") as progress:
        result = training_knn(
            train,
            test,
            ks=ks or default_ks(len(train)),
            temperature=temperature,
            tree=tree,
            device=where,
            on_progress=progress,
        )
    emit(result, _render, as_json=as_json)


def _render(result: dict[str, Any]) -> str:
    from ..training.metric_names import measured

    metrics = [metric for metric, _ in measured(result["results"][0])]
    rows = [["k", *(f"{metric.title} %" for metric in metrics)]]
    rows += [[str(row["k"]), *(f"{row[metric.name]:.1f}" for metric in metrics)] for row in result["results"]]
    return (
        f"{result['num_test']:,} rows by their nearest of {result['num_train']:,}: {result['num_features']:,} "
        f"features, {result['num_classes']:,} classes\n\n{table(rows)}"
    )
