"""`in21k finetune`: a trained network to other data, of one label an image or of several."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import INDEXED_BACKEND_HELP, PATH, device_option, emit, json_option, overwrite_option
from .progress import ProgressLine, TrainLine
from .registries import loss_names
from .terminal import in_one_line
from .train import callbacks, emit_plan, emit_result


@click.command()
@click.option("--init", required=True, help="A run, a checkpoint of one, a file of weights, or a timm model.")
@click.option("--data", required=True, help="Shards, class folders, a list, or coco:, voc: or torchvision: data.")
@click.option("--val-data", type=PATH, help="Data for validation, such as a list; without, a part is held back.")
@click.option("--val-share", type=float, help="The part of each class to hold back; 0: none.  [default: 0.1]")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--data-out", type=PATH, help="The folder for images packed into shards.  [default: OUT-data]")
@click.option("--pack-only", is_flag=True, help="Pack the images and stop.")
@click.option("--max-reject-rate", type=float, help="Fail when more of the images are bad.  [default: 0.01]")
@click.option("--recipe", help="A recipe by name, or a YAML file of settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; may be given several times.")
@click.option("--backend", help=INDEXED_BACKEND_HELP)
@click.option("--model", help="A timm architecture.  [default: that of --init, where it has one]")
@click.option("--loss", help=f"One of {loss_names()}; several labels take the last two.")
@device_option
@click.option("--dry-run", is_flag=True, help="Show the resolved plan and stop; images need not be packed.")
@click.option(
    "--workers",
    type=click.IntRange(1, 1024),
    help="Processes that pack images; those of loaders are --set workers=N.  [default: one for each core]",
)
@overwrite_option
@json_option
def finetune(
    init: str,
    data: str,
    val_data: Path | None,
    val_share: float | None,
    out: Path,
    data_out: Path | None,
    pack_only: bool,
    max_reject_rate: float | None,
    recipe: str | None,
    sets: tuple[str, ...],
    backend: str | None,
    model: str | None,
    loss: str | None,
    device: str | None,
    dry_run: bool,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Train a network on other data, starting from the weights of --init. Everything else is as in `in21k train`.

    --data is one of: shards (a folder or a URL); class folders, FOLDER/CLASS/... or FOLDER/train/CLASS/... and
    FOLDER/val/CLASS/...; a list of `path label[,label]` lines (`-` for no label), JSON lines (`path`, `labels`) or CSV
    (`path,label`), with paths relative to the list's folder; coco:IMAGES,instances.json or voc:FOLDER
    (VOCdevkit/VOC2007), whose labels are the categories; or torchvision:NAME:FOLDER, which downloads nothing. Any
    other input than shards is first packed into shards in OUT-data, which later runs take as their --data. Where an
    image has several labels, validation measures the mAP.

    The model, its arguments and the normalisation are those of --init, unless --model or --set says otherwise. A head
    for other classes starts from random weights (--set init_head=slice takes the rows of its classes by wnid).
    """
    from ..training import jobs
    from ..training.recipes import parse_sets

    packing = jobs.Packing(
        val_data=val_data, val_share=val_share, out=data_out, max_reject_rate=max_reject_rate, workers=workers
    )
    flags = {"init": init, "backend": backend, "model": model, "loss": loss}
    job: dict[str, Any] = {"recipe": recipe, "settings": parse_sets(sets, flags), "packing": packing}
    job["overwrite"] = overwrite
    if dry_run:
        plan = jobs.plan_finetuning(init, data, out, **job, device=device)
        note = f"\n{in_one_line(data)} is not packed yet: images that cannot be read will be left out"
        emit_plan(plan, note="" if plan.get("packed", True) else note, as_json=as_json)
    elif pack_only:
        shards = jobs.pack_images(init, data, out, **job, on_pack=ProgressLine).shards
        counts = " + ".join(f"{count:,} {split}" for split, count in shards.num_samples.items())
        result = {"path": shards.location, "num_samples": shards.num_samples}
        emit(result, in_one_line(f"{shards.location}: {counts}"), as_json=as_json)
    else:
        with TrainLine() as line:
            trained = jobs.finetune(init, data, out, **job, device=device, on_pack=ProgressLine, **callbacks(line))
        emit_result(out, trained, as_json=as_json)
