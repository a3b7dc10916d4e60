"""Reads files at a URL through fsspec: whole, by range, or as downloads in parts. Every failure is a one-line error.

A connection has its own event loop and session, and shares nothing with fsspec's global thread. Closing it leaves
nothing behind, so a forked process can open another.
"""

from __future__ import annotations

import asyncio
import errno
import os
import random
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

PART_BYTES = 8 << 20  # as object stores advise; only a part that is lost is requested again
PARTS_AT_ONCE = 16  # of one connection: 128 MB in memory at most
READ_BYTES = 1 << 20  # at a time, of an answer of unknown length
UNTOLD_BYTES = 1 << 30  # the most of a table of unknown size; 21K-P's largest has 290 MB
PARTIAL_CONTENT = 206
PATIENCE_S = 60.0  # for one part, or for anything at all of a stream
PAUSES_S = (0.5, 1.0, 2.0, 4.0, 8.0)  # between tries
ASKING_FOR_TIME = (408, 425, 429)  # of a server's answers from 400 to 499 those that time may mend
DISK_FULL = (errno.ENOSPC, errno.EDQUOT)
LACKS_ACCESS = ("Credential", "SSO", "ProfileNotFound")  # in the names of botocore's errors
HOW_TO_INSTALL = "`pip install 'in21k[remote]'` brings what s3:// and https:// need"
HOW_TO_ACCESS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or FSSPEC_S3_ANON=true for what is public, "
    "and AWS_ENDPOINT_URL where the store is not Amazon's",
    "https": """set FSSPEC_HTTPS='{"client_kwargs": {"headers": {"Authorization": "..."}}}'""",
}

Result = TypeVar("Result")


class RemoteError(OSError, ValueError):
    """A file at a URL cannot be read: one line that names the URL and the way out."""


@dataclass(frozen=True)
class Store:
    """A folder at a URL without a slash at the end. `ranged`: the store serves byte ranges of files."""

    url: str
    ranged: bool = True

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Connection]:
        """Connect; raises RemoteError for an unknown kind of URL, or if its package is missing."""
        connection = Connection(self, *_file_system(self.url))
        try:
            yield connection
        finally:
            await connection.close()


class Connection:
    """Reads files of a store by their names below its URL; raises RemoteError. The first request opens it."""

    def __init__(self, store: Store, files: Any, root: str) -> None:
        self.store, self._files, self._root = store, files, root.rstrip("/")
        self._parts = asyncio.Semaphore(PARTS_AT_ONCE)
        self._beginning = asyncio.Lock()
        self._session: Any = None

    async def close(self) -> None:
        """Close what the first request opened."""
        if self._session is not None:
            await self._session.close()

    async def _begin(self) -> None:
        async with self._beginning:
            if self._session is None and hasattr(self._files, "set_session"):
                self._session = await self._files.set_session()

    async def ask(self, request: Callable[[], Awaitable[Result]], name: str, *, in_time: bool = True) -> Result:
        """Ask for something, and again after a while where no answer comes (in time); `name` is for the message."""
        url = f"{self.store.url}/{name}"
        for pause in (*PAUSES_S, None):
            try:
                await self._begin()
                return await asyncio.wait_for(request(), PATIENCE_S if in_time else None)
            except Exception as error:  # of whichever package serves the URL
                if isinstance(error, OSError) and error.errno in DISK_FULL:
                    raise
                reason = _refusal(error, url)
                if reason is None and pause is None:
                    tries = f"no answer in {len(PAUSES_S) + 1} tries ({_one_line(error)})"
                    reason = f"{tries}; look into the network and the store, then start again"
                if reason is not None:
                    raise RemoteError(f"{url}: {reason}") from error
            await asyncio.sleep((pause or 0) * random.uniform(1, 1.5))
        raise AssertionError("the last try has neither returned nor raised")

    async def info(self, name: str) -> dict[str, Any]:
        """Return what the store says of a file: `size`, where it knows it, and what tells its content from other."""
        return await self.ask(lambda: self._files._info(f"{self._root}/{name}"), name)

    async def read(self, name: str, start: int, stop: int) -> bytes:
        """Return bytes `start` to `stop` of a file. No more are ever taken in, whatever the store sends."""

        async def request() -> bytes:
            data = await self._part(name, start, stop)
            if len(data) != stop - start:
                raise ConnectionError(f"{len(data):,} bytes came instead of {stop - start:,}")
            return data

        return await self.ask(request, name)

    async def read_whole(self, name: str, max_bytes: int) -> bytes:
        """Return a small file; raises RemoteError where it has more than `max_bytes`."""

        async def request() -> bytes:
            data = await (self._whole(name, max_bytes + 1) if self._is_http else self._part(name, 0, max_bytes + 1))
            if len(data) > max_bytes:
                raise ValueError(f"has more than {max_bytes:,} bytes, the most that it may have")
            return data

        return await self.ask(request, name)

    async def knows_ranges(self, name: str) -> bool:
        """Return whether the store serves byte ranges of files."""
        if not self._is_http:
            return len(await self.read(name, 0, 1)) == 1

        async def request() -> bool:
            async with self._answer(name, 0, 1) as answer:
                return answer.status == PARTIAL_CONTENT

        return await self.ask(request, name)

    async def download(self, name: str, path: Path, num_bytes: int | None) -> None:
        """Overwrite `path` with a file of `num_bytes` (None: unknown). Raises RemoteError, and OSError for `path`."""
        if num_bytes is None or not self.store.ranged:
            await self.ask(lambda: self._stream(name, path, num_bytes), name, in_time=False)
            return
        async with task_group() as group:
            for start in range(0, num_bytes, PART_BYTES):
                group.create_task(self._download_part(name, path, start, min(start + PART_BYTES, num_bytes)))

    async def _download_part(self, name: str, path: Path, start: int, stop: int) -> None:
        async with self._parts:
            data = await self.read(name, start, stop)
            await asyncio.to_thread(write_at, path, data, start)  # while other parts come

    @property
    def _is_http(self) -> bool:
        """Whether anybody may answer, with anything; the other stores' own packages ask for no more than is wanted."""
        return "http" in self._files.protocol

    async def _part(self, name: str, start: int, stop: int) -> bytes:
        if not self._is_http:
            return await self._files._cat_file(f"{self._root}/{name}", start=start, end=stop)
        async with self._answer(name, start, stop) as answer:
            skipped = 0 if answer.status == PARTIAL_CONTENT else start  # a store without ranges sends the whole
            while skipped and (data := await answer.content.read(min(skipped, READ_BYTES))):
                skipped -= len(data)
            return await _at_most(answer.content, stop - start)

    async def _whole(self, name: str, max_bytes: int) -> bytes:
        async with self._answer(name) as answer:
            return await _at_most(answer.content, max_bytes)

    @asynccontextmanager
    async def _answer(self, name: str, start: int = 0, stop: int | None = None) -> AsyncGenerator[Any]:
        """Ask an http server for a file, or bytes `start` to `stop` of it; yield its answer, nothing of it read."""
        import aiohttp

        options = dict(self._files.kwargs)
        headers = {**options.pop("headers", {}), "Accept-Encoding": "identity"}
        if stop is not None:
            headers["Range"] = f"bytes={start}-{stop - 1}"
        options["timeout"] = aiohttp.ClientTimeout(total=None, sock_read=PATIENCE_S)
        url = self._files.encode_url(f"{self._root}/{name}")
        async with self._session.get(url, headers=headers, **options) as answer:
            self._files._raise_not_found_for_status(answer, url)
            yield answer

    async def _stream(self, name: str, path: Path, num_bytes: int | None) -> None:
        """Download from the first byte to the last. Only servers of http lack ranges or sizes."""
        if not self._is_http:
            raise ValueError("the store does not tell its size")
        max_bytes = UNTOLD_BYTES if num_bytes is None else num_bytes
        come = 0
        async with self._answer(name) as answer:
            while data := await answer.content.read(READ_BYTES):
                if come + len(data) > max_bytes:
                    raise ValueError(f"has more than {max_bytes:,} bytes, the most that it may have")
                await asyncio.to_thread(write_at, path, data, come)
                come += len(data)
        if num_bytes not in (None, come):
            raise ConnectionError(f"{come:,} bytes came instead of {num_bytes:,}")
        os.truncate(path, come)


