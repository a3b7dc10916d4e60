"""A cache folder of bounded size that processes share; the least recently used files are removed first.

    <folder>/room.lock                              held while room is made
    <folder>/place-0.lock, place-1.lock, ...        each held by one process that has a data set open
    <folder>/<data set>.lock                        shared by all that have the data set open
    <folder>/<data set>/train/<shard>.tar           appears whole
    <folder>/<data set>/train/<shard>.tar.lock      held by its writer, or shared by its readers

The kernel holds all locks and drops them when their process ends. A file gets its full size before it is written, so
that other processes count the space it takes. If its writer is killed, the file is no longer locked and gets removed.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path
from typing import NamedTuple

from ..files.atomic import TEMPORARY
from ..files.lock import FileLock

FOLDER, BYTES = "IN21K_CACHE", "IN21K_CACHE_BYTES"
DEFAULT_BYTES = 64_000_000_000  # guessed: two windows of shards of 21K-P take 7.7 GB, the whole of it 290 GB
LOCK = ".lock"


def lock_path(path: Path) -> Path:
    """Return the path of the lock of a file or folder, beside it."""
    return path.with_name(path.name + LOCK)


def aside_path(path: Path) -> Path:
    """Return the temporary path of a file while it is written."""
    return path.with_name(path.name + TEMPORARY)


def check_no_link(path: Path, folder: Path) -> None:
    """Raise ValueError for a path below a folder that has a symbolic link in it, which may lead out of the folder."""
    for part in (path, *path.parents):
        if part == folder:
            return
        if part.is_symlink():
            raise ValueError(f"{part}: is a link, and the cache {folder} makes no links; remove it")
    raise ValueError(f"{path}: does not lie in {folder}")


def whole_path(path: Path) -> Path:
    """Return the final path of a file."""
    return path.with_suffix("") if path.suffix == TEMPORARY else path


class _File(NamedTuple):
    """A file of the cache: the time of its last use in ns, its size in bytes, and its path."""

    used: int
    num_bytes: int
    path: Path


class Cache:
    """The cache folder; see above.

    folder:     created if it does not exist; it may hold nothing but the cache.
    max_bytes:  of all its files, whichever process wrote them.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls) -> Cache:
        """Open the cache in IN21K_CACHE, or in the user's cache folder, of IN21K_CACHE_BYTES; raises ValueError."""
        base = os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "in21k"
        value = os.environ.get(BYTES) or str(DEFAULT_BYTES)
        try:
            max_bytes = int(float(value))
        except (ValueError, OverflowError):
            max_bytes = 0
        if max_bytes < 1:
            raise ValueError(f"{BYTES} is {value!r}; wanted a number of bytes, like 64e9")
        return cls(Path(base) / "remote-shards", max_bytes)

    def reserve(self, path: Path, num_bytes: int) -> bool:
        """Make a file of `num_bytes` to be overwritten; False if the files in use leave no room. Raises OSError."""
        lock = FileLock(self.folder / f"room{LOCK}")
        lock.take(shared=False, wait=True)
        try:
            if not self._make_room(num_bytes):
                return False
            with path.open("wb") as file:
                if num_bytes:
                    os.posix_fallocate(file.fileno(), 0, num_bytes)
            return True
        finally:
            lock.release()

    def _make_room(self, num_bytes: int) -> bool:
        files = sorted(self._files())
        used = sum(file.num_bytes for file in files)
        room = min(self.max_bytes - used, self.free_bytes()) - num_bytes
        for file in files:
            leftover = file.path.suffix == TEMPORARY
            if (leftover or (file.path.suffix == ".tar" and room < 0)) and _removed(file.path):
                room += file.num_bytes
        for folder in self._data_sets() if room < 0 else ():
            room += _removed_folder(folder)
        return room >= 0

    def take_place(self) -> tuple[int, FileLock]:
        """Take the first free place among the processes that share the cache, until the lock is released."""
        for place in count():
            lock = FileLock(self._place_path(place))
            if lock.take(shared=False):
                return place, lock
            lock.release()
        raise AssertionError("places are without end")

    def num_behind(self, place: int) -> int:
        """Return how many of the next three places are taken."""
        return sum(map(_is_taken, map(self._place_path, range(place + 1, place + 4))))

    def _place_path(self, place: int) -> Path:
        return self.folder / f"place-{place}{LOCK}"

    def free_bytes(self) -> int:
        """Return the free bytes of the disk."""
        return shutil.disk_usage(self.folder).free

    def used_bytes(self) -> int:
        """Return the bytes of all files in the cache."""
        return sum(file.num_bytes for file in self._files())

    def _data_sets(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir())

    def _files(self) -> Iterator[_File]:
        for path in self.folder.rglob("*"):
            for name in (path, whole_path(path)):  # another process may rename or remove it meanwhile
                with suppress(FileNotFoundError):
                    status = name.stat()
                    if stat.S_ISREG(status.st_mode) and name.suffix != LOCK:
                        yield _File(status.st_mtime_ns, status.st_size, name)
                    break


def _is_taken(path: Path) -> bool:
    if not path.exists():
        return False
    lock = FileLock(path)
    try:
        return not lock.take(shared=True)
    finally:
        lock.release()


def _removed(path: Path) -> bool:
    """Remove a file that no process reads or writes; return whether it was removed."""
    whole = whole_path(path)
    if not lock_path(whole).exists():
        return False  # no file of ours
    lock = FileLock(lock_path(whole))
    try:
        if not lock.take(shared=False):
            return False
        path.unlink(missing_ok=True)
        return True
    finally:
        lock.release()


def _removed_folder(folder: Path) -> int:
    """Remove a data set that no process has open; return its size in bytes."""
    if not lock_path(folder).exists():
        return 0
    lock = FileLock(lock_path(folder))
    try:
        if not lock.take(shared=False):
            return 0
        num_bytes = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        shutil.rmtree(folder)
        return num_bytes
    finally:
        lock.release()
