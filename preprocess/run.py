"""The run: a raw archive in, a prepared data set out; a class is a task, and a finished task is never done again."""

from __future__ import annotations

import json
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..shards.class_table import ClassRow, write_class_table
from ..shards.dataset import SPLITS, VERSION, PreparedSet
from ..shards.files import OutputFolder, write_json
from ..shards.manifest import REJECTS, STORED, TableWriter, read_table
from ..shards.parallel import OnProgress, Progress, ignore_progress, run_tasks
from ..shards.sample import checksum
from ..shards.tree import SemanticTree
from ..shards.writer import TarWriter
from .archive import DAMAGED, ChecksumError, ClassArchive, Member, RawTar, Reject, list_members, open_raw_tar
from .image import ImageSettings, RejectedImageError, StoredImage, store_image
from .resize import RESIZERS
from .select import SelectSettings, split_members
from .wordnet import WordNet, build_tree


@dataclass(frozen=True)
class _ClassTask:
    archive: ClassArchive
    out: Path
    part: Path  # where the class's part of the tables goes: <part>.json, which marks it done, and <part>.parquet
    select: SelectSettings
    image: ImageSettings
    others: list[str]  # classes whose name begins with this one's and `_`


@dataclass(frozen=True)
class _ClassPart:
    """What became of one class: its numbers and its rejects. The members of a dropped class are only counted."""

    wnid: str
    num_members: int
    num_raw: int
    num_stored: dict[str, int]
    kept: bool
    num_bytes: int
    rejects: list[Reject]

    @classmethod
    def load(cls, path: Path) -> _ClassPart:
        content: dict[str, Any] = json.loads(path.read_text())
        content["rejects"] = [Reject(*reject) for reject in content["rejects"]]
        return cls(**content)


