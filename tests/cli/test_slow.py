"""What takes minutes by nature: kills, and whether networks really learn (`make test-slow`)."""

from __future__ import annotations

import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from .conftest import run, run_json

pytestmark = pytest.mark.slow

# Small chunks, so that a kill meets each phase of their work.
PROGRAM = (
    "from in21k.preprocess.sources import stream; stream.CHUNK_IMAGES = 60; from in21k.cli.main import main; main()"
)
IN21K = (sys.executable, "-c", PROGRAM)
KILLS = 10


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def killed_at(seconds: float, *words: object) -> bool:
    """Run a command in a process group of its own and kill the group after so long; tell whether it came to that."""
    with subprocess.Popen(
        [*IN21K, *map(str, words)], start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            assert process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            return True
    return False


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A raw archive whose preparation takes some seconds."""
    path = tmp_path_factory.mktemp("slow") / "raw.tar"
    run_json("sample-data", path, "--classes", 40, "--images-per-class", 20)
    return path


@pytest.fixture(scope="module")
def folders(archive: Path) -> Path:
    """The same images in class folders, out of order, in a gzipped tar."""
    path = archive.with_name("folders.tar.gz")
    members: list[tuple[str, bytes]] = []
    with tarfile.open(archive) as outer:
        for class_tar in outer:
            with tarfile.open(fileobj=outer.extractfile(class_tar)) as inner:
                folder = class_tar.name.removesuffix(".tar")
                members += [(f"{folder}/{member.name}", inner.extractfile(member).read()) for member in inner]
    random.Random(0).shuffle(members)
    with tarfile.open(path, "w:gz") as out:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            out.addfile(member, io.BytesIO(data))
    return path


PREPARE = ("--rare-threshold", 5, "--val-per-class", 3, "--size", 200, "--quality", 100, "--workers", 2)


def kill_often(job: tuple[object, ...], mark: Path, moments: random.Random, longest: float = 1.8) -> None:
    """Start a job over and over and kill it at a random moment; the last time it is let finish."""
    num_killed = 0
    while num_killed < KILLS:
        # What is finished begins anew, so that each kill finds work under way; the next one comes earlier.
        anew = ("--overwrite",) if mark.exists() else ()
        if killed_at(moments.uniform(0.2, longest), *job, *anew):
            num_killed += 1
        else:
            longest = max(0.3, 0.8 * longest)
    assert not killed_at(600, *job)


def test_prepared_data_and_shards_are_byte_equal_however_often_the_work_was_killed(
    archive: Path, tmp_path: Path
) -> None:
    moments = random.Random(0)

    def jobs(folder: Path) -> tuple[tuple[object, ...], ...]:
        return (
            ("preprocess", "raw-tar", archive, folder / "prepared", *PREPARE),
            ("shard", folder / "prepared", folder / "shards", "--shard-samples", 20, "--workers", 2),
        )

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    whole.mkdir()
    killed.mkdir()
    outs = (killed / "prepared", killed / "shards")
    for job, undisturbed, out in zip(jobs(killed), jobs(whole), outs, strict=True):
        assert run(*undisturbed).exit_code == 0
        kill_often(job, out / "dataset.json", moments)
    for name in ("prepared", "shards"):
        assert snapshot(killed / name) == snapshot(whole / name)


def test_a_stream_of_scattered_class_folders_gives_the_bytes_of_class_tars_however_often_it_was_killed(
    archive: Path, folders: Path, tmp_path: Path
) -> None:
    assert run("preprocess", "raw-tar", archive, tmp_path / "whole", *PREPARE).exit_code == 0
    job = ("preprocess", "raw-tar", folders, tmp_path / "killed", *PREPARE)
    kill_often(job, tmp_path / "killed" / "dataset.json", random.Random(3))
    killed, whole = snapshot(tmp_path / "killed"), snapshot(tmp_path / "whole")
    assert killed.pop("dataset.json") != whole.pop("dataset.json")  # it names the source
    assert killed == whole


def train_words(shards: Path, out: Path, *settings: str) -> tuple[object, ...]:
    usual = ("model=resnet10t", "batch_size=8", "backend=torch", "workers=1", "deterministic=true", "augment=miil")
    sets = (word for setting in (*usual, *settings) for word in ("--set", setting))
    return "train", "--data", shards, "--out", out, "--device", "cpu", *sets


def steps_of(out: Path) -> list[int]:
    lines = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if "loss" in line]


def test_packed_images_and_exports_are_byte_equal_however_often_the_work_was_killed(
    archive: Path, trained: Path, tmp_path: Path
) -> None:
    moments = random.Random(0)
    with tarfile.open(archive) as outer:
        for class_tar in outer:
            with tarfile.open(fileobj=outer.extractfile(class_tar)) as inner:
                inner.extractall(tmp_path / "images" / class_tar.name.removesuffix(".tar"), filter="data")

    def jobs(folder: Path) -> tuple[tuple[object, ...], ...]:
        packing = ("--data", tmp_path / "images", "--data-out", folder / "packed", "--pack-only", "--workers", 2)
        return (
            ("finetune", "--init", trained, "--out", folder / "run", *packing),
            ("export", trained, folder / "export"),
        )

    killed, whole = tmp_path / "killed", tmp_path / "whole"
    for folder in (killed, whole):
        folder.mkdir()
    marks = (killed / "packed" / "dataset.json", killed / "export" / "export.json")
    for job, undisturbed, mark in zip(jobs(killed), jobs(whole), marks, strict=True):
        assert run(*undisturbed).exit_code == 0
        begun = time.monotonic()
        assert not killed_at(600, *job)  # most of its time goes to imports, which this one warms
        kill_often(job, mark, moments, longest=time.monotonic() - begun)
    assert snapshot(killed) == snapshot(whole)


def test_a_training_that_was_killed_ends_bit_equal_and_logs_each_step_once(shards: Path, tmp_path: Path) -> None:
    out, whole = tmp_path / "run", tmp_path / "whole"
    words = train_words(shards, out, "epochs=6", "save_every_steps=2", "ema=0.9")
    # A process like the others: the number of torch's threads, which shapes bits, is this process's own.
    assert not killed_at(600, *train_words(shards, whole, "epochs=6", "ema=0.9"))
    moments = random.Random(1)
    for _ in range(KILLS):
        killed_at(moments.uniform(4, 14), *words)
    assert not killed_at(600, *words)
    steps = steps_of(out)
    assert steps == list(range(1, len(steps) + 1))
    assert json.loads((out / "metrics.json").read_text())["num_steps"] == len(steps)
    for name in ("model.safetensors", "model_ema.safetensors", "metrics.json"):
        assert (out / name).read_bytes() == (whole / name).read_bytes()
    assert not list(out.rglob("*.tmp"))


def test_features_are_byte_equal_however_often_their_making_was_killed(archive: Path, tmp_path: Path) -> None:
    run_json("preprocess", "raw-tar", archive, tmp_path / "prepared", *PREPARE)
    run_json("shard", tmp_path / "prepared", tmp_path / "shards")
    run_json(*train_words(tmp_path / "shards", tmp_path / "run", "max_steps=1", "image_size=128"))

    def job(out: str) -> tuple[object, ...]:
        words = ("features", tmp_path / "run", tmp_path / out, "--data", tmp_path / "shards", "--split", "train")
        return *words, "--batch-size", 2, "--device", "cpu"

    begun = time.perf_counter()
    assert not killed_at(600, *job("whole.parquet"))
    took, moments = time.perf_counter() - begun, random.Random(4)
    num_killed = 0
    while num_killed < KILLS // 2:
        if not killed_at(moments.uniform(0.4, 0.9) * took, *job("killed.parquet")):
            (tmp_path / "killed.parquet").unlink()
        else:
            num_killed += 1
    assert not killed_at(600, *job("killed.parquet"))
    assert (tmp_path / "killed.parquet").read_bytes() == (tmp_path / "whole.parquet").read_bytes()
    assert not [path.name for path in tmp_path.iterdir() if "killed" in path.name and path.name != "killed.parquet"]


def test_a_signal_to_torchrun_ends_all_ranks_in_good_order_and_the_run_goes_on(shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = list(map(str, train_words(shards, out, "max_steps=60", "epochs=60")))
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", "--no-python"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with subprocess.Popen(
        [*launch, *IN21K, *words], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        begun = time.monotonic()
        while not (out / "log.jsonl").exists() or len(steps_of(out)) < 3:
            assert process.poll() is None
            assert time.monotonic() - begun < 300
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        printed, message = process.communicate(timeout=120)
    stopped = re.search(r"stopped at step (\d+) of 60", printed)
    assert stopped, printed + message
    assert steps_of(out) == list(range(1, int(stopped[1]) + 1))
    done = subprocess.run([*launch, *IN21K, *words], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert f"resuming after step {stopped[1]}" in done.stderr
    assert steps_of(out) == list(range(1, 61))


def test_the_quickstart_plainly_learns(tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    done = subprocess.run(
        [sys.executable, "-m", "in21k.cli.quickstart"], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    summary = r"semantic top-1 ([\d.]+) % \(always the commonest answer: ([\d.]+) %\)"
    reached, commonest = map(float, re.findall(summary, done.stdout)[-1])
    assert reached > commonest + 40


def test_semantic_training_passes_half_on_tiny_hierarchy(data_folder: Path, tmp_path: Path) -> None:
    """Always answering each level's commonest class gives 38 %; a trial gave 54 %."""
    raw, prepared, shards = data_folder / "tiny-hierarchy.tar", tmp_path / "prepared", tmp_path / "shards"
    options = ("--rare-threshold", 60, "--val-per-class", 10, "--size", 32)
    run_json("preprocess", "raw-tar", raw, prepared, *options)
    run_json("shard", prepared, shards)
    metrics = run_json("train", "--data", shards, "--out", tmp_path / "run", "--recipe", "tiny", "--device", "cpu")
    assert metrics["num_epochs"] == 8
    assert metrics["semantic_top1_commonest"] == pytest.approx(38.2, abs=0.1)
    assert metrics["semantic_top1"] > 50
