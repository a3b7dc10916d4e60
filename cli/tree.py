"""`in21k tree`: looking at a semantic tree, and taking it elsewhere."""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, emit, json_option, table
from .terminal import say

if TYPE_CHECKING:
    from ..shards.class_table import ClassRow
    from ..shards.tree import SemanticTree

_CSV_HEADER = "child,parent,name\n"
log = logging.getLogger(__name__)

NUM_BRANCHES = 10  # in the table
DRAWN_BRANCHES, DRAWN_CHILDREN = 3, (3, 2)  # how many of them are drawn, and how many classes on each level below
MAX_CHILDREN = 50  # named of one class; --json names all


@click.group()
def tree() -> None:
    """Show or export a semantic tree."""


@tree.command()
@click.argument("path", type=PATH)
@click.argument("class_name", metavar="[WNID_OR_NAME]", required=False)
@json_option
def show(path: Path, class_name: str | None, as_json: bool) -> None:
    """Show the tree of PATH, or one class of it.

    PATH is a prepared data set, shards, a run, a tree.json, or a .pth of the reference code. A level's weight is that
    of its hierarchy in the semantic loss; a level of one class is none. Data sets also count training images.
    """
    shown = _open(path)
    if class_name is None:
        result = _summary(shown)
        emit(result, _render_summary, as_json=as_json)
    else:
        result = _class(shown, class_name)
        emit(result, _render_class, as_json=as_json)


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
    from ..shards.files.atomic import write_text
    from ..shards.files.output import may_write_file

    semantic_tree = _load_tree(path)
    may_write_file(out, what="a tree", is_ours=_is_tree, overwrite=overwrite)
    if file_format == "json":
        semantic_tree.save(out)
    elif file_format == "csv":
        write_text(out, _as_csv(semantic_tree))
    else:
        semantic_tree.save_miil(out)
        for note in _miil_notes(semantic_tree):
            log.warning("%s: %s", out, note)
    say(f"{out}: {len(semantic_tree):,} classes ({file_format})")


@dataclass(frozen=True)
class _Shown:
    """A tree, and what the folder that holds it knows of its classes.

    num_below: per class how many lie below it.  num_train, num_branch: per class its training images, its own and with
    all below it; None where the path has no class table.
    """

    tree: SemanticTree
    rows: dict[str, ClassRow]  # by wnid, the dropped classes too
    num_below: list[int]
    num_train: list[int] | None
    num_branch: list[int] | None

    def node(self, index: int) -> dict[str, Any]:
        """Return what is shown of a class, as JSON values."""
        return {
            "class_index": index,
            "wnid": self.tree.wnids[index],
            "name": self.tree.names[index],
            "level": self.tree.levels[index],
            "num_below": self.num_below[index],
            "num_train": self.num_train[index] if self.num_train else None,
            "num_train_branch": self.num_branch[index] if self.num_branch else None,
        }

    def largest(self, indices: Iterable[int], number: int) -> list[int]:
        """Return those of the classes with the most classes below them."""
        return sorted(indices, key=lambda index: (-self.num_below[index], index))[:number]


def _is_tree(path: Path) -> bool:
    """Return whether a file is one that `tree export` writes."""
    if path.read_bytes()[: len(_CSV_HEADER)] == _CSV_HEADER.encode():
        return True
    try:
        _load_tree(path)
    except ValueError:
        return False
    return True


def _load_tree(path: Path) -> SemanticTree:
    from ..shards.tree import SemanticTree

    file = path / "tree.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path}: no tree.json; wanted a prepared data set, shards, a run, a tree.json itself, or a .pth of the "
            "reference code"
        )
    return SemanticTree.load(file)


def _open(path: Path) -> _Shown:
    from ..shards.class_table import read_class_table

    tree = _load_tree(path)
    table_path = path / "classes.parquet"
    rows = {row.wnid: row for row in read_class_table(table_path)} if table_path.is_file() else {}
    num_train = [rows[wnid].num_train if wnid in rows else 0 for wnid in tree.wnids] if rows else None
    return _Shown(
        tree=tree,
        rows=rows,
        num_below=[number - 1 for number in tree.branch_sums([1] * len(tree))],
        num_train=num_train,
        num_branch=tree.branch_sums(num_train) if num_train else None,
    )


def _summary(shown: _Shown) -> dict[str, Any]:
    tree = shown.tree
    tops = [index for index, parent in enumerate(tree.parents) if parent < 0]
    largest = shown.largest(tops, NUM_BRANCHES)
    return {
        "num_classes": len(tree),
        "num_train": sum(shown.num_train) if shown.num_train else None,
        "classes_per_level": [len(classes) for classes in tree.classes_by_level],
        "weight_per_level": list(tree.level_weights),
        "num_top_classes": len(tops),
        "largest_branches": [shown.node(index) for index in largest],
        "drawn": [_drawn(shown, index, DRAWN_CHILDREN) for index in largest[:DRAWN_BRANCHES] if tree.children[index]],
    }


