"""Reading samples out of shards by their position."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock

from .dataset import ShardSplit

MAX_OPEN_FILES = 64  # guessed: several windows of shards, far below any ulimit


class CorruptSampleError(ValueError):
    """A sample that cannot be used: its position in the split, and why; `ShardSplit.describe` says which one it is."""

    def __init__(self, position: int, reason: str) -> None:
        super().__init__(position, reason)
        self.position = position
        self.reason = reason

    def __str__(self) -> str:
        return f"sample {self.position} {self.reason}"


class _OpenFile:
    """A file that closes when the last who uses it lets go."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __del__(self) -> None:
        os.close(self.descriptor)


class FileCache:
    """The few files read from last, kept open; threads may share it."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, _OpenFile] = OrderedDict()
        self._lock = Lock()

    def read(self, path: Path, offset: int, num_bytes: int) -> bytes:
        """Read `num_bytes` at `offset`; fewer come back at the end of the file. Raises OSError."""
        file = self._file(path)  # held while it is read from: another thread may drop it from the cache meanwhile
        return os.pread(file.descriptor, num_bytes, offset)

    def _file(self, path: Path) -> _OpenFile:
        with self._lock:
            file = self._open.get(path)
            if file is None:
                file = self._open[path] = _OpenFile(os.open(path, os.O_RDONLY))
                if len(self._open) > MAX_OPEN_FILES:
                    self._open.popitem(last=False)
            else:
                self._open.move_to_end(path)
            return file

    def close(self) -> None:
        """Close every file; the cache can be used on."""
        with self._lock:
            self._open.clear()

    def __getstate__(self) -> dict[str, object]:
        return {}  # another process opens files of its own

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__init__()


class SampleReader:
    """Read the images of a split; each is compared with its checksum. Threads may share it."""

    def __init__(self, split: ShardSplit) -> None:
        self._split = split
        self._paths = [split.folder / shard for shard in split.shard_names]
        self._files = FileCache()

    def image(self, position: int) -> bytes:
        """Return a sample's JPEG bytes; raises CorruptSampleError where they are not those written, or OSError."""
        split = self._split
        path = self._paths[split.shard_of(position)]
        data = self._files.read(path, int(split.offsets[position]), int(split.num_bytes[position]))
        if int.from_bytes(hashlib.sha256(data).digest()[:8]) != int(split.checksums[position]):
            raise CorruptSampleError(position, "has other bytes than were written")
        return data

    def close(self) -> None:
        """Close the shards; the reader can be used on."""
        self._files.close()
