"""features: killed anywhere in its work, the same command makes the same bytes."""

from __future__ import annotations

import multiprocessing
import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from in21k.shards.files.lock import FileLock
from in21k.training.features import row_store
from in21k.training.features.row_store import RowStore

from .conftest import run

# What changes files, or stands between two changes.
STEPS: list[tuple[Any, str]] = [
    (RowStore, "__enter__"),
    (RowStore, "put"),
    (RowStore, "save"),
    (RowStore, "remove"),
    (row_store, "write_json"),
    (Path, "replace"),
    (Path, "unlink"),
    (os, "ftruncate"),
]


def run_counted(words: list[object], kill_at: int, counted: Path) -> None:
    """Run a command that kills its own process before or after one of its steps, the `kill_at`th of all such places.

    0: it is not killed, and the number of places is written to `counted`.
    """
    torch.set_num_threads(1)
    row_store.SAVE_EVERY_S = 0.0  # every batch
    places = 0

    def pass_by() -> None:
        nonlocal places
        places += 1
        if places == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)

    def killing(step: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            pass_by()
            try:
                return step(*arguments, **options)
            finally:
                pass_by()

        return call

    for owner, name in STEPS:
        setattr(owner, name, killing(getattr(owner, name)))
    result = run(*words)
    assert result.exit_code == 0, result.output
    counted.write_text(str(places))


def in_a_process(words: list[object], kill_at: int, counted: Path) -> int:
    """Return the exit code of `run_counted` in a process of its own."""
    process = multiprocessing.get_context("fork").Process(target=run_counted, args=(words, kill_at, counted))
    process.start()
    process.join()
    assert process.exitcode is not None
    return process.exitcode


@pytest.fixture(params=["parquet", "npy"])
def work(request: pytest.FixtureRequest, shards: Path, trained: Path, tmp_path: Path) -> tuple[list[object], Path]:
    """The words of a command in a folder of its own, and what it makes when nobody kills it."""
    options = ("--data", shards, "--split", "train", "--backend", "opencv", "--workers", 1, "--batch-size", 9)
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    for folder in (whole, killed):
        folder.mkdir()
    # As the killed ones run: with other numbers of threads sums round otherwise.
    assert in_a_process(["features", trained, whole / f"out.{request.param}", *options], 0, tmp_path / "counted") == 0
    return ["features", trained, killed / f"out.{request.param}", *options], whole


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_killed_again_and_again_it_ends_with_the_bytes_of_an_uninterrupted_run(
    work: tuple[list[object], Path], tmp_path: Path
) -> None:
    words, whole = work
    folder, counted, draws = tmp_path / "killed", tmp_path / "counted", random.Random(1)
    num_kills = 0
    for _ in range(3):
        for path in folder.iterdir():
            path.unlink()
        while in_a_process(words, draws.randrange(1, 60), counted) == -signal.SIGKILL:
            num_kills += 1
        assert contents(folder) == contents(whole)
    assert num_kills > 3


@pytest.mark.slow
def test_a_kill_at_any_place_changes_no_byte(work: tuple[list[object], Path], tmp_path: Path) -> None:
    words, whole = work
    folder, counted = tmp_path / "killed", tmp_path / "counted"
    assert in_a_process(words, 0, counted) == 0
    num_places = int(counted.read_text())
    assert num_places > 50
    for place in range(1, num_places + 1):
        for path in folder.iterdir():
            path.unlink()
        assert in_a_process(words, place, counted) == -signal.SIGKILL
        assert in_a_process(words, 0, counted) == 0
        assert contents(folder) == contents(whole), place


def test_work_that_a_kill_left_beside_a_finished_file_goes_unless_a_process_fills_it(
    work: tuple[list[object], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, whole = work
    with monkeypatch.context() as patch:
        patch.setattr(RowStore, "remove", lambda _: None)
        assert run(*words).exit_code == 0
    left = [*contents(tmp_path / "killed")]
    assert sum(".work" in name for name in left) == 2
    (path,) = (tmp_path / "killed").glob("*.work")
    lock = FileLock(path)
    assert lock.take(shared=False)
    assert "finished already" in run(*words).stdout
    assert [*contents(tmp_path / "killed")] == left
    lock.release()
    assert "finished already" in run(*words).stdout
    assert [*contents(tmp_path / "killed")] == [*contents(whole)]
