"""Reading raw archives without extracting them: a tar of class tars, plain, gzipped, or a stream."""

from __future__ import annotations

import gzip
import io
import os
import re
import sys
import tarfile
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tarfile import ReadError
from typing import Any, NamedTuple, Self

import rapidgzip

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
DAMAGED = "damaged class tar"
STDIN = Path("-")
GZIP = b"\x1f\x8b"
MAX_PADDING_BYTES = 1 << 20  # tar pads to 10 KiB, or to the block size of a tape
_BAD_HEADERS: Any = tuple(
    getattr(tarfile, name) for name in ("EmptyHeaderError", "TruncatedHeaderError", "InvalidHeaderError")
)
_CLASS_NAME = re.compile(r"[A-Za-z0-9_-]+")


class ChecksumError(ValueError):
    """A gzipped stream that held other bytes than were packed; which of them, it cannot say."""


class Reject(NamedTuple):
    """A member that was not stored; `wnid` is None where it can belong to no class."""

    wnid: str | None
    name: str
    reason: str
    detail: str


class Member(NamedTuple):
    """An image of a class tar: its name there and where its bytes lie in the tar."""

    name: str
    offset: int
    num_bytes: int


@dataclass(frozen=True)
class ClassArchive:
    """A class tar inside a raw archive: `num_bytes` at `offset` of the file `source`, or `data`, out of a stream."""

    source: Path
    wnid: str
    name: str
    offset: int
    num_bytes: int
    data: bytes | None = field(default=None, repr=False)

    def read(self) -> bytes:
        """Read the class tar whole, in one sequential sweep; raises ValueError where the archive got shorter."""
        if self.data is not None:
            return self.data
        with self.source.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.num_bytes)
        if len(data) != self.num_bytes:
            raise ValueError(f"{self.source}: ends inside {self.name}; it was longer when the run began")
        return data


@dataclass(frozen=True)
class RawTar:
    """A raw archive: its class tars, to be walked once, and what is known of it before.

    num_bytes:    of the file; None for standard input.
    names:        the classes, sorted; None where only the walk will tell (a stream).
    class_bytes:  the bytes of all class tars; None likewise.
    rejects:      members that are no class tar; complete when the walk is.
    position:     tells how many of `num_bytes` the walk has read.
    """

    name: str
    num_bytes: int | None
    classes: Iterable[ClassArchive]
    rejects: list[Reject]
    names: list[str] | None = None
    class_bytes: int | None = None
    position: Callable[[], int] = lambda: 0


def open_raw_tar(source: Path) -> RawTar:
    """Open a tar of class tars: plain (its outer headers are read), gzipped, or standard input (`-`).

    A plain archive lets the workers read; a stream is read once, front to back, a class tar at a time. Raises
    ValueError for what is no such archive, in a stream where the walk finds it out; OSError for what cannot be read.
    """
    rejects: list[Reject] = []
    if source == STDIN:
        return RawTar("-", None, _Stream(source, rejects), rejects)
    if source.is_dir():
        raise ValueError(f"{source}: is a folder; wanted an archive such as fall11_whole.tar")
    size = source.stat().st_size
    with source.open("rb") as file:
        if file.read(2) == GZIP:
            stream = _Stream(source, rejects)
            return RawTar(source.name, size, stream, rejects, position=stream.position)
    archives = scan_class_tars(source, rejects)
    total = sum(archive.num_bytes for archive in archives)
    return RawTar(source.name, size, archives, rejects, sorted(archive.wnid for archive in archives), total)


def scan_class_tars(source: Path, rejects: list[Reject]) -> list[ClassArchive]:
    """List the class tars of a plain archive by its outer headers alone; members that are none go to `rejects`.

    Raises ValueError for a file that is no tar, that ends in mid-member, or that holds no class tar; OSError for one
    that cannot be read.
    """
    size = source.stat().st_size
    archives: list[ClassArchive] = []
    with _named_errors(source), tarfile.open(source, "r:", tarinfo=_StrictTarInfo) as outer:
        for member, wnid in _class_members(source, outer, rejects):
            if member.offset_data + member.size > size:
                raise ValueError(
                    f"{source}: ends inside {member.name}: {member.offset_data + member.size:,} bytes are needed, "
                    f"it has {size:,}; copy or download the archive again"
                )
            archives.append(ClassArchive(source, wnid, member.name, member.offset_data, member.size))
        with source.open("rb") as file:
            file.seek(outer.offset)
            _check_rest(file)
    return archives


class _Stream:
    """The class tars of a gzipped file, or of standard input (gzipped or not), with their bytes, as they come."""

    def __init__(self, source: Path, rejects: list[Reject]) -> None:
        self._source, self._rejects = source, rejects
        self._file: Any = None

    def position(self) -> int:
        """Return how many bytes of the file were read."""
        return self._file.tell() if self._file and not self._file.closed else 0

    def __iter__(self) -> Iterator[ClassArchive]:
        source = Path("standard input") if self._source == STDIN else self._source
        with ExitStack() as stack:
            stack.enter_context(_named_errors(source))
            stream = self._open(stack)
            outer = stack.enter_context(tarfile.open(fileobj=stream, mode="r|", tarinfo=_StrictTarInfo))
            for member, wnid in _class_members(source, outer, self._rejects):
                content = outer.extractfile(member)
                data = content.read() if content else b""
                if len(data) != member.size:
                    raise ReadError(f"it ends inside {member.name}")
                yield ClassArchive(source, wnid, member.name, member.offset_data, member.size, data)
            _check_rest(stream)  # which has the checksum of a gzipped stream compared, too

    def _open(self, stack: ExitStack) -> Any:
        if self._source == STDIN:
            stdin: Any = sys.stdin.buffer
            # Standard input cannot seek, as the parallel decompressor wants to.
            return stack.enter_context(gzip.open(stdin)) if stdin.peek(2)[:2] == GZIP else stdin
        self._file = stack.enter_context(self._source.open("rb"))
        return stack.enter_context(rapidgzip.open(self._file, parallelization=0))  # 0: on every core


