"""Reading raw archives without extracting them: a tar of class tars."""

from __future__ import annotations

import io
import os
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
DAMAGED = "damaged class tar"
_CLASS_NAME = re.compile(r"[A-Za-z0-9_-]+")


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
    """A class tar inside a raw archive: `num_bytes` at `offset` of the file `source`."""

    source: Path
    wnid: str
    name: str
    offset: int
    num_bytes: int

    def read(self) -> bytes:
        """Read the class tar whole, in one sequential sweep; raises ValueError where the archive got shorter."""
        with self.source.open("rb") as file:
            file.seek(self.offset)
            data = file.read(self.num_bytes)
        if len(data) != self.num_bytes:
            raise ValueError(f"{self.source}: ends inside {self.name}; it was longer when the run began")
        return data


def scan_class_tars(source: Path) -> tuple[list[ClassArchive], list[Reject]]:
    """List the class tars of a raw archive by its outer headers alone, and the members that are none.

    Raises ValueError for a file that is no tar, that ends in mid-member, or that holds no class tar; OSError for one
    that cannot be read.
    """
    found: dict[str, ClassArchive] = {}
    rejects: list[Reject] = []
    if source.is_dir():
        raise ValueError(f"{source}: is a folder; wanted an archive such as fall11_whole.tar")
    size = source.stat().st_size
    with source.open("rb") as file:
        if file.read(2) == b"\x1f\x8b":
            raise ValueError(f"{source}: is gzipped; unpack it first (`gunzip -k {source.name}`), wanted a plain tar")
    try:
        with tarfile.open(source, "r:") as outer:
            for member in outer:
                if member.isdir():
                    continue
                reason = _outer_problem(member, found)
                if reason:
                    rejects.append(Reject(None, _readable(member.name), *reason))
                    continue
                if member.offset_data + member.size > size:
                    raise ValueError(
                        f"{source}: ends inside {member.name}: {member.offset_data + member.size:,} bytes are needed, "
                        f"it has {size:,}; copy or download the archive again"
                    )
                wnid = Path(member.name).stem
                found[wnid] = ClassArchive(source, wnid, member.name, member.offset_data, member.size)
            _check_end(outer)
    except tarfile.TarError as error:
        raise ValueError(
            f"{source}: not a tar, or damaged ({error}); wanted a tar of class tars such as fall11_whole.tar"
        ) from error
    if not found:
        held = f"its first member is {rejects[0].name}" if rejects else "it is empty"
        raise ValueError(f"{source}: holds no class tars ({held}); wanted members such as n01440764.tar")
    return list(found.values()), rejects


def _check_end(archive: tarfile.TarFile) -> None:
    """Raise ReadError unless the walk ended at a tar's end: tarfile takes a damaged or missing header for it too."""
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    if archive.fileobj.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
        raise tarfile.ReadError(f"at byte {archive.offset:,} there is neither a member nor the end of the tar")


def _outer_problem(member: tarfile.TarInfo, found: dict[str, ClassArchive]) -> tuple[str, str] | None:
    path = Path(member.name)
    if not member.isreg() or member.sparse is not None:
        return "not a regular file", f"tar member type {member.type!r}"
    if path.suffix != ".tar":
        return "no class", "not a class tar (<wnid>.tar)"
    if not _CLASS_NAME.fullmatch(path.stem):
        return "no class", "a class is named by letters, digits, '_' and '-' alone"
    if path.stem in found:
        return "duplicate", f"{found[path.stem].name} came first"
    return None


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
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as inner:
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
            _check_end(inner)
    except tarfile.TarError as error:
        # An empty class tar is a class without images; anything else that is no tar is named.
        if data.strip(b"\0"):
            rejects.append(Reject(None, archive.name, DAMAGED, str(error)))
    ordered = sorted(members.values(), key=lambda member: os.fsencode(member.name))
    return [member._replace(name=_readable(member.name)) for member in ordered], rejects


def _readable(name: str) -> str:
    """Return a name from a tar as text that can be written: bytes that are no UTF-8 are escaped."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
