"""What the workers do: store the images of a class, or of a chunk of several, and put the chunks of a class together.

A task leaves its files and then a mark, `<name>.json`; a task whose mark is there is never done again.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from itertools import groupby
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa

from ..shards.dataset import SPLITS
from ..shards.files.atomic import naming, read_json, write_json
from ..shards.files.parallel import working_on
from ..shards.manifest import STORED, TableWriter, pc
from ..shards.members import IMAGE
from ..shards.sample import checksum
from ..shards.writer import TarWriter
from .classes.select import Chosen, NameList, SelectSettings, check_training_images, split_members
from .images.alone import store_alone
from .images.image import ImageSettings, RejectedImageError, StoredImage, store_image
from .images.resize import get_resizer
from .sources.archive import Contents, Member, Reject, is_lost_image, one_of_each, readable, to_bytes, to_text
from .sources.folders import Layout
from .sources.layouts import RawClass, as_member
from .sources.units import Chunk

EXCLUDED = "excluded"
BATCH_ROWS = 4096
MAX_OPEN_SPOOLS = 256
# A row an image, or what lay among them, of a chunk; `wnid` is its group (see Chunk). Names are the source's bytes;
# `offset` is that in the chunk's tar.
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
        *(STORED.field(name).with_nullable(True) for name in StoredImage._fields if name != "data"),
    ]
)


@dataclass(frozen=True)
class Job:
    """What the tasks of a run have in common."""

    out: Path
    work: Path
    select: SelectSettings
    image: ImageSettings
    resizer_version: str

    def check_resizer(self) -> None:
        """Raise ValueError where this machine would give other pixels."""
        here = get_resizer(self.image.resizer).version()
        if here != self.resizer_version:
            raise ValueError(
                f"{os.uname().nodename} has {here}, where this run began with {self.resizer_version}: other versions "
                "give other pixels; install the same on every node"
            )

    def class_part(self, wnid: str) -> Path:
        """Return where a class's part of the tables goes, but for the suffix."""
        return self.work / "classes" / wnid

    def chunk_part(self, number: int) -> Path:
        """Return where a chunk goes, but for the suffix."""
        return self.work / "chunks" / f"{number:06d}"

    def stored(self, name: str, raw: bytes, num_bytes: int, excluded: NameList, *, guarded: bool) -> StoredImage:
        """Turn the bytes of an image into what is stored; raises RejectedImageError.

        Guarded, it is decoded alone in a fresh process, which it may end.
        """
        working_on(name)
        if len(raw) != num_bytes:
            reason = "truncated" if len(raw) < num_bytes else "changed"
            raise RejectedImageError(reason, f"{len(raw):,} bytes are there, where {num_bytes:,} were listed")
        if excluded.checksums and (listed := checksum(raw)) in excluded.checksums:
            raise RejectedImageError(EXCLUDED, f"listed as {listed}, the checksum of the original")
        stored = store_alone(name, raw, self.image) if guarded else store_image(raw, self.image)
        if excluded.checksums and (listed := checksum(stored.data)) in excluded.checksums:
            raise RejectedImageError(EXCLUDED, f"listed as {listed}, the checksum of what would be stored")
        return stored


@dataclass(frozen=True)
class ClassPart:
    """What became of one class: its numbers and its rejects. The members of a dropped class are only counted.

    num_val:  for validation, rejected ones included.
    num_with_warnings: images stored of which a decoder warned.
    num_lost: where it is dropped and would be kept were they regular members: what cannot be read of its images; they
              are among its rejects. Else 0.
    ignored:  files in its class tar that are known to be no images, by kind.
    """

    wnid: str
    num_members: int
    num_raw: int
    num_val: int
    num_lost: int
    ignored: dict[str, int]
    num_stored: dict[str, int]
    num_with_warnings: int
    kept: bool
    num_bytes: int
    stored_bytes: int
    from_chunks: bool
    rejects: list[Reject]

    @classmethod
    def load(cls, path: Path) -> ClassPart:
        """Read a mark."""
        content: dict[str, Any] = read_json(path)
        content["rejects"] = [Reject(*reject) for reject in content["rejects"]]
        return cls(**content)


