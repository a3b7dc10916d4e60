"""A stream of raw images, read once from front to back: a gzipped tar, or standard input."""

from __future__ import annotations

import gzip
import sys
import tarfile
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cached_property
from pathlib import Path
from tarfile import ReadError
from typing import Any

import rapidgzip

from .archive import MAX_CLASS_TAR_BYTES, ClassTar, Forward, check_rest, named_errors, open_tar, walk
from .folders import Layout, is_processed
from .gathering import identify, layout_of, no_classes
from .groups import group_of
from .layouts import no_class
from .members import (
    DUPLICATE,
    Member,
    Reject,
    class_tar_of,
    from_os,
    ignored_kind,
    is_image,
    not_an_image,
    problem_of,
    readable,
)
from .units import Chunk, RawSource, Unit, layout_name

STDIN = Path("-")
GZIP = b"\x1f\x8b"
# The size of a chunk; a task holds it in memory, raw and encoded.
CHUNK_BYTES, CHUNK_IMAGES = 64 << 20, 4096


class Stream(RawSource):
    """A gzipped tar, or standard input (gzipped or not), read once from front to back.

    A class tar is a unit of its own and holds its bytes. Images outside class tars come in chunks, in their order in
    the stream, as a class is complete only at its end.
    """

    def __init__(self, source: Path) -> None:
        super().__init__()
        self._source = source
        self._label = Path("standard input") if source == STDIN else source
        self.name = source.name if source == STDIN else from_os(source.resolve().name)
        self.num_bytes = None if source == STDIN else source.stat().st_size
        self._tars: dict[str, str] = {}  # per class the name of its tar
        self._tar_folders: set[str] = set()
        self._image_folders: set[str] = set()
        self._file: Any = None
        self._stack = ExitStack()
        self._passed: list[tarfile.TarInfo] = []  # members of standard input that `is_processed` read
        self._ended = False

    @property
    def layout(self) -> Layout:
        """How its folders are read, from those seen so far."""
        return layout_of(self._label, self._image_folders, self._tar_folders)

    def position(self) -> int:
        """Return how many bytes of the file were read."""
        return self._file.tell() if self._file and not self._file.closed else 0

    def classes(self) -> None:
        """Return None: the classes are known at the end."""
        return

    def describe(self) -> str:
        """Say that it is read once, and what waits on the disk meanwhile."""
        return (
            "a stream, read once; images of class folders are kept in the output folder until its end "
            "(up to twice the output's size on the disk)"
        )

    @cached_property
    def _outer(self) -> tarfile.TarFile:
        return self._open(self._stack)

    def is_processed(self) -> bool:
        """Tell by the first member that is an image or a class tar; those up to it wait for `units`."""
        if self._source != STDIN:
            with named_errors(self._label), ExitStack() as stack:
                return is_processed(next(filter(None, map(layout_name, walk(self._open(stack)))), ""))
        with named_errors(self._label):
            while not self._passed or layout_name(self._passed[-1]) is None:
                member = next(walk(self._outer, self.folders), None)
                if member is None:
                    self._ended = True
                    return False
                self._passed.append(member)
        return is_processed(self._passed[-1].name)

    def _members(self) -> Iterator[tarfile.TarInfo]:
        yield from self._passed
        if not self._ended:
            yield from walk(self._outer, self.folders)

    def units(self) -> Iterator[Unit]:
        """Yield class tars and chunks as they come."""
        waiting = _Waiting()
        with self._stack, named_errors(self._label):
            outer = self._outer
            for member in self._members():
                name = member.name
                if kind := ignored_kind(name):
                    self.ignored[kind] += 1
                    continue
                self.folders.use(name)
                if class_tar_of(name) is not None:
                    yield from self._class_tar(member)
                else:
                    self._take_in(member, waiting)
                if waiting.full:
                    yield waiting.taken()
            # Reading to the end compares the checksum of a gzip stream.
            check_rest(outer.fileobj)
            if waiting.images or waiting.rejects:
                yield waiting.taken()
            if not self._tars and not waiting.number:
                raise no_classes(self._label, self.rejects)

    def _class_tar(self, member: tarfile.TarInfo) -> Iterator[ClassTar]:
        """Yield the class tar, unless it must not be read."""
        name = readable(member.name)
        if problem := problem_of(member):
            self.rejects.append(Reject(None, name, *problem))
            return
        self._tar_folders.add(member.name.rpartition("/")[0])
        wnid = identify(class_tar_of(member.name) or "", self.names, f"{self._label}: {name}")
        if wnid in self._tars:
            self.rejects.append(Reject(None, name, DUPLICATE, f"{self._tars[wnid]} came first"))
            return
        if member.size > MAX_CLASS_TAR_BYTES:
            raise ValueError(
                f"{self._label}: {name} has {member.size:,} bytes; a class tar of a stream is held in memory, and "
                f"{MAX_CLASS_TAR_BYTES:,} are the most; unpack the archive, and give a plain tar"
            )
        self._tars[wnid] = name
        yield ClassTar(self._label, wnid, name, 0, member.size, _content(self._outer, member))

    def _take_in(self, member: tarfile.TarInfo, waiting: _Waiting) -> None:
        """Add a member outside class tars to the chunk that is being filled."""
        name, folder = member.name, member.name.rpartition("/")[0]
        problem = problem_of(member)
        if not folder:
            self.rejects.append(Reject(None, readable(name), *problem) if problem else no_class(name))
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
            if stream.peek(2)[:2] == GZIP:  # it cannot seek, as the parallel decompressor must
                stream = stack.enter_context(gzip.GzipFile(fileobj=stream))
        else:
            self._file = stack.enter_context(self._source.open("rb"))
            stream = stack.enter_context(rapidgzip.open(self._file, parallelization=0))  # 0: on every core
        return stack.enter_context(open_tar(Forward(stream)))


class _Waiting:
    """The chunk of a stream that is being filled."""

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
