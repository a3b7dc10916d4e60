"""The rows of chunks by class: of a stream they are kept by folder until all folders are known."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache

from .archive import readable, to_bytes, to_text
from .folders import Layout, place_of
from .gathering import identify

_NO_CLASS = "/"  # what no identifier holds


def group_of(folder: str) -> str:
    """Return a folder's name as it goes into tables of chunks: any bytes as text."""
    return to_bytes(folder).decode("latin-1")


def folder_of(group: str) -> str:
    """Return the folder of a group: the opposite of `group_of`."""
    return to_text(group.encode("latin-1"))


class Groups:
    """Tells of which class the rows of a group are.

    layout: how folders are read; None where groups are classes.
    source: named in errors.
    """

    def __init__(self, layout: Layout | None, source: str) -> None:
        self.layout = layout
        self.names: dict[str, str] = {}  # of the classes that are not called by their identifier, by that
        self._source = source
        self.class_of = cache(self._class_of)

    def _class_of(self, group: str) -> str:
        """Return the class of a group; raises UselessError where its name is not UTF-8.

        A folder of no class stands for itself: see `is_folder`.
        """
        if self.layout is None:
            return group
        folder = folder_of(group)
        name = place_of(folder, self.layout).name
        if name is None or self.layout.unused_of(folder):
            return _NO_CLASS + group
        return identify(name, self.names, f"{self._source}: {readable(folder)}")

    def is_folder(self, wnid: str) -> bool:
        """Tell whether what `class_of` returned is a folder of no class."""
        return wnid.startswith(_NO_CLASS)

    def unused_of(self, wnid: str) -> str | None:
        """Return the ignored split of such a folder."""
        folder = folder_of(wnid.removeprefix(_NO_CLASS))
        return self.layout.unused_of(folder) if self.layout and self.is_folder(wnid) else None

    def by_class(self, counts: Mapping[str, int]) -> dict[str, int]:
        """Return counts by group as counts by class."""
        found: dict[str, int] = {}
        for group, count in counts.items():
            found[self.class_of(group)] = found.get(self.class_of(group), 0) + count
        return found

    def classes(self, groups: Iterable[str]) -> set[str]:
        """Return the classes of groups, but for folders of none."""
        return {wnid for wnid in map(self.class_of, groups) if not self.is_folder(wnid)}
