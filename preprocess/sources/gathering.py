"""Collect the classes of a source, whatever its layout, from the names of its members."""

from __future__ import annotations

import errno
import logging
import os
import stat
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from .archive import ClassTar
from .class_names import class_id, class_labels, class_name
from .folders import TRAIN_FOLDER, ClassFolder, Layout, check_class_tars, class_of_folder, read_layout
from .label_list import read_list
from .layouts import LooseClass, RawClass
from .members import (
    DUPLICATE,
    NO_SUFFIX,
    Folders,
    Reject,
    UselessError,
    class_tar_of,
    from_os,
    ignored_kind,
    readable,
    to_os,
)

log = logging.getLogger(__name__)


class Gathering:
    """Collects the members of a source; returns its classes, and the members that belong to none.

    source: the tar, the folder, or the list.
    holder: the tar or the folder that paths begin at.
    """

    def __init__(self, source: Path, holder: Path, *, in_tar: bool) -> None:
        self.rejects: list[Reject] = []
        self.ignored: Counter[str] = Counter()  # number of files of each `ignored_kind`
        self.folders = Folders()
        self.names: dict[str, str] = {}  # of the classes whose name is not their identifier
        self._source, self._holder, self._in_tar = source, holder, in_tar
        self._tars: dict[str, ClassTar] = {}
        self._tar_folders: set[str] = set()
        self._in_folders: dict[str, LooseClass] = {}  # by folder, until the layout is known
        self._loose: dict[str, LooseClass] = {}

    def add(self, path: str, offset: int, num_bytes: int, problem: tuple[str, str] | None = None) -> None:
        """Add a member that is not a folder; `problem` is reason and detail where it must be rejected.

        Raises UselessError for a class tar whose name is not UTF-8.
        """
        if kind := ignored_kind(path):
            self.ignored[kind] += 1
            return
        self.folders.use(path)
        if class_tar_of(path) is None:
            folder = path.rpartition("/")[0]
            loose = self._in_folders.setdefault(folder, LooseClass("", self._holder, self._in_tar))
            loose.take_in(path, offset, num_bytes, problem)
        elif problem:
            self.rejects.append(Reject(None, readable(path), *problem))
        else:
            self._add_tar(path, offset, num_bytes)

    def identify(self, name: str, path: str) -> str:
        """Return the identifier of a class name, and record the name; see the function `identify`."""
        return identify(name, self.names, f"{self._source}: {readable(path)}")

    def _add_tar(self, path: str, offset: int, num_bytes: int) -> None:
        self._tar_folders.add(path.rpartition("/")[0])
        wnid = self.identify(class_tar_of(path) or "", path)
        if wnid in self._tars:
            self.rejects.append(Reject(None, readable(path), DUPLICATE, f"{self._tars[wnid].name} came first"))
        else:
            source = self._holder if self._in_tar else self._holder / to_os(path)
            self._tars[wnid] = ClassTar(source, wnid, readable(path), offset, num_bytes)

    def add_listed(self, wnid: str, path: str, num_bytes: int) -> None:
        """Add a file that a list puts into a class."""
        self._class(wnid).take_in(path, 0, num_bytes)

    def reject(self, wnid: str, path: str, reason: str, detail: str) -> None:
        """Add a listed file that cannot be read."""
        self._class(wnid).rejects.append(Reject(wnid, readable(path), reason, detail))

    def _class(self, wnid: str) -> LooseClass:
        return self._loose.setdefault(wnid, LooseClass(wnid, self._holder, self._in_tar))

    @property
    def has_images(self) -> bool:
        """Whether a class has an image outside class tars."""
        return any(map(len, self._loose.values()))

    def first_problem(self) -> str:
        """Describe the first member outside class tars that is not an image; ignored files come last."""
        for loose in self._loose.values():
            return "{0.name}, {0.reason}".format(loose.all_rejects()[0])
        return f"of the kind {next(iter(self.ignored))}, which is ignored"

    @cached_property
    def layout(self) -> Layout:
        """How the folders are read; raises UselessError as `layout_of`."""
        with_images = [folder for folder, loose in self._in_folders.items() if len(loose) or loose.is_lost]
        return layout_of(self._source, with_images, self._tar_folders)

    @property
    def tar_names(self) -> list[str]:
        """The names of the class tars."""
        return [tar.name for tar in self._tars.values()]

    def class_folders(self) -> Iterator[tuple[str, ClassFolder, LooseClass]]:
        """Yield each class folder, its class and split, and its members; members of other folders become rejects."""
        for folder, loose in self._in_folders.items():
            place = class_of_folder(folder, self.layout)
            if unused := self.layout.unused_of(folder):
                self.ignored[f"{unused}/"] += loose.num_members
            elif place.name is None:
                self.rejects += loose.outside()
            else:
                loose.layout = self.layout
                yield folder, place, loose
        self._in_folders.clear()

    def classes(self) -> list[RawClass]:
        """Return the classes in the order of identifiers. Where a class has a class tar, its folders are duplicates.

        A folder with images is a class, also where none of them can be read. Raises ValueError for a source without
        images.
        """
        for _, place, loose in self.class_folders():
            self._class(self.identify(place.name or "", place.home)).merge(loose, place)
        classes: dict[str, RawClass] = dict(self._tars)
        for wnid, loose in self._loose.items():
            if wnid in self._tars:
                duplicates = [beside(path, wnid) for path in loose.paths()]
                classes[wnid] = replace(self._tars[wnid], rejects=(*loose.all_rejects(), *duplicates))
            elif len(loose) or loose.is_lost:
                classes[wnid] = loose
                if len(loose) and len(loose.homes) > 1:
                    log.warning(
                        "%s: the images of %d folders become one class, for example %s and %s",
                        *(wnid, len(loose.homes), *sorted(loose.homes)[:2]),
                    )
            else:
                self.rejects += loose.strays()
        if not self._tars and not self.has_images:
            raise no_classes(
                self._source, [*self.rejects, *(r for loose in self._loose.values() for r in loose.all_rejects())]
            )
        return [classes[wnid] for wnid in sorted(classes)]


