"""`in21k report`: one page of what folders of ours are; it only assembles what each folder renders of itself."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template
from typing import Literal, Protocol

import click

from .options import (
    PATH,
    PATH_OR_URL,
    device_option,
    emit,
    json_option,
    overwrite_option,
    weights_option,
    workers_option,
)
from .progress import ProgressLine

log = logging.getLogger(__name__)

DATA = Path(__file__).parent / "data"
NUM_IMAGES, NUM_LOOKS = 120, 12  # images to show of a data set, and of runs
GENERATOR = '<meta name="generator" content="in21k report">'


class Section(Protocol):
    """A part of a page."""

    @property
    def name(self) -> str:
        """Its address in the page: letters and `-`."""
        ...

    @property
    def title(self) -> str:
        """Its title, plain text."""
        ...

    @property
    def html(self) -> str:
        """What stands below the title."""
        ...


class FolderReport(Protocol):
    """What a folder renders of itself, whichever package does so."""

    @property
    def kind(self) -> str:
        """What it is, plain text."""
        ...

    @property
    def subject(self) -> str:
        """What it is of, plain text."""
        ...

    @property
    def sections(self) -> Sequence[Section]:
        """Its parts, in their order."""
        ...

    @property
    def styles(self) -> Sequence[str]:
        """CSS that its parts need; equal ones stand in the page once."""
        ...

    @property
    def scripts(self) -> Sequence[str]:
        """JavaScript that its parts need; equal ones stand in the page once."""
        ...


@click.command()
@click.argument("paths", metavar="PATH...", nargs=-1, type=PATH, required=True)
@click.argument("out", metavar="OUT.html", type=PATH)
@click.option("--seed", default=0, show_default=True, help="Of the images that are drawn by chance.")
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
@click.option(
    "--backend", default="auto", show_default=True, help="The loader: auto, dali_gpu, dali_cpu, opencv, torch."
)
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
    weights: Literal["last", "best", "ema"],
    backend: str,
    device: str | None,
    workers: int | None,
    overwrite: bool,
    as_json: bool,
) -> None:
    """Write a page about each PATH, a prepared data set or a run, to OUT.html: one file, for any browser.

    A shard set among them is what --data names.

    Of a data set: counts before and after, the long tail of class sizes, the tree as a map, sizes, changes, rejects,
    and images drawn by chance.

    Of runs, all of them over one another: results, curves, accuracy by level, the settings that differ; with --data
    also the best and worst classes, the most confused pairs with images, where the networks look (Grad-CAM, or of a
    transformer the roll-out of its attention), and a map of features. Unfinished runs are shown as far as they came.

    The page loads nothing from anywhere; equal data give equal bytes.
    """
    from ..preprocess.report import render_prepared
    from ..shards import open_dataset
    from ..shards.dataset import PreparedSet
    from ..shards.files import write_text

    _check_out(paths, out, overwrite=overwrite)
    runs = [path for path in paths if (path / "config.yaml").is_file()]
    shard_sets = [path for path in paths if _is_shard_set(path)]
    if not runs:
        _check_without_runs(shard_sets, data, predictions, look)
    if len(shard_sets) + (data is not None) > 1:
        raise ValueError("the networks of runs are asked about one shard set, and several are given; give one")
    folders: list[FolderReport] = []
    for path in paths:
        if path not in (*runs, *shard_sets):
            num_images = NUM_IMAGES if images is None else images
            with ProgressLine("report") as progress:
                folders.append(
                    render_prepared(PreparedSet(path), num_images=num_images, seed=seed, on_progress=progress)
                )
        elif runs and path is runs[0]:
            from .run_report import Question, render_runs

            source = shard_sets[0] if shard_sets else data
            question = Question(
                data=open_dataset(source) if source is not None else None,
                predictions=predictions,
                chosen=look,
                num_looks=NUM_LOOKS if images is None else images,
                seed=seed,
                weights=weights,
                device=device,
                backend=backend,
                workers=workers,
            )
            folders.append(render_runs(runs, question))
    page = assemble(folders)
    num_bytes = len(page.encode())
    if not out.exists() or overwrite:
        write_text(out, page)
    elif out.read_bytes() == page.encode():
        log.info("%s: finished already; nothing to do", out)
    else:
        raise ValueError(f"{out}: is a report of other data or settings; give another name, or --overwrite")
    titles = [section.title for folder in folders for section in folder.sections]
    result = {"path": str(out), "bytes": num_bytes, "sections": titles}
    emit(result, f"{out}: {num_bytes / 1e6:.1f} MB; {', '.join(titles)}", as_json=as_json)


def _check_out(paths: Sequence[Path], out: Path, *, overwrite: bool) -> None:
    """Raise ValueError where no page can go."""
    if out.is_dir():
        raise ValueError(
            f"{out}: is a folder; wanted the page to write, such as report.html, after the folders to show"
        )
    if any(out.resolve().is_relative_to(path.resolve()) for path in paths):
        raise ValueError(
            f"{out}: lies inside a folder that it is about, which holds nothing else; give a place beside it"
        )
    if not out.parent.is_dir():
        raise ValueError(f"{out}: there is no folder {out.parent}; make it first")
    if not out.exists():
        return
    with out.open("rb") as file:
        is_report = GENERATOR.encode() in file.read(1024)
    if not is_report:
        way_out = "it is not overwritten" if overwrite else "give another name"
        raise ValueError(f"{out}: exists and is no report; {way_out}")


def _is_shard_set(path: Path) -> bool:
    from ..shards import ShardSet
    from ..shards.files import read_json

    info = path / "dataset.json"
    return info.is_file() and read_json(info).get("format") == ShardSet.format


def _check_without_runs(
    shard_sets: Sequence[Path], data: Path | str | None, predictions: Sequence[Path], look: Sequence[str]
) -> None:
    """Raise ValueError for what only runs have a use for."""
    if shard_sets:
        raise ValueError(
            f"{shard_sets[0]}: is a shard set; a report shows the prepared data set that it was made from, and runs, "
            "whose networks it asks about a shard set"
        )
    if data is not None or predictions or look:
        raise ValueError("--data, --predictions and --look go with runs, and there is none among the folders")


def assemble(folders: Sequence[FolderReport]) -> str:
    """Return the page of what several folders render: self-contained, and nothing but its own scripts can run in it."""
    scripts = _once(script for folder in folders for script in folder.scripts)
    styles = _once(
        [(DATA / "page.css").read_text(encoding="utf-8"), *(style for folder in folders for style in folder.styles)]
    )
    titles = [f"{folder.subject} – {folder.kind.lower()}" for folder in folders]
    hashes = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    several = len(folders) > 1
    return Template((DATA / "page.html").read_text(encoding="utf-8")).substitute(
        title=escape(", ".join(titles)),
        style="".join(styles),
        script_hashes=" ".join(f"'sha256-{digest}'" for digest in hashes) or "'none'",
        heading=f'<p class="kind">{len(folders)} folders</p>' if several else _heading(folders[0]),
        contents="".join(_links(folder, place, several) for place, folder in enumerate(folders)),
        sections="\n".join(_folder(folder, place, several) for place, folder in enumerate(folders)),
        footer=f"Made by <code>in21k report</code> {_version()}. One file: it loads nothing and tells nobody.",
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _once(texts: Iterable[str]) -> list[str]:
    """Return the texts that are not empty, each once, in their order."""
    return list(dict.fromkeys(text for text in texts if text))


def _address(section: Section, place: int) -> str:
    return section.name if place == 0 else f"{section.name}-{place + 1}"


def _heading(folder: FolderReport) -> str:
    return f'<p class="kind">{escape(folder.kind)}</p><h1>{escape(folder.subject)}</h1>'


def _links(folder: FolderReport, place: int, several: bool) -> str:
    return (f"<li><strong>{escape(folder.subject)}</strong></li>" if several else "") + "".join(
        f'<li><a href="#{_address(section, place)}">{escape(section.title)}</a></li>' for section in folder.sections
    )


def _folder(folder: FolderReport, place: int, several: bool) -> str:
    heading = f'<div class="subject">{_heading(folder)}</div>' if several else ""
    return heading + "\n".join(
        f'<section id="{_address(section, place)}"><h2>{escape(section.title)}</h2>'
        f'<div class="cards">{section.html}</div></section>'
        for section in folder.sections
    )


def _version() -> str:
    from importlib.metadata import version

    return version("in21k")
