"""What became of a source, and what a person has to know of it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from .sources.archive import DUPLICATE, Reject, class_tar_of, is_image
from .sources.class_names import class_id
from .sources.folders import WNID
from .tasks import ClassPart


@dataclass(frozen=True)
class Outcome:
    """What a run made of a source.

    parts:         what became of each class, by wnid.
    strays:        members that can belong to no class.
    names:         of the classes that are not called by their identifier, by that.
    ignored:       files outside class tars that are known to be no images, by kind.
    empty_folders: folders that hold nothing else.
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
        """The classes that have too few images only because some of theirs cannot be read."""
        return [part for part in self.parts if part.num_lost]

    def rejects(self) -> Iterator[Reject]:
        """Yield what goes into the table: rejects of kept classes, and members of none."""
        for part in self.parts:
            yield from (reject for reject in part.rejects if part.kept or reject.wnid is None)
        yield from self.strays


def lost_strays(strays: Sequence[Reject]) -> list[Reject]:
    """Return those members of no class that look as if they were of one: images, what lies in a folder, or a link."""
    return [
        reject
        for reject in strays
        if reject.reason != DUPLICATE and (is_image(reject.name) or "/" in reject.name or reject.reason != "no class")
    ]


def unreadable_class(stray: Reject) -> str | None:
    """Return the class of which a stray would hold all images, could it be read: a class tar, or a link to a folder."""
    if stray.reason in (DUPLICATE, "no class"):
        return None
    name = class_tar_of(stray.name) or (stray.name if WNID.fullmatch(stray.name) else "")
    return class_id(name) if name else None
