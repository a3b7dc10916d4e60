"""Recognising what a source holds by the names in it: class tars, class folders, a processed archive, a list."""

from __future__ import annotations

import errno
import logging
import os
import re
import stat
from array import array
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple, TypeAlias

from .archive import (
    DUPLICATE,
    NO_SUFFIX,
    ClassTar,
    Contents,
    Folders,
    Member,
    Reject,
    UselessError,
    class_tar_of,
    from_os,
    ignored_kind,
    is_image,
    not_an_image,
    one_of_each,
    readable,
    to_bytes,
    to_os,
    to_text,
)
from .class_names import class_id, class_labels, class_name
from .label_list import read_list

log = logging.getLogger(__name__)

WNID = re.compile(r"n\d{8}")
# The folders of the official processed archive, and what each holds of the split that it makes.
GIVEN_SPLITS = {"imagenet21k_train": "train", "imagenet21k_val": "val", "imagenet21k_small_classes": "small"}


class Place(NamedTuple):
    """What a folder says of the images in it.

    name:  of their class, as the folder has it; None: none.
    home:  the folder of the class.
    split: that the source puts them in.
    """

    name: str | None
    home: str
    split: str | None


@lru_cache(maxsize=4096)
def place_of(folder: str) -> Place:
    """Return the place that a folder's path names.

    The class is the nearest folder that is called like a wnid, else the innermost one.

    >>> place_of("imagenet21k_val/n01440764")
    Place(name='n01440764', home='imagenet21k_val/n01440764', split='val')
    """
    if not folder:
        return Place(None, "", None)
    parts = folder.split("/")
    at = next((i for i in reversed(range(len(parts))) if WNID.fullmatch(parts[i])), len(parts) - 1)
    split = next((GIVEN_SPLITS[part] for part in parts[:at] if part in GIVEN_SPLITS), None)
    return Place(parts[at], "/".join(parts[: at + 1]), split)


class Membership(NamedTuple):
    """The class that a member belongs to, None where it is of none, and whether the member is its class tar."""

    wnid: str | None
    is_tar: bool


class ClassNames:
    """Finds the class of each member of a source, and keeps the names of those that are not called by their identifier.

    source: named in the error.
    """

    def __init__(self, source: Path) -> None:
        self._source = source
        self.names: dict[str, str] = {}  # by identifier

    def find(self, path: str) -> Membership:
        """Return the class of a member; raises UselessError where its name is not UTF-8."""
        tar_of = class_tar_of(path)
        name = place_of(path.rpartition("/")[0]).name if tar_of is None else tar_of
        try:
            return Membership(None if name is None else self.identify(name), tar_of is not None)
        except ValueError as error:
            raise UselessError(f"{self._source}: {readable(path)}: {error}") from error

    def identify(self, name: str) -> str:
        """Return the identifier of a class of that name; raises ValueError as `class_id`."""
        wnid = class_id(name)
        if name != wnid and wnid not in self.names:
            self.names[wnid] = class_name(name)
        return wnid


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
    rejects: list[Reject] = field(default_factory=list[Reject])
    num_bytes: int = 0
    homes: set[str] = field(default_factory=set[str])  # the folders of this class that make no split
    _others: list[tuple[str, str, str]] = field(default_factory=list[tuple[str, str, str]])  # see `add_other`
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

    def add_other(self, path: str, reason: str, detail: str) -> None:
        """Take in what lies among the images and is none, or cannot be read."""
        self._others.append((path, reason, detail))

    def given_split(self) -> str | None:
        """Return the split in which the source puts the first image."""
        first = self._paths.partition(b"\0")[0]
        return as_member(to_text(bytes(first)), 0, 0).split

    def paths(self) -> list[str]:
        """Return the paths of the images, in the order of the source."""
        return [to_text(path) for path in bytes(self._paths).split(b"\0")[:-1]]

    def all_rejects(self) -> list[Reject]:
        """Return what of the class is no image, or cannot be read."""
        others = (
            Reject(self.wnid, readable(as_member(path, 0, 0).name), reason, detail)
            for path, reason, detail in self._others
        )
        return [*self.rejects, *others]

    @property
    def is_lost(self) -> bool:
        """Whether its folder holds images that cannot be read, and no others."""
        return not len(self) and any(is_image(path) for path, _, _ in self._others)

    def strays(self) -> list[Reject]:
        """Return the same, where this turns out to be no class."""
        return [
            *(reject._replace(wnid=None) for reject in self.rejects),
            *(stray(path, reason, detail) for path, reason, detail in self._others),
        ]

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
        return ((self.holder / to_os(member.path)).read_bytes() for member in wanted)


RawClass: TypeAlias = ClassTar | LooseClass


