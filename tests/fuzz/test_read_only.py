"""Data that another user owns: whoever may read it can use it, and nothing is written to it."""

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
# Root without the right to pass over permissions stands for another user.
CAPABILITIES = "-dac_override,-dac_read_search,-fowner"
ANOTHER_USER = ["setpriv", f"--bounding-set={CAPABILITIES}", f"--inh-caps={CAPABILITIES}"] if os.getuid() == 0 else []


def run(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command as a user who owns nothing."""
    return subprocess.run(
        [*ANOTHER_USER, *MAIN, *map(str, words)], capture_output=True, text=True, timeout=500, check=False
    )


@pytest.fixture
def read_only(tmp_path: Path, raw_archive: Path, prepared: PreparedSet, shard_set: ShardSet) -> Path:
    """A folder with a raw archive, its prepared data set and its shards, in which nothing may be written."""
    if ANOTHER_USER and subprocess.run([*ANOTHER_USER, "true"], capture_output=True, check=False).returncode:
        pytest.skip("root may write everywhere here, as there is no setpriv that takes the right away")
    folder = tmp_path / "theirs"
    folder.mkdir()
    shutil.copy(raw_archive, folder / "raw.tar")
    shutil.copytree(prepared.path, folder / "prepared")
    shutil.copytree(shard_set.path, folder / "shards")
    subprocess.run(["chmod", "-R", "a-w", folder], check=True)
    return folder


def test_what_another_user_owns_can_be_read_by_every_command_and_stays_as_it_is(
    tmp_path: Path, read_only: Path, prepared: PreparedSet, shard_set: ShardSet, files_of: FilesOf
) -> None:
    before = files_of(read_only)
    out = tmp_path / "out"
    few = ("--rare-threshold", 6, "--val-per-class", 3, "--size", 32, "--workers", 1)
    for words in (
        ("preprocess", "raw-tar", read_only / "raw.tar", out / "prepared", *few),
        ("shard", read_only / "prepared", out / "shards", "--shard-samples", 9, "--workers", 1),
        ("verify", read_only / "prepared", "--deep"),
        ("verify", read_only / "shards", "--deep"),
        ("browse", read_only / "shards", out / "sheet.png"),
        ("report", read_only / "prepared", out / "report.html"),
        ("shard", read_only / "prepared", read_only / "shards", "--shard-samples", 9),  # is finished
    ):
        out.mkdir(exist_ok=True)
        result = run(*words)
        assert result.returncode == 0, f"{words}: {result.stderr}"
    assert files_of(out / "prepared") == files_of(prepared.path)
    assert files_of(out / "shards") == files_of(shard_set.path)
    assert files_of(read_only) == before


@pytest.mark.parametrize("name", ["new", "shards"])
def test_an_output_where_nothing_may_be_written_is_refused_in_one_line_by_name(
    read_only: Path, name: str, files_of: FilesOf
) -> None:
    before = files_of(read_only)
    result = run("shard", read_only / "prepared", read_only / name, "--shard-samples", 9, "--overwrite")
    assert (result.returncode, result.stdout) == (2, "")
    assert "Traceback" not in result.stderr
    line = result.stderr.splitlines()[-1]
    assert line.startswith("in21k: ")
    assert "Permission denied" in line
    assert str(read_only) in line
    assert files_of(read_only) == before
