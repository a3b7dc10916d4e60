"""Reading samples out of shards by their position."""

from __future__ import annotations

import hashlib
import os
from collections import OrderedDict
from pathlib import Path

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


class FileCache:
    """The few files read from last, kept open."""

    def __init__(self) -> None:
        self._open: OrderedDict[Path, int] = OrderedDict()

    def read(self, path: Path, offset: int, num_bytes: int) -> bytes:
        """Read `num_bytes` at `offset`; fewer come back at the end of the file. Raises OSError."""
        descriptor = self._open.get(path)
        if descriptor is None:
            descriptor = self._open[path] = os.open(path, os.O_RDONLY)
            if len(self._open) > MAX_OPEN_FILES:
                os.close(self._open.popitem(last=False)[1])
        else:
            self._open.move_to_end(path)
        return os.pread(descriptor, num_bytes, offset)

    def close(self) -> None:
        """Close every file; the cache can be used on."""
        while self._open:
            os.close(self._open.popitem()[1])


class SampleReader:
    """Read the images of a split; each is compared with its checksum."""

    def __init__(self, split: ShardSplit) -> None:
        self._split = split
        self._files = FileCache()

    def image(self, position: int) -> bytes:
        """Return a sample's JPEG bytes; raises CorruptSampleError where they are not those written, or OSError."""
        split = self._split
        shard = split.shard_names[split.shard_of(position)]
        data = self._files.read(split.folder / shard, int(split.offsets[position]), int(split.num_bytes[position]))
        if int.from_bytes(hashlib.sha256(data).digest()[:8]) != int(split.checksums[position]):
            raise CorruptSampleError(position, "has other bytes than were written")
        return data

    def close(self) -> None:
        """Close the shards; the reader can be used on."""
        self._files.close()
