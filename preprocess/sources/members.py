"""Members of a source: images and rejects, and what the name of a file tells."""

from __future__ import annotations

import os
import re
import tarfile
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import NamedTuple

IMAGE_SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".png", ".webp")
DAMAGED = "damaged class tar"
DUPLICATE = "duplicate"
NO_SUFFIX = "no image suffix"
MAX_IMAGE_BYTES = 1 << 30  # guessed; an image of a stream is held in memory
# Files that systems and tools leave beside images, by kind. They are never images, whatever their suffix.
IGNORED_FOLDERS = ("__MACOSX/", "@eaDir/", ".ipynb_checkpoints/")
IGNORED_FILES = ("._*", ".DS_Store", "Thumbs.db", "desktop.ini")


class UselessError(ValueError):
    """An error after which nothing in the output folder can be reused: the folder is removed."""


class Reject(NamedTuple):
    """A member that was not stored; `wnid` is None where it belongs to no class."""

    wnid: str | None
    name: str
    reason: str
    detail: str


class Member(NamedTuple):
    """An image of a class.

    name:   path below the class's folder, or in its class tar; `readable` makes it printable.
    path:   whole path in the source.
    offset: where its `num_bytes` begin in the tar that holds it; 0 for a file.
    split:  the split that the source puts it in: train, val or small; None where the source has no splits.
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
    rejects: files that are not images, or that cannot be read.
    read:    yields the bytes of images.
    ignored: number of files of each `ignored_kind` in its class tar.
    """

    members: list[Member]
    rejects: list[Reject]
    read: Callable[[Sequence[Member]], Iterable[bytes]]
    ignored: Counter[str] = field(default_factory=Counter[str])


class Folders:
    """Collects the folders of a source and finds the empty ones."""

    def __init__(self) -> None:
        self._folders: set[str] = set()
        self._used: set[str] = set()

    def add(self, folder: str) -> None:
        """Record a folder of the source."""
        self._folders.add(folder)

    def use(self, path: str) -> None:
        """Record that the folder of this member is not empty."""
        self._used.add(path.rpartition("/")[0])

    def empty(self) -> list[str]:
        """Return the folders without members and subfolders, sorted; those of an `ignored_kind` are left out."""
        used, above = set(self._used), {"", "."}
        for folder in (*self._folders, *self._used):
            while (folder := folder.rpartition("/")[0]) not in above:
                above.add(folder)
        empty = (folder for folder in self._folders - used - above if not ignored_kind(f"{folder}/"))
        return sorted(map(readable, empty))


def problem_of(member: tarfile.TarInfo) -> tuple[str, str] | None:
    """Return reason and detail where a tar member must be rejected: not a regular file, an unsafe name, too large."""
    if not member.isreg() or member.sparse is not None:
        return "not a regular file", f"tar member type {member.type!r}"
    if member.name.startswith("/") or ".." in member.name.split("/") or "\0" in member.name:
        return "unsafe name", "absolute, or with '..' or a zero byte"
    if member.size > MAX_IMAGE_BYTES and is_image(member.name):
        return "too large", f"{member.size:,} bytes, over {MAX_IMAGE_BYTES:,}"
    return None


def is_image(name: str) -> bool:
    """Tell whether a name has the suffix of an image. The file is not read."""
    return name.lower().endswith(IMAGE_SUFFIXES)


def _pattern_of(kind: str) -> str:
    return re.escape(kind).replace(r"\*", "[^/]*") + ("" if kind.endswith("/") else r"\Z")


_IGNORED = re.compile(
    "(?:^|/)(?:" + "|".join(f"({_pattern_of(kind)})" for kind in (*IGNORED_FOLDERS, *IGNORED_FILES)) + ")",
    re.IGNORECASE,
)


def ignored_kind(path: str) -> str | None:
    """Return which kind of IGNORED_FOLDERS or IGNORED_FILES a path is; None for any other path.

    >>> ignored_kind("n01440764/._n01440764_26.JPEG"), ignored_kind("__macosx/cat/1.jpg"), ignored_kind("cat/1.jpg")
    ('._*', '__MACOSX/', None)
    """
    match = _IGNORED.search(path)
    return (*IGNORED_FOLDERS, *IGNORED_FILES)[match.lastindex - 1] if match and match.lastindex else None


def is_lost_image(reject: Reject) -> bool:
    """Tell whether a reject has the name of an image and is not a duplicate of a stored one."""
    return is_image(reject.name) and reject.reason != DUPLICATE


def not_an_image(wnid: str | None, name: str) -> Reject:
    """Return the reject of a member without an image suffix."""
    return Reject(wnid, readable(name), NO_SUFFIX, f"wanted one of {', '.join(IMAGE_SUFFIXES)}")


def one_of_each(wnid: str, members: Iterable[Member], rejects: list[Reject]) -> list[Member]:
    """Return the members by byte order of their names, each name once; later duplicates are added to `rejects`.

    Where two folders of a class hold images of the same name, the second image by path is named by its whole path.
    """
    by_name: dict[str, Member] = {}
    paths: set[str] = set()
    for member in sorted(members, key=lambda member: to_bytes(member.path)):  # stable: the first of equals stays first
        is_again = member.path in paths
        name = member.path if member.name in by_name and not is_again else member.name
        if is_again or name in by_name:
            rejects.append(Reject(wnid, readable(name), DUPLICATE, "an earlier member has the same name"))
            continue
        paths.add(member.path)
        by_name[name] = member
    ordered = sorted(by_name.items(), key=lambda item: to_bytes(item[0]))
    return [member._replace(name=name) for name, member in ordered]


def to_bytes(name: str) -> bytes:
    """Return the bytes of a name, which need not be UTF-8."""
    return name.encode("utf-8", "surrogateescape")


def to_text(name: bytes) -> str:
    """Return bytes as a name, so that `to_bytes` restores them."""
    return name.decode("utf-8", "surrogateescape")


def from_os(name: str) -> str:
    """Return the name of a file as a tar holds it: UTF-8, whatever the locale makes of its bytes."""
    return to_text(os.fsencode(name))


def to_os(name: str) -> str:
    """Return the name under which the operating system has a file: the inverse of `from_os`."""
    return os.fsdecode(to_bytes(name))


def readable(name: str) -> str:
    """Return a name as printable text: bytes that are not UTF-8 are escaped."""
    return to_bytes(name).decode("utf-8", "backslashreplace")


def class_tar_of(name: str) -> str | None:
    """Return the class of a member that is called like a class tar, `<class>.tar`; None for any other name."""
    path = PurePosixPath(name)
    return path.stem if path.suffix == ".tar" else None
