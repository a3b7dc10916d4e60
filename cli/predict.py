"""`in21k predict`: what images show."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import click

from .options import (
    BATCH_SIZE,
    PATH,
    device_option,
    emit,
    json_option,
    overwrite_option,
    weights_option,
    workers_option,
)
from .pictures import check_picture, save_picture
from .progress import ProgressLine
from .tables import ROW_GROUP_ROWS, check_table, table_writer
from .terminal import json_text, printable, say

if TYPE_CHECKING:
    import pyarrow as pa
    from PIL import Image

    from ..training.inference.classifier import Classified
    from ..training.inference.open_model import OpenModel
    from ..training.inference.reading import Source
    from .image_sources import OtherFiles

MAX_PICTURES = 36


@click.command()
@click.argument("model", metavar="RUN|CHECKPOINT|TIMM_NAME")
@click.argument("images", metavar="IMAGE|FOLDER|TAR...", type=PATH, nargs=-1, required=True)
@weights_option
@click.option("--tta", is_flag=True, help="Test-time flip: the mean over each image and its mirror image.")
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
@click.option("--batch-size", type=BATCH_SIZE, default=64, show_default=True, help="Images at a time.")
@device_option
@workers_option
@overwrite_option
@json_option
def predict(
    model: str,
    images: tuple[Path, ...],
    weights: Literal["last", "best", "ema"],
    tta: bool,
    threshold: float | None,
    jsonl: bool,
    out: Path | None,
    picture: Path | None,
    batch_size: int,
    device: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Predict what each image shows, from general to particular.

    The answer is the likely label at each level of the tree, as long as each lies below the one before, and the five
    likeliest of all classes. For a timm model (`tresnet_m.miil_in21k`) that knows ImageNet-21K the tree is built; other
    timm models give the five likeliest classes alone. A run on images of several labels gives the labels that are
    present, each with its own probability, and the five likeliest; --threshold 0 lists every label.

    Images are JPEG, PNG, GIF, BMP and WebP files, prepared as in validation: upright, RGB, stretched or cropped as the
    network was trained. A folder gives its images by byte order of their paths, and those of its tars. An image that
    cannot be read is reported on stderr, has an `error` in the output, and is skipped. Files of other types are skipped
    and counted at the end.
    """
    from ..training import Classifier, open_model
    from ..training.distributed import lone_device
    from ..training.inference.picture import lay_out
    from .image_sources import OtherFiles, image_sources, own_limit

    if as_json and jsonl:
        raise ValueError("--json and --jsonl: give one of them")
    where = lone_device(device)
    for path in images:
        if not path.exists():
            raise ValueError(f"{path}: does not exist; wanted an image, a folder of images, or a tar of images")
    if picture:
        check_picture(picture, overwrite=overwrite)
    if out:
        check_table(out, overwrite=overwrite)
    opened = open_model(model, weights)
    tree, definitions = _tree_and_definitions(opened)
    others = OtherFiles()
    tally, rows, drawn = _Tally(), list[dict[str, Any]](), list["Image.Image"]()
    with ExitStack() as stack:
        stack.enter_context(own_limit())
        classifier = Classifier(
            opened,
            tree=tree,
            definitions=definitions,
            device=where,
            batch_size=batch_size,
            workers=workers,
            flip=tta,
            threshold=threshold,
        )
        several = opened.multi_label
        table = stack.enter_context(_TableRows(out, several=several)) if out else None
        streams = jsonl or not (as_json or out)
        watched = not (streams and sys.stdout.isatty())
        progress = _shown_of(images, stack.enter_context(ProgressLine("predict"))) if watched else None
        for found in classifier.stream(image_sources(images, others)):
            tally.add(found)
            row = {"image": found.source.name, **(found.prediction or {"error": found.error})}
            if found.prediction and picture and len(drawn) < MAX_PICTURES:
                drawn.append(_drawn(found.source, found.prediction))
            if table:
                table.add(row)
            if as_json:
                rows.append(row)
            elif jsonl:
                click.echo(json_text(row))
            elif found.prediction and not out:
                click.echo((_render_labels if several else _render)(printable(row)))
            if progress:
                progress(tally.num_images)
        tally.check(others)
    if str(others):
        say(f"passed over, as their names are not those of images: {others}", err=True)
    if picture:
        save_picture(lay_out(drawn), picture)
    if as_json:
        emit(rows, "", as_json=True)
    elif out and not jsonl:
        say(f"{out}: {tally.num_images:,} images, {tally.num_unreadable:,} of them unreadable")


def _shown_of(paths: Sequence[Path], line: ProgressLine) -> Callable[[int], None]:
    """Return what is called with the number of images done; how many there are in tars nobody knows beforehand."""
    from ..shards.files.parallel import Progress
    from .image_sources import count_ahead

    ahead = count_ahead(paths)
    whole = f"of {ahead.num_images:,} and those in {ahead.num_tars:,} tars" if ahead.num_tars else ""

    def show(num_done: int) -> None:
        share = 0.0 if ahead.num_tars or not ahead.num_images else min(1.0, num_done / ahead.num_images)
        line(Progress(share, num_done, 0, whole))

    show(0)
    return show


