"""`in21k retrieve`: the images that are most like an image."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    PATH,
    PATH_OR_URL,
    device_option,
    emit,
    json_option,
    overwrite_option,
    table,
    tree_option,
    weights_option,
)
from .pictures import check_picture, save_picture
from .progress import ProgressLine

if TYPE_CHECKING:
    from ..shards import SemanticTree


@click.command()
@click.argument("features", type=PATH)
@click.argument("queries", metavar="IMAGE_OR_KEY...", nargs=-1)
@click.option(
    "--count", type=click.IntRange(1, 100), default=10, show_default=True, help="Of nearest images; the k of mAP@k."
)
@click.option("--evaluate", is_flag=True, help="Measure instead how well every image of the file finds its class.")
@tree_option
@click.option("--model", help="The network that made the features, for images that are not among them.")
@click.option("--architecture", metavar="NAME", help="Of --model, where it is a file of weights.")
@weights_option
@click.option("--data", type=PATH_OR_URL, help="The shards of the features: for names and pictures.")
@click.option("--picture", type=PATH, help="Also draw queries and nearest images into this PNG; needs --data.")
@device_option
@overwrite_option
@json_option
def retrieve(
    features: Path,
    queries: tuple[str, ...],
    count: int,
    model: str | None,
    data: Path | str | None,
    picture: Path | None,
    evaluate: bool,
    tree: SemanticTree | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find the images of FEATURES (a file that `in21k features` wrote) that are nearest to others, by cosine.

    A query is the key of an image among them (n01440764_10026), which is left out of its own answers, or an image file.
    For image files, give by --model the run, checkpoint, file of weights or timm model that made the features; one with
    other weights is refused. Names and pictures of the answers come from the shards that --data names.

    With --evaluate every image of FEATURES is a query for the others; a hit is an image of the same class. recall@1, 5
    and 10 are the shares of queries with a hit among so many nearest images. With --tree these and mAP@k are measured
    for each level, too: a hit is then an image with the same ancestor there.
    """
    from ..training.jobs.retrieve_job import evaluate_retrieval
    from ..training.jobs.retrieve_job import retrieve as retrieve_job
    from ..training.jobs.setup import EvalSettings

    if evaluate:
        if queries or model or data or picture:
            raise ValueError("--evaluate takes FEATURES alone: leave out queries, --model, --data and --picture")
        with ProgressLine("retrieve") as progress:
            result = evaluate_retrieval(features, EvalSettings(**settings), k=count, tree=tree, on_progress=progress)
        emit(result, _render_metrics, as_json=as_json)
        return
    if not queries or tree:
        raise ValueError("give keys or image files to find the nearest images of, or --evaluate; --tree goes with it")
    if picture:
        if data is None:
            raise ValueError("--picture draws images that the shards hold; give the shards by --data")
        check_picture(picture, overwrite=overwrite)
    with ProgressLine("retrieve") as progress:
        retrieved = retrieve_job(
            features, queries, EvalSettings(**settings), count=count, model=model, data=data, on_progress=progress
        )
    if picture:
        save_picture(retrieved.draw(), picture)
    emit(retrieved.rows, lambda rows: "\n\n".join(map(_render, rows)), as_json=as_json)


def _render(row: dict[str, Any]) -> str:
    known = ", ".join(row[name] for name in ("wnid", "name") if name in row)
    head = f"{row['query']} ({known})" if known else row["query"]
    columns = [name for name in ("key", "wnid", "name") if name in row["nearest"][0]]
    rows = [[*(answer[name] for name in columns), f"{answer['similarity']:.3f}"] for answer in row["nearest"]]
    return f"{head}\n{table([['nearest', *columns[1:], 'cosine'], *rows])}"


def _render_metrics(result: dict[str, Any]) -> str:
    names = ("recall_at_1", "recall_at_5", "recall_at_10", "map_at_k")
    rows = [["a hit is of", "classes", "queries", "recall@1 %", "recall@5 %", "recall@10 %", f"mAP@{result['k']} %"]]
    kinds = [("the same class", result)]
    kinds += [(f"the same ancestor at level {row['level']}", row) for row in result.get("per_level", [])]
    for kind, row in kinds:
        scores = ["-" if row[name] is None else f"{row[name]:.1f}" for name in names]
        rows.append([kind, f"{row['num_classes']:,}", f"{row['num_queries']:,}", *scores])
    return f"{result['num_images']:,} images, {result['num_features']:,} features\n{table(rows)}"
