"""Reading samples out of shards by their position."""

from __future__ import annotations

import hashlib
import logging
import os
from collections import OrderedDict
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .dataset import ShardSplit

if TYPE_CHECKING:
    from .remote.remote_set import RemoteShards

log = logging.getLogger(__name__)

MAX_OPEN_FILES = 64  # guessed: several windows of shards, far below any ulimit


class CorruptSampleError(ValueError):
    """A sample that cannot be used: its position in the split, and why; `ShardSplit.describe` says which one it is."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return f"sample {self.position} {self.reason}"


class OpenFile:
    """A file that closes when the last who uses it lets go."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class FileCache:
    """The few files read from last (`max_open`), kept open; threads may share it."""

    def __init__(self, max_open: int = MAX_OPEN_FILES) -> None:
        self._max_open = max_open
        self._open: OrderedDict[Path, OpenFile] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path, offset: int, num_bytes: int) -> bytes:
        """Read `num_bytes` at `offset`, fewer at the end of the file. Raises OSError, which names the file."""
        file = self.open(path)  # held while it is read from: another thread may drop it from the cache meanwhile
        data = b""
        try:
            # A disk that fails within the range gives what lies before, and its error to who asks again.
            while part := os.pread(file.descriptor, num_bytes - len(data), offset + len(data)):
                data = data + part if data else part
                if len(data) == num_bytes:
                    break
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(path)) from error
        return data

    def open(self, path: Path) -> OpenFile:
        """Return an open file, which stays open as long as it is referenced; raises OSError."""
        with self._lock:
            file = self._open.get(path)
            if file is None:
                file = self._open[path] = OpenFile(os.open(path, os.O_RDONLY))
                if len(self._open) > self._max_open:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(path)
            return file

    def close(self) -> None:
        """Close every file; the cache can be used on."""
        with self._lock:
            self._open.clear()

    def __getstate__(self) -> dict[str, int]:
        return {"max_open": self._max_open}  # another process opens files of its own

    def __setstate__(self, state: dict[str, int]) -> None:
        self.__init__(state["max_open"])


class SampleReader:
    """Read the images of a split; each is compared with its checksum. Threads may share it.

    A remote shard that is not in the cache is fetched there. What the cache has otherwise than it was written is read
    again from where it came.
    """

    def __init__(self, split: ShardSplit) -> None:
        self._split = split
        self._paths = [split.folder / shard for shard in split.shard_names]
        # A file that has left the cache would take room as long as it is open.
        self._files = FileCache(0 if split.remote else MAX_OPEN_FILES)

    def image(self, position: int) -> bytes:
        """Return a sample's JPEG bytes; raises CorruptSampleError where they are not those written, or OSError."""
        data = self._read(position)
        if self._is_good(position, data):
            return data
        if self._split.remote:
            data = self._read_again(self._split.remote, position)
            if self._is_good(position, data):
                return data
        raise CorruptSampleError(position, "has other bytes than were written")

    def images(self, positions: NDArray[np.int64]) -> list[bytes | None]:
        """Return the JPEG bytes of several samples; None for each that `image` has to read, or to name as corrupt.

        Everything but reading and hashing, which release the GIL, is done once a batch.
        """
        split = self._split
        shards = np.searchsorted(split.shard_ends, positions, side="right").tolist()
        places = zip(shards, split.offsets[positions].tolist(), split.num_bytes[positions].tolist(), strict=True)
        expected = split.checksums[positions].astype(">u8").tobytes()
        descriptors = self._descriptors(shards)
        images = list[bytes | None]()
        for first, (shard, offset, num_bytes) in zip(range(0, len(expected), 8), places, strict=True):
            data = b""
            if file := descriptors[shard]:
                with suppress(OSError):
                    data = os.pread(file.descriptor, num_bytes, offset)
            images.append(data if hashlib.sha256(data).digest()[:8] == expected[first : first + 8] else None)
        return images

    def _descriptors(self, shards: list[int]) -> dict[int, OpenFile | None]:
        """Return the open file of each shard, None for one that cannot be opened here."""
        files: dict[int, OpenFile | None] = dict.fromkeys(shards)
        for shard in files:
            with suppress(OSError):
                files[shard] = self._files.open(self._paths[shard])
        return files

    def _is_good(self, position: int, data: bytes) -> bool:
        return int.from_bytes(hashlib.sha256(data).digest()[:8]) == int(self._split.checksums[position])

    def _read(self, position: int) -> bytes:
        split, shard = self._split, self._split.shard_of(position)
        place = int(split.offsets[position]), int(split.num_bytes[position])
        try:
            return self._files.read(self._paths[shard], *place)
        except FileNotFoundError:
            if split.remote is None:
                raise
        with split.remote.held(split.shard_names[shard], int(split.shard_bytes[shard])) as path:
            return self._files.read(path, *place)

    def _read_again(self, remote: RemoteShards, position: int) -> bytes:
        """Read a sample where the shards come from; where that has it as it was written, so has the cache then."""
        name, offset = self._split.shard_names[self._split.shard_of(position)], int(self._split.offsets[position])
        data = remote.read_again(name, offset, int(self._split.num_bytes[position]))
        if self._is_good(position, data):
            log.warning("%s had other bytes in the cache; they were fetched again", self._split.describe(position))
            remote.mend(name, offset, data)
        return data

    def close(self) -> None:
        """Close the shards; the reader can be used on."""
        self._files.close()
