"""jobs.validate, validate_imagenet1k, extract_features, predict and retrieve: trained networks asked from Python."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from PIL import Image

from in21k.cli.main import cli
from in21k.datapipe import rows as row_loaders
from in21k.shards import ShardSet
from in21k.shards.files.parallel import Progress
from in21k.training import jobs, open_model
from in21k.training.features.feature_file import open_features
from in21k.training.jobs import EvalSettings, FeatureSettings, validate_job
from in21k.training.jobs.image_sources import SkippedFiles

SETTINGS = EvalSettings(backend="torch", workers=1, device="cpu", batch_size=4)
FEATURES = FeatureSettings(backend="torch", workers=1, device="cpu", batch_size=4)
Draw = Callable[..., Image.Image]


@pytest.fixture(scope="module")
def run(shard_set: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run on the shards."""
    path = tmp_path_factory.mktemp("ask") / "run"
    settings: dict[str, Any] = {"model": "resnet10t", "backend": "torch", "batch_size": 8, "epochs": 1, "workers": 1}
    sets = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    result = CliRunner().invoke(cli, ["train", "--data", str(shard_set.path), "--out", str(path), *sets])
    assert result.exit_code == 0, result.output
    return path


@pytest.fixture(scope="module")
def features(run: Path, shard_set: ShardSet) -> Path:
    """The features of the validation images."""
    path = run.with_name("val.parquet")
    jobs.extract_features(run, shard_set, path, FEATURES)
    return path


def test_a_validation_prints_nothing_and_measures_what_training_measured(
    run: Path, shard_set: ShardSet, capfd: pytest.CaptureFixture[str]
) -> None:
    steps: list[Progress] = []
    validation = jobs.validate(run, shard_set.path, SETTINGS, on_progress=steps.append)
    assert capfd.readouterr() == ("", "")
    metrics = json.loads((run / "metrics.json").read_text())
    for name in ("semantic_top1", "top1", "top5"):
        assert validation.metrics[name] == pytest.approx(metrics[name])
    assert validation.metrics["num_samples"] == shard_set.num_samples["val"] == steps[-1].images
    assert [step.fraction for step in steps] == sorted(step.fraction for step in steps)
    assert steps[-1].fraction == 1
    assert validation.per_class()["wnid"].to_pylist() == list(shard_set.tree.wnids)
    assert validation.metrics == jobs.validate(open_model(run), shard_set, SETTINGS).metrics


