"""Commands that are killed in the middle: what the next start meets."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from in21k.training.runs.run_folder import RunFolder, read_config

IN21K = (sys.executable, "-c", "from in21k.cli.main import main; main()")


def wait_for(condition: Callable[[], bool], process: subprocess.Popen[bytes]) -> None:
    """Wait until something is so while a process runs."""
    while not condition():
        assert process.poll() is None
        time.sleep(0.05)


def test_a_killed_training_leaves_its_run_to_the_next_start_while_its_workers_still_end(
    shards: Path, tmp_path: Path
) -> None:
    settings = {"model": "resnet10t", "batch_size": 16, "epochs": 1000, "workers": 1, "save_every_steps": 1}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    words = ["train", "--data", shards, "--out", tmp_path / "run", "--backend", "torch", *sets]
    with subprocess.Popen([*IN21K, *map(str, words)], process_group=0, stderr=subprocess.DEVNULL) as process:
        wait_for((tmp_path / "run" / "checkpoints" / "last.pt").exists, process)
        process.kill()
        process.wait()
        os.killpg(process.pid, signal.SIGSTOP)  # raises unless a worker is there still; it stays until the end
        run = RunFolder(tmp_path / "run")
        run.take(read_config(tmp_path / "run" / "config.yaml"))
        run.release()
        os.killpg(process.pid, signal.SIGKILL)
