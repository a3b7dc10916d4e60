"""Options and measures that the commands on cached features share."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, Command

if TYPE_CHECKING:
    from ..shards import SemanticTree

MEASURES = {"top1": "top-1 %", "top5": "top-5 %", "semantic_top1": "semantic top-1 %"}


def tree_option(command: Command) -> Command:
    """Add `--tree`."""
    return click.option("--tree", type=PATH, help="Also semantic top-1, by the tree of shards, a run or a tree.json.")(
        command
    )


def read_tree(path: Path | None) -> SemanticTree | None:
    """Read the tree of a folder that has one, or of a file; raises ValueError where there is none."""
    from ..shards import SemanticTree

    if path is None:
        return None
    inside = [path / "tree.json", path / "shards" / "tree.json"]  # the latter is where `finetune` packs
    file = next((file for file in inside if file.is_file()), inside[0]) if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{file}: no such file; wanted a tree.json, or a folder that has one (shards, a run)")
    return SemanticTree.load(file)
