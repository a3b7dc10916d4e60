"""Strict reading of tars: their members, class tars in them, and errors for damaged ones."""

from __future__ import annotations

import gzip
import io
import tarfile
import zlib
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tarfile import ReadError
from typing import Any, BinaryIO, NamedTuple, Self

from ...shards.files.atomic import naming
from .members import (
    DAMAGED,
    Contents,
    Folders,
    Member,
    Reject,
    UselessError,
    ignored_kind,
    is_image,
    not_an_image,
    one_of_each,
    problem_of,
    readable,
)

MAX_CLASS_TAR_BYTES = 4 << 30  # guessed, over ten times fall11's largest; a stream's class tar is held in memory
MAX_HEADER_BYTES = 1 << 20  # guessed: of a long name, or of pax records
MAX_MEMBER_BYTES = 10**12  # guessed: close to the size of fall11
MAX_PADDING_BYTES = 1 << 20  # tar pads to 10 KiB, or to the block size of a tape
_FORWARD_BYTES = 1 << 20
_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_BAD_HEADERS: Any = tuple(
    getattr(tarfile, name) for name in ("EmptyHeaderError", "TruncatedHeaderError", "InvalidHeaderError")
)
# What tarfile raises, beside its own errors, for a damaged extension header or a name of gigabytes.
ODD_HEADERS = (MemoryError, OverflowError, RuntimeError, ValueError)


class ChecksumError(UselessError):
    """A gzip stream whose checksum is wrong: any of its bytes may be."""


class Listing(NamedTuple):
    """What a class tar holds by its headers; see `Contents`."""

    members: list[Member]
    rejects: list[Reject]
    ignored: Counter[str]


@dataclass(frozen=True)
class ClassTar:
    """A class tar: `num_bytes` at `offset` of the file `source`, or `data` from a stream.

    rejects: members elsewhere in the source that belong to this class; they are not stored.
    """

    source: Path
    wnid: str
    name: str
    offset: int
    num_bytes: int
    data: bytes | None = field(default=None, repr=False)
    rejects: tuple[Reject, ...] = ()

    @contextmanager
    def open(self) -> Generator[Contents]:
        """Read the whole tar and list it; raises ValueError where the archive was truncated meanwhile."""
        data = self.read()
        members, rejects, ignored = list_class_tar(self, data)
        yield Contents(
            members, [*rejects, *self.rejects], lambda images: (_slice(data, image) for image in images), ignored
        )

    def listed(self) -> tuple[list[Member], list[Reject]]:
        """List its members by their headers alone, without reading the images."""
        if self.data is not None:
            return list_class_tar(self, self.data)[:2]
        with naming(self.source), self.source.open("rb") as file:
            file.seek(self.offset)
            members, rejects, _ = _walk_class_tar(self, file)
        return one_of_each(self.wnid, members, rejects), rejects

    def read(self) -> bytes:
        """Read the whole class tar in one sequential sweep; raises ValueError where the archive was truncated."""
        if self.data is not None:
            return self.data
        with naming(self.source), self.source.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.num_bytes)
        if len(data) != self.num_bytes:
            raise ValueError(f"{self.source}: ends inside {self.name}; it was longer when the run began")
        return data


def _slice(data: bytes, member: Member) -> bytes:
    return data[member.offset : member.offset + member.num_bytes]


def open_tar(file: Any) -> tarfile.TarFile:
    """Open a tar strictly. Names are UTF-8 whatever the locale; Python escapes other bytes."""
    return tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo, encoding="utf-8", errors="surrogateescape")


