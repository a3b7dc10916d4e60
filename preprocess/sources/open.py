"""Open a source of raw images: a seekable archive, a stream, a folder, or a list."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from pathlib import Path

from ...shards.files.atomic import naming
from .archive import ClassTar, check_rest, named_errors, open_tar, walk
from .folders import Layout, is_processed
from .gathering import Gathering, gather_folder, gather_list
from .layouts import LooseClass, RawClass
from .members import Member, from_os, problem_of, readable
from .stream import GZIP, STDIN, Stream
from .units import Chunk, RawSource, Unit, layout_name

OTHER_PACKERS = {
    b"BZh": ("bzip2", "bzcat"),
    b"\xfd7zXZ": ("xz", "xzcat"),
    b"\x28\xb5\x2f\xfd": ("zstd", "zstdcat"),
    b"PK\x03\x04": ("zip", "bsdtar -cf - @"),
}
# Larger classes of loose images are cut into chunks. No class of fall11 is larger.
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
        raise ValueError(
            f"{source}: not a regular file (a pipe or a device); give it as standard input: `- < {source}`"
        )
    with naming(source), source.open("rb") as file:
        head = file.read(6)
    for magic, (name, program) in OTHER_PACKERS.items():
        if head.startswith(magic):
            raise ValueError(
                f"{source}: is compressed with {name}; decompress it on the way: `{program} {source} | … raw-tar -`"
            )
    is_gzip = head.startswith(GZIP)
    source = source.absolute()  # for the nodes of a cluster
    return Stream(source) if is_gzip else Seekable(source, gather_tar)


def open_folder(source: Path) -> RawSource:
    """Open a folder of class folders and class tars, or an annotation list (`path label` a line)."""
    source = source.absolute()  # for the nodes of a cluster
    if source.is_dir():
        return Seekable(source, gather_folder)
    with naming(source), source.open("rb") as file:
        head = file.read(512)
    if b"\0" in head or head[:2] == GZIP:
        raise ValueError(
            f"{source}: not a text file; wanted a folder, or a list of `path label` lines "
            "(a tar is for `in21k preprocess raw-tar`)"
        )
    return Seekable(source, gather_list)


class Seekable(RawSource):
    """A plain tar, a folder, or an annotation list: all classes are known before any image is read."""

    def __init__(self, source: Path, gather: Callable[[Path], Gathering]) -> None:
        super().__init__()
        self._source, self._gather = source, gather
        self._classes: list[RawClass] | None = None
        self._layout = Layout()
        self.name = from_os(source.resolve().name)
        is_folder = source.is_dir()
        self.num_bytes = sum(c.num_bytes for c in self.classes()) if is_folder else source.stat().st_size

    @property
    def layout(self) -> Layout:
        """How its folders are read, once `classes` was called."""
        return self._layout

    def is_processed(self) -> bool:
        """Tell whether this is the official processed archive, as a tar (by its first member) or unpacked."""
        if self._gather is gather_tar:
            with named_errors(self._source), self._source.open("rb") as file, open_tar(file) as outer:
                return is_processed(next(filter(None, map(layout_name, walk(outer))), ""))
        return any(isinstance(c, LooseClass) and c.is_processed() for c in self.classes())

    def classes(self) -> list[RawClass]:
        """Return every class in the order of identifiers; raises ValueError for a source without classes."""
        if self._classes is None:
            gathering = self._gather(self._source)
            self._classes, self._layout = gathering.classes(), gathering.layout
            self.rejects, self.ignored = gathering.rejects, gathering.ignored
            self.names, self.folders = gathering.names, gathering.folders
        return self._classes

    def units(self) -> Iterator[Unit]:
        """Yield the classes, the largest first, so that all workers end together; very large ones in slices."""
        number = 0
        for raw_class in sorted(self.classes(), key=lambda raw_class: (-raw_class.num_bytes, raw_class.wnid)):
            if isinstance(raw_class, ClassTar) or (
                raw_class.num_bytes <= SLICE_BYTES and len(raw_class) <= SLICE_IMAGES
            ):
                yield raw_class
                continue
            for chunk in _slices(raw_class, number):
                yield chunk
                number = chunk.number + 1

    def describe(self) -> str:
        """Say how many classes there are, and how much of them a worker holds in memory."""
        tars = [raw_class for raw_class in self.classes() if isinstance(raw_class, ClassTar)]
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

    Raises ValueError for a file that is not a tar or that is truncated; OSError for one that cannot be read.
    """
    size = source.stat().st_size
    gathering = Gathering(source, source, in_tar=True)
    with named_errors(source), source.open("rb") as file, open_tar(file) as outer:
        for member in walk(outer, gathering.folders):
            problem = problem_of(member)
            if not problem and member.offset_data + member.size > size:  # of a sparse file the size is the unpacked one
                raise ValueError(
                    f"{source}: ends inside {readable(member.name)}: {member.offset_data + member.size:,} bytes are "
                    f"needed, it has {size:,}; copy or download the archive again"
                )
            gathering.add(member.name, member.offset_data, member.size, problem)
        with source.open("rb") as file:
            file.seek(outer.offset)
            check_rest(file)
    return gathering


def _slices(large: LooseClass, number: int) -> Iterator[Chunk]:
    """Yield the images of a large class in chunks that fit into memory, numbered from `number` on."""
    with large.open() as contents:
        rejects = [(reject, reject.name) for reject in contents.rejects]
        images: list[tuple[str, Member]] = []
        num_bytes = 0
        for member in contents.members:
            images.append((large.wnid, member))
            num_bytes += member.num_bytes
            if num_bytes >= SLICE_BYTES or len(images) >= SLICE_IMAGES or member is contents.members[-1]:
                yield Chunk(number, images, rejects, reader=large.reader)
                images, rejects, num_bytes, number = [], [], 0, number + 1
