"""`in21k retrieve`: the images that are most like an image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PATH, PATH_OR_URL, device_option, emit, json_option, overwrite_option, table, weights_option
from .pictures import check_picture, save_picture
from .progress import ProgressLine


@click.command()
@click.argument("features", type=PATH)
@click.argument("queries", metavar="IMAGE_OR_KEY...", nargs=-1, required=True)
@click.option("--count", type=click.IntRange(1, 100), default=10, show_default=True, help="Of nearest images.")
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
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Find the images of FEATURES (a file that `in21k features` wrote) that are nearest to others, by cosine.

    A query is the key of an image among them (n01440764_10026), which is left out of its own answers, or an image file.
    For image files, give by --model the run, checkpoint, file of weights or timm model that made the features; one with
    other weights is refused. Names and pictures of the answers come from the shards that --data names.
    """
    from ..training.jobs.retrieve_job import retrieve as retrieve_job
    from ..training.jobs.setup import EvalSettings

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
