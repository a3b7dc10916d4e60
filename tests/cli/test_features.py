"""features: a row for each image of the manifest, whoever makes it; knn, probe and retrieve on them."""

from __future__ import annotations

import io
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from torchvision.transforms.v2.functional import resize

from in21k.datapipe import rows as rows_module
from in21k.datapipe.pixels import decode
from in21k.shards import open_dataset
from in21k.shards.dataset import read_manifest
from in21k.training import load_run
from in21k.training.features.feature_file import open_features
from in21k.training.inference.layers import FeatureExtractor

from .conftest import run, run_json

BACKENDS = ["torch", "opencv", "dali_cpu"]


def manifest_of(shards: Path, split: str) -> list[dict[str, Any]]:
    table = read_manifest(open_dataset(shards))
    return [row for row in table.to_pylist() if row["split"] == split]


def stored_jpeg(shards: Path, row: dict[str, Any]) -> bytes:
    return (shards / row["shard"]).read_bytes()[row["shard_offset"] : row["shard_offset"] + row["num_bytes"]]


def keys_of(path: Path) -> list[str]:
    return pq.read_table(path)["key"].to_pylist()


def numbers_of(path: Path) -> Any:
    return np.asarray(open_features(path).array(), np.float32)


@pytest.fixture(scope="session")
def cached(shards: Path, trained: Path) -> dict[str, Path]:
    """The features of both splits: {split: file}."""
    paths = {"train": trained.parent / "train.parquet", "val": trained.parent / "val.npy"}
    for split, path in paths.items():
        words = ("--data", shards, "--split", split, "--backend", "torch", "--workers", 1, "--batch-size", 9)
        run_json("features", trained, path, *words)
    return paths


@pytest.mark.parametrize("split", ["train", "val"])
def test_rows_are_those_of_the_manifest_with_what_the_network_makes_of_each(
    cached: dict[str, Path], shards: Path, trained: Path, split: str
) -> None:
    rows = manifest_of(shards, split)
    path = cached[split]
    table = pq.read_table(path.with_suffix(".keys.parquet") if split == "val" else path)
    for column in ("key", "wnid", "class_index"):
        assert table[column].to_pylist() == [row[column] for row in rows]
    pixels = [torch.from_numpy(decode(stored_jpeg(shards, row))) for row in rows]
    images = torch.stack([resize(pixel.permute(2, 0, 1), [32, 32], antialias=True) for pixel in pixels]).float() / 255
    with torch.inference_mode():
        wanted = FeatureExtractor(load_run(trained).model)(images).numpy()
    assert np.allclose(numbers_of(path), wanted, atol=2e-3, rtol=2e-3)


