"""The run: raw images in, a prepared data set out. Tasks that an earlier run finished are skipped."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
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
from .checks import check_outcome, log_crashes, log_unmatched_lists, names_beginning
from .chunk_rows import class_bands, rows_by_class, stray_of, with_beside
from .chunk_tasks import ChunkTask, MergeTask
from .class_tasks import ClassTask
from .classes.select import SelectSettings, check_training_images, split_members
from .classes.taxonomy import Taxonomy
from .engines import RunTasks
from .images.image import ImageSettings
from .images.resize import get_resizer
from .outcome import Outcome
from .sources.class_names import class_id
from .sources.folders import Layout, possible_classes
from .sources.gathering import log_split, no_classes
from .sources.groups import Groups, folder_of
from .sources.members import DAMAGED, Reject, UselessError, readable
from .sources.units import Chunk, RawSource, Unit
from .tables import describe, write_tables
from .tasks import ChunkPart, ClassPart, Job, run_task

log = logging.getLogger(__name__)

ROOM_FRACTION = 0.02  # of the source: how often the free space is compared with what the rest will need
ROOM_MARGIN = 1.1  # that estimate may be wrong by this factor: a run that fits must not be stopped
NUM_PEEKED = 1000  # class tars whose headers are checked before the work begins


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

    Every image is read once and nothing is extracted. A run of the same settings that was killed is resumed.
    `run_tasks` (see `open_engine`) says where the tasks run. Raises ValueError for a source without classes, an output
    of other settings, no class left, a class without training images, a full disk, or more rejects than
    `max_reject_rate` of the kept classes' members.
    """
    taxonomy = taxonomy or Taxonomy.packaged()
    _check_subtrees(select, taxonomy)
    if select.inner_classes and source.is_processed():
        raise ValueError(
            f"{source.name}: --inner-classes cannot be used with the processed archive, whose classes are those of "
            "published weights; leave the option out"
        )
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
    classes = source.classes()  # raises for a file that is not an archive, before the folder is made
    select = select.of_source(source.name, source.layout)
    if classes is not None:
        log_split(source.name, source.layout)
    with folder:
        if folder.finished:  # by another process meanwhile
            return PreparedSet(out)
        job = Job(out.resolve(), folder.work.resolve(), select.carried(folder.work), image, resizer_version)
        try:
            outcome = _Run(
                job, source, select, taxonomy, partial(run_tasks, run_task), on_progress, folder.own
            ).outcome()
            if not any(part.num_raw or not part.from_chunks for part in outcome.parts):  # a stream tells at its end
                raise no_classes(source.name, [*outcome.strays, *(r for part in outcome.parts for r in part.rejects)])
            check_outcome(outcome, job, source, select, taxonomy, max_reject_rate)
        except ValueError as error:
            # A stream that is not an archive, or whose checksum is wrong, is noticed only here.
            if isinstance(error, UselessError) or not any(folder.work.glob("*/*.json")):
                folder.discard()
            raise
        tree = write_tables(job, outcome, taxonomy.with_names(outcome.names))
        info = describe(outcome, tree)
        folder.finish({**info, "files": record_files(out, PreparedSet.recorded(info))})
    log_unmatched_lists(select, outcome)
    log_crashes(outcome.parts)
    return PreparedSet(out)


def list_class_tars(path: Path) -> list[str]:
    """Return the class tars of a finished prepared data set, by its class table."""
    rows = read_class_table(path / "classes.parquet")
    return [tar for row in rows if row.kept and not row.inner for tar in _class_tars(row.wnid)]


def _class_tars(wnid: str) -> list[str]:
    return [f"{split}/{wnid}.tar" for split in SPLITS]


def _check_subtrees(select: SelectSettings, taxonomy: Taxonomy) -> None:
    for top in select.drop_subtree:
        if top not in taxonomy:
            raise ValueError(
                f"--drop-subtree {top}: not a WordNet synset, and not in --parents; wanted one such as n00007846"
            )