def _check_rest(file: Any) -> None:
    """Raise ReadError where more than padding follows: zeros in a damaged tar pass for its end."""
    num_bytes = 0
    while chunk := file.read(1 << 16):
        num_bytes += len(chunk)
        if num_bytes > MAX_PADDING_BYTES or chunk.strip(b"\0"):
            raise ReadError("more follows where the tar seems to end")


def _class_members(
    source: Path, outer: tarfile.TarFile, rejects: list[Reject]
) -> Iterator[tuple[tarfile.TarInfo, str]]:
    """Yield the members that are class tars, with their wnid; others go to `rejects`. Raises ValueError for none."""
    found: dict[str, str] = {}
    for member in outer:
        if member.isdir():
            continue
        path = PurePosixPath(member.name)
        problem = _outer_problem(member, path, found)
        if problem:
            rejects.append(Reject(None, _readable(member.name), *problem))
            continue
        found[path.stem] = member.name
        yield member, path.stem
    if not found:
        held = f"its first member is {rejects[0].name}" if rejects else "it is empty"
        raise ValueError(f"{source}: holds no class tars ({held}); wanted members such as n01440764.tar")


def _outer_problem(member: tarfile.TarInfo, path: PurePosixPath, found: Mapping[str, str]) -> tuple[str, str] | None:
    if not member.isreg() or member.sparse is not None:
        return "not a regular file", f"tar member type {member.type!r}"
    if path.suffix != ".tar":
        return "no class", "not a class tar (<wnid>.tar)"
    if not _CLASS_NAME.fullmatch(path.stem):
        return "no class", "a class is named by letters, digits, '_' and '-' alone"
    if path.stem in found:
        return "duplicate", f"{found[path.stem]} came first"
    return None


@contextmanager
def _named_errors(source: Path) -> Generator[None]:
    """Turn what tarfile and the decompressors raise into a ValueError that names the archive."""
    try:
        yield
    except (tarfile.TarError, EOFError, RuntimeError, ValueError, zlib.error, gzip.BadGzipFile) as error:
        if "CRC" in str(error):
            raise ChecksumError(
                f"{source}: its checksum does not fit what it holds ({error}); nobody knows which of the images are "
                "wrong, so none is kept: copy or download the archive again"
            ) from error
        if str(error).startswith(f"{source}: "):  # one of ours
            raise
        raise ValueError(
            f"{source}: not a tar, or damaged ({error}); wanted a tar of class tars such as fall11_whole.tar"
        ) from error


class _StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header after the first member for the end of the archive; this does not."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:  # tarfile's own name for it
        """Read the next header; raises ReadError unless there is one, or the end of the archive in its place."""
        try:
            return super().fromtarfile(tarfile)
        except _BAD_HEADERS as error:
            at = f"at byte {tarfile.offset:,} there is neither a member nor the end of the tar"
            raise ReadError(f"{at} ({error})") from error


def list_members(archive: ClassArchive, data: bytes) -> tuple[list[Member], list[Reject]]:
    """List the images of a class tar that was read whole, by byte order of their names, and what cannot be one.

    An image is a regular member with an image suffix; whether it decodes is not looked at. A class tar that is none,
    or damaged further on, is a reject of its own.
    """
    members: dict[str, Member] = {}
    rejects: list[Reject] = []

    def reject(name: str, reason: str, detail: str) -> None:
        rejects.append(Reject(archive.wnid, _readable(name), reason, detail))

    try:
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:", tarinfo=_StrictTarInfo) as inner:
            for member in inner:
                if member.isdir():
                    continue
                if not member.isreg() or member.sparse is not None:
                    reject(member.name, "not a regular file", f"tar member type {member.type!r}")
                elif member.name.startswith("/") or ".." in member.name.split("/"):
                    reject(member.name, "unsafe name", "absolute, or with '..'")
                elif not member.name.lower().endswith(IMAGE_SUFFIXES):
                    reject(member.name, "no image suffix", f"wanted one of {', '.join(IMAGE_SUFFIXES)}")
                elif member.name in members:
                    reject(member.name, "duplicate", "an earlier member has the same name")
                else:
                    members[member.name] = Member(member.name, member.offset_data, member.size)
            _check_rest(io.BytesIO(data[inner.offset :]))
    except tarfile.TarError as error:
        # An empty class tar is a class without images; anything else that is no tar is named.
        if data.strip(b"\0"):
            rejects.append(Reject(None, archive.name, DAMAGED, str(error)))
    ordered = sorted(members.values(), key=lambda member: os.fsencode(member.name))
    return [member._replace(name=_readable(member.name)) for member in ordered], rejects


def _readable(name: str) -> str:
    """Return a name from a tar as text that can be written: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
