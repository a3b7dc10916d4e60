"""The semantic tree: which class of a data set lies below which other."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from .files import write_json

FORMAT = "in21k-tree"
VERSION = 1


@dataclass(frozen=True)
class SemanticTree:
    """The classes of a data set, each with its path to the top.

    Classes are numbered 0.. in the order of `wnids`; every class index below is a position in that order.

    wnids:  the class ids (`n` + WordNet offset, or a user's own names), unique.
    names:  a readable name per class.
    paths:  `paths[i] = (i, nearest class ancestor, ..., top class ancestor)`.

    >>> tree = SemanticTree.from_paths(["a", "b", "c"], ["animal", "bird", "swan"], [[0], [1, 0], [2, 1, 0]])
    >>> tree.parents, tree.levels
    ((-1, 0, 1), (0, 1, 2))
    """

    wnids: tuple[str, ...]
    names: tuple[str, ...]
    paths: tuple[tuple[int, ...], ...]

    @classmethod
    def from_paths(cls, wnids: Sequence[str], names: Sequence[str], paths: Sequence[Sequence[int]]) -> SemanticTree:
        """Build a tree from paths as `SemanticTree.paths` has them; raises ValueError where they contradict."""
        tree = cls(tuple(wnids), tuple(names), tuple(tuple(path) for path in paths))
        tree._check()
        return tree

    @classmethod
    def from_parents(cls, wnids: Sequence[str], names: Sequence[str], parents: Sequence[int]) -> SemanticTree:
        """Build a tree from each class's parent index (-1: none); raises ValueError on a cycle or a bad index."""
        num_classes = len(wnids)
        paths: list[list[int]] = []
        for index in range(len(parents)):
            path, node = [index], parents[index]
            while node != -1:
                if not 0 <= node < num_classes:
                    raise ValueError(f"tree: class {index} has parent {node}; wanted -1 or 0..{num_classes - 1}")
                if len(path) > num_classes:
                    raise ValueError(f"tree: class {index} ({wnids[index]}) lies on a cycle of parents")
                path.append(node)
                node = parents[node]
            paths.append(path)
        return cls.from_paths(wnids, names, paths)

    def _check(self) -> None:
        num_classes = len(self.wnids)
        if not len(self.names) == len(self.paths) == num_classes:
            raise ValueError(
                f"tree: {num_classes} wnids, {len(self.names)} names, {len(self.paths)} paths; wanted as many of each"
            )
        if len(set(self.wnids)) != num_classes:
            raise ValueError("tree: a wnid stands twice")
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
        """Read a `tree.json`; raises ValueError where it is none."""
        try:
            content: dict[str, Any] = json.loads(Path(path).read_text())
            if (content["format"], content["version"]) != (FORMAT, VERSION):
                raise ValueError(f"format {content['format']!r} version {content['version']!r}")
            return cls.from_parents(content["wnids"], content["names"], content["parents"])
        except KeyError as error:
            raise ValueError(f"{path}: no {FORMAT} of version {VERSION} (it lacks {error})") from error
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}: no {FORMAT} of version {VERSION} ({error})") from error

    def save(self, path: str | Path) -> None:
        """Write `tree.json`: format, version, wnids, names, parents (-1: none)."""
        content = {
            "format": FORMAT,
            "version": VERSION,
            "wnids": self.wnids,
            "names": self.names,
            "parents": self.parents,
        }
        write_json(Path(path), content)

    def __len__(self) -> int:
        return len(self.wnids)

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
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Per class the indices of the classes whose parent it is."""
        children: list[list[int]] = [[] for _ in self.wnids]
        for index, parent in enumerate(self.parents):
            if parent >= 0:
                children[parent].append(index)
        return tuple(tuple(below) for below in children)

    def find(self, wnid_or_name: str) -> int:
        """Return the index of the class of that wnid, or of the one class of that name, case ignored.

        Raises ValueError where there is none, or several.
        """
        if wnid_or_name in self.wnids:
            return self.wnids.index(wnid_or_name)
        found = [i for i, name in enumerate(self.names) if name.casefold() == wnid_or_name.casefold()]
        if not found:
            raise ValueError(f"no class is called {wnid_or_name!r}; give a wnid or a name of this tree")
        if len(found) > 1:
            wnids = ", ".join(self.wnids[i] for i in found)
            raise ValueError(f"{len(found)} classes are called {wnid_or_name!r}: {wnids}; give the wnid")
        return found[0]
