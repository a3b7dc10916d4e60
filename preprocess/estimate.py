"""What a run would keep, need and take: from the names in the source, and a timed sample of its images."""

from __future__ import annotations

import shutil
import tarfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from .archive import ClassTar, Member, StrictTarInfo, is_image, problem_of, walk
from .engines import RunTasks
from .image import ImageSettings, RejectedImageError, store_image
from .layouts import RawClass
from .select import SelectSettings
from .sources import Chunk, RawSource
from .taxonomy import Taxonomy

COUNT_SECONDS = 60.0  # for looking into class tars, or at the beginning of a stream
SAMPLED_CLASSES = 32
SAMPLED_IMAGES = 32  # of each
OVERHEAD_BYTES = 512 + 256 + 150  # an image's tar header, half a block of padding, its row of the manifest


@dataclass(frozen=True)
class Estimate:
    """What a run would do. Bytes and seconds are estimates, and so are the counts unless `is_exact`."""

    source: str
    num_classes_seen: int
    num_classes: int
    num_images: int
    is_exact: bool
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
        """Return it as people read it."""
        about = "" if self.is_exact else "about "
        room = "it fits" if self.fits else "it does NOT fit"
        return (
            f"{self.source}: {about}{self.num_classes:,} of {about}{self.num_classes_seen:,} classes would be kept, "
            f"with {about}{self.num_images:,} images\n"
            f"disk: about {self.needed_bytes / 1e9:,.3f} GB needed, {self.free_bytes / 1e9:,.3f} GB free: {room}\n"
            f"time: about {self.seconds / 3600:,.2f} hours ({self.seconds:,.0f} s) with {self.workers} workers: "
            f"{self.images_per_s:,.0f} images/s each, reading at {self.read_bytes_per_s / 1e6:,.0f} MB/s\n"
            f"measured on {self.num_sampled:,} images of this source, {self.num_sampled_rejects:,} of them rejects"
        )


class _Sample(NamedTuple):
    """What a worker measured on some images of one class."""

    num_images: int
    num_rejects: int
    stored_bytes: int
    store_seconds: float
    read_bytes: int
    read_seconds: float


@dataclass(frozen=True)
class _SampleTask:
    source: RawClass | Chunk
    image: ImageSettings


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
    if classes is None:
        seen = _look_into_stream(source, select, taxonomy)
    else:
        seen = _look_into(classes, select, taxonomy)
    if not seen.sampled:
        raise ValueError(f"{source.name}: no class would be kept; lower --rare-threshold, or name others in --classes")
    samples = [_Sample(*sample) for sample in run_tasks(_measure, [_SampleTask(each, image) for each in seen.sampled])]
    total = _Sample(*(sum(column) for column in zip(*samples, strict=True)))
    needed = round(seen.num_images * (total.stored_bytes / max(1, total.num_images) + OVERHEAD_BYTES))
    free = shutil.disk_usage(next(folder for folder in (out, *out.resolve().parents) if folder.is_dir())).free
    images_per_s = total.num_images / total.store_seconds
    read_rate = seen.read_rate or total.read_bytes / max(1e-9, total.read_seconds)
    read_seconds = seen.read_bytes / read_rate
    return Estimate(
        source=source.name,
        num_classes_seen=seen.num_classes_seen,
        num_classes=seen.num_classes,
        num_images=seen.num_images,
        is_exact=seen.is_exact,
        needed_bytes=needed,
        free_bytes=free,
        fits=needed <= free,
        # A worker reads or stores; all of them share the disk.
        seconds=max(read_seconds, (read_seconds + seen.num_images / images_per_s) / workers),
        workers=workers,
        images_per_s=images_per_s,
        read_bytes_per_s=read_rate,
        num_sampled=total.num_images,
        num_sampled_rejects=total.num_rejects,
    )


@dataclass(frozen=True)
class _Seen:
    """What the names say. read_rate: bytes per second of a stream; None where the sample will tell."""

    num_classes_seen: int
    num_classes: int
    num_images: int
    read_bytes: int
    is_exact: bool
    sampled: Sequence[RawClass | Chunk]
    read_rate: float | None = None


