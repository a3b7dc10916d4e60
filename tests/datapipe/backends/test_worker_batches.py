"""Worker processes of loaders: what is raised where shared memory is small, or a worker dies."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Iterable
from importlib.util import find_spec
from pathlib import Path

import pytest

from in21k.datapipe import Loader
from in21k.datapipe.backends.torch_loader import TorchLoader
from in21k.datapipe.loader import LoaderBatch
from in21k.datapipe.machine import shared_memory
from in21k.datapipe.plan import PlannedBatch
from in21k.shards import ShardSet

MakeLoader = Callable[..., Loader]
IN_WORKERS = ["torch", *(["webdataset"] if find_spec("webdataset") else [])]
SMALL_SHM = "mount -t tmpfs -o size=64m tmpfs /dev/shm && "

# Torch says so of more workers than cores.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")


@pytest.fixture
def with_small_shm() -> Callable[..., subprocess.CompletedProcess[str]]:
    """Run Python code where /dev/shm has 64 MB, as in a container of Docker's; skips where that is not allowed."""
    if (
        not shutil.which("unshare")
        or subprocess.run(
            ["unshare", "-m", "sh", "-c", f"{SMALL_SHM} true"], capture_output=True, check=False
        ).returncode
    ):
        pytest.skip("mounting a /dev/shm of its own needs root and `unshare`")

    def run(code: str, *arguments: object, before: str = "") -> subprocess.CompletedProcess[str]:
        command = f'{SMALL_SHM}{before} exec "$0" -c "$@"'
        words = ["unshare", "-m", "sh", "-c", command, sys.executable, code, *map(str, arguments)]
        return subprocess.run(words, capture_output=True, text=True, check=False, timeout=240)

    return run


ITERATE = """
import sys
from in21k.datapipe import create_loader
path, backend, split = sys.argv[1:]
loader = create_loader(path, split=split, training=split == "train", backend=backend, workers=2, batch_size=BATCH,
                       image_size=1024, normalize=None)
handed = 0
try:
    for images, labels in loader:
        handed += 1
except OSError as error:
    print(handed, type(error).__name__, error)
else:
    print(handed, "to the end")
"""


@pytest.mark.parametrize("backend", IN_WORKERS)
@pytest.mark.parametrize("split", ["train", "val"])
def test_a_batch_that_shared_memory_has_no_room_for_is_an_error_that_names_its_size_and_the_ways_out(
    with_small_shm: Callable[..., subprocess.CompletedProcess[str]], shard_set: ShardSet, backend: str, split: str
) -> None:
    """Two workers' batches of 41 MB (in float32 of 163 MB) in 64 MB: it was a hang, or an epoch without a batch."""
    result = with_small_shm(ITERATE.replace("BATCH", "13"), shard_set.path, backend, split)
    assert result.returncode == 0, result.stderr
    if (backend, split) == ("torch", "val"):  # a batch of 13 and one of 2 fit
        assert result.stdout == "2 to the end\n"
        return
    assert "SharedMemoryError shared memory has no room for a batch of" in result.stdout
    assert "No space left on device" in result.stdout
    for words in ("/dev/shm has 67 MB", "--shm-size", "opencv", "fewer workers", "smaller batch_size"):
        assert words in result.stdout
    assert len(result.stdout.splitlines()) == 1
    assert result.stderr == ""


@pytest.mark.parametrize("backend", IN_WORKERS)
def test_a_batch_that_fits_comes_from_small_shared_memory_too(
    with_small_shm: Callable[..., subprocess.CompletedProcess[str]], shard_set: ShardSet, backend: str
) -> None:
    result = with_small_shm(ITERATE.replace("BATCH", "1").replace("1024", "64"), shard_set.path, backend, "train")
    assert (result.stdout, result.stderr) == ("52 to the end\n", "")


def test_shared_memory_that_is_full_already_is_named(
    with_small_shm: Callable[..., subprocess.CompletedProcess[str]], shard_set: ShardSet
) -> None:
    fill = "head -c 70000000 /dev/zero > /dev/shm/full 2> /dev/null;"
    result = with_small_shm(ITERATE.replace("BATCH", "1"), shard_set.path, "torch", "train", before=fill)
    assert "0 SharedMemoryError shared memory has no room for the queues of worker processes (No sp" in result.stdout
    assert "/dev/shm has 67 MB, 0 free; give the container more" in result.stdout