class _Run:
    """One run: the tasks that are left, and the records of those that are done."""

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
        self._names = [raw_class.wnid for raw_class in source.classes() or ()]
        self._whole: dict[str, ClassPart] = {}  # classes that are done
        self._chunks: dict[int, ChunkPart] = {}
        self._spooled: set[int] = set()  # chunks whose images are not deleted yet
        self._images = self._num_bytes = self._stored_bytes = self._kept_bytes = self._num_rejects = 0
        self._total_bytes = sum(raw_class.num_bytes for raw_class in source.classes() or ())
        self._next_room_check = ROOM_FRACTION  # the part of the source after which free space is checked again
        self._groups = Groups(None, source.name)  # of a stream replaced at its end
        self._stream_end = job.work / "read.json"  # written when a stream was read to its end, with what is known then

    def outcome(self) -> Outcome:
        """Do the remaining work; return what became of the source."""
        self._prepare_folders()
        if not self._stream_end.exists():
            log.info("%s: %s", self._source.name, self._source.describe())
            self._check_smallest()
            for part in self._run(self._tasks()):
                self._take(part)
        known = {name: getattr(self._source, name) for name in ("rejects", "names", "ignored")}
        known["empty_folders"] = self._source.folders.empty()
        if self._source.classes() is None:
            if not self._stream_end.exists():
                write_json(self._stream_end, {**known, "layout": asdict(self._source.layout)})
            known = read_json(self._stream_end)
            layout = Layout.load(known["layout"])
            self._job = replace(self._job, select=self._job.select.of_source(self._source.name, layout))
            log_split(self._source.name, layout)
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
            if all(reject.reason != DAMAGED for reject in part.rejects):  # a better copy may be given this time
                self._take(part, again=True)
        for path in sorted((self._job.work / "chunks").glob("*.json")):
            self._take(ChunkPart.load(path), again=True)

    def _take(self, part: ClassPart | ChunkPart, *, again: bool = False) -> None:
        """Count the result of a task and report progress. again: the task was done by an earlier run."""
        if isinstance(part, ChunkPart):
            self._chunks[part.number] = part
            self._spooled.add(part.number)
            self._count(part, sum(part.num_rows.values()), part.num_rejects)
        else:
            self._whole[part.wnid] = part
            if not part.from_chunks:  # chunks were counted themselves
                self._count(part, part.num_raw, len(part.rejects))
        if not again:
            of_all = f"/{len(self._names):,}" if self._names else ""
            step = ", putting classes together" if isinstance(part, ClassPart) and part.from_chunks else ""
            detail = f"{len(self._whole):,}{of_all} classes, {self._num_rejects:,} rejects{step}"
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
        """Raise NoTrainingImageError at once where one of the NUM_PEEKED smallest kept classes has only val images.

        Only headers are read. Larger classes are checked by their own tasks.
        """
        if self._select.classes is None and self._select.rare_threshold >= self._select.num_val:
            return
        classes = [
            raw_class for raw_class in self._source.classes() or () if self._verdict(raw_class.wnid) is not False
        ]
        for raw_class in sorted(classes, key=lambda raw_class: raw_class.num_bytes)[:NUM_PEEKED]:
            wnid = raw_class.wnid
            if wnid not in self._whole:
                members = raw_class.listed()[0]
                if self._select.keeps(self._verdict(wnid), members):
                    chosen = split_members(wnid, members, self._select, names_beginning(wnid, self._names))
                    check_training_images(wnid, chosen, 0, self._select)

    def _check_room(self) -> None:
        """Raise ValueError as soon as the free space is too small for the rest of the output."""
        fraction = self._fraction()
        if fraction < self._next_room_check:
            return
        self._next_room_check = fraction + ROOM_FRACTION
        needed = self._bytes_left(fraction) * self._stored_bytes / max(1, self._kept_bytes)
        self._demand_room(needed, f"the rest of {self._source.name}")

    def _bytes_left(self, fraction: float) -> float:
        """Return the bytes of the remaining classes, without those that are so small that they are dropped."""
        classes = self._source.classes()
        if classes is None:
            return self._num_bytes / fraction - self._num_bytes
        rare_bytes = self._select.rare_threshold * self._num_bytes / max(1, self._images)
        remaining = (raw_class for raw_class in classes if raw_class.wnid not in self._whole)
        verdicts = ((raw_class.num_bytes, self._verdict(raw_class.wnid)) for raw_class in remaining)
        kept = (size for size, verdict in verdicts if verdict or (verdict is None and size > rare_bytes))
        return sum(kept) - sum(part.num_bytes for part in self._chunks.values())

    def _demand_room(self, needed: float, purpose: str) -> None:
        free = shutil.disk_usage(self._job.out).free
        if needed > ROOM_MARGIN * free:
            raise ValueError(
                f"{self._job.out.name}: about {needed / 1e6:,.0f} MB more are needed for {purpose}, and "
                f"{free / 1e6:,.0f} MB are free; make room and start the same command again: what was done is kept"
            )

    def _tasks(self) -> Iterator[ClassTask | ChunkTask]:
        """Yield the tasks that an earlier run left, while the disk has room for their output.

        Raises ValueError where that run read another source, which for a stream is noticed only here. Raised in this
        iterator, the error lets the engine stop its workers first.
        """
        not_seen: set[str | int] = {wnid for wnid, part in self._whole.items() if not part.from_chunks}
        not_seen.update(self._chunks)
        for unit in self._source.units():
            name = unit.number if isinstance(unit, Chunk) else unit.wnid
            if name not in not_seen:
                self._check_room()
                yield self._task(unit)
            elif not self._is_same(unit):
                raise ValueError(
                    f"{self._source.name}: {_named(name)} differs from what an earlier run of this output read; "
                    "give that archive again, or --overwrite to start over"
                )
            not_seen.discard(name)
        if not_seen:
            raise ValueError(
                f"{self._source.name}: lacks {_named(min(not_seen, key=str))} and {len(not_seen) - 1} more that an "
                "earlier run of this output read; give that archive again, or --overwrite to start over"
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
        return ChunkTask(self._job, unit, frozenset(filter(self._is_dropped, groups)))

    def _is_dropped(self, group: str) -> bool:
        """Tell whether a group cannot belong to a class that is kept."""
        if self._source.classes() is not None:
            return self._verdict(group) is False
        return all(self._verdict(class_id(name)) is False for name in possible_classes(folder_of(group)))

    def _merge(self) -> tuple[list[Reject], Counter[str]]:
        """Put the classes together whose images lie in chunks.

        Returns the members that belong to no class, and the number of ignored files by kind.
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
        for band in class_bands(self._chunks):
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
        for wnid, rows in rows_by_class(self._job, self._chunks, self._groups, band):
            if unused := self._groups.unused_of(wnid):
                ignored[f"{unused}/"] += rows.num_rows
            elif wnid not in is_class:  # a folder without images
                is_outside = self._groups.is_folder(wnid)
                strays += [stray_of(row, is_outside=is_outside) for row in rows.to_pylist()]
            elif wnid not in self._whole:
                own = rows.take(pa.array(range(rows.num_rows)))  # a slice would be pickled with the whole table
                others = names_beginning(wnid, names)
                self._own(_class_tars(wnid))
                yield MergeTask(self._job, wnid, own, self._groups.layout, self._verdict(wnid), others)
            elif not self._whole[wnid].from_chunks:
                self._whole[wnid] = with_beside(self._whole[wnid], rows, self._groups.layout)


def _named(name: str | int) -> str:
    return name if isinstance(name, str) else f"chunk {name}"
