"""Where tasks run: a Ray cluster gives the bytes of local processes, also when a node is killed on the way."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from in21k.preprocess.class_tasks import ClassTask
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.engines import open_engine
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.preprocess.tasks import Job, run_task
from in21k.shards.files.parallel import Progress

FilesOf = Callable[[Path], dict[str, bytes]]


@pytest.fixture
def task(tmp_path: Path, raw_archive: Path, select: SelectSettings, image_settings: ImageSettings) -> ClassTask:
    """The task of one class, as a node that has another version of the resizer gets it."""
    job = Job(tmp_path, tmp_path, select, image_settings, "pillow 1.0")
    classes = open_raw_tar(raw_archive).classes()
    assert classes
    return ClassTask(job, classes[0], None, [])


def test_a_node_whose_resizer_has_another_version_is_refused(task: ClassTask, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has pillow .+, where this run began with pillow 1\.0.*on every node"):
        run_task(task)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nowhere", "127.0.0.1:ray", "127.0.0.1:99999"])
def test_an_address_where_no_cluster_is_is_said(address: str) -> None:
    pytest.importorskip("ray", reason="Ray is not installed")
    message = f"--ray-address {re.escape(address)}: no Ray cluster answers there"
    with pytest.raises(ValueError, match=message), open_engine("ray", address):
        pass


def test_a_missing_ray_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"Ray is not installed; `pip install 'in21k\[ray\]'`"), open_engine("ray"):
        pass


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A Ray cluster of two nodes of one core on this machine."""
    pytest.importorskip("ray", reason="Ray is not installed")
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    try:
        cluster.add_node(num_cpus=1)
        yield cluster
    finally:
        cluster.shutdown()


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # Ray's own
def test_ray_gives_the_bytes_of_local_processes_though_a_node_is_killed(
    tmp_path: Path,
    two_nodes: Any,
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    write_archive: Callable[..., Path],
    files_of: FilesOf,
) -> None:
    images = {f"{number}.jpg": encode(draw(400, 300, seed=number)) for number in range(12)}
    source = open_raw_tar(write_archive(tmp_path / "raw.tar", {f"class{number}": images for number in range(60)}))
    run = partial(
        prepare, source, select=SelectSettings(rare_threshold=0, val_per_class=1), image=ImageSettings(size=224)
    )
    done: list[Progress] = []

    def kill_a_node(progress: Progress) -> None:
        done.append(progress)
        if len(done) == 10:
            two_nodes.remove_node(next(iter(two_nodes.worker_nodes)), allow_graceful=False)

    with open_engine("ray", two_nodes.address) as run_tasks:
        run(tmp_path / "ray", run_tasks=run_tasks, on_progress=kill_a_node)
    assert len(done) == 60
    assert len(two_nodes.list_all_nodes()) == 1
    assert files_of(tmp_path / "ray") == files_of(run(tmp_path / "local").path)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_a_mistake_on_a_node_comes_back_as_itself(two_nodes: Any, task: ClassTask) -> None:
    with open_engine("ray", two_nodes.address) as run_tasks, pytest.raises(ValueError, match="on every node"):
        list(run_tasks(run_task, [task]))
