"""What a run would keep, and the disk space and time it needs, from a source's names and a timed sample of images."""

from __future__ import annotations

import os
import shutil
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from .checks import log_missing_classes, log_strays, names_beginning, why_no_images
from .classes.select import SelectSettings, check_training_images, split_members
from .classes.taxonomy import Taxonomy, build_tree
from .engines import RunTasks
from .images.alone import store_alone
from .images.image import EncodedImage, ImageSettings, RejectedImageError, store_image
from .sources.archive import ClassTar
from .sources.folders import class_of_folder
from .sources.gathering import log_split
from .sources.groups import Groups, folder_of
from .sources.layouts import RawClass
from .sources.members import DAMAGED, Member
from .sources.units import Chunk, RawSource

COUNT_SECONDS = 60.0  # for counting the members of class tars, or of the beginning of a stream
SAMPLED_CLASSES = 32
SAMPLED_IMAGES = 32  # of each
OVERHEAD_BYTES = 512 + 256 + 150  # an image's tar header, half a block of padding, its row of the manifest


@dataclass(frozen=True)
class Estimate:
    """The estimate of a run. Counts are exact where `is_exact`; bytes and seconds never are."""

    source: str
    num_classes_seen: int
    num_classes: int
    num_images: int
    is_exact: bool
    num_strays: int  # members that would belong to no class
    num_damaged: int  # class tars that would fail the run
    needed_bytes: int
    free_bytes: int
    fits: bool
    seconds: float
    workers: int
    images_per_s: float  # of a worker, while as many work
    read_bytes_per_s: float
    num_sampled: int
    num_sampled_rejects: int

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    def render(self) -> str:
        """Return the estimate as text."""
        about = "" if self.is_exact else "about "
        room = "it fits" if self.fits else "it does NOT fit"
        return (
            f"{self.source}: {about}{self.num_classes:,} of {about}{self.num_classes_seen:,} classes would be kept, "
            f"with {about}{self.num_images:,} images; {self.num_strays:,} members belong to no class\n"
            + (f"{self.num_damaged:,} class tars are damaged: the run would fail\n" if self.num_damaged else "")
            + f"disk: about {self.needed_bytes / 1e9:,.3f} GB needed, {self.free_bytes / 1e9:,.3f} GB free: {room}\n"
            f"time: about {self.seconds / 3600:,.2f} hours ({self.seconds:,.0f} s) with {self.workers} workers: "
            f"{self.images_per_s:,.0f} images/s each, reading at {self.read_bytes_per_s / 1e6:,.0f} MB/s\n"
            f"measured on {self.num_sampled:,} images of this source, {self.num_sampled_rejects:,} of them rejects"
        )


class _TimingSample(NamedTuple):
    """What a worker measured on some images of one class."""

    num_images: int
    num_rejects: int
    stored_bytes: int
    weighted_bytes: float  # mean stored bytes of an image, times `weight`
    weight: int  # number of images that the sample represents
    store_seconds: float
    read_bytes: int
    read_seconds: float


@dataclass(frozen=True)
class _TimingTask:
    source: RawClass | list[bytes]  # a class to read, or some images of a stream
    weight: int  # number of images that the sample represents
    image: ImageSettings
    guarded: bool = False  # see ClassTask


def estimate(
    source: RawSource,
    out: Path,
    *,
    select: SelectSettings,
    image: ImageSettings,
    taxonomy: Taxonomy,
    run_tasks: RunTasks,
    workers: int,
) -> Estimate:
    """Estimate what `prepare` would do; writes nothing. Raises ValueError where no class would be kept."""
    classes = source.classes()
    select = select.of_source(source.name, source.layout)
    if classes is None:
        counts = _count_stream(source, select, taxonomy)
    else:
        counts = _count_classes(classes, select, taxonomy)
    if not counts.sampled:
        why = "no class would be kept; lower --rare-threshold, or name others in --classes"
        raise ValueError(f"{source.name}: {why if counts.has_images else why_no_images(len(counts.names), source)}")
    build_tree(sorted(counts.kept), taxonomy, inner_classes=select.inner_classes)  # which warns of unknown classes
    log_missing_classes(select, counts.names, len(counts.kept))
    log_split(source.name, source.layout)
    log_strays(source.rejects)
    tasks = [_TimingTask(sample, weight, image) for sample, weight in counts.sampled]
    samples = [_TimingSample(*sample) for sample in run_tasks(_measure, tasks)]
    total = _TimingSample(*(sum(column) for column in zip(*samples, strict=True)))
    mean = total.weighted_bytes / max(1, total.weight)
    needed = round(counts.num_images * (mean + OVERHEAD_BYTES) * counts.times)
    free = shutil.disk_usage(next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())).free
    images_per_s = total.num_images / total.store_seconds
    read_rate = counts.read_rate or total.read_bytes / max(1e-9, total.read_seconds)
    read_seconds = counts.read_bytes / read_rate
    return Estimate(
        source=source.name,
        num_classes_seen=round(len(counts.names) * counts.part),
        num_classes=round(len(counts.kept) * counts.part),
        num_images=counts.num_images,
        is_exact=counts.is_exact,
        num_strays=len(source.rejects),
        num_damaged=counts.num_damaged,
        needed_bytes=needed,
        free_bytes=free,
        fits=needed <= free,
        # A worker reads or stores at a time; all workers share the disk.
        seconds=max(read_seconds, (read_seconds + counts.num_images / images_per_s) / workers),
        workers=workers,
        images_per_s=images_per_s,
        read_bytes_per_s=read_rate,
        num_sampled=total.num_images,
        num_sampled_rejects=total.num_rejects,
    )


