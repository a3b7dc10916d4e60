"""Writing tars whose bytes depend on nothing but what goes in."""

from __future__ import annotations

import tarfile
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Self

from .files import whole_file, write_text
from .index import IndexEntry, index_path, render_index
from .sample import Sample

BLOCK_BYTES = tarfile.BLOCKSIZE


def padded(num_bytes: int) -> int:
    """Return `num_bytes` rounded up to whole tar blocks of 512."""
    return -(-num_bytes // BLOCK_BYTES) * BLOCK_BYTES


def tar_header(name: str, num_bytes: int) -> bytes:
    """Return the 512-byte USTAR header of a regular file: mode 0644, owner 0, integer mtime 0."""
    member = tarfile.TarInfo(name)
    member.size = num_bytes
    return member.tobuf(tarfile.USTAR_FORMAT)


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
        if exc_info[0] is None:
            self._file.write(bytes(2 * BLOCK_BYTES))
        self._stack.__exit__(*exc_info)  # pyright: ignore[reportArgumentType]  # the triple as the protocol hands it


class ShardWriter(TarWriter):
    """Write a shard: per sample `<key>.cls` (class index in ASCII) and `<key>.jpg`, with DALI's index beside it."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._entries: list[list[IndexEntry]] = []

    def add_sample(self, sample: Sample) -> int:
        """Append a sample; return the offset of its image's data in the shard."""
        components: list[IndexEntry] = []
        for extension, data in (("cls", b"%d" % sample.class_index), ("jpg", sample.image)):
            name = f"{sample.key}.{extension}"
            components.append(IndexEntry(extension, self.add(name, data), len(data), name))
        self._entries.append(components)
        return components[-1].offset

    def __exit__(self, *exc_info: object) -> None:
        super().__exit__(*exc_info)
        # The index comes last: a shard with an index beside it is done.
        if exc_info[0] is None:
            write_text(index_path(self.path), render_index(self._entries))
