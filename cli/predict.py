"""`in21k predict`: what images show."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    PATH,
    batch_size_option,
    device_option,
    emit,
    file_options,
    json_option,
    overwrite_option,
    tta_option,
    weights_option,
    workers_option,
)
from .pictures import check_picture, save_picture
from .progress import ProgressLine
from .tables import RowWriter, check_table
from .terminal import json_text, printable, say

if TYPE_CHECKING:
    from ..training.inference.classifier import Classified
    from ..training.jobs.image_sources import SkippedFiles

MAX_PICTURES = 36


@click.command()
@click.argument("model", metavar="RUN|CHECKPOINT|FILE|TIMM_NAME")
@click.argument("images", metavar="IMAGE|FOLDER|TAR...", type=PATH, nargs=-1, required=True)
@weights_option
@file_options
@tta_option
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    help="Of a run on images of several labels: from which probability on a label is present.  [default: 0.5]",
)
@click.option("--jsonl", is_flag=True, help="Print a JSON document a line, as they come.")
@click.option("--out", type=PATH, metavar="OUT.parquet", help="Write the answers into this table.")
@click.option(
    "--picture", type=PATH, metavar="OUT.png", help=f"Draw the first {MAX_PICTURES} images with their labels."
)
@batch_size_option("64")
@device_option
@workers_option
@overwrite_option
@json_option
def predict(
    model: str,
    images: tuple[Path, ...],
    tta: bool,
    threshold: float | None,
    jsonl: bool,
    out: Path | None,
    picture: Path | None,
    overwrite: bool,
    as_json: bool,
    **settings: Any,
) -> None:
    """Predict what each image shows, from general to particular.

    The answer is the likely label at each level of the tree, as long as each lies below the one before, and the five
    likeliest of all classes. For a timm model (`tresnet_m.miil_in21k`) that knows ImageNet-21K the tree is built; other
    timm models give the five likeliest classes alone. A run on images of several labels gives the labels that are
    present, each with its own probability, and the five likeliest; --threshold 0 lists every label.

    A FILE holds published weights (.pth, .safetensors); see `in21k validate` for --model and --classes.

    Images are JPEG, PNG, GIF, BMP and WebP files, prepared as in validation: upright, RGB, stretched or cropped as the
    network was trained. A folder gives its images by byte order of their paths, and those of its tars. An image that
    cannot be read is reported on stderr, has an `error` in the output, and is skipped. Files of other types are skipped
    and counted at the end.
    """
    from ..shards.files.parallel import ignore_progress
    from ..training.distributed import lone_device
    from ..training.inference.picture import draw_classified, lay_out
    from ..training.inference.predict import prediction_schema
    from ..training.jobs.image_sources import SkippedFiles, own_limit
    from ..training.jobs.predict_job import predict as predict_job
    from ..training.jobs.setup import EvalSettings, open_network

    if as_json and jsonl:
        raise ValueError("--json and --jsonl: give one of them")
    if picture:
        check_picture(picture, overwrite=overwrite)
    if out:
        check_table(out, overwrite=overwrite)
    chosen, skipped = EvalSettings(**settings), SkippedFiles()
    lone_device(chosen.device)  # refuses several ranks before a network is loaded
    opened = open_network(model, chosen)
    streams = jsonl or not (as_json or out)
    is_watched = not (streams and sys.stdout.isatty())
    tally, rows, drawn = _Tally(), list[dict[str, Any]](), list[Any]()
    with ExitStack() as stack:
        stack.enter_context(own_limit())
        progress = stack.enter_context(ProgressLine("predict")) if is_watched else ignore_progress
        answers = predict_job(
            opened, images, chosen, flip=tta, threshold=threshold, skipped=skipped, on_progress=progress
        )
        schema = prediction_schema(multi_label=opened.multi_label)
        table = stack.enter_context(RowWriter(out, schema, "predictions of images")) if out else None
        for answer in answers:
            tally.add(answer)
            if answer.prediction and picture and len(drawn) < MAX_PICTURES:
                drawn.append(draw_classified(answer))
            if table:
                table.add(answer.row)
            if as_json:
                rows.append(answer.row)
            elif jsonl:
                click.echo(json_text(answer.row))
            elif answer.prediction and not out:
                click.echo(_render(printable(answer.row)))
        tally.check(skipped)
    if str(skipped):
        say(f"skipped, as their names are not those of images: {skipped}", err=True)
    if picture:
        save_picture(lay_out(drawn), picture)
    if as_json:
        emit(rows, "", as_json=True)
    elif out and not jsonl:
        say(f"{out}: {tally.num_images:,} images, {tally.num_unreadable:,} of them unreadable")


class _Tally:
    """Counts images, and reports unreadable ones.

    The first is reported only once another image could be read: where none could, it is the command's one line.
    """

    def __init__(self) -> None:
        self.num_images = self.num_unreadable = 0
        self._held: str | None = None

    def add(self, answer: Classified) -> None:
        line = f"{answer.source.name}: {answer.error}"
        if answer.error is not None and self.num_unreadable == self.num_images == 0:
            self._held = line
        elif answer.error is not None:
            say(f"{line}; skipped", err=True)
        elif self._held is not None:
            say(f"{self._held}; skipped", err=True)
            self._held = None
        self.num_images += 1
        self.num_unreadable += answer.error is not None

    def check(self, skipped: SkippedFiles) -> None:
        """Raise ValueError where nothing could be read."""
        if not self.num_images:
            others = f", but {skipped}" if str(skipped) else ""
            raise ValueError(f"no image in the paths given{others}; wanted JPEG, PNG, GIF, BMP or WebP files")
        if self._held is not None:
            rest = f"; nor could the other {self.num_images - 1:,}" if self.num_images > 1 else ""
            raise ValueError(f"{self._held}{rest}")


def _render(row: dict[str, Any]) -> str:
    image = row["image"]
    if "labels" in row:
        present = _join(row["labels"], ", ") or "no label is likely enough"
        return f"{image}: {present}\n  likeliest of all labels: {_join(row['top5'], ', ')}"
    top = f"likeliest of all classes: {_join(row['top5'], ', ')}"
    lines = [f"{image}: {_join(row['chain'], ' > ')}", top] if row["chain"] else [f"{image}: {top}"]
    meaning = (row["chain"] or row["top5"][:1])[-1]
    if meaning.get("definition"):
        lines.append(f"{meaning['name']} ({meaning['wnid']}): {meaning['definition']}")
    return "\n  ".join(lines)


def _join(answers: Sequence[dict[str, Any]], separator: str) -> str:
    return separator.join(f"{answer['name']} {100 * answer['probability']:.0f} %" for answer in answers)
