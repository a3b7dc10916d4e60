"""Recognising what a source holds by the names in it: class tars, class folders, a processed archive, a list."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from array import array
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .archive import (
    ClassTar,
    Contents,
    Member,
    Reject,
    UselessError,
    class_tar_of,
    is_image,
    not_an_image,
    one_of_each,
    readable,
    to_bytes,
    to_text,
)

log = logging.getLogger(__name__)

WNID = re.compile(r"n\d{8}")
CLASS_NAME = re.compile(r"[A-Za-z0-9_-]{1,64}")  # in keys of 96 bytes enough is left to tell images by
# The folders of the official processed archive, and what each holds of the split that it makes.
GIVEN_SPLITS = {"imagenet21k_train": "train", "imagenet21k_val": "val", "imagenet21k_small_classes": "small"}


class Place(NamedTuple):
    """What a folder says of the images in it: their class (None: none), the folder of the class, the given split."""

    wnid: str | None
    home: str
    split: str | None


@lru_cache(maxsize=4096)
def place_of(folder: str) -> Place:
    """Return the place that a folder's path names.

    The class is the nearest folder that is called like a wnid, else the innermost one.

    >>> place_of("imagenet21k_val/n01440764")
    Place(wnid='n01440764', home='imagenet21k_val/n01440764', split='val')
    """
    parts = folder.split("/")
    at = next((i for i in reversed(range(len(parts))) if WNID.fullmatch(parts[i])), len(parts) - 1)
    if not CLASS_NAME.fullmatch(parts[at]):
        return Place(None, "", None)
    split = next((GIVEN_SPLITS[part] for part in parts[:at] if part in GIVEN_SPLITS), None)
    return Place(parts[at], "/".join(parts[: at + 1]), split)


def is_processed(name: str) -> bool:
    """Tell whether a member's name is one of the official processed archive."""
    return place_of(os.path.dirname(name)).split is not None  # noqa: PTH120  # a name in a tar is no path of this machine


def as_member(path: str, offset: int, num_bytes: int) -> Member:
    """Return the image of a class folder as a member, named from that folder on."""
    folder, _, name = path.rpartition("/")
    home = place_of(folder).home
    name = path[len(home) + 1 :] if home else name
    return Member(name, path, offset, num_bytes, place_of(folder).split)


@dataclass
class LooseClass:
    """A class whose images lie one by one: in a tar (`in_tar`) or as files below a folder, `holder`.

    Names and numbers are packed: they take 50 to 120 bytes an image.
    """

    wnid: str
    holder: Path
    in_tar: bool
    others: list[str] = field(default_factory=list[str])  # what lies among the images and is none
    rejects: list[Reject] = field(default_factory=list[Reject])
    num_bytes: int = 0
    homes: set[str] = field(default_factory=set[str])  # the folders of this class that make no split
    _paths: bytearray = field(default_factory=bytearray, repr=False)
    _numbers: array[int] = field(default_factory=lambda: array("q"), repr=False)  # offset and size of each

    def __len__(self) -> int:
        return len(self._numbers) // 2

    def add(self, path: str, offset: int, num_bytes: int) -> None:
        """Take an image into the class."""
        place = place_of(path.rpartition("/")[0])
        if place.split is None:
            self.homes.add(place.home)
        self._paths += to_bytes(path) + b"\0"
        self._numbers.extend((offset, num_bytes))
        self.num_bytes += num_bytes

    def given_split(self) -> str | None:
        """Return the split in which the source puts the first image."""
        first = self._paths.partition(b"\0")[0]
        return as_member(to_text(bytes(first)), 0, 0).split

    def paths(self) -> list[str]:
        """Return the paths of the images, in the order of the source."""
        return [to_text(path) for path in bytes(self._paths).split(b"\0")[:-1]]

    def all_rejects(self) -> list[Reject]:
        """Return what of the class is no image, or cannot be read."""
        return [*self.rejects, *(not_an_image(self.wnid, as_member(path, 0, 0).name) for path in self.others)]

    def listed(self) -> tuple[list[Member], list[Reject]]:
        """List what it holds."""
        with self.open() as contents:
            return contents.members, contents.rejects

    def _members(self) -> Iterator[Member]:
        numbers = iter(self._numbers)
        for path, offset, num_bytes in zip(self.paths(), numbers, numbers, strict=True):
            yield as_member(path, offset, num_bytes)

    @contextmanager
    def open(self) -> Generator[Contents]:
        """List the class; its bytes are read when they are asked for."""
        rejects = self.all_rejects()
        members = one_of_each(self.wnid, self._members(), rejects)
        yield Contents(members, rejects, self._read_extents if self.in_tar else self._read_files)

    def _read_extents(self, wanted: Sequence[Member]) -> Iterator[bytes]:
        """Read images from the tar in the order in which they lie there, and yield them in the order asked for."""
        data: dict[int, bytes] = {}
        with self.holder.open("rb") as file:
            for member in sorted(wanted, key=lambda member: member.offset):
                file.seek(member.offset)
                data[member.offset] = file.read(member.num_bytes)
                if len(data[member.offset]) != member.num_bytes:
                    raise ValueError(
                        f"{self.holder}: ends inside {readable(member.path)}; it was longer when the run began"
                    )
        return (data.pop(member.offset) for member in wanted)

    def _read_files(self, wanted: Sequence[Member]) -> Iterator[bytes]:
        return ((self.holder / member.path).read_bytes() for member in wanted)


