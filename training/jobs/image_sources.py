"""The images in files, folders and tars, one after another and never all at once."""

from __future__ import annotations

import gzip
import os
import warnings
from collections import Counter
from collections.abc import Generator, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from ...preprocess.sources.archive import Forward, named_errors, open_tar, walk
from ...preprocess.sources.members import from_os, ignored_kind, is_image, problem_of, readable
from ..inference.images import UnreadableImageError
from ..inference.reading import Source

PLAIN_TAR = ".tar"
TARS = (PLAIN_TAR, ".tar.gz", ".tgz")


class SkippedFiles:
    """Counts the files that are skipped, as their names are not those of images."""

    def __init__(self) -> None:
        self._suffixes: Counter[str] = Counter()

    def add(self, name: str) -> None:
        """Count a file by its suffix."""
        self._suffixes[PurePosixPath(name).suffix.lower()] += 1

    def __str__(self) -> str:
        """Return how many files were skipped, and their commonest suffixes; empty for none."""
        count = self._suffixes.total()
        if not count:
            return ""
        commonest = sorted(self._suffixes.items(), key=lambda item: (-item[1], item[0]))[:3]
        named = [f"{suffix or 'no suffix'} {number:,}" for suffix, number in commonest]
        more = ", ..." if len(self._suffixes) > len(named) else ""
        return f"{count:,} {'file' if count == 1 else 'files'} ({', '.join(named)}{more})"


def image_sources(paths: Iterable[Path], skipped: SkippedFiles | None = None) -> Iterator[Source]:
    """Yield the images of each path in turn.

    A folder gives its image files, those of its tars, and those of all folders below, by byte order of their paths. A
    tar gives its images in its own order, and those of tars in it; it is read once, front to back. A path in `paths`
    counts as an image whatever its suffix. A damaged tar gives the images before the damage, and then itself as
    unreadable; links in a tar are unreadable too.

    skipped: counts the files, and members of tars, whose names are not those of images.
    """
    skipped = skipped or SkippedFiles()
    for path, is_taken in _files(paths):
        if not is_taken:
            skipped.add(path.name)
        elif is_tar(path.name):
            yield from _of_tar(path, skipped)
        else:
            yield Source(_text(path), path)


class SourceCounts(NamedTuple):
    """The numbers of images outside of tars, and of tars."""

    num_images: int
    num_tars: int


def count_sources(paths: Iterable[Path]) -> SourceCounts:
    """Count what `image_sources` will yield, by the names of files; nothing is opened."""
    num_images = num_tars = 0
    for path, is_taken in _files(paths):
        num_tars += is_taken and is_tar(path.name)
        num_images += is_taken and not is_tar(path.name)
    return SourceCounts(num_images, num_tars)


def is_tar(name: str) -> bool:
    """Return whether a name has the suffix of a tar."""
    return name.lower().endswith(TARS)


@contextmanager
def own_limit() -> Generator[None]:
    """Silence Pillow's warning of large images, some of which lie below our own limit."""
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
    """Yield the files among the paths, and those of folders, each with whether images are read from it."""
    for path in paths:
        if path.is_dir():
            yield from ((below, _is_taken(below.relative_to(path).as_posix())) for below in walk_folder(path))
        else:
            yield path, True


def _is_taken(name: str) -> bool:
    """Return whether the name of a file in a folder or a tar is that of an image or a tar."""
    return (is_image(name) or is_tar(name)) and not ignored_kind(name)


def _of_tar(path: Path, skipped: SkippedFiles) -> Iterator[Source]:
    name = _text(path)
    try:
        with path.open("rb") as file:
            yield from _up_to_damage(file, name, skipped)
    except OSError as error:
        yield Source(name, UnreadableImageError(error.strerror or str(error)))


def _up_to_damage(file: Any, name: str, skipped: SkippedFiles) -> Iterator[Source]:
    """Yield the images of an open tar, and where it is damaged, the tar itself as unreadable."""
    try:
        with named_errors(Path(name)):
            yield from _members(
                file if name.lower().endswith(PLAIN_TAR) else gzip.GzipFile(fileobj=file), name, skipped
            )
    except ValueError as error:
        yield Source(name, UnreadableImageError(str(error).removeprefix(f"{Path(name)}: ")))


def _members(file: Any, name: str, skipped: SkippedFiles) -> Iterator[Source]:
    with open_tar(Forward(file)) as tar:
        for member in walk(tar):
            inner = f"{name}/{readable(member.name)}"
            if not _is_taken(member.name):
                skipped.add(member.name)
            elif problem := problem_of(member):
                yield Source(inner, UnreadableImageError(": ".join(problem)))
            elif is_tar(member.name):
                yield from _up_to_damage(tar.extractfile(member), inner, skipped)
            else:
                content = tar.extractfile(member)
                assert content is not None
                yield Source(inner, content.read())


def _text(path: Path) -> str:
    """Return a path as text that can be written."""
    return readable(from_os(str(path)))
