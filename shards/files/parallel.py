"""Running many like tasks on several worker processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar


class Progress(NamedTuple):
    """The progress of long work: the fraction done (0..1), images and bytes processed, and a detail in words."""

    fraction: float
    images: int
    num_bytes: int
    detail: str = ""


OnProgress: TypeAlias = Callable[[Progress], None]

CRASHES = (signal.SIGSEGV, signal.SIGFPE)  # the signals that a bug in a decoder ends a process with
PLACE_BYTES = 512
_PR_SET_PDEATHSIG = 1  # of <sys/prctl.h>
_place: Any = None  # in a worker: memory shared with its parent, which names the worker's current file

Task = TypeVar("Task")
Result = TypeVar("Result")


def ignore_progress(progress: Progress, /) -> None:
    """Ignore the progress."""


def default_workers() -> int:
    """Return how many cores this process may use."""
    return len(os.sched_getaffinity(0))


def working_on(name: str) -> None:
    """Note the worker's current file, which the message names if the worker dies. No effect outside workers."""
    if _place is not None:
        _place.value = name.encode(errors="backslashreplace")[: PLACE_BYTES - 1]


class WorkerDiedError(ChildProcessError):
    """A worker process ended during a task: names the place within the task, and the signal or the exit code."""

    def __init__(self, task: Any, place: str, exit_code: int) -> None:
        self.task = task
        self.place = place
        self.exit_code = exit_code
        self.signal = signal.Signals(-exit_code) if exit_code < 0 else None
        self.summary = f"{self._how(exit_code)}{f' at {place}' if place else ''}"
        super().__init__(self.summary + self._what_now())

    def __reduce__(self) -> tuple[type[WorkerDiedError], tuple[Any, str, int]]:
        return WorkerDiedError, (self.task, self.place, self.exit_code)

    @property
    def is_crash(self) -> bool:
        """Whether a mistake in native code ended it, such as a decoder's."""
        return self.signal in CRASHES

    def _how(self, exit_code: int) -> str:
        if self.signal == signal.SIGKILL:
            return "a worker process was killed (SIGKILL)"
        if self.signal is None:
            return f"a worker process ended (exit code {exit_code})"
        return f"a worker process died of {self.signal.name}"

    def _what_now(self) -> str:
        if self.signal == signal.SIGKILL:
            return (
                ", most likely killed for its memory; what was done is kept: start the same command again, with fewer "
                "--workers"
            )
        return "; what was done is kept"


Again: TypeAlias = Callable[[WorkerDiedError], Task | None]


def _die_with_parent(parent: int) -> None:
    """Have the kernel kill this worker when its parent is killed: it must not write on beside the next run."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the parent tells the workers


class _Worker(Generic[Task, Result]):
    """A process that does one task after another."""

    def __init__(self, function: Callable[[Task], Result]) -> None:
        # Spawned, not forked: pyarrow's threads do not survive a fork.
        context = multiprocessing.get_context("spawn")
        self._place: Any = context.RawArray(ctypes.c_char, PLACE_BYTES)
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, self._place, function, os.getpid()))
        # A worker must not know Ctrl-C before it can leave it to its parent.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            theirs.close()
        self._is_ready = False
        self.is_dead = False

    def do(self, task: Task) -> Result:
        """Have a task done; raises its exception, and ChildProcessError where the worker dies."""
        try:
            if not self._is_ready:
                self._is_ready = self._connection.recv()
            self._connection.send(task)
            result, error = self._connection.recv()
        except (EOFError, ConnectionError):
            self.is_dead = True
            exit_code = self._exit_code()
            if not self._is_ready and exit_code > 0:
                raise ChildProcessError(
                    f"a worker process could not begin (exit code {exit_code}): it imports the script that starts it, "
                    'whose calls therefore have to stand below `if __name__ == "__main__":`'
                ) from None
            raise WorkerDiedError(task, self._place.value.decode(errors="replace"), exit_code) from None
        if error is not None:
            raise error
        return result

    def _exit_code(self) -> int:
        while self._process.exitcode is None:
            self._process.join(1)
        return self._process.exitcode

    def close(self) -> None:
        """End the process, which is at no task."""
        self._connection.close()
        self._process.join()


def _serve(connection: Any, place: Any, function: Callable[[Any], Any], parent: int) -> None:
    """Be a worker: do the tasks that come until none can come any more."""
    global _place
    _die_with_parent(parent)
    _place = place
    try:
        connection.send(True)
        while True:
            task = connection.recv()
            place.value = b""
            connection.send(_outcome(function, task))
    except (EOFError, ConnectionError):
        pass


def _outcome(function: Callable[[Any], Any], task: Any) -> tuple[Any, Exception | None]:
    try:
        return function(task), None
    except Exception as error:
        error.add_note(f"In a worker process:\n{traceback.format_exc()}")
        return None, error


class _Crew(Generic[Task, Result]):
    """The workers: each does a task for the thread that asks, and one that died is replaced."""

    def __init__(self, function: Callable[[Task], Result], size: int, again: Again[Task] | None) -> None:
        self._function, self._again = function, again
        self._idle: SimpleQueue[_Worker[Task, Result] | None] = SimpleQueue()
        for _ in range(size):
            self._idle.put(None)  # started when its first task comes

    def do(self, task: Task) -> Result:
        """Have a task done by a worker that is idle."""
        worker = self._idle.get()
        try:
            worker = worker or _Worker(self._function)
            return worker.do(task)
        except WorkerDiedError as died:
            instead = self._again(died) if self._again else None
            if instead is None:
                raise
            worker = _Worker(self._function)
            return worker.do(instead)
        finally:
            self._idle.put(None if worker is None or worker.is_dead else worker)

    def close(self) -> None:
        """End the workers, which are all idle."""
        while not self._idle.empty():
            worker = self._idle.get()
            if worker:
                worker.close()


def run_tasks(
    function: Callable[[Task], Result], tasks: Iterable[Task], workers: int, again: Again[Task] | None = None
) -> Iterator[Result]:
    """Yield `function(task)` for each task, as they finish, from `workers` processes.

    One worker is this process itself, but where `again` is given: it tells what to do, in a new process, in place of a
    task at which a worker died; None to give up. Few tasks wait in the queue at a time. An exception of a task is
    raised here, and no further task starts; a worker that dies raises WorkerDiedError.
    """
    if workers == 1 and again is None:
        yield from map(function, tasks)
        return
    crew = _Crew(function, workers, again)
    pool = ThreadPoolExecutor(workers)
    waiting = iter(tasks)
    running: set[Future[Result]] = set()
    try:
        while True:
            running |= {pool.submit(crew.do, task) for task in islice(waiting, 2 * workers - len(running))}
            if not running:
                return
            done, running = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()
    finally:
        for future in running:
            future.cancel()
        wait(running)
        crew.close()  # before the threads that started them end, which would kill them
        pool.shutdown()
