"""Loaders over a shard set in an object store: the batches are those of the folder, whatever the network does."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from in21k.cli.main import cli
from in21k.datapipe import Loader, create_loader
from in21k.preprocess.classes.select import SelectSettings
from in21k.preprocess.images.image import ImageSettings
from in21k.preprocess.run import prepare
from in21k.preprocess.sources.open import open_raw_tar
from in21k.shards import ShardSet, open_dataset
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.remote import object_store as store

MakeLoader = Callable[..., Loader]
BUCKET = "bucket"


# The network before the store: hands on what comes at one port to another.
NETWORK = """
    import asyncio, sys

    async def hand_on(source, target):
        try:
            while data := await source.read(1 << 16):
                target.write(data)
                await target.drain()
        finally:
            target.close()

    async def connect(reader, writer):
        there, back = await asyncio.open_connection("127.0.0.1", int(sys.argv[2]))
        await asyncio.gather(hand_on(reader, back), hand_on(there, writer), return_exceptions=True)

    async def serve():
        server = await asyncio.start_server(connect, "127.0.0.1", int(sys.argv[1]))
        await server.serve_forever()

    asyncio.run(serve())
"""


class ObjectStore:
    """Moto's S3 server, and a network before it that can be cut.

    Both are processes of their own: forked workers would keep the port of one in this process.
    """

    def __init__(self) -> None:
        self.port, self._behind = _free_port(), _free_port()
        self._server = _serve(["-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._behind)], self._behind)
        self.connect()

    def connect(self) -> None:
        command = ["-c", textwrap.dedent(NETWORK), str(self.port), str(self._behind)]
        self._network = _serve(command, self.port)

    def cut(self) -> None:
        self._network.kill()
        self._network.wait()

    def close(self) -> None:
        self.cut()
        self._server.kill()
        self._server.wait()

    def upload(self, folder: Path, prefix: str) -> str:
        """Put the files of a folder into the store; return its URL."""
        client: Any = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{self.port}",
            region_name="us-east-1",
            aws_access_key_id="key",
            aws_secret_access_key="secret",
        )
        client.create_bucket(Bucket=BUCKET)
        for path in folder.rglob("*"):
            if path.is_file():
                client.put_object(Bucket=BUCKET, Key=f"{prefix}/{path.relative_to(folder)}", Body=path.read_bytes())
        client.close()
        return f"s3://{BUCKET}/{prefix}"


@pytest.fixture(scope="session")
def object_store() -> Iterator[ObjectStore]:
    opened = ObjectStore()
    yield opened
    opened.close()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


def _serve(command: list[str], port: int) -> subprocess.Popen[bytes]:
    """Start a process that listens at a port; return when it does."""
    process = subprocess.Popen([sys.executable, *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + 60
    while time.monotonic() < end:
        with socket.socket() as connection:
            if connection.connect_ex(("127.0.0.1", port)) == 0:
                break
        time.sleep(0.05)
    return process


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, object_store: ObjectStore) -> Path:
    """Have each test use a cache of its own, and the store under the names that tools for S3 look for."""
    monkeypatch.setenv("IN21K_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IN21K_CACHE_BYTES", raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{object_store.port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")  # botocore's own
    return tmp_path / "cache" / "remote-shards"


@pytest.fixture
def url(object_store: ObjectStore, shard_set: ShardSet) -> str:
    """Where `shard_set` lies in the store."""
    return object_store.upload(shard_set.path, "shards")


@pytest.fixture(scope="module")
def many_shards(
    tmp_path_factory: pytest.TempPathFactory,
    draw: Callable[..., Image.Image],
    encode: Callable[..., bytes],
    write_archive: Callable[..., Path],
) -> ShardSet:
    """280 training samples in 56 shards, which are four windows; what loaders have under way lies in two of them."""
    folder = tmp_path_factory.mktemp("many")
    classes = {
        wnid: {f"{wnid}_{number}.JPEG": encode(draw(40, 36, seed=number)) for number in range(140)}
        for wnid in ("n01861778", "n01503061")
    }
    archive = write_archive(folder / "raw.tar", classes)
    select = SelectSettings(rare_threshold=100, val_per_class=0)
    prepared = prepare(open_raw_tar(archive), folder / "prepared", select=select, image=ImageSettings(size=32))
    return pack(prepared, folder / "shards", ShardSettings(shard_samples=5))


def equal(batches: list[tuple[Tensor, Tensor]], others: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = zip(batches, others, strict=True)
    return all(torch.equal(a, b) and torch.equal(x, y) for (a, x), (b, y) in pairs)


def epochs(loader: Loader, count: int = 2) -> list[tuple[Tensor, Tensor]]:
    batches: list[tuple[Tensor, Tensor]] = []
    for epoch in range(count):
        loader.set_epoch(epoch)
        batches += loader
    return batches


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def wait_for_threads(count: int) -> None:
    end = time.monotonic() + 10
    while threading.active_count() > count and time.monotonic() < end:
        time.sleep(0.01)  # one of a queue, or of the server, ends by itself
    assert threading.active_count() <= count


@pytest.mark.parametrize("split", ["train", "val"])
def test_batches_are_those_of_the_folder(make: MakeLoader, backend: str, url: str, split: str) -> None:
    settings: dict[str, Any] = {"split": split, "augment": "inception" if split == "train" else "none", "workers": 2}
    assert equal(epochs(make(backend, shards=url, **settings)), epochs(make(backend, **settings)))


def test_an_epoch_of_remote_shards_is_resumed_in_the_middle(make: MakeLoader, backend: str, url: str) -> None:
    whole = list(make(backend, shards=url))
    first = make(backend, shards=url)
    list(itertools.islice(iter(first), 2))
    state = first.state_dict()
    first.close()
    second = make(backend, shards=open_dataset(url))
    second.load_state_dict(state)
    assert equal(list(second), whole[2:])


def test_the_cache_keeps_its_bound_while_an_epoch_passes_through_it(
    make: MakeLoader,
    backend: str,
    object_store: ObjectStore,
    many_shards: ShardSet,
    cache_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    url = object_store.upload(many_shards.path, "many")
    opened = open_dataset(url)
    split = opened.split("train")
    bound = bytes_below(opened.path) + int(np.sort(split.shard_bytes)[-32:].sum())
    assert bound < bytes_below(opened.path) + split.shard_bytes.sum() * 0.7
    monkeypatch.setenv("IN21K_CACHE_BYTES", str(bound - 1))
    with pytest.raises(ValueError, match=rf"{url}: the cache may hold {bound - 1:,} bytes; wanted {bound:,} or more"):
        make(backend, shards=url)
    monkeypatch.setenv("IN21K_CACHE_BYTES", str(bound))
    loader, local = make(backend, shards=url, batch_size=4), make(backend, shards=many_shards, batch_size=4)
    most, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal most
        while not ended.wait(0.01):
            try:
                most = max(most, bytes_below(cache_folder))
            except FileNotFoundError:
                continue  # a file got its name meanwhile

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        assert equal(epochs(loader), epochs(local))
    finally:
        ended.set()
        watcher.join()
    assert bound / 2 < most <= bound
    assert not [name for name in held_files() if "deleted" in name and str(cache_folder) in name]


def held_files() -> list[str]:
    """Return what this process has open."""
    items: list[str] = []
    for entry in list(os.scandir("/proc/self/fd")):
        with suppress(FileNotFoundError):  # the folder itself, read just now
            items.append(str(Path(entry.path).readlink()))
    return items


def test_a_network_that_is_cut_in_mid_epoch_and_comes_back_costs_time_alone(
    make: MakeLoader, backend: str, object_store: ObjectStore, many_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAUSES_S", (0.2,) * 30)
    url = object_store.upload(many_shards.path, "many")
    wanted = list(make(backend, shards=many_shards, batch_size=4))
    batches = iter(make(backend, shards=url, batch_size=4))
    actual = list(itertools.islice(batches, 1))
    object_store.cut()
    back = threading.Timer(1, object_store.connect)
    back.start()
    try:
        assert equal(actual + list(batches), wanted)
    finally:
        back.join()


def test_a_network_that_stays_away_ends_the_epoch_with_one_line(
    make: MakeLoader, backend: str, object_store: ObjectStore, many_shards: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAUSES_S", (0.01,))
    url = object_store.upload(many_shards.path, "many")
    loader = make(backend, shards=url, batch_size=4)
    threads = threading.active_count()
    batches = iter(loader)
    next(batches)
    object_store.cut()
    try:
        with pytest.raises(OSError, match=rf"{url}/train/\S+\.tar: no answer in 2 tries \(.*\); look into the network"):
            list(batches)
    finally:
        object_store.connect()
    wait_for_threads(threads)
    loader.set_epoch(1)
    assert len(list(loader)) == 70


def test_a_corrupt_sample_of_the_cache_is_good_again_in_workers_too(
    make: MakeLoader, backend: str, url: str, cache_folder: Path
) -> None:
    wanted = list(make(backend, shards=url, batch_size=4))  # 4 x 13 are all
    split = open_dataset(url).split("train")
    (path,) = cache_folder.glob("*/" + split.shard_names[0])
    good = path.read_bytes()
    content = bytearray(good)
    for position in (0, 3):
        content[int(split.offsets[position]) + 50] ^= 4
    path.write_bytes(content)
    loader = make(backend, shards=url, batch_size=4)
    assert equal(list(loader), wanted)
    assert loader.num_bad == 0
    assert path.read_bytes() == good


def test_a_loader_left_in_mid_epoch_leaves_nothing(
    make: MakeLoader, backend: str, object_store: ObjectStore, many_shards: ShardSet, cache_folder: Path
) -> None:
    url = object_store.upload(many_shards.path, "many")
    threads = threading.active_count()
    loader = make(backend, shards=url, batch_size=4)
    held = iter(loader)
    next(held)
    assert any(thread.name == "in21k-fetch" for thread in threading.enumerate())  # 24 shards are still to come
    loader.close()
    assert multiprocessing.active_children() == []
    wait_for_threads(threads)
    left = sorted(Path(name).name.partition("-")[0] for name in held_files() if str(cache_folder) in name)
    assert left == [
        "many",
        "place",
    ]  # the locks of the data set, and of its place in the line of those that wait for room
    assert not list(cache_folder.rglob("*.tmp"))
    assert list(held) == []


def test_epoch_after_epoch_nothing_grows(make: MakeLoader, backend: str, url: str) -> None:
    def held() -> tuple[int, int, int]:
        gc.collect()
        return threading.active_count(), len(held_files()), len(multiprocessing.active_children())

    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    loader = make(backend, shards=url, batch_size=16)
    count = 6 if backend == "torch" else 10
    before = held(), 0
    for epoch in range(count):
        loader.set_epoch(epoch)
        list(loader if epoch % 2 else itertools.islice(loader, 1))
        if epoch == count // 2:
            wait_for_threads(before[0][0])
            before = held(), resident_bytes()
    wait_for_threads(before[0][0])
    assert held() == before[0]
    assert resident_bytes() - before[1] < 16 * 2**20


RANK = """
    import sys, torch
    from in21k.datapipe import create_loader
    print("ready", flush=True)
    settings = {"batch_size": 4, "image_size": 32, "workers": 1, "rank": 1, "world_size": 2}
    loader = create_loader(sys.argv[1], split="train", backend="torch", device="cpu", **settings)
    torch.save([images for images, _ in loader], sys.argv[2])
    loader.close()
