"""`in21k features`: what a network makes of every image of a split, one vector each."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import (
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
from .progress import ProgressLine

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..shards import ShardSet
    from ..training.distributed import Ranks
    from ..training.features.row_store import RowStore
    from ..training.inference.layers import Layer
    from ..training.inference.open_model import OpenModel

LIST = "list"


@click.command()
@click.argument("model")
@click.argument("out", metavar="OUT.parquet|OUT.npy", type=PATH, required=False)
@click.option("--data", type=PATH_OR_URL, help="The shards, or their URL, or what `in21k finetune` packed.")
@click.option("--split", default="val", show_default=True, help="train or val.")
@click.option("--layer", default="pre-logits", show_default=True, help="Of which layer; `list` prints those there are.")
@click.option(
    "--dtype", type=click.Choice(["float16", "float32"]), default="float16", show_default=True, help="How to store."
)
@weights_option
@click.option("--image-size", type=click.IntRange(1, 8192), help="Pixels.  [default: as the network was trained]")
@click.option(
    "--backend", default="auto", show_default=True, help="The loader: auto, dali_gpu, dali_cpu, opencv, torch."
)
@click.option("--batch-size", type=click.IntRange(1, 65_536), default=256, show_default=True, help="Images per rank.")
@click.option(
    "--amp",
    type=click.Choice(["auto", "off", "bf16", "fp16"]),
    default="auto",
    show_default=True,
    help="Mixed precision; auto: bf16 on a GPU, off on a CPU.",
)
@device_option
@workers_option
@overwrite_option
@json_option
def features(
    model: str,
    out: Path | None,
    data: Path | str | None,
    split: str,
    layer: str,
    dtype: str,
    weights: Literal["last", "best", "ema"],
    image_size: int | None,
    backend: str,
    batch_size: int,
    amp: str,
    device: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write the features of every image of a split: MODEL is a run, a checkpoint of one, or a timm model by its name.

    A row is an image: its key, wnid and class index, and the features of a layer, averaged over space. Rows are in the
    manifest's order, whatever the loader, the workers and the ranks; corrupt images are left out, and the log names
    them. An .npy holds the features alone, N x D, and NAME.keys.parquet beside it the rest. Images are prepared as the
    network was trained. Killed on the way, the same command goes on, and one of other settings is refused unless
    --overwrite; under torchrun each rank does its share.
    """
    from ..training import open_model
    from ..training.distributed import join_ranks
    from ..training.features.feature_file import open_features
    from ..training.inference.layers import list_layers

    opened = open_model(model, weights)
    size = image_size or opened.image_size
    if layer == LIST:
        _list(list_layers(opened.model, size), as_json=as_json)
        return
    if out is None or data is None:
        raise ValueError("nothing says where the images are and where the features go; give --data SHARDS and OUT")
    _check_batch(batch_size, size)
    shards = _open(data)
    provenance = _describe(opened, shards, weights, split, layer, dtype, size)
    with join_ranks(device) as ranks:
        provenance["amp"] = ("bf16" if ranks.device.type == "cuda" else "off") if amp == "auto" else amp
        ranks.check_alike(provenance)
        settings = {"backend": backend, "batch_size": batch_size, "workers": workers}
        found = _prepared(out, provenance, ranks, overwrite=overwrite)
        if not found:
            _make(out, opened, shards, provenance, ranks, settings, overwrite=overwrite)
        if ranks.is_first:
            file = open_features(out)
            result = {
                "path": str(out),
                "num_rows": len(file),
                "left_out": provenance["num_samples"] - len(file),
                **provenance,
            }
            emit(result, lambda shown: ("finished already: " if found else "") + _render(shown), as_json=as_json)


def _check_batch(batch_size: int, image_size: int) -> None:
    """Raise ValueError where not even the bytes of a batch's pixels fit into the memory that is free."""
    from ..training.features.feature_file import free_bytes

    needed, free = 3 * batch_size * image_size**2, free_bytes()
    if needed > free:
        raise ValueError(
            f"a batch of {batch_size:,} images of {image_size} pixels takes {needed / 1e9:,.1f} GB of memory or more, "
            f"and {free / 1e9:,.1f} GB are free; lower --batch-size or --image-size"
        )


def _open(data: Path | str) -> ShardSet:
    """Open the shards; raises ValueError where their classes are label sets, of which a features file says nothing."""
    from ..training.jobs.finetune_data import open_finished

    found = open_finished(str(data))
    if found.sets is not None:
        raise ValueError(
            f"{data}: its images have several labels, and a row of features has one class; give "
            f"{found.shards.location}, where each label set is a class of its own"
        )
    return found.shards


def _describe(
    opened: OpenModel, shards: ShardSet, weights: str, split: str, layer: str, dtype: str, image_size: int
) -> dict[str, Any]:
    """Return what shapes the features: it goes into the file."""
    from ..models.trial import try_images
    from ..training.inference.layers import FeatureExtractor

    if split not in shards.num_samples:
        raise ValueError(f"{shards.location}: has no split {split!r}; it holds {', '.join(shards.num_samples)}")
    extractor = FeatureExtractor(opened.model, layer)
    width = try_images(extractor, image_size, name=opened.name, option="--image-size ").num_outputs
    return {
        "model": opened.name,
        "weights": weights if opened.run else "published",
        "fingerprint": opened.fingerprint(),
        "layer": layer,
        "num_features": width,
        "dtype": dtype,
        "image_size": image_size,
        "crop_pct": opened.crop_pct,
        "mean": list(opened.mean),
        "std": list(opened.std),
        "shards": shards.fingerprint,
        "split": split,
        "num_samples": shards.num_samples[split],
    }


