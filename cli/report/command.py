"""`in21k report`: one page about data sets and runs."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..options import (
    PATH,
    PATH_OR_URL,
    backend_option,
    device_option,
    emit,
    file_options,
    json_option,
    overwrite_option,
    weights_option,
    workers_option,
)
from ..progress import ProgressLine
from ..terminal import in_one_line
from .page import FolderReport, assemble, has_fingerprint, is_report, page_fingerprint

if TYPE_CHECKING:
    from ...shards import ShardSet

log = logging.getLogger(__name__)

NUM_IMAGES, NUM_LOOKS = 120, 12  # images to show of a data set, and of runs


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, type=PATH, required=True)
@click.argument("out", metavar="OUT.html", type=PATH)
@click.option(
    "--seed",
    type=click.IntRange(0, 2**32 - 1),
    default=0,
    show_default=True,
    help="Of the images that are drawn by chance.",
)
@click.option(
    "--images",
    type=click.IntRange(min=0),
    help=f"How many images to show: of each data set 0 to 400 [default: {NUM_IMAGES}], of runs 0 to 100 "
    f"[default: {NUM_LOOKS}].",
)
@click.option(
    "--data", type=PATH_OR_URL, help="The shards of runs: their networks are asked about the validation split."
)
@click.option(
    "--predictions",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="What `in21k validate --save-predictions` wrote, instead of asking again; one for each run, in their order.",
)
@click.option(
    "--look",
    multiple=True,
    metavar="IMAGE|KEY",
    help="Show where runs look in this image, or validation image by its key, and in no other; several times.",
)
@weights_option
@file_options
@backend_option
@device_option
@workers_option
@overwrite_option
@json_option
def report(
    paths: tuple[Path, ...],
    out: Path,
    seed: int,
    images: int | None,
    data: Path | str | None,
    predictions: tuple[Path, ...],
    look: tuple[str, ...],
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Write a page about each PATH, a prepared data set or a run, to OUT.html: one file, for any browser.

    A shard set among them is what --data names.

    Of a data set: counts before and after, the long tail of class sizes, the tree as a map, sizes, changes, rejects,
    and images drawn by chance.

    A PATH may also be a file of published weights: with --data it is asked as runs are.

    Of runs, all of them over one another: results, curves, accuracy by level, the settings that differ; with --data
    also the best and worst classes, the most confused pairs with images, where the networks look (Grad-CAM, or of a
    transformer the roll-out of its attention), and a map of features. Unfinished runs are shown as far as they came.

    The page loads nothing from anywhere; equal data give equal bytes.
    """
    from ...shards.dataset import PreparedSet
    from ...shards.files.atomic import write_text
    from .prepared.render import render_prepared

    _check_paths(paths)
    _may_write(paths, out, overwrite=overwrite)
    runs = [path for path in paths if path.is_file() or (path / "config.yaml").is_file()]
    shard_sets = [path for path in paths if _is_shard_set(path)]
    if not runs:
        _check_without_runs(shard_sets, data, predictions, look)
    shards = _one_shard_set([*shard_sets, *([] if data is None else [data])])
    num_images, num_looks = (default if images is None else images for default in (NUM_IMAGES, NUM_LOOKS))
    fingerprint = page_fingerprint(
        paths,
        [path for path in (*paths, *predictions, *map(Path, look)) if path.is_file()],
        {
            "names": [path.resolve().name for path in runs],
            "data": shards.fingerprint if shards else None,
            "look": [Path(name).name for name in look],
            "images": [num_images, num_looks],
            "seed": seed,
            **{name: settings[name] for name in ("weights", "architecture", "classes")},
        },
    )
    _may_write(paths, out, lambda path: has_fingerprint(path, fingerprint), overwrite=overwrite)
    folders: list[FolderReport] = []
    for path in paths:
        if path not in (*runs, *shard_sets):
            with ProgressLine("report") as progress:
                folders.append(
                    render_prepared(PreparedSet(path), num_images=num_images, seed=seed, on_progress=progress)
                )
        elif runs and path is runs[0]:
            from ...training.jobs.inspect_runs import InspectSettings
            from .runs.render import render_runs

            chosen = {name: value for name, value in settings.items() if value is not None}
            asking = InspectSettings(
                **chosen, data=shards, predictions=predictions, images=look, num_looks=num_looks, seed=seed
            )
            folders.append(render_runs(runs, asking))
    page = assemble(folders, fingerprint)
    num_bytes = len(page.encode())
    if _may_write(paths, out, lambda path: path.read_bytes() == page.encode(), overwrite=overwrite):
        write_text(out, page)
    else:
        log.info("%s: finished already; nothing to do", out)
    titles = [section.title for folder in folders for section in folder.sections]
    result = {"path": str(out), "bytes": num_bytes, "sections": titles}
    emit(result, in_one_line(f"{out}: {num_bytes / 1e6:.1f} MB; {', '.join(titles)}"), as_json=as_json)


def _check_paths(paths: Sequence[Path]) -> None:
    """Raise ValueError for a path that a report cannot be about."""
    for path in paths:
        if any((path / name).is_file() for name in ("dataset.json", "config.yaml")) or (path / ".work").exists():
            continue
        if path.is_file() and _holds_weights(path):
            continue
        what = "is none of those" if path.exists() else "does not exist"
        raise ValueError(
            f"{path}: {what}; wanted a prepared data set (of `in21k preprocess`), a run (of `in21k train` or `in21k "
            "finetune`), or beside runs the shards that they are asked about (of `in21k shard`)"
        )


def _holds_weights(path: Path) -> bool:
    from ...training.inference.open_model import holds_weights

    return holds_weights(path)


def _may_write(
    paths: Sequence[Path], out: Path, is_same: Callable[[Path], bool] = lambda _: True, *, overwrite: bool
) -> bool:
    """Return whether the page is to be written, as `may_write_file`; raises ValueError where no page can go."""
    from ...shards.files.output import may_write_file

    if any(out.resolve().is_relative_to(path.resolve()) for path in paths):
        raise ValueError(
            f"{out}: lies inside a folder that it is about, which holds nothing else; give a place beside it"
        )
    return may_write_file(out, suffix=".html", what="a report", is_ours=is_report, is_same=is_same, overwrite=overwrite)


def _one_shard_set(places: Sequence[Path | str]) -> ShardSet | None:
    """Open the shard set that was given once or several times, or none; raises ValueError for different ones."""
    if not places:
        return None
    from ...training.jobs.setup import open_data

    opened = {shards.fingerprint: shards for shards in (open_data(data).shards for data in places)}
    if len(opened) > 1:
        names = ", ".join(map(str, places))
        raise ValueError(f"the networks of runs are asked about one shard set, and {len(opened)} are given ({names})")
    return next(iter(opened.values()), None)


def _is_shard_set(path: Path) -> bool:
    from ...shards import ShardSet
    from ...shards.files.atomic import read_json

    info = path / "dataset.json"
    return info.is_file() and read_json(info).get("format") == ShardSet.format


def _check_without_runs(
    shard_sets: Sequence[Path], data: Path | str | None, predictions: Sequence[Path], look: Sequence[str]
) -> None:
    """Raise ValueError for options that only runs can use."""
    if shard_sets:
        raise ValueError(
            f"{shard_sets[0]}: is a shard set; a report shows the prepared data set that it was made from, and runs, "
            "whose networks it asks about a shard set"
        )
    if data is not None or predictions or look:
        raise ValueError("--data, --predictions and --look go with runs, and there is none among the folders")