def identify(name: str, names: dict[str, str], where: str) -> str:
    """Return the identifier of a class name; a name that differs from it is recorded in `names`.

    Raises UselessError, beginning with `where`, for a name that is not UTF-8.
    """
    try:
        wnid = class_id(name)
    except ValueError as error:
        raise UselessError(f"{where}: {error}") from error
    if name != wnid and wnid not in names:
        names[wnid] = class_name(name)
    return wnid


def layout_of(source: Path | str, folders: Collection[str], tar_folders: Collection[str]) -> Layout:
    """Return how a source's folders are read; see `read_layout`.

    folders:     those that hold images.
    tar_folders: those that hold class tars.

    Raises UselessError for split folders that hold class tars, or images in no class folder.
    """
    try:
        if tar_folders:
            check_class_tars([*tar_folders, *folders])
        return read_layout(folders)
    except ValueError as error:
        raise UselessError(f"{source}: {error}") from error


def log_split(source: Path | str, layout: Layout) -> None:
    """Log which folders are read as splits, and which are ignored."""
    if layout.val is not None:
        log.warning("%s: reading its folders %s/ and %s/ as splits", source, TRAIN_FOLDER, layout.val)
    for name in layout.unused:
        log.warning("%s: ignoring its folder %s/", source, name)


def beside(path: str, wnid: str) -> Reject:
    """Return the reject of an image whose class also has a class tar."""
    return Reject(wnid, readable(path), DUPLICATE, f"its class came as {wnid}.tar")


def no_classes(source: Path | str, rejects: Sequence[Reject]) -> UselessError:
    """Return the error for a source without classes."""
    content = f"its first member is {rejects[0].name}" if rejects else "it is empty"
    if rejects and rejects[0].reason not in ("no class", NO_SUFFIX):
        content += f": {rejects[0].reason}, {rejects[0].detail}"
    return UselessError(
        f"{source}: holds no classes ({content}); wanted members such as n01440764.tar or n01440764/n01440764_26.JPEG"
    )


def gather_folder(folder: Path) -> Gathering:
    """Walk a folder of class folders and class tars.

    Links to folders are followed last. A link to a folder that was entered before is a reject.
    """
    gathering = Gathering(folder, folder, in_tar=False)
    seen: set[tuple[int, int]] = set()
    links: list[str] = []

    def enter(path: str) -> None:
        own = folder / to_os(path)
        entered = own.stat()
        if (entered.st_dev, entered.st_ino) in seen:
            gathering.rejects.append(Reject(None, readable(path), DUPLICATE, "a link to a folder that was read before"))
            return
        seen.add((entered.st_dev, entered.st_ino))
        gathering.folders.add(path)
        with os.scandir(own) as entries:
            ordered = sorted(entries, key=lambda entry: os.fsencode(entry.name))
        for entry in ordered:
            name = f"{path}/{from_os(entry.name)}" if path else from_os(entry.name)
            if _leads_nowhere(entry):
                gathering.add(name, 0, 0, ("not a regular file", "a link that leads back to itself"))
            elif entry.is_dir() and entry.is_symlink():
                links.append(name)
            elif entry.is_dir():
                enter(name)
            elif entry.is_file():
                gathering.add(name, 0, entry.stat().st_size)
            else:
                gathering.add(name, 0, 0, ("not a regular file", "a broken link, a pipe, a socket or a device"))

    enter("")
    for link in links:  # entering one may add others
        enter(link)
    return gathering


def _leads_nowhere(entry: os.DirEntry[str]) -> bool:
    try:
        entry.is_dir()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return True
    return False


def gather_list(file: Path) -> Gathering:
    """Read an annotation list of one label an image (see `read_list`); each label is a class (see `class_labels`).

    Raises ValueError for a line that cannot be read, and where none of the listed files is an image that exists.
    """
    gathering = Gathering(file, file.parent, in_tar=False)
    lines = list(read_list(file))
    for number, path, labels in lines:
        if len(labels) != 1:
            have = ",".join(labels) or "no label"
            raise ValueError(
                f"{file}, line {number}: {readable(path)[:80]!r} has {have}; wanted one label an image (`in21k "
                "finetune` takes several; a label that holds a comma needs JSON lines)"
            )
    if not lines:
        raise UselessError(f"{file}: lists nothing; wanted lines of a path and a label, such as `cats/1.jpg cat`")
    class_of = class_labels(label for _, _, (label,) in lines)
    for _, path, (label,) in lines:
        if kind := ignored_kind(path):
            gathering.ignored[kind] += 1
            continue
        wnid = gathering.identify(class_of[label], path)
        try:
            status = (file.parent / to_os(path)).stat()
        except (FileNotFoundError, NotADirectoryError):
            gathering.reject(wnid, path, "missing", "the file does not exist")
            continue
        if stat.S_ISREG(status.st_mode):
            gathering.add_listed(wnid, path, status.st_size)
        else:
            gathering.reject(wnid, path, "not a regular file", "a folder, a pipe, a socket or a device")
    if not gathering.has_images:
        raise UselessError(
            f"{file}: none of the {len(lines):,} listed files is an image that exists (the first: "
            f"{gathering.first_problem()}); paths begin at the list's own folder"
        )
    return gathering
