"""`in21k finetune`: a trained network to other data, of one label an image or of several."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .finetune_data import find_data, is_finished_data, open_finished, pack_data
from .options import PATH, device_option, emit, json_option, overwrite_option
from .terminal import in_one_line
from .train import Labels, check_device, run_training
from .train_plan import PlannedData, add_memory, make_plan, render_plan
from .tree import say_flat

if TYPE_CHECKING:
    from ..preprocess.pack_labelled import LabelledData, LabelledSet, Outline
    from ..training import TrainSettings
    from ..training.recipes import Resolved
    from ..training.start import Start

DEFAULT_SIZE = 224
MAX_REJECT_RATE = 0.01


@click.command()
@click.option("--init", required=True, help="A run, a checkpoint of one, a file of weights, or a timm model.")
@click.option("--data", required=True, help="Shards, class folders, a list, or torchvision:NAME:FOLDER.")
@click.option("--val-data", type=PATH, help="Class folders or a list for validation; without, a part is held back.")
@click.option("--val-share", type=float, help="The part of each class to hold back; 0: none.  [default: 0.1]")
@click.option("--out", type=PATH, required=True, help="The run's folder.")
@click.option("--data-out", type=PATH, help="The folder for images packed into shards.  [default: OUT-data]")
@click.option("--pack-only", is_flag=True, help="Pack the images and stop.")
@click.option("--max-reject-rate", type=float, help="Fail when more of the images are bad.  [default: 0.01]")
@click.option("--recipe", help="A recipe by name, or a YAML file of settings.")
@click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help="A setting; may be given several times.")
@click.option("--backend", help="The loader: auto, dali_gpu, dali_cpu, opencv or torch.")
@click.option("--model", help="A timm architecture.  [default: that of --init, where it has one]")
@click.option("--loss", help="semantic, cross-entropy, bce or asymmetric; several labels take the last two.")
@device_option
@click.option(
    "--dry-run", is_flag=True, help="Show the resolved plan and stop; images have to be packed (--pack-only) first."
)
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
    """Train a network on other data, beginning with the weights of --init. Everything else is as in `in21k train`.

    --data is one of: shards (a folder or a URL); class folders, FOLDER/CLASS/... or FOLDER/train/CLASS/... and
    FOLDER/val/CLASS/...; a list of `path label[,label]` lines (`-` for no label), JSON lines (`path`, `labels`) or CSV
    (`path,label`), with paths relative to the list's folder; or torchvision:NAME:FOLDER, which downloads nothing. Any
    other input than shards is first packed into shards in OUT-data, which later runs take as their --data. Where an
    image has several labels, validation measures the mAP.

    The model, its arguments and the normalisation are those of --init, unless --model or --set says otherwise. A head
    with other classes begins anew (--set init_head=slice takes the rows of its classes by wnid).
    """
    from ..training.recipes import resolve_with_sources
    from ..training.start import check_start, open_start

    if val_share is not None and not 0 <= val_share < 1:
        raise ValueError(f"--val-share is {val_share}; wanted a part of the images, 0 or more and less than 1")
    if max_reject_rate is not None and not 0 <= max_reject_rate <= 1:
        raise ValueError(f"--max-reject-rate is {max_reject_rate}; wanted a part of the images, 0 to 1")
    flags = {"init": init, "backend": backend, "model": model, "loss": loss}
    resolved = resolve_with_sources(recipe, sets, flags)
    start = open_start(resolved.settings.init or init)
    settings = _started(resolved, start)
    if is_finished_data(data):
        of_packing = {
            "--val-data": val_data,
            "--val-share": val_share,
            "--data-out": data_out,
            "--pack-only": pack_only or None,
            "--max-reject-rate": max_reject_rate,
        }
        if given := [name for name, value in of_packing.items() if value is not None]:
            raise ValueError(
                f"{data}: are shards, with their own split; leave out what is about packing: {', '.join(given)}"
            )
        found = open_finished(data)
    else:
        settings = replace(settings, image_size=settings.image_size or _own_size(start))
        labelled = find_data(data, val_data, val_share, settings)
        data_out = data_out or out.with_name(f"{out.name}-data")
        check_start(settings, start, int(os.environ.get("WORLD_SIZE", "1")))
        if dry_run and not labelled.is_packed(data_out):
            _plan_unpacked(labelled, data_out, out, settings, start, device=device, as_json=as_json)
            return
        found = pack_data(
            labelled,
            data_out,
            max_reject_rate=MAX_REJECT_RATE if max_reject_rate is None else max_reject_rate,
            workers=workers,
            overwrite=overwrite,
        )
    if pack_only:
        counts = found.shards.num_samples
        text = f"{found.shards.location}: {' + '.join(f'{count:,} {split}' for split, count in counts.items())}"
        emit({"path": found.shards.location, "num_samples": counts}, in_one_line(text), as_json=as_json)
        return
    run_training(
        found.shards,
        out,
        settings,
        start=start,
        labels=_labels(found),
        device=device,
        dry_run=dry_run,
        overwrite=overwrite,
        as_json=as_json,
    )


def _plan_unpacked(
    data: LabelledData,
    data_out: Path,
    out: Path,
    settings: TrainSettings,
    start: Start,
    *,
    device: str | None,
    as_json: bool,
) -> None:
    """Show the plan of a training on images that are not packed yet, from their names alone; nothing is written."""
    from ..datapipe.create import choose_backend
    from ..preprocess.pack_labelled import outline_labelled
    from ..training import load_teacher
    from ..training.distributed import join_ranks
    from ..training.evaluation.multilabel import check_num_scores
    from ..training.job import seed_everything
    from ..training.losses.create import check_loss
    from ..training.precision import resolve_amp
    from ..training.runs.run_folder import RunFolder
    from ..training.start import create_network

    outline = outline_labelled(data)
    labels = _labels(outline)
    tree = labels.tree if labels else outline.tree
    check_loss(settings, multi_label=labels is not None)
    if labels:
        check_num_scores(outline.num_samples.get("val", 0) * len(tree), len(tree))
    with join_ranks(check_device(device, settings.backend)) as ranks:
        RunFolder(out).check({}, overwrite=True)  # the packed images' fingerprint is not known yet
        seed_everything(settings)
        teacher = load_teacher(settings, tree, ranks.device) if settings.teacher else None
        epoch_samples = settings.epoch_samples or outline.num_samples["train"]
        network = create_network(settings, tree.wnids, start)
        planned = PlannedData(
            location=str(data_out),
            num_classes=len(tree),
            num_samples=outline.num_samples,
            backend=choose_backend(settings.backend, ranks.device),
            num_batches=epoch_samples // (settings.batch_size * ranks.world_size),
        )
        plan = make_plan(planned, out, settings, network, ranks)
        if ranks.is_first:
            if settings.loss == "semantic":
                say_flat(tree)
            plan = add_memory(plan, resolve_amp(settings, ranks.device), network, teacher)
            note = f"{data.name} is not packed yet: images that cannot be read will be left out"
            emit({**plan, "packed": False}, lambda shown: f"{render_plan(shown)}\n{in_one_line(note)}", as_json=as_json)


def _started(resolved: Resolved, start: Start) -> TrainSettings:
    """Return the settings with what the weights come with, where nobody asked for something else.

    Raises ValueError for another model than theirs, and where nobody says which model theirs is.
    """
    settings, sources = resolved
    asked = {name for name, source in sources.items() if source.startswith("--")}
    own = start.settings.get("model")
    if "model" in asked and own and settings.model.partition(".")[0] != own.partition(".")[0]:
        raise ValueError(f"--init {start.name} is a {own}, and --model {settings.model} was asked for; leave it out")
    if not own and sources["model"] == "default":
        raise ValueError(f"--init {start.name} holds weights alone; say by --model whose they are")
    return replace(settings, **{name: value for name, value in start.settings.items() if name not in asked})


def _own_size(start: Start) -> int:
    return start.opened.image_size if start.opened else DEFAULT_SIZE


def _labels(found: LabelledSet | Outline) -> Labels | None:
    """Return what the outputs of a network for images of several labels stand for; None for one label an image."""
    if found.sets is None:
        return None
    from ..preprocess.sources.labelled import classes_of_labels
    from ..shards.tree import SemanticTree
    from ..training.losses.multilabel import multi_hot

    names = found.labels
    wnid_of = classes_of_labels(names)
    number_of = {name: number for number, name in enumerate(names)}
    tree = SemanticTree.from_parents([wnid_of[name] for name in names], names, [-1] * len(names))
    return Labels(tree, multi_hot([[number_of[name] for name in labels] for labels in found.sets], len(names)))
