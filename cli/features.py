"""`in21k features`: the vector that a network makes of every image of a split."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

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
    weights_option,
    workers_option,
)
from .progress import ProgressLine

if TYPE_CHECKING:
    from ..training.inference.layers import Layer

LIST = "list"


@click.command()
@click.argument("model")
@click.argument("out", metavar="OUT.parquet|OUT.npy", type=PATH, required=False)
@click.option("--data", type=PATH_OR_URL, help="The shards, or their URL, or what `in21k finetune` packed.")
@click.option("--split", default="val", show_default=True, help="train or val.")
@click.option("--layer", default="pre-logits", show_default=True, help="The layer; `list` prints every layer.")
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="How to store."
)
@weights_option
@file_options
@click.option("--image-size", type=click.IntRange(1, 8192), help="Pixels.  [default: as the network was trained]")
@backend_option
@batch_size_option("256")
@click.option(
    "--amp",
    type=click.Choice(["auto", "off", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Mixed precision; auto: bf16 on a GPU, off on a CPU.",
)
@device_option
@workers_option
@loader_sets_option
@overwrite_option
@json_option
def features(
    model: str, out: Path | None, data: Path | str | None, overwrite: bool, as_json: bool, **settings: Any
) -> None:
    """Write the features of every image of a split. MODEL is a run, a checkpoint, a file of weights or a timm model.

    A row is an image: its key, wnid and class index, and the features of a layer, averaged over space. Rows are in the
    manifest's order, whatever the loader, the workers and the ranks. Corrupt images are left out and logged. An .npy
    holds the features alone, N x D, and NAME.keys.parquet beside it the rest. Images are prepared as the network was
    trained. After a kill the same command resumes; other settings need --overwrite. Under torchrun each rank does its
    share.
    """
    from ..training.distributed import is_first_rank
    from ..training.inference.layers import list_layers
    from ..training.jobs.features_job import FeatureSettings, extract_features
    from ..training.jobs.setup import open_network

    chosen = FeatureSettings.parse(**settings)
    opened = open_network(model, chosen)
    if chosen.layer == LIST:
        _print_layers(list_layers(opened.model, chosen.image_size or opened.image_size), as_json=as_json)
        return
    if out is None or data is None:
        raise ValueError("the images and the output are missing; give --data SHARDS and OUT")
    with ProgressLine("features") as progress:
        extracted = extract_features(opened, data, out, chosen, overwrite=overwrite, on_progress=progress)
    if is_first_rank():
        result = {
            "path": str(out),
            "num_rows": extracted.num_rows,
            "left_out": extracted.num_corrupt,
            **extracted.provenance,
        }
        prefix = "finished already: " if extracted.was_finished else ""
        emit(result, lambda printable: prefix + _render(printable), as_json=as_json)


def _print_layers(layers: list[Layer], *, as_json: bool) -> None:
    result = [
        {"layer": layer.name, "kind": layer.kind, "shape": list(layer.shape), "num_features": layer.num_features}
        for layer in layers
    ]
    rows = [[layer.name, layer.kind, " x ".join(map(str, layer.shape)), str(layer.num_features)] for layer in layers]
    emit(result, table([["layer", "kind", "shape of an image's output", "features"], *rows]), as_json=as_json)


def _render(result: dict[str, Any]) -> str:
    left_out = f"; {result['left_out']:,} corrupt images left out" if result["left_out"] else ""
    return (
        f"{result['path']}: {result['num_rows']:,} images of {result['split']}, {result['num_features']:,} features "
        f"each ({result['dtype']}) of {result['model']}, layer {result['layer']}{left_out}"
    )
