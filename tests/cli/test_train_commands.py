"""train, validate, predict: judged by what they print and the files they leave."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
from PIL import Image

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


def test_cross_entropy_trains_with_dali(shards: Path, tmp_path: Path) -> None:
    pytest.importorskip("nvidia.dali")
    metrics = run_json(
        *("train", "--data", shards, "--out", tmp_path / "run", "--loss", "cross-entropy", "--backend", "dali_cpu"),
        *("--model", "resnet10t", "--set", "epochs=1", "--set", "batch_size=16", "--device", "cpu"),
    )
    assert metrics["num_epochs"] == 1


@pytest.mark.parametrize("weights", ["last", "best"])
@pytest.mark.parametrize("backend", ["torch", "dali_cpu"])
def test_validate_prints_what_training_measured(trained: Path, shards: Path, weights: str, backend: str) -> None:
    if backend == "dali_cpu":
        pytest.importorskip("nvidia.dali")
    result = run_json("validate", trained, "--data", shards, "--weights", weights, "--backend", backend)
    assert {"semantic_top1", "top1", "top5", "num_samples", "per_level"} <= set(result)
    assert [set(row) for row in result["per_level"]] == [{"level", "num_classes", "num_samples", "top1"}] * len(
        result["per_level"]
    )
    metrics = json.loads((trained / "metrics.json").read_text())
    key = "semantic_top1" if weights == "last" else "best_semantic_top1"
    assert result["semantic_top1"] == pytest.approx(metrics[key])
    assert "always the commonest answer" in run("validate", trained / "checkpoints/last.pt", "--data", shards).stdout


def test_predict_goes_from_general_to_particular_and_draws_it(trained: Path, tmp_path: Path) -> None:
    upright, sideways = tmp_path / "upright.png", tmp_path / "rgba.webp"
    Image.radial_gradient("L").resize((120, 80)).convert("RGB").save(upright)
    Image.new("RGBA", (30, 50), "red").save(sideways)
    predictions = run_json("predict", trained, upright, sideways, "--picture", tmp_path / "out.png")
    assert [Path(prediction["image"]) for prediction in predictions] == [upright, sideways]
    for prediction in predictions:
        levels = [answer["level"] for answer in prediction["levels"]]
        assert levels == sorted(levels)
        assert prediction["chain"] == prediction["levels"][: len(prediction["chain"])]
        assert len(prediction["top5"]) == 5
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.height > 500
    assert str(upright) in run("predict", trained, upright).stdout


def test_timm_opens_the_run(trained: Path) -> None:
    model = timm.create_model(f"local-dir:{trained}", pretrained=True)
    assert model.num_classes == 8
    assert model.pretrained_cfg["input_size"] in ((3, 32, 32), [3, 32, 32])
