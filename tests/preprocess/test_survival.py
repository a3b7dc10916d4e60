"""What happens on the way: a worker killed, an archive that vanishes, a full disk. What was done is kept."""

from __future__ import annotations

import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards.dataset import PreparedSet
from in21k.shards.files.parallel import Progress, run_tasks

FilesOf = Callable[[Path], dict[str, bytes]]


def test_a_worker_that_is_killed_ends_the_run_with_what_to_do_and_the_run_goes_on(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    files_of: FilesOf,
) -> None:
    """As the kernel does when memory runs out."""

    def kill_a_worker(_: Progress) -> None:
        for child in multiprocessing.active_children():
            os.kill(child.pid or 0, signal.SIGKILL)

    two = partial(run_tasks, workers=2)
    out = tmp_path / "out"
    run = partial(prepare, open_raw_tar(raw_archive), out, select=select, image=image_settings, run_tasks=two)
    with pytest.raises(ChildProcessError, match=r"killed for its memory.*start the same command again"):
        run(on_progress=kill_a_worker)
    done = {path: path.stat().st_mtime_ns for path in out.glob(".work/classes/*.json")}
    assert done
    run()
    assert files_of(out) == files_of(prepared.path)


def test_an_archive_that_vanishes_ends_the_run_by_name_and_the_run_goes_on_when_it_is_back(
    tmp_path: Path,
    raw_archive: Path,
    prepared: PreparedSet,
    select: SelectSettings,
    image_settings: ImageSettings,
    files_of: FilesOf,
) -> None:
    source, away, out = tmp_path / "raw.tar", tmp_path / "away.tar", tmp_path / "out"
    shutil.copyfile(raw_archive, source)
    run = partial(prepare, select=select, image=image_settings)
    with pytest.raises(FileNotFoundError, match=r"raw\.tar"):
        run(open_raw_tar(source), out, on_progress=lambda _: source.exists() and source.rename(away))
    assert len(list(out.glob(".work/classes/*.json"))) == 1
    away.rename(source)
    run(open_raw_tar(source), out)
    assert files_of(out) == files_of(prepared.path)


def test_an_archive_that_gets_shorter_on_the_way_ends_the_run_by_name(
    tmp_path: Path, raw_archive: Path, select: SelectSettings, image_settings: ImageSettings
) -> None:
    source = tmp_path / "raw.tar"
    shutil.copyfile(raw_archive, source)
    with pytest.raises(ValueError, match=r"raw\.tar: ends inside n\d+\.tar; it was longer when the run began"):
        prepare(
            open_raw_tar(source),
            tmp_path / "out",
            select=select,
            image=image_settings,
            on_progress=lambda _: os.truncate(source, 20_000),
        )


def can_mount() -> bool:
    command = ["unshare", "-rm", "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", "/mnt"]
    return bool(shutil.which("unshare")) and subprocess.run(command, capture_output=True, check=False).returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("classes", "images", "message"),
    [(20, 20, r"are needed for the rest of raw\.tar.* make room"), (8, 200, "No space left on device")],
    ids=["seen early", "seen late"],
)
def test_a_full_disk_ends_the_run_and_room_lets_it_go_on(
    tmp_path: Path, files_of: FilesOf, classes: int, images: int, message: str
) -> None:
    """Many classes show early that the rest will not fit; few large ones fill the disk first."""
    if not can_mount():
        pytest.skip("a small file system cannot be mounted here")
    in21k = f"{sys.executable} -c 'from in21k.cli.main import main; main()'"
    small, raw = tmp_path / "small", tmp_path / "raw.tar"
    small.mkdir()
    prepare = f"{in21k} preprocess raw-tar {raw} {small}/out --rare-threshold 5 --val-per-class 2 --workers 2"
    script = f"""
        {in21k} sample-data {raw} --classes {classes} --images-per-class {images}
        mount -t tmpfs -o size=700k tmpfs {small}
        {prepare} 2> {tmp_path}/said; echo $? > {tmp_path}/code
        mount -o remount,size=1g {small}
        {prepare} && cp -r {small}/out {tmp_path}/resumed
        {prepare.replace(f"{small}/out", f"{tmp_path}/whole")}
    """
    subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, check=True)
    lines = (tmp_path / "said").read_text().splitlines()
    assert (tmp_path / "code").read_text().strip() == "2"
    assert [line for line in lines if line.startswith("in21k: ")][-1:] == lines[-1:]
    assert re.search(message, lines[-1]), lines
    assert files_of(tmp_path / "resumed") == files_of(tmp_path / "whole")
