"""A person's mistake ends with exit code 2 and one clear line, and leaves nothing half-written."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from in21k.datapipe import catalog
from in21k.models import create_model
from in21k.models.export import save_weights

from .conftest import run

Words = Callable[[Path], list[object]]


def assert_refused(result: object, *words: str) -> None:
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = [line for line in result.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("in21k: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "No such file"),
        (b"no tar at all, but some text", "not a tar"),
        (b"", "not a tar"),
        (bytes(10240), "holds no classes"),
    ],
)
def test_an_archive_that_is_none_is_refused(content: bytes | None, message: str, tmp_path: Path) -> None:
    source = tmp_path / "raw.tar"
    if content is not None:
        source.write_bytes(content)
    assert_refused(run("preprocess", "raw-tar", source, tmp_path / "out"), "raw.tar", message)
    assert not (tmp_path / "out").exists()


def test_a_folder_is_no_archive(tmp_path: Path) -> None:
    assert_refused(run("preprocess", "raw-tar", tmp_path, tmp_path / "out"), "is a folder")


def test_an_unreadable_archive_is_refused(raw: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(self: Path, *_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "stat", denied)
    assert_refused(run("preprocess", "raw-tar", raw, tmp_path / "out"), "Permission denied")


def test_an_archive_cut_off_is_refused(raw: Path, tmp_path: Path) -> None:
    cut = tmp_path / "raw.tar"
    cut.write_bytes(raw.read_bytes()[:-100_000])
    assert_refused(run("preprocess", "raw-tar", cut, tmp_path / "out"), "ends inside")
    assert not (tmp_path / "out").exists()


def test_no_class_large_enough_leaves_no_folder(raw: Path, tmp_path: Path) -> None:
    result = run("preprocess", "raw-tar", raw, tmp_path / "out", "--workers", 1)
    assert_refused(result, "no class has more than 500 images", "--rare-threshold")
    assert not (tmp_path / "out").exists()


def test_too_many_rejects_name_class_and_reason_and_a_higher_rate_finishes(raw: Path, tmp_path: Path) -> None:
    words = ("preprocess", "raw-tar", raw, tmp_path / "out", "--rare-threshold", 11, "--val-per-class", 2, "--size", 32)
    assert_refused(run(*words, "--workers", 1), "rejected", "--max-reject-rate", "most in n")
    assert run(*words, "--workers", 1, "--max-reject-rate", 0.2).exit_code == 0


def test_a_folder_with_other_things_is_never_written_to(raw: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    for words in (("preprocess", "raw-tar", raw, tmp_path, "--overwrite"),):
        assert_refused(run(*words), "holds other files")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("shard", "NOWHERE", "OUT"), "no such folder"),
        (("verify", "NOWHERE"), "NOWHERE"),
        (("tree", "show", "NOWHERE"), "no tree.json"),
        (("train", "--data", "NOWHERE", "--out", "OUT"), "no such folder"),
        (("validate", "NOWHERE", "--data", "SHARDS"), "does not exist"),
        (("predict", "NOWHERE", "image.jpg"), "does not exist"),
        (("train", "--data", "PREPARED", "--out", "OUT"), "in21k-shards"),
        (("shard", "SHARDS", "OUT"), "in21k-prepared"),
        (("shard", "PREPARED", "OUT", "--shard-samples", 0), "shard_samples is 0"),
        (("shard", "PREPARED", "OUT", "--shard-samples", 5, "--shard-bytes", 5), "not both"),
        (("tree", "show", "SHARDS", "no such animal"), "no class is called"),
        (("shards",), "No such command"),
        (("shard", "--no-such-option"), "No such option"),
        (("shard",), "Missing argument"),
        (("sample-data", "OUT", "--classes", 1), "8 to"),
    ],
)
def test_what_is_not_there_or_not_that_is_named(
    words: tuple[object, ...],
    message: str,
    prepared: Path,
    shards: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    named = {"PREPARED": prepared, "SHARDS": shards}
    assert_refused(run(*(named.get(str(word), word) for word in words)), message)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--model", "resnet5O"), "unknown model"),
        (("--set", "modle=resnet50"), "unknown setting 'modle'"),
        (("--set", "lr=fast"), "lr is 'fast'"),
        (("--set", "lr"), "KEY=VALUE"),
        (("--recipe", "tinny"), "unknown recipe 'tinny'"),
        (("--loss", "semantics"), "semantic"),
        (("--model", "resnet50", "--set", "model=resnet18"), "twice"),
        (("--set", "model_args={drop_path_rate:0.1}"), "a space after the colon"),
        (("--model", "resnet10t", "--set", "model_args={drop_path_rat: 0.1}"), "nearest: drop_path_rate"),
        (("--set", "init=nowhere.pth"), "nowhere.pth: does not exist"),
    ],
)
def test_training_names_what_it_does_not_know(
    words: tuple[str, ...], message: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert_refused(run("train", "--data", shards, "--out", "run", "--device", "cpu", *words), message)
    assert list(tmp_path.iterdir()) == []


def test_weights_that_hardly_fit_begin_no_training(shards: Path, tmp_path: Path) -> None:
    save_weights(create_model("resnet14t", num_classes=3), tmp_path / "weights.safetensors")
    words = ("train", "--data", shards, "--out", tmp_path / "run", "--model", "resnet10t", "--device", "cpu")
    begin = f"init={tmp_path / 'weights.safetensors'}"
    assert_refused(run(*words, "--set", begin), "hardly fits resnet10t", "--set model=resnet14t", "init_partial=true")
    assert [path.name for path in tmp_path.iterdir()] == ["weights.safetensors"]
    assert run(*words, "--set", begin, "--set", "init_partial=true", "--dry-run").exit_code == 0


def test_an_unknown_backend_is_refused_with_the_nearest(train_words: Words, tmp_path: Path) -> None:
    words = ["backend=dali-cpu" if word == "backend=torch" else word for word in train_words(tmp_path / "run")]
    assert_refused(run(*words), "backend 'dali-cpu' is unknown", "did you mean dali_cpu?")
    assert not (tmp_path / "run").exists()


def test_a_gpu_that_is_not_there_is_missed(trained: Path, shards: Path, tmp_path: Path) -> None:
    request = ("train", "--data", shards, "--out", tmp_path / "run", "--model", "resnet10t")
    assert_refused(run(*request, "--device", "cuda"), "GPU")
    assert_refused(run(*request, "--backend", "dali_gpu"), "GPU")
    assert_refused(run("validate", trained, "--data", shards, "--device", "cuda"), "GPU")
    assert not (tmp_path / "run").exists()


def test_without_dali_the_extra_is_named(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(catalog, "find_spec", lambda _: None)
    request = ("train", "--data", shards, "--out", tmp_path / "run", "--model", "resnet10t", "--backend", "dali_cpu")
    assert_refused(run(*request), "dali-cuda130")


def test_a_run_and_shards_of_other_classes_do_not_fit(raw: Path, trained: Path, tmp_path: Path) -> None:
    words = ("--rare-threshold", 11, "--val-per-class", 2, "--size", 32, "--max-reject-rate", 0.2, "--workers", 1)
    few = tmp_path / "few.tar"
    assert run("sample-data", few, "--classes", 9, "--images-per-class", 12).exit_code == 0
    assert run("preprocess", "raw-tar", few, tmp_path / "prepared", *words).exit_code == 0
    assert run("shard", tmp_path / "prepared", tmp_path / "shards", "--workers", 1).exit_code == 0
    assert_refused(run("validate", trained, "--data", tmp_path / "shards"), "knows 8 classes", "has 9")


def test_what_is_no_image_is_named(trained: Path, tmp_path: Path) -> None:
    note = tmp_path / "note.jpg"
    note.write_text("not an image")
    assert_refused(run("predict", trained, note, "--picture", tmp_path / "out.png"), "note.jpg", "not an image")
    assert not (tmp_path / "out.png").exists()


def test_a_picture_never_replaces_what_it_was_not_asked_to(trained: Path, tmp_path: Path) -> None:
    photo, picture = tmp_path / "photo.png", tmp_path / "picture.png"
    Image.new("RGB", (40, 30), "red").save(photo)
    before = photo.read_bytes()
    assert_refused(run("predict", trained, photo, "--picture", photo, "--overwrite"), "photo.png: exists")
    assert photo.read_bytes() == before
    assert run("predict", trained, photo, "--picture", picture).exit_code == 0
    assert_refused(run("predict", trained, photo, "--picture", picture), "--overwrite")
    assert run("predict", trained, photo, "--picture", picture, "--overwrite").exit_code == 0


def test_sample_data_replaces_sample_archives_alone(tmp_path: Path) -> None:
    note = tmp_path / "note.txt"
    note.write_text("years of work")
    assert_refused(run("sample-data", note, "--overwrite"), "not a sample archive")
    assert_refused(run("sample-data", tmp_path, "--overwrite"), str(tmp_path))
    assert note.read_text() == "years of work"


@pytest.mark.parametrize("content", ["{}", '{"format": "in21k-shards", "version": 1, "counts": 5}', "no JSON"])
def test_a_damaged_dataset_json_is_named(content: str, shards: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(shards, tmp_path / "shards")
    (damaged / "dataset.json").write_text(content)
    assert_refused(run("verify", damaged), str(damaged))
    assert_refused(run("train", "--data", damaged, "--out", tmp_path / "run"), str(damaged))


@pytest.mark.parametrize("name", ["classes.parquet", "manifest.parquet", "tree.json", "_info.json", "README.md"])
def test_verify_names_a_missing_table(name: str, shards: Path, tmp_path: Path) -> None:
    damaged = shutil.copytree(shards, tmp_path / "shards")
    (damaged / name).unlink()
    result = run("verify", damaged)
    assert result.exit_code == 1
    assert f"{name}: missing" in result.stdout


def test_a_gzipped_archive_cut_off_leaves_what_was_done_and_goes_on(raw: Path, tmp_path: Path) -> None:
    packed, words = gzip.compress(raw.read_bytes()), ("--rare-threshold", 11, "--val-per-class", 2, "--size", 32)
    source, out = tmp_path / "raw.tar.gz", tmp_path / "out"
    source.write_bytes(packed[: len(packed) // 2] + bytes(len(packed) - len(packed) // 2))
    request = ("preprocess", "raw-tar", source, out, *words, "--max-reject-rate", 0.2, "--workers", 1)
    assert_refused(run(*request), "raw.tar.gz", "damaged")
    assert list((out / ".work" / "classes").glob("*.json"))
    source.write_bytes(packed)
    assert run(*request).exit_code == 0
    assert run("verify", out, "--deep", "--workers", 1).exit_code == 0


def test_a_disk_that_is_full_is_named(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    out = tmp_path / "tree.csv"
    assert_refused(run("tree", "export", trained, out, "--format", "csv"), "tree.csv: No space left on device")
    assert list(tmp_path.iterdir()) == []


def test_the_file_of_an_export_needs_a_folder(trained: Path, tmp_path: Path) -> None:
    for file_format in ("json", "csv", "miil"):
        words = ("tree", "export", trained, tmp_path / "nowhere" / "tree", "--format", file_format)
        assert_refused(run(*words), "does not exist; create it first")
