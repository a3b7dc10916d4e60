"""Batches from worker processes; a dead worker and full shared memory raise errors instead of hanging."""

from __future__ import annotations

import errno
import gc
import os
import signal
from collections.abc import Generator
from multiprocessing.connection import wait
from typing import Any

from torch import Tensor
from torch.utils.data._utils import signal_handling

from ..machine import describe_shared_memory

WAYS_OUT = (
    "give the container more (`docker run --shm-size=8g`), or take another backend (dali_gpu, dali_cpu, opencv), fewer "
    "workers or a smaller batch_size"
)
DEATH_S = 1.0  # after a broken connection, until the worker's exit code is known (guessed)


class SharedMemoryError(OSError):
    """Shared memory has no room for a batch; the message tells its size and what to do."""


def in_shared_memory(images: Tensor) -> Tensor:
    """Move a worker's batch to memory that the main process can read; raises SharedMemoryError.

    The queue would do so itself, in a thread that drops what does not fit: the main process would wait for ever.
    """
    try:
        return images.share_memory_()
    except RuntimeError as error:
        raise _lack(f"a batch of {images.nbytes / 1e6:,.0f} MB, two for each worker", str(error)) from error


def _lack(wanted: str, reason: str) -> SharedMemoryError:
    reason = reason.partition("\n")[0].rpartition(": ")[2]
    return SharedMemoryError(
        f"shared memory has no room for {wanted} ({reason}): {describe_shared_memory()}; {WAYS_OUT}"
    )


def from_workers(loader: Any) -> Generator[Any]:
    """Yield the results of a torch DataLoader's worker processes, in order; raise results that are exceptions.

    Raises ChildProcessError if a worker died, SharedMemoryError if shared memory lacks room for their queues.
    """
    # Workers are forked: the first batch takes 0.4 s, against 4.6 s from a fork server (0.5 s once it runs) and 7 s
    # spawned; a script needs no `if __name__ == "__main__"`; and the split's arrays are shared. They must find no dead
    # object to collect: a DALI pipeline, for one, waits for threads they lack.
    gc.collect()
    try:
        running: Any = iter(loader)
    except OSError as error:  # their queues' locks are files in /dev/shm
        raise _lack("the queues of worker processes", os.strerror(error.errno or errno.ENOSPC)) from error
    workers = getattr(running, "_workers", [])
    if workers:
        # Or torch would raise for a dead worker wherever the main process happens to be; nothing public turns that off.
        signal_handling._remove_worker_pids(id(running))  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]
        running._worker_pids_set = False
    try:
        while True:
            try:
                result = next(running)
            except StopIteration:
                return
            except (RuntimeError, OSError, EOFError) as error:
                if codes := _exit_codes(workers):
                    raise _death(codes[0]) from error
                raise
            if isinstance(result, Exception):
                raise result
            yield result
    finally:
        if workers:
            running._shutdown_workers()


def _exit_codes(workers: list[Any]) -> list[int]:
    """Return the exit codes of workers that did not end by themselves."""
    wait([worker.sentinel for worker in workers], DEATH_S)
    return [worker.exitcode for worker in workers if worker.exitcode]


def _death(exit_code: int) -> ChildProcessError:
    """Return what is raised of a worker with this exit code (negative: the signal that ended it)."""
    if exit_code > 0:
        return ChildProcessError(f"a worker process of the loader ended with exit code {exit_code}")
    causes = {
        signal.SIGKILL: ", most likely for its memory; lower workers or batch_size",
        signal.SIGBUS: f", most likely for shared memory: {describe_shared_memory()}; {WAYS_OUT}",
    }
    number = signal.Signals(-exit_code)
    return ChildProcessError(f"a worker process of the loader was ended by {number.name}{causes.get(number, '')}")
