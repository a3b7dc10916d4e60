"""What all tasks of a run share: their settings, and the record that each leaves of its result.

A task writes its files and then its record, `<name>.json`. A task with a record is never run again.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ..shards.files.atomic import read_json
from ..shards.files.parallel import working_on
from ..shards.manifest import STORED
from ..shards.sample import checksum
from .classes.select import NameList, SelectSettings
from .images.alone import store_alone
from .images.image import EncodedImage, ImageSettings, RejectedImageError, store_image
from .images.resize import get_resizer
from .sources.members import Reject

EXCLUDED = "excluded"
BATCH_ROWS = 4096
# A class's rows of the manifest, without its class index, which is known once every class is.
CLASS_ROWS = STORED.remove(STORED.get_field_index("class_index"))


@dataclass(frozen=True)
class Job:
    """What the tasks of a run have in common."""

    out: Path
    work: Path
    select: SelectSettings
    image: ImageSettings
    resizer_version: str

    def check_resizer(self) -> None:
        """Raise ValueError where this machine has another version of the resizer, which may give other pixels."""
        here = get_resizer(self.image.resizer).version()
        if here != self.resizer_version:
            raise ValueError(
                f"{os.uname().nodename} has {here}, where this run began with {self.resizer_version}: other versions "
                "give other pixels; install the same on every node"
            )

    def class_part(self, wnid: str) -> Path:
        """Return the path of a class's rows and record, without the suffix."""
        return self.work / "classes" / wnid

    def chunk_part(self, number: int) -> Path:
        """Return the path of a chunk's images, rows and record, without the suffix."""
        return self.work / "chunks" / f"{number:06d}"

    def encode(self, name: str, raw: bytes, num_bytes: int, excluded: NameList, *, guarded: bool) -> EncodedImage:
        """Turn the bytes of an image into the JPEG that is stored; raises RejectedImageError.

        num_bytes: the size that the source listed.
        guarded:   decode it in a fresh process, which a crash of the decoder may end.
        """
        working_on(name)
        if len(raw) != num_bytes:
            reason = "truncated" if len(raw) < num_bytes else "changed"
            raise RejectedImageError(reason, f"{len(raw):,} bytes are there, where {num_bytes:,} were listed")
        if excluded.checksums and (listed := checksum(raw)) in excluded.checksums:
            raise RejectedImageError(EXCLUDED, f"listed as {listed}, the checksum of the original")
        encoded = store_alone(name, raw, self.image) if guarded else store_image(raw, self.image)
        if excluded.checksums and (listed := checksum(encoded.data)) in excluded.checksums:
            raise RejectedImageError(EXCLUDED, f"listed as {listed}, the checksum of what would be stored")
        return encoded


@dataclass(frozen=True)
class ClassPart:
    """The record of a class: its counts and its rejects. The members of a dropped class are only counted.

    num_val:           validation images, rejected ones included.
    num_with_warnings: stored images for which a decoder gave warnings.
    num_lost:          of a class that is dropped only because some of its images cannot be read: how many these are;
                       they are among its rejects. Else 0.
    ignored:           files in its class tar of each `ignored_kind`.
    from_chunks:       whether its images came in chunks.
    """

    wnid: str
    num_members: int
    num_raw: int
    num_val: int
    num_lost: int
    kept: bool
    num_bytes: int
    ignored: dict[str, int]
    from_chunks: bool
    num_stored: dict[str, int]
    num_with_warnings: int
    stored_bytes: int
    rejects: list[Reject]

    @classmethod
    def load(cls, path: Path) -> ClassPart:
        """Read a record."""
        content: dict[str, Any] = read_json(path)
        content["rejects"] = [Reject(*reject) for reject in content["rejects"]]
        return cls(**content)


@dataclass(frozen=True)
class ChunkPart:
    """The record of a chunk: the rows of each group, and the groups with images, unreadable ones included."""

    number: int
    num_bytes: int
    stored_bytes: int
    fingerprint: str
    num_rows: dict[str, int]
    with_images: list[str]
    num_rejects: int

    @classmethod
    def load(cls, path: Path) -> ChunkPart:
        """Read a record."""
        return cls(**read_json(path))


class Task(Protocol):
    """A part of a run's work that a worker does alone."""

    @property
    def job(self) -> Job:
        """What it shares with the other tasks."""
        ...

    def run(self) -> ClassPart | ChunkPart:
        """Write the files and the record; return the record."""
        ...


def run_task(task: Task) -> ClassPart | ChunkPart:
    """Run a task in a worker; raises ValueError where the worker's resizer is of another version."""
    task.job.check_resizer()
    return task.run()


def batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """Yield rows in lists of BATCH_ROWS; the last list is shorter, and empty where there are no rows."""
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    yield batch
