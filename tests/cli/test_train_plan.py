"""train --dry-run: the plan, and the picture of the schedule."""

from __future__ import annotations

import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from in21k.cli.schedule_picture import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, draw_schedule
from in21k.training import TrainSettings

from .conftest import run, run_json

Words = Callable[[Path], list[object]]


def test_the_plan_counts_steps_images_and_memory(train_words: Words, tmp_path: Path) -> None:
    words = [*train_words(tmp_path / "run"), "--set", "accumulate=2", "--set", "max_steps=3", "--dry-run"]
    plan = run_json(*words)
    assert plan["global_batch"] == 32
    assert plan["steps_per_epoch"] == plan["num_samples"]["train"] // 16 // 2
    assert plan["num_steps"] == min(3, 2 * plan["steps_per_epoch"])
    assert plan["num_images"] == plan["num_steps"] * 32
    sizes = plan["memory_mb"]
    assert sizes["gradients"] == pytest.approx(4 * plan["num_parameters"] / 1e6, abs=0.1)
    assert sizes["optimizer"] == pytest.approx(8 * plan["num_parameters"] / 1e6, abs=0.1)
    assert sizes["total"] == pytest.approx(sum(sizes.values()) - sizes["total"], abs=0.5)
    text = run(*words).stdout
    assert "memory of a rank, estimated:" in text
    assert "accumulate 2" in text
    machine = plan["machine"]
    assert machine["threads"] == torch.get_num_threads()
    assert f"\n{machine['threads']} OpenMP threads, load " in text
    assert list(tmp_path.iterdir()) == []


def test_an_epoch_that_fills_no_step_is_refused_naming_accumulate(train_words: Words, tmp_path: Path) -> None:
    for also in ((), ("--dry-run",)):
        result = run(*train_words(tmp_path / "run"), "--set", "accumulate=100", *also)
        assert result.exit_code == 2
        assert "accumulate is 100, and an epoch has" in result.stderr
        assert "give a smaller --set accumulate" in result.stderr
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_plan_says_how_much_of_each_epoch_is_skipped(train_words: Words, tmp_path: Path, accumulate: int) -> None:
    words = [*train_words(tmp_path / "run"), "--set", f"accumulate={accumulate}", "--dry-run"]
    plan = run_json(*words)
    num_images = plan["num_samples"]["train"]
    skipped = num_images % (16 * accumulate)
    assert skipped
    assert plan["skipped_per_epoch"] == skipped
    text = run(*words).stdout
    assert f"each epoch skips {skipped} of {num_images} images ({skipped / num_images:.2%})" in text


@pytest.mark.parametrize(("loss", "is_said"), [("semantic", True), ("cross-entropy", False)])
def test_a_tree_of_one_level_is_said_where_the_loss_follows_the_tree(
    loss: str, is_said: bool, raw: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Parents that have no images, the usual case, put no class below another."""
    prepared, shards = tmp_path / "prepared", tmp_path / "shards"
    with tarfile.open(raw) as archive:
        wnids = [name.removesuffix(".tar") for name in archive.getnames() if name.endswith(".tar")][:2]
    (tmp_path / "classes").write_text("\n".join(wnids))
    (tmp_path / "parents.csv").write_text("".join(f"{wnid},thing\n" for wnid in wnids))
    words = ["--classes", tmp_path / "classes", "--parents", tmp_path / "parents.csv", "--no-inner-classes"]
    words += ["--val-per-class", 2]
    run_json("preprocess", "raw-tar", raw, prepared, *words, "--size", 32, "--max-reject-rate", 1, "--workers", 1)
    assert caplog.text.count("The tree has one level: no class lies below another") == 1
    run_json("shard", prepared, shards, "--workers", 1)
    assert run("tree", "show", shards).stdout.count("The tree has one level: no class lies below another") == 1
    caplog.clear()
    sets = ["--set", "model=resnet10t", "--set", "backend=torch", "--set", "batch_size=4", "--loss", loss]
    run_json("train", "--data", shards, "--out", tmp_path / "run", *sets, "--dry-run")
    assert ("The tree has one level" in caplog.text) == is_said


def test_a_learning_rate_that_follows_the_batch_is_said(train_words: Words, tmp_path: Path) -> None:
    scaled = ("--set", "lr=0.1", "--set", "base_batch=128", "--set", "auto_scale_lr=true", "--dry-run")
    words = [*train_words(tmp_path / "run"), *scaled]
    assert run_json(*words)["lr"] == pytest.approx(0.0125)
    assert "learning rate 0.0125, which is 0.1 x 16 / 128 (auto_scale_lr)" in run(*words).stdout


def test_an_optimizer_that_cannot_be_built_is_refused(train_words: Words, tmp_path: Path) -> None:
    result = run(*train_words(tmp_path / "run"), "--set", "optimizer_args={beta: 1}", "--dry-run")
    assert result.exit_code == 2
    assert "optimizer adam: cannot be built" in result.stderr


def test_the_schedule_is_drawn_and_nothing_else_written(train_words: Words, tmp_path: Path) -> None:
    picture = tmp_path / "lr.png"
    words = [*train_words(tmp_path / "run"), "--dry-run", "--plot-schedule", picture]
    run_json(*words)
    with Image.open(picture) as opened:
        assert opened.size == (WIDTH, HEIGHT)
        assert opened.info["Software"] == "in21k"
    assert list(tmp_path.iterdir()) == [picture]
    again = run(*words)
    assert again.exit_code == 2
    assert "--overwrite" in again.stderr
    run_json(*words, "--overwrite")


def test_a_picture_is_refused_without_a_dry_run(train_words: Words, tmp_path: Path) -> None:
    result = run(*train_words(tmp_path / "run"), "--plot-schedule", tmp_path / "lr.png")
    assert result.exit_code == 2
    assert "--dry-run" in result.stderr
    assert list(tmp_path.iterdir()) == []


def height_at(picture: Image.Image, share: float) -> float:
    """How high the curve runs, as a share of the chart, at a share of its width: it alone is blue."""
    column = np.asarray(picture).astype(int)[:, LEFT + round((WIDTH - LEFT - RIGHT) * share)]
    blueness = np.where(column[:, 2] - column[:, 0] > 30, column[:, 2] - column[:, 0], 0)
    row = (np.arange(HEIGHT) * blueness).sum() / blueness.sum()
    return float((HEIGHT - BOTTOM - row) / (HEIGHT - TOP - BOTTOM))


@pytest.mark.parametrize("num_steps", [50, 100_000])
def test_the_drawn_curve_is_the_schedule(num_steps: int) -> None:
    settings = TrainSettings(schedule="constant", warmup=0.5)
    picture = draw_schedule(settings, lr=0.1, num_steps=num_steps, steps_per_epoch=10, subtitle="a test")
    peak = height_at(picture, 0.75)
    assert peak > 0.8
    assert height_at(picture, 0.25) == pytest.approx(0.55 * peak, abs=0.01)