@dataclass(frozen=True)
class _Counts:
    """What the names in a source say.

    names, kept: the classes of the source, and those that would be kept.
    has_images:  whether any class has an image.
    sampled:     classes or images to time, each with the number of images that it represents.
    read_rate:   bytes per second of a stream; None where the sample is to measure it.
    part:        the size of the whole source over the part that was counted; `num_images` is scaled already.
    times:       how often an image lies on the disk at most: twice while it waits in a chunk.
    """

    names: Collection[str]
    kept: Collection[str]
    has_images: bool
    num_images: int
    num_damaged: int
    read_bytes: int
    is_exact: bool
    sampled: Sequence[tuple[RawClass | list[bytes], int]]
    read_rate: float | None = None
    part: float = 1.0
    times: int = 1


def _count_classes(classes: Sequence[RawClass], select: SelectSettings, taxonomy: Taxonomy) -> _Counts:
    """Count the images of every class; after COUNT_SECONDS estimate those of class tars from their bytes."""
    end = time.monotonic() + COUNT_SECONDS
    names = [raw_class.wnid for raw_class in classes]
    kept: list[tuple[RawClass, int]] = []
    read_bytes = counted_images = counted_bytes = num_damaged = 0
    is_exact = True
    for raw_class in classes:
        wnid, num_bytes = raw_class.wnid, raw_class.num_bytes
        if isinstance(raw_class, ClassTar) and time.monotonic() > end and counted_images:
            is_exact = False
            members: list[Member] = [_ANY] * round(num_bytes * counted_images / counted_bytes)
        else:
            members, rejects = raw_class.listed()
            num_damaged += any(reject.reason == DAMAGED for reject in rejects)
            counted_images, counted_bytes = counted_images + len(members), counted_bytes + num_bytes
        keeps = select.keeps(select.verdict(wnid, taxonomy), members)
        if keeps:
            kept.append((raw_class, len(members)))
            if is_exact and (select.val_list or len(members) <= select.num_val):
                chosen = split_members(wnid, members, select, names_beginning(wnid, names))
                check_training_images(wnid, chosen, 0, select)
        if keeps or isinstance(raw_class, ClassTar):  # a dropped class tar is read too
            read_bytes += num_bytes
    count = min(SAMPLED_CLASSES, len(kept))
    return _Counts(
        names,
        [raw_class.wnid for raw_class, _ in kept],
        counted_images > 0,
        sum(num_images for _, num_images in kept),
        num_damaged,
        read_bytes,
        is_exact,
        [kept[number * len(kept) // count] for number in range(count)],
    )


_ANY = Member("", "", 0, 0)


def _count_stream(source: RawSource, select: SelectSettings, taxonomy: Taxonomy) -> _Counts:
    """Count the beginning of a stream, and assume that the rest is like it."""
    if source.num_bytes is None:
        raise ValueError("--dry-run cannot be used with standard input, which can be read only once; give a file")
    begun = time.monotonic()
    in_tars: Counter[str] = Counter()
    in_groups: Counter[str] = Counter()
    sampled: list[tuple[RawClass | list[bytes], int]] = []
    is_exact, times = True, 1
    for unit in source.units():
        of_unit = _count(unit)
        (in_groups if isinstance(unit, Chunk) else in_tars).update(of_unit)
        if len(sampled) < SAMPLED_CLASSES:
            kept = _kept(_by_class(in_tars, in_groups, source), source, select, taxonomy)
            own = _by_class({}, of_unit, source) if isinstance(unit, Chunk) else _by_class(of_unit, {}, source)
            if num_images := sum(len(own.get(wnid, ())) for wnid in kept):
                # Some images only: the unit itself may have hundreds of megabytes.
                sampled.append((_read_some(unit)[1], num_images))
        times = 2 if isinstance(unit, Chunk) else times
        if time.monotonic() - begun > COUNT_SECONDS:
            is_exact = False
            break
    read = source.position() if not is_exact else source.num_bytes
    part = source.num_bytes / max(1, read)
    members = _by_class(in_tars, in_groups, source)
    kept = _kept(members, source, select, taxonomy)
    return _Counts(
        members,
        kept,
        any(members.values()),
        round(sum(len(members[wnid]) for wnid in kept) * part),
        0,
        source.num_bytes,
        is_exact,
        sampled,
        max(1, read) / (time.monotonic() - begun),
        part,
        times,
    )


def _count(unit: RawClass | Chunk) -> Counter[str]:
    if isinstance(unit, Chunk):
        return Counter(wnid for wnid, _ in unit.images)
    with unit.open() as contents:
        return Counter({unit.wnid: len(contents.members)})


def _by_class(in_tars: Mapping[str, int], in_groups: Mapping[str, int], source: RawSource) -> dict[str, list[Member]]:
    """Return placeholders for the members of each class, as many as were counted in class tars and in groups."""
    members = {wnid: [_ANY] * count for wnid, count in in_tars.items()}
    groups = Groups(source.layout, source.name)
    for group, count in in_groups.items():
        if not groups.is_folder(wnid := groups.class_of(group)):
            split = class_of_folder(folder_of(group), groups.layout).split
            members.setdefault(wnid, []).extend([_ANY._replace(split=split)] * count)
    return members


def _kept(
    members: Mapping[str, Sequence[Member]], source: RawSource, select: SelectSettings, taxonomy: Taxonomy
) -> list[str]:
    select = select.of_source(source.name, source.layout)
    return [wnid for wnid, own in members.items() if select.keeps(select.verdict(wnid, taxonomy), own)]


def _measure(task: _TimingTask) -> _TimingSample:
    """Read a class and encode some of its images, evenly spread."""
    begun = time.perf_counter()
    num_read, raws = (0, task.source) if isinstance(task.source, list) else _read_some(task.source)
    read_seconds = time.perf_counter() - begun
    store = partial(store_alone, "a sampled image") if task.guarded else store_image
    _store(raws[:1], task.image, store)  # not timed: the first image loads libraries
    begun = time.perf_counter()
    stored_bytes, num_rejects = _store(raws, task.image, store)
    seconds = time.perf_counter() - begun
    weighted = stored_bytes / max(1, len(raws)) * task.weight
    return _TimingSample(len(raws), num_rejects, stored_bytes, weighted, task.weight, seconds, num_read, read_seconds)


def _store(
    raws: Sequence[bytes], image: ImageSettings, store: Callable[[bytes, ImageSettings], EncodedImage]
) -> tuple[int, int]:
    """Return the number of bytes that would be stored, and of images that would be rejected."""
    stored_bytes = num_rejects = 0
    for raw in raws:
        try:
            stored_bytes += len(store(raw, image).data)
        except RejectedImageError:
            num_rejects += 1
    return stored_bytes, num_rejects


def _read_some(source: RawClass | Chunk) -> tuple[int, list[bytes]]:
    """Return the number of bytes that were read, and some images."""
    if isinstance(source, Chunk):
        raws = list(source.read(_spread(range(len(source.images)))))
        return sum(map(len, raws)), raws
    _forget(source)
    with source.open() as contents:
        raws = list(contents.read(_spread(contents.members)))
    return (source.num_bytes if isinstance(source, ClassTar) else sum(map(len, raws))), raws


def _forget(source: RawClass) -> None:
    """Drop a class tar, which was counted just now, from the page cache, so that reading it is timed from the disk."""
    if isinstance(source, ClassTar) and source.data is None:
        with source.source.open("rb") as file:
            os.posix_fadvise(file.fileno(), source.offset, source.num_bytes, os.POSIX_FADV_DONTNEED)


def _spread(items: Sequence[Any]) -> list[Any]:
    return list(islice(items[:: max(1, len(items) // SAMPLED_IMAGES)], SAMPLED_IMAGES))
