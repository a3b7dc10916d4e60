"""Shard sets at a URL: the cache gets their tables at once, and holds each shard while it is needed."""

from __future__ import annotations

import asyncio
import errno
import os
import re
import time
import weakref
from collections.abc import AsyncGenerator, Callable, Generator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files.lock import FileLock
from ..files.names import file_name
from ..files.record import DATASET_JSON, parse_dataset_json
from ..sample import checksum
from .background import run
from .cache import BYTES, FOLDER, Cache, aside_path, check_no_link, lock_path
from .object_store import Connection, RemoteError, Store, write_at

TABLES = ("classes.parquet", "tree.json", "manifest.parquet")
MAX_DATASET_JSON_BYTES = 64_000_000
MAX_NAME_CHARACTERS = 80  # of a URL, in a folder's name
IDENTITY = ("ETag", "Last-Modified", "LastModified", "mtime", "created")  # of a file's content, by fsspec's many names
FILES_AT_ONCE = 4  # that one process downloads; others on the machine take those after them
POLL_S = 0.05  # how often is looked for room, and at a file that another process has
ROOM_PATIENCE_S = 30.0  # for room, once a file is waited for; more for each that is behind in the line
OTHERS_PATIENCE_S = 120.0  # for a file that another process has and of which nothing comes


class RemoteShards:
    """The files of a shard set at a URL, and where they lie in the cache.

    folder: laid out like the shard set itself; the tables are there, and a shard as long as a lock on it is held.
    """

    def __init__(self, store: Store, cache: Cache, folder: Path) -> None:
        self.store, self.cache, self.folder = store, cache, folder
        use = FileLock(lock_path(folder))
        use.take(shared=True, wait=True)  # nobody removes the folder from now on
        weakref.finalize(self, use.release).atexit = False
        self.place, place_lock = cache.take_place()
        weakref.finalize(self, place_lock.release).atexit = False
        folder.mkdir(exist_ok=True)

    @asynccontextmanager
    async def fetching(self, is_awaited: Callable[[str], bool] = lambda _: True) -> AsyncGenerator[Fetcher]:
        """Connect, to fetch files in the running event loop; `is_awaited(name)`: somebody stands still for a file."""
        async with self.store.connect() as connection:
            yield Fetcher(self, connection, is_awaited)

    @contextmanager
    def held(self, name: str, num_bytes: int) -> Generator[Path]:
        """Keep a file in the cache while the block runs, fetching it if needed; yield its path. Raises OSError."""

        async def obtain() -> FileLock:
            async with self.fetching() as fetcher:
                return await fetcher.obtain(name, num_bytes)

        lock = run(obtain)
        try:
            yield self.folder / name
        finally:
            lock.release()

    def read_again(self, name: str, offset: int, num_bytes: int) -> bytes:
        """Return a range of a file, read from the store and not from the cache. Raises RemoteError."""

        async def read() -> bytes:
            async with self.store.connect() as connection:
                return await connection.read(name, offset, offset + num_bytes)

        return run(read)

    def mend(self, name: str, offset: int, data: bytes) -> None:
        """Overwrite bytes of a file in the cache at `offset`, if the cache has the file."""
        path = self.folder / file_name(name, self.store.url)
        check_no_link(path, self.cache.folder)
        with suppress(FileNotFoundError):
            write_at(path, data, offset)

    def fetch_again(self, name: str, num_bytes: int) -> None:
        """Fetch a file of the cache again. Raises OSError."""
        (self.folder / file_name(name, self.store.url)).unlink(missing_ok=True)
        with self.held(name, num_bytes):
            pass

    def check_room(self, shard_bytes: NDArray[np.int64], num_shards: int) -> None:
        """Raise ValueError if the cache cannot hold the `num_shards` largest shards beside the tables."""
        tables = sum(path.stat().st_size for path in self.folder.iterdir() if path.is_file())
        needed = int(np.sort(shard_bytes)[-num_shards:].sum()) + tables
        if needed > self.cache.max_bytes:
            raise ValueError(
                f"{self.store.url}: the cache may hold {self.cache.max_bytes:,} bytes; wanted {needed:,} or more, "
                f"for the {min(num_shards, len(shard_bytes))} shards that are needed at a time; set {BYTES} so"
            )


