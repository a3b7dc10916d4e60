"""Shard sets at a URL: what is read is what the folder holds, the cache keeps its bound, and nothing hangs."""

from __future__ import annotations

import asyncio
import gc
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards import ShardSet, open_dataset
from in21k.shards.dataset import PreparedSet, ShardSplit
from in21k.shards.files.atomic import TEMPORARY, read_json, sealed, write_json
from in21k.shards.files.lock import FileLock
from in21k.shards.pack import ShardSettings, pack
from in21k.shards.reader import CorruptSampleError, SampleReader
from in21k.shards.remote import object_store as store
from in21k.shards.remote import remote_set as remote
from in21k.shards.remote.cache import Cache, lock_path
from in21k.shards.remote.object_store import RemoteError
from in21k.shards.remote.prefetch import ShardPrefetcher, uses

SHARD = "train/in21k-train-000000.tar"


class _Server(ThreadingHTTPServer):
    request_queue_size = 128  # of more connections at a time than this each would wait a second


class FileServer:
    """Serves a folder over http, and notes what is asked for.

    ranges: answer with a part where a part is asked for.
    """

    def __init__(self, folder: Path, *, ranges: bool = True) -> None:
        self.folder, self.ranges = folder, ranges
        self._fault: tuple[str | int, range, str] = ("", range(0), "")
        self.asked: list[str] = []
        self.stalled, self.released = threading.Event(), threading.Event()
        self._server = _Server(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}/shards"

    def fail(self, fault: str | int, numbers: range = range(1_000_000), name: str = "") -> None:
        """Answer requests of these numbers, counted for each file, for files that have `name` in theirs, with a fault.

        `drop`: half of the answer comes; `stall`: half of it, and then nothing; `endless`: all of it, and zeros until
        nobody listens; a number: this status.
        """
        self._fault = (fault, numbers, name)

    def fault_of(self, name: str) -> str | int | None:
        fault, numbers, wanted = self._fault
        return fault if self.asked.count(name) in numbers and wanted in name else None

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        files = self

        class Handler(BaseHTTPRequestHandler):
            def do_HEAD(self) -> None:
                self.answer(with_body=False)

            def do_GET(self) -> None:
                self.answer(with_body=True)

            def answer(self, *, with_body: bool) -> None:
                name = self.path.removeprefix("/shards/")
                fault = files.fault_of(name) if with_body else None
                if with_body:
                    files.asked.append(name)
                path = files.folder / name
                if isinstance(fault, int) or not path.is_file():
                    self.send_error(fault if isinstance(fault, int) else 404)
                    return
                body, request = path.read_bytes(), self.headers.get("Range")
                part = body
                if request and files.ranges:
                    start, stop = (int(number) for number in request.removeprefix("bytes=").split("-"))
                    part = body[start : stop + 1]
                    self.send_response(206)
                    self.send_header("Content-Range", f"bytes {start}-{start + len(part) - 1}/{len(body)}")
                else:
                    self.send_response(200)
                if fault != "endless":
                    self.send_header("Content-Length", str(len(part)))
                self.send_header("ETag", f'"{hash(body)}"')
                self.end_headers()
                if with_body:
                    self.wfile.write(part if fault in (None, "endless") else part[: len(part) // 2])
                while fault == "endless":
                    try:
                        self.wfile.write(bytes(10_000))
                    except OSError:
                        break
                if fault == "stall":
                    files.stalled.set()
                    files.released.wait(20)
                self.close_connection = True

            def log_message(self, *_: object) -> None:
                """Say nothing."""

        return Handler

    def close(self) -> None:
        self.released.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture(autouse=True)
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Have each test use a cache of its own, and lose its patience soon."""
    monkeypatch.setenv("IN21K_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("IN21K_CACHE_BYTES", raising=False)
    monkeypatch.setattr(store, "PAUSES_S", (0.01, 0.02))
    return tmp_path / "cache" / "remote-shards"


@pytest.fixture
def server(shards_copy: Path) -> Iterator[FileServer]:
    """Serves a copy of `shard_set`."""
    server = FileServer(shards_copy)
    yield server
    server.close()


def images_of(split: ShardSplit) -> list[bytes]:
    reader = SampleReader(split)
    try:
        return [reader.image(position) for position in range(len(split))]
    finally:
        reader.close()


def cached_shard(cache_folder: Path, name: str = SHARD) -> Path:
    (path,) = cache_folder.glob(f"*/{name}")
    return path


def flip(path: Path) -> None:
    """Flip a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def bytes_below(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


# What is read


@pytest.mark.parametrize("kind", ["ranges", "no ranges", "memory"])
def test_a_shard_set_at_a_url_is_what_its_folder_is(
    kind: str, server: FileServer, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 1500)  # so that files have several parts
    server.ranges, url = kind == "ranges", server.url
    if kind == "memory":
        url = "memory://bucket/shards/"
        fsspec.filesystem("memory").put(str(server.folder) + "/", "/bucket/shards/", recursive=True)
    opened = open_dataset(url)
    assert (opened.fingerprint, opened.info) == (shard_set.fingerprint, shard_set.info)
    assert opened.tree.wnids == shard_set.tree.wnids
    assert opened.classes == shard_set.classes
    assert opened.location == url.rstrip("/")
    for name in ("train", "val"):
        split, local = opened.split(name), shard_set.split(name)
        for field in ("shard_sizes", "offsets", "num_bytes", "labels", "checksums", "manifest_rows"):
            np.testing.assert_array_equal(getattr(split, field), getattr(local, field))
        assert split.shard_bytes.tolist() == [(local.folder / name).stat().st_size for name in local.shard_names]
        assert images_of(split) == images_of(local)
        assert split.describe(3) == f"{opened.location}/{split.shard_names[0]}: sample {local.key(3)}"


def test_what_is_in_the_cache_is_not_asked_for_again(server: FileServer) -> None:
    images_of(open_dataset(server.url).split("train"))
    server.asked.clear()
    images_of(open_dataset(server.url).split("train"))
    assert set(server.asked) == {"dataset.json"}


def test_another_data_set_at_the_same_url_is_another(server: FileServer, prepared: PreparedSet, tmp_path: Path) -> None:
    first = open_dataset(server.url)
    wanted = images_of(first.split("train"))
    other = pack(prepared, tmp_path / "other", ShardSettings(shard_samples=9, seed=1))
    server.folder = other.path
    second = open_dataset(server.url)
    assert second.path != first.path
    assert images_of(second.split("train")) == images_of(other.split("train"))
    assert images_of(first.split("train")) == wanted  # all of it is in the cache


def test_another_manifest_beside_the_same_dataset_json_is_noticed_where_that_records_no_files(
    server: FileServer, as_version_1: Callable[[Path], None], caplog: pytest.LogCaptureFixture
) -> None:
    as_version_1(server.folder)
    first = open_dataset(server.url)
    table = pq.read_table(server.folder / "manifest.parquet")
    pq.write_table(table, server.folder / "manifest.parquet", compression="none")
    second = open_dataset(server.url)
    assert second.path != first.path
    assert second.manifest_path.read_bytes() == (server.folder / "manifest.parquet").read_bytes()
    assert [record.message for record in caplog.records if "version 1" in record.message] == [
        f"{server.url}: is of version 1 of the format, which has no checksums of its tables: changed labels go "
        "unnoticed; `in21k shard` makes version 2"
    ]


def test_a_local_shard_set_needs_no_fsspec(shard_set: ShardSet) -> None:
    script = f"""
        import sys
        from in21k.shards import open_dataset
        from in21k.shards.reader import SampleReader
        before = "fsspec" in sys.modules
        SampleReader(open_dataset({str(shard_set.path)!r}).split("train")).image(0)
        assert before or "fsspec" not in sys.modules
        assert not any(name.startswith("in21k.shards.remote.remote_set") for name in sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


# What goes wrong


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("{server}/nowhere", r"nowhere/dataset\.json: is not there"),
        ("nosuch://bucket/shards", "nosuch://bucket/shards: Protocol not known.*wanted s3://, https://"),
        ("abfs://box/shards", r"abfs://box/shards: a package is missing .*pip install 'in21k\[remote\]'"),
        (
            "http://127.0.0.1:1/shards",
            r"http://127\.0\.0\.1:1/shards/dataset\.json: no answer in 3 tries .*start again",
        ),
    ],
)
def test_a_url_that_cannot_be_opened_is_named_in_one_line(server: FileServer, url: str, line: str) -> None:
    with pytest.raises(ValueError, match=line) as caught:
        open_dataset(url.format(server=server.url))
    assert "\n" not in str(caught.value)


def test_denied_access_says_how_to_get_it(server: FileServer) -> None:
    server.fail(403)
    with pytest.raises(ValueError, match=r"dataset\.json: access is denied \(403.*") as caught:
        open_dataset(server.url)
    assert server.asked == ["dataset.json"]  # which time does not mend
    assert "FSSPEC_HTTP" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "content", "line"),
    [
        ("dataset.json", b"<html>", r"http\S+/shards: its dataset\.json is not readable as JSON"),
        ("dataset.json", b'{"format": "other"}', r"http\S+/shards: is 'other'; wanted 'in21k-shards'"),
        ("manifest.parquet", None, r"http\S+/shards/manifest\.parquet: is not there"),
        ("manifest.parquet", b"PAR1 cut off", r"manifest\.parquet: no answer in 3 tries .12 bytes came instead of"),
    ],
)
def test_a_damaged_source_is_refused(server: FileServer, name: str, content: bytes | None, line: str) -> None:
    (server.folder / name).unlink() if content is None else (server.folder / name).write_bytes(content)
    with pytest.raises(ValueError, match=line):
        open_dataset(server.url)


def test_a_table_that_changed_at_the_source_is_refused(server: FileServer) -> None:
    flip(server.folder / "manifest.parquet")
    with pytest.raises(ValueError, match=r"http.*/manifest\.parquet: has changed since it was written"):
        open_dataset(server.url)


def test_a_manifest_of_other_rows_is_refused(server: FileServer, reseal: Callable[[Path], None]) -> None:
    table = pq.read_table(server.folder / "manifest.parquet")
    pq.write_table(table.slice(0, 60), server.folder / "manifest.parquet")
    reseal(server.folder)
    with pytest.raises(ValueError, match=r"http.*: its manifest\.parquet has 60 rows; dataset\.json says 67"):
        open_dataset(server.url)


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("fault", ["drop", 500, 503, 429])
def test_an_answer_that_fails_is_asked_for_again(
    server: FileServer, fault: str | int, ranges: bool, shard_set: ShardSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "PART_BYTES", 2000)
    server.ranges = ranges
    server.fail(fault, range(2))
    assert images_of(open_dataset(server.url).split("val")) == images_of(shard_set.split("val"))


def test_only_the_part_that_was_lost_is_asked_for_again(server: FileServer, monkeypatch: pytest.MonkeyPatch) -> None:
    split = open_dataset(server.url).split("train")
    monkeypatch.setattr(store, "PART_BYTES", int(split.shard_bytes[0]) // 4)
    server.fail("drop", range(2, 3))
    server.asked.clear()
    SampleReader(split).image(0)
    assert server.asked == [SHARD] * 5  # four parts


@pytest.mark.parametrize("ranges", [True, False])
def test_a_server_that_sends_nothing_more_is_given_up(
    server: FileServer, ranges: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.ranges = ranges
    split = open_dataset(server.url).split("train")
    server.fail("stall")
    monkeypatch.setattr(store, "PATIENCE_S", 0.1)
    with pytest.raises(OSError, match=rf"{server.url}/{SHARD}: no answer in 3 tries .*imeout.*start again"):
        SampleReader(split).image(0)


def test_a_shard_that_is_gone_or_cut_off_is_named(server: FileServer) -> None:
    split = open_dataset(server.url).split("train")
    path = server.folder / SHARD
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(OSError, match=rf"{server.url}/{SHARD}: no answer in 3 tries \([\d,]+ bytes came instead of"):
        SampleReader(split).image(0)
    path.unlink()
    with pytest.raises(OSError, match=rf"{server.url}/{SHARD}: is not there"):
        SampleReader(split).image(0)


# What the cache has otherwise than it was written


def test_a_bit_that_flips_in_the_cache_is_mended_from_the_source(
    server: FileServer, cache_folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    split = open_dataset(server.url).split("train")
    wanted = images_of(split)
    path = cached_shard(cache_folder)
    good = path.read_bytes()
    place = int(split.offsets[2]) + 100
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    server.asked.clear()
    assert images_of(split) == wanted
    assert server.asked == [SHARD]
    assert path.read_bytes() == good
    assert [record.message for record in caplog.records] == [
        f"{split.describe(2)} had other bytes in the cache; they were fetched again"
    ]


@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", "classes.parquet", "tree.json"])
def test_a_table_that_changed_in_the_cache_is_fetched_again(
    name: str, server: FileServer, cache_folder: Path, shard_set: ShardSet, caplog: pytest.LogCaptureFixture
) -> None:
    (cached,) = [open_dataset(server.url).path / name]
    flip(cached)
    server.asked.clear()
    opened = open_dataset(server.url)
    np.testing.assert_array_equal(opened.split("train").labels, shard_set.split("train").labels)
    assert (opened.classes, opened.tree) == (shard_set.classes, shard_set.tree)
    assert cached.read_bytes() == (server.folder / name).read_bytes()
    assert set(server.asked) == {"dataset.json", name}
    assert [f"/{name}: has changed" in record.message for record in caplog.records] == [True] * (name != "dataset.json")


# What a server may not do


@pytest.mark.parametrize("ranges", [True, False])
@pytest.mark.parametrize("name", ["dataset.json", "manifest.parquet", SHARD])
def test_a_body_without_an_end_is_refused_and_neither_disk_nor_memory_takes_more_than_was_told(
    name: str, ranges: bool, server: FileServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "MAX_DATASET_JSON_BYTES", 20_000)
    monkeypatch.setattr(store, "READ_BYTES", 1000)
    server.ranges = ranges
    server.fail("endless", name=name)
    largest = 0
    write_at = remote.write_at

    def watch(path: Path, data: bytes, offset: int) -> None:
        nonlocal largest
        largest = max(largest, offset + len(data))
        write_at(path, data, offset)

    monkeypatch.setattr(store, "write_at", watch)
    if ranges and name != "dataset.json":  # what was asked for is all that is taken of the answer
        SampleReader(open_dataset(server.url).split("train")).image(0)
        assert cached_shard(cache_folder).read_bytes() == (server.folder / SHARD).read_bytes()
    else:
        with pytest.raises(OSError, match=rf"{name}: has more than [\d,]+ bytes, the most that it may have"):
            SampleReader(open_dataset(server.url).split("train")).image(0)
    assert largest <= max((server.folder / item).stat().st_size for item in (SHARD, "manifest.parquet"))


@pytest.mark.parametrize("name", ["../../../x.tar", "/tmp/x.tar", "train/../../x.tar", "train/a b.tar", "val/x.tar"])
def test_a_shard_set_whose_names_lead_elsewhere_is_refused_and_nothing_is_written(
    name: str, server: FileServer, tmp_path: Path, reseal: Callable[[Path], None]
) -> None:
    info = read_json(server.folder / "dataset.json")
    info["shards"]["train"][0]["name"] = name
    info["files"] = {}
    write_json(server.folder / "dataset.json", sealed(info))
    before = {path for path in tmp_path.rglob("*") if "cache" not in path.parts}
    with pytest.raises(ValueError, match=r"http.*dataset\.json"):
        open_dataset(server.url)
    assert {path for path in tmp_path.rglob("*") if "cache" not in path.parts} == before


@pytest.mark.parametrize("place", ["train", SHARD, f"{SHARD}.tmp"])
def test_a_link_in_the_cache_is_not_followed(place: str, server: FileServer, tmp_path: Path) -> None:
    split = open_dataset(server.url).split("train")
    elsewhere = tmp_path / "elsewhere"
    if place == "train":
        elsewhere.mkdir()
    else:
        elsewhere.write_text("mine")
        (split.folder / "train").mkdir()
    (split.folder / place).symlink_to(elsewhere)
    if place.endswith(".tmp"):
        SampleReader(split).image(0)  # the link itself goes, as what a killed process leaves does
    else:
        with pytest.raises(ValueError, match=r"is a link, and the cache .* makes no links"):
            SampleReader(split).image(0)
    assert list(elsewhere.iterdir()) == [] if place == "train" else elsewhere.read_text() == "mine"


@pytest.mark.parametrize("ranges", [True, False])
def test_a_sample_that_is_corrupt_at_the_source_too_is_corrupt(server: FileServer, ranges: bool) -> None:
    server.ranges = ranges
    split = open_dataset(server.url).split("train")
    path = server.folder / SHARD
    content = bytearray(path.read_bytes())
    content[int(split.offsets[2]) + 100] ^= 1
    path.write_bytes(content)
    reader = SampleReader(split)
    with pytest.raises(CorruptSampleError, match="other bytes"):
        reader.image(2)
    assert server.asked.count(SHARD) == 2  # the shard, and the sample once more
    reader.image(3)


@pytest.mark.parametrize("damage", ["cut off", "gone", "all is gone"])
def test_a_shard_that_is_cut_off_or_gone_from_the_cache_is_fetched_again(
    server: FileServer, cache_folder: Path, damage: str, shard_set: ShardSet
) -> None:
    split = open_dataset(server.url).split("train")
    wanted = images_of(split)
    path = cached_shard(cache_folder)
    if damage == "cut off":
        os.truncate(path, 1000)
        ahead = ShardPrefetcher(split, [np.arange(9)], 0, 32)
        ahead.wait(np.arange(9))
        ahead.close()
        assert path.stat().st_size == split.shard_bytes[0]
    elif damage == "gone":
        path.unlink()
    else:
        shutil.rmtree(cache_folder)
    assert images_of(split) == wanted


# The bound of the cache


def small_files(count: int, num_bytes: int) -> dict[str, int]:
    return {f"train/{number:02}.tar": num_bytes for number in range(count)}


@pytest.fixture
def files(tmp_path: Path) -> Iterator[Callable[..., remote.RemoteShards]]:
    """Serve files of 1000 bytes, and open a cache of so many bytes for them."""
    folder = tmp_path / "files"
    (folder / "train").mkdir(parents=True)
    for name in small_files(20, 1000):
        (folder / name).write_bytes(name.encode() * 80 + bytes(1000 - 80 * len(name)))
    server = FileServer(folder)

    def open_cache(max_bytes: int, name: str = "set") -> remote.RemoteShards:
        cache = Cache(tmp_path / "cache", max_bytes)
        opened = remote.RemoteShards(store.Store(server.url), cache, cache.folder / name)
        opened.server = server  # type: ignore[attr-defined]
        return opened

    yield open_cache
    server.close()


def obtain(opened: remote.RemoteShards, *names: str) -> list[FileLock]:
    async def fetch() -> list[FileLock]:
        async with opened.fetching() as fetcher:
            return [await fetcher.obtain(name, 1000) for name in names]

    return asyncio.run(fetch())


def held_names(opened: remote.RemoteShards) -> list[str]:
    return sorted(path.name for path in opened.cache.folder.rglob("*.tar"))


def test_what_was_used_longest_ago_goes_first(files: Callable[..., remote.RemoteShards]) -> None:
    opened = files(3500)
    for number in (0, 1, 2, 0, 3):  # 0 is used again before there has to be room for 3
        (lock,) = obtain(opened, f"train/{number:02}.tar")
        lock.release()
    assert held_names(opened) == ["00.tar", "02.tar", "03.tar"]


def test_what_is_held_stays_and_who_finds_no_room_is_told(
    files: Callable[..., remote.RemoteShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "ROOM_PATIENCE_S", 0.05)
    opened, other = files(3500), files(3500, "other")
    locks = obtain(opened, "train/00.tar", "train/01.tar") + obtain(other, "train/02.tar")
    with pytest.raises(
        RemoteError, match=r"03\.tar: no room for its 1,000 bytes: .* 3,000 that are in use.*3,500.*BYTES"
    ):
        obtain(opened, "train/03.tar")
    assert held_names(opened) == ["00.tar", "01.tar", "02.tar"]
    locks[0].release()
    obtain(other, "train/03.tar")[0].release()
    assert held_names(opened) == ["01.tar", "02.tar", "03.tar"]
    with pytest.raises(RemoteError, match="no room for its 5,000 bytes"):
        asyncio.run(_fetch_too_large(opened))
    for lock in locks[1:]:
        lock.release()


def test_a_file_that_gets_its_name_while_the_cache_is_counted_is_counted(
    files: Callable[..., remote.RemoteShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = files(3500)
    aside = opened.folder / f"03.tar{TEMPORARY}"
    aside.write_bytes(bytes(1000))
    listed = [*opened.cache.folder.rglob("*")]
    monkeypatch.setattr(Path, "rglob", lambda *_: listed)
    assert opened.cache.used_bytes() == 1000
    aside.rename(opened.folder / "03.tar")
    assert opened.cache.used_bytes() == 1000
    (opened.folder / "03.tar").unlink()
    assert opened.cache.used_bytes() == 0


def test_of_two_that_keep_one_another_from_going_on_one_gives_up_and_the_other_goes_on(
    files: Callable[..., remote.RemoteShards], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each holds half of a full cache and waits for more; it was an error of both."""
    monkeypatch.setattr(remote, "ROOM_PATIENCE_S", 1.0)
    elder, younger = files(4500), files(4500, "other")
    assert (elder.place, younger.place) == (0, 1)
    ends: dict[str, str] = {}

    def go_on(opened: remote.RemoteShards, name: str, first: str) -> None:
        locks = [*held[name]]
        try:
            locks += obtain(opened, first)
            ends[name] = "went on"
        except RemoteError as error:
            ends[name] = str(error)
        for lock in locks:
            lock.release()

    held = {
        "elder": obtain(elder, "train/00.tar", "train/01.tar"),
        "younger": obtain(younger, "train/02.tar", "train/03.tar"),
    }
    threads = [
        threading.Thread(target=go_on, args=(elder, "elder", "train/04.tar")),
        threading.Thread(target=go_on, args=(younger, "younger", "train/05.tar")),
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ends["elder"] == "went on"
    assert "05.tar: no room for its 1,000 bytes" in ends["younger"]
    assert "twice as high for two processes" in ends["younger"]


def test_a_place_in_the_line_is_free_again_when_its_process_lets_go(
    files: Callable[..., remote.RemoteShards],
) -> None:
    first, second, third = (files(3500, name) for name in "abc")
    cache = third.cache
    assert [cache.num_behind(item.place) for item in (first, second, third)] == [2, 1, 0]
    del second
    gc.collect()
    assert [cache.num_behind(item.place) for item in (first, third)] == [1, 0]
    assert files(3500, "d").place == 1


async def _fetch_too_large(opened: remote.RemoteShards) -> None:
    async with opened.fetching() as fetcher:
        await fetcher.obtain("train/04.tar", 5000)


def test_a_data_set_that_nobody_has_open_goes_where_room_is_needed(
    files: Callable[..., remote.RemoteShards],
) -> None:
    old = files(3500, "old")
    (old.folder / "manifest.parquet").write_bytes(bytes(2000))
    new = files(3500, "new")
    with pytest.raises(RemoteError, match="no room"):
        asyncio.run(_fetch_all(new, 3))
    assert (old.folder / "manifest.parquet").exists()
    folder = old.folder
    del old
    asyncio.run(_fetch_all(new, 3))
    assert not folder.exists()


async def _fetch_all(opened: remote.RemoteShards, count: int) -> None:
    """Hold several files at a time."""
    remote.ROOM_PATIENCE_S, before = 0.05, remote.ROOM_PATIENCE_S
    locks: list[FileLock] = []
    try:
        async with opened.fetching() as fetcher:
            for number in range(count):
                locks.append(await fetcher.obtain(f"train/{number:02}.tar", 1000))
    finally:
        remote.ROOM_PATIENCE_S = before
        for lock in locks:
            lock.release()


def test_nothing_but_what_was_fetched_is_ever_removed(files: Callable[..., remote.RemoteShards]) -> None:
    opened = files(2500)
    strangers = [opened.cache.folder / "mine" / "train" / "00.tar", opened.cache.folder / "mine.tar"]
    for path in strangers:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(bytes(600))
    for number in range(3):
        obtain(opened, f"train/{number:02}.tar")[0].release()
    assert all(path.exists() for path in strangers)


@pytest.mark.parametrize("given", ["-1", "many", "0", "inf", "nan"])
def test_a_bound_that_is_no_number_of_bytes_is_refused(given: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IN21K_CACHE_BYTES", given)
    with pytest.raises(ValueError, match=f"IN21K_CACHE_BYTES is '{given}'; wanted a number of bytes, like 64e9"):
        Cache.from_environment()


def test_a_full_disk_is_told_in_one_line(shards_copy: Path, server: FileServer) -> None:
    """In a namespace of its own, where a file system of 200 kB can be mounted."""
    script = f"""
        import os
        from in21k.shards import open_dataset, remote
        from in21k.shards.reader import SampleReader
        remote.ROOM_PATIENCE_S = 0.1
        split = open_dataset({server.url!r}).split("train")
        ballast = os.open(os.environ["IN21K_CACHE"] + "/ballast", os.O_CREAT | os.O_WRONLY)
        try:
            while os.write(ballast, bytes(4096)):
                pass
        except OSError:
            pass
        try:
            SampleReader(split).image(0)
        except OSError as error:
            print(error)
    """
    mounted = f'mount -t tmpfs -o size=200k none $IN21K_CACHE && exec {sys.executable} -c "$SCRIPT"'
    folder = Path(os.environ["IN21K_CACHE"])
    folder.mkdir(exist_ok=True)
    command = ["unshare", "--map-root-user", "--mount", "sh", "-c", mounted]
    environment = os.environ | {"SCRIPT": textwrap.dedent(script)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("no unshare here")
    if "unshare" in done.stderr or "mount" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    assert "no room for its" in done.stdout, done.stderr
    assert "IN21K_CACHE to a larger disk" in done.stdout
    assert len(done.stdout.splitlines()) == 1


# Several processes


HOLD = """
    import asyncio, pathlib, sys, time
    from in21k.shards import open_dataset
    from in21k.shards.reader import SampleReader
    split = open_dataset(sys.argv[1]).split("train")
    print("open", flush=True)
    sys.stdin.readline()
    for position in range(len(split)):
        SampleReader(split).image(position)
    print("done", flush=True)
"""


def start_reader(url: str) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", textwrap.dedent(HOLD), url]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def test_two_processes_share_the_cache_and_nothing_is_downloaded_twice(server: FileServer) -> None:
    readers = [start_reader(server.url) for _ in range(2)]
    for reader in readers:
        assert reader.stdout
        assert reader.stdout.readline() == "open\n"
    for reader in readers:
        print("go", file=reader.stdin, flush=True)
    for reader in readers:
        assert reader.communicate()[0] == "done\n"
        assert reader.returncode == 0
    downloads = [name for name in server.asked if name != "dataset.json"]
    assert len(downloads) == len(set(downloads)) == 3 + 6  # the tables, the shards


def test_a_process_killed_in_mid_download_leaves_nothing_that_counts(
    server: FileServer, cache_folder: Path, shard_set: ShardSet
) -> None:
    server.ranges = False
    server.fail("stall", range(1), SHARD)
    reader = start_reader(server.url)
    print("go", file=reader.stdin, flush=True)
    assert server.stalled.wait(30)
    reader.send_signal(signal.SIGKILL)
    reader.communicate()
    (leftover,) = cache_folder.rglob("*.tmp")
    assert not list(cache_folder.rglob("*.tar"))
    split = open_dataset(server.url).split("train")
    SampleReader(split).image(20)  # of another shard, for which room is made
    assert not leftover.exists()
    assert images_of(split) == images_of(shard_set.split("train"))


def test_a_process_that_was_stopped_in_mid_download_is_not_waited_for_for_ever(
    server: FileServer, cache_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "OTHERS_PATIENCE_S", 0.1)
    split = open_dataset(server.url).split("train")
    path = split.folder / SHARD
    path.parent.mkdir(exist_ok=True)
    lock = FileLock(lock_path(path))
    assert lock.take(shared=False)
    with pytest.raises(OSError, match=r"000000\.tar: another process has fetched it for .* without progress"):
        SampleReader(split).image(0)
    lock.release()
    SampleReader(split).image(0)


# Ahead of use


@given(st.data())
def test_uses_are_in_the_order_of_the_first_sample_and_end_with_the_last(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=12))
    ends, starts = np.cumsum(sizes), np.cumsum(sizes) - sizes
    start = data.draw(st.integers(0, 100))
    shards = data.draw(st.permutations(range(len(sizes))))
    windows, order = [], []
    while shards:
        count = data.draw(st.integers(1, len(shards)))
        window = [int(starts[shard]) + index for shard in shards[:count] for index in range(sizes[shard])]
        windows.append(np.array(data.draw(st.permutations(window))))
        order += [int(np.searchsorted(ends, position, side="right")) for position in windows[-1]]
        shards = shards[count:]
    actual = list(uses(ends, windows, start))
    assert [use.shard for use in actual] == list(dict.fromkeys(order))
    assert all(use.last == start + max(i for i, shard in enumerate(order) if shard == use.shard) for use in actual)


def wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 10
    while not condition() and time.monotonic() < end:
        time.sleep(0.01)
    assert condition()


def test_shards_are_fetched_in_order_so_many_at_a_time_and_let_go_of_after_their_last_sample(
    server: FileServer,
) -> None:
    split = open_dataset(server.url).split("train")
    order = [4, 1, 5, 0, 2, 3]
    starts = split.shard_ends - split.shard_sizes
    windows = [np.arange(starts[shard], split.shard_ends[shard]) for shard in order]
    server.asked.clear()
    threads = threading.active_count()
    ahead = ShardPrefetcher(split, windows, 0, at_once=2)
    wanted = [split.shard_names[shard] for shard in order]
    ahead.wait(windows[0])
    wait_until(lambda: len(server.asked) == 2)
    time.sleep(0.1)
    assert set(server.asked) == set(wanted[:2])
    ahead.done(len(windows[0]))
    wait_until(lambda: len(server.asked) == 3)
    ahead.wait(np.concatenate(windows[1:5]))  # more than are kept otherwise
    assert set(server.asked) == set(wanted[:5])
    held = [FileLock(lock_path(split.folder / name)) for name in wanted]
    assert [lock.take(shared=False) for lock in held[:5]] == [True, False, False, False, False]
    ahead.close()
    assert all(lock.take(shared=False) for lock in held)
    for lock in held:
        lock.release()
    wait_until(lambda: threading.active_count() == threads)


def test_closing_ends_a_download_that_stands_still(server: FileServer) -> None:
    split = open_dataset(server.url).split("train")
    server.fail("stall")
    threads = threading.active_count()
    ahead = ShardPrefetcher(split, [np.arange(9)], 0, 32)
    assert server.stalled.wait(10)
    ahead.close()
    server.released.set()
    wait_until(lambda: threading.active_count() == threads)
    assert not list(split.folder.rglob("*.tmp"))


def test_room_that_is_too_small_for_what_is_needed_at_a_time_is_refused(
    server: FileServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = open_dataset(server.url).split("train")
    tables = sum(path.stat().st_size for path in split.folder.glob("*.*") if path.is_file())
    needed = int(np.sort(split.shard_bytes)[-4:].sum()) + tables
    assert split.remote
    split.remote.cache.max_bytes = needed
    split.remote.check_room(split.shard_bytes, 4)
    split.remote.cache.max_bytes = needed - 1
    line = rf"{server.url}: the cache may hold {needed - 1:,} bytes; wanted {needed:,} or more, for the 4 shards"
    with pytest.raises(ValueError, match=line):
        split.remote.check_room(split.shard_bytes, 4)