RawClass: TypeAlias = ClassTar | LooseClass


class Gathering:
    """What a walk over the names of a source finds: its classes, and what can belong to none.

    source: the tar, the folder, or the list that is walked.
    holder: the tar or the folder that paths begin at.
    """

    def __init__(self, source: Path, holder: Path, *, in_tar: bool) -> None:
        self.rejects: list[Reject] = []
        self._source, self._holder, self._in_tar = source, holder, in_tar
        self._tars: dict[str, ClassTar] = {}
        self._loose: dict[str, LooseClass] = {}

    def add(self, path: str, offset: int, num_bytes: int, problem: tuple[str, str] | None = None) -> None:
        """Take in a member that is no folder; `problem` is reason and detail where it must not be read."""
        if problem:
            self.rejects.append(Reject(None, readable(path), *problem))
        elif (tar_of := class_tar_of(path)) is not None:
            self._add_tar(path, tar_of, offset, num_bytes)
        else:
            self.add_loose(place_of(path.rpartition("/")[0]).wnid, path, offset, num_bytes)

    def _add_tar(self, path: str, wnid: str, offset: int, num_bytes: int) -> None:
        if not CLASS_NAME.fullmatch(wnid):
            self.rejects.append(no_class(path))
        elif wnid in self._tars:
            self.rejects.append(Reject(None, readable(path), "duplicate", f"{self._tars[wnid].name} came first"))
        else:
            source = self._holder if self._in_tar else self._holder / path
            self._tars[wnid] = ClassTar(source, wnid, readable(path), offset, num_bytes)

    def add_loose(self, wnid: str | None, path: str, offset: int, num_bytes: int) -> None:
        """Take in a member that lies by itself; what is no image is a reject of the class that it lies with."""
        if wnid is None:
            self.rejects.append(no_class(path))
            return
        loose = self._loose.setdefault(wnid, LooseClass(wnid, self._holder, self._in_tar))
        if is_image(path):
            loose.add(path, offset, num_bytes)
        else:
            loose.others.append(path)

    def reject(self, wnid: str, path: str, reason: str, detail: str) -> None:
        """Take in a member of a class that cannot be read."""
        loose = self._loose.setdefault(wnid, LooseClass(wnid, self._holder, self._in_tar))
        loose.rejects.append(Reject(wnid, readable(path), reason, detail))

    def classes(self) -> list[RawClass]:
        """Return the classes found, by name; folders without an image are none, and a class tar goes before a folder.

        Raises ValueError where there is none.
        """
        found: dict[str, RawClass] = dict(self._tars)
        for wnid, loose in self._loose.items():
            if wnid in self._tars:
                duplicates = [beside(path, wnid) for path in loose.paths()]
                found[wnid] = replace(self._tars[wnid], rejects=(*loose.all_rejects(), *duplicates))
            elif len(loose):
                found[wnid] = loose
                if len(loose.homes) > 1:
                    log.warning(
                        "%s: the images of %d folders are one class, such as those of %s and %s",
                        *(wnid, len(loose.homes), *sorted(loose.homes)[:2]),
                    )
            else:
                self.rejects += [reject._replace(wnid=None) for reject in loose.rejects]
                self.rejects += [not_an_image(None, path)._replace(reason="no class") for path in loose.others]
        if not found:
            raise no_classes(self._source, self.rejects)
        return [found[wnid] for wnid in sorted(found)]


