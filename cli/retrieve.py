"""`in21k retrieve`: the images that are most like an image."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import PATH, PATH_OR_URL, device_option, emit, json_option, overwrite_option, table, weights_option
from .pictures import check_picture, save_picture
from .progress import ProgressLine

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from ..shards import ShardSet
    from ..training.features.feature_file import FeatureFile


@click.command()
@click.argument("features", type=PATH)
@click.argument("queries", metavar="IMAGE_OR_KEY...", nargs=-1, required=True)
@click.option("--count", type=click.IntRange(1, 100), default=10, show_default=True, help="Of nearest images.")
@click.option("--model", help="The network that made the features, for images that are not among them.")
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
    weights: Literal["last", "best", "ema"],
    data: Path | str | None,
    picture: Path | None,
    device: str | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Find the images of FEATURES (a file that `in21k features` wrote) that are nearest to others, by cosine.

    A query is the key of an image among them (n01440764_10026), which is no answer to itself, or an image file; for
    the latter say by --model what made the features, a run, a checkpoint or a timm model: it is refused where its
    weights are others. Names and pictures of the answers come from the shards that --data names.
    """
    from ..training.distributed import lone_device
    from ..training.features.feature_file import open_features
    from ..training.features.retrieve import retrieve as training_retrieve
    from ..training.jobs.finetune_data import open_finished
    from .image_sources import own_limit

    where = lone_device(device)
    if not features.exists():
        raise ValueError(
            f"{features}: does not exist; wanted features that `in21k features` wrote: NAME.parquet, or NAME.npy with "
            "NAME.keys.parquet beside it"
        )
    if picture:
        if data is None:
            raise ValueError("--picture draws images that the shards hold; say by --data where those are")
        check_picture(picture, overwrite=overwrite)
    file = open_features(features)
    shards = open_finished(str(data)).shards if data is not None else None
    if shards and shards.fingerprint != file.provenance["shards"]:
        raise ValueError(f"{features} was not made from {data}; give the shards that it was made from")
    paths = {query: Path(query) for query in queries if Path(query).is_file()}
    rows = dict(zip(keys := [query for query in queries if query not in paths], file.find(keys), strict=True))
    with own_limit(), ProgressLine("retrieve") as progress:
        vectors = _vectors(file, rows, paths, model, weights, str(where))
        found = training_retrieve(
            file,
            [vectors[query] for query in queries],
            count,
            own_rows=[rows.get(query) for query in queries],
            device=where,
            on_rows=lambda done, total: progress.show(f"{done:,} of {total:,} rows compared", done / total),
        )
    names = dict(zip(shards.tree.wnids, shards.tree.names, strict=True)) if shards else {}
    result = [
        {
            "query": query,
            **_class_of(query, file, rows, names),
            "nearest": [{**each, **({"name": names[each["wnid"]]} if names else {})} for each in nearest],
        }
        for query, nearest in zip(queries, found, strict=True)
    ]
    if picture and shards:
        _draw(picture, file, shards, result, paths)
    emit(result, lambda rows: "\n\n".join(map(_render, rows)), as_json=as_json)


def _class_of(query: str, file: FeatureFile, rows: dict[str, int], names: dict[str, str]) -> dict[str, str]:
    """Return {wnid, name}, as far as they are known."""
    if query not in rows:
        return {}
    ((_, wnid),) = file.names([rows[query]])
    return {"wnid": wnid} | ({"name": names[wnid]} if names else {})


def _vectors(
    file: FeatureFile, rows: dict[str, int], paths: dict[str, Path], model: str | None, weights: Any, device: str
) -> dict[str, NDArray[Any]]:
    """Return the features of each query, (D,): from the file by key, or by the network for an image file."""
    from ..training import extract_features, open_model

    vectors = dict(zip(rows, file.rows(list(rows.values())), strict=True))
    if not paths:
        return vectors
    made = file.provenance
    if model is None:
        raise ValueError(
            f"{next(iter(paths))}: is an image; say by --model what made {file.path} ({made['model']}, weights "
            f"{made['weights']}), so that it can be compared"
        )
    opened = open_model(model, weights)
    if opened.fingerprint() != made["fingerprint"]:
        raise ValueError(
            f"{model}: has other weights than what made {file.path} ({made['model']}, weights {made['weights']}, "
            f"fingerprint {made['fingerprint']}); give that one"
        )
    found = extract_features(
        replace(opened, image_size=made["image_size"]), list(paths.values()), layer=made["layer"], device=device
    )
    return vectors | dict(zip(paths, found.numpy(), strict=True))


def _draw(
    picture: Path, file: FeatureFile, shards: ShardSet, result: list[dict[str, Any]], paths: dict[str, Path]
) -> None:
    from ..datapipe.rows import read_images
    from .retrieved_picture import draw_retrieved

    stored = {each["key"] for row in result for each in row["nearest"]} | {
        row["query"] for row in result if row["query"] not in paths
    }
    split = shards.split(file.provenance["split"])
    images = dict(zip(keys := sorted(stored), read_images(shards, split, keys), strict=True))
    images |= {query: _read(path) for query, path in paths.items()}
    subtitle = (
        f"{len(file):,} images of {file.provenance['split']}, by the cosine of {file.provenance['layer']} features"
    )
    title = f"What {file.provenance['model']} finds alike"
    save_picture(draw_retrieved(result, images, title, subtitle), picture)


def _read(path: Path) -> NDArray[np.uint8]:
    import numpy as np

    from ..training.inference.images import read_image
    from .image_sources import own_limit

    with own_limit():
        return np.array(read_image(path))


def _render(row: dict[str, Any]) -> str:
    known = ", ".join(row[name] for name in ("wnid", "name") if name in row)
    head = f"{row['query']} ({known})" if known else row["query"]
    rows = [
        [each["key"], each["wnid"], *([each["name"]] if "name" in each else []), f"{each['similarity']:.3f}"]
        for each in row["nearest"]
    ]
    titles = ["nearest", "wnid", *(["name"] if len(rows[0]) == 4 else []), "cosine"]
    return f"{head}\n{table([titles, *rows])}"
