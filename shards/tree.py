"""The semantic tree: which class of a data set lies below which other."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .files.atomic import parse_json, whole_file, write_json, write_text
from .files.shape import ANY, COUNT, INDEX, TEXT, check_shape
from .miil import read_miil

log = logging.getLogger(__name__)

FORMAT = "in21k-tree"
VERSION = 1
CSV_HEADER = "child,parent,name\n"
MAX_WEIGHT = 20.0  # the reference's bound on a level's weight
FLAT = (
    "The tree has one level: no class lies below another, so semantic softmax is plain softmax with cross-entropy, and "
    "semantic top-1 is top-1. (A parent without images of its own counts only with `in21k preprocess --inner-classes`.)"
)
_TORCH_MAGIC = (b"PK", b"\x80")  # how files of torch.save begin: a zip, or in old ones a pickle


@dataclass(frozen=True)
class SemanticTree:
    """The classes of a data set, each with its path to the top.

    Classes are numbered 0.. in the order of `wnids`; every class index below is a position in that order.

    wnids:  the class ids (`n` + WordNet offset, or a user's own names), unique.
    names:  a readable name per class.
    paths:  `paths[i] = (i, nearest class ancestor, ..., top class ancestor)`.
    num_inner: number of inner classes, which are the last ones. They have no images of their own; the images of the
            classes below them train them.

    >>> tree = SemanticTree.from_paths(["a", "b", "c"], ["animal", "bird", "swan"], [[0], [1, 0], [2, 1, 0]])
    >>> tree.parents, tree.levels
    ((-1, 0, 1), (0, 1, 2))
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    paths: tuple[tuple[int, ...], ...]
    num_inner: int = 0

    @classmethod
    def from_paths(cls, wnids: Sequence[str], names: Sequence[str], paths: Sequence[Sequence[int]]) -> SemanticTree:
        """Build a tree from paths as `SemanticTree.paths` has them; raises ValueError where they contradict."""
        _check_counts(wnids, names, paths)
        tree = cls(tuple(wnids), tuple(names), tuple(tuple(path) for path in paths))
        tree._check_paths()
        return tree

    @classmethod
    def from_parents(
        cls, wnids: Sequence[str], names: Sequence[str], parents: Sequence[int], num_inner: int = 0
    ) -> SemanticTree:
        """Build a tree from each class's parent index (-1: none).

        Raises ValueError on a cycle, a bad index, and an inner class without an image class below it.
        """
        num_classes = len(wnids)
        paths: dict[int, tuple[int, ...]] = {-1: ()}
        _check_counts(wnids, names, parents)
        for index in range(num_classes):
            climbed: list[int] = []
            node = index
            while node not in paths:
                if not 0 <= node < num_classes:
                    raise ValueError(f"tree: class {climbed[-1]} has parent {node}; wanted -1 or 0..{num_classes - 1}")
                if len(climbed) > num_classes:
                    raise ValueError(f"tree: class {node} ({wnids[node]}) lies on a cycle of parents")
                climbed.append(node)
                node = parents[node]
            for below in reversed(climbed):
                paths[below] = (below, *paths[parents[below]])
        tree = cls(tuple(wnids), tuple(names), tuple(paths[index] for index in range(num_classes)), num_inner)
        tree._check_inner()
        return tree

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> SemanticTree:
        """Return the tree of what `content` returned; raises ValueError for any other value."""
        check_shape(dict(content), {"wnids": [TEXT], "names": [TEXT], "parents": [INDEX]})
        num_classes = len(content["wnids"])
        num_image_classes = content.get("num_image_classes", num_classes)
        check_shape(num_image_classes, COUNT, "num_image_classes")
        return cls.from_parents(content["wnids"], content["names"], content["parents"], num_classes - num_image_classes)

    def content(self) -> dict[str, Any]:
        """Return the tree as JSON values: wnids, names, parents (-1: none), num_image_classes where some are inner."""
        lists = {"wnids": list(self.wnids), "names": list(self.names), "parents": list(self.parents)}
        return {**lists, "num_image_classes": self.num_image_classes} if self.num_inner else lists

    def _check_inner(self) -> None:
        if not 0 <= self.num_inner <= len(self):
            raise ValueError(f"tree: {self.num_inner} of {len(self)} classes are inner; wanted 0 to {len(self)}")
        above = {node for path in self.paths[: self.num_image_classes] for node in path}
        empty = next((index for index in range(self.num_image_classes, len(self)) if index not in above), None)
        if empty is not None:
            raise ValueError(f"tree: no class with images lies below the inner class {empty} ({self.wnids[empty]})")

    def _check_paths(self) -> None:
        num_classes = len(self.wnids)
        for index, path in enumerate(self.paths):
            if not path or path[0] != index:
                raise ValueError(f"tree: the path of class {index} is {list(path)}; it has to begin with {index}")
            if any(not 0 <= node < num_classes for node in path) or len(set(path)) != len(path):
                raise ValueError(f"tree: the path {list(path)} names a class twice or one outside 0..{num_classes - 1}")
            if len(path) > 1 and self.paths[path[1]] != path[1:]:
                raise ValueError(
                    f"tree: the path {list(path)} disagrees with that of its parent, {list(self.paths[path[1]])}"
                )

    @classmethod
    def load(cls, path: str | Path) -> SemanticTree:
        """Read a `tree.json`, or the `.pth` dictionary of the reference code; raises ValueError where it is neither.

        Of a `.pth` nothing is unpickled but text, numbers and lists (see `read_miil`).
        """
        with Path(path).open("rb") as file:
            if file.read(2).startswith(_TORCH_MAGIC):
                return cls._from_miil(Path(path))
        try:
            content = parse_json(Path(path).read_bytes(), "it")
            check_shape(content, {"format": ANY, "version": ANY})
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {content['format']!r} version {content['version']!r}")
            return cls.from_content(content)
        except ValueError as error:
            raise ValueError(f"{path}: no {FORMAT} of version {VERSION} ({error})") from error

    @classmethod
    def _from_miil(cls, path: Path) -> SemanticTree:
        content = read_miil(path)
        try:
            return cls.from_paths(*content)
        except ValueError as error:
            raise ValueError(f"{path}: no tree of the reference code ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write `tree.json`: format, version, and `content`."""
        write_json(Path(path), {"format": FORMAT, "version": VERSION, **self.content()})

    def save_csv(self, path: str | Path) -> None:
        """Write `child,parent,name`, a class a line, in UTF-8; a top class has no parent."""
        out = io.StringIO()
        out.write(CSV_HEADER)
        writer = csv.writer(out, lineterminator="\n")
        for wnid, name, parent in zip(self.wnids, self.names, self.parents, strict=True):
            writer.writerow([wnid, self.wnids[parent] if parent >= 0 else "", name])
        write_text(Path(path), out.getvalue())

    def save_miil(self, path: str | Path) -> None:
        """Write the `.pth` dictionary that the reference's semantic softmax loads.

        class_list: the wnids; class_description: a name per wnid, in class order, as the reference numbers them by
        their place; class_tree_list: `paths` as lists; child_2_parent: a parent's wnid per wnid that has one.
        """
        import torch

        wnids = self.wnids
        content = {
            "class_list": list(wnids),
            "class_description": dict(zip(wnids, self.names, strict=True)),
            "class_tree_list": [list(path) for path in self.paths],
            "child_2_parent": {wnids[i]: wnids[parent] for i, parent in enumerate(self.parents) if parent >= 0},
        }
        # By way of memory: torch's own file writer ends a full disk in a RuntimeError that names no file.
        buffer = io.BytesIO()
        torch.save(content, buffer)
        with whole_file(Path(path)) as aside:
            aside.write_bytes(buffer.getbuffer())

    def __len__(self) -> int:
        return len(self.wnids)

    @property
    def num_image_classes(self) -> int:
        """The number of classes with images of their own: those of index 0 to num_image_classes - 1."""
        return len(self) - self.num_inner

    @cached_property
    def parents(self) -> tuple[int, ...]:
        """Per class the index of its nearest class ancestor, -1 for a top class."""
        return tuple(path[1] if len(path) > 1 else -1 for path in self.paths)

    @cached_property
    def levels(self) -> tuple[int, ...]:
        """Per class its number of class ancestors: 0 for a top class."""
        return tuple(len(path) - 1 for path in self.paths)

    @cached_property
    def classes_by_level(self) -> tuple[tuple[int, ...], ...]:
        """Per level the class indices that lie on it, ascending."""
        by_level: list[list[int]] = [[] for _ in range(max(self.levels, default=-1) + 1)]
        for index, level in enumerate(self.levels):
            by_level[level].append(index)
        return tuple(tuple(classes) for classes in by_level)

    @cached_property
    def level_weights(self) -> tuple[float | None, ...]:
        """Per level k its weight in the semantic loss; None for a level of one class, which has no softmax.

        w_k = min(sum_j N_j / sum_{j>=k} N_j, 20), with N_k the classes of level k, the sums over all levels.
        """
        weights: list[float | None] = []
        num_from_here = len(self)
        for classes in self.classes_by_level:
            weights.append(min(len(self) / num_from_here, MAX_WEIGHT) if len(classes) > 1 else None)
            num_from_here -= len(classes)
        return tuple(weights)

    def branch_sums(self, values: Sequence[int]) -> list[int]:
        """Return per class the sum of `values` (one per class) over the class and all below it."""
        sums = list(values)
        for classes in reversed(self.classes_by_level):
            for index in classes:
                if self.parents[index] >= 0:
                    sums[self.parents[index]] += sums[index]
        return sums

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Per class the indices of the classes whose parent it is."""
        children: list[list[int]] = [[] for _ in self.wnids]
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(index)
        return tuple(tuple(below) for below in children)

    def find(self, wnid_or_name: str) -> int:
        """Return the index of the class of that wnid, or of the one class of that name.

        Case and underscores for spaces do not count in a name. Raises ValueError for no match, or several.
        """
        if wnid_or_name in self.wnids:
            return self.wnids.index(wnid_or_name)
        plain = _plain(wnid_or_name)
        plain_names = [_plain(name) for name in self.names]
        matches = [i for i, name in enumerate(plain_names) if name == plain]
        if not matches:
            near = difflib.get_close_matches(plain, {**dict.fromkeys(plain_names), **dict.fromkeys(self.wnids)})
            meant = f"did you mean {', '.join(near)}?" if near else "give a wnid or a name of this tree"
            raise ValueError(f"no class is called {wnid_or_name!r}; {meant}")
        if len(matches) > 1:
            wnids = ", ".join(self.wnids[i] for i in matches)
            raise ValueError(f"{len(matches)} classes are called {wnid_or_name!r}: {wnids}; give the wnid")
        return matches[0]


def _plain(name: str) -> str:
    return unicodedata.normalize("NFC", name.replace("_", " ").casefold())


def _check_counts(wnids: Sequence[str], names: Sequence[str], paths: Sequence[Any]) -> None:
    if not len(wnids) == len(names) == len(paths):
        raise ValueError(f"tree: {len(wnids)} wnids, {len(names)} names, {len(paths)} paths; wanted as many of each")
    if len(set(wnids)) != len(wnids):
        raise ValueError("tree: a wnid stands twice")


def warn_if_flat(tree: SemanticTree) -> None:
    """Explain in the log what a tree of a single level means for the semantic loss."""
    if len(tree) > 1 and len(tree.classes_by_level) == 1:
        log.warning(FLAT)
