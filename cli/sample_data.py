"""`in21k sample-data`: a raw archive of drawn images, to try everything on."""

from __future__ import annotations

from pathlib import Path

import click

from .options import PATH, emit, json_option, overwrite_option
from .progress import ProgressLine
from .terminal import in_one_line


@click.command("sample-data")
@click.argument("out", type=PATH)
@click.option("--classes", default=24, show_default=True, help="Number of classes.")
@click.option("--images-per-class", default=60, show_default=True, help="Images of each class.")
@click.option("--seed", default=0, show_default=True, help="Seed of the drawings.")
@click.option("--oddities", is_flag=True, help="Add what real archives hold: CMYK, mislabelled, rotated, broken files.")
@overwrite_option
@json_option
def sample_data(
    out: Path, classes: int, images_per_class: int, seed: int, oddities: bool, overwrite: bool, as_json: bool
) -> None:
    """Write OUT, an archive laid out like fall11_whole.tar, of drawn images with real wnids.

    The classes lie several levels deep in the tree. Classes of one branch look alike, so a network can learn the tree.
    """
    from ..preprocess.sample_data.archive import write_sample_archive
    from ..shards.files.parallel import Progress

    total, done = classes * images_per_class, 0
    with ProgressLine("sample-data") as progress:

        def on_progress(num_images: int) -> None:
            nonlocal done
            done += num_images
            progress(Progress(done / total, done, 0))

        archive = write_sample_archive(
            out,
            num_classes=classes,
            images_per_class=images_per_class,
            seed=seed,
            oddities=oddities,
            overwrite=overwrite,
            on_progress=on_progress,
        )
    levels = [len(on_level) for on_level in archive.tree.classes_by_level]
    result = {
        "path": str(out),
        "num_classes": archive.num_classes,
        "num_images": archive.num_images,
        "num_bytes": archive.archive_bytes,
        "classes_per_level": levels,
        "oddities": archive.oddities,
    }
    text = (
        f"{out}: {archive.num_images:,} images of {archive.num_classes} classes, "
        f"{archive.archive_bytes / 1e6:.1f} MB; classes per level of the tree: {' '.join(map(str, levels))}"
    )
    emit(result, in_one_line(text), as_json=as_json)
