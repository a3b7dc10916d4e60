"""A folder of bounded size for what was fetched, which processes share: what was used longest ago goes first.

    <folder>/room.lock                              held while room is made
    <folder>/place-0.lock, place-1.lock, ...        held by one of those each that have a data set open
    <folder>/<data set>.lock                        held, shared, by whoever has the data set open
    <folder>/<data set>/train/<shard>.tar           appears whole
    <folder>/<data set>/train/<shard>.tar.lock      held by its one writer, or shared by those who need the shard

All locks are the kernel's and go with the process that held them. A file that is written has its whole size from the
beginning, so that others see the room it takes; one whose writer was killed has nobody's lock, and is removed.
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
    """Return where the lock of a file or folder lies: beside it."""
    return path.with_name(path.name + LOCK)


def aside_path(path: Path) -> Path:
    """Return where a file is written before it gets its name."""
    return path.with_name(path.name + TEMPORARY)


def check_no_link(path: Path, folder: Path) -> None:
    """Raise ValueError where a path below a folder leads through a symbolic link, and so may lead out of it."""
    for part in (path, *path.parents):
        if part == folder:
            return
        if part.is_symlink():
            raise ValueError(f"{part}: is a link; the cache {folder} holds none of its own: remove it")
    raise ValueError(f"{path}: does not lie in {folder}")


def whole_path(path: Path) -> Path:
    """Return where a file lies once it has its name."""
    return path.with_suffix("") if path.suffix == TEMPORARY else path


class _File(NamedTuple):
    """A file of the cache: when it was used last, in ns, its bytes, and where it lies."""

    used: int
    num_bytes: int
    path: Path


class Cache:
    """Files that others' files are fetched to; see above.

    folder:     made where it does not exist; nothing but the cache may lie in it.
    max_bytes:  of all that lies there, whichever process put it there.
    """

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        folder.mkdir(parents=True, exist_ok=True)

    @classmethod
    def from_environment(cls) -> Cache:
        """Open the cache in IN21K_CACHE, or in the user's cache folder, of IN21K_CACHE_BYTES; raises ValueError."""
        base = os.environ.get(FOLDER) or Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "in21k"
        given = os.environ.get(BYTES) or str(DEFAULT_BYTES)
        try:
            max_bytes = int(float(given))
        except (ValueError, OverflowError):
            max_bytes = 0
        if max_bytes < 1:
            raise ValueError(f"{BYTES} is {given!r}; wanted a number of bytes, like 64e9")
        return cls(Path(base) / "remote-shards", max_bytes)

    def reserve(self, path: Path, num_bytes: int) -> bool:
        """Make a file of `num_bytes` to be overwritten; False where what is in use leaves no room. Raises OSError."""
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
        """Take the first free place in the line of those that share the cache, as long as the lock is held."""
        for place in count():
            lock = FileLock(self._place_path(place))
            if lock.take(shared=False):
                return place, lock
            lock.release()
        raise AssertionError("places are without end")

    def num_behind(self, place: int) -> int:
        """Return how many of the next places in the line are taken, three at most."""
        return sum(map(_is_taken, map(self._place_path, range(place + 1, place + 4))))

    def _place_path(self, place: int) -> Path:
        return self.folder / f"place-{place}{LOCK}"

    def free_bytes(self) -> int:
        """Return what the disk has free."""
        return shutil.disk_usage(self.folder).free

    def used_bytes(self) -> int:
        """Return what the cache holds."""
        return sum(file.num_bytes for file in self._files())

    def _data_sets(self) -> list[Path]:
        return sorted(path for path in self.folder.iterdir() if path.is_dir())

    def _files(self) -> Iterator[_File]:
        for path in self.folder.rglob("*"):
            for name in (path, whole_path(path)):  # another process may have given it its name meanwhile, or removed it
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
    """Remove a file that nobody needs or writes; return whether that went."""
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
    """Remove a data set that nobody has open; return the bytes that it had."""
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