async def _at_most(stream: Any, num_bytes: int) -> bytes:
    """Read a stream to its end, or so many bytes of it."""
    parts: list[bytes] = []
    while num_bytes and (data := await stream.read(min(num_bytes, READ_BYTES))):
        parts.append(data)
        num_bytes -= len(data)
    return b"".join(parts)


@asynccontextmanager
async def task_group() -> AsyncGenerator[asyncio.TaskGroup]:
    """Run tasks as `asyncio.TaskGroup` does, and raise the first error by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            yield group
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


def write_at(path: Path, data: bytes, offset: int) -> None:
    """Write all of `data` over what a file has at `offset`."""
    with path.open("r+b", buffering=0) as file:
        view = memoryview(data)
        while view:
            written = os.pwrite(file.fileno(), view, offset)
            view, offset = view[written:], offset + written


def _file_system(url: str) -> tuple[Any, str]:
    """Return fsspec's file system of a URL, to be used in the running event loop, and the URL's path in it."""
    try:
        from fsspec import get_filesystem_class
        from fsspec.core import url_to_fs
        from fsspec.implementations.asyn_wrapper import AsyncFileSystemWrapper
        from fsspec.utils import get_protocol

        if get_filesystem_class(get_protocol(url)).async_impl:
            return url_to_fs(url, asynchronous=True, skip_instance_cache=True)
        files, root = url_to_fs(url)
        return AsyncFileSystemWrapper(files, asynchronous=True), root
    except ImportError as error:
        raise RemoteError(f"{url}: a package is missing ({_one_line(error)}); {HOW_TO_INSTALL}") from error
    except ValueError as error:
        raise RemoteError(f"{url}: {_one_line(error)}; wanted s3://, https:// or another that fsspec knows") from error


def _refusal(error: Exception, url: str) -> str | None:
    """Return why asking again is of no use; None where it is, as nothing is wrong with what was asked."""
    kinds = " ".join(kind.__name__ for kind in type(error).__mro__)
    status = getattr(error, "status", None)
    if isinstance(error, FileNotFoundError) or status in (404, 410):
        return f"is not there ({_one_line(error)})"
    if isinstance(error, PermissionError) or status in (401, 403) or any(word in kinds for word in LACKS_ACCESS):
        kind = url.partition("://")[0]
        way_out = HOW_TO_ACCESS.get(kind, f"see what fsspec says of {kind}://, and its FSSPEC_{kind.upper()}_<OPTION>")
        return f"access is denied ({_one_line(error)}); {way_out}"
    if isinstance(status, int) and 400 <= status < 500 and status not in ASKING_FOR_TIME:
        return f"the server refuses it ({_one_line(error)})"
    if isinstance(error, (TypeError, ValueError, AttributeError, NotImplementedError)) or "ValidationError" in kinds:
        return _one_line(error)
    return None


def _one_line(error: BaseException) -> str:
    """Say an error in one line; what a package says of it can be several, or nothing."""
    text = " ".join(str(error).split())[:200]
    return text or type(error).__name__
