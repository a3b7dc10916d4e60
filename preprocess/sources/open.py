"""The sources of raw images: an archive that can be read anywhere, a stream that is read once, a folder, a list."""

from __future__ import annotations

import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property
from pathlib import Path

from ...shards.files.atomic import naming
from .archive import ClassTar, Member, Reject, check_rest, from_os, named_errors, open_tar, problem_of, readable, walk
from .folders import Layout, is_processed
from .gathering import Gathering, gather_folder, gather_list
from .layouts import LooseClass, RawClass
from .stream import GZIP, STDIN, Stream
from .units import Chunk, RawSource, Unit, layout_name

OTHER_PACKERS = {
    b"BZh": ("bzip2", "bzcat"),
    b"\xfd7zXZ": ("xz", "xzcat"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"PK\x03\x04": ("zip", "bsdtar -cf - @"),
}
# A class that can be had whole is cut only where it is larger than all of fall11's.
SLICE_BYTES, SLICE_IMAGES = 512 << 20, 8192


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
                return is_processed(next(filter(None, map(layout_name, walk(outer))), ""))
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
