"""The whole main job as real processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest


def test_the_quickstart_carries_images_from_a_raw_archive_to_a_prediction(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    sets = ("--set", "epochs=1", "--set", "model=resnet10t", "--set", "batch_size=16")
    done = subprocess.run(
        [sys.executable, "-m", "in21k.cli.quickstart", "job", "--classes", "8", "--images-per-class", "12", *sets],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    steps = [line.split()[2] for line in done.stdout.splitlines() if line.startswith("$ in21k")]
    assert steps == ["sample-data", "preprocess", "shard", "verify", "train", "validate", "predict"]
    assert "always the commonest answer" in done.stdout
    assert "Traceback" not in done.stderr
    assert {"raw.tar", "prepared", "shards", "run", "prediction.png"} <= {p.name for p in (tmp_path / "job").iterdir()}


def test_two_ranks_under_torchrun_train_one_run(shards: Path, tmp_path: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    in21k = shutil.which("in21k", path=str(torchrun.parent)) or "in21k"
    settings = ("epochs=1", "batch_size=8", "workers=1", "max_steps=3")
    done = subprocess.run(
        [
            *(torchrun, "--standalone", "--nproc-per-node", "2", "--no-python", in21k, "train", "--json"),
            *("--data", shards, "--out", tmp_path / "run", "--model", "resnet10t", "--backend", "torch"),
            *("--device", "cpu", *(word for setting in settings for word in ("--set", setting))),
        ],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["num_steps"] == 3
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 3]  # each step once, and the validation