def beside(path: str, wnid: str) -> Reject:
    """Return the reject of an image whose class also came as a class tar."""
    return Reject(wnid, readable(path), "duplicate", f"its class came as {wnid}.tar")


def no_class(path: str) -> Reject:
    """Return the reject of a member that belongs to no class."""
    detail = (
        "neither a class tar (<class>.tar) nor in the folder of a class, whose name has up to 64 letters A-Z and a-z, "
        "digits, '_' and '-'"
    )
    return Reject(None, readable(path), "no class", detail)


def no_classes(source: Path | str, rejects: Sequence[Reject]) -> UselessError:
    """Return the error of a source in which nothing is a class."""
    held = f"its first member is {rejects[0].name}" if rejects else "it is empty"
    return UselessError(
        f"{source}: holds no classes ({held}); wanted members such as n01440764.tar or n01440764/n01440764_26.JPEG"
    )


def gather_folder(folder: Path) -> Gathering:
    """Walk a folder of class folders and class tars.

    Links are followed, after all that is none; a folder that came already is not entered again, and this is a reject.
    """
    found = Gathering(folder, folder, in_tar=False)
    seen: set[tuple[int, int]] = set()
    links: list[str] = []

    def enter(path: str) -> None:
        entered = Path(folder, path).stat()
        if (entered.st_dev, entered.st_ino) in seen:
            found.add(path, 0, 0, ("duplicate", "leads to a folder that came already"))
            return
        seen.add((entered.st_dev, entered.st_ino))
        with os.scandir(folder / path) as entries:
            ordered = sorted(entries, key=lambda entry: to_bytes(entry.name))
        for entry in ordered:
            name = f"{path}/{entry.name}" if path else entry.name
            if _leads_nowhere(entry):
                found.add(name, 0, 0, ("not a regular file", "a link that leads back to itself"))
            elif entry.is_dir() and entry.is_symlink():
                links.append(name)
            elif entry.is_dir():
                enter(name)
            elif entry.is_file():
                found.add(name, 0, entry.stat().st_size)
            else:
                found.add(name, 0, 0, ("not a regular file", "a broken link, a pipe, a socket or a device"))

    enter("")
    for link in links:  # which grows while they are entered
        enter(link)
    return found


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def gather_list(file: Path) -> Gathering:
    """Read an annotation list: `path label` a line, paths from the list's folder on; a label is a class.

    Where every label is a number they are filled up with zeros, so that the order of classes is that of numbers.
    Raises ValueError for a line that is none.
    """
    found = Gathering(file, file.parent, in_tar=False)
    lines = list(_list_lines(file))
    width = max((len(label) for _, label in lines), default=0) if all(label.isdigit() for _, label in lines) else 0
    for path, label in lines:
        wnid = label.zfill(width)
        try:
            status = (file.parent / path).stat()
        except (FileNotFoundError, NotADirectoryError):
            found.reject(wnid, path, "missing", "there is no such file")
            continue
        if stat.S_ISREG(status.st_mode):
            found.add_loose(wnid, path, 0, status.st_size)
        else:
            found.reject(wnid, path, "not a regular file", "a folder, a pipe, a socket or a device")
    return found


def _list_lines(file: Path) -> Iterable[tuple[str, str]]:
    with file.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, line in enumerate(lines, 1):
            words = line.strip().rsplit(maxsplit=1)
            if not words or line.startswith("#"):
                continue
            if len(words) != 2 or not CLASS_NAME.fullmatch(words[1]) or "\0" in line:
                raise ValueError(
                    f"{file}, line {number}: {readable(line.strip())[:80]!r}; wanted a path and a label (letters, "
                    "digits, '_' and '-'), such as `cats/1.jpg cat`"
                )
            yield words[0], words[1]
