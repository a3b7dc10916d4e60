"""`in21k preprocess`: a raw archive to a prepared data set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import PATH, emit, json_option, num_workers, overwrite_option, workers_option
from .progress import ProgressLine


@click.group()
def preprocess() -> None:
    """Prune, split and resize a raw archive into a prepared data set."""


@preprocess.command("raw-tar")
@click.argument("source", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--rare-threshold", default=500, show_default=True, help="Keep the classes that have more images than this."
)
@click.option(
    "--val-per-class",
    default=50,
    show_default=True,
    help="Images of each class for validation, the first by file name; 0: no validation split.",
)
@click.option(
    "--resize",
    type=click.Choice(["squish", "short-edge", "none"]),
    default="squish",
    show_default=True,
    help="Stretch to size x size; or scale the shorter side to size; or keep. Images below the size keep theirs.",
)
@click.option("--size", default=224, show_default=True, help="Pixels.")
@click.option(
    "--resizer",
    type=click.Choice(["pillow", "opencv"]),
    default="pillow",
    show_default=True,
    help="pillow: antialiased bilinear; opencv: the reference scripts' cv2 steps, pixel for pixel.",
)
@click.option("--quality", default=95, show_default=True, help="JPEG quality of what is written.")
@click.option(
    "--max-reject-rate", default=0.01, show_default=True, help="Fail when more of the kept classes' images are bad."
)
@click.option("--wordnet", type=PATH, help="A folder of WordNet noun files.  [default: WordNet 3.0, packaged]")
@workers_option
@overwrite_option
@json_option
def raw_tar(
    source: Path,
    out: Path,
    rare_threshold: int,
    val_per_class: int,
    max_reject_rate: float,
    wordnet: Path | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
    **image: Any,
) -> None:
    """Prepare SOURCE, a tar of class tars such as fall11_whole.tar or winter21_whole.tar.gz, into the folder OUT.

    `-` reads the tar, gzipped or not, from standard input.

    Nothing is extracted and every image is read once; a worker holds one class tar in memory. A run that was stopped
    goes on with the same command.
    """
    from ..preprocess.image import ImageSettings
    from ..preprocess.run import prepare_raw_tar
    from ..preprocess.select import SelectSettings
    from ..preprocess.wordnet import WordNet

    if not 0 <= max_reject_rate <= 1:
        raise ValueError(f"--max-reject-rate is {max_reject_rate}; wanted 0 to 1")
    with ProgressLine("preprocess") as progress:
        prepared = prepare_raw_tar(
            source,
            out,
            select=SelectSettings(rare_threshold=rare_threshold, val_per_class=val_per_class),
            image=ImageSettings(**image),
            wordnet=WordNet.read(wordnet) if wordnet else None,
            workers=num_workers(workers),
            max_reject_rate=max_reject_rate,
            overwrite=overwrite,
            on_progress=progress,
        )
    counts = prepared.info["counts"]
    splits = " + ".join(f"{count['num_samples']:,} {split}" for split, count in counts["splits"].items())
    levels = [len(classes) for classes in prepared.tree.classes_by_level]
    text = (
        f"{out}: {counts['num_classes_seen']:,} classes seen, {counts['num_classes']:,} kept (more than "
        f"{rare_threshold} images)\n"
        f"images of those: {counts['num_raw_kept']:,}; stored: {splits}; rejects: {counts['num_rejects']:,}\n"
        f"classes per level of the tree: {' '.join(map(str, levels))}"
    )
    emit({"path": str(out), **prepared.info, "classes_per_level": levels}, text, as_json=as_json)
