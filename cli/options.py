"""Options that several commands share, and how commands print their results."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ..datapipe.catalog import AUGMENTATIONS, BACKENDS, INDEXED
from .terminal import in_lines, in_one_line, json_text, printable, width

if TYPE_CHECKING:
    from ..shards import SemanticTree

Command = TypeVar("Command", bound=Callable[..., Any])


class _LocalPath(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if "://" in str(value):
            self.fail(f"{value} is a URL; wanted a path on this machine", param, ctx)
        return super().convert(value, param, ctx)


class _PathOrUrl(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


AUGMENT_HELP = f"{', '.join(AUGMENTATIONS)}."
BACKEND_HELP = f"The loader: auto, {', '.join(BACKENDS)}."
INDEXED_BACKEND_HELP = f"The loader: auto, {', '.join(INDEXED)}."
PATH = _LocalPath(path_type=Path)
PATH_OR_URL = _PathOrUrl(path_type=Path)  # of shards: a URL stays a string
BATCH_SIZE = click.IntRange(1, 65_536)  # images at a time; guessed: as many of 224 pixels have 10 GB


def json_option(command: Command) -> Command:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document on stdout, nothing else.")(
        command
    )


def overwrite_option(command: Command) -> Command:
    """Add `--overwrite`."""
    return click.option("--overwrite", is_flag=True, help="Replace an existing output of this command.")(command)


def workers_option(command: Command) -> Command:
    """Add `--workers`."""
    return click.option(
        "--workers", type=click.IntRange(1, 1024), help="Worker processes or threads.  [default: one for each core]"
    )(command)


def device_option(command: Command) -> Command:
    """Add `--device`."""
    return click.option(
        "--device", type=click.Choice(["cpu", "cuda"]), help="Device to compute on.  [default: the GPU if there is one]"
    )(command)


def backend_option(command: Command) -> Command:
    """Add `--backend`."""
    return click.option("--backend", help=f"{INDEXED_BACKEND_HELP}  [default: auto]")(command)


def loader_sets_option(command: Command) -> Command:
    """Add `--set`, which names settings of the loader."""
    text = "Another setting of the loader; repeatable."
    return click.option("--set", "sets", multiple=True, metavar="KEY=VALUE", help=text)(command)


def batch_size_option(default: str) -> Callable[[Command], Command]:
    """Return a decorator that adds `--batch-size`, whose default the command's job knows; `default` describes it."""
    return click.option("--batch-size", type=BATCH_SIZE, help=f"Images per rank.  [default: {default}]")


def tree_option(command: Command) -> Command:
    """Add `--tree`; the command gets the tree that lies there."""
    return click.option(
        "--tree",
        type=PATH,
        callback=lambda _context, _option, path: path and _read_tree(path),
        help="Also measure within the tree of shards, a run or a tree.json.",
    )(command)


def _read_tree(path: Path) -> SemanticTree:
    """Read the tree of a folder that has one, or of a file; raises ValueError where there is none."""
    from ..shards import SemanticTree

    inside = [path / "tree.json", path / "shards" / "tree.json"]  # the latter: in a folder that `finetune` packed
    file = next((file for file in inside if file.is_file()), inside[0]) if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such file; wanted a tree.json, or a folder that has one (shards, a run)")
    return SemanticTree.load(file)


def weights_option(command: Command) -> Command:
    """Add `--weights`."""
    return click.option(
        "--weights",
        type=click.Choice(["last", "best", "ema"]),
        default="last",
        show_default=True,
        help="Weights of a run: of the last step, the best on validation (with EMA on, the best EMA), or the EMA.",
    )(command)


def file_options(command: Command) -> Command:
    """Add `--model` and `--classes`, for a network that is a file of published weights."""
    named = click.option(
        "--model", "architecture", metavar="NAME", help="Architecture of a file of weights.  [default: by its keys]"
    )
    classes = click.option(
        "--classes", metavar="SPACE|FILE", help="Classes of a file of weights.  [default: by the number of outputs]"
    )
    return named(classes(command))


def tta_option(command: Command) -> Command:
    """Add `--tta`."""
    return click.option(
        "--tta", is_flag=True, help="Test-time flip: the mean of the logits of each image and its mirror image."
    )(command)


def num_workers(workers: int | None) -> int:
    """Return the number of workers, which is one for each core by default."""
    from ..shards.files.parallel import default_workers

    return workers or default_workers()


def emit(result: object, text: str | Callable[[Any], str], *, as_json: bool) -> None:
    """Print a command's result on stdout, as JSON or as text.

    text: the text, or a function that makes it from the result; the function gets names with control characters
          escaped.
    """
    if as_json:
        click.echo(json_text(result, indent=1))
    else:
        click.echo(in_lines(text if isinstance(text, str) else text(printable(result))))


def table(rows: list[list[str]]) -> str:
    """Return rows of cells as aligned text; the first column to the left, the others to the right."""
    rows = [[in_one_line(cell) for cell in row] for row in rows]
    widths = [max(map(width, column)) for column in zip(*rows, strict=True)]
    padded = [[(cell, " " * (size - width(cell))) for cell, size in zip(row, widths, strict=True)] for row in rows]
    lines = [[first + pad, *(pad + cell for cell, pad in rest)] for (first, pad), *rest in padded]
    return "\n".join("  ".join(line).rstrip() for line in lines)