@dataclass(frozen=True)
class ChunkPart:
    """What a chunk held: the rows of each group in it, and the groups with images, be they such as cannot be read."""

    number: int
    num_bytes: int
    stored_bytes: int
    fingerprint: str
    num_rows: dict[str, int]
    with_images: list[str]
    num_rejects: int

    @classmethod
    def load(cls, path: Path) -> ChunkPart:
        """Read a mark."""
        return cls(**read_json(path))


@dataclass(frozen=True)
class ClassTask:
    """A whole class. verdict: see SelectSettings; others: classes whose name begins with this one's and `_`.

    guarded: a worker died at it before; each image is decoded in a process of its own.
    """

    job: Job
    source: RawClass
    verdict: bool | None
    others: list[str]
    guarded: bool = False


@dataclass(frozen=True)
class ChunkTask:
    """A chunk of one or several groups; images of the unwanted ones are not stored. guarded: see ClassTask."""

    job: Job
    chunk: Chunk
    unwanted: frozenset[str]
    guarded: bool = False


@dataclass(frozen=True)
class MergeTask:
    """A class whose rows, in the order of the source, lie in chunks; the column `chunk` says in which.

    layout: by which their names and splits follow from their paths; None where the rows have them.
    """

    job: Job
    wnid: str
    rows: pa.Table
    layout: Layout | None
    verdict: bool | None
    others: list[str]


def run_task(task: ClassTask | ChunkTask | MergeTask) -> ClassPart | ChunkPart:
    """Do a task."""
    task.job.check_resizer()
    if isinstance(task, ClassTask):
        return _store_class(task)
    return _store_chunk(task) if isinstance(task, ChunkTask) else _merge_class(task)


class _Ready(NamedTuple):
    """An image on its way to the tar of its class and split."""

    chosen: Chosen
    stored: StoredImage


def _store_class(task: ClassTask) -> ClassPart:
    wnid = task.source.wnid
    working_on(wnid)
    with task.source.open() as contents:
        kept = task.job.select.keeps(task.verdict, contents.members)
        rejects = list(contents.rejects)
        chosen = split_members(wnid, contents.members, task.job.select, task.others) if kept else []
        check_training_images(wnid, chosen, len(rejects), task.job.select)
        images = _store_images(task, chosen, contents, rejects)
        seen = _seen(task, wnid, contents.members, rejects, chosen, kept=kept)
        seen = seen._replace(num_bytes=task.source.num_bytes, ignored=dict(contents.ignored), from_chunks=False)
        return _write_class(task.job, seen, images, rejects, kept=kept)


def _store_images(
    task: ClassTask, chosen: Sequence[Chosen], contents: Contents, rejects: list[Reject]
) -> Iterator[_Ready]:
    job, wnid = task.job, task.source.wnid
    excluded = job.select.excluded()
    wanted = list(_but_excluded(wnid, chosen, excluded, rejects))
    for each, raw in zip(wanted, contents.read([each.member for each in wanted]), strict=True):
        name = f"{wnid}/{each.name}"
        try:
            yield _Ready(each, job.stored(name, raw, each.member.num_bytes, excluded, guarded=task.guarded))
        except RejectedImageError as error:
            rejects.append(Reject(wnid, each.name, error.reason, error.detail))


def _but_excluded(wnid: str, chosen: Iterable[Chosen], excluded: NameList, rejects: list[Reject]) -> Iterator[Chosen]:
    for each in chosen:
        if listed := excluded.line_of(wnid, each.key, each.member):
            rejects.append(Reject(wnid, each.name, EXCLUDED, f"listed as {listed}"))
        else:
            yield each


class _Seen(NamedTuple):
    """What the source holds of a class; see ClassPart."""

    wnid: str
    num_raw: int
    num_members: int
    num_val: int
    num_lost: int
    num_bytes: int
    ignored: dict[str, int]
    from_chunks: bool