def prepare_raw_tar(
    source: Path,
    out: Path,
    *,
    select: SelectSettings,
    image: ImageSettings,
    wordnet: WordNet | None = None,
    workers: int = 1,
    max_reject_rate: float = 0.01,
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> PreparedSet:
    """Turn a tar of class tars (see `open_raw_tar`) into a prepared data set at `out`: prune, split, resize.

    Every image is read once, nothing is extracted; a worker holds one class tar in memory, and of a stream two more for
    each worker wait. Classes that an earlier, killed run of the same settings finished are kept. Raises ValueError for
    a source that is no such archive, an output of other settings, no class left, a class without training images, or
    more rejects than `max_reject_rate` of the kept classes' members.
    """
    archive = open_raw_tar(source)
    wordnet = wordnet or WordNet.packaged()
    made_from = {
        "source": {"name": archive.name, "num_bytes": archive.num_bytes},
        "settings": {
            **asdict(select),
            **asdict(image),
            "resizer_version": RESIZERS[image.resizer]().version(),
            "wordnet": wordnet.version,
        },
    }
    folder = OutputFolder(out, made_from=made_from, contents=PreparedSet.contents, overwrite=overwrite)
    if folder.finished:
        return PreparedSet(out)
    with folder:
        try:
            parts = _run_classes(archive, folder, select, image, workers, on_progress)
        except ValueError as error:
            # Only here does a stream turn out to be no archive, or to have held other bytes than were packed.
            if isinstance(error, ChecksumError) or not any((folder.work / "classes").glob("*.json")):
                folder.discard()
            raise
        _check_parts(parts, folder, source, select, max_reject_rate, is_stream=archive.names is None)
        _write_tables(out, folder.work, parts, archive.rejects, wordnet)
        folder.finish(_describe(parts, archive.rejects))
    return PreparedSet(out)


def _run_classes(
    archive: RawTar,
    folder: OutputFolder,
    select: SelectSettings,
    image: ImageSettings,
    workers: int,
    on_progress: OnProgress,
) -> list[_ClassPart]:
    parts_folder = folder.work / "classes"
    for path in (parts_folder, *(folder.path / split for split in SPLITS)):
        path.mkdir(exist_ok=True)
    parts = [_ClassPart.load(path) for path in sorted(parts_folder.glob("*.json"))]
    tasks = (
        _ClassTask(each, folder.path, parts_folder / each.wnid, select, image, _longer(each.wnid, archive.names or []))
        for each in _not_done(archive, {part.wnid: part.num_bytes for part in parts})
    )
    images, num_bytes = sum(part.num_raw for part in parts), sum(part.num_bytes for part in parts)
    num_rejects = sum(len(part.rejects) for part in parts)
    for part in run_tasks(_run_class, tasks, workers):
        parts.append(part)
        images, num_bytes = images + part.num_raw, num_bytes + part.num_bytes
        num_rejects += len(part.rejects)
        if archive.class_bytes is not None:
            fraction = num_bytes / max(1, archive.class_bytes)
        else:
            fraction = archive.position() / archive.num_bytes if archive.num_bytes else 0.0
        of_all = f"/{len(archive.names)}" if archive.names else ""
        on_progress(Progress(fraction, images, num_bytes, f"{len(parts)}{of_all} classes, {num_rejects} rejects"))
    for split in SPLITS:
        if not any((folder.path / split).iterdir()):
            (folder.path / split).rmdir()
    return sorted(parts, key=lambda part: part.wnid)


def _not_done(archive: RawTar, done: dict[str, int]) -> Iterator[ClassArchive]:
    """Yield the classes that an earlier run left to do.

    Raises ValueError where that run (whose classes `done` has, with their bytes) read another archive: a stream has no
    size by which to tell before.
    """
    unseen = dict(done)
    for each in archive.classes:
        num_bytes = unseen.pop(each.wnid, None)
        if num_bytes is None:
            yield each
        elif num_bytes != each.num_bytes:
            raise ValueError(
                f"{archive.name}: {each.wnid} has {each.num_bytes:,} bytes, where an earlier run of this output read "
                f"{num_bytes:,}: give that archive again, or --overwrite to begin anew"
            )
    if unseen:
        raise ValueError(
            f"{archive.name}: lacks {min(unseen)} and {len(unseen) - 1} more classes that an earlier run of this output"
            " read: give that archive again, or --overwrite to begin anew"
        )


def _longer(wnid: str, names: Sequence[str]) -> list[str]:
    """Return those of the sorted names that begin with `<wnid>_`."""
    prefix = f"{wnid}_"
    return list(names[bisect_left(names, prefix) : bisect_left(names, prefix + "\x7f")])


def _done_mark(task: _ClassTask) -> Path:
    return task.part.with_name(task.part.name + ".json")


def _run_class(task: _ClassTask) -> _ClassPart:
    """Do one class: read its tar, store its images, write its part of the tables."""
    archive = task.archive
    data = archive.read()
    members, rejects = list_members(archive, data)
    num_members = len(members) + len(rejects)
    kept = task.select.keeps(len(members))
    rows: list[dict[str, Any]] = []
    if kept:
        for split, keyed in split_members(archive.wnid, members, task.select.val_per_class, task.others).items():
            rows += _store_split(task, split, keyed, data, rejects)
        with TableWriter(task.part.with_name(task.part.name + ".parquet"), STORED) as writer:
            writer.write(pa.Table.from_pylist(rows, schema=STORED))
    part = _ClassPart(
        wnid=archive.wnid,
        num_members=num_members,
        num_raw=len(members),
        num_stored={split: sum(row["split"] == split for row in rows) for split in SPLITS},
        kept=kept,
        num_bytes=archive.num_bytes,
        rejects=[reject for reject in rejects if kept or reject.wnid is None],
    )
    write_json(_done_mark(task), asdict(part))
    return part


def _store_split(
    task: _ClassTask, split: str, keyed: Sequence[tuple[str, Member]], data: bytes, rejects: list[Reject]
) -> Iterator[dict[str, Any]]:
    """Store the images of one split of a class in its tar; yields their manifest rows, adds to `rejects`."""
    good: list[tuple[str, Member, StoredImage]] = []
    for key, member in keyed:
        raw = data[member.offset : member.offset + member.num_bytes]
        try:
            if len(raw) != member.num_bytes:
                raise RejectedImageError("truncated", "the class tar ends inside it")
            good.append((key, member, store_image(raw, task.image)))
        except RejectedImageError as error:
            rejects.append(Reject(task.archive.wnid, member.name, error.reason, error.detail))
    if not good:
        return
    path = f"{split}/{task.archive.wnid}.tar"
    with TarWriter(task.out / path) as writer:
        for key, member, stored in good:
            yield {
                "key": key,
                "wnid": task.archive.wnid,
                "class_index": 0,  # known once every class is
                "split": split,
                "archive": path,
                "offset": writer.add(f"{key}.jpg", stored.data),
                "num_bytes": len(stored.data),
                "width": stored.width,
                "height": stored.height,
                "source_name": member.name,
                "source_format": stored.source_format,
                "source_width": stored.source_width,
                "source_height": stored.source_height,
                "changes": stored.changes,
                "checksum": checksum(stored.data),
            }


def _check_parts(
    parts: Sequence[_ClassPart],
    folder: OutputFolder,
    source: Path,
    select: SelectSettings,
    max_reject_rate: float,
    *,
    is_stream: bool,
) -> None:
    kept = [part for part in parts if part.kept]
    names = [part.wnid for part in kept]
    ambiguous = [(name, longer) for name in names for longer in _longer(name, names)] if is_stream else []
    if ambiguous:
        raise ValueError(
            f"{source}: the classes {ambiguous[0][0]} and {ambiguous[0][1]} could give images the same key, which a "
            "stream tells too late; give the archive as a plain file"
        )
    if not kept:
        largest = max(parts, key=lambda part: part.num_raw)
        folder.discard()
        raise ValueError(
            f"{source}: no class has more than {select.rare_threshold} images (the largest, {largest.wnid}, has "
            f"{largest.num_raw}); lower --rare-threshold"
        )
    bare = [part for part in kept if not part.num_stored["train"]]
    if bare:
        folder.discard()  # the way out are other settings, which the folder would refuse
        raise ValueError(
            f"{bare[0].wnid} would have no training image: of its {bare[0].num_raw} images {select.val_per_class} are "
            f"for validation and {len(bare[0].rejects)} were rejected ({len(bare)} such classes); "
            "lower --val-per-class or raise --rare-threshold"
        )
    damaged = [reject for part in parts for reject in part.rejects if reject.reason == DAMAGED]
    if damaged and max_reject_rate < 1:
        raise ValueError(
            f"{source}: {len(damaged)} class tars are damaged, and nobody knows how many images are lost with them "
            f"(the first: {damaged[0].name}, {damaged[0].detail}); copy or download the archive again, "
            "or go on without them with --max-reject-rate 1"
        )
    rejects = [reject for part in kept for reject in part.rejects]
    num_members = sum(part.num_members for part in kept)
    if len(rejects) > max_reject_rate * num_members:
        (wnid, in_class), (reason, of_reason) = (
            Counter(column).most_common(1)[0] for column in zip(*((r.wnid, r.reason) for r in rejects), strict=True)
        )
        raise ValueError(
            f"{len(rejects):,} of {num_members:,} members were rejected, more than --max-reject-rate {max_reject_rate} "
            f"allows; most in {wnid} ({in_class:,}), most as {reason!r} ({of_reason:,}). What was done is kept: "
            "the same command with a higher rate finishes it"
        )


def _write_tables(
    out: Path, work: Path, parts: Sequence[_ClassPart], strays: Sequence[Reject], wordnet: WordNet
) -> None:
    kept = [part for part in parts if part.kept]
    tree = build_tree([part.wnid for part in kept], wordnet)
    tree.save(out / "tree.json")
    write_class_table(out / "classes.parquet", _class_rows(parts, tree, wordnet))
    with TableWriter(out / "manifest.parquet", STORED) as writer:
        for split in SPLITS:
            for class_index, part in enumerate(kept):
                table = read_table(work / "classes" / f"{part.wnid}.parquet")
                column = STORED.get_field_index("class_index")
                table = table.set_column(column, "class_index", pa.array([class_index] * table.num_rows, pa.int32()))
                start = 0 if split == "train" else part.num_stored["train"]
                writer.write(table.slice(start, part.num_stored[split]))
    rejects = [reject for part in parts for reject in part.rejects] + list(strays)
    rejects.sort(key=lambda reject: (reject.wnid is None, reject.wnid, reject.name))
    with TableWriter(out / "rejects.parquet", REJECTS) as writer:
        writer.write(pa.Table.from_pylist([reject._asdict() for reject in rejects], schema=REJECTS))


def _class_rows(parts: Sequence[_ClassPart], tree: SemanticTree, wordnet: WordNet) -> Iterator[ClassRow]:
    index_of = {wnid: index for index, wnid in enumerate(tree.wnids)}
    for part in parts:
        known = part.wnid in wordnet
        index = index_of.get(part.wnid)
        yield ClassRow(
            wnid=part.wnid,
            name=wordnet.name(part.wnid) if known else part.wnid,
            definition=wordnet.definition(part.wnid) if known else "",
            num_raw=part.num_raw,
            num_train=part.num_stored["train"],
            num_val=part.num_stored["val"],
            kept=part.kept,
            class_index=index,
            level=None if index is None else tree.levels[index],
        )


def _describe(parts: Sequence[_ClassPart], strays: Sequence[Reject]) -> dict[str, Any]:
    kept = [part for part in parts if part.kept]
    splits = {split: sum(part.num_stored[split] for part in kept) for split in SPLITS}
    return {
        "format": PreparedSet.format,
        "version": VERSION,
        "counts": {
            "num_classes_seen": len(parts),
            "num_classes": len(kept),
            "num_raw": sum(part.num_raw for part in parts),
            "num_raw_kept": sum(part.num_raw for part in kept),
            "num_rejects": sum(len(part.rejects) for part in parts) + len(strays),
            "splits": {split: {"num_samples": count} for split, count in splits.items() if count},
        },
    }
