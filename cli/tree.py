"""`in21k tree`: looking at a semantic tree, and taking it elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from .options import PATH, emit, json_option
from .terminal import say
from .tree_text import render_class, render_summary

if TYPE_CHECKING:
    from ..shards.tree import SemanticTree
    from ..shards.tree_view import TreeView

log = logging.getLogger(__name__)


@click.group()
def tree() -> None:
    """Show or export a semantic tree."""


@tree.command()
@click.argument("path", type=PATH)
@click.argument("class_name", metavar="[WNID_OR_NAME]", required=False)
@json_option
def show(path: Path, class_name: str | None, as_json: bool) -> None:
    """Show the tree of PATH, or one class of it.

    PATH is a prepared data set, shards, a run, a tree.json, or a .pth of the reference code. A level's weight is the
    weight of its hierarchy in the semantic loss; a level of one class has none. For data sets the training images are
    counted too. Of a .pth it is also said where it differs from our tree of WordNet over the same classes.
    """
    from ..shards.tree_view import TreeView

    view = TreeView.open(path)
    if class_name is None:
        differences = _differences(path, view.tree)
        emit({**view.summary(), **differences}, render_summary, as_json=as_json)
        return
    result = view.describe_class(class_name)
    emit({"definition": _definition(view, result["path"][0]["wnid"]), **result}, render_class, as_json=as_json)


@tree.command()
@click.argument("path", type=PATH)
@click.argument("out", type=PATH)
@click.option(
    "--format",
    "file_format",
    type=click.Choice(["json", "miil", "csv"]),
    default="json",
    show_default=True,
    help="json: our tree.json; miil: the .pth dictionary of the reference code; csv: child,parent,name.",
)
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
def export(path: Path, out: Path, file_format: str, overwrite: bool) -> None:
    """Write the tree of PATH (as in `tree show`) to the file OUT."""
    from ..shards.files.output import may_write_file
    from ..shards.tree_view import load_tree

    semantic_tree = load_tree(path)
    for difference in _differences(path, semantic_tree).get("differences", []):
        log.info("%s: %s", path, difference)
    may_write_file(out, what="a tree", is_ours=_is_tree, overwrite=overwrite)
    if file_format == "json":
        semantic_tree.save(out)
    elif file_format == "csv":
        semantic_tree.save_csv(out)
    else:
        semantic_tree.save_miil(out)
        for note in _miil_notes(semantic_tree):
            log.warning("%s: %s", out, note)
    say(f"{out}: {len(semantic_tree):,} classes ({file_format})")


def _differences(path: Path, semantic_tree: SemanticTree) -> dict[str, list[str]]:
    """Return {differences} of a `.pth` of the reference code from our tree; of any other tree nothing."""
    if path.suffix != ".pth":
        return {}
    from ..preprocess.classes.given_tree import differences_from_ours

    return {"differences": differences_from_ours(semantic_tree)}


def _is_tree(path: Path) -> bool:
    """Return whether a file is one that `tree export` writes."""
    from ..shards.tree import CSV_HEADER
    from ..shards.tree_view import load_tree

    if path.read_bytes()[: len(CSV_HEADER)] == CSV_HEADER.encode():
        return True
    try:
        load_tree(path)
    except ValueError:
        return False
    return True


def _definition(view: TreeView, wnid: str) -> str:
    """Return the definition from the class table, else WordNet's; empty where neither has one."""
    if wnid in view.rows:
        return view.rows[wnid].definition
    from ..preprocess.classes.taxonomy import Taxonomy

    return Taxonomy.packaged().definition(wnid)


def _miil_notes(semantic_tree: SemanticTree) -> Iterator[str]:
    """Yield what the reference's code (src_files/semantic/semantics.py) gets wrong about a tree."""
    *above, deepest = semantic_tree.level_weights or (None,)
    if deepest is not None:
        num_classes = len(semantic_tree.classes_by_level[-1])
        yield f"the reference's code leaves out the deepest level, here level {len(above)} of {num_classes:,} classes"
    single = [str(level) for level, weight in enumerate(above) if weight is None]
    if single:
        yield f"the reference's code mistakes the levels below one of a single class, here level {', '.join(single)}"