"""


def test_two_ranks_share_the_cache(make: MakeLoader, url: str, tmp_path: Path, cache_folder: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RANK), url, str(tmp_path / "1.pt")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout
        assert other.stdout.readline() == "ready\n"
        mine = [images for images, _ in make("torch", shards=url, batch_size=4, rank=0, world_size=2)]
    assert other.returncode == 0
    parts = zip(mine, torch.load(tmp_path / "1.pt", weights_only=True), strict=True)
    whole = [images for images, _ in make("torch")]
    assert all(torch.equal(torch.cat(pair), images) for pair, images in zip(parts, whole, strict=True))
    assert len(list(cache_folder.glob("*/train/*.tar"))) == 6
    assert not list(cache_folder.rglob("*.tmp"))


@pytest.mark.parametrize(
    ("url", "variables", "line"),
    [
        ("s3://no-such-bucket/shards", {}, r"s3://no-such-bucket/shards/dataset\.json: is not there \(.*bucket"),
        ("s3://bucket/no-such-set", {}, r"s3://bucket/no-such-set/dataset\.json: is not there"),
        (
            "s3://bucket/shards",
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_EC2_METADATA_DISABLED": "true"},
            r"s3://bucket/shards/dataset\.json: access is denied \(.*redentials.*AWS_ACCESS_KEY_ID.*AWS_ENDPOINT_URL",
        ),
        ("s3://bucket/shards", {"AWS_PROFILE": "nobody"}, r"access is denied \(The config profile .*AWS_PROFILE"),
        ("s3://bucket/shards", {"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, r"no answer in 2 tries .*start again"),
    ],
)
def test_a_store_that_does_not_let_us_in_is_named_in_one_line(
    url: str, variables: dict[str, str], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PAUSES_S", (0.01,))
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    for name, value in variables.items():
        monkeypatch.setenv(name, value) if value else monkeypatch.delenv(name)
    with pytest.raises(ValueError, match=line) as caught:
        create_loader(url, split="train", batch_size=4, image_size=32, device="cpu")
    assert "\n" not in str(caught.value)


def test_commands_take_a_url(url: str, tmp_path: Path) -> None:
    sheet = tmp_path / "sheet.png"
    done = CliRunner().invoke(cli, ["browse", url, str(sheet), "--images", "2", "--backend", "torch"])
    assert (done.exit_code, done.stderr) == (0, "")
    assert sheet.exists()
    options = ["--model", "resnet18", "--set", "batch_size=4", "--device", "cpu", "--dry-run"]
    done = CliRunner().invoke(cli, ["train", "--data", url, "--out", str(tmp_path / "run"), *options])
    assert done.exit_code == 0, done.output
    assert f"{url}: 5 classes" in done.stdout


@pytest.mark.parametrize("command", [["verify"], ["bench-loader"]])
def test_commands_that_read_what_lies_here_refuse_a_url(command: list[str]) -> None:
    done = CliRunner().invoke(cli, [*command, "s3://bucket/shards"])
    assert done.exit_code == 2
    assert "s3://bucket/shards is a URL; wanted a path on this machine" in done.stderr