def _seen(
    task: ClassTask | MergeTask,
    wnid: str,
    members: Sequence[Member],
    rejects: Sequence[Reject],
    chosen: Sequence[Chosen],
    *,
    kept: bool,
) -> _Seen:
    """Count a class of a stream; one that came whole adds what it knows."""
    num_val = sum(each.split == "val" for each in chosen)
    num_lost = sum(map(is_lost_image, rejects))
    is_lost = not kept and task.job.select.keeps(task.verdict, members, num_lost)
    return _Seen(wnid, len(members), len(members) + len(rejects), num_val, num_lost if is_lost else 0, 0, {}, True)


def _write_class(job: Job, seen: _Seen, images: Iterable[_Ready], rejects: list[Reject], *, kept: bool) -> ClassPart:
    """Write what is stored of a class, in the order in which it comes, and its part of the tables."""
    num_stored: Counter[str] = Counter()
    stored_bytes = num_with_warnings = 0
    part = job.class_part(seen.wnid)
    if kept:
        with TableWriter(part.with_suffix(".parquet"), STORED) as table:
            for rows in _batches(_write_splits(job, seen.wnid, images)):
                table.write(pa.Table.from_pylist(rows, schema=STORED))
                num_stored.update(row["split"] for row in rows)
                stored_bytes += sum(row["num_bytes"] for row in rows)
                num_with_warnings += sum(_is_warned_of(row["changes"]) for row in rows)
    done = ClassPart(
        **seen._asdict(),
        num_stored={split: num_stored[split] for split in SPLITS},
        num_with_warnings=num_with_warnings,
        stored_bytes=stored_bytes,
        kept=kept,
        rejects=[reject for reject in rejects if kept or seen.num_lost or reject.wnid is None],
    )
    write_json(part.with_suffix(".json"), asdict(done))
    return done


def _is_warned_of(changes: Iterable[str]) -> bool:
    return any(change.startswith("warning: ") for change in changes)


