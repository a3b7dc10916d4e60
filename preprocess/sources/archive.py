"""Strict reading of tars: what is in them, where it lies, and what must not be taken from them."""

from __future__ import annotations

import gzip
import io
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tarfile import ReadError
from typing import Any, BinaryIO, NamedTuple, Self

from ...shards.files.atomic import naming

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
DAMAGED = "damaged class tar"
DUPLICATE = "duplicate"
NO_SUFFIX = "no image suffix"
MAX_IMAGE_BYTES = 1 << 30  # guessed; a stream's image is held in memory
MAX_CLASS_TAR_BYTES = 4 << 30  # guessed, over ten times fall11's largest; a stream's class tar is held in memory
MAX_HEADER_BYTES = 1 << 20  # guessed: of a long name, or of pax records
MAX_MEMBER_BYTES = 10**12  # guessed: close to fall11 as a whole
MAX_PADDING_BYTES = 1 << 20  # tar pads to 10 KiB, or to the block size of a tape
# What systems and tools leave beside images, by kind; none of it is an image, whatever its suffix.
IGNORED_FOLDERS = ("__MACOSX/", "@eaDir/", ".ipynb_checkpoints/")
IGNORED_FILES = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini")
_FORWARD_BYTES = 1 << 20
_EXTENSIONS = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_BAD_HEADERS: Any = tuple(
    getattr(tarfile, name) for name in ("EmptyHeaderError", "TruncatedHeaderError", "InvalidHeaderError")
)


# What a header can raise beside: in its extensions, or for a name that says it has gigabytes.
ODD_HEADERS = (MemoryError, OverflowError, RuntimeError, ValueError)


class UselessError(ValueError):
    """What was done is of no use, whatever is given next: it goes."""


class ChecksumError(UselessError):
    """A gzipped stream that held other bytes than were packed; which of them, it cannot say."""


class Reject(NamedTuple):
    """A member that was not stored; `wnid` is None where it can belong to no class."""

    wnid: str | None
    name: str
    reason: str
    detail: str


class Member(NamedTuple):
    """An image of a class.

    name:   below the folder of its class, or in its class tar; see `readable` for writing it.
    path:   its whole name in the source.
    offset: of its `num_bytes` in the tar that holds it; 0 for a file.
    split:  that the source puts it in: train, val or small; None where it says nothing.
    """

    name: str
    path: str
    offset: int
    num_bytes: int
    split: str | None = None


@dataclass(frozen=True)
class Contents:
    """An open class.

    members: its images by byte order of their names.
    rejects: what is no image, or cannot be read.
    read:    yields the bytes of images.
    ignored: how many files of each kind of `ignored_kind` its class tar holds.
    """

    members: list[Member]
    rejects: list[Reject]
    read: Callable[[Sequence[Member]], Iterable[bytes]]
    ignored: Counter[str] = field(default_factory=Counter[str])


class Listing(NamedTuple):
    """What a class tar holds by its headers; see `Contents`."""

    members: list[Member]
    rejects: list[Reject]
    ignored: Counter[str]


@dataclass(frozen=True)
class ClassTar:
    """A class tar: `num_bytes` at `offset` of the file `source`, or `data`, out of a stream.

    rejects: what else the source holds of the class, and does not count.
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
        """Read the tar whole and list it; raises ValueError where the archive got shorter."""
        data = self.read()
        members, rejects, ignored = _list_class_tar(self, data)
        yield Contents(
            members, [*rejects, *self.rejects], lambda wanted: (_slice(data, member) for member in wanted), ignored
        )

    def listed(self) -> tuple[list[Member], list[Reject]]:
        """List what it holds by headers alone, without the bytes of images."""
        if self.data is not None:
            return list_members(self, self.data)
        with naming(self.source), self.source.open("rb") as file:
            file.seek(self.offset)
            members, rejects, _ = _walk_class_tar(self, file)
        return one_of_each(self.wnid, members, rejects), rejects

    def read(self) -> bytes:
        """Read the class tar whole, in one sequential sweep; raises ValueError where the archive got shorter."""
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
    """Open a tar strictly. Names are UTF-8 whatever the locale, other bytes come as Python escapes them."""
    return tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo, encoding="utf-8", errors="surrogateescape")


class Forward:
    """What can be read once, from front to back, as a file for `open_tar`; tarfile's own goes on for ever past the end.

    Members come in order: what was passed over cannot be read again.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self._position = 0

    def tell(self) -> int:
        """Return how many bytes were read."""
        return self._position

    def seekable(self) -> bool:
        """Tell that there is no way back."""
        return False

    def read(self, num_bytes: int) -> bytes:
        """Return so many bytes, fewer only at the end. Memory grows with what comes, not with what is asked for."""
        chunks: list[bytes] = []
        left = num_bytes
        while left and (chunk := self._stream.read(min(left, _FORWARD_BYTES))):
            chunks.append(chunk)
            left -= len(chunk)
        self._position += num_bytes - left
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def seek(self, position: int) -> int:
        """Go forward; raises ReadError where the stream ends before."""
        if position < self._position:
            raise ReadError("the same place of a stream was asked for twice")
        while self._position < position:
            if not self.read(min(_FORWARD_BYTES, position - self._position)):
                raise ReadError(f"it ends after {self._position:,} bytes, where {position:,} were expected")
        return position