def test_saved_predictions_give_the_metrics_and_the_classes_of_the_network(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    validation = jobs.validate(run, shard_set.path, SETTINGS)
    validation.save_predictions(tmp_path / "predictions.parquet")
    saved = jobs.measure_saved(tmp_path / "predictions.parquet")
    assert saved.metrics == validation.metrics
    assert saved.per_class() == validation.per_class()
    assert saved.provenance == validation.provenance
    assert saved.provenance["data"] == str(shard_set.path)
    with pytest.raises(ValueError, match="no answers to save"):
        saved.save_predictions(tmp_path / "again.parquet")


def test_what_a_validation_cannot_use_is_refused_before_any_work(
    run: Path, shard_set: ShardSet, tmp_path: Path
) -> None:
    for model, data, reason in (
        (run, tmp_path / "nowhere", "does not exist; wanted shards"),
        (tmp_path / "nowhere", shard_set.path, "does not exist, and timm knows no such model"),
    ):
        with pytest.raises(ValueError, match=reason):
            jobs.validate(model, data, SETTINGS)
    with pytest.raises(ValueError, match="has no image in a folder or a tar named by a wnid of ImageNet-1K"):
        jobs.validate_imagenet1k(run, tmp_path, SETTINGS)


def test_features_are_those_of_every_image_and_a_second_call_leaves_them(
    run: Path, shard_set: ShardSet, features: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    before = features.stat().st_mtime_ns
    again = jobs.extract_features(run, shard_set.path, features, FEATURES)
    assert capfd.readouterr() == ("", "")
    assert (again.was_finished, again.num_rows, again.num_corrupt) == (True, shard_set.num_samples["val"], 0)
    assert features.stat().st_mtime_ns == before
    file = open_features(features)
    assert (len(file), file.num_features) == (again.num_rows, again.provenance["num_features"])
    with pytest.raises(ValueError, match="layer 'pre-logits' -> 'layer1'"):
        jobs.extract_features(run, shard_set.path, features, FeatureSettings(layer="layer1", device="cpu"))


def test_predictions_come_one_by_one_with_errors_in_their_places(run: Path, tmp_path: Path, draw: Draw) -> None:
    for name in ("a.png", "c.png"):
        draw(40, 50).save(tmp_path / name)
    (tmp_path / "b.jpg").write_bytes(b"junk")
    (tmp_path / "note.txt").write_text("no image")
    skipped, steps = SkippedFiles(), list[Progress]()
    answers = jobs.predict(run, [tmp_path], SETTINGS, skipped=skipped, on_progress=steps.append)
    rows = [answer.row for answer in answers]
    assert [Path(row["image"]).name for row in rows] == ["a.png", "b.jpg", "c.png"]
    assert "not an image" in rows[1]["error"]
    assert len(rows[0]["top5"]) == 5
    assert rows[0]["top5"][0]["definition"]
    assert str(skipped) == "1 file (.txt 1)"
    assert [step.images for step in steps] == [0, 1, 2, 3]
    with pytest.raises(ValueError, match=r"nowhere: does not exist; wanted an image"):
        jobs.predict(run, [tmp_path / "nowhere"], SETTINGS)


def test_queries_are_keys_with_their_classes_and_image_files_with_the_network(
    run: Path, shard_set: ShardSet, features: Path, tmp_path: Path
) -> None:
    table = pq.read_table(features)
    key, wnid = table["key"][0].as_py(), table["wnid"][0].as_py()
    retrieved = jobs.retrieve(features, [key], SETTINGS, count=2, data=shard_set.path)
    assert retrieved.rows[0]["wnid"] == wnid
    assert retrieved.rows[0]["name"] == shard_set.tree.names[shard_set.tree.wnids.index(wnid)]
    assert key not in [answer["key"] for answer in retrieved.rows[0]["nearest"]]
    pixels = np.array(retrieved.draw())
    assert pixels.ndim == 3
    with pytest.raises(ValueError, match="the shards hold the images to draw"):
        jobs.retrieve(features, [key], SETTINGS, count=2).draw()
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    with pytest.raises(ValueError, match="give by --model the network that made"):
        jobs.retrieve(features, [str(tmp_path / "picture.png")], SETTINGS)
    by_file = jobs.retrieve(features, [str(tmp_path / "picture.png")], SETTINGS, model=run, count=1)
    assert "wnid" not in by_file.rows[0]
    assert -1 <= by_file.rows[0]["nearest"][0]["similarity"] <= 1


def test_settings_of_the_loader_reach_it_by_one_name(
    run: Path, shard_set: ShardSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    handed_over: list[dict[str, Any]] = []
    for place, name in ((validate_job, "create_loader"), (row_loaders, "create_row_loader")):
        create = getattr(place, name)

        def watch(*words: Any, create: Any = create, **settings: Any) -> Any:
            handed_over.append(settings)
            return create(*words, **{**settings, "hw_decoder_load": None})

        monkeypatch.setattr(place, name, watch)
    sets = ("--set", "hw_decoder_load=0.8", "--set", "max_bad_rate=0.5", "--set", "crop_pct=0.9")
    words = ("--data", str(shard_set.path), "--backend", "torch", "--workers", "1", "--device", "cpu")
    for command in (("validate", str(run)), ("features", str(run), str(tmp_path / "f.npy"))):
        result = CliRunner().invoke(cli, [*command, *words, *sets])
        assert result.exit_code == 0, result.output
    assert [(s["hw_decoder_load"], s["max_bad_rate"], s["crop_pct"]) for s in handed_over] == [(0.8, 0.5, 0.9)] * 2
    assert open_features(tmp_path / "f.npy").provenance["crop_pct"] == 0.9
    for given, message in (
        ("seed=1", "the network decides it"),
        ("hw_decoder_load=2", "wanted 0 to 1"),
        ("hw_decoder_laod=1", "hw_decoder_load"),
    ):
        result = CliRunner().invoke(cli, ["validate", str(run), *words, "--set", given])
        assert result.exit_code == 2
        assert message in result.stderr
    both = CliRunner().invoke(cli, ["validate", str(run), *words, "--set", "workers=2"])
    assert "workers is given twice" in both.stderr
