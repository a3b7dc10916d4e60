"""Shards as streams: from paths, URLs and commands, opened by the webdataset library, and read whole or not at all."""

from __future__ import annotations

import io
import os
import re
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from subprocess import Popen
from tarfile import (
    EOFHeaderError,  # pyright: ignore[reportAttributeAccessIssue]  # typeshed has forgotten it
    HeaderError,
    ReadError,
    TarFile,
    TarInfo,
)
from typing import Any, NamedTuple, Self
from urllib.parse import urlparse

from webdataset.gopen import Pipe, gopen, gopen_schemes, rewrite_url
from webdataset.shardlists import expand_urls

from ...shards.dataset import ShardSet

STALL_S = 300.0  # a command that prints nothing for so long has failed (guessed)
READ_BYTES = 2**18
_OF_SHELL = re.compile(r"[\x00-\x20\x7f'\"`\\$;|<>(){}!*]")  # in a URL; & parts its query


class ShardUrls(NamedTuple):
    """Shards by their paths or URLs.

    sizes:   how many samples each holds; None: unknown.
    way_out: how messages on corrupt samples end.
    """

    urls: list[str]
    sizes: list[int] | None
    way_out: str


def expand_pattern(pattern: str) -> ShardUrls:
    """Return the shards of a pattern in the library's notation; raises ValueError if it cannot be parsed.

    >>> expand_pattern("https://host/train-{000..001}.tar::pipe:cat more.tar").urls
    ['https://host/train-000.tar', 'https://host/train-001.tar', 'pipe:cat more.tar']
    """
    try:
        urls = expand_urls(pattern)
    except (ValueError, AssertionError) as error:  # AssertionError: it names a variable that is not set
        raise ValueError(f"{pattern}: not a pattern of shards ({error})") from error
    _check_urls(urls)
    return ShardUrls(urls, None, "see what the shard holds, or raise max_bad_rate")


def _check_urls(urls: list[str]) -> None:
    """Raise ValueError for a URL that the library cannot open, or that a shell would take for more than a name.

    The library opens URLs by commands (curl, gsutil, ...). A command of one's own is typed, as `pipe:COMMAND`: of the
    names in a shard set's tables none can begin so, as each stands behind the folder or URL of the set.
    """
    for url in urls:
        scheme = urlparse(rewrite_url(url)).scheme
        if scheme not in ("", "file", "pipe") and (unsafe := _OF_SHELL.search(url)):
            raise ValueError(
                f"{url!r}: holds {unsafe[0]!r}, by which a shell would run more than was meant; write it as "
                f"%{ord(unsafe[0]):02X}"
            )
        if scheme not in ("", "file", *gopen_schemes):
            raise ValueError(
                f"{url}: the webdataset library opens no {scheme}: by itself; give a command that prints the shard, as "
                "in 'pipe:aws s3 cp s3://bucket/name.tar -', or put a function into webdataset.gopen_schemes"
            )


def shard_urls(shards: ShardSet, split: str) -> ShardUrls:
    """Return the shards of a split; raises ValueError if the split does not exist."""
    folder = shards.location if shards.remote else str(shards.path.absolute())
    urls = [f"{folder}/{name}" for name in shards.shard_names(split)]
    _check_urls(urls)
    sizes = [int(shard["num_samples"]) for shard in shards.info["shards"][split]]
    return ShardUrls(urls, sizes, f"`in21k verify --deep {shards.location}` lists all such")


_commands: set[Popen[bytes]] = set()  # what prints shards to this process


class _Output(io.RawIOBase):
    """What a command of the library's prints. It counts only if the command ends well, and it must not stall."""

    def __init__(self, pipe: Pipe) -> None:
        self._pipe, self._command = pipe, pipe.proc
        self._raw: Any = getattr(pipe.stream, "raw", pipe.stream)
        self._poll = select.poll()
        self._poll.register(self._raw, select.POLLIN)
        _commands.add(self._command)

    def readable(self) -> bool:
        """Return that it is there to be read."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Fill a part of `buffer`; 0: the command ended. Raises OSError or TimeoutExpired where it failed or stalls."""
        if not self._poll.poll(STALL_S * 1000):
            raise TimeoutError(f"nothing came for {STALL_S:g} s")
        num_bytes: int = self._raw.readinto(buffer)
        if not num_bytes:
            status = self._command.wait(STALL_S)
            if status not in self._pipe.ignore_status:
                raise OSError(f"its command ended with exit status {status}")
        return num_bytes

    def close(self) -> None:
        """End the command, and what it started: one that waits for something would not notice."""
        if not self.closed:
            self._pipe.stream.close()
            _end(self._command)
            self._command.wait()
            _commands.discard(self._command)
        super().close()


def end_commands() -> None:
    """End what prints shards to this process."""
    for command in list(_commands):
        _end(command)


def _end(command: Popen[bytes]) -> None:
    """End a process and those that it started."""
    if command.poll() is None:
        processes = [command.pid]
        for process in processes:  # which grows
            for task in Path(f"/proc/{process}/task").glob("*/children"):
                with suppress(OSError):  # it ended meanwhile
                    processes += map(int, task.read_text().split())
        for process in processes:
            with suppress(ProcessLookupError):
                os.kill(process, signal.SIGKILL)


class _Header(TarInfo):
    """A member's header; what is none must be the end mark. (`TarFile` ends without a word at anything else.)"""

    @classmethod
    def fromtarfile(cls, tarfile: TarFile) -> Self:
        """Read the next header; raises ReadError where there is neither one nor the end mark."""
        try:
            return super().fromtarfile(tarfile)
        except EOFHeaderError:
            raise
        except HeaderError as error:
            raise ReadError(f"no end mark: {error}") from error


def read_members(url: str) -> Iterator[tuple[str, bytes]]:
    """Yield (name, content) of the files of a tar, compressed or not, which the library's `gopen` opens.

    Raises OSError, TarError or SubprocessError where it does not come whole, up to its end mark and nothing behind it.
    (The library's `tar_file_expander` takes a shard for whole that is cut between two files, or is two in a row.)
    """
    try:
        stream: Any = gopen(url)
    except ValueError as error:  # the library may be told to open no files and no commands
        raise OSError(str(error)) from error
    opened: Any = io.BufferedReader(_Output(stream), READ_BYTES) if isinstance(stream, Pipe) else stream
    with opened:
        tar: Any = TarFile.open(fileobj=opened, mode="r|*", tarinfo=_Header)
        for member in tar:
            if member.isfile():
                yield member.name, tar.extractfile(member).read()
            tar.members = []  # it would keep them all
        while rest := tar.fileobj.read(READ_BYTES):  # unpacked
            if rest.strip(b"\0"):
                raise ReadError("there is more behind its end mark")