def check_rest(file: Any, most: int = MAX_PADDING_BYTES + 1) -> None:
    """Raise ReadError where more than padding follows: zeros in a damaged tar pass for its end.

    most: how many bytes are looked at.
    """
    num_bytes = 0
    while chunk := file.read(min(1 << 16, most - num_bytes)):
        num_bytes += len(chunk)
        if num_bytes > MAX_PADDING_BYTES or chunk.strip(b"\0"):
            raise ReadError("more follows where the tar seems to end")


@contextmanager
def named_errors(source: Path) -> Generator[None]:
    """Turn what tarfile and the decompressors raise into a ValueError that names the archive; a failing disk's too."""
    try:
        with naming(source):
            yield
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile, *ODD_HEADERS) as error:
        if str(error).startswith(f"{source}: "):  # one of ours
            raise
        if "CRC" in str(error) and not isinstance(error, tarfile.TarError):  # those name members
            raise ChecksumError(
                f"{source}: its checksum does not fit what it holds ({error}); nobody knows which of the images are "
                "wrong, so none is kept: copy or download the archive again"
            ) from error
        raise ValueError(
            f"{source}: not a tar, or damaged ({error or type(error).__name__}); wanted an archive such as "
            "fall11_whole.tar: copy or download it again"
        ) from error


class StrictTarInfo(tarfile.TarInfo):
    """tarfile takes a damaged or missing header after the first member for the end of the archive; this does not."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:  # tarfile's own name for it
        """Read the next header; raises ReadError unless there is one, or the end of the archive in its place."""
        try:
            member = super().fromtarfile(tarfile)
        except _BAD_HEADERS as error:
            at = f"at byte {tarfile.offset:,} there is neither a member nor the end of the tar"
            raise ReadError(f"{at} ({error})") from error
        if member.size < 0:  # which would lead back to an earlier member, for ever
            raise ReadError(f"{readable(member.name)} has {member.size} bytes")
        if member.size > MAX_MEMBER_BYTES:
            raise ReadError(f"{readable(member.name)} has {member.size:,} bytes; {MAX_MEMBER_BYTES:,} are the most")
        return member

    def _proc_member(self, tarfile: tarfile.TarFile) -> Any:  # tarfile's own name for it
        """Read what belongs to a header; raises ReadError for a name or records that would fill the memory."""
        if self.type in _EXTENSIONS and self.size > MAX_HEADER_BYTES:
            raise ReadError(f"a header of {self.size:,} bytes; wanted {MAX_HEADER_BYTES:,} at most")
        return super()._proc_member(tarfile)  # pyright: ignore[reportAttributeAccessIssue]  # typeshed leaves it out


def walk(tar: tarfile.TarFile, folders: Folders | None = None) -> Iterator[tarfile.TarInfo]:
    """Yield the members but for folders, without keeping them, as tarfile does (a kilobyte each).

    Names lose what leads nowhere: `./a//b` is `a/b`. `folders` is told of every folder.
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


class Folders:
    """Tells which folders of a source hold nothing that counts."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._used: set[str] = set()

    def add(self, folder: str) -> None:
        """There is this folder."""
        self._folders.add(folder)

    def use(self, path: str) -> None:
        """Its folder holds this member."""
        self._used.add(path.rpartition("/")[0])

    def empty(self) -> list[str]:
        """Return the folders without members and without folders, in order; those of `ignored_kind` do not count."""
        used, above = set(self._used), {"", "."}
        for folder in (*self._folders, *self._used):
            while (folder := folder.rpartition("/")[0]) not in above:
                above.add(folder)
        empty = (folder for folder in self._folders - used - above if not ignored_kind(f"{folder}/"))
        return sorted(map(readable, empty))


def problem_of(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return reason and detail where a member must not be taken: it is no plain file, or its name leads elsewhere."""
    if not member.isreg() or member.sparse is not None:
        return "not a regular file", f"tar member type {member.type!r}"
    if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
        return "unsafe name", "absolute, or with '..' or a zero byte"
    if member.size > MAX_IMAGE_BYTES and is_image(member.name):
        return "too large", f"{member.size:,} bytes, over {MAX_IMAGE_BYTES:,}"
    return None


