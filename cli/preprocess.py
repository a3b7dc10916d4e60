"""`in21k preprocess`: raw images to a prepared data set."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, emit, num_workers
from .preprocess_options import preprocess_options
from .progress import ProgressLine
from .terminal import in_one_line

if TYPE_CHECKING:
    from ..preprocess.classes.select import SelectSettings
    from ..preprocess.classes.taxonomy import Taxonomy
    from ..preprocess.estimate import Estimate
    from ..preprocess.images.image import ImageSettings
    from ..preprocess.own_folders import Defaults
    from ..preprocess.sources.units import RawSource


@click.group()
def preprocess() -> None:
    """Prune, split and resize raw images into a prepared data set."""


@preprocess.command("raw-tar")
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@preprocess_options
def raw_tar(source: Path, out: Path, **options: Any) -> None:
    """Prepare the raw archive SOURCE into the folder OUT.

    SOURCE is a tar of class tars such as fall11_whole.tar, a tar of class folders, which may lie in train/ and val/, or
    the official processed archive, whose split and classes are kept; plain or gzipped; `-` is standard input. Nothing
    is extracted and every image is read once. Run the same command again to resume.
    """
    from ..preprocess.own_folders import Defaults
    from ..preprocess.sources.open import open_raw_tar

    _prepare(open_raw_tar(source), out, Defaults(), **options)


@preprocess.command("folder")
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@preprocess_options
def folder(source: Path, out: Path, **options: Any) -> None:
    """Prepare the class folders or the list SOURCE into the folder OUT.

    SOURCE is a folder of class folders and class tars, or a list: lines of `path label`, JSON lines with `path` and
    `label`, or CSV with those columns, with paths relative to the list's folder. Class folders in train/ and val/ (or
    valid/, validation/, test/) keep that split.

    The name of a folder or tar, or the label, is the class: a wnid, or a name of your own in any script, which
    --parents places in the tree. Class indices follow the order of identifiers, in which a digest and `_` stand for
    characters other than A-Z, a-z, 0-9, `_` and `-`; ImageFolder orders by name.
    """
    from ..preprocess.own_folders import folder_defaults
    from ..preprocess.sources.open import open_folder

    if source.resolve() in (out.resolve(), *out.resolve().parents):
        raise ValueError(f"{out}: lies in the source, which would then be read as one; give a folder outside {source}")
    folder = open_folder(source)
    _prepare(folder, out, folder_defaults(folder, options["size"]), **options)


def _prepare(
    source: RawSource,
    out: Path,
    defaults: Defaults,
    *,
    max_reject_rate: float,
    tree: Path | None,
    parents: Path | None,
    wordnet: Path | None,
    engine: str,
    ray_address: str | None,
    dry_run: bool,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    from ..preprocess.classes.given_tree import read_given_tree
    from ..preprocess.classes.taxonomy import Taxonomy
    from ..preprocess.engines import open_engine
    from ..preprocess.run import prepare
    from ..shards.tree import warn_if_flat
    from .prepared_summary import render, summarize

    if not 0 <= max_reject_rate <= 1:
        raise ValueError(f"--max-reject-rate is {max_reject_rate}; wanted 0 to 1")
    if ray_address and engine != "ray":
        raise ValueError("--ray-address goes with --engine ray")
    if tree and (parents or settings["classes"] or settings["inner_classes"] is not None):
        raise ValueError("--tree fixes classes and parents; leave --classes, --parents and --inner-classes out")
    select, image = _settings(source, defaults, has_parents=parents is not None, **settings)
    if tree:
        given, taxonomy = read_given_tree(tree, wordnet)
        classes = frozenset(given.wnids[: given.num_image_classes])
        select = replace(select, classes=classes, inner_classes=given.num_inner > 0)
    else:
        taxonomy = Taxonomy.read(wordnet, parents)
    if dry_run:
        estimate = _estimate(source, out, select, image, taxonomy, num_workers(workers))
        emit(estimate.as_dict(), replace(estimate, source=in_one_line(estimate.source)).render(), as_json=as_json)
        raise SystemExit(0 if estimate.fits else 1)
    with ProgressLine("preprocess") as progress, open_engine(engine, ray_address, workers) as run_tasks:
        prepared = prepare(
            source,
            out,
            select=select,
            image=image,
            taxonomy=taxonomy,
            run_tasks=run_tasks,
            max_reject_rate=max_reject_rate,
            overwrite=overwrite,
            on_progress=progress,
        )
    warn_if_flat(prepared.tree)
    emit(summarize(prepared), render, as_json=as_json)


def _settings(
    source: RawSource,
    defaults: Defaults,
    *,
    has_parents: bool,
    inner_classes: bool | None,
    rare_threshold: int | None,
    classes: str | None,
    drop_subtree: tuple[str, ...],
    exclude: Path | None,
    val_per_class: int | None,
    val_list: Path | None,
    resize: str | None,
    size: int | None,
    **image: Any,
) -> tuple[SelectSettings, ImageSettings]:
    from ..preprocess.classes.label_spaces import read_classes
    from ..preprocess.classes.select import SelectSettings
    from ..preprocess.images.image import ImageSettings
    from ..preprocess.sources.class_names import class_id
    from ..shards.label_spaces import PRUNED_SPACES

    if classes in PRUNED_SPACES and inner_classes:
        raise ValueError(
            f"--inner-classes cannot be used with --classes {classes}: its published weights have no outputs for them; "
            "leave one of the two out"
        )
    if inner_classes is None:
        inner_classes = has_parents and classes not in PRUNED_SPACES and not source.is_processed()
    select = SelectSettings(
        rare_threshold=defaults.rare_threshold if rare_threshold is None else rare_threshold,
        inner_classes=inner_classes,
        classes=frozenset(read_classes(classes)) if classes else None,
        drop_subtree=tuple(map(class_id, drop_subtree)),
        exclude=exclude,
        val_per_class=val_per_class,
        val_share=defaults.val_share if val_per_class is None and val_list is None else None,
        val_list=val_list,
    )
    image["size"] = size or defaults.size
    image_settings = ImageSettings(resize=resize or "none", **image)  # checks the rest before a stream is read
    if resize is None and not source.is_processed():
        image_settings = ImageSettings(resize="squish", **image)
    return select, image_settings


def _estimate(
    source: RawSource, out: Path, select: SelectSettings, image: ImageSettings, taxonomy: Taxonomy, workers: int
) -> Estimate:
    from ..preprocess.engines import open_engine
    from ..preprocess.estimate import estimate

    with open_engine("local", workers=workers) as run_tasks:
        return estimate(
            source, out, select=select, image=image, taxonomy=taxonomy, run_tasks=run_tasks, workers=workers
        )
