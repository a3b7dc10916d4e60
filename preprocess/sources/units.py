"""The units of work of a source: whole classes, and chunks of images that lie one by one."""

from __future__ import annotations

import hashlib
import tarfile
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from .folders import Layout
from .layouts import RawClass
from .members import Folders, Member, Reject, class_tar_of, ignored_kind, is_image, problem_of


@dataclass(frozen=True)
class Chunk:
    """Images that lie one by one: a slice of a large class, or consecutive images of a stream, of any classes.

    number:  the position among the chunks of the source.
    images:  group and member of each image. In a slice the group is the class. In a stream it is the folder, from
             which the class follows at the end.
    rejects: the rejects among them, each with its whole path in the source; `wnid` is the group.
    data:    the bytes of the images of a stream.
    reader:  reads the members of a slice, which has no `data`.
    """

    number: int
    images: list[tuple[str, Member]]
    rejects: list[tuple[Reject, str]]
    data: list[bytes] | None = field(default=None, repr=False)
    reader: Callable[[Sequence[Member]], Iterable[bytes]] | None = None

    @property
    def num_bytes(self) -> int:
        """The bytes of its images."""
        return sum(member.num_bytes for _, member in self.images)

    @property
    def fingerprint(self) -> str:
        """16 hex digits, equal for chunks of the same members."""
        names = "\n".join(f"{wnid} {member.path} {member.num_bytes}" for wnid, member in self.images)
        return hashlib.sha256(names.encode("utf-8", "surrogateescape")).hexdigest()[:16]

    def read(self, numbers: Sequence[int]) -> Iterator[bytes]:
        """Yield the bytes of the images at these positions of `images`."""
        if self.data is not None:
            yield from (self.data[number] for number in numbers)
        elif self.reader is not None:
            yield from self.reader([self.images[number][1] for number in numbers])


Unit: TypeAlias = RawClass | Chunk


class RawSource(ABC):
    """Where raw images come from.

    name, num_bytes: what identifies the source; num_bytes is None for standard input.
    rejects:         members that belong to no class.
    ignored:         number of files of each `ignored_kind` outside class tars.
    names:           the names of the classes whose name is not their identifier, by identifier.
    folders:         the folders of the source.

    The last four are complete after the last of `units`.
    """

    name: str
    num_bytes: int | None

    def __init__(self) -> None:
        self.rejects: list[Reject] = []
        self.ignored: Counter[str] = Counter()
        self.names: dict[str, str] = {}
        self.folders = Folders()

    @property
    def layout(self) -> Layout:
        """How its folders are read, from those seen so far; raises ValueError for `train` and `val` without classes."""
        return Layout()

    def is_processed(self) -> bool:
        """Tell whether this is the official processed archive, whose images are resized already."""
        return False

    @abstractmethod
    def classes(self) -> list[RawClass] | None:
        """Return every class in the order of identifiers, without reading images; None for a stream."""

    @abstractmethod
    def units(self) -> Iterator[Unit]:
        """Yield the units of work, once: whole classes, and chunks."""

    def position(self) -> int:
        """Return how many of `num_bytes` were read of a stream."""
        return 0

    @abstractmethod
    def describe(self) -> str:
        """Describe the source, and the memory that reading it takes, in words."""


def layout_name(member: tarfile.TarInfo) -> str | None:
    """Return the name of an image or a class tar, from which the layout follows; None for any other member."""
    name = member.name
    tells = (is_image(name) or class_tar_of(name)) and not ignored_kind(name) and not problem_of(member)
    return name if tells else None
