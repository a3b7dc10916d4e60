"""bench-model: what it counts, and the shape of its tables. No time is asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from in21k.shards import open_dataset

from ..models.published_files import write_published
from .conftest import run, run_json

torch.set_num_threads(1)  # the networks are small, and the tests' processes share the cores

SHORT = ("--device", "cpu", "--rounds", 2, "--seconds", 0, "--batch-size", 2)


def test_a_named_network_and_a_run_are_counted_and_measured(trained: Path) -> None:
    result = run_json("bench-model", "vit_tiny_patch16_224", trained, "--image-size", 32, *SHORT)
    named, own = result["models"]
    assert (named["name"], own["name"]) == ("vit_tiny_patch16_224", str(trained))
    assert own["num_parameters"] < 5_000_000 < named["num_parameters"]
    for model in result["models"]:
        assert (model["precision"], model["image_size"], model["batch_size"]) == ("float32", 32, 2)
        assert model["num_flops"] == 2 * model["num_macs"] > 0
        assert "largest_training_batch" not in model
        for rate in (model["training_images_per_s"], model["inference_images_per_s"]):
            assert 0 < rate["min"] <= rate["median"] <= rate["max"]
            assert len(rate["rounds"]) == 2
        assert set(model["latency_ms"]) == {"1", "64"}
        assert all(0 < took["min"] <= took["median"] <= took["p95"] for took in model["latency_ms"].values())
    assert result["failed"] == {}


def test_the_tables_have_a_row_for_each_network_and_precision() -> None:
    words = ("bench-model", "resnet10t", "--image-size", 32, *SHORT, "--precision", "float32", "--precision", "bf16")
    text = run(*words, "--num-classes", 7, "--channels-last")
    assert text.exit_code == 0, text.output
    head, first, second, *rest = text.stdout.splitlines()
    assert head.split()[:3] == ["model", "precision", "pixels"]
    assert (first.split()[1], second.split()[1]) == ("float32", "bf16")
    assert rest[-1].startswith("cpu, torch ")
    assert "channels last" in rest[-1]
    lines = run(*words, "--markdown").stdout.splitlines()
    assert lines[1].startswith("|---|---:|")
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith("| resnet10t | float32 | 32 |")


def test_the_published_tables_come_from_one_command(trained: Path, shards: Path, tmp_path: Path) -> None:
    weights = write_published(tmp_path / "w.pth", "mobilenetv3_large_100", 3)
    results = {
        "semantic.json": {"semantic_top1": 73.1, "top1": 40.0},
        "in1k.json": {"top1": 65.5, "num_imagenet1k_classes": 1000},
    }
    for name, metrics in results.items():
        (tmp_path / name).write_text(json.dumps(metrics))
    sizes = ("--image-size", 32, "--fill", 0.9, "--memory", 0.12, "--rounds", 1, "--seconds", 0, "--device", "cpu")
    words = ("bench-model", "resnet10t", trained, weights, *sizes, "--data", shards, "--epochs", 10)
    words = (*words, *(word for name in results for word in ("--results", f"{weights}={tmp_path / name}")))
    result = run_json(*words)
    assert result["failed"] == {}
    num_train = open_dataset(shards).num_samples["train"]
    for row in result["models"]:
        assert row["batch_size"] == int(0.9 * row["largest_training_batch"])
        assert row["train_hours"] == pytest.approx(num_train * 10 / row["training_images_per_s"]["median"] / 3600)
    named, own, published = result["models"]
    assert "semantic_top1" not in named
    assert own["semantic_top1"] == json.loads((trained / "metrics.json").read_text())["semantic_top1"]
    assert (published["semantic_top1"], published["imagenet1k_top1"]) == (73.1, 65.5)
    head, _, *lines = run(*words, "--markdown").stdout.splitlines()
    assert head.split(" | ")[-3:] == ["train 10 epochs (h)", "semantic top-1 %", "IN-1K top-1 % |"]
    assert lines[2].endswith("| 73.1 | 65.5 |")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("resnet5O",), "unknown model 'resnet5O'"),
        (("resnet10t", "--markdown", "--json"), "wanted one of them"),
        (("maxvit_nano_rw_256", "--image-size", 33), "takes no images of 33 x 33"),
        (("resnet10t", "--batch-size", 1), "--batch-size"),
        (("resnet10t", "--batch-size", 10**11), "is not in the range 2<=x<=65536"),
        (("resnet10t", "--seconds", "nan"), "--seconds is nan; wanted"),
        (("resnet10t", "--seconds", "inf"), "--seconds is inf; wanted"),
        (("resnet10t", "--seconds", "-1"), "'--seconds': -1.0 is not in the range x>=0"),
        (("resnet10t", "--image-size", 8192, "--batch-size", 4000), "GB are free; lower --batch-size or --image-size"),
        (("resnet10t", "--fill", 0.9, "--batch-size", 4), "leave --batch-size out"),
        (("resnet10t", "--memory", 1), "give --fill too"),
        (("resnet10t", "--fill", 0.9, "--memory", 0.01), "not even 2 images of 176 pixels train in 0.01 GB"),
        (("resnet10t", "--results", "resnet10t=nowhere.json"), "wanted NAME=FILE"),
        ((), "Missing argument"),
    ],
)
def test_what_cannot_be_measured_is_one_line(words: tuple[object, ...], message: str) -> None:
    refused = run("bench-model", *words, "--device", "cpu")
    assert refused.exit_code == 2
    assert message in refused.stderr
    assert refused.stdout == ""


def test_a_run_has_the_classes_that_it_has(trained: Path) -> None:
    refused = run("bench-model", trained, "--num-classes", 7, *SHORT)
    assert refused.exit_code == 2
    assert "leave --num-classes out" in refused.stderr


def test_what_the_memory_does_not_hold_is_named_and_the_others_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("in21k.training.memory.free_bytes", lambda: 150_000_000)
    output = run_json("bench-model", "resnet10t", "vit_base_patch16_224", "--image-size", 32, *SHORT)
    assert [model["name"] for model in output["models"]] == ["resnet10t"]
    assert (
        "images of 32 pixels take 1.4 GB of memory or more, and 0.1 GB are free"
        in output["failed"]["vit_base_patch16_224 float32"]
    )


@pytest.mark.slow
def test_a_compiled_network_is_measured() -> None:
    counters.clear()
    result = run("bench-model", "resnet10t", "--image-size", 32, *SHORT, "--compile")
    assert result.exit_code == 0, result.output
    assert ", compiled, medians of" in result.stdout.splitlines()[-1]
    assert counters["frames"]["ok"] > 1  # the one that trains, and the one that answers


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_on_a_gpu_the_largest_batch_is_found_too() -> None:
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction(2e9 / total)
    try:
        words = ("--image-size", 64, "--device", "cuda", "--rounds", 1, "--seconds", 0, "--batch-size", 4)
        output = run_json("bench-model", "resnet10t", *words, "--precision", "bf16", "--precision", "fp16")
        assert output["failed"] == {}
        assert [model["precision"] for model in output["models"]] == ["bf16", "fp16"]
        for model in output["models"]:
            assert 4 <= model["largest_training_batch"] < 65_536
            assert model["training_images_per_s"]["median"] > 0
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        torch.cuda.empty_cache()


def test_a_gpu_that_is_not_there_is_missed() -> None:
    refused = run("bench-model", "resnet10t", "--device", "cuda")
    assert refused.exit_code == 2
    assert "GPU" in refused.stderr
