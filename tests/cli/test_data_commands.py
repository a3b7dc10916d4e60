"""sample-data, preprocess, tree, shard, verify, doctor: judged by what they print and the files they leave."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from in21k.shards import SemanticTree

from .conftest import IMAGES_PER_CLASS, NUM_CLASSES, run, run_json

CONTENTS = {
    "prepared": {"dataset.json", "classes.parquet", "tree.json", "manifest.parquet", "rejects.parquet", "train", "val"},
    "shards": {
        *("dataset.json", "classes.parquet", "tree.json", "manifest.parquet", "_info.json", "README.md"),
        *("train", "val"),
    },
}


def snapshot(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_sample_data_is_left_alone_when_it_is_there_and_refused_when_another_is(raw: Path) -> None:
    before = raw.stat().st_mtime_ns
    words = ("sample-data", raw, "--classes", NUM_CLASSES, "--images-per-class", IMAGES_PER_CLASS)
    assert run(*words, "--oddities").exit_code == 0
    assert raw.stat().st_mtime_ns == before
    assert run(*words).exit_code == 2


def test_prepared_and_shards_hold_what_the_contract_lists_and_nothing_else(prepared: Path, shards: Path) -> None:
    assert {path.name for path in prepared.iterdir()} == CONTENTS["prepared"]
    assert {path.name for path in shards.iterdir()} == CONTENTS["shards"]


def test_preprocess_counts_every_image_once(prepared: Path) -> None:
    counts = json.loads((prepared / "dataset.json").read_text())["counts"]
    assert counts["num_classes"] == NUM_CLASSES
    assert counts["num_raw_kept"] == NUM_CLASSES * IMAGES_PER_CLASS
    stored = sum(split["num_samples"] for split in counts["splits"].values())
    # Of the five oddities that are not images, two are members without an image suffix.
    assert stored + counts["num_rejects"] - 2 == counts["num_raw_kept"]


@pytest.mark.parametrize("resizer", ["pillow", "opencv"])
def test_both_resizers_keep_and_reject_alike(raw: Path, prepared: Path, tmp_path: Path, resizer: str) -> None:
    if resizer == "opencv":
        pytest.importorskip("cv2")
    out = tmp_path / "prepared"
    result = run_json(
        *("preprocess", "raw-tar", raw, out, "--rare-threshold", IMAGES_PER_CLASS - 1, "--val-per-class", 2),
        *("--size", 32, "--max-reject-rate", 0.1, "--workers", 2, "--resizer", resizer),
    )
    assert result["counts"] == json.loads((prepared / "dataset.json").read_text())["counts"]
    assert run("verify", out, "--deep", "--workers", 1).exit_code == 0
    if resizer == "pillow":  # two workers instead of one
        assert snapshot(out) == snapshot(prepared)


def test_the_same_command_again_changes_nothing(raw: Path, prepared: Path, shards: Path) -> None:
    before = snapshot(prepared), snapshot(shards)
    again = run(
        *("preprocess", "raw-tar", raw, prepared, "--rare-threshold", IMAGES_PER_CLASS - 1, "--val-per-class", 2),
        *("--size", 32, "--max-reject-rate", 0.5, "--workers", 2),
    )
    assert again.exit_code == 0, again.output
    assert run("shard", prepared, shards, "--shard-samples", 30).exit_code == 0
    assert (snapshot(prepared), snapshot(shards)) == before


def test_other_settings_are_refused_by_name_and_overwritten_when_asked(prepared: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    assert run("shard", prepared, out, "--shard-samples", 30, "--workers", 1).exit_code == 0
    refused = run("shard", prepared, out, "--shard-samples", 40, "--workers", 1)
    assert refused.exit_code == 2
    assert "shard_samples 30 -> 40" in refused.stderr
    assert run("shard", prepared, out, "--shard-samples", 40, "--workers", 1, "--overwrite").exit_code == 0
    assert run("verify", out, "--deep", "--workers", 1).exit_code == 0


def test_verify_names_a_flipped_bit_and_exits_with_1(shards: Path, tmp_path: Path) -> None:
    broken = tmp_path / "shards"
    shutil.copytree(shards, broken)
    shard = next((broken / "train").glob("*.tar"))
    data = bytearray(shard.read_bytes())
    data[3 * 512 + 100] ^= 1
    shard.write_bytes(data)
    assert run("verify", broken, "--workers", 1).exit_code == 0  # the images are not read
    result = run("verify", broken, "--deep", "--workers", 1)
    assert result.exit_code == 1
    assert f"train/{shard.name}" in result.stdout
    assert "its bytes have changed" in result.stdout


def test_tree_show_draws_levels_and_one_class(prepared: Path, shards: Path) -> None:
    shown = run_json("tree", "show", prepared)
    assert sum(shown["classes_per_level"]) == shown["num_classes"] == NUM_CLASSES
    tree = SemanticTree.load(shards / "tree.json")
    deepest = max(range(len(tree)), key=lambda index: tree.levels[index])
    path = run_json("tree", "show", shards, tree.names[deepest])["path"]
    assert [node["class_index"] for node in path] == list(tree.paths[deepest])
    assert tree.wnids[deepest] in run("tree", "show", shards / "tree.json", tree.wnids[deepest]).stdout


def test_tree_export_writes_each_format(prepared: Path, tmp_path: Path) -> None:
    tree = SemanticTree.load(prepared / "tree.json")
    for file_format in ("json", "csv", "miil"):
        assert run("tree", "export", prepared, tmp_path / file_format, "--format", file_format).exit_code == 0
    assert SemanticTree.load(tmp_path / "json") == tree
    lines = [line.split(",") for line in (tmp_path / "csv").read_text().splitlines()]
    assert lines[0] == ["child", "parent", "name"]
    parents = [tree.wnids[parent] if parent >= 0 else "" for parent in tree.parents]
    assert [line[:2] for line in lines[1:]] == [list(pair) for pair in zip(tree.wnids, parents, strict=True)]
    miil = torch.load(tmp_path / "miil", weights_only=True)
    assert miil["class_tree_list"] == [list(path) for path in tree.paths]
    assert list(miil["class_description"].values()) == list(tree.names)
    assert run("tree", "export", prepared, tmp_path / "json").exit_code == 2


def test_doctor_tells_versions_backends_and_what_to_install() -> None:
    result = run_json("doctor")
    assert result["packages"]["torch"] == torch.__version__.partition("+")[0]
    assert set(result["backends"]) == {"dali_gpu", "dali_cpu", "opencv", "torch", "webdataset"}
    assert result["backends"]["torch"] is None
    assert "backend torch" in run("doctor").stdout
