"""What there is to see of a semantic tree: its levels, its largest branches, one class of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .class_table import ClassRow, read_class_table
from .tree import SemanticTree

NUM_BRANCHES = 10  # in a summary
DRAWN_BRANCHES, DRAWN_CHILDREN = 3, (3, 2)  # how many of them are drawn, and how many classes on each level below


def load_tree(path: Path) -> SemanticTree:
    """Read the tree of a folder that has a tree.json, or of a file; raises ValueError where there is none."""
    file = path / "tree.json" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(
            f"{path}: no tree.json; wanted a prepared data set, shards, a run, a tree.json itself, or a .pth of the "
            "reference code"
        )
    return SemanticTree.load(file)


@dataclass(frozen=True)
class TreeView:
    """A tree, and what the folder that holds it knows about its classes.

    rows:       by wnid, the dropped classes too; empty where the path has no class table.
    num_below:  per class, the number of classes below it.
    num_train:  per class, its training images; None without a class table.
    num_branch: per class, its training images and those of all classes below it; None without a class table.
    """

    tree: SemanticTree
    rows: dict[str, ClassRow]
    num_below: list[int]
    num_train: list[int] | None
    num_branch: list[int] | None

    @classmethod
    def open(cls, path: Path) -> TreeView:
        """Read the tree of a path, as `load_tree` does, and the class table beside it."""
        tree = load_tree(path)
        table_path = path / "classes.parquet"
        rows = {row.wnid: row for row in read_class_table(table_path)} if table_path.is_file() else {}
        num_train = [rows[wnid].num_train if wnid in rows else 0 for wnid in tree.wnids] if rows else None
        return cls(
            tree=tree,
            rows=rows,
            num_below=[number - 1 for number in tree.branch_sums([1] * len(tree))],
            num_train=num_train,
            num_branch=tree.branch_sums(num_train) if num_train else None,
        )

    def node(self, index: int) -> dict[str, Any]:
        """Return the facts about a class, as JSON values."""
        return {
            "class_index": index,
            "wnid": self.tree.wnids[index],
            "name": self.tree.names[index],
            "level": self.tree.levels[index],
            "num_below": self.num_below[index],
            "inner": index >= self.tree.num_image_classes,
            "num_train": self.num_train[index] if self.num_train else None,
            "num_train_branch": self.num_branch[index] if self.num_branch else None,
        }

    def largest(self, indices: Iterable[int], number: int) -> list[int]:
        """Return the `number` classes with the most classes below them."""
        return sorted(indices, key=lambda index: (-self.num_below[index], index))[:number]

    def summary(self) -> dict[str, Any]:
        """Return the levels, the largest branches, and the beginnings of some, as JSON values."""
        tree = self.tree
        tops = [index for index, parent in enumerate(tree.parents) if parent < 0]
        largest = self.largest(tops, NUM_BRANCHES)
        return {
            "num_classes": len(tree),
            "num_inner_classes": tree.num_inner,
            "num_train": sum(self.num_train) if self.num_train else None,
            "classes_per_level": [len(classes) for classes in tree.classes_by_level],
            "weight_per_level": list(tree.level_weights),
            "num_top_classes": len(tops),
            "largest_branches": [self.node(index) for index in largest],
            "drawn": [self._drawn(index, DRAWN_CHILDREN) for index in largest[:DRAWN_BRANCHES] if tree.children[index]],
        }

    def _drawn(self, index: int, num_children: Sequence[int]) -> dict[str, Any]:
        """Return a class with the largest branches below it, `num_children` of them on each level."""
        children = self.tree.children[index]
        chosen = self.largest(children, num_children[0]) if num_children else []
        return {
            **self.node(index),
            "children": [self._drawn(child, num_children[1:]) for child in chosen],
            "num_more_children": len(children) - len(chosen),
        }

    def describe_class(self, wnid_or_name: str) -> dict[str, Any]:
        """Return a class's path to the top and its children, as JSON values; raises ValueError for an unknown class."""
        try:
            index = self.tree.find(wnid_or_name)
        except ValueError:
            row = self.rows.get(wnid_or_name)
            if row is None:
                raise
            raise ValueError(
                f"{row.wnid} ({row.name}) is not in the tree: it was dropped, with {row.num_raw:,} images in the source"
            ) from None
        return {
            "path": [self.node(node) for node in self.tree.paths[index]],
            "children": [self.node(node) for node in self.tree.children[index]],
        }
