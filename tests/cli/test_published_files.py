"""Every command that takes a network takes a file of published weights, too."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from in21k.shards import open_dataset
from in21k.training import open_model

from ..models.published_files import write_published
from .conftest import run, run_json

CPU = ("--device", "cpu")
IMAGE = next((Path(__file__).parents[2] / "docs" / "pictures").glob("*.png"))


@pytest.fixture(scope="module")
def weights(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network of the zoo for the classes of the shards, as the authors write them."""
    path = tmp_path_factory.mktemp("published") / "mobilenetv3_large_100_miil_21k.pth"
    return write_published(path, "mobilenetv3_large_100", len(open_dataset(shards).tree))


def test_validate_and_predict_take_it_with_the_classes_of_a_tree(
    weights: Path, shards: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loading = ("--backend", "torch", "--workers", 1, *CPU)
    metrics: dict[str, Any] = run_json("validate", weights, "--data", shards, "--classes", shards, *loading)
    assert metrics["num_samples"] == open_dataset(shards).num_samples["val"]
    tree = open_dataset(shards).tree
    (image,) = run_json("predict", weights, IMAGE, "--classes", shards / "tree.json", *CPU)
    assert {answer["wnid"] for answer in image["top5"]} <= set(tree.wnids)
    result = run("predict", weights, IMAGE, "--model", "mobilenetv3_large_100", *CPU)
    assert "MobilenetV3_large_100 of the zoo (mobilenetv3_large_100" in caplog.text
    assert "likeliest of all classes: class " in result.stdout


def test_a_head_of_unknown_classes_is_refused_with_the_way_out(weights: Path, shards: Path) -> None:
    refused = run("validate", weights, "--data", shards, *CPU)
    assert refused.exit_code == 2
    assert "--classes" in refused.stderr


def test_features_and_retrieve_take_it(weights: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "val.parquet"
    words = ("--data", shards, "--backend", "torch", "--workers", 1, "--image-size", 64, *CPU)
    assert run_json("features", weights, out, *words)["num_features"] == 1280
    (row,) = run_json("retrieve", out, IMAGE, "--model", weights, "--count", 1, *CPU)
    assert len(row["nearest"]) == 1


def test_finetune_and_train_begin_from_it(weights: Path, shards: Path, tmp_path: Path) -> None:
    words = ("--data", shards, "--out", tmp_path / "run", "--dry-run", *CPU)
    plan: dict[str, Any] = run_json("finetune", "--init", weights, *words)
    assert (plan["settings"]["model"], plan["settings"]["normalize"]) == ("mobilenetv3_large_100", "unit")
    vit = write_published(tmp_path / "vit.pth", "vit_base_patch16_224_miil", 3)
    sets = ("--set", f"init={vit}", "--set", "image_size=224")
    plan = run_json("train", "--model", "vit_base_patch16_224", *sets, *words)
    assert plan["settings"]["model"] == "vit_base_patch16_224_miil"


def test_a_teacher_has_to_know_the_classes(weights: Path, shards: Path, tmp_path: Path) -> None:
    words = ("--data", shards, "--out", tmp_path / "run", "--dry-run", "--set", "image_size=32", *CPU)
    refused = run("train", "--teacher", weights, *words)
    assert refused.exit_code == 2
    assert "no label space of" in refused.stderr
    known = write_published(tmp_path / "w.pth", "mobilenetv3_large_100")
    words = (*words, "--set", "model=resnet10t")
    assert run_json("train", "--teacher", known, *words)["settings"]["teacher"] == str(known)


def test_export_makes_a_folder_of_it_that_can_teach(weights: Path, shards: Path, tmp_path: Path) -> None:
    out = tmp_path / "exported"
    refused = run("export", weights, out)
    assert refused.exit_code == 2
    assert "give --classes" in refused.stderr
    words = ("export", weights, out, "--classes", shards / "tree.json")
    assert run_json(*words)["weights"] == "published"
    assert run_json(*words) == {**json.loads((out / "export.json").read_text()), "path": str(out), "pushed_to": None}
    own, direct = open_model(out), open_model(weights, classes=shards)
    assert own.fingerprint() == direct.fingerprint()
    assert (own.classes and own.classes.wnids) == (direct.classes and direct.classes.wnids)
    assert (own.mean, own.std, own.image_size, own.crop_pct) == (direct.mean, direct.std, 224, None)
    assert "not trained by in21k" in (out / "README.md").read_text()
    assert "trained with" not in (out / "README.md").read_text()
    words = ("--data", shards, "--out", tmp_path / "run", "--dry-run", "--set", "model=resnet10t", *CPU)
    run_json("train", "--teacher", out, *words)


def test_report_asks_it_beside_a_run(weights: Path, trained: Path, shards: Path, tmp_path: Path) -> None:
    asking = ("--data", shards, "--classes", shards, "--images", 1, "--backend", "torch", "--workers", 1, *CPU)
    sections: list[str] = run_json("report", weights, tmp_path / "alone.html", *asking)["sections"]
    assert "Results" not in sections
    assert "Classes" in sections
    page = (tmp_path / "alone.html").read_text()
    assert weights.name in page
    assert "does not know them all" not in page
    assert "Grad-CAM" in page
    run_json("report", weights, tmp_path / "unknown.html", "--data", shards, "--images", 1, *CPU)
    assert "the classes of its outputs are unknown; give --classes" in (tmp_path / "unknown.html").read_text()
    run_json("report", weights, trained, tmp_path / "both.html", *asking)
    assert "does not know them all" not in (tmp_path / "both.html").read_text()