def _batches(rows: Iterator[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    batch: list[dict[str, Any]] = []
    for row in rows:
        batch.append(row)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    yield batch


def _write_splits(job: Job, wnid: str, images: Iterable[_Ready]) -> Iterator[dict[str, Any]]:
    """Write images to the tar of their split; yields their rows of the manifest."""
    for split, group in groupby(images, key=lambda ready: ready.chosen.split):
        path = f"{split}/{wnid}.tar"
        with TarWriter(job.out / path) as writer:
            for chosen, stored in group:
                yield {
                    "key": chosen.key,
                    "wnid": wnid,
                    "class_index": 0,  # known once every class is
                    "split": split,
                    "archive": path,
                    "offset": writer.add(f"{chosen.key}.{IMAGE}", stored.data),
                    "num_bytes": len(stored.data),
                    "source_name": chosen.name,
                    "checksum": checksum(stored.data),
                    **{name: value for name, value in stored._asdict().items() if name != "data"},
                }


def _store_chunk(task: ChunkTask) -> ChunkPart:
    chunk, part = task.chunk, task.job.chunk_part(task.chunk.number)
    num_rows: Counter[str] = Counter()
    with_images: set[str] = set()
    num_rejects, stored_bytes = len(chunk.rejects), 0
    with TarWriter(part.with_suffix(".tar")) as spool, TableWriter(part.with_suffix(".parquet"), CHUNK) as table:
        for rows in _batches(_chunk_rows(task, spool)):
            table.write(pa.Table.from_pylist(rows, schema=CHUNK))
            num_rows.update(row["wnid"] for row in rows)
            with_images.update(row["wnid"] for row in rows if row["is_image"] or is_lost_image(row_reject(row)))
            num_rejects += sum(row["is_image"] and "reason" in row for row in rows)
            stored_bytes += sum(row.get("num_bytes", 0) for row in rows)
    done = ChunkPart(
        number=chunk.number,
        num_bytes=chunk.num_bytes,
        stored_bytes=stored_bytes,
        fingerprint=chunk.fingerprint,
        num_rows=dict(sorted(num_rows.items())),
        with_images=sorted(with_images),
        num_rejects=num_rejects,
    )
    write_json(part.with_suffix(".json"), asdict(done))
    return done


def _chunk_rows(task: ChunkTask, spool: TarWriter) -> Iterator[dict[str, Any]]:
    job, chunk = task.job, task.chunk
    excluded = job.select.excluded()
    wanted = [number for number, (wnid, _) in enumerate(chunk.images) if wnid not in task.unwanted]
    raws = iter(chunk.read(wanted))
    stored_numbers = set(wanted)
    for number, (wnid, member) in enumerate(chunk.images):
        row: dict[str, Any] = {
            "wnid": wnid,
            "name": to_bytes(member.name),
            "path": to_bytes(member.path),
            "is_image": True,
            "given_split": member.split,
        }
        if number in stored_numbers:
            name = f"{wnid}/{readable(member.name)}"
            try:
                stored = job.stored(name, next(raws), member.num_bytes, excluded, guarded=task.guarded)
                offset = spool.add(f"{number}.{IMAGE}", stored.data)
                row |= stored._asdict() | {"offset": offset, "num_bytes": len(stored.data)}
                del row["data"]
            except RejectedImageError as error:
                row |= {"reason": error.reason, "detail": error.detail}
        yield row
    for (wnid, name, reason, detail), path in chunk.rejects:
        yield {
            "wnid": wnid,
            "name": to_bytes(name),
            "path": to_bytes(path),
            "is_image": False,
            "reason": reason,
            "detail": detail,
        }


def _merge_class(task: MergeTask) -> ClassPart:
    working_on(task.wnid)
    is_image = task.rows["is_image"]
    images, others = task.rows.filter(is_image), task.rows.filter(pc.invert(is_image))
    rejects = [row_reject(row, task.layout) for row in others.to_pylist()]
    members = one_of_each(task.wnid, _members(images, task.layout), rejects)
    kept = task.job.select.keeps(task.verdict, members)
    chosen = split_members(task.wnid, members, task.job.select, task.others) if kept else []
    check_training_images(task.wnid, chosen, len(rejects), task.job.select)
    seen = _seen(task, task.wnid, members, rejects, chosen, kept=kept)
    wanted = _but_excluded(task.wnid, chosen, task.job.select.excluded(), rejects)
    with _Spools(task.job) as spools:
        ready = _from_spools(task.wnid, wanted, images, spools, rejects)
        return _write_class(task.job, seen, ready, rejects, kept=kept)


def row_reject(row: Mapping[str, Any], layout: Layout | None = None) -> Reject:
    """Return what lies in a chunk and is no image; see MergeTask."""
    name = to_text(row["name"]) if layout is None else readable(as_member(to_text(row["path"]), 0, 0, layout).name)
    return Reject(row["wnid"], name, row["reason"], row["detail"])


def _members(images: pa.Table, layout: Layout | None) -> Iterator[Member]:
    """Yield the images of a class that lie in chunks; the offset is the number of the row."""
    columns = (images[name].to_pylist() for name in ("name", "path", "given_split"))
    for number, (name, path, split) in enumerate(zip(*columns, strict=True)):
        if layout is None:
            yield Member(to_text(name), to_text(path), number, 0, split)
        else:
            yield as_member(to_text(path), number, 0, layout)


class _Spools(AbstractContextManager["_Spools"]):
    """The tars of the chunks, a bounded number of them open."""

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


def _from_spools(
    wnid: str, chosen: Iterable[Chosen], images: pa.Table, spools: _Spools, rejects: list[Reject]
) -> Iterator[_Ready]:
    columns: dict[str, list[Any]] = images.to_pydict()
    for each in chosen:
        row = {name: column[each.member.offset] for name, column in columns.items()}
        if row["reason"] is not None:
            rejects.append(Reject(wnid, each.name, row["reason"], row["detail"]))
            continue
        data = spools.read(row["chunk"], row["offset"], row["num_bytes"])
        yield _Ready(each, StoredImage(data, *(row[name] for name in StoredImage._fields[1:])))