def test_the_size_of_shared_memory_is_that_of_its_file_system(
    with_small_shm: Callable[..., subprocess.CompletedProcess[str]],
) -> None:
    result = with_small_shm("from in21k.datapipe.machine import shared_memory; print(shared_memory())")
    assert result.stdout == f"{(2**26, 2**26)}\n"
    sizes, status = shared_memory(), os.statvfs("/dev/shm")
    assert sizes
    assert sizes[0] == status.f_blocks * status.f_frsize


# Workers that die


@pytest.mark.parametrize("backend", IN_WORKERS)
@pytest.mark.parametrize(
    ("number", "words"),
    [
        (signal.SIGKILL, "ended by SIGKILL, most likely for its memory; lower workers or batch_size"),
        (signal.SIGBUS, r"ended by SIGBUS, most likely for shared memory: /dev/shm has .*--shm-size"),
        (signal.SIGSEGV, "ended by SIGSEGV$"),
    ],
)
def test_a_worker_that_dies_ends_the_epoch_by_its_signal(
    make: MakeLoader, backend: str, number: signal.Signals, words: str
) -> None:
    loader = make(backend, workers=2, batch_size=1)
    batches = iter(loader)
    next(batches)
    worker = multiprocessing.active_children()[0]
    assert worker.pid
    os.kill(worker.pid, number)
    worker.join()  # here torch's own handler would raise, wherever the main process is
    with pytest.raises(ChildProcessError, match=f"a worker process of the loader was {words}"):
        list(batches)
    assert multiprocessing.active_children() == []
    assert len(list(make(backend, workers=2, batch_size=1))) == 52


def test_a_worker_that_exits_ends_the_epoch_by_its_exit_code(make: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("in21k.datapipe.feed.Feed.fill", lambda *_: os._exit(3))
    with pytest.raises(ChildProcessError, match="a worker process of the loader ended with exit code 3"):
        list(make("torch", workers=2))


# What was promised


@pytest.mark.parametrize("split", ["train", "val"])
def test_a_loader_that_ends_before_the_batches_it_promised_raises(
    make: MakeLoader, backend: str, split: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    loader = make(backend, split, batch_size=4)
    whole = type(loader)._stream  # pyright: ignore

    def cut(self: Loader, batches: Iterable[PlannedBatch]) -> Generator[LoaderBatch]:
        stream = whole(self, batches)
        yield next(stream)
        yield next(stream)

    monkeypatch.setattr(type(loader), "_stream", cut)
    with pytest.raises(RuntimeError, match=f"backend {backend} ended after 2 of {len(loader)} batches"):
        list(loader)


def test_a_last_batch_that_is_empty_by_the_plan_is_no_early_end(make: MakeLoader) -> None:
    ranks = [list(make("torch", "val", batch_size=7, world_size=2, rank=rank)) for rank in range(2)]
    assert [[len(labels) for _, labels in batches] for batches in ranks] == [[7, 1], [7, 0]]


def test_a_stream_that_ends_before_the_batches_it_promised_raises(
    make: MakeLoader, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("webdataset")
    from in21k.datapipe.backends.webdataset_stream import BatchStream

    whole = BatchStream.__iter__
    monkeypatch.setattr(
        BatchStream, "__iter__", lambda self: (item for item, _ in zip(whole(self), "ab", strict=False))
    )
    with pytest.raises(RuntimeError, match="backend webdataset ended after 2 of 13 batches of the epoch"):
        list(make("webdataset", batch_size=4))


def test_the_torch_backend_takes_no_worker_for_no_batch(shard_set: ShardSet, make: MakeLoader) -> None:
    loader = make("torch", "val", batch_size=100, world_size=2, rank=1, workers=2)
    assert isinstance(loader, TorchLoader)
    ((images, labels),) = loader
    assert (len(images), len(labels)) == (0, 0)
    assert Path("/dev/shm").is_dir()