def _drawn(shown: _Shown, index: int, num_children: Sequence[int]) -> dict[str, Any]:
    """Return a class with the largest branches below it, as many on each level as `num_children` says."""
    children = shown.tree.children[index]
    chosen = shown.largest(children, num_children[0]) if num_children else []
    return {
        **shown.node(index),
        "children": [_drawn(shown, child, num_children[1:]) for child in chosen],
        "num_more_children": len(children) - len(chosen),
    }


def _class(shown: _Shown, wnid_or_name: str) -> dict[str, Any]:
    try:
        index = shown.tree.find(wnid_or_name)
    except ValueError:
        row = shown.rows.get(wnid_or_name)
        if row is None:
            raise
        raise ValueError(
            f"{row.wnid} ({row.name}) is no class of the tree: the source holds {row.num_raw:,} images of it, and it "
            "was not kept"
        ) from None
    return {
        "definition": _definition(shown, shown.tree.wnids[index]),
        "path": [shown.node(node) for node in shown.tree.paths[index]],
        "children": [shown.node(node) for node in shown.tree.children[index]],
    }


def _definition(shown: _Shown, wnid: str) -> str:
    """Return the definition from the class table, else WordNet's; empty where nobody knows one."""
    if wnid in shown.rows:
        return shown.rows[wnid].definition
    from ..preprocess.classes.taxonomy import Taxonomy

    return Taxonomy.packaged().definition(wnid)


def _render_summary(result: dict[str, Any]) -> str:
    from ..shards.tree import FLAT

    levels = [["level", "classes", "weight"]] + [
        [str(level), f"{number:,}", "-" if weight is None else f"{weight:.2f}"]
        for level, (number, weight) in enumerate(
            zip(result["classes_per_level"], result["weight_per_level"], strict=True)
        )
    ]
    has_images = result["num_train"] is not None
    branches = [["largest branches", "wnid", "classes below", *(["training images"] if has_images else [])]] + [
        [
            *(node["name"], node["wnid"], f"{node['num_below']:,}"),
            *([f"{node['num_train_branch']:,}"] if has_images else []),
        ]
        for node in result["largest_branches"]
    ]
    images = f", {result['num_train']:,} training images" if has_images else ""
    head = f"{result['num_classes']:,} classes, {result['num_top_classes']:,} of them at the top{images}"
    drawn = ["\n".join([_line(node), *_branches(node)]) for node in result["drawn"]]
    flat = [FLAT] if len(levels) == 2 and result["num_classes"] > 1 else []
    return "\n\n".join([head, *flat, table(levels), table(branches), *drawn])


def _line(node: dict[str, Any]) -> str:
    below = f", {node['num_below']:,} below it" if node["num_below"] else ""
    images = "" if node["num_train_branch"] is None else f", {node['num_train_branch']:,} training images"
    return f"{node['name']}  {node['wnid']}{below}{images}"


def _branches(node: dict[str, Any]) -> Iterator[str]:
    """Yield the lines below a drawn class."""
    more = node["num_more_children"] if node["children"] else 0
    for place, child in enumerate(node["children"]):
        is_last = not more and place == len(node["children"]) - 1
        yield f"{'└──' if is_last else '├──'} {_line(child)}"
        yield from (f"{'   ' if is_last else '│  '} {line}" for line in _branches(child))
    if more:
        yield f"└── {more:,} more"


def _render_class(result: dict[str, Any]) -> str:
    lines = [f"{'  ' * depth}{_counted(node)}" for depth, node in enumerate(reversed(result["path"]))]
    indent = "  " * len(result["path"])
    children = result["children"]
    lines += [f"{indent}- {_counted(node)}" for node in children[:MAX_CHILDREN]]
    if len(children) > MAX_CHILDREN:
        lines.append(f"{indent}- {len(children) - MAX_CHILDREN:,} more (--json names them all)")
    return "\n".join([*lines, *(["", result["definition"]] if result["definition"] else [])])


def _counted(node: dict[str, Any]) -> str:
    parts = [f"class {node['class_index']}"]
    if node["num_below"]:
        parts.append(f"{node['num_below']:,} below it")
    if node["num_train"] is not None:
        branch = f" ({node['num_train_branch']:,} with those below)" if node["num_below"] else ""
        parts.append(f"{node['num_train']:,} training images{branch}")
    return f"{node['name']}  {node['wnid']}, {', '.join(parts)}"


def _miil_notes(semantic_tree: SemanticTree) -> Iterator[str]:
    """Say where the reference's code (src_files/semantic/semantics.py) takes a tree for another than it is."""
    *above, deepest = semantic_tree.level_weights or (None,)
    if deepest is not None:
        num_classes = len(semantic_tree.classes_by_level[-1])
        yield f"the reference's code leaves out the deepest level, here level {len(above)} of {num_classes:,} classes"
    single = [str(level) for level, weight in enumerate(above) if weight is None]
    if single:
        yield f"the reference's code mistakes the levels below one of a single class, here level {', '.join(single)}"


def _as_csv(semantic_tree: SemanticTree) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    out.write(_CSV_HEADER)
    for wnid, name, parent in zip(semantic_tree.wnids, semantic_tree.names, semantic_tree.parents, strict=True):
        writer.writerow([wnid, semantic_tree.wnids[parent] if parent >= 0 else "", name])
    return out.getvalue()