class Forward:
    """A file for `open_tar` over a stream that cannot seek back. It raises at the end, where tarfile's own loops.

    Members come in order; skipped bytes cannot be read again.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._position = 0

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seekable(self) -> bool:
        """Return False."""
        return False

    def read(self, num_bytes: int) -> bytes:
        """Return `num_bytes` bytes, fewer only at the end. Memory grows with what is there, not with `num_bytes`."""
        chunks: list[bytes] = []
        left = num_bytes
        while left and (chunk := self._stream.read(min(left, _FORWARD_BYTES))):
            chunks.append(chunk)
            left -= len(chunk)
        self._position += num_bytes - left
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def seek(self, position: int) -> int:
        """Skip forward; raises ReadError for a position that was passed or that lies beyond the end."""
        if position < self._position:
            raise ReadError(f"a stream at byte {self._position:,} cannot go back to byte {position:,}")
        while self._position < position:
            if not self.read(min(_FORWARD_BYTES, position - self._position)):
                raise ReadError(f"it ends after {self._position:,} bytes, where {position:,} were expected")
        return position


def check_rest(file: Any, most: int = MAX_PADDING_BYTES + 1) -> None:
    """Raise ReadError where anything but padding follows the end of a tar: damage can look like an end mark.

    most: how many bytes are checked.
    """
    num_bytes = 0
    while chunk := file.read(min(1 << 16, most - num_bytes)):
        num_bytes += len(chunk)
        if num_bytes > MAX_PADDING_BYTES or chunk.strip(b"\0"):
            raise ReadError("more follows where the tar seems to end")


@contextmanager
def named_errors(source: Path) -> Generator[None]:
    """Turn what tarfile, the decompressors and the disk raise into a ValueError that names the archive."""
    try:
        with naming(source):
            yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, *ODD_HEADERS) as error:
        if str(error).startswith(f"{source}: "):  # one of ours
            raise
        if "CRC" in str(error) and not isinstance(error, tarfile.TarError):  # those name members
            raise ChecksumError(
                f"{source}: its checksum does not match its content ({error}). Any of the images may be corrupt, so "
                "none is kept: copy or download the archive again"
            ) from error
        raise ValueError(
            f"{source}: not a tar, or damaged ({error or type(error).__name__}); wanted an archive such as "
            "fall11_whole.tar: copy or download it again"
        ) from error


class StrictTarInfo(tarfile.TarInfo):
    """Raises for a damaged or missing header after the first member, which tarfile takes for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:  # tarfile's own name for it
        """Read the next header; raises ReadError unless a header or the end of the archive comes next."""
        try:
            member = super().fromtarfile(tarfile)
        except _BAD_HEADERS as error:
            at = f"at byte {tarfile.offset:,} there is neither a member nor the end of the tar"
            raise ReadError(f"{at} ({error})") from error
        if member.size < 0:  # which would lead back to an earlier member, in an endless loop
            raise ReadError(f"{readable(member.name)} has {member.size} bytes")
        if member.size > MAX_MEMBER_BYTES:
            raise ReadError(f"{readable(member.name)} has {member.size:,} bytes; {MAX_MEMBER_BYTES:,} are the most")
        return member

    def _proc_member(self, tarfile: tarfile.TarFile) -> Any:  # tarfile's own name for it
        """Read the extensions of a header; raises ReadError for a name or records that would fill the memory."""
        if self.type in _EXTENSIONS and self.size > MAX_HEADER_BYTES:
            raise ReadError(f"a header of {self.size:,} bytes; wanted {MAX_HEADER_BYTES:,} at most")
        return super()._proc_member(tarfile)  # pyright: ignore[reportAttributeAccessIssue]  # typeshed leaves it out


def walk(tar: tarfile.TarFile, folders: Folders | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the members that are not folders. tarfile would keep them all, at a kilobyte each; this keeps none.

    Names are normalised: `./a//b` is `a/b`. `folders` collects the folders.
    """
    while (member := tar.next()) is not None:
        tar.members.clear()  # pyright: ignore[reportAttributeAccessIssue]  # typeshed leaves it out
        if member.name.startswith("./") or "//" in member.name or "/./" in member.name:
            root = "/" if member.name.startswith("/") else ""
            member.name = root + "/".join(part for part in member.name.split("/") if part not in ("", "."))
        if not member.isdir():
            yield member
        elif folders is not None:
            folders.add(member.name)


def list_class_tar(archive: ClassTar, data: bytes) -> Listing:
    """List the images of a class tar by byte order of their names, and the rejects, from all of its bytes.

    A class tar that is damaged, or not a tar, is a reject of its own; what was read of it before is listed.
    """
    members, rejects, ignored = _walk_class_tar(archive, io.BytesIO(data))
    if not data.strip(b"\0"):  # an empty class tar is a class without images
        rejects = []
    return Listing(one_of_each(archive.wnid, members, rejects), rejects, ignored)


def _walk_class_tar(archive: ClassTar, file: BinaryIO) -> Listing:
    """List the class tar that begins at the position of `file`, in its own order."""
    members: list[Member] = []
    rejects: list[Reject] = []
    ignored: Counter[str] = Counter()
    begin = file.tell()
    try:
        with open_tar(file) as inner:
            for member in walk(inner):
                if member.offset >= begin + archive.num_bytes:
                    raise ReadError("it ends without an end mark")
                if kind := ignored_kind(member.name):
                    ignored[kind] += 1
                elif problem := problem_of(member):
                    rejects.append(Reject(archive.wnid, readable(member.name), *problem))
                elif not is_image(member.name):
                    rejects.append(not_an_image(archive.wnid, member.name))
                else:
                    members.append(Member(member.name, member.name, member.offset_data, member.size))
            if (rest := begin + archive.num_bytes - inner.offset) < 0:
                raise ReadError("it ends inside a member")
            file.seek(inner.offset)
            check_rest(file, rest)
    except (tarfile.TarError, *ODD_HEADERS) as error:
        rejects.append(Reject(None, archive.name, DAMAGED, str(error) or type(error).__name__))
    return Listing(members, rejects, ignored)
