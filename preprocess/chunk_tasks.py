"""Tasks for images that do not come class by class: store a chunk of them, then put a class together from chunks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa

from ..shards.files.atomic import naming, write_json
from ..shards.files.parallel import working_on
from ..shards.manifest import STORED, TableWriter, pc
from ..shards.members import IMAGE
from ..shards.writer import TarWriter
from .class_tasks import StoredImage, choose, without_excluded, write_class
from .classes.select import Chosen
from .images.image import EncodedImage, RejectedImageError
from .sources.folders import Layout
from .sources.layouts import as_member
from .sources.members import Member, Reject, is_lost_image, one_of_each, readable, to_bytes, to_text
from .sources.units import Chunk
from .tasks import ChunkPart, ClassPart, Job, batches

MAX_OPEN_SPOOLS = 256
# The rows of a chunk, one for each image and each reject. `wnid` is the group (see Chunk), names are the source's
# bytes, and `offset` is the place of the encoded image in the chunk's tar.
CHUNK = pa.schema(
    [
        pa.field("wnid", pa.string(), nullable=False),
        pa.field("name", pa.binary(), nullable=False),
        pa.field("path", pa.binary(), nullable=False),
        pa.field("is_image", pa.bool_(), nullable=False),
        pa.field("given_split", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("detail", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("num_bytes", pa.int32()),
        *(STORED.field(name).with_nullable(True) for name in EncodedImage._fields if name != "data"),
    ]
)


@dataclass(frozen=True)
class ChunkTask:
    """Store the images of a chunk, except those of the `dropped` groups. guarded: see ClassTask."""

    job: Job
    chunk: Chunk
    dropped: frozenset[str]
    guarded: bool = False

    def run(self) -> ChunkPart:
        """Write the images, the rows and the record of the chunk."""
        chunk, part = self.chunk, self.job.chunk_part(self.chunk.number)
        num_rows: Counter[str] = Counter()
        with_images: set[str] = set()
        num_rejects, stored_bytes = len(chunk.rejects), 0
        with TarWriter(part.with_suffix(".tar")) as spool, TableWriter(part.with_suffix(".parquet"), CHUNK) as table:
            for rows in batches(self._rows(spool)):
                table.write(pa.Table.from_pylist(rows, schema=CHUNK))
                num_rows.update(row["wnid"] for row in rows)
                with_images.update(row["wnid"] for row in rows if row["is_image"] or is_lost_image(row_reject(row)))
                num_rejects += sum(row["is_image"] and "reason" in row for row in rows)
                stored_bytes += sum(row.get("num_bytes", 0) for row in rows)
        record = ChunkPart(
            number=chunk.number,
            num_bytes=chunk.num_bytes,
            stored_bytes=stored_bytes,
            fingerprint=chunk.fingerprint,
            num_rows=dict(sorted(num_rows.items())),
            with_images=sorted(with_images),
            num_rejects=num_rejects,
        )
        write_json(part.with_suffix(".json"), asdict(record))
        return record

    def _rows(self, spool: TarWriter) -> Iterator[dict[str, Any]]:
        """Write the images to the tar `spool`; yield the rows of all images, and of the rejects."""
        chunk, excluded = self.chunk, self.job.select.excluded()
        numbers = [number for number, (group, _) in enumerate(chunk.images) if group not in self.dropped]
        raws = iter(chunk.read(numbers))
        for number, (group, member) in enumerate(chunk.images):
            row: dict[str, Any] = {
                "wnid": group,
                "name": to_bytes(member.name),
                "path": to_bytes(member.path),
                "is_image": True,
                "given_split": member.split,
            }
            if group not in self.dropped:
                name = f"{group}/{readable(member.name)}"
                try:
                    encoded = self.job.encode(name, next(raws), member.num_bytes, excluded, guarded=self.guarded)
                    offset = spool.add(f"{number}.{IMAGE}", encoded.data)
                    row |= encoded._asdict() | {"offset": offset, "num_bytes": len(encoded.data)}
                    del row["data"]
                except RejectedImageError as error:
                    row |= {"reason": error.reason, "detail": error.detail}
            yield row
        for (group, name, reason, detail), path in chunk.rejects:
            row = {"wnid": group, "name": to_bytes(name), "path": to_bytes(path), "is_image": False}
            yield {**row, "reason": reason, "detail": detail}


@dataclass(frozen=True)
class MergeTask:
    """Put a class together whose images lie in chunks.

    rows:   its rows in the order of the source, with a column `chunk` for the number of their chunk.
    layout: how names and splits follow from the paths; None where the rows have them.
    """

    job: Job
    wnid: str
    rows: pa.Table
    layout: Layout | None
    verdict: bool | None
    others: list[str]

    def run(self) -> ClassPart:
        """Choose the class's images and copy them from the chunks."""
        working_on(self.wnid)
        is_image = self.rows["is_image"]
        rejects = [row_reject(row, self.layout) for row in self.rows.filter(pc.invert(is_image)).to_pylist()]
        images: dict[str, list[Any]] = self.rows.filter(is_image).to_pydict()
        members = one_of_each(self.wnid, self._members(images), rejects)
        chosen, counts = choose(self.job, self.wnid, members, rejects, self.verdict, self.others)
        chosen = without_excluded(self.wnid, chosen, self.job.select.excluded(), rejects)
        with _Spools(self.job) as spools:
            return write_class(self.job, counts, self._copy_images(chosen, images, spools, rejects), rejects)

    def _members(self, images: Mapping[str, list[Any]]) -> Iterator[Member]:
        for name, path, split in zip(images["name"], images["path"], images["given_split"], strict=True):
            if self.layout is None:
                yield Member(to_text(name), to_text(path), 0, 0, split)
            else:
                yield as_member(to_text(path), 0, 0, self.layout)

    def _copy_images(
        self, chosen: Iterable[Chosen], images: Mapping[str, list[Any]], spools: _Spools, rejects: list[Reject]
    ) -> Iterator[StoredImage]:
        number_of: dict[str, int] = {}
        for number, path in enumerate(images["path"]):
            number_of.setdefault(to_text(path), number)  # the first of several with one path counts
        for image in chosen:
            row = {name: column[number_of[image.member.path]] for name, column in images.items()}
            if row["reason"] is not None:
                rejects.append(Reject(self.wnid, image.name, row["reason"], row["detail"]))
                continue
            data = spools.read(row["chunk"], row["offset"], row["num_bytes"])
            yield StoredImage(image, EncodedImage(data, *(row[name] for name in EncodedImage._fields[1:])))


def row_reject(row: Mapping[str, Any], layout: Layout | None = None) -> Reject:
    """Return the reject that a row of a chunk stands for. layout: see MergeTask."""
    name = to_text(row["name"]) if layout is None else readable(as_member(to_text(row["path"]), 0, 0, layout).name)
    return Reject(row["wnid"], name, row["reason"], row["detail"])


class _Spools(AbstractContextManager["_Spools"]):
    """The tars of the chunks, of which at most MAX_OPEN_SPOOLS are open at a time."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._open: dict[int, Any] = {}

    def read(self, chunk: int, offset: int, num_bytes: int) -> bytes:
        """Read an image of a chunk."""
        if chunk not in self._open:
            if len(self._open) == MAX_OPEN_SPOOLS:
                self.__exit__()
            self._open[chunk] = self._job.chunk_part(chunk).with_suffix(".tar").open("rb")
        with naming(self._open[chunk].name):
            self._open[chunk].seek(offset)
            return self._open[chunk].read(num_bytes)

    def __exit__(self, *_: object) -> None:
        for file in self._open.values():
            file.close()
        self._open.clear()
