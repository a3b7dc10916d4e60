from __future__ import annotations

import math
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from in21k.shards.parallel import default_workers, run_tasks

# The functions come from the standard library: worker processes import them by name.


def counted(count: int, taken: list[int]) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_gives_its_result_and_few_wait_in_the_queue(workers: int) -> None:
    taken: list[int] = []
    results = run_tasks(math.sqrt, counted(20, taken), workers)
    found = [next(results)]
    assert len(taken) <= 2 * workers
    found += results
    assert sorted(found) == [math.sqrt(number) for number in range(20)]


def test_one_worker_is_this_process() -> None:
    assert list(run_tasks(lambda _: os.getpid(), [0, 1], 1)) == [os.getpid()] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_task_is_raised_here_and_ends_the_work(workers: int) -> None:
    taken: list[int] = []
    tasks = (-1 if number == 3 else number for number in counted(100, taken))
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(run_tasks(math.sqrt, tasks, workers))
    assert len(taken) < 15


def test_a_worker_that_dies_is_told_with_the_way_out() -> None:
    with pytest.raises(ChildProcessError, match=r"a worker process died.*fewer --workers"):
        list(run_tasks(os._exit, [9], 2))


def test_there_is_a_core_to_work_on() -> None:
    assert 1 <= default_workers() <= (os.cpu_count() or 1)


def test_workers_die_with_a_parent_that_is_killed() -> None:
    """They would write on beside the next run, and hold its pipes open."""
    program = (
        "from in21k.shards.parallel import run_tasks\n"
        "task = 'import os, time; os.write(1, b\"up\"); time.sleep(3600)'\n"
        "list(run_tasks(exec, [task] * 2, 2))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(4) == b"upup"
        parent.kill()
        assert parent.stdout.read() == b""  # comes to its end only when no process holds the pipe
