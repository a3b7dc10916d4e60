"""The task of a class that is read whole: choose its images, store them, and write its rows of the manifest."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any, NamedTuple

import pyarrow as pa

from ..shards.dataset import SPLITS
from ..shards.files.atomic import write_json
from ..shards.files.parallel import working_on
from ..shards.manifest import TableWriter
from ..shards.members import IMAGE
from ..shards.sample import checksum
from ..shards.writer import TarWriter
from .classes.select import Chosen, NameList, check_training_images, split_members
from .images.image import EncodedImage, RejectedImageError
from .sources.layouts import RawClass
from .sources.members import Contents, Member, Reject, is_lost_image
from .tasks import CLASS_ROWS, EXCLUDED, ClassPart, Job, batches


class StoredImage(NamedTuple):
    """A chosen image and the JPEG of it that is stored."""

    chosen: Chosen
    encoded: EncodedImage


class ClassCounts(NamedTuple):
    """What the source holds of a class; see ClassPart."""

    wnid: str
    num_members: int
    num_raw: int
    num_val: int
    num_lost: int
    kept: bool
    num_bytes: int
    ignored: dict[str, int]
    from_chunks: bool


@dataclass(frozen=True)
class ClassTask:
    """Store a whole class.

    verdict: see `SelectSettings.verdict`.
    others:  the classes whose names begin with this one's and `_`; see `make_keys`.
    guarded: a worker died at this task; each image is decoded in a process of its own.
    """

    job: Job
    source: RawClass
    verdict: bool | None
    others: list[str]
    guarded: bool = False

    def run(self) -> ClassPart:
        """Read, choose and store the class's images."""
        wnid = self.source.wnid
        working_on(wnid)
        with self.source.open() as contents:
            rejects = list(contents.rejects)
            chosen, counts = choose(self.job, wnid, contents.members, rejects, self.verdict, self.others)
            counts = counts._replace(num_bytes=self.source.num_bytes, ignored=dict(contents.ignored), from_chunks=False)
            return write_class(self.job, counts, self._encode_images(chosen, contents, rejects), rejects)

    def _encode_images(
        self, chosen: Sequence[Chosen], contents: Contents, rejects: list[Reject]
    ) -> Iterator[StoredImage]:
        wnid, excluded = self.source.wnid, self.job.select.excluded()
        images = list(without_excluded(wnid, chosen, excluded, rejects))
        for image, raw in zip(images, contents.read([image.member for image in images]), strict=True):
            name, num_bytes = f"{wnid}/{image.name}", image.member.num_bytes
            try:
                yield StoredImage(image, self.job.encode(name, raw, num_bytes, excluded, guarded=self.guarded))
            except RejectedImageError as error:
                rejects.append(Reject(wnid, image.name, error.reason, error.detail))


def choose(
    job: Job,
    wnid: str,
    members: Sequence[Member],
    rejects: Sequence[Reject],
    verdict: bool | None,
    others: Sequence[str],
) -> tuple[list[Chosen], ClassCounts]:
    """Return a class's images with their splits and keys, none where it is dropped, and what the source holds of it.

    Raises NoTrainingImageError for a class that is kept and whose images are all for validation.
    """
    kept = job.select.keeps(verdict, members)
    chosen = split_members(wnid, members, job.select, others) if kept else []
    check_training_images(wnid, chosen, len(rejects), job.select)
    num_val = sum(image.split == "val" for image in chosen)
    num_lost = sum(map(is_lost_image, rejects))
    if kept or not job.select.keeps(verdict, members, num_lost):
        num_lost = 0
    return chosen, ClassCounts(
        wnid, len(members) + len(rejects), len(members), num_val, num_lost, kept, 0, {}, from_chunks=True
    )


def without_excluded(
    wnid: str, chosen: Iterable[Chosen], excluded: NameList, rejects: list[Reject]
) -> Iterator[Chosen]:
    """Yield the images that `excluded` does not list by key or path; the others are added to `rejects`."""
    for image in chosen:
        if listed := excluded.line_of(wnid, image.key, image.member):
            rejects.append(Reject(wnid, image.name, EXCLUDED, f"listed as {listed}"))
        else:
            yield image


def write_class(job: Job, counts: ClassCounts, images: Iterable[StoredImage], rejects: list[Reject]) -> ClassPart:
    """Write the tars, the rows and the record of a class; `images` come by split and add to `rejects` on the way."""
    num_stored: Counter[str] = Counter()
    stored_bytes = num_with_warnings = 0
    part = job.class_part(counts.wnid)
    if counts.kept:
        with TableWriter(part.with_suffix(".parquet"), CLASS_ROWS) as table:
            for rows in batches(_write_tars(job, counts.wnid, images)):
                table.write(pa.Table.from_pylist(rows, schema=CLASS_ROWS))
                num_stored.update(row["split"] for row in rows)
                stored_bytes += sum(row["num_bytes"] for row in rows)
                num_with_warnings += sum(_has_warning(row["changes"]) for row in rows)
    record = ClassPart(
        **counts._asdict(),
        num_stored={split: num_stored[split] for split in SPLITS},
        num_with_warnings=num_with_warnings,
        stored_bytes=stored_bytes,
        rejects=[reject for reject in rejects if counts.kept or counts.num_lost or reject.wnid is None],
    )
    write_json(part.with_suffix(".json"), asdict(record))
    return record


def _has_warning(changes: Iterable[str]) -> bool:
    return any(change.startswith("warning: ") for change in changes)


def _write_tars(job: Job, wnid: str, images: Iterable[StoredImage]) -> Iterator[dict[str, Any]]:
    """Write images to the tar of their split; yields their rows of the manifest."""
    for split, group in groupby(images, key=lambda image: image.chosen.split):
        path = f"{split}/{wnid}.tar"
        with TarWriter(job.out / path) as writer:
            for chosen, encoded in group:
                yield {
                    "key": chosen.key,
                    "wnid": wnid,
                    "split": split,
                    "archive": path,
                    "offset": writer.add(f"{chosen.key}.{IMAGE}", encoded.data),
                    "num_bytes": len(encoded.data),
                    "source_name": chosen.name,
                    "checksum": checksum(encoded.data),
                    **{name: value for name, value in encoded._asdict().items() if name != "data"},
                }
