"""The sources of raw images: an archive that can be read anywhere, a stream that is read once, a folder, a list."""

from __future__ import annotations

import gzip
import hashlib
import stat
import sys
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from tarfile import ReadError
from typing import Any, Protocol, TypeAlias

import rapidgzip

from ..shards.files import naming
from .archive import (
    DUPLICATE,
    MAX_CLASS_TAR_BYTES,
    ClassTar,
    Folders,
    Forward,
    Member,
    Reject,
    check_rest,
    class_tar_of,
    from_os,
    ignored_kind,
    is_image,
    named_errors,
    not_an_image,
    open_tar,
    problem_of,
    readable,
    walk,
)
from .folders import Layout, is_processed
from .gathering import Gathering, gather_folder, gather_list, identify, layout_of, no_classes
from .groups import group_of
from .layouts import LooseClass, RawClass, no_class

STDIN = Path("-")
GZIP = b"\x1f\x8b"
OTHER_PACKERS = {
    b"BZh": ("bzip2", "bzcat"),
    b"\xfd7zXZ": ("xz", "xzcat"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"PK\x03\x04": ("zip", "bsdtar -cf - @"),
}
# What a task holds of images that lie one by one: of a stream, where each is stored twice for it; and of a class that
# can be had whole, where only one larger than all of fall11's is cut.
CHUNK_BYTES, CHUNK_IMAGES = 64 << 20, 4096
SLICE_BYTES, SLICE_IMAGES = 512 << 20, 8192


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


def open_raw_tar(source: Path) -> RawSource:
    """Open a raw archive: plain, gzipped, or standard input (`-`); raises ValueError, OSError."""
    if source == STDIN:
        return Stream(source)
    if source.is_dir():
        raise ValueError(
            f"{source}: is a folder; wanted an archive such as fall11_whole.tar (or `in21k preprocess folder`)"
        )
    if not stat.S_ISREG(source.stat().st_mode):
        raise ValueError(f"{source}: is no file (a pipe or a device); give it as standard input: `- < {source}`")
    with naming(source), source.open("rb") as file:
        head = file.read(6)
    for magic, (name, program) in OTHER_PACKERS.items():
        if head.startswith(magic):
            raise ValueError(f"{source}: is packed by {name}; unpack it on the way: `{program} {source} | … raw-tar -`")
    is_gzip = head.startswith(GZIP)
    source = source.absolute()  # as the nodes of a cluster have to be told
    return Stream(source) if is_gzip else Seekable(source, gather_tar)


def open_folder(source: Path) -> RawSource:
    """Open a folder of class folders and class tars, or an annotation list (`path label` a line)."""
    source = source.absolute()  # as the nodes of a cluster have to be told
    if source.is_dir():
        return Seekable(source, gather_folder)
    with naming(source), source.open("rb") as file:
        head = file.read(512)
    if b"\0" in head or head[:2] == GZIP:
        raise ValueError(
            f"{source}: is no text; wanted a folder, or a list of `path label` lines "
            "(a tar is for `in21k preprocess raw-tar`)"
        )
    return Seekable(source, gather_list)


class Seekable:
    """A plain tar, a folder, or an annotation list: every class is known before an image is read."""

    def __init__(self, source: Path, gather: Callable[[Path], Gathering]) -> None:
        self._source, self._gather = source, gather
        self.name = from_os(source.resolve().name)
        is_folder = source.is_dir()
        self.num_bytes: int | None = sum(e.num_bytes for e in self.classes()) if is_folder else source.stat().st_size

    @property
    def rejects(self) -> list[Reject]:
        """Members that can belong to no class."""
        return self._gathering.rejects

    @property
    def names(self) -> Mapping[str, str]:
        """The names of the classes that are not called by their identifier."""
        return self._gathering.names

    @property
    def ignored(self) -> Counter[str]:
        """Files outside class tars that are known to be no images, by kind."""
        return self._gathering.ignored

    @property
    def empty_folders(self) -> list[str]:
        """Folders that hold nothing else."""
        return self._gathering.folders.empty()

    @property
    def layout(self) -> Layout:
        """How its folders are read."""
        return self._gathering.layout

    @cached_property
    def _gathering(self) -> Gathering:
        return self._gather(self._source)

    @cached_property
    def _classes(self) -> list[RawClass]:
        return self._gathering.classes()

    def is_processed(self) -> bool:
        """Tell whether this is the official processed archive, packed (by its first member) or not."""
        if self._gather is gather_tar:
            with named_errors(self._source), self._source.open("rb") as file, open_tar(file) as outer:
                return is_processed(next(filter(None, map(_telling, walk(outer))), ""))
        return any(isinstance(each, LooseClass) and each.is_processed() for each in self.classes())

    def classes(self) -> list[RawClass]:
        """Return every class by name; raises ValueError where there is none."""
        return self._classes

    def units(self) -> Iterator[Unit]:
        """Yield the classes, the largest first, so that none is left to one worker at the end; large ones in slices."""
        number = 0
        for each in sorted(self.classes(), key=lambda each: (-each.num_bytes, each.wnid)):
            if isinstance(each, ClassTar) or (each.num_bytes <= SLICE_BYTES and len(each) <= SLICE_IMAGES):
                yield each
                continue
            for chunk in _slices(each, number):
                yield chunk
                number = chunk.number + 1

    def position(self) -> int:
        """Return 0: what was done tells more."""
        return 0

    def describe(self) -> str:
        """Say how many classes there are, and what a worker holds."""
        tars = [each for each in self.classes() if isinstance(each, ClassTar)]
        largest = max(tars, key=lambda tar: tar.num_bytes, default=None)
        loose = len(self.classes()) - len(tars)
        parts = [
            f"{len(tars):,} class tars (a worker holds one; the largest, {largest.wnid}, has "
            f"{largest.num_bytes / 1e6:,.0f} MB)"
            if largest
            else "",
            f"{loose:,} classes of loose images (a worker holds {SLICE_BYTES >> 20} MB at most)" if loose else "",
        ]
        return " and ".join(part for part in parts if part)


def _telling(member: tarfile.TarInfo) -> str | None:
    """Return the name of a member that tells the layout: an image or a class tar."""
    name = member.name
    tells = (is_image(name) or class_tar_of(name)) and not ignored_kind(name) and not problem_of(member)
    return name if tells else None


def gather_tar(source: Path) -> Gathering:
    """List what a plain tar holds by its headers alone.

    Raises ValueError for a file that is no tar or that ends in mid-member; OSError for one that cannot be read.
    """
    size = source.stat().st_size
    found = Gathering(source, source, in_tar=True)
    with named_errors(source), source.open("rb") as file, open_tar(file) as outer:
        for member in walk(outer, found.folders):
            problem = problem_of(member)
            if not problem and member.offset_data + member.size > size:  # the size of a sparse one is that unpacked
                raise ValueError(
                    f"{source}: ends inside {readable(member.name)}: {member.offset_data + member.size:,} bytes are "
                    f"needed, it has {size:,}; copy or download the archive again"
                )
            found.add(member.name, member.offset_data, member.size, problem)
        with source.open("rb") as file:
            file.seek(outer.offset)
            check_rest(file)
    return found


def _slices(each: LooseClass, number: int) -> Iterator[Chunk]:
    """Yield the images of a large class in slices that a task may hold."""
    with each.open() as contents:
        rejects = [(reject, reject.name) for reject in contents.rejects]
        images: list[tuple[str, Member]] = []
        num_bytes = 0
        for member in contents.members:
            images.append((each.wnid, member))
            num_bytes += member.num_bytes
            if num_bytes >= SLICE_BYTES or len(images) >= SLICE_IMAGES or member is contents.members[-1]:
                yield Chunk(number, images, rejects, reader=LooseClass(each.wnid, each.holder, each.in_tar))
                images, rejects, num_bytes, number = [], [], 0, number + 1


class Stream:
    """A gzipped tar, or standard input (gzipped or not), read once from front to back.

    A class tar comes whole, with its bytes. Images that lie one by one come in chunks as they lie: whether another of
    the same class follows is known at the end alone.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self._label = Path("standard input") if source == STDIN else source
        self.name = source.name if source == STDIN else from_os(source.resolve().name)
        self.num_bytes: int | None = None if source == STDIN else source.stat().st_size
        self._rejects: list[Reject] = []
        self._names: dict[str, str] = {}
        self._tars: dict[str, str] = {}  # the name of each class's
        self._tar_folders: set[str] = set()
        self._image_folders: set[str] = set()
        self._ignored: Counter[str] = Counter()
        self._folders = Folders()
        self._file: Any = None
        self._stack = ExitStack()
        self._passed: list[tarfile.TarInfo] = []  # what was looked at of standard input, which cannot go back
        self._ended = False

    @property
    def rejects(self) -> list[Reject]:
        """Members that can belong to no class."""
        return self._rejects

    @property
    def names(self) -> Mapping[str, str]:
        """The names of the classes that are not called by their identifier."""
        return self._names

    @property
    def ignored(self) -> Counter[str]:
        """Files outside class tars that are known to be no images, by kind."""
        return self._ignored

    @property
    def empty_folders(self) -> list[str]:
        """Folders that hold nothing else."""
        return self._folders.empty()

    @property
    def layout(self) -> Layout:
        """How its folders are read, from those that were seen."""
        return layout_of(self._label, self._image_folders, self._tar_folders)

    def position(self) -> int:
        """Return how many bytes of the file were read."""
        return self._file.tell() if self._file and not self._file.closed else 0

    def classes(self) -> None:
        """Return None: what a stream holds is known when it was read."""
        return

    def describe(self) -> str:
        """Say what is known."""
        return (
            "a stream, read once; the images of class folders wait in the output folder until its end is read "
            "(up to the output's own size, once more)"
        )

    @cached_property
    def _outer(self) -> tarfile.TarFile:
        return self._open(self._stack)

    def is_processed(self) -> bool:
        """Tell by the first member that is an image or a class tar; those up to it wait for `units`."""
        if self._source != STDIN:
            with named_errors(self._label), ExitStack() as stack:
                return is_processed(next(filter(None, map(_telling, walk(self._open(stack)))), ""))
        with named_errors(self._label):
            while not self._passed or _telling(self._passed[-1]) is None:
                member = next(walk(self._outer, self._folders), None)
                if member is None:
                    self._ended = True
                    return False
                self._passed.append(member)
        return is_processed(self._passed[-1].name)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        yield from self._passed
        if not self._ended:
            yield from walk(self._outer, self._folders)

    def units(self) -> Iterator[Unit]:
        """Yield class tars and chunks as they come."""
        waiting = _Waiting()
        with self._stack, named_errors(self._label):
            outer = self._outer
            for member in self._members():
                name = member.name
                if kind := ignored_kind(name):
                    self._ignored[kind] += 1
                    continue
                self._folders.use(name)
                if class_tar_of(name) is not None:
                    yield from self._class_tar(member)
                else:
                    self._take_in(member, waiting)
                if waiting.full:
                    yield waiting.taken()
            # At the end the checksum of a gzipped stream is compared.
            check_rest(outer.fileobj)
            if waiting.images or waiting.rejects:
                yield waiting.taken()
            if not self._tars and not waiting.number:
                raise no_classes(self._label, self._rejects)

    def _class_tar(self, member: tarfile.TarInfo) -> Iterator[ClassTar]:
        """Yield the class tar, unless it must not be read."""
        name = readable(member.name)
        if problem := problem_of(member):
            self._rejects.append(Reject(None, name, *problem))
            return
        self._tar_folders.add(member.name.rpartition("/")[0])
        wnid = identify(class_tar_of(member.name) or "", self._names, f"{self._label}: {name}")
        if wnid in self._tars:
            self._rejects.append(Reject(None, name, DUPLICATE, f"{self._tars[wnid]} came first"))
            return
        if member.size > MAX_CLASS_TAR_BYTES:
            raise ValueError(
                f"{self._label}: {name} has {member.size:,} bytes; a class tar of a stream is held in memory, and "
                f"{MAX_CLASS_TAR_BYTES:,} are the most; unpack the archive, and give a plain tar"
            )
        self._tars[wnid] = name
        yield ClassTar(self._label, wnid, name, 0, member.size, _content(self._outer, member))

    def _take_in(self, member: tarfile.TarInfo, waiting: _Waiting) -> None:
        """Let a member that lies by itself wait for its chunk."""
        name, folder = member.name, member.name.rpartition("/")[0]
        problem = problem_of(member)
        if not folder:
            self._rejects.append(Reject(None, readable(name), *problem) if problem else no_class(name))
            return
        if is_image(name):
            self._image_folders.add(folder)
        group = group_of(folder)
        if problem or not is_image(name):
            waiting.rejects.append((Reject(group, readable(name), *(problem or not_an_image(None, name)[2:])), name))
        else:
            waiting.add(group, Member(name, name, 0, member.size), _content(self._outer, member))

    def _open(self, stack: ExitStack) -> tarfile.TarFile:
        if self._source == STDIN:
            if sys.stdin is None:  # pyright: ignore[reportUnnecessaryComparison]  # it is, where it was closed
                raise ValueError("standard input: is closed; wanted a tar")
            stream: Any = sys.stdin.buffer
            if stream.peek(2)[:2] == GZIP:  # and cannot seek, as the parallel decompressor wants to
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        else:
            self._file = stack.enter_context(self._source.open("rb"))
            stream = stack.enter_context(rapidgzip.open(self._file, parallelization=0))  # 0: on every core
        return stack.enter_context(open_tar(Forward(stream)))


class _Waiting:
    """The images of a stream that wait for their chunk to fill."""

    def __init__(self) -> None:
        self.number = 0
        self._empty()

    def _empty(self) -> None:
        self.images: list[tuple[str, Member]] = []
        self.rejects: list[tuple[Reject, str]] = []
        self._data: list[bytes] = []
        self._num_bytes = 0

    def add(self, wnid: str, member: Member, data: bytes) -> None:
        self.images.append((wnid, member))
        self._data.append(data)
        self._num_bytes += len(data)

    @property
    def full(self) -> bool:
        return self._num_bytes >= CHUNK_BYTES or len(self.images) + len(self.rejects) >= CHUNK_IMAGES

    def taken(self) -> Chunk:
        chunk = Chunk(self.number, self.images, self.rejects, self._data)
        self.number += 1
        self._empty()
        return chunk


def _content(outer: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file: Any = outer.fileobj
    file.seek(member.offset_data)
    data = file.read(member.size)
    if len(data) != member.size:
        raise ReadError(f"it ends inside {readable(member.name)}")
    return data