@pytest.mark.parametrize("backend", BACKENDS)
def test_order_does_not_depend_on_loader_workers_or_batches(
    cached: dict[str, Path], shards: Path, trained: Path, backend: str, tmp_path: Path
) -> None:
    if backend == "dali_cpu":
        pytest.importorskip("nvidia.dali")
    out = tmp_path / "out.parquet"
    words = ("--data", shards, "--split", "train", "--backend", backend, "--workers", 2, "--batch-size", 32)
    result = run_json("features", trained, out, *words)
    assert (result["num_rows"], result["left_out"]) == (len(manifest_of(shards, "train")), 0)
    assert keys_of(out) == keys_of(cached["train"])
    assert np.allclose(numbers_of(out), numbers_of(cached["train"]), atol=2e-3, rtol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_two_ranks_make_the_file_of_one(cached: dict[str, Path], shards: Path, trained: Path, tmp_path: Path) -> None:
    torchrun = Path(sys.executable).with_name("torchrun")
    in21k = shutil.which("in21k", path=str(torchrun.parent)) or "in21k"
    words = ["--data", shards, "--split", "train", "--backend", "torch", "--workers", 1, "--batch-size", 9]
    done = subprocess.run(
        [str(torchrun), "--standalone", "--nproc-per-node=2", "--no-python", in21k, "features"]
        + [str(word) for word in (trained, tmp_path / "out.parquet", *words, "--device", "cpu")],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("images of train") == 1
    assert keys_of(tmp_path / "out.parquet") == keys_of(cached["train"])
    assert np.allclose(numbers_of(tmp_path / "out.parquet"), numbers_of(cached["train"]), atol=2e-3, rtol=2e-3)
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_a_file_that_others_wrote_between_the_look_and_the_lock_is_not_replaced(
    cached: dict[str, Path], shards: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, make_loader = tmp_path / "out.parquet", rows_module.create_row_loader

    def meanwhile(*words: Any, **options: Any) -> Any:
        shutil.copy(cached["train"], out)
        return make_loader(*words, **options)

    monkeypatch.setattr(rows_module, "create_row_loader", meanwhile)
    result = run("features", trained, out, "--data", shards, "--split", "val", "--backend", "torch", "--workers", 1)
    assert result.exit_code == 2
    assert "made with other settings" in result.stderr
    assert out.read_bytes() == cached["train"].read_bytes()


def test_what_is_stopped_on_the_way_goes_on_and_ends_as_if_it_had_not_been(
    cached: dict[str, Path], shards: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, forward, seen = tmp_path / "out.parquet", FeatureExtractor.forward, list[int]()

    def dying(self: FeatureExtractor, images: torch.Tensor) -> torch.Tensor:
        seen.append(len(images))
        if sum(seen) > 40:
            raise KeyboardInterrupt
        return forward(self, images)

    words = ("features", trained, out, "--data", shards, "--split", "train", "--backend", "torch", "--batch-size", 9)
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "forward", dying)
        assert run(*words, "--workers", 1).exit_code == 130
    assert not out.exists()
    refused = run(*words, "--dtype", "float32")
    assert refused.exit_code == 2
    assert "was made with other settings (dtype 'float16' -> 'float32')" in refused.stderr
    again: list[int] = []
    monkeypatch.setattr(FeatureExtractor, "forward", lambda s, i: (again.append(len(i)), forward(s, i))[1])
    assert run(*words, "--workers", 2).exit_code == 0
    # Each begins with two black images, to learn the width; 36 images were done.
    assert sum(again) - 2 == len(manifest_of(shards, "train")) - 36
    assert out.read_bytes() == cached["train"].read_bytes()
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]


def test_the_same_again_says_so_and_others_are_not_overwritten(
    cached: dict[str, Path], shards: Path, trained: Path
) -> None:
    words = ("features", trained, cached["val"], "--data", shards)
    before = cached["val"].stat().st_mtime_ns
    result = run(*words)
    assert result.exit_code == 0
    assert "finished already" in result.stdout
    refused = run(*words, "--layer", "layer1")
    assert refused.exit_code == 2
    assert "layer 'pre-logits' -> 'layer1'" in refused.stderr
    assert cached["val"].stat().st_mtime_ns == before


def test_a_corrupt_image_is_left_out_and_named(shards: Path, trained: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(shards, tmp_path / "shards"))
    rows = manifest_of(copy, "val")
    bad = rows[5]
    with (copy / bad["shard"]).open("r+b") as file:
        file.seek(bad["shard_offset"] + 200)
        file.write(b"\xff" * 8)
    result = run_json("features", trained, tmp_path / "out.npy", "--data", copy, "--backend", "torch", "--workers", 1)
    assert result["left_out"] == 1
    assert keys_of(tmp_path / "out.keys.parquet") == [row["key"] for row in rows if row is not bad]
    assert np.load(tmp_path / "out.npy").shape == (len(rows) - 1, result["num_features"])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_makes_the_features_of_a_cpu(shards: Path, trained: Path, tmp_path: Path) -> None:
    words = ("--data", shards, "--backend", "torch", "--workers", 1, "--batch-size", 9)
    run_json("features", trained, tmp_path / "cpu.npy", *words, "--device", "cpu")
    for amp, tolerance in (("off", 0.02), ("auto", 0.1)):  # TF32, and bf16
        made = run_json("features", trained, tmp_path / f"{amp}.npy", *words, "--device", "cuda", "--amp", amp)
        assert made["amp"] == {"off": "off", "auto": "bf16"}[amp]
        assert keys_of(tmp_path / f"{amp}.keys.parquet") == keys_of(tmp_path / "cpu.keys.parquet")
        ours, theirs = numbers_of(tmp_path / f"{amp}.npy"), numbers_of(tmp_path / "cpu.npy")
        assert np.abs(ours - theirs).max() <= tolerance * np.abs(theirs).max()


def test_layers_are_listed_and_taken(shards: Path, trained: Path, tmp_path: Path) -> None:
    layers = {item["layer"]: item for item in run_json("features", trained, "--layer", "list")}
    assert layers["layer2"]["shape"] == [128, 4, 4]
    words = ("--data", shards, "--layer", "layer2", "--dtype", "float32", "--backend", "torch")
    result = run_json("features", trained / "checkpoints" / "best.pt", tmp_path / "out.npy", *words)
    assert result["num_features"] == 128
    assert np.load(tmp_path / "out.npy").dtype == np.float32


def test_a_model_of_timm_is_prepared_as_its_configuration_says(shards: Path, trained: Path, tmp_path: Path) -> None:
    words = ("--data", shards, "--backend", "torch", "--workers", 1)
    timms = run_json("features", f"local-dir:{trained}", tmp_path / "timm.npy", *words)
    ours = run_json("features", trained, tmp_path / "ours.npy", *words)
    assert (timms["weights"], ours["weights"]) == ("published", "last")
    assert timms["mean"] == ours["mean"]
    assert timms["crop_pct"] is None  # the run's configuration says that images are squashed
    assert np.allclose(np.load(tmp_path / "timm.npy"), np.load(tmp_path / "ours.npy"), atol=2e-3)


def test_what_finetune_packed_is_taken_as_its_shards_are(trained: Path, tmp_path: Path) -> None:
    draws = np.random.default_rng(0)
    for place, name in enumerate(("cat", "dog") * 4):
        (tmp_path / "mine" / name).mkdir(parents=True, exist_ok=True)
        pixels = draws.integers(0, 256, (40, 36, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "mine" / name / f"{place}.png")
    pack = ("finetune", "--init", trained, "--data", tmp_path / "mine", "--pack-only", "--workers", 1)
    run_json(*pack, "--out", tmp_path / "run", "--set", "image_size=32")
    words = ("--split", "train", "--backend", "opencv", "--workers", 1)
    result = run_json("features", trained, tmp_path / "a.npy", "--data", tmp_path / "run-data", *words)
    assert result["num_rows"] == 6
    output = run("features", trained, tmp_path / "a.npy", "--data", tmp_path / "run-data" / "shards", *words)
    assert "finished already" in output.stdout
    key = pq.read_table(tmp_path / "a.keys.parquet")["key"][0].as_py()
    (actual,) = run_json("retrieve", tmp_path / "a.npy", key, "--data", tmp_path / "run-data", "--count", 2)
    assert {row["name"] for row in actual["nearest"]} <= {"cat", "dog"}
    run_json("features", trained, tmp_path / "b.npy", "--data", tmp_path / "run-data", *words[2:], "--split", "val")
    judged = run_json("knn", tmp_path / "a.npy", tmp_path / "b.npy", "--tree", tmp_path / "run-data", "--k", 1)
    assert "semantic_top1" in judged["results"][0]


def test_label_sets_are_no_classes_unless_their_shards_are_named(labels_run: Path, tmp_path: Path) -> None:
    data = labels_run.with_name("run-data")
    words = ("features", labels_run, tmp_path / "out.npy", "--backend", "opencv", "--workers", 1)
    refused = run(*words, "--data", data)
    assert refused.exit_code == 2
    assert "several labels, and a row of features has one class; give" in refused.stderr
    assert run_json(*words, "--data", data / "shards")["num_rows"] == 15


def test_knn_probe_and_their_texts(cached: dict[str, Path], shards: Path, trained: Path) -> None:
    pair = (cached["train"], cached["val"])
    output = run_json("knn", *pair, "--k", 1, "--k", 5, "--tree", trained)
    assert [set(row) for row in output["results"]] == [{"k", "top1", "top5", "semantic_top1"}] * 2
    assert output["num_classes"] == 8
    assert "semantic top-1 %" in run("knn", *pair, "--tree", shards / "tree.json").stdout
    words = ("probe", *pair, "--shots", 1, "--shots", 3, "--seeds", 2, "--epochs", 1, "--lr", 1, "--lr", 10)
    output = run_json(*words, "--tree", shards)
    assert [row["shots"] for row in output["few_shot"]] == [1, 3]
    assert output["linear"]["lr"] in (1, 10)
    text = run(*words).stdout
    assert "ridge, 3 shots" in text
    assert "logistic, all images" in text


def test_an_image_finds_itself_among_the_stored_ones_and_is_drawn(
    cached: dict[str, Path], shards: Path, trained: Path, tmp_path: Path
) -> None:
    rows = manifest_of(shards, "train")
    Image.open(io.BytesIO(stored_jpeg(shards, rows[3]))).save(tmp_path / "mine.png")
    words = ("retrieve", cached["train"], tmp_path / "mine.png", rows[0]["key"], "--model", trained, "--count", 4)
    outside, inside = run_json(*words, "--data", shards, "--picture", tmp_path / "out.png")
    assert outside["nearest"][0]["key"] == rows[3]["key"]
    assert outside["nearest"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert set(outside["nearest"][0]) == {"key", "wnid", "similarity", "name"}
    assert inside["wnid"] == rows[0]["wnid"]
    assert rows[0]["key"] not in [row["key"] for row in inside["nearest"]]
    similarities = [row["similarity"] for row in inside["nearest"]]
    assert similarities == sorted(similarities, reverse=True)
    with Image.open(tmp_path / "out.png") as picture:
        assert picture.width >= 128 * 5
        assert len(set(picture.resize((64, 64)).get_flattened_data())) > 100
    assert rows[3]["key"] in run(*words).stdout


def test_every_image_of_a_file_is_a_query_when_it_is_evaluated(cached: dict[str, Path], shards: Path) -> None:
    result = run_json("retrieve", cached["train"], "--evaluate", "--count", 7, "--tree", shards)
    file = open_features(cached["train"])
    features = np.asarray(file.array(), np.float64)
    features /= np.linalg.norm(features, axis=1, keepdims=True)
    similarity = features @ features.T
    np.fill_diagonal(similarity, -2)
    labels = file.classes[1]
    hits = labels[similarity.argmax(axis=1)] == labels
    assert result["recall_at_1"] == pytest.approx(100 * hits.mean(), abs=100 / len(labels))  # but for a tie
    assert (result["k"], result["num_queries"], result["num_images"]) == (7, len(labels), len(labels))
    assert len(result["per_level"]) > 1
    text = run("retrieve", cached["train"], "--evaluate", "--count", 7, "--tree", shards).stdout
    for words in ("mAP@7 %", "the same class", "the same ancestor at level 1"):
        assert words in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("features", "RUN", "out.npy"), "--data SHARDS"),
        (("features", "RUN", "out.txt", "--data", "SHARDS"), "NAME.parquet or NAME.npy"),
        (("features", "RUN", "out.npy", "--data", "SHARDS", "--split", "test"), "no split 'test'"),
        (("features", "RUN", "out.npy", "--data", "SHARDS", "--batch-size", "100000000000"), "not in the range 1<=x<="),
        (
            ("features", "RUN", "out.npy", "--data", "SHARDS", "--batch-size", "60000", "--image-size", "8192"),
            "GB are free",
        ),
        (("features", "RUN", "out.npy", "--data", "SHARDS", "--layer", "layer9"), "near ones: layer"),
        (("features", "RUN", "no/out.npy", "--data", "SHARDS"), "the folder no does not exist"),
        (("features", "RUN", "out.npy", "--data", "SHARDS", "--backend", "webdataset"), "follows no manifest"),
        (("features", "resnet5000", "out.npy", "--data", "SHARDS"), "nearest: resnet50"),
        (("knn", "TRAIN", "TRAIN"), "hold the same images"),
        (("knn", "TRAIN", "VAL", "--k", "5000"), "k is 5000"),
        (("knn", "TRAIN", "VAL", "--tree", "no"), "wanted a tree.json"),
        (("probe", "TRAIN", "no.npy"), "no such file"),
        (("probe", "TRAIN", "VAL", "--no-few-shot", "--no-ridge", "--no-linear"), "nothing is left to fit"),
        (("probe", "TRAIN", "VAL", "--lr", "1", "--lr", "nan"), "wanted finite rates above 0"),
        (("probe", "TRAIN", "VAL", "--lr", "inf"), "wanted finite rates above 0"),
        (("probe", "TRAIN", "VAL", "--epochs", "0"), "'--epochs': 0 is not in the range x>=1"),
        (("probe", "TRAIN", "VAL", "--seeds", "0"), "'--seeds': 0 is not in the range x>=1"),
        (("probe", "TRAIN", "VAL", "--shots", "-1"), "'--shots': -1 is not in the range x>=1"),
        (("probe", "TRAIN", "VAL", "--shots", "999"), "shots are 999; beside what is held back its 8 classes have"),
        (("knn", "TRAIN", "VAL", "--k", "0"), "k is 0"),
        (("knn", "TRAIN", "VAL", "--temperature", "nan"), "temperature is nan; wanted a number above 0"),
        (("retrieve", "nothere", "n9_9"), "nothere: does not exist; wanted features that `in21k features` wrote"),
        (("retrieve", "TRAIN", "n9_9"), "neither an image file nor a key in"),
        (("retrieve", "TRAIN", "IMAGE"), "give by --model the network that made"),
        (("retrieve", "TRAIN", "n9_9", "--evaluate"), "--evaluate takes FEATURES alone"),
        (("retrieve", "TRAIN"), "give keys or image files to find the nearest images of, or --evaluate"),
        (("retrieve", "nothere", "--evaluate"), "nothere: does not exist; wanted features"),
        (("retrieve", "TRAIN", "n9_9", "--picture", "out.png"), "give the shards by --data"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_mistakes_end_with_one_line(
    words: tuple[str, ...],
    message: str,
    cached: dict[str, Path],
    shards: Path,
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (32, 32)).save(tmp_path / "some.png")
    places = {"RUN": trained, "SHARDS": shards, "TRAIN": cached["train"], "VAL": cached["val"], "IMAGE": "some.png"}
    result = run(*(places.get(word, word) for word in words))
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["some.png"]


def test_another_network_is_no_judge_of_an_image(
    cached: dict[str, Path], shards: Path, trained: Path, tmp_path: Path
) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "some.png")
    checkpoint = torch.load(trained / "checkpoints" / "last.pt", weights_only=True)
    checkpoint["model"]["conv1.0.weight"] += 1
    torch.save(checkpoint, tmp_path / "other.pt")
    refused = run("retrieve", cached["train"], tmp_path / "some.png", "--model", tmp_path / "other.pt")
    assert refused.exit_code == 2
    assert "has other weights than the network that made" in refused.stderr