def _look_into(classes: Sequence[RawClass], select: SelectSettings, taxonomy: Taxonomy) -> _Seen:
    """Count the images of every class; past COUNT_SECONDS those of class tars by their bytes."""
    end = time.monotonic() + COUNT_SECONDS
    kept: list[RawClass] = []
    num_images = read_bytes = counted_images = counted_bytes = 0
    is_exact = True
    for each in classes:
        if isinstance(each, ClassTar) and time.monotonic() > end and counted_images:
            is_exact = False
            members: list[Member] = [_ANY] * round(each.num_bytes * counted_images / counted_bytes)
        else:
            members = _members(each)
            counted_images, counted_bytes = counted_images + len(members), counted_bytes + each.num_bytes
        keeps = select.keeps(select.verdict(each.wnid, taxonomy), members)
        if keeps:
            kept.append(each)
            num_images += len(members)
        if keeps or isinstance(each, ClassTar):  # of which every one is read
            read_bytes += each.num_bytes
    step = max(1, len(kept) // SAMPLED_CLASSES)
    return _Seen(len(classes), len(kept), num_images, read_bytes, is_exact, kept[::step][:SAMPLED_CLASSES])


_ANY = Member("", "", 0, 0)


def _members(each: RawClass) -> list[Member]:
    """Return the images of a class, of a class tar by its headers alone."""
    if not isinstance(each, ClassTar):
        with each.open() as contents:
            return contents.members
    found: list[Member] = []
    with each.source.open("rb") as file:
        file.seek(each.offset)
        try:
            with tarfile.open(fileobj=file, mode="r:", tarinfo=StrictTarInfo) as inner:
                found += (_ANY for member in walk(inner) if not problem_of(member) and is_image(member.name))
        except tarfile.TarError:
            return found  # damaged: the run will say so
    return found


def _look_into_stream(source: RawSource, select: SelectSettings, taxonomy: Taxonomy) -> _Seen:
    """Read the beginning of a stream; the rest is taken to be like it."""
    if source.num_bytes is None:
        raise ValueError("--dry-run reads the beginning of a source, and standard input has but one; give a file")
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    kept: set[str] = set()
    sampled: list[RawClass | Chunk] = []
    is_exact = True
    for unit in source.units():
        of_unit = _count(unit)
        counts.update(of_unit)
        wanted = {wnid for wnid in of_unit if _keeps(unit, wnid, counts, select, taxonomy)}
        kept |= wanted
        if wanted and len(sampled) < SAMPLED_CLASSES:
            sampled.append(unit)
        if time.monotonic() - begun > COUNT_SECONDS:
            is_exact = False
            break
    read = source.position() if not is_exact else source.num_bytes
    times = source.num_bytes / max(1, read)
    num_images = sum(counts[wnid] for wnid in kept)
    return _Seen(
        round(len(counts) * times),
        round(len(kept) * times),
        round(num_images * times),
        source.num_bytes,
        is_exact,
        sampled,
        read / (time.monotonic() - begun),
    )


def _count(unit: RawClass | Chunk) -> Counter[str]:
    if isinstance(unit, Chunk):
        return Counter(wnid for wnid, _ in unit.images)
    with unit.open() as contents:
        return Counter({unit.wnid: len(contents.members)})


def _keeps(unit: RawClass | Chunk, wnid: str, counts: Counter[str], select: SelectSettings, taxonomy: Taxonomy) -> bool:
    verdict = select.verdict(wnid, taxonomy)
    if isinstance(unit, Chunk):
        members = [member for owner, member in unit.images if owner == wnid]
        return select.keeps(verdict, [*members, *[_ANY] * (counts[wnid] - len(members))])
    return select.keeps(verdict, [_ANY] * counts[wnid])


def _measure(task: _SampleTask) -> _Sample:
    """Read a class and store some of its images, spread over it."""
    begun = time.perf_counter()
    num_read, raws = _read_some(task.source)
    read_seconds = time.perf_counter() - begun
    _store(raws[:1], task.image)  # the first image has libraries loaded, which is no measure of the others
    begun = time.perf_counter()
    stored_bytes, num_rejects = _store(raws, task.image)
    return _Sample(len(raws), num_rejects, stored_bytes, time.perf_counter() - begun, num_read, read_seconds)


def _store(raws: Sequence[bytes], image: ImageSettings) -> tuple[int, int]:
    """Return the bytes that would be stored, and how many images would be rejected."""
    stored_bytes = num_rejects = 0
    for raw in raws:
        try:
            stored_bytes += len(store_image(raw, image).data)
        except RejectedImageError:
            num_rejects += 1
    return stored_bytes, num_rejects


def _read_some(source: RawClass | Chunk) -> tuple[int, list[bytes]]:
    """Return the number of bytes that had to be read, and some images."""
    if isinstance(source, Chunk):
        raws = list(source.read(_spread(range(len(source.images)))))
        return sum(map(len, raws)), raws
    with source.open() as contents:
        raws = list(contents.read(_spread(contents.members)))
    return (source.num_bytes if isinstance(source, ClassTar) else sum(map(len, raws))), raws


def _spread(items: Sequence[Any]) -> list[Any]:
    return list(islice(items[:: max(1, len(items) // SAMPLED_IMAGES)], SAMPLED_IMAGES))
