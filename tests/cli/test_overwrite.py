"""--overwrite, command by command: it replaces our own files, leaves those of others, and refuses where they lie."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from .conftest import IMAGES_PER_CLASS, run, run_json

FilesOf = Callable[[Path], dict[str, bytes]]
OTHERS = {".git/HEAD": b"mine", "notes.txt": b"mine", "notes.tmp": b"mine", "mine/a.tar": b"mine"}


def add_others(folder: Path, names: dict[str, bytes] = OTHERS) -> None:
    for name, content in names.items():
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / name).write_bytes(content)


@pytest.fixture
def words_of(
    raw: Path, prepared: Path, trained: Path, train_words: Callable[[Path], list[object]]
) -> dict[str, Callable[[Path], list[object]]]:
    """For each command that fills a folder its words, without --overwrite."""
    small = ("--rare-threshold", IMAGES_PER_CLASS - 1, "--val-per-class", 2, "--size", 32, "--max-reject-rate", 0.1)
    return {
        "preprocess": lambda out: ["preprocess", "raw-tar", raw, out, *small, "--workers", 1],
        "shard": lambda out: ["shard", prepared, out, "--shard-samples", 30, "--workers", 1],
        "train": lambda out: [*train_words(out), "--set", "max_steps=1"],
        "export": lambda out: ["export", trained, out],
        "average": lambda out: ["average", trained, trained, out],
    }


@pytest.mark.parametrize("command", ["preprocess", "shard", "train", "export", "average"])
def test_overwriting_replaces_every_file_of_ours_and_none_of_others(
    words_of: dict[str, Callable[[Path], list[object]]], command: str, tmp_path: Path, files_of: FilesOf
) -> None:
    out = tmp_path / "out"
    words = words_of[command](out)
    run_json(*words)
    whole = files_of(out).keys()
    for name in whole:
        (out / name).touch()
    times = {name: (out / name).stat().st_mtime_ns for name in whole}
    add_others(out)
    run_json(*words, "--overwrite")
    files = files_of(out)
    assert {name: files[name] for name in OTHERS} == OTHERS
    assert {name for name in files if "tfevents" not in name} - OTHERS.keys() == {
        name for name in whole if "tfevents" not in name
    }
    assert sum("tfevents" in name for name in files) == sum("tfevents" in name for name in whole)
    assert not [
        name for name, time in times.items() if (out / name).exists() and time == (out / name).stat().st_mtime_ns
    ]


@pytest.mark.parametrize(
    ("command", "name"), [("preprocess", "train/notes.tar"), ("shard", "val/a.tar"), ("shard", "train/a.idx")]
)
def test_files_of_others_in_the_way_are_refused_before_anything_is_removed(
    prepared: Path,
    shards: Path,
    words_of: dict[str, Callable[[Path], list[object]]],
    command: str,
    name: str,
    tmp_path: Path,
    files_of: FilesOf,
) -> None:
    out = Path(shutil.copytree(prepared if command == "preprocess" else shards, tmp_path / "out"))
    add_others(out, {name: b"mine"})
    before = files_of(out)
    result = run(*words_of[command](out), "--overwrite")
    assert result.exit_code == 2
    assert f"{name}: is in the way, and no record of in21k lists it" in result.stderr
    assert files_of(out) == before


def test_a_tree_is_written_over_a_tree_alone(prepared: Path, tmp_path: Path) -> None:
    for kind in ("json", "csv", "miil"):
        words = ("tree", "export", prepared, tmp_path / f"tree.{kind}", "--format", kind)
        assert run(*words).exit_code == 0
        assert "exists; give another name, or --overwrite" in run(*words).stderr
        assert run(*words, "--overwrite").exit_code == 0
    (tmp_path / "notes.txt").write_text("mine")
    refused = run("tree", "export", prepared, tmp_path / "notes.txt", "--overwrite")
    assert refused.exit_code == 2
    assert "exists and is not a tree of in21k, so it is not overwritten" in refused.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"
