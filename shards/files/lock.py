"""Locks between processes: the kernel's, gone with the process that took them."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable
from pathlib import Path

PATIENCE_S = 10.0  # for a process that is about to end; guessed: a killed run's data workers notice it within 5 s
POLL_S = 0.05

_open_locks: set[FileLock] = set()


class FileLock:
    """A lock on a file or a folder, between processes and between several `FileLock`s in one process.

    It belongs to this process alone: forked processes do not inherit it, so it ends with this process even while they
    live on.

    path: a folder, or a file, which is created where it does not exist.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        flags = os.O_RDONLY if path.is_dir() else os.O_CREAT | os.O_RDWR
        self._descriptor = os.open(path, flags | os.O_CLOEXEC, 0o666)
        _open_locks.add(self)

    def take(self, *, shared: bool, wait: bool = False) -> bool:
        """Take the lock in place of what this object held; return whether that worked. The former hold is gone then."""
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
        """Let go of the lock; it can be taken again."""
        if self._descriptor >= 0:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def release(self) -> None:
        """Let go of the lock for good."""
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

    make:   creates what is to be locked, if need be; it is called again where the former holder removed it.
    output: what the user knows as the output that the lock protects.
    doing:  what the other process is at, for the message.

    Raises ValueError where another process still has it then.
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