def _prepared(out: Path, provenance: dict[str, Any], ranks: Ranks, *, overwrite: bool) -> bool:
    """Return whether the file is there already; what rank 0 finds wrong is a ValueError on every rank."""
    from ..training.features.feature_file import finished_features
    from ..training.features.row_store import remove_leftover_rows

    found, problem = False, ""
    if ranks.is_first:
        try:
            found = finished_features(out, provenance, overwrite=overwrite) is not None
            if found:
                remove_leftover_rows(out)
        except ValueError as error:
            problem = str(error)
    found, problem = ranks.gather_json([found, problem])[0]
    if problem:
        raise ValueError(problem)
    return found


def _make(
    out: Path,
    opened: OpenModel,
    shards: ShardSet,
    provenance: dict[str, Any],
    ranks: Ranks,
    settings: dict[str, Any],
    *,
    overwrite: bool,
) -> None:
    import torch

    from ..datapipe.rows import create_row_loader
    from ..shards.files.parallel import Progress
    from ..training.features.feature_file import write_features
    from ..training.features.features import collect_features
    from ..training.features.row_store import RowStore
    from ..training.inference.layers import FeatureExtractor

    split = shards.split(provenance["split"])
    loader = create_row_loader(
        shards,
        split,
        **settings,
        image_size=provenance["image_size"],
        crop_pct=opened.crop_pct,
        rank=ranks.rank,
        world_size=ranks.world_size,
        device=ranks.device,
    )
    shape = (len(split), provenance["num_features"])
    with ExitStack() as stack:
        stack.callback(loader.close)
        work = RowStore(out, provenance, shape, provenance["dtype"], overwrite=overwrite)
        store = _enter_store(stack, work, out, provenance, ranks, overwrite=overwrite)
        progress = stack.enter_context(ProgressLine("features"))
        done = store.place["samples"] if store and store.place else 0

        def on_rows(num_rows: int) -> None:
            nonlocal done
            done += num_rows
            progress(Progress(min(1.0, done / len(split)), done, 0))

        collect_features(
            FeatureExtractor(opened.model, provenance["layer"]).to(ranks.device),
            loader,
            store,
            normalize=opened.normalize,
            num_features=shape[1],
            dtype=getattr(torch, provenance["dtype"]),
            amp=provenance["amp"],
            ranks=ranks,
            on_rows=on_rows,
        )
        if store:
            rows = _rows(shards, int(split.manifest_rows.min()), store, len(split))
            write_features(out, rows, provenance, store.num_filled, provenance["dtype"])
            store.remove()


def _enter_store(
    stack: ExitStack, store: RowStore, out: Path, provenance: dict[str, Any], ranks: Ranks, *, overwrite: bool
) -> RowStore | None:
    """Take the work file on rank 0; None on the others. What is wrong with it is a ValueError on every rank."""
    from ..training.features.feature_file import finished_features

    problem = ""
    if ranks.is_first:
        try:
            stack.enter_context(store)
            if finished_features(out, provenance, overwrite=overwrite) is not None:
                problem = f"{out}: another in21k has finished it meanwhile; start the same command again to use it"
        except (OSError, ValueError) as error:
            problem = str(error)
    problem = ranks.gather_json(problem)[0]
    if problem:
        raise ValueError(problem)
    return store if ranks.is_first else None


def _rows(shards: ShardSet, first: int, store: RowStore, num_rows: int) -> Iterator[tuple[Any, Any]]:
    """Yield key, wnid and class index of some images at a time, and their features, in the manifest's order."""
    from ..shards.manifest import read_row_groups
    from ..training.features.feature_file import KEYS as FEATURE_KEYS

    start = 0
    columns = list(FEATURE_KEYS)
    for keys in read_row_groups(shards.manifest_path, columns, rows=range(first, first + num_rows)):
        for part in range(0, keys.num_rows, size := 4096):
            some = keys.slice(part, size)
            filled, values = store.part(start, start + some.num_rows)
            yield some.filter(filled), values
            start += some.num_rows


def _list(layers: list[Layer], *, as_json: bool) -> None:
    result = [
        {"layer": each.name, "kind": each.kind, "shape": list(each.shape), "num_features": each.num_features}
        for each in layers
    ]
    rows = [[each.name, each.kind, " x ".join(map(str, each.shape)), str(each.num_features)] for each in layers]
    emit(result, table([["layer", "kind", "of an image", "features"], *rows]), as_json=as_json)


def _render(result: dict[str, Any]) -> str:
    left = f"; {result['left_out']:,} corrupt ones left out" if result["left_out"] else ""
    return (
        f"{result['path']}: {result['num_rows']:,} images of {result['split']}, {result['num_features']:,} features "
        f"each ({result['dtype']}) of {result['model']}, layer {result['layer']}{left}"
    )