def is_image(name: str) -> bool:
    """Tell whether a name has the suffix of an image; whether it decodes is not looked at."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _pattern_of(kind: str) -> str:
    return re.escape(kind).replace(r"\*", "[^/]*") + ("" if kind.endswith("/") else r"\Z")


_IGNORED = re.compile(
    "(?:^|/)(?:" + "|".join(f"({_pattern_of(kind)})" for kind in (*IGNORED_FOLDERS, *IGNORED_FILES)) + ")",
    re.IGNORECASE,
)


def ignored_kind(path: str) -> str | None:
    """Return the kind of file that a path names and that is known to be no image; None for any other.

    >>> ignored_kind("n01440764/._n01440764_26.JPEG"), ignored_kind("__macosx/cat/1.jpg"), ignored_kind("cat/1.jpg")
    ('._*', '__MACOSX/', None)
    """
    match = _IGNORED.search(path)
    return (*IGNORED_FOLDERS, *IGNORED_FILES)[match.lastindex - 1] if match and match.lastindex else None


def is_lost_image(reject: Reject) -> bool:
    """Tell whether a member that cannot be read is an image by its name, and not one that is there already."""
    return is_image(reject.name) and reject.reason != DUPLICATE


def not_an_image(wnid: str | None, name: str) -> Reject:
    """Return the reject of a member without an image suffix."""
    return Reject(wnid, readable(name), NO_SUFFIX, f"wanted one of {', '.join(IMAGE_SUFFIXES)}")


def list_members(archive: ClassTar, data: bytes) -> tuple[list[Member], list[Reject]]:
    """List the images of a class tar that was read whole, by byte order of their names, and what cannot be one.

    A class tar that is none, or damaged further on, is a reject of its own.
    """
    return _list_class_tar(archive, data)[:2]


def _list_class_tar(archive: ClassTar, data: bytes) -> Listing:
    members, rejects, ignored = _walk_class_tar(archive, io.BytesIO(data))
    # An empty class tar is a class without images; anything else that is no tar is named.
    if not data.strip(b"\0"):
        rejects = []
    return Listing(one_of_each(archive.wnid, members, rejects), rejects, ignored)


def _walk_class_tar(archive: ClassTar, file: BinaryIO) -> Listing:
    """List what the class tar holds that begins where `file` stands, in its own order."""
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


def one_of_each(wnid: str, members: Iterable[Member], rejects: list[Reject]) -> list[Member]:
    """Return the members by byte order of their names, each name once; members that came before go to `rejects`.

    Where two images of one class lie in different folders under the same name, the second by path goes by its path.
    """
    found: dict[str, Member] = {}
    paths: set[str] = set()
    for member in sorted(members, key=lambda member: to_bytes(member.path)):  # of equal ones the first stays first
        is_again = member.path in paths
        name = member.path if member.name in found and not is_again else member.name
        if is_again or name in found:
            rejects.append(Reject(wnid, readable(name), DUPLICATE, "an earlier member has the same name"))
            continue
        paths.add(member.path)
        found[name] = member
    ordered = sorted(found.items(), key=lambda item: to_bytes(item[0]))
    return [member._replace(name=name) for name, member in ordered]


def to_bytes(name: str) -> bytes:
    """Return the bytes of a name, which may hold such as are no UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    """Return the name of some bytes, so that `to_bytes` gives them back."""
    return name.decode("utf-8", "surrogateescape")


def from_os(name: str) -> str:
    """Return the name of a file as a tar would hold it: UTF-8, whatever the locale makes of its bytes."""
    return to_text(os.fsencode(name))


def to_os(name: str) -> str:
    """Return the name under which the operating system has a file: the opposite of `from_os`."""
    return os.fsdecode(to_bytes(name))


def readable(name: str) -> str:
    """Return a name from a tar as text that can be written: bytes that are no UTF-8 are escaped."""
    return to_bytes(name).decode("utf-8", "backslashreplace")


def class_tar_of(name: str) -> str | None:
    """Return the class that a member is the tar of, by its name; None where it is no tar."""
    path = PurePosixPath(name)
    return path.stem if path.suffix == ".tar" else None
