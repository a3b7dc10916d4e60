"""From groups to classes: the rows of a stream are grouped by folder until all folders are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from .folders import Layout, class_of_folder
from .gathering import identify
from .members import readable, to_bytes, to_text

_NO_CLASS = "/"  # what no identifier holds


def group_of(folder: str) -> str:
    """Return the group of a folder: its path, with any bytes as text."""
    return to_bytes(folder).decode("latin-1")


def folder_of(group: str) -> str:
    """Return the folder of a group: the inverse of `group_of`."""
    return to_text(group.encode("latin-1"))


class Groups:
    """The class of each group.

    layout: how folders are read; None where groups are classes.
    source: the name of the source, for errors.
    """

    def __init__(self, layout: Layout | None, source: str) -> None:
        self.layout = layout
        self.names: dict[str, str] = {}  # of the classes whose name is not their identifier
        self._source = source
        self.class_of = cache(self._class_of)

    def _class_of(self, group: str) -> str:
        """Return the class of a group; raises UselessError where its name is not UTF-8.

        For a folder that is not a class it returns the folder, marked: see `is_folder`.
        """
        if self.layout is None:
            return group
        folder = folder_of(group)
        name = class_of_folder(folder, self.layout).name
        if name is None or self.layout.unused_of(folder):
            return _NO_CLASS + group
        return identify(name, self.names, f"{self._source}: {readable(folder)}")

    def is_folder(self, wnid: str) -> bool:
        """Tell whether a result of `class_of` is a folder that is not a class."""
        return wnid.startswith(_NO_CLASS)

    def unused_of(self, wnid: str) -> str | None:
        """Return the ignored split folder that such a folder lies in; None for any other."""
        folder = folder_of(wnid.removeprefix(_NO_CLASS))
        return self.layout.unused_of(folder) if self.layout and self.is_folder(wnid) else None

    def by_class(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return counts by group as counts by class."""
        totals: dict[str, int] = {}
        for group, count in counts.items():
            totals[self.class_of(group)] = totals.get(self.class_of(group), 0) + count
        return totals

    def classes(self, groups: Iterable[str]) -> set[str]:
        """Return the classes of groups, without folders that are not classes."""
        return {wnid for wnid in map(self.class_of, groups) if not self.is_folder(wnid)}
