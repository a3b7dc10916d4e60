"""`in21k validate`: how good a trained network is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import click

from .options import PATH, PATH_OR_URL, device_option, emit, json_option, table, weights_option, workers_option
from .progress import ProgressLine


@click.command()
@click.argument("run_or_checkpoint", type=PATH)
@click.option("--data", type=PATH_OR_URL, required=True, help="The shards, or their URL; the validation split is used.")
@weights_option
@click.option("--backend", default="auto", show_default=True, help="The loader: auto, dali_gpu, dali_cpu or torch.")
@click.option("--batch-size", type=click.IntRange(min=1), help="Images per rank.  [default: as in training]")
@device_option
@workers_option
@json_option
def validate(
    run_or_checkpoint: Path,
    data: Path | str,
    weights: Literal["last", "best", "ema"],
    backend: str,
    batch_size: int | None,
    device: str | None,
    workers: int | None,
    as_json: bool,
) -> None:
    """Measure RUN_OR_CHECKPOINT on the validation split of shards.

    Semantic top-1 counts an image once for each level of the tree that its class reaches; the answer of a level is the
    likeliest of its classes. top-1 and top-5 are over all classes.
    """
    from .. import training
    from ..datapipe import create_loader
    from ..shards import open_dataset
    from ..shards.parallel import Progress

    shards = open_dataset(data)
    saved = training.load_run(run_or_checkpoint, weights)
    if saved.tree.wnids != shards.tree.wnids:
        raise ValueError(
            f"{run_or_checkpoint} knows {len(saved.tree)} classes, {data} has {len(shards.tree)}, and they are not "
            "the same; give the shards it was trained on"
        )
    settings = saved.settings
    num_samples = shards.num_samples.get("val", 0)
    with training.join_ranks(device) as ranks, ProgressLine("validate") as progress:
        loader = create_loader(
            shards,
            split="val",
            backend=backend,
            batch_size=batch_size or settings.batch_size,
            image_size=settings.image_size or 224,
            rank=ranks.rank,
            world_size=ranks.world_size,
            workers=workers,
            device=ranks.device,
            normalize=settings.normalize,
            channels_last=settings.channels_last,
            crop_pct=settings.crop_pct,
        )
        done = 0

        def on_batch(num_images: int) -> None:
            nonlocal done
            done += num_images * ranks.world_size
            progress(Progress(min(1.0, done / num_samples), done, 0))

        amp = settings.amp if ranks.device.type == "cuda" else "off"
        try:
            model = saved.model.to(ranks.device)
            result = training.evaluate(model, loader, shards.tree, amp=amp, ranks=ranks, on_batch=on_batch)
        finally:
            loader.close()
        if ranks.is_first:
            emit(result, _render(result), as_json=as_json)


def _render(result: dict[str, Any]) -> str:
    levels = [["level", "classes", "samples", "top-1 %"]]
    for row in result["per_level"]:
        top1 = "-" if row["top1"] is None else f"{row['top1']:.1f}"
        levels.append([str(row["level"]), f"{row['num_classes']:,}", f"{row['num_samples']:,}", top1])
    return (
        f"semantic top-1 {result['semantic_top1']:.1f} % "
        f"(always the commonest answer: {result['semantic_top1_commonest']:.1f} %)\n"
        f"top-1 {result['top1']:.1f} %, top-5 {result['top5']:.1f} % over all classes, "
        f"{result['num_samples']:,} samples\n\n{table(levels)}"
    )
