"""The run: raw images in, a prepared data set out; a finished task is never done again."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from ..shards.class_table import read_class_table
from ..shards.dataset import SPLITS, PreparedSet
from ..shards.files.atomic import read_json, write_json
from ..shards.files.output import OutputFolder
from ..shards.files.parallel import OnProgress, Progress, ignore_progress
from ..shards.files.record import record_files
from ..shards.manifest import pc, read_table
from .checks import check_outcome, names_beginning, say_crashes, say_what_was_listed
from .classes.select import SelectSettings, check_training_images, split_members
from .classes.taxonomy import Taxonomy
from .engines import RunTasks
from .images.image import ImageSettings
from .images.resize import get_resizer
from .outcome import Outcome
from .sources.archive import DAMAGED, NO_SUFFIX, Reject, UselessError, readable, to_text
from .sources.class_names import class_id
from .sources.folders import Layout, possible_classes
from .sources.gathering import beside, no_classes, say_split
from .sources.groups import Groups, folder_of
from .sources.layouts import no_class, stray
from .sources.units import Chunk, RawSource, Unit
from .tables import describe, write_tables
from .tasks import CHUNK, ChunkPart, ChunkTask, ClassPart, ClassTask, Job, MergeTask, row_reject, run_task

log = logging.getLogger(__name__)

MERGED_ROWS = 1_000_000  # of chunks' rows that are held at a time, some 200 MB
ROOM_FRACTION = 0.02  # of the source: what was written for it tells what the rest will take
ROOM_MARGIN = 1.1  # by how much that may be wrong: a run that fits must not be stopped
NUM_PEEKED = 1000  # class tars whose headers are looked at before the work begins


def prepare(
    source: RawSource,
    out: Path,
    *,
    select: SelectSettings,
    image: ImageSettings,
    taxonomy: Taxonomy | None = None,
    run_tasks: RunTasks = map,
    max_reject_rate: float = 0.01,
    overwrite: bool = False,
    on_progress: OnProgress = ignore_progress,
) -> PreparedSet:
    """Turn raw images (see `open_raw_tar`, `open_folder`) into a prepared data set at `out`: prune, split, resize.

    Every image is read once, nothing is extracted. Tasks that an earlier, killed run of the same settings finished are
    not done again. `run_tasks` (see `open_engine`) says where they run. Raises ValueError for a source that is none, an
    output of other settings, no class left, a class without training images, no room on the disk, or more rejects than
    `max_reject_rate` of the kept classes' members.
    """
    taxonomy = taxonomy or Taxonomy.packaged()
    _check_subtrees(select, taxonomy)
    resizer_version = get_resizer(image.resizer).version()
    provenance = {
        "source": {"name": readable(source.name), "num_bytes": source.num_bytes},
        "settings": {
            **select.described(),
            **vars(image),
            "resizer_version": resizer_version,
            **taxonomy.version,
        },
    }
    folder = OutputFolder(
        out,
        provenance=provenance,
        contents=PreparedSet.contents,
        list_files=list_class_tars,
        overwrite=overwrite,
    )
    if folder.finished:
        return PreparedSet(out)
    classes = source.classes()  # what is no archive leaves no folder
    select = select.of_source(source.name, source.layout)
    if classes is not None:
        say_split(source.name, source.layout)
    with folder:
        if folder.finished:  # by another process meanwhile
            return PreparedSet(out)
        job = Job(out.resolve(), folder.work.resolve(), select.carried(folder.work), image, resizer_version)
        try:
            outcome = _Run(
                job, source, select, taxonomy, partial(run_tasks, run_task), on_progress, folder.own
            ).outcome()
            if not any(part.num_raw or not part.from_chunks for part in outcome.parts):  # of a stream known at its end
                raise no_classes(source.name, [*outcome.strays, *(r for part in outcome.parts for r in part.rejects)])
            check_outcome(outcome, job, source, select, taxonomy, max_reject_rate)
        except ValueError as error:
            # Only here does a stream turn out to be no archive, or to have held other bytes than were packed.
            if isinstance(error, UselessError) or not any(folder.work.glob("*/*.json")):
                folder.discard()
            raise
        write_tables(job, outcome, taxonomy.with_names(outcome.names))
        info = describe(outcome)
        folder.finish({**info, "files": record_files(out, PreparedSet.recorded(info))})
    say_what_was_listed(select, outcome)
    say_crashes(outcome.parts)
    return PreparedSet(out)


def list_class_tars(path: Path) -> list[str]:
    """Return the class tars of a finished prepared data set, by its class table."""
    return [tar for row in read_class_table(path / "classes.parquet") if row.kept for tar in _class_tars(row.wnid)]


def _class_tars(wnid: str) -> list[str]:
    return [f"{split}/{wnid}.tar" for split in SPLITS]


def _check_subtrees(select: SelectSettings, taxonomy: Taxonomy) -> None:
    for top in select.drop_subtree:
        if top not in taxonomy:
            raise ValueError(f"--drop-subtree {top}: is no WordNet synset, nor in --parents; wanted such as n00007846")


class _Run:
    """One run: which tasks there are, which were done before, and what came of them."""

    def __init__(
        self,
        job: Job,
        source: RawSource,
        select: SelectSettings,
        taxonomy: Taxonomy,
        run: Callable[[Iterable[Any]], Iterator[Any]],
        on_progress: OnProgress,
        own: Callable[[Iterable[str]], None],
    ) -> None:
        self._own = own  # records files before they are written
        self._job, self._source = job, source
        self._verdict = partial(select.verdict, taxonomy=taxonomy)
        self._select = select
        self._run, self._on_progress = run, on_progress
        self._names = [each.wnid for each in source.classes() or ()]
        self._whole: dict[str, ClassPart] = {}  # classes done
        self._chunks: dict[int, ChunkPart] = {}
        self._spooled: set[int] = set()  # chunks whose images are still there
        self._images = self._num_bytes = self._stored_bytes = self._kept_bytes = self._num_rejects = 0
        self._total_bytes = sum(each.num_bytes for each in source.classes() or ())
        self._next_look = ROOM_FRACTION  # the part of the source at which room is looked for again
        self._groups = Groups(None, source.name)  # until a stream's end tells
        self._is_read = job.work / "read.json"  # a stream's end was reached; what is known then is in it

    def outcome(self) -> Outcome:
        """Do what is left to do; return what became of the source."""
        self._prepare_folders()
        if not self._is_read.exists():
            log.info("%s: %s", self._source.name, self._source.describe())
            self._check_smallest()
            for part in self._run(self._tasks()):
                self._take(part)
        known = {name: getattr(self._source, name) for name in ("rejects", "names", "ignored", "empty_folders")}
        if self._source.classes() is None:
            if not self._is_read.exists():
                write_json(self._is_read, {**known, "layout": asdict(self._source.layout)})
            known = read_json(self._is_read)
            layout = Layout.load(known["layout"])
            self._job = replace(self._job, select=self._job.select.of_source(self._source.name, layout))
            say_split(self._source.name, layout)
            self._groups = Groups(layout, self._source.name)
        strays, ignored = self._merge()
        strays += [Reject(*reject) for reject in known["rejects"]]
        ignored.update(known["ignored"])
        for split in SPLITS:
            if not any((self._job.out / split).iterdir()):
                (self._job.out / split).rmdir()
        parts = sorted(self._whole.values(), key=lambda part: part.wnid)
        return Outcome(parts, strays, {**self._groups.names, **known["names"]}, ignored, known["empty_folders"])

    def _prepare_folders(self) -> None:
        for path in (self._job.work / "classes", self._job.work / "chunks", *(self._job.out / s for s in SPLITS)):
            path.mkdir(exist_ok=True)
        for path in sorted((self._job.work / "classes").glob("*.json")):
            part = ClassPart.load(path)
            if all(reject.reason != DAMAGED for reject in part.rejects):  # the archive may be a better copy now
                self._take(part, again=True)
        for path in sorted((self._job.work / "chunks").glob("*.json")):
            self._take(ChunkPart.load(path), again=True)

    def _take(self, part: ClassPart | ChunkPart, *, again: bool = False) -> None:
        """Count what a task did, and say so, but for what an earlier run did."""
        if isinstance(part, ChunkPart):
            self._chunks[part.number] = part
            self._spooled.add(part.number)
            self._count(part, sum(part.num_rows.values()), part.num_rejects)
        else:
            self._whole[part.wnid] = part
            if not part.from_chunks:  # those were counted
                self._count(part, part.num_raw, len(part.rejects))
        if not again:
            of_all = f"/{len(self._names):,}" if self._names else ""
            doing = ", putting classes together" if isinstance(part, ClassPart) and part.from_chunks else ""
            detail = f"{len(self._whole):,}{of_all} classes, {self._num_rejects:,} rejects{doing}"
            self._on_progress(Progress(self._fraction(), self._images, self._num_bytes, detail))

    def _count(self, part: ClassPart | ChunkPart, images: int, num_rejects: int) -> None:
        self._images += images
        self._num_rejects += num_rejects
        self._num_bytes += part.num_bytes
        self._stored_bytes += part.stored_bytes
        self._kept_bytes += part.num_bytes if part.stored_bytes else 0

    def _fraction(self) -> float:
        if self._names:
            return self._num_bytes / max(1, self._total_bytes)
        return self._source.position() / self._source.num_bytes if self._source.num_bytes else 0.0

    def _check_smallest(self) -> None:
        """Raise NoTrainingImageError, before hours are spent, for one of the smallest classes, where that may be.

        By headers alone; the others are looked at as their turn comes.
        """
        wanted = [each for each in self._source.classes() or () if self._verdict(each.wnid) is not False]
        if self._select.classes is None and self._select.rare_threshold >= self._select.num_val:
            return
        for each in sorted(wanted, key=lambda each: each.num_bytes)[:NUM_PEEKED]:
            if each.wnid not in self._whole:
                members = each.listed()[0]
                if self._select.keeps(self._verdict(each.wnid), members):
                    others = names_beginning(each.wnid, self._names)
                    check_training_images(
                        each.wnid, split_members(each.wnid, members, self._select, others), 0, self._select
                    )

    def _check_room(self) -> None:
        """Raise ValueError when it shows that the disk will not hold the output: early, not when it is full."""
        fraction = self._fraction()
        if fraction < self._next_look:
            return
        self._next_look = fraction + ROOM_FRACTION
        left = self._bytes_left(fraction)
        self._demand_room(left * self._stored_bytes / max(1, self._kept_bytes), f"the rest of {self._source.name}")

    def _bytes_left(self, fraction: float) -> float:
        """Return the bytes of the classes that are to come and may be kept: those of a rare one are few."""
        classes = self._source.classes()
        if classes is None:
            return self._num_bytes / fraction - self._num_bytes
        least = self._select.rare_threshold * self._num_bytes / max(1, self._images)
        return sum(
            each.num_bytes
            for each in classes
            if each.wnid not in self._whole
            and (verdict := self._verdict(each.wnid)) is not False
            and (verdict or each.num_bytes > least)
        ) - sum(part.num_bytes for part in self._chunks.values())

    def _demand_room(self, needed: float, what: str) -> None:
        free = shutil.disk_usage(self._job.out).free
        if needed > ROOM_MARGIN * free:
            raise ValueError(
                f"{self._job.out.name}: about {needed / 1e6:,.0f} MB more are needed for {what}, and "
                f"{free / 1e6:,.0f} MB are free; make room and start the same command again: what was done is kept"
            )

    def _tasks(self) -> Iterator[ClassTask | ChunkTask]:
        """Yield what an earlier run left to do, while there is room for it.

        Raises ValueError where that run read another source: a stream has no size by which to tell before. Raised
        here, not where results are taken, it lets the engine end before anything else does.
        """
        unseen: set[str | int] = {wnid for wnid, part in self._whole.items() if not part.from_chunks}
        unseen.update(self._chunks)
        for unit in self._source.units():
            name = unit.number if isinstance(unit, Chunk) else unit.wnid
            if name not in unseen:
                self._check_room()
                yield self._task(unit)
            elif not self._is_same(unit):
                raise ValueError(
                    f"{self._source.name}: {_named(name)} holds other bytes than an earlier run of this output read "
                    "there: give that archive again, or --overwrite to begin anew"
                )
            unseen.discard(name)
        if unseen:
            raise ValueError(
                f"{self._source.name}: lacks {_named(min(unseen, key=str))} and {len(unseen) - 1} more that an earlier "
                "run of this output read: give that archive again, or --overwrite to begin anew"
            )

    def _is_same(self, unit: Unit) -> bool:
        if isinstance(unit, Chunk):
            return unit.fingerprint == self._chunks[unit.number].fingerprint
        return unit.num_bytes == self._whole[unit.wnid].num_bytes

    def _task(self, unit: Unit) -> ClassTask | ChunkTask:
        if not isinstance(unit, Chunk):
            self._own(_class_tars(unit.wnid))
            return ClassTask(self._job, unit, self._verdict(unit.wnid), names_beginning(unit.wnid, self._names))
        groups = {group for group, _ in unit.images}
        return ChunkTask(self._job, unit, frozenset(filter(self._is_unwanted, groups)))

    def _is_unwanted(self, group: str) -> bool:
        """Tell whether a group can be of no class that is kept."""
        if self._source.classes() is not None:
            return self._verdict(group) is False
        return all(self._verdict(class_id(name)) is False for name in possible_classes(folder_of(group)))

    def _merge(self) -> tuple[list[Reject], Counter[str]]:
        """Put the classes together whose images lie in chunks.

        Returns the members that turn out to be of no class, and how many are ignored.
        """
        strays: list[Reject] = []
        ignored: Counter[str] = Counter()
        with_images = (group for part in self._chunks.values() for group in part.with_images)
        names = sorted({*self._whole, *self._groups.classes(with_images)})
        self._chunks = {
            number: replace(part, num_rows=self._groups.by_class(part.num_rows))
            for number, part in self._chunks.items()
        }
        done: set[str] = set()
        for band in _bands(self._chunks):
            for part in self._run(self._merge_tasks(band, names, strays, ignored)):
                self._take(part)
            done.update(band)
            for number in [number for number in self._spooled if done.issuperset(self._chunks[number].num_rows)]:
                self._job.chunk_part(number).with_suffix(".tar").unlink(missing_ok=True)
                self._spooled.remove(number)
        return strays, ignored

    def _merge_tasks(
        self, band: Sequence[str], names: Sequence[str], strays: list[Reject], ignored: Counter[str]
    ) -> Iterator[MergeTask]:
        num_rows = sum(part.num_rows.get(wnid, 0) for part in self._chunks.values() for wnid in band)
        spooled = sum(part.stored_bytes for part in self._chunks.values())
        all_rows = sum(sum(part.num_rows.values()) for part in self._chunks.values())
        self._demand_room(num_rows * spooled / max(1, all_rows), "putting classes together")
        is_class = set(names)
        for wnid, rows in _by_class(self._rows_of(band)):
            if unused := self._groups.unused_of(wnid):
                ignored[f"{unused}/"] += rows.num_rows
            elif wnid not in is_class:  # a folder without images is no class
                is_outside = self._groups.is_folder(wnid)
                strays += [_stray_of(row, is_outside=is_outside) for row in rows.to_pylist()]
            elif wnid not in self._whole:
                # Taken, not sliced: what goes to a worker with a slice is the whole table.
                own = rows.take(pa.array(range(rows.num_rows)))
                others = names_beginning(wnid, names)
                self._own(_class_tars(wnid))
                yield MergeTask(self._job, wnid, own, self._groups.layout, self._verdict(wnid), others)
            elif not self._whole[wnid].from_chunks:
                self._whole[wnid] = _with_beside(self._whole[wnid], rows, self._groups.layout)

    def _rows_of(self, wnids: Sequence[str]) -> pa.Table:
        """Return the rows of some classes, by class and in the order of the source, with the column `chunk`."""
        wanted = set(wnids)
        tables: list[pa.Table] = []
        for number, part in sorted(self._chunks.items()):
            if not part.num_rows.keys().isdisjoint(wnids):
                table = read_table(self._job.chunk_part(number).with_suffix(".parquet"), CHUNK)
                table = table.append_column("chunk", pa.array([number] * table.num_rows, pa.int64()))
                classes = pa.array(map(self._groups.class_of, table["wnid"].to_pylist()), pa.string())
                table = table.set_column(table.schema.get_field_index("wnid"), "wnid", classes)
                tables.append(table.filter(pc.is_in(table["wnid"], value_set=pa.array(wanted))))
        rows = pa.concat_tables(tables)
        rows = rows.append_column("row", pa.array(range(rows.num_rows)))
        return rows.sort_by([("wnid", "ascending"), ("row", "ascending")]).drop_columns("row")


def _bands(chunks: Mapping[int, ChunkPart]) -> Iterator[list[str]]:
    """Yield the classes in bands of so many rows as are held at a time, those first whose last chunk comes first.

    So chunks go, where classes lie together, as what is made of them comes.
    """
    counts: Counter[str] = Counter()
    last: dict[str, int] = {}
    for number, part in sorted(chunks.items()):
        counts.update(part.num_rows)
        last.update(dict.fromkeys(part.num_rows, number))
    band: list[str] = []
    num_rows = 0
    for wnid in sorted(counts, key=lambda wnid: (last[wnid], wnid)):
        band.append(wnid)
        num_rows += counts[wnid]
        if num_rows >= MERGED_ROWS:
            yield band
            band, num_rows = [], 0
    if band:
        yield band


def _by_class(rows: pa.Table) -> Iterator[tuple[str, pa.Table]]:
    """Yield each class of the sorted rows with its slice."""
    runs = pc.run_end_encode(rows["wnid"].combine_chunks())
    start = 0
    for wnid, end in zip(runs.values.to_pylist(), runs.run_ends.to_pylist(), strict=True):
        yield wnid, rows.slice(start, end - start)
        start = end


def _stray_of(row: Mapping[str, Any], *, is_outside: bool) -> Reject:
    """Return the reject of a row of a folder that is no class; `is_outside`: whatever lies in it."""
    path = to_text(row["path"])
    if is_outside and (row["is_image"] or row["reason"] == NO_SUFFIX):
        return no_class(path)
    return stray(path, row["reason"], row["detail"])


def _with_beside(part: ClassPart, rows: pa.Table, layout: Layout | None) -> ClassPart:
    """Return the part of a class tar with what else the source holds of its class, which does not count."""
    if not part.kept:
        return part
    rejects = [
        beside(to_text(row["path"]), part.wnid) if row["is_image"] else row_reject(row, layout)
        for row in rows.to_pylist()
    ]
    return replace(part, rejects=[*part.rejects, *rejects], num_members=part.num_members + len(rejects))


def _named(name: str | int) -> str:
    return name if isinstance(name, str) else f"chunk {name}"
