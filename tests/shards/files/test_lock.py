from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from in21k.shards.files.lock import FileLock, lock_output

# Takes a lock, forks a process that outlives it, says so, and waits to be killed.
HOLDER = """
import os, sys, time
from pathlib import Path
from in21k.shards.files.lock import FileLock
assert FileLock(Path(sys.argv[1])).take(shared=False)
if os.fork() == 0:
    os.write(1, b"up")
time.sleep(3600)
"""


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_a_lock_ends_with_its_process_though_forked_ones_live_on(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "lock"
    if kind == "folder":
        path.mkdir()
    with subprocess.Popen([sys.executable, "-c", HOLDER, path], stdout=subprocess.PIPE, process_group=0) as holder:
        assert holder.stdout is not None
        assert holder.stdout.read(2) == b"up"
        lock = FileLock(path)
        assert not lock.take(shared=False)
        holder.kill()
        holder.wait()
        taken = lock.take(shared=False)
        os.killpg(holder.pid, signal.SIGKILL)  # raises unless the forked one was there
    assert taken
    lock.release()


def test_two_locks_of_one_process_exclude_each_other(tmp_path: Path) -> None:
    first, second = FileLock(tmp_path / "lock"), FileLock(tmp_path / "lock")
    assert first.take(shared=True)
    assert second.take(shared=True)
    assert not second.take(shared=False)
    first.release()
    assert second.take(shared=False)
    second.release()


def test_an_output_is_waited_for_before_it_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = lock_output(tmp_path, tmp_path, "at work")
    with pytest.raises(ValueError, match=r"another in21k is at work; wait for it"):
        lock_output(tmp_path, tmp_path, "at work")
    monkeypatch.setattr("in21k.shards.files.lock.PATIENCE_S", 600.0)
    polled = threading.Event()
    monkeypatch.setattr("time.sleep", lambda _: (polled.set(), held.release()))
    lock_output(tmp_path, tmp_path, "at work").release()
    assert polled.is_set()


def test_a_lock_that_its_holder_removed_is_taken_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever waited for the old file would hold a lock that no later process meets."""
    path = tmp_path / "lock"
    held = lock_output(path, tmp_path, "at work")
    monkeypatch.setattr("in21k.shards.files.lock.PATIENCE_S", 600.0)
    monkeypatch.setattr("time.sleep", lambda _: (path.unlink(missing_ok=True), held.release()))
    lock = lock_output(path, tmp_path, "at work")
    assert lock.is_of(path)
    lock.release()
