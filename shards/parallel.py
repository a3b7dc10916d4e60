"""Running many like tasks on several worker processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from itertools import islice
from typing import NamedTuple, TypeAlias, TypeVar


class Progress(NamedTuple):
    """How far long work is: the fraction done (0..1), the images and bytes it has gone through, and a word more."""

    fraction: float
    images: int
    num_bytes: int
    detail: str = ""


OnProgress: TypeAlias = Callable[[Progress], None]

_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>

Task = TypeVar("Task")
Result = TypeVar("Result")


def ignore_progress(progress: Progress, /) -> None:
    """Be an `OnProgress` that nobody looks at."""


def default_workers() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this worker when its parent is killed: it must not write on beside the next run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells the workers


def run_tasks(function: Callable[[Task], Result], tasks: Iterable[Task], workers: int) -> Iterator[Result]:
    """Yield `function(task)` for each task, as they finish, from `workers` processes (1: this process itself).

    Few tasks wait in the queue at a time. An exception of a task is raised here, and no further task starts; a worker
    that dies (killed for its memory, say) raises ChildProcessError.
    """
    if workers == 1:
        yield from map(function, tasks)
        return
    # Spawned, not forked: pyarrow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(workers, context, initializer=_die_with_parent, initargs=(os.getpid(),))
    waiting = iter(tasks)
    running: set[Future[Result]] = set()
    try:
        while True:
            coming = list(islice(waiting, 2 * workers - len(running)))
            # Workers that are started meanwhile must not know Ctrl-C before they can leave it to the parent.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            running |= {pool.submit(function, task) for task in coming}
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    except BrokenProcessPool as error:
        raise ChildProcessError(
            "a worker process died, most likely killed for its memory; what was done is kept: "
            "start the same command again, with fewer --workers"
        ) from error
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
