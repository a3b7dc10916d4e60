"""Classes whose images lie one by one, in a tar or as files."""

from __future__ import annotations

import logging
from array import array
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeAlias

from ...shards.files.atomic import naming
from .archive import ClassTar
from .folders import ClassFolder, Layout, class_of_folder, is_processed
from .members import (
    NO_SUFFIX,
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

log = logging.getLogger(__name__)


def stray(path: str, reason: str, detail: str) -> Reject:
    """Return the reject of a member whose folder is not a class."""
    return Reject(None, readable(path), "no class" if reason == NO_SUFFIX else reason, detail)


def no_class(path: str) -> Reject:
    """Return the reject of an image that lies in no class folder."""
    return Reject(None, readable(path), "no class", "neither a class tar (<class>.tar) nor in the folder of a class")


def as_member(path: str, offset: int, num_bytes: int, layout: Layout | None = None) -> Member:
    """Return an image in a class folder as a member; its name begins below that folder."""
    folder, _, name = path.rpartition("/")
    place = class_of_folder(folder, layout)
    name = path[len(place.home) + 1 :] if place.home else name
    return Member(name, path, offset, num_bytes, place.split)


@dataclass
class LooseClass:
    """A class whose images lie one by one: in a tar (`in_tar`) or as files below a folder, `holder`.

    Paths and numbers are packed into 50 to 120 bytes an image.
    """

    wnid: str
    holder: Path
    in_tar: bool
    rejects: list[Reject] = field(default_factory=list[Reject])
    num_bytes: int = 0
    homes: set[str] = field(default_factory=set[str])  # the folders of this class that lie in no split
    layout: Layout | None = None  # None for a list
    _others: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])  # path, reason, detail
    _paths: bytearray = field(default_factory=bytearray, repr=False)
    _numbers: array[int] = field(default_factory=lambda: array("q"), repr=False)  # offset and size of each

    def __len__(self) -> int:
        return len(self._numbers) // 2

    @property
    def num_members(self) -> int:
        """Number of its files, images and others."""
        return len(self) + len(self._others)

    def take_in(self, path: str, offset: int, num_bytes: int, problem: tuple[str, str] | None = None) -> None:
        """Add a member; `problem` is reason and detail where it must be rejected."""
        if problem:
            self._others.append((path, *problem))
        elif is_image(path):
            self.add(path, offset, num_bytes)
        else:
            self._others.append((path, *not_an_image(self.wnid, path)[2:]))

    def merge(self, other: LooseClass, place: ClassFolder) -> None:
        """Add the members of one of the class's folders."""
        if place.split is None and len(other):
            self.homes.add(place.home)
        self.layout = other.layout
        self._others += other._others
        self._paths += other._paths
        self._numbers.extend(other._numbers)
        self.num_bytes += other.num_bytes

    def add(self, path: str, offset: int, num_bytes: int) -> None:
        """Add an image."""
        self._paths += to_bytes(path) + b"\0"
        self._numbers.extend((offset, num_bytes))
        self.num_bytes += num_bytes

    def is_processed(self) -> bool:
        """Tell whether the first image belongs to the official processed archive."""
        return is_processed(to_text(bytes(self._paths.partition(b"\0")[0])))

    def paths(self) -> list[str]:
        """Return the paths of the images, in the order of the source."""
        return [to_text(path) for path in bytes(self._paths).split(b"\0")[:-1]]

    def all_rejects(self) -> list[Reject]:
        """Return the members that are not images, or that cannot be read."""
        others = (
            Reject(self.wnid, readable(as_member(path, 0, 0, self.layout).name), reason, detail)
            for path, reason, detail in self._others
        )
        return [*self.rejects, *others]

    @property
    def is_lost(self) -> bool:
        """Whether it holds images, none of which can be read."""
        return not len(self) and any(is_image(path) for path, _, _ in self._others)

    def strays(self) -> list[Reject]:
        """Return the same as `all_rejects`, for a folder that is not a class."""
        return [
            *(reject._replace(wnid=None) for reject in self.rejects),
            *(stray(path, reason, detail) for path, reason, detail in self._others),
        ]

    def paths_by_suffix(self) -> tuple[list[str], list[str]]:
        """Return the paths with an image suffix, unreadable ones included, and the other paths; both in byte order."""
        others = sorted((path for path, _, _ in self._others), key=to_bytes)
        images = [*self.paths(), *(path for path in others if is_image(path))]
        return sorted(images, key=to_bytes), [path for path in others if not is_image(path)]

    def outside(self) -> list[Reject]:
        """Return all of its members as rejects, for a folder that cannot be a class's."""
        paths = [*self.paths(), *(path for path, reason, _ in self._others if reason == NO_SUFFIX)]
        problems = (other for other in self._others if other[1] != NO_SUFFIX)
        return [*map(no_class, paths), *(stray(*problem) for problem in problems)]

    def listed(self) -> tuple[list[Member], list[Reject]]:
        """Return its images and rejects."""
        with self.open() as contents:
            return contents.members, contents.rejects

    def _members(self) -> Iterator[Member]:
        numbers = iter(self._numbers)
        for path, offset, num_bytes in zip(self.paths(), numbers, numbers, strict=True):
            yield as_member(path, offset, num_bytes, self.layout)

    @contextmanager
    def open(self) -> Generator[Contents]:
        """List the class; images are read one at a time, as `Contents.read` yields them."""
        rejects = self.all_rejects()
        members = one_of_each(self.wnid, self._members(), rejects)
        yield Contents(members, rejects, self.reader)

    @property
    def reader(self) -> Callable[[Sequence[Member]], Iterable[bytes]]:
        """What reads its members. It can be pickled, and holds none of them."""
        return partial(_read_from_tar if self.in_tar else _read_files, self.holder)


def _read_from_tar(tar: Path, members: Sequence[Member]) -> Iterator[bytes]:
    """Read members of a tar in the order of their offsets; yield their bytes in the order of `members`."""
    data: dict[int, bytes] = {}
    with naming(tar), tar.open("rb") as file:
        for member in sorted(members, key=lambda member: member.offset):
            file.seek(member.offset)
            data[member.offset] = file.read(member.num_bytes)
            if len(data[member.offset]) != member.num_bytes:
                raise ValueError(f"{tar}: ends inside {readable(member.path)}; it was longer when the run began")
    return (data.pop(member.offset) for member in members)


def _read_files(folder: Path, members: Sequence[Member]) -> Iterator[bytes]:
    for member in members:
        path = folder / to_os(member.path)
        with naming(path):
            data = path.read_bytes()
        yield data


RawClass: TypeAlias = ClassTar | LooseClass
