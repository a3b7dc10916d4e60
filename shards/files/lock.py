"""Locks between processes, which the kernel drops when their process ends."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 10.0  # for a process that is about to end; guessed: data workers of a killed run end within 5 s
POLL_S = 0.05

_open_locks: set[FileLock] = set()


class FileLock:
    """A lock on a file or a folder, between processes and between several `FileLock`s in one process.

    Forked processes do not inherit it, so it ends with this process even if they live on.

    path: a folder, or a file, which is created if it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        _open_locks.add(self)

    def take(self, *, shared: bool, wait: bool = False) -> bool:
        """Take the lock; return whether that worked. What this object held before is released either way."""
        try:
            fcntl.flock(self._descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        return True

    @property
    def descriptor(self) -> int:
        """The open file, to read, write or resize it."""
        return self._descriptor

    def is_of(self, path: Path) -> bool:
        """Return whether the locked file is the one that has the name `path` now."""
        try:
            return os.path.samestat(os.fstat(self._descriptor), path.stat())
        except FileNotFoundError:
            return False

    def drop(self) -> None:
        """Release the lock; it can be taken again."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def release(self) -> None:
        """Release the lock and close its file."""
        self.drop()
        self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        _open_locks.discard(self)
        if descriptor >= 0:
            os.close(descriptor)


def _leave_locks_to_the_parent() -> None:
    for lock in list(_open_locks):
        lock._close()  # pyright: ignore[reportPrivateUsage]


os.register_at_fork(after_in_child=_leave_locks_to_the_parent)


def lock_output(path: Path, output: Path, doing: str, make: Callable[[], object] = lambda: None) -> FileLock:
    """Return the exclusive lock on `path`, waiting `PATIENCE_S` for another process to end.

    make:   creates what is to be locked if needed; called again if the former holder removed it.
    output: the output that the lock protects, for the message.
    doing:  what the other process does, for the message.

    Raises ValueError if another process still holds it then.
    """
    end = time.monotonic() + PATIENCE_S
    while True:
        make()
        lock = FileLock(path)
        while not (taken := lock.take(shared=False)) and time.monotonic() < end:
            time.sleep(POLL_S)
        if taken and lock.is_of(path):
            return lock
        lock.release()
        if not taken:
            raise ValueError(f"{output}: another in21k is {doing}; wait for it, or give another name")