class Fetcher:
    """Fetches files of one shard set into the cache, over one connection."""

    def __init__(self, remote: RemoteShards, connection: Connection, is_awaited: Callable[[str], bool]) -> None:
        self._remote, self._connection, self._is_awaited = remote, connection, is_awaited
        self._slots = asyncio.Semaphore(FILES_AT_ONCE)
        self._places = count()
        self._lack_room: set[int] = set()  # places of waiting requests in their order

    async def obtain(self, name: str, num_bytes: int | None, content: bytes | None = None) -> FileLock:
        """Fetch a file into the cache if needed; return the lock that keeps it there until it is released.

        num_bytes: of the file; None if unknown.
        content:   of the file; None: download it.

        Raises RemoteError, OSError if the cache cannot be written to, and ValueError if it holds a link.
        """
        path, place = self._remote.folder / file_name(name, self._remote.store.url), next(self._places)
        for checked in (path, lock_path(path)):
            check_no_link(checked, self._remote.cache.folder)
        path.parent.mkdir(parents=True, exist_ok=True)
        lock, aside = FileLock(lock_path(path)), aside_path(path)
        others, room = _OthersPatience(path), _RoomPatience(self._remote, name, num_bytes or 0)
        try:
            while True:
                if _is_whole(path, num_bytes) and lock.take(shared=True) and _is_whole(path, num_bytes):
                    os.utime(path)
                    return lock
                async with self._slots:
                    mine = lock.take(shared=False)
                    if mine and not _is_whole(path, num_bytes) and self._reserve(place, aside, num_bytes or 0):
                        await self._write(name, aside, num_bytes, content)
                if _is_whole(path, num_bytes):
                    continue
                lock.drop()  # so that other processes go on while the cache is full
                if mine:
                    room.check(is_awaited=self._is_awaited(name))
                await asyncio.sleep(POLL_S)
                while not _is_whole(path, num_bytes) and not lock.take(shared=False):
                    others.check()
                    await asyncio.sleep(POLL_S)
                lock.drop()
        except BaseException:
            lock.release()
            raise
        finally:
            self._lack_room.discard(place)

    def _reserve(self, place: int, aside: Path, num_bytes: int) -> bool:
        """Reserve room, unless an earlier request still waits for room."""
        aside.unlink(missing_ok=True)  # of a process that was killed
        self._lack_room.add(place)
        has_room = place == min(self._lack_room) and self._remote.cache.reserve(aside, num_bytes)
        if has_room:
            self._lack_room.discard(place)
        return has_room

    async def _write(self, name: str, aside: Path, num_bytes: int | None, content: bytes | None) -> None:
        try:
            if content is None:
                await self._connection.download(name, aside, num_bytes)
            else:
                write_at(aside, content, 0)
            aside.replace(self._remote.folder / name)
        except OSError as error:
            if error.errno == errno.ENOSPC:
                reason = f"{os.strerror(errno.ENOSPC)} (the cache of remote shards; {FOLDER} puts it elsewhere)"
                raise OSError(error.errno, reason, str(aside)) from error
            raise
        finally:
            aside.unlink(missing_ok=True)


def _is_whole(path: Path, num_bytes: int | None) -> bool:
    try:
        return path.stat().st_size == num_bytes or num_bytes is None
    except FileNotFoundError:
        return False


