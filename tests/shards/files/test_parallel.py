from __future__ import annotations

import math
import multiprocessing
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from in21k.shards.dataset import PreparedSet, ShardSet
from in21k.shards.files.parallel import WorkerDiedError, default_workers, run_tasks
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.verify import verify

# The functions come from the standard library: worker processes import them by name.


def counted(count: int, taken: list[int]) -> Iterator[int]:
    for number in range(count):
        taken.append(number)
        yield number


@pytest.mark.parametrize("workers", [1, 2])
def test_every_task_gives_its_result_and_few_wait_in_the_queue(workers: int) -> None:
    taken: list[int] = []
    results = run_tasks(math.sqrt, counted(20, taken), workers)
    items = [next(results)]
    assert len(taken) <= 2 * workers
    items += results
    assert sorted(items) == [math.sqrt(number) for number in range(20)]


def test_one_worker_is_this_process() -> None:
    assert list(run_tasks(lambda _: os.getpid(), [0, 1], 1)) == [os.getpid()] * 2


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_task_is_raised_here_and_ends_the_work(workers: int) -> None:
    taken: list[int] = []
    tasks = (-1 if number == 3 else number for number in counted(100, taken))
    with pytest.raises(ValueError, match=r"math domain|nonnegative"):
        list(run_tasks(math.sqrt, tasks, workers))
    assert len(taken) < 15


def test_workers_that_cannot_be_started_end_the_work_with_the_reason() -> None:
    """No other process can import a function that has no name: each start fails, with more tasks waiting."""
    script = "from in21k.shards.files.parallel import run_tasks; list(run_tasks(lambda task: task, range(9), 2))"
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=300, check=False)
    assert result.returncode == 1
    assert re.search("pickle|serializing", result.stderr.splitlines()[-1])


def die_at(place: str) -> str:
    return f"from in21k.shards.files.parallel import working_on; working_on({place!r}); import os, signal; "


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGFPE", "SIGABRT", "SIGBUS", "SIGILL", "SIGTERM"])
def test_a_worker_that_dies_is_told_by_its_place_and_signal_and_memory_is_not_blamed(name: str) -> None:
    with pytest.raises(WorkerDiedError) as raised:
        list(run_tasks(exec, [die_at("dog/1.jpg") + f"os.kill(os.getpid(), signal.{name})"], 2))
    assert str(raised.value) == f"a worker process died of {name} at dog/1.jpg; what was done is kept"
    assert raised.value.is_crash == (name in ("SIGSEGV", "SIGFPE"))


def test_memory_is_blamed_where_a_worker_is_killed() -> None:
    wanted = r"killed \(SIGKILL\) at dog/1\.jpg, most likely killed for its memory.*fewer --workers"
    with pytest.raises(WorkerDiedError, match=wanted):
        list(run_tasks(exec, [die_at("dog/1.jpg") + "os.kill(os.getpid(), 9)"], 2))


def test_a_worker_that_ends_by_itself_is_told_with_its_exit_code() -> None:
    with pytest.raises(WorkerDiedError, match=r"^a worker process ended \(exit code 9\); what was done is kept"):
        list(run_tasks(os._exit, [9], 2))


def test_the_place_of_a_task_is_not_that_of_the_one_before() -> None:
    tasks = [die_at("dog/1.jpg"), "import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"]
    results = run_tasks(exec, tasks, 1, again=lambda _: None)
    assert next(results) is None
    with pytest.raises(WorkerDiedError, match=r"died of SIGSEGV; what"):
        next(results)


@pytest.mark.parametrize("workers", [1, 3])
def test_a_task_at_which_a_worker_died_may_be_done_in_another_way(workers: int) -> None:
    died: list[WorkerDiedError] = []

    def again(error: WorkerDiedError) -> float:
        died.append(error)
        return 49.0

    tasks = [4.0, 0.0, 16.0, 25.0]
    results = list(run_tasks(exit_or_root, tasks, workers, again))
    assert sorted(results) == [2.0, 4.0, 5.0, 7.0]
    assert [error.task for error in died] == [0.0]


def exit_or_root(number: float) -> float:
    """Return a number's square root, of any but 0: that ends the process."""
    if not number:
        os.kill(os.getpid(), signal.SIGSEGV)
    return math.sqrt(number)


def test_what_is_done_again_may_die_too() -> None:
    with pytest.raises(WorkerDiedError, match="died of SIGABRT at the second try"):
        list(
            run_tasks(
                exec,
                ["import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"],
                1,
                lambda _: die_at("the second try") + "os.abort()",
            )
        )


def test_the_other_workers_finish_what_they_are_at(tmp_path: Path) -> None:
    slow = f"import time, pathlib; time.sleep(1); pathlib.Path({str(tmp_path / 'done')!r}).touch()"
    with pytest.raises(WorkerDiedError):
        list(run_tasks(exec, [slow, "import os; os.abort()"], 2))
    assert (tmp_path / "done").exists()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("command", ["shard", "verify"])
def test_a_worker_that_dies_at_a_shard_is_told_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prepared: PreparedSet, shard_set: ShardSet, command: str
) -> None:
    dying = {"shard": "pack._read_sample", "verify": "verify._check_members"}[command]
    (tmp_path / "sitecustomize.py").write_text(
        "import os\nfrom in21k.shards import pack, verify\n" + f"{dying} = lambda *_: os.abort()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=":")
    run = {
        "shard": partial(pack, prepared, tmp_path / "out", ShardSettings(shard_samples=9)),
        "verify": partial(verify, shard_set),
    }[command]
    with pytest.raises(WorkerDiedError, match=r"died of SIGABRT at (train|val)/in21k-(train|val)-00000\d\.tar; what"):
        run(workers=2)


def test_a_script_without_a_main_guard_is_told_so(tmp_path: Path) -> None:
    """Each worker imports the script that starts it, and would start workers itself."""
    script = tmp_path / "script.py"
    script.write_text(
        "import math\nfrom in21k.shards.files.parallel import run_tasks\nlist(run_tasks(math.sqrt, [4], 2))\n"
    )
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "could not begin" in done.stderr.splitlines()[-1]
    assert 'below `if __name__ == "__main__":`' in done.stderr.splitlines()[-1]


def test_there_is_a_core_to_work_on() -> None:
    assert 1 <= default_workers() <= (os.cpu_count() or 1)


def test_workers_die_with_a_parent_that_is_killed() -> None:
    """They would write on beside the next run, and hold its pipes open."""
    program = (
        "from in21k.shards.files.parallel import run_tasks\n"
        "task = 'import os, time; os.write(1, b\"up\"); time.sleep(3600)'\n"
        "list(run_tasks(exec, [task] * 2, 2))"
    )
    with subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        assert parent.stdout.read(4) == b"upup"
        parent.kill()
        assert parent.stdout.read() == b""  # comes to its end only when no process holds the pipe