def _tree_and_definitions(opened: OpenModel) -> tuple[Any, dict[str, str] | None]:
    """Return the tree of a network that brings none, where its classes are WordNet's, and the definitions of all."""
    from ..preprocess import build_tree
    from ..preprocess.classes.taxonomy import Taxonomy

    if opened.classes is None:
        return None, None
    taxonomy, wnids = Taxonomy.packaged(), opened.classes.wnids
    known = [wnid for wnid in wnids if wnid in taxonomy]
    builds = opened.tree is None and opened.classes.name != "in1k" and bool(known)
    return build_tree(wnids, taxonomy) if builds else None, {wnid: taxonomy.definition(wnid) for wnid in known}


class _Tally:
    """Counts images, and tells of those that cannot be read.

    The first is told of only once another could be read: where none could, it is the command's one line.
    """

    def __init__(self) -> None:
        self.num_images = self.num_unreadable = 0
        self._held: str | None = None

    def add(self, found: Classified) -> None:
        line = f"{found.source.name}: {found.error}"
        if found.error is not None and self.num_unreadable == self.num_images == 0:
            self._held = line
        elif found.error is not None:
            say(f"{line}; passed over", err=True)
        elif self._held is not None:
            say(f"{self._held}; passed over", err=True)
            self._held = None
        self.num_images += 1
        self.num_unreadable += found.error is not None

    def check(self, others: OtherFiles) -> None:
        """Raise ValueError where nothing could be read."""
        if not self.num_images:
            there_are = f", but {others}" if str(others) else ""
            raise ValueError(
                f"there is no image in what was named{there_are}; wanted JPEG, PNG, GIF, BMP or WebP files"
            )
        if self._held is not None:
            rest = f"; nor could the other {self.num_images - 1:,}" if self.num_images > 1 else ""
            raise ValueError(f"{self._held}{rest}")


class _TableRows:
    """Rows on their way into a table, a row group at a time."""

    def __init__(self, path: Path, *, several: bool) -> None:
        self._schema = _schema(several=several)
        self._file = table_writer(path, self._schema, "predictions of images")
        self._rows: list[dict[str, Any]] = []

    def __enter__(self) -> _TableRows:
        self._writer = self._file.__enter__()
        return self

    def add(self, row: dict[str, Any]) -> None:
        self._rows.append(row)
        if len(self._rows) == ROW_GROUP_ROWS:
            self._flush()

    def _flush(self) -> None:
        import pyarrow as pa

        if self._rows:
            self._writer.write_table(pa.Table.from_pylist(self._rows, schema=self._schema))
            self._rows = []

    def __exit__(self, *exc_info: Any) -> None:
        if exc_info[0] is None:
            self._flush()
        self._file.__exit__(*exc_info)


def _schema(*, several: bool) -> pa.Schema:
    """Return the columns of predictions, of one label an image or of several."""
    import pyarrow as pa

    answer = [
        ("wnid", pa.string()),
        ("name", pa.string()),
        ("definition", pa.string()),
        ("probability", pa.float32()),
    ]
    answers = pa.list_(pa.struct(answer))
    at_level = pa.list_(pa.struct([("level", pa.int32()), *answer]))
    own = [("labels", answers)] if several else [("levels", at_level), ("chain", at_level)]
    return pa.schema(
        [
            pa.field("image", pa.string(), nullable=False),
            *(pa.field(*column) for column in own),
            pa.field("top5", answers),
            pa.field("error", pa.string()),
        ]
    )


def _drawn(source: Source, prediction: dict[str, Any]) -> Image.Image:
    from ..training.inference.images import UnreadableImageError, read_image
    from ..training.inference.picture import draw_prediction

    assert not isinstance(source.picture, UnreadableImageError)
    name = source.name.rpartition("/")[2]
    return draw_prediction(read_image(source.picture), prediction, name)


def _render(row: dict[str, Any]) -> str:
    image = row["image"]
    top = f"likeliest of all classes: {_shown(row['top5'], ', ')}"
    best = row["top5"][0]
    lines = [f"{image}: {_shown(row['chain'], ' > ')}", top] if row["chain"] else [f"{image}: {top}"]
    meaning = (row["chain"] or [best])[-1]
    if meaning.get("definition"):
        lines.append(f"{meaning['name']} ({meaning['wnid']}): {meaning['definition']}")
    return "\n  ".join(lines)


def _render_labels(row: dict[str, Any]) -> str:
    present = _shown(row["labels"], ", ") or "no label is likely enough"
    return f"{row['image']}: {present}\n  likeliest of all labels: {_shown(row['top5'], ', ')}"


def _shown(answers: Sequence[dict[str, Any]], between: str) -> str:
    return between.join(f"{answer['name']} {100 * answer['probability']:.0f} %" for answer in answers)
