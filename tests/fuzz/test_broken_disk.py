"""A disk that fails on the way ends a command with one line that names the file, and the same command goes on after."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from in21k.shards.dataset import PreparedSet, ShardSet

FilesOf = Callable[[Path], dict[str, bytes]]
MAIN = [sys.executable, "-c", "from in21k.cli.main import main; main()"]


@pytest.fixture(scope="session")
def broken_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library that makes calls fail; skips where no C compiler is at hand."""
    compiler = shutil.which("cc")
    if not compiler:
        pytest.skip("no C compiler (cc) is at hand")
    library = tmp_path_factory.mktemp("library") / "broken_disk.so"
    source = Path(__file__).with_name("broken_disk.c")
    subprocess.run([compiler, "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


def run(words: list[object], **environment: object) -> subprocess.CompletedProcess[str]:
    given = {name: str(value) for name, value in environment.items()}
    return subprocess.run(
        [*MAIN, *map(str, words)], env={**os.environ, **given}, capture_output=True, text=True, check=False
    )


class Commands:
    """Commands on a small archive, each with what it gives undisturbed."""

    def __init__(self, raw: Path, prepared: PreparedSet, shards: ShardSet, home: Path) -> None:
        folder = home / "classes"
        folder.mkdir()
        subprocess.run(["tar", "-xf", raw, "-C", folder], check=True)
        for tar in sorted(folder.glob("*.tar"))[:3]:
            (folder / tar.stem).mkdir()
            subprocess.run(["tar", "-xf", tar, "-C", folder / tar.stem], check=True)
            tar.unlink()
        few = ("--rare-threshold", 6, "--val-per-class", 3, "--size", 32)
        self.out = home / "out"
        self._words = {
            "raw-tar": ["preprocess", "raw-tar", raw, self.out, *few],
            "folder": ["preprocess", "folder", folder, self.out, *few],
            "shard": ["shard", prepared.path, self.out, "--shard-samples", 9],
        }
        self.wanted = {"raw-tar": prepared.path, "folder": prepared.path, "shard": shards.path}

    def words(self, name: str, workers: int = 1) -> list[object]:
        return [*self._words[name], "--workers", workers]


@pytest.fixture
def commands(raw_archive: Path, prepared: PreparedSet, shard_set: ShardSet, tmp_path: Path) -> Commands:
    return Commands(raw_archive, prepared, shard_set, tmp_path)


def break_on_the_way(
    commands: Commands, library: Path, case: tuple[str, str, str], after: int, files_of: FilesOf, workers: int = 1
) -> bool:
    """Run a command on a disk that fails, then on one that does not; tell whether it met the failure."""
    name, calls, path = case
    result = run(
        commands.words(name, workers), LD_PRELOAD=library, BROKEN_PATH=path, BROKEN_CALLS=calls, BROKEN_AFTER=after
    )
    is_met = result.returncode != 0
    if is_met:
        line = result.stderr.splitlines()[-1]
        assert (result.returncode, result.stdout) == (2, ""), result.stderr
        assert line.startswith("in21k: ")
        assert "Input/output error" in line
        assert path.strip("/") in line
        assert "Traceback" not in result.stderr
        assert not (commands.out / "dataset.json").exists()
        result = run(commands.words(name, workers))
        assert result.returncode == 0, result.stderr
    actual, wanted = files_of(commands.out), files_of(commands.wanted[name])
    if name == "folder":  # whose source has another name
        del actual["dataset.json"], wanted["dataset.json"]
    assert actual == wanted
    return is_met


CASES = [
    ("raw-tar", "read", "/raw.tar"),
    ("raw-tar", "write", "/train/"),
    ("folder", "read", "/n01503061/"),
    ("folder", "write", "/manifest.parquet"),
    ("shard", "read", "/train/"),
    ("shard", "write", "/in21k-train-"),
]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_a_disk_that_fails_ends_the_command_by_name_and_it_goes_on_when_the_disk_is_well(
    case: tuple[str, str, str], commands: Commands, broken_disk: Path, files_of: FilesOf
) -> None:
    assert break_on_the_way(commands, broken_disk, case, 1, files_of)


MORE = [
    *CASES,
    ("raw-tar", "write", "/val/"),
    ("raw-tar", "write", "/.work/classes/"),
    ("raw-tar", "write", "/provenance.json"),
    ("raw-tar", "write", "/classes.parquet"),
    ("raw-tar", "write", "/rejects.parquet"),
    ("raw-tar", "write", "/tree.json"),
    ("raw-tar", "write", "/dataset.json"),
    ("raw-tar", "read", "/.work/classes/"),
    ("folder", "read", "/n01861778.tar"),
    ("folder", "write", "/val/"),
    ("shard", "read", "/manifest.parquet"),
    ("shard", "read", "/val/"),
    ("shard", "write", "/manifest.parquet"),
    ("shard", "write", "/classes.parquet"),
    ("shard", "write", "/_info.json"),
    ("shard", "write", "/README.md"),
    ("shard", "write", ".idx"),
]


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("case", MORE, ids="-".join)
def test_it_does_so_wherever_the_disk_fails(
    case: tuple[str, str, str], workers: int, commands: Commands, broken_disk: Path, files_of: FilesOf
) -> None:
    num_met = 0
    for after in (0, 2):
        num_met += break_on_the_way(commands, broken_disk, case, after, files_of, workers)
        shutil.rmtree(commands.out)
    assert num_met
