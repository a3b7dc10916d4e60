"""train: judged by what it prints and the files it leaves."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch

from .conftest import run, run_json

Words = Callable[[Path], list[object]]


def test_a_run_holds_what_the_contract_lists(trained: Path) -> None:
    assert {path.name for path in trained.iterdir()} == {
        *("config.yaml", "log.jsonl", "metrics.json", "tree.json", "checkpoints", "tensorboard"),
        *("model.safetensors", "config.json"),
    }
    assert {path.name for path in (trained / "checkpoints").iterdir()} == {"last.pt", "best.pt"}
    lines = map(json.loads, (trained / "log.jsonl").read_text().splitlines())
    steps = [line["step"] for line in lines if "loss" in line]
    assert steps == list(range(1, len(steps) + 1))


def test_the_same_training_again_says_so_and_another_is_refused(trained: Path, train_words: Words) -> None:
    before = (trained / "checkpoints" / "last.pt").stat().st_mtime_ns
    assert run(*train_words(trained)).exit_code == 0
    assert (trained / "checkpoints" / "last.pt").stat().st_mtime_ns == before
    refused = run(*train_words(trained), "--set", "lr=0.5")
    assert refused.exit_code == 2
    assert "lr 0.0003 -> 0.5" in refused.stderr


def test_a_dry_run_shows_the_plan_and_writes_nothing(train_words: Words, tmp_path: Path) -> None:
    plan = run_json(*train_words(tmp_path / "run"), "--dry-run")
    assert plan["num_steps"] == 2 * plan["steps_per_epoch"]
    assert plan["settings"]["image_size"] == 32
    assert plan["backend"] == "torch"
    assert not (tmp_path / "run").exists()


def test_a_deterministic_run_is_so_before_its_teacher_computes(
    train_words: Words, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[str | None, bool]] = []

    def load_teacher(*_: object) -> None:
        seen.append((os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.are_deterministic_algorithms_enabled()))
        raise ValueError("that is all we wanted to know")

    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG")
    monkeypatch.setattr("in21k.training.jobs.train_job.load_teacher", load_teacher)
    words = [*train_words(tmp_path / "run"), "--teacher", "whoever"]
    try:
        run(*words, "--set", "deterministic=true")
        run(*words)
    finally:
        torch.use_deterministic_algorithms(False)
    assert seen == [(":4096:8", True), (":4096:8", False)]


def test_cross_entropy_trains_with_dali(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    metrics = run_json(
        *("train", "--data", shards, "--out", tmp_path / "run", "--loss", "cross-entropy", "--backend", "dali_cpu"),
        *("--model", "resnet10t", "--set", "epochs=1", "--set", "batch_size=16", "--device", "cpu"),
    )
    assert metrics["num_epochs"] == 1


@pytest.mark.parametrize("ema", ["off", "0.9"])
def test_the_end_of_training_tells_semantic_top1_and_top1(train_words: Words, tmp_path: Path, ema: str) -> None:
    result = run(*train_words(tmp_path / "run"), "--set", f"ema={ema}")
    metrics = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert f"semantic top-1 {metrics['semantic_top1']:.1f} % (always the commonest" in result.stdout
    assert f"%), top-1 {metrics['top1']:.1f} %; best semantic top-1" in result.stdout
    averaged = metrics.get("ema")
    assert (averaged is None) == (ema == "off")
    if averaged:
        ending = f"moving average: semantic top-1 {averaged['semantic_top1']:.1f} %, top-1 {averaged['top1']:.1f} %"
        assert ending in result.stderr


def test_timm_opens_the_run(trained: Path) -> None:
    model = timm.create_model(f"local-dir:{trained}", pretrained=True)
    assert model.num_classes == 8
    assert model.pretrained_cfg["input_size"] in ((3, 32, 32), [3, 32, 32])
