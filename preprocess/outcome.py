"""The result of a run: what became of each class, and the members of no class."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .sources.class_names import class_id
from .sources.folders import WNID
from .sources.members import DUPLICATE, Reject, class_tar_of, is_image
from .tasks import ClassPart


@dataclass(frozen=True)
class Outcome:
    """The result of a run.

    parts:         the record of each class, by wnid.
    strays:        members that belong to no class.
    names:         the names of the classes whose name is not their identifier, by identifier.
    ignored:       number of files of each `ignored_kind` outside class tars.
    empty_folders: folders without members and subfolders.
    """

    parts: list[ClassPart]
    strays: list[Reject]
    names: Mapping[str, str]
    ignored: Counter[str]
    empty_folders: list[str]

    @property
    def kept(self) -> list[ClassPart]:
        """The classes that are kept."""
        return [part for part in self.parts if part.kept]

    @property
    def fallen(self) -> list[ClassPart]:
        """The classes that are dropped only because some of their images cannot be read."""
        return [part for part in self.parts if part.num_lost]

    def rejects(self) -> Iterator[Reject]:
        """Yield the rows of rejects.parquet: rejects of kept classes, and members of no class."""
        for part in self.parts:
            yield from (reject for reject in part.rejects if part.kept or reject.wnid is None)
        yield from self.strays


def lost_strays(strays: Sequence[Reject]) -> list[Reject]:
    """Return the members of no class that were probably meant for one: images, files in folders, and links."""
    return [
        reject
        for reject in strays
        if reject.reason != DUPLICATE and (is_image(reject.name) or "/" in reject.name or reject.reason != "no class")
    ]


def unreadable_class(stray: Reject) -> str | None:
    """Return the class whose images an unreadable class tar or link would hold; None for any other member."""
    if stray.reason in (DUPLICATE, "no class"):
        return None
    name = class_tar_of(stray.name) or (stray.name if WNID.fullmatch(stray.name) else "")
    return class_id(name) if name else None
