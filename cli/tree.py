"""`in21k tree`: looking at a semantic tree, and taking it elsewhere."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import PATH, emit, json_option, table

if TYPE_CHECKING:
    from ..shards.tree import SemanticTree

NUM_BRANCHES = 10


@click.group()
def tree() -> None:
    """Show or export a semantic tree."""


@tree.command()
@click.argument("path", type=PATH)
@click.argument("class_name", metavar="[WNID_OR_NAME]", required=False)
@json_option
def show(path: Path, class_name: str | None, as_json: bool) -> None:
    """Show the tree of PATH (a prepared data set, shards, a run or a tree.json), or one class of it."""
    semantic_tree = _load(path)
    if class_name is None:
        result = _summary(semantic_tree)
        emit(result, _render_summary(result), as_json=as_json)
    else:
        result = _class(semantic_tree, semantic_tree.find(class_name))
        emit(result, _render_class(result), as_json=as_json)


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
    """Write the tree of PATH to the file OUT."""
    from ..shards.files import whole_file, write_text

    semantic_tree = _load(path)
    if out.exists() and not overwrite:
        raise ValueError(f"{out}: exists; give another file, or --overwrite to replace it")
    if file_format == "json":
        semantic_tree.save(out)
    elif file_format == "csv":
        write_text(out, _as_csv(semantic_tree))
    else:
        import torch

        buffer = io.BytesIO()
        torch.save(_as_miil(semantic_tree), buffer)
        with whole_file(out) as aside:
            aside.write_bytes(buffer.getbuffer())
    click.echo(f"{out}: {len(semantic_tree):,} classes ({file_format})")


def _load(path: Path) -> SemanticTree:
    from ..shards.tree import SemanticTree

    file = path / "tree.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"{path}: no tree.json; wanted a prepared data set, shards, a run, or a tree.json itself")
    return SemanticTree.load(file)


def _num_below(semantic_tree: SemanticTree) -> list[int]:
    """Return per class how many classes lie below it."""
    below = [0] * len(semantic_tree)
    for path in semantic_tree.paths:
        for ancestor in path[1:]:
            below[ancestor] += 1
    return below


def _node(semantic_tree: SemanticTree, index: int, below: list[int]) -> dict[str, Any]:
    return {
        "class_index": index,
        "wnid": semantic_tree.wnids[index],
        "name": semantic_tree.names[index],
        "level": semantic_tree.levels[index],
        "num_below": below[index],
    }


def _summary(semantic_tree: SemanticTree) -> dict[str, Any]:
    below = _num_below(semantic_tree)
    tops = [index for index, parent in enumerate(semantic_tree.parents) if parent < 0]
    largest = sorted(tops, key=lambda index: (-below[index], index))[:NUM_BRANCHES]
    return {
        "num_classes": len(semantic_tree),
        "classes_per_level": [len(classes) for classes in semantic_tree.classes_by_level],
        "largest_branches": [_node(semantic_tree, index, below) for index in largest],
    }


def _class(semantic_tree: SemanticTree, index: int) -> dict[str, Any]:
    below = _num_below(semantic_tree)
    return {
        "path": [_node(semantic_tree, node, below) for node in semantic_tree.paths[index]],
        "children": [_node(semantic_tree, node, below) for node in semantic_tree.children[index]],
    }


def _render_summary(result: dict[str, Any]) -> str:
    levels = [["level", "classes"]] + [[str(k), f"{n:,}"] for k, n in enumerate(result["classes_per_level"])]
    branches = [["largest branches", "wnid", "classes below"]] + [
        [node["name"], node["wnid"], f"{node['num_below']:,}"] for node in result["largest_branches"]
    ]
    return f"{result['num_classes']:,} classes\n\n{table(levels)}\n\n{table(branches)}"


def _render_class(result: dict[str, Any]) -> str:
    lines = [
        f"{'  ' * depth}{node['name']}  {node['wnid']}, class {node['class_index']}, {node['num_below']:,} below it"
        for depth, node in enumerate(reversed(result["path"]))
    ]
    indent = "  " * len(result["path"])
    lines += [f"{indent}- {node['name']}  {node['wnid']}" for node in result["children"]]
    return "\n".join(lines)


def _as_csv(semantic_tree: SemanticTree) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["child", "parent", "name"])
    for wnid, name, parent in zip(semantic_tree.wnids, semantic_tree.names, semantic_tree.parents, strict=True):
        writer.writerow([wnid, semantic_tree.wnids[parent] if parent >= 0 else "", name])
    return out.getvalue()


def _as_miil(semantic_tree: SemanticTree) -> dict[str, Any]:
    """Return the dictionary that the reference's semantic softmax reads."""
    wnids = semantic_tree.wnids
    return {
        "class_list": list(wnids),
        "class_description": dict(zip(wnids, semantic_tree.names, strict=True)),
        "class_tree_list": [list(path) for path in semantic_tree.paths],
        "child_2_parent": {wnids[i]: wnids[parent] for i, parent in enumerate(semantic_tree.parents) if parent >= 0},
    }
