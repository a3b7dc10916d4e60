"""The images that a command line names: files, folders and tars, one after another and never all at once."""

from __future__ import annotations

import gzip
import os
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ..preprocess.sources.archive import Forward, named_errors, open_tar, walk
from ..preprocess.sources.members import from_os, ignored_kind, is_image, problem_of, readable
from ..training.inference.images import UnreadableImageError
from ..training.inference.reading import Source
from .terminal import in_one_line

PLAIN_TAR = ".tar"
TARS = (PLAIN_TAR, ".tar.gz", ".tgz")


class OtherFiles:
    """Counts the files that are passed over, as they are no images by their names."""

    def __init__(self) -> None:
        self._suffixes: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Another one."""
        self._suffixes[PurePosixPath(name).suffix.lower()] += 1

    def __str__(self) -> str:
        """Return how many there were, and their commonest suffixes; nothing for none."""
        count = self._suffixes.total()
        if not count:
            return ""
        commonest = sorted(self._suffixes.items(), key=lambda each: (-each[1], each[0]))[:3]
        named = [f"{suffix or 'no suffix'} {number:,}" for suffix, number in commonest]
        more = ", ..." if len(self._suffixes) > len(named) else ""
        return in_one_line(f"{count:,} {'file' if count == 1 else 'files'} ({', '.join(named)}{more})")


def image_sources(paths: Iterable[Path], others: OtherFiles | None = None) -> Iterator[Source]:
    """Yield the images of each path in turn.

    A folder gives its image files and those of its tars, and of all folders below, by byte order of their paths. A tar
    gives its images in its own order, and those of tars in it; it is read once, front to back. What is named itself
    counts as an image whatever its suffix. A damaged tar gives the images before the damage, and then itself as one
    that cannot be read; a member of a tar that is a link, too, cannot be read.

    others: told of the files, and members of tars, that are no images by their names.
    """
    others = others or OtherFiles()
    for path, is_taken in _files(paths):
        if not is_taken:
            others.add(path.name)
        elif is_tar(path.name):
            yield from _of_tar(path, others)
        else:
            yield Source(_text(path), path)


class Ahead(NamedTuple):
    """How many images there are outside of tars, and how many tars."""

    num_images: int
    num_tars: int


def count_ahead(paths: Iterable[Path]) -> Ahead:
    """Count by their names what `image_sources` will go through; nothing is opened."""
    num_images = num_tars = 0
    for path, is_taken in _files(paths):
        num_tars += is_taken and is_tar(path.name)
        num_images += is_taken and not is_tar(path.name)
    return Ahead(num_images, num_tars)


def is_tar(name: str) -> bool:
    """Tell whether a name has the suffix of a tar."""
    return name.lower().endswith(TARS)


@contextmanager
def own_limit() -> Generator[None]:
    """Let our own limit on an image's pixels decide alone: Pillow warns of some that lie below it."""
    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        yield


def walk_folder(folder: Path, above: tuple[tuple[int, int], ...] = ()) -> Iterator[Path]:
    """Yield the files below a folder by byte order of their paths; a link that leads back up is not followed."""
    status = folder.stat()
    own = (status.st_dev, status.st_ino)
    if own in above:
        return
    with os.scandir(folder) as entries:
        names = sorted(os.fsencode(entry.name) + (b"/" if entry.is_dir() else b"") for entry in entries)
    for name in names:
        if name.endswith(b"/"):
            yield from walk_folder(folder / os.fsdecode(name[:-1]), (*above, own))
        else:
            yield folder / os.fsdecode(name)


def _files(paths: Iterable[Path]) -> Iterator[tuple[Path, bool]]:
    """Yield the files that are named, and those of folders; with each whether it is taken for images."""
    for path in paths:
        if path.is_dir():
            yield from ((below, _is_taken(below.relative_to(path).as_posix())) for below in walk_folder(path))
        else:
            yield path, True


def _is_taken(name: str) -> bool:
    """Tell whether what lies in a folder or a tar is an image or a tar by its name."""
    return (is_image(name) or is_tar(name)) and not ignored_kind(name)


def _of_tar(path: Path, others: OtherFiles) -> Iterator[Source]:
    name = _text(path)
    try:
        with path.open("rb") as file:
            yield from _up_to_damage(file, name, others)
    except OSError as error:
        yield Source(name, UnreadableImageError(error.strerror or str(error)))


def _up_to_damage(file: Any, name: str, others: OtherFiles) -> Iterator[Source]:
    """Yield the images of an open tar of that name, and where it is damaged itself, as one that cannot be read."""
    try:
        with named_errors(Path(name)):
            yield from _members(file if name.lower().endswith(PLAIN_TAR) else gzip.GzipFile(fileobj=file), name, others)
    except ValueError as error:
        yield Source(name, UnreadableImageError(str(error).removeprefix(f"{Path(name)}: ")))


def _members(file: Any, name: str, others: OtherFiles) -> Iterator[Source]:
    with open_tar(Forward(file)) as tar:
        for member in walk(tar):
            inner = f"{name}/{readable(member.name)}"
            if not _is_taken(member.name):
                others.add(member.name)
            elif problem := problem_of(member):
                yield Source(inner, UnreadableImageError(": ".join(problem)))
            elif is_tar(member.name):
                yield from _up_to_damage(tar.extractfile(member), inner, others)
            else:
                content = tar.extractfile(member)
                assert content is not None
                yield Source(inner, content.read())


def _text(path: Path) -> str:
    """Return a path as text that can be written."""
    return readable(from_os(str(path)))
