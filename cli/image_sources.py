"""The images that a command line names: files, folders and tars, one after another and never all at once."""

from __future__ import annotations

import gzip
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..preprocess.archive import is_image, named_errors, open_tar, problem_of, readable, walk
from ..training import Source, UnreadableImageError

TARS = (".tar", ".tar.gz", ".tgz")


def image_sources(paths: Iterable[Path]) -> Iterator[Source]:
    """Yield the images of each path in turn.

    A folder gives its image files and those of its tars, and of all folders below, by byte order of their paths. A tar
    gives its images in its own order, and those of tars in it; it is read once, front to back. What is named itself
    counts as an image whatever its suffix. A damaged tar gives the images before the damage, and then itself as one
    that cannot be read.
    """
    for path in paths:
        if path.is_dir():
            for below in walk_folder(path):
                if is_tar(below.name):
                    yield from _of_tar(below)
                elif is_image(below.name):
                    yield Source(_text(below), below)
        elif is_tar(path.name):
            yield from _of_tar(path)
        else:
            yield Source(_text(path), path)


def is_tar(name: str) -> bool:
    """Tell whether a name has the suffix of a tar."""
    return name.lower().endswith(TARS)


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


def _of_tar(path: Path) -> Iterator[Source]:
    try:
        with named_errors(path), _opened(path) as file:
            yield from _members(file, _text(path))
    except ValueError as error:
        yield Source(_text(path), UnreadableImageError(str(error).removeprefix(f"{path}: ")))


def _opened(path: Path) -> BinaryIO | gzip.GzipFile:
    return path.open("rb") if path.name.lower().endswith(".tar") else gzip.open(path)


def _members(file: Any, name: str) -> Iterator[Source]:
    with open_tar(file, "r|") as tar:
        for member in walk(tar):
            inner = f"{name}/{readable(member.name)}"
            if is_image(member.name):
                problem, content = problem_of(member), tar.extractfile(member)
                if problem or content is None:
                    yield Source(inner, UnreadableImageError(": ".join(problem or ["not a regular file"])))
                else:
                    yield Source(inner, content.read())
            elif member.isreg() and is_tar(member.name):
                yield from _members(tar.extractfile(member), inner)


def _text(path: Path) -> str:
    """Return a path as text that can be written."""
    return readable(str(path))
