"""What `in21k tree show` prints."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from .options import table

MAX_CHILDREN = 50  # named of one class; --json names all


def render_summary(result: dict[str, Any]) -> str:
    """Return tables of the levels and of the largest branches, and drawings of some branches."""
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
    inner = f" ({result['num_inner_classes']:,} inner)" if result["num_inner_classes"] else ""
    head = f"{result['num_classes']:,} classes{inner}, {result['num_top_classes']:,} of them at the top{images}"
    drawn = ["\n".join([_line(node), *_branches(node)]) for node in result["drawn"]]
    flat = [FLAT] if len(levels) == 2 and result["num_classes"] > 1 else []
    differences = ["\n".join(result["differences"])] if "differences" in result else []
    return "\n\n".join([head, *flat, *differences, table(levels), table(branches), *drawn])


def _line(node: dict[str, Any]) -> str:
    below = f", {node['num_below']:,} below it" if node["num_below"] else ""
    images = "" if node["num_train_branch"] is None else f", {node['num_train_branch']:,} training images"
    return f"{node['name']}  {node['wnid']}{below}{images}{', inner' if node['inner'] else ''}"


def _branches(node: dict[str, Any]) -> Iterator[str]:
    """Yield the lines below a drawn class."""
    more = node["num_more_children"] if node["children"] else 0
    for place, child in enumerate(node["children"]):
        is_last = not more and place == len(node["children"]) - 1
        yield f"{'└──' if is_last else '├──'} {_line(child)}"
        yield from (f"{'   ' if is_last else '│  '} {line}" for line in _branches(child))
    if more:
        yield f"└── {more:,} more"


def render_class(result: dict[str, Any]) -> str:
    """Return a class below its ancestors and above its children, and its definition."""
    lines = [f"{'  ' * depth}{_counted(node)}" for depth, node in enumerate(reversed(result["path"]))]
    indent = "  " * len(result["path"])
    children = result["children"]
    lines += [f"{indent}- {_counted(node)}" for node in children[:MAX_CHILDREN]]
    if len(children) > MAX_CHILDREN:
        lines.append(f"{indent}- {len(children) - MAX_CHILDREN:,} more (--json names them all)")
    return "\n".join([*lines, *(["", result["definition"]] if result["definition"] else [])])


def _counted(node: dict[str, Any]) -> str:
    parts = [f"{'inner ' if node['inner'] else ''}class {node['class_index']}"]
    if node["num_below"]:
        parts.append(f"{node['num_below']:,} below it")
    if node["num_train"] is not None:
        branch = f" ({node['num_train_branch']:,} with those below)" if node["num_below"] else ""
        parts.append(f"{node['num_train']:,} training images{branch}")
    return f"{node['name']}  {node['wnid']}, {', '.join(parts)}"