class _RoomPatience:
    """Waits for room: without limit until a reader waits for the file, and from then for a limited time.

    When processes block one another, each waits longer than the next in the line. So the last one gives up, and the
    others find room.
    """

    def __init__(self, remote: RemoteShards, name: str, num_bytes: int) -> None:
        self._remote, self._name, self._num_bytes = remote, name, num_bytes
        self._end = float("inf")

    def check(self, *, is_awaited: bool) -> None:
        """Raise RemoteError when the time is up."""
        now, cache = time.monotonic(), self._remote.cache
        if not is_awaited:
            self._end = float("inf")
        elif self._end == float("inf"):
            self._end = now + ROOM_PATIENCE_S * (1 + cache.num_behind(self._remote.place))
        if now > self._end or self._num_bytes > cache.max_bytes:
            raise RemoteError(
                f"{self._remote.store.url}/{self._name}: no room for its {self._num_bytes:,} bytes: the cache "
                f"{cache.folder} holds {cache.used_bytes():,} that are in use, it may hold {cache.max_bytes:,}, and "
                f"the disk has {cache.free_bytes():,} free; set {BYTES} higher (twice as high for two "
                f"processes), or {FOLDER} to a larger disk"
            )


class _OthersPatience:
    """Waits for a file that another process fetches, as long as it makes progress."""

    def __init__(self, path: Path) -> None:
        self._path, self._seen, self._since = path, -1, time.monotonic()

    def check(self) -> None:
        """Raise RemoteError when the time is up."""
        now = time.monotonic()
        try:
            changed = aside_path(self._path).stat().st_mtime_ns
        except FileNotFoundError:
            changed = 0
        if changed != self._seen:
            self._seen, self._since = changed, now
        elif now - self._since > OTHERS_PATIENCE_S:
            raise RemoteError(
                f"{self._path}: another process has fetched it for {OTHERS_PATIENCE_S:.0f} s without progress; end "
                f"that process if it is stopped, or set {FOLDER} to another folder"
            )


def open_remote(url: str) -> RemoteShards:
    """Fetch the tables of the shard set at a URL that are not in the cache yet; raises ValueError.

    The name in the cache depends on the URL, the content of `dataset.json`, and what the store says of the tables.
    """
    return run(lambda: _open_remote(url))


async def _open_remote(url: str) -> RemoteShards:
    store, cache = Store(url.rstrip("/")), Cache.from_environment()
    async with store.connect() as connection:
        content = await connection.read_whole(DATASET_JSON, MAX_DATASET_JSON_BYTES)
        files = parse_dataset_json(content, store.url, kind="in21k-shards", made_by="in21k shard").get("files")
        store = replace(store, ranged=await connection.knows_ranges(DATASET_JSON))
        sizes, stamps = await _sizes(connection, files)
    key = checksum(f"{store.url} {stamps}".encode() + content)
    name = re.sub(r"[^A-Za-z0-9._-]", "_", store.url.rpartition("/")[2])[-MAX_NAME_CHARACTERS:]
    remote = RemoteShards(store, cache, cache.folder / f"{name}-{key}")

    async with remote.fetching() as fetcher:
        if _is_other(remote.folder / DATASET_JSON, content):
            (remote.folder / DATASET_JSON).unlink()
        (await fetcher.obtain(DATASET_JSON, len(content), content)).release()
        for name, num_bytes in sizes.items():
            (await fetcher.obtain(name, num_bytes)).release()
    return remote


async def _sizes(
    connection: Connection, files: Mapping[str, Mapping[str, Any]] | None
) -> tuple[dict[str, int | None], list[list[Any]]]:
    """Return the size of each table (None: unknown), and what identifies its content."""
    if files is not None:
        if missing := set(TABLES) - files.keys():
            raise RemoteError(f"{connection.store.url}: its {DATASET_JSON} records no {min(missing)}")
        return {name: files[name]["num_bytes"] for name in TABLES}, []
    infos = {name: await connection.info(name) for name in TABLES}
    stamps = [[info.get(key) for key in ("size", *IDENTITY)] for info in infos.values()]
    return {name: info.get("size") for name, info in infos.items()}, stamps


def _is_other(path: Path, content: bytes) -> bool:
    return path.is_file() and path.read_bytes() != content
