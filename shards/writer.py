"""Writing tars whose bytes depend on nothing but what goes in."""

from __future__ import annotations

import tarfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self

from .files.atomic import whole_file, write_text
from .index import IndexEntry, index_path, render_index
from .members import sample_members
from .sample import Sample

BLOCK_BYTES = tarfile.BLOCKSIZE


def padded(num_bytes: int) -> int:
    """Return `num_bytes` rounded up to whole tar blocks of 512."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


# What is the same in each header around name, size and checksum: mode 0644, owner 0, mtime 0, a regular file, USTAR.
_OWNER = b"0000644\0" + b"0000000\0" * 2
_TAIL = b"0" + bytes(100) + b"ustar\x0000" + bytes(64 + 16 + 155 + 12)  # no link, no names of owners, no device
_MTIME = b"00000000000\0"
_BASE_SUM = 8 * 32 + sum(_OWNER + _MTIME + _TAIL)  # the sum itself counts as eight blanks


def tar_header(name: str, num_bytes: int) -> bytes:
    """Return the 512-byte USTAR header of a regular file: mode 0644, owner 0, integer mtime 0.

    Written here and not by tarfile, whose bytes differ between versions of Python, and which takes ten times as long.
    Raises ValueError for a name of over 100 bytes, or a size of 8 GiB and more.
    """
    encoded = name.encode()
    if len(encoded) > 100 or num_bytes >= 8 << 30:
        raise ValueError(f"{name}: {num_bytes} bytes; wanted a name of at most 100 bytes and a size below 8 GiB")
    size = b"%011o\0" % num_bytes
    total = _BASE_SUM + sum(encoded) + sum(size)
    return b"%b%b%b%b%06o\0 %b" % (encoded.ljust(100, b"\0"), _OWNER, size, _MTIME, total, _TAIL)


class TarWriter(AbstractContextManager["TarWriter"]):
    """Write a tar that appears whole when the `with` block ends well, and not at all otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._stack = ExitStack()
        self._position = 0

    def __enter__(self) -> Self:
        aside = self._stack.enter_context(whole_file(self.path))
        self._file = self._stack.enter_context(aside.open("wb"))
        return self

    def add(self, name: str, data: bytes) -> int:
        """Append a member; return the offset of its data in the tar."""
        offset = self._position + BLOCK_BYTES
        self._file.write(tar_header(name, len(data)))
        self._file.write(data)
        self._file.write(bytes(padded(len(data)) - len(data)))
        self._position = offset + padded(len(data))
        return offset

    def __exit__(self, *exc_info: object) -> None:
        if exc_info[0] is not None:
            self._stack.__exit__(*exc_info)  # pyright: ignore[reportArgumentType]  # the triple as the protocol hands it
            return
        with self._stack:  # which names the file, and removes it, where this fails
            self._file.write(bytes(2 * BLOCK_BYTES))


class ShardWriter(TarWriter):
    """Write a shard: for each sample the members of `members.py`, with DALI's index beside the tar."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._entries: list[list[IndexEntry]] = []

    def add_sample(self, sample: Sample) -> int:
        """Append a sample; return the offset of its image's data in the shard."""
        components: list[IndexEntry] = []
        for extension, data in sample_members(sample):
            name = f"{sample.key}.{extension}"
            components.append(IndexEntry(extension, self.add(name, data), len(data), name))
        self._entries.append(components)
        return components[-1].offset

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        # The index comes last: a shard with an index beside it is done.
        if exc_info[0] is None:
            write_text(index_path(self.path), render_index(self._entries))
