"""Where a run's lines go."""

from __future__ import annotations

import json
import re
import resource
import signal
import socket
from pathlib import Path
from typing import Any

import pytest

from in21k.training.logs import JsonLog, Log, check_trackers, open_logs, scalars_of

CONFIG: dict[str, Any] = {"seed": 0, "lr": 0.1, "model_args": {}}


def lines(steps: range) -> list[dict[str, Any]]:
    return [{"step": step, "epoch": 0, "loss": 1 / step, "grad_norm": None} for step in steps]


def write(folder: Path, steps: range, trackers: list[str], after_step: int = 0) -> None:
    with open_logs(folder, trackers, CONFIG, after_step=after_step, here=True) as logs:
        for line in lines(steps):
            for log in logs:
                log.write(line)


def test_a_line_is_in_the_file_before_the_next_comes(tmp_path: Path) -> None:
    log = JsonLog(tmp_path / "log.jsonl", after_step=0)
    for number, line in enumerate(lines(range(1, 4)), start=1):
        log.write(line)
        assert len((tmp_path / "log.jsonl").read_text().splitlines()) == number
    log.close()


def test_going_on_cuts_off_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    write(tmp_path, range(1, 6), [])
    with (tmp_path / "log.jsonl").open("a") as file:
        file.write('{"step": 6, "lo')
    write(tmp_path, range(4, 7), [], after_step=3)
    told = (tmp_path / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in told] == [1, 2, 3, 4, 5, 6]


def test_a_validation_that_is_going_to_come_again_stands_there_once(tmp_path: Path) -> None:
    # Killed between the validation and the save after it: the checkpoint is the one from before the validation.
    told = [*lines(range(1, 4)), {"step": 3, "epoch": 0, "validation": {"top1": 50.0}}]
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in told))
    JsonLog(path, after_step=3, epoch=1).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == told
    JsonLog(path, after_step=3, epoch=0).close()
    assert [json.loads(line) for line in path.read_text().splitlines()] == told[:-1]


def test_tensorboard_has_each_step_once_also_after_going_on(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    write(tmp_path, range(1, 6), ["tensorboard"])
    write(tmp_path, range(4, 7), ["tensorboard"], after_step=3)
    actual = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert actual.Tags()["scalars"] == ["train/loss"]
    events = actual.Scalars("train/loss")
    assert [event.step for event in events] == [1, 2, 3, 4, 5, 6]
    assert [event.value for event in events] == pytest.approx([1 / step for step in range(1, 7)])


def test_tensorboards_files_bear_no_host_name(tmp_path: Path) -> None:
    for _ in range(2):  # two starts in one second
        write(tmp_path, range(1, 3), ["tensorboard"])
    names = [path.name for path in (tmp_path / "tensorboard").iterdir()]
    assert len(names) == 2
    for name in names:
        assert re.fullmatch(r"events\.out\.tfevents\.\d+\.\d+", name)
        assert socket.gethostname().encode() not in (tmp_path / "tensorboard" / name).read_bytes()


def write_all(log: Log) -> None:
    for line in lines(range(1, 1000)):
        log.write(line)


@pytest.mark.parametrize("trackers", [[], ["tensorboard"]])
def test_a_full_disk_names_the_file(tmp_path: Path, trackers: list[str]) -> None:
    """A limit on the size of files stands for a disk without room."""
    name = r"tensorboard/events\.out\.tfevents.*" if trackers else r"log\.jsonl"
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with open_logs(tmp_path, trackers, CONFIG, after_step=0, here=True) as logs:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
            with pytest.raises(OSError, match=rf"File too large: '{re.escape(str(tmp_path))}/{name}'"):
                write_all(logs[-1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_other_ranks_log_nothing(tmp_path: Path) -> None:
    with open_logs(tmp_path, ["tensorboard"], CONFIG, after_step=0, here=False) as logs:
        assert logs == []
    assert not list(tmp_path.iterdir())


def test_a_validations_numbers_have_names_of_their_own() -> None:
    validation = {"top1": 1.0, "ema": {"top1": 2.0}, "per_level": [{"top1": 3.0}]}
    line = {"step": 3, "epoch": 1, "validation": validation}
    assert dict(scalars_of(line)) == {"val/top1": 1.0, "val/ema/top1": 2.0}


def test_a_tracker_that_is_not_installed_is_refused_with_the_way_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("in21k.training.logs.find_spec", lambda _: None)
    with pytest.raises(ValueError, match=r"tracker wandb is not installed; pip install 'in21k\[wandb\]'"):
        check_trackers(["wandb"])


@pytest.mark.filterwarnings("default")  # of theirs
def test_wandb_has_each_step_once_also_after_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    write(tmp_path, range(1, 6), ["wandb"])
    write(tmp_path, range(4, 7), ["wandb"], after_step=3)
    assert len(list((tmp_path / "wandb").glob("offline-run-*"))) == 2


@pytest.mark.filterwarnings("default")  # of theirs
def test_mlflow_has_each_step_and_one_run_also_after_going_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    write(tmp_path, range(1, 6), ["mlflow"])
    write(tmp_path, range(4, 7), ["mlflow"], after_step=3)
    (run,) = mlflow.search_runs(experiment_names=["in21k"], output_format="list")
    history = mlflow.MlflowClient().get_metric_history(run.info.run_id, "train/loss")
    assert sorted({metric.step for metric in history}) == [1, 2, 3, 4, 5, 6]
    assert run.data.params["lr"] == "0.1"
