"""What is to be done of a source: whole classes, and chunks of images that lie one by one."""

from __future__ import annotations

import hashlib
import tarfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from .archive import Member, Reject, class_tar_of, ignored_kind, is_image, problem_of
from .folders import Layout
from .layouts import LooseClass, RawClass


@dataclass(frozen=True)
class Chunk:
    """Some images that lie one by one: of a stream, of whatever classes, as they came; or a slice of a large class.

    number:  counts the chunks of a source.
    images:  the group and member of each: the class of a slice; of a stream the folder, which tells the class later.
    rejects: what lay among them and is no image, with its whole name in the source; `wnid` is the group.
    """

    number: int
    images: list[tuple[str, Member]]
    rejects: list[tuple[Reject, str]]
    data: list[bytes] | None = field(default=None, repr=False)
    reader: LooseClass | None = None  # where there is no `data`; empty, but knows where to read

    @property
    def num_bytes(self) -> int:
        """The bytes of its images."""
        return sum(member.num_bytes for _, member in self.images)

    @property
    def fingerprint(self) -> str:
        """16 hex digits that are equal for chunks of the same members."""
        names = "\n".join(f"{wnid} {member.path} {member.num_bytes}" for wnid, member in self.images)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def read(self, wanted: Sequence[int]) -> Iterator[bytes]:
        """Yield the bytes of the images of those numbers."""
        if self.data is not None:
            yield from (self.data[number] for number in wanted)
        elif self.reader is not None:  # it has no images of its own
            with self.reader.open() as contents:
                yield from contents.read([self.images[number][1] for number in wanted])


Unit: TypeAlias = RawClass | Chunk


class RawSource(Protocol):
    """Where raw images come from.

    name, num_bytes: tell this source from another; num_bytes is None for standard input.
    """

    name: str
    num_bytes: int | None

    @property
    def rejects(self) -> list[Reject]:
        """Members that can belong to no class; complete when `units` came to its end."""
        ...

    @property
    def ignored(self) -> Counter[str]:
        """Files outside class tars that are known to be no images, by kind; complete when `units` came to its end."""
        ...

    @property
    def empty_folders(self) -> list[str]:
        """Folders that hold nothing else; complete when `units` came to its end."""
        ...

    def is_processed(self) -> bool:
        """Tell whether this is the official processed archive, whose images have their size."""
        ...

    @property
    def layout(self) -> Layout:
        """How its folders are read, from those that were seen; raises ValueError for splits that are none."""
        ...

    @property
    def names(self) -> Mapping[str, str]:
        """The names of the classes that are not called by their identifier, by that; complete when `units` ended."""
        ...

    def classes(self) -> list[RawClass] | None:
        """Return every class in the order of identifiers, before an image is read; None for a stream."""
        ...

    def units(self) -> Iterator[Unit]:
        """Yield what is to be done, once: whole classes, and chunks of classes that cannot be had whole."""
        ...

    def position(self) -> int:
        """Return how many of `num_bytes` of a stream were read."""
        ...

    def describe(self) -> str:
        """Say in words what was found, and what it costs to read it."""
        ...


def layout_name(member: tarfile.TarInfo) -> str | None:
    """Return the name of a member that tells the layout: an image or a class tar."""
    name = member.name
    tells = (is_image(name) or class_tar_of(name)) and not ignored_kind(name) and not problem_of(member)
    return name if tells else None
