"""Run tasks in worker processes here, or on the nodes of a Ray cluster."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any, TypeAlias

from ..shards.files.atomic import write_as
from ..shards.files.parallel import WorkerDiedError, default_workers, run_tasks
from .images.alone import WAY_OUT

log = logging.getLogger(__name__)

DECODER_SIGNALS = (signal.SIGABRT, signal.SIGBUS, signal.SIGILL)
CONNECT_SECONDS = 5.0
CANCEL_SECONDS = 60.0

# Yields function(task) for each task, as they finish.
RunTasks: TypeAlias = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]]


@contextmanager
def open_engine(name: str, ray_address: str | None = None, workers: int | None = None) -> Generator[RunTasks]:
    """Yield a function that runs tasks, `local` or on `ray`, in so many workers (None: one for each core).

    Raises ValueError where Ray is not installed or its cluster cannot be reached.
    """
    if name == "local":
        yield partial(run_tasks, workers=workers or default_workers(), again=_guarded)
        return
    with _stdout_to_stderr(), _ray_cluster(ray_address, workers) as ray:
        yield partial(_run_on_ray, ray, workers=workers)


def _guarded(died: WorkerDiedError) -> Any | None:
    """Return the task that killed a worker, to be repeated with each image decoded in a process of its own.

    None for a task that cannot be repeated so. Raises ChildProcessError for signals that end the run.
    """
    if died.signal in DECODER_SIGNALS:
        raise ChildProcessError(f"{died.summary}; {WAY_OUT}")
    return _guard(died.task, died.summary) if died.is_crash else None


def _guard(task: Any, died: str) -> Any | None:
    if getattr(task, "guarded", True):
        return None
    log.warning("%s; repeating its task with each image in a process of its own", died)
    return replace(task, guarded=True)


def _check_reachable(address: str) -> None:
    """Raise ValueError where no cluster listens: Ray itself tries for two minutes, then ends the process."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if address == "auto":
        return
    try:
        socket.create_connection((host, int(port)), CONNECT_SECONDS).close()
    except (OSError, OverflowError, ValueError) as error:
        raise ValueError(
            f"--ray-address {address}: no Ray cluster answers there ({error}); wanted host:port, as `ray start --head` "
            "prints it"
        ) from error


@contextmanager
def _ray_cluster(address: str | None, workers: int | None) -> Generator[Any]:
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else Ray warns in every process
    try:
        import ray
    except ImportError:
        raise ValueError("--engine ray: Ray is not installed; `pip install 'in21k[ray]'`") from None
    if address:
        _check_reachable(address)
    try:
        ray.init(
            address or "local",
            num_cpus=None if address else workers or default_workers(),
            include_dashboard=None if address else False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, RuntimeError, ValueError) as error:
        where = f"--ray-address {address}" if address else "--engine ray"
        raise ValueError(
            f"{where}: cannot connect to a Ray cluster ({error}); with authentication set RAY_AUTH_TOKEN here too"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()


@contextmanager
def _stdout_to_stderr() -> Generator[None]:
    """Redirect what Ray prints from stdout, which is for results, to stderr."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


def _run_on_ray(
    ray: Any, function: Callable[[Any], Any], tasks: Iterable[Any], *, workers: int | None
) -> Iterator[Any]:
    """Yield `function(task)` for each task, as they finish. Tasks of a lost node are repeated on another."""
    remote = ray.remote(_on_node).options(num_cpus=1, max_retries=3)
    waiting = iter(tasks)
    running: dict[Any, Any] = {}  # the task of each reference
    try:
        while True:
            # The cluster may grow and shrink meanwhile.
            most = 2 * (workers or max(1, int(ray.cluster_resources().get("CPU", 1))))
            coming = islice(waiting, max(0, most - len(running)))
            running.update((remote.remote(function, task), task) for task in coming)
            if not running:
                return
            for reference in ray.wait(list(running))[0]:
                task = running.pop(reference)
                try:
                    yield _result(ray, reference)
                except _CrashedError as crash:
                    instead = _guard(task, str(crash))
                    if instead is None:
                        raise
                    running[remote.remote(function, instead)] = instead
    finally:
        for reference in running:  # no task may still write when the caller removes files
            ray.cancel(reference, force=True)
        if running:
            ray.wait(list(running), num_returns=len(running), timeout=CANCEL_SECONDS)


class _CrashedError(ChildProcessError):
    """A task that killed the workers of several nodes. Ray does not report the signal."""


def _on_node(function: Callable[[Any], Any], task: Any) -> Any:
    """Run a task on a node. Another node may run it too, where the cluster took this one for lost."""
    write_as(f"{os.uname().nodename}-{os.getpid()}")
    return function(task)


def _result(ray: Any, reference: Any) -> Any:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.WorkerCrashedError as error:
        raise _CrashedError(f"a worker of the Ray cluster died ({str(error).splitlines()[0]})") from error
    except ray.exceptions.RayError as error:
        raise ChildProcessError(
            f"a node of the Ray cluster failed ({str(error).splitlines()[0]}); what was done is kept: "
            "start the same command again"
        ) from error
