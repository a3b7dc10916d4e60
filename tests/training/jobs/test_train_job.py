"""jobs.train and jobs.plan_training: shards to a run, from Python."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from in21k.datapipe import create_loader
from in21k.shards import ShardSet
from in21k.training import TrainSettings, jobs, load_run
from in21k.training.run import Stopped

TINY: dict[str, Any] = {
    **{"model": "resnet10t", "backend": "torch", "batch_size": 16, "epochs": 2, "workers": 1, "trackers": []}
}


def steps_in(folder: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (folder / "log.jsonl").read_text().splitlines())
    return [line for line in lines if "loss" in line]


def test_a_training_prints_nothing_and_its_callbacks_hear_of_everything(
    shard_set: ShardSet, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plans: list[dict[str, Any]] = []
    starts: list[tuple[int, int]] = []
    steps: list[dict[str, Any]] = []
    validations: list[dict[str, Any]] = []
    metrics = jobs.train(
        shard_set.path,
        tmp_path / "run",
        recipe="tiny",
        settings=TINY,
        device="cpu",
        on_plan=plans.append,
        on_start=lambda step, num_steps: starts.append((step, num_steps)),
        on_step=steps.append,  # pyright: ignore[reportArgumentType]
        on_validation=validations.append,  # pyright: ignore[reportArgumentType]
    )
    assert capfd.readouterr() == ("", "")
    assert isinstance(metrics, dict)
    assert metrics == json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert starts == [(0, plans[0]["num_steps"])]
    assert steps == steps_in(tmp_path / "run")
    assert len(steps) == metrics["num_steps"] == plans[0]["num_steps"]
    assert [line["validation"]["semantic_top1"] for line in validations][-1] == metrics["semantic_top1"]
    assert load_run(tmp_path / "run").tree == shard_set.tree


def test_a_plan_writes_nothing_and_is_what_the_training_announces(shard_set: ShardSet, tmp_path: Path) -> None:
    plan = jobs.plan_training(shard_set, tmp_path / "run", settings=TINY, device="cpu")
    assert not (tmp_path / "run").exists()
    assert TrainSettings(**plan["settings"]).image_size == shard_set.image_size
    announced: list[dict[str, Any]] = []
    jobs.train(shard_set, tmp_path / "run", settings=TINY, device="cpu", on_plan=announced.append)
    assert plan.pop("memory_mb")["total"] > 0
    assert {**announced[0], "machine": None} == {**plan, "machine": None}


def test_a_stopped_training_resumes_by_the_same_call(shard_set: ShardSet, tmp_path: Path) -> None:
    import os
    import signal

    def stop(line: Any) -> None:
        if line["step"] == 2:
            os.kill(os.getpid(), signal.SIGTERM)

    sets = {**TINY, "deterministic": True}
    try:
        whole = jobs.train(shard_set, tmp_path / "whole", settings=sets, device="cpu")
        stopped = jobs.train(shard_set, tmp_path / "run", settings=sets, device="cpu", on_step=stop)
        assert isinstance(stopped, Stopped)
        assert stopped.step < stopped.num_steps
        assert jobs.train(shard_set, tmp_path / "run", settings=sets, device="cpu") == whole
    finally:
        torch.use_deterministic_algorithms(False)


def test_single_settings_win_over_the_recipe_none_included(shard_set: ShardSet, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("ema: 0.9\nlr: 0.5\n")
    job: dict[str, Any] = {"recipe": str(tmp_path / "mine.yaml"), "settings": {**TINY, "ema": None}}
    settings = jobs.plan_training(shard_set, tmp_path / "run", **job, device="cpu")["settings"]
    assert (settings["ema"], settings["lr"]) == (None, 0.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batchsize": 3}, "unknown setting 'batchsize'; nearest: batch_size"),
        ({"epochs": "many"}, "epochs is 'many'; wanted a whole number"),
        ({"backend": "dali_gpu"}, "needs a GPU and --device cpu was given"),
    ],
)
def test_a_mistake_is_a_value_error_and_nothing_is_written(
    shard_set: ShardSet, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        jobs.train(shard_set, tmp_path / "run", settings=settings, device="cpu")
    assert not (tmp_path / "run").exists()


def test_a_setting_of_the_loader_alone_reaches_it(
    shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ValueError, match=r"hw_decoder_load is 0\.4; it goes with backend dali_gpu, and this is torch"):
        jobs.train(shard_set, tmp_path / "run", settings={**TINY, "hw_decoder_load": 0.4}, device="cpu")
    loaders: list[Any] = []

    def create(*arguments: Any, **named: Any) -> Any:
        loaders.append(create_loader(*arguments, **named))
        return loaders[-1]

    monkeypatch.setattr("in21k.training.jobs.train_job.create_loader", create)
    settings = {**TINY, "augment": "inception", "crop_pct": 0.5, "max_bad_rate": 0.25, "epochs": 1}
    jobs.train(shard_set, tmp_path / "run", settings=settings, device="cpu")
    for_training, for_validation = (loader.settings for loader in loaders)
    assert (for_training.augment, for_training.crop_pct, for_training.max_bad_rate) == ("inception", None, 0.25)
    assert (for_validation.augment, for_validation.crop_pct, for_validation.max_bad_rate) == ("none", 0.5, 0.25)
