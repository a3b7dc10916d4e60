"""Classes whose images lie one by one, in a tar or as files."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

from ...shards.files.atomic import naming
from .archive import (
    NO_SUFFIX,
    ClassTar,
    Contents,
    Member,
    Reject,
    is_image,
    not_an_image,
    one_of_each,
    readable,
    to_bytes,
    to_os,
    to_text,
)
from .folders import Layout, Place, is_processed, place_of

log = logging.getLogger(__name__)


def stray(path: str, reason: str, detail: str) -> Reject:
    """Return the reject of what lies in a folder that turns out to be no class."""
    return Reject(None, readable(path), "no class" if reason == NO_SUFFIX else reason, detail)


def no_class(path: str) -> Reject:
    """Return the reject of a member that belongs to no class."""
    return Reject(None, readable(path), "no class", "neither a class tar (<class>.tar) nor in the folder of a class")


def as_member(path: str, offset: int, num_bytes: int, layout: Layout | None = None) -> Member:
    """Return the image of a class folder as a member, named from that folder on."""
    folder, _, name = path.rpartition("/")
    place = place_of(folder, layout)
    name = path[len(place.home) + 1 :] if place.home else name
    return Member(name, path, offset, num_bytes, place.split)


@dataclass
class LooseClass:
    """A class whose images lie one by one: in a tar (`in_tar`) or as files below a folder, `holder`.

    Names and numbers are packed: they take 50 to 120 bytes an image.
    """

    wnid: str
    holder: Path
    in_tar: bool
    rejects: list[Reject] = field(default_factory=list[Reject])
    num_bytes: int = 0
    homes: set[str] = field(default_factory=set[str])  # the folders of this class that make no split
    layout: Layout | None = None  # None: of a list
    _others: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])  # path, reason, detail
    _paths: bytearray = field(default_factory=bytearray, repr=False)
    _numbers: array[int] = field(default_factory=lambda: array("q"), repr=False)  # offset and size of each

    def __len__(self) -> int:
        return len(self._numbers) // 2

    @property
    def num_members(self) -> int:
        """How many files it has, whatever they are."""
        return len(self) + len(self._others)

    def take_in(self, path: str, offset: int, num_bytes: int, problem: tuple[str, str] | None = None) -> None:
        """Take in a member; `problem` is reason and detail where it must not be read."""
        if problem:
            self._others.append((path, *problem))
        elif is_image(path):
            self.add(path, offset, num_bytes)
        else:
            self._others.append((path, *not_an_image(self.wnid, path)[2:]))

    def merge(self, other: LooseClass, place: Place) -> None:
        """Take in what a folder of this class holds."""
        if place.split is None and len(other):
            self.homes.add(place.home)
        self.layout = other.layout
        self._others += other._others
        self._paths += other._paths
        self._numbers.extend(other._numbers)
        self.num_bytes += other.num_bytes

    def add(self, path: str, offset: int, num_bytes: int) -> None:
        """Take an image into the class."""
        self._paths += to_bytes(path) + b"\0"
        self._numbers.extend((offset, num_bytes))
        self.num_bytes += num_bytes

    def is_processed(self) -> bool:
        """Tell whether the first image is one of the official processed archive."""
        return is_processed(to_text(bytes(self._paths.partition(b"\0")[0])))

    def paths(self) -> list[str]:
        """Return the paths of the images, in the order of the source."""
        return [to_text(path) for path in bytes(self._paths).split(b"\0")[:-1]]

    def all_rejects(self) -> list[Reject]:
        """Return what of the class is no image, or cannot be read."""
        others = (
            Reject(self.wnid, readable(as_member(path, 0, 0, self.layout).name), reason, detail)
            for path, reason, detail in self._others
        )
        return [*self.rejects, *others]

    @property
    def is_lost(self) -> bool:
        """Whether its folder holds images that cannot be read, and no others."""
        return not len(self) and any(is_image(path) for path, _, _ in self._others)

    def strays(self) -> list[Reject]:
        """Return the same, where this turns out to be no class."""
        return [
            *(reject._replace(wnid=None) for reject in self.rejects),
            *(stray(path, reason, detail) for path, reason, detail in self._others),
        ]

    def paths_by_suffix(self) -> tuple[list[str], list[str]]:
        """Return the paths that are images by their names, those that cannot be read included, and the others."""
        others = sorted((path for path, _, _ in self._others), key=to_bytes)
        images = [*self.paths(), *(path for path in others if is_image(path))]
        return sorted(images, key=to_bytes), [path for path in others if not is_image(path)]

    def outside(self) -> list[Reject]:
        """Return all that it holds as rejects, where its folder is of no class."""
        paths = [*self.paths(), *(path for path, reason, _ in self._others if reason == NO_SUFFIX)]
        problems = (other for other in self._others if other[1] != NO_SUFFIX)
        return [*map(no_class, paths), *(stray(*problem) for problem in problems)]

    def listed(self) -> tuple[list[Member], list[Reject]]:
        """List what it holds."""
        with self.open() as contents:
            return contents.members, contents.rejects

    def _members(self) -> Iterator[Member]:
        numbers = iter(self._numbers)
        for path, offset, num_bytes in zip(self.paths(), numbers, numbers, strict=True):
            yield as_member(path, offset, num_bytes, self.layout)

    @contextmanager
    def open(self) -> Generator[Contents]:
        """List the class; its bytes are read when they are asked for."""
        rejects = self.all_rejects()
        members = one_of_each(self.wnid, self._members(), rejects)
        yield Contents(members, rejects, self._read_extents if self.in_tar else self._read_files)

    def _read_extents(self, wanted: Sequence[Member]) -> Iterator[bytes]:
        """Read images from the tar in the order in which they lie there, and yield them in the order asked for."""
        data: dict[int, bytes] = {}
        with naming(self.holder), self.holder.open("rb") as file:
            for member in sorted(wanted, key=lambda member: member.offset):
                file.seek(member.offset)
                data[member.offset] = file.read(member.num_bytes)
                if len(data[member.offset]) != member.num_bytes:
                    raise ValueError(
                        f"{self.holder}: ends inside {readable(member.path)}; it was longer when the run began"
                    )
        return (data.pop(member.offset) for member in wanted)

    def _read_files(self, wanted: Sequence[Member]) -> Iterator[bytes]:
        return (_read_file(self.holder / to_os(member.path)) for member in wanted)


def _read_file(path: Path) -> bytes:
    with naming(path):
        return path.read_bytes()


RawClass: TypeAlias = ClassTar | LooseClass