class Gathering:
    """What a walk over the names of a source finds: its classes, and what can belong to none.

    source: the tar, the folder, or the list that is walked.
    holder: the tar or the folder that paths begin at.
    """

    def __init__(self, source: Path, holder: Path, *, in_tar: bool) -> None:
        self.rejects: list[Reject] = []
        self.ignored: Counter[str] = Counter()  # files by kind, see `ignored_kind`
        self.folders = Folders()
        self._source, self._holder, self._in_tar = source, holder, in_tar
        self._named = ClassNames(source)
        self._tars: dict[str, ClassTar] = {}
        self._loose: dict[str, LooseClass] = {}

    @property
    def names(self) -> dict[str, str]:
        """The names of the classes that are not called by their identifier, by that."""
        return self._named.names

    def add(self, path: str, offset: int, num_bytes: int, problem: tuple[str, str] | None = None) -> None:
        """Take in a member that is no folder; `problem` is reason and detail where it must not be read.

        Raises UselessError for a class whose name is not UTF-8.
        """
        if kind := ignored_kind(path):
            self.ignored[kind] += 1
            return
        self.folders.use(path)
        wnid, is_tar = self._named.find(path)
        if problem and (is_tar or wnid is None):
            self.rejects.append(Reject(None, readable(path), *problem))
        elif problem and wnid is not None:
            self._class(wnid).add_other(path, *problem)
        elif is_tar and wnid is not None:
            self._add_tar(path, wnid, offset, num_bytes)
        else:
            self.add_loose(wnid, path, offset, num_bytes)

    def identify(self, name: str) -> str:
        """Return the identifier of a class of that name, and keep the name; raises ValueError as `class_id`."""
        return self._named.identify(name)

    def _add_tar(self, path: str, wnid: str, offset: int, num_bytes: int) -> None:
        if wnid in self._tars:
            self.rejects.append(Reject(None, readable(path), DUPLICATE, f"{self._tars[wnid].name} came first"))
        else:
            source = self._holder if self._in_tar else self._holder / to_os(path)
            self._tars[wnid] = ClassTar(source, wnid, readable(path), offset, num_bytes)

    def add_loose(self, wnid: str | None, path: str, offset: int, num_bytes: int) -> None:
        """Take in a member that lies by itself; what is no image is a reject of the class that it lies with."""
        if wnid is None:
            self.rejects.append(no_class(path))
            return
        if is_image(path):
            self._class(wnid).add(path, offset, num_bytes)
        else:
            self._class(wnid).add_other(path, *not_an_image(wnid, path)[2:])

    def reject(self, wnid: str, path: str, reason: str, detail: str) -> None:
        """Take in a member of a class that cannot be read."""
        self._class(wnid).rejects.append(Reject(wnid, readable(path), reason, detail))

    def _class(self, wnid: str) -> LooseClass:
        return self._loose.setdefault(wnid, LooseClass(wnid, self._holder, self._in_tar))

    @property
    def has_images(self) -> bool:
        """Whether a class has an image that lies by itself."""
        return any(map(len, self._loose.values()))

    def first_problem(self) -> str:
        """Return why the first member that lies by itself is no image; known ones come last."""
        for loose in self._loose.values():
            return "{0.name}, {0.reason}".format(loose.all_rejects()[0])
        return f"of the kind {next(iter(self.ignored))}, known to be none"

    def classes(self) -> list[RawClass]:
        """Return the classes found, by identifier; a class tar goes before a folder.

        Folders without an image are none, but for those whose images cannot be read. Raises ValueError where there is
        no image.
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
            elif loose.is_lost:
                found[wnid] = loose
            else:
                self.rejects += loose.strays()
        if not self._tars and not any(map(len, self._loose.values())):
            raise no_classes(self._source, [*self.rejects, *(r for e in self._loose.values() for r in e.all_rejects())])
        return [found[wnid] for wnid in sorted(found)]


def beside(path: str, wnid: str) -> Reject:
    """Return the reject of an image whose class also came as a class tar."""
    return Reject(wnid, readable(path), DUPLICATE, f"its class came as {wnid}.tar")


def stray(path: str, reason: str, detail: str) -> Reject:
    """Return the reject of what lies in a folder that turns out to be no class."""
    return Reject(None, readable(path), "no class" if reason == NO_SUFFIX else reason, detail)


def no_class(path: str) -> Reject:
    """Return the reject of a member that belongs to no class."""
    return Reject(None, readable(path), "no class", "neither a class tar (<class>.tar) nor in the folder of a class")


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
        own = folder / to_os(path)
        entered = own.stat()
        if (entered.st_dev, entered.st_ino) in seen:
            found.rejects.append(Reject(None, readable(path), DUPLICATE, "leads to a folder that came already"))
            return
        seen.add((entered.st_dev, entered.st_ino))
        found.folders.add(path)
        with os.scandir(own) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in ordered:
            name = f"{path}/{from_os(entry.name)}" if path else from_os(entry.name)
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
    """Read an annotation list of one label an image (see `read_list`); a label is a class.

    Where every label is a number they are filled up with zeros, so that the order of classes is that of numbers.
    Raises ValueError for a line that is none, and where none of the files listed is an image that exists.
    """
    found = Gathering(file, file.parent, in_tar=False)
    listed = list(read_list(file))
    for number, path, labels in listed:
        if len(labels) != 1:
            have = ",".join(labels) or "no label"
            raise ValueError(
                f"{file}, line {number}: {readable(path)[:80]!r} has {have}; wanted one label an image (`in21k "
                "finetune` takes several; a label that holds a comma needs JSON lines)"
            )
    if not listed:
        raise UselessError(f"{file}: lists nothing; wanted lines of a path and a label, such as `cats/1.jpg cat`")
    class_of = class_labels(label for _, _, (label,) in listed)
    for _, path, (label,) in listed:
        if kind := ignored_kind(path):
            found.ignored[kind] += 1
            continue
        wnid = found.identify(class_of[label])
        try:
            status = (file.parent / to_os(path)).stat()
        except (FileNotFoundError, NotADirectoryError):
            found.reject(wnid, path, "missing", "there is no such file")
            continue
        if stat.S_ISREG(status.st_mode):
            found.add_loose(wnid, path, 0, status.st_size)
        else:
            found.reject(wnid, path, "not a regular file", "a folder, a pipe, a socket or a device")
    if not found.has_images:
        raise UselessError(
            f"{file}: none of the {len(listed):,} files listed is an image that exists (the first: "
            f"{found.first_problem()}); paths begin at the list's own folder"
        )
    return found
