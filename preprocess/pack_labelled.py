"""Labelled images to a small shard set, by way of a prepared one: what fine-tuning feeds from.

Where images have several labels, a class of the shard set is a label set, and a table says which labels are in which.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import pyarrow as pa

from ..shards.dataset import PreparedSet, ShardSet
from ..shards.files.atomic import describe_differences, read_json
from ..shards.files.output import OutputFolder
from ..shards.files.parallel import OnProgress, ignore_progress
from ..shards.files.record import DATASET_JSON, VERSION, FileRecord, parse_dataset_json, record_files
from ..shards.manifest import TableWriter, read_table
from ..shards.pack import ShardSettings, list_shard_files, pack, planned_files
from ..shards.tree import SemanticTree
from .classes.select import NoTrainingImageError, SelectSettings
from .classes.taxonomy import Taxonomy, build_tree
from .classes.wordnet import WordNet
from .engines import open_engine
from .images.image import ImageSettings
from .run import prepare
from .sources.archive import Member, Reject, from_os, readable, to_bytes
from .sources.folders import Layout
from .sources.labelled import LabelledImage, classes_of_labels, common_folder
from .sources.layouts import LooseClass, RawClass
from .sources.open import Seekable

FORMAT, MADE_BY = "in21k-labelled", "in21k finetune"
LABEL_SETS = "label_sets.parquet"
_SHARDS, _PREPARED = "shards", "prepared"
_SCHEMA = pa.schema(
    [
        pa.field("wnid", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
    ]
)


# Who wants to know how far a step is, by its name.
Watch: TypeAlias = Callable[[str], AbstractContextManager[OnProgress]]


@dataclass(frozen=True)
class LabelledSet:
    """Packed labelled images.

    shards: their shard set.
    sets:   where images have several labels, those of each class of the shard set, in class order; else None.
    """

    shards: ShardSet
    sets: list[list[str]] | None

    @property
    def labels(self) -> list[str]:
        """Every label, in the order of their class names."""
        return _labels_of(self.sets)


def _labels_of(sets: Sequence[Sequence[str]] | None) -> list[str]:
    names = classes_of_labels(label for labels in sets or () for label in labels)
    return sorted(names, key=names.__getitem__)


def is_labelled_set(path: Path) -> bool:
    """Tell whether a folder is one that `pack_labelled` finished."""
    dataset_json = path / DATASET_JSON
    return dataset_json.is_file() and read_json(dataset_json).get("format") == FORMAT


def open_labelled(path: Path) -> LabelledSet:
    """Open a folder that `pack_labelled` finished; raises ValueError where its parts do not fit."""
    info = parse_dataset_json((path / DATASET_JSON).read_bytes(), str(path), kind=FORMAT, made_by=MADE_BY)
    shards, table = ShardSet(path / _SHARDS), path / LABEL_SETS
    if not table.exists() and LABEL_SETS not in info.get("files", ()):
        return LabelledSet(shards, None)
    if problem := FileRecord(path, info.get("files")).problem(LABEL_SETS):
        raise ValueError(f"{table}: {problem}; pack the images again")
    rows = read_table(table, _SCHEMA)
    labels = dict(zip(rows["wnid"].to_pylist(), rows["labels"].to_pylist(), strict=True))
    if missing := set(shards.tree.wnids) - labels.keys():
        raise ValueError(f"{table}: lacks the label set {min(missing)} of its shards; pack the images again")
    return LabelledSet(shards, [labels[wnid] for wnid in shards.tree.wnids])


def describe_images(images: Sequence[LabelledImage]) -> dict[str, Any]:
    """Return what tells these images from others, wherever they lie: how many, and a digest of names, sizes, labels."""
    digest = hashlib.sha256()
    for image in images:
        size = image.path.stat().st_size if image.path.is_file() else None
        facts = [image.name, size, image.labels, image.split]
        digest.update(to_bytes(json.dumps(facts, ensure_ascii=False)))
    return {"num_images": len(images), "digest": digest.hexdigest()[:16]}


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled images, and how they are stored.

    name:        of the source, as the shards' card says it.
    provenance:  what tells the source from others, as JSON values.
    list_images: returns the images, each with its split; it may put files of its own into the folder that it is given.
    list_labels: returns the same images without writing anything; their paths are not to be read.
    image:       how they are stored.
    several:     whether images have several labels, or may have: a class of their shards is then a label set.
    """

    name: str
    provenance: dict[str, Any]
    list_images: Callable[[Path], Sequence[LabelledImage]]
    list_labels: Callable[[], Sequence[LabelledImage]]
    image: ImageSettings
    several: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What shapes the bytes of their shards."""
        settings = {**vars(self.image), "several_labels": self.several}
        return {"source": {"name": self.name, **self.provenance}, "settings": settings}

    def is_packed(self, out: Path) -> bool:
        """Tell whether `out` holds them, finished."""
        if not is_labelled_set(out):
            return False
        made = read_json(out / DATASET_JSON)
        return not describe_differences({key: made.get(key) for key in self.facts}, self.facts)


class Outline(NamedTuple):
    """What labelled images will be once they are packed, if none of them is rejected."""

    tree: SemanticTree
    """Of the classes of the shard set."""
    sets: list[list[str]] | None
    """Where images have several labels, those of each class of the shard set, in class order; else None."""
    num_samples: dict[str, int]
    """By split."""

    @property
    def labels(self) -> list[str]:
        """Every label, in the order of their class names."""
        return _labels_of(self.sets)


def outline_labelled(data: LabelledData) -> Outline:
    """Return what `pack_labelled` would make of labelled images, from their names alone; nothing is written."""
    images = data.list_labels()
    _check_train(data, images)
    class_of, taxonomy = _name_classes(images, several=data.several)
    labels_of = {wnid: list(labels) for labels, wnid in class_of.items()}
    counts = Counter(image.split for image in images)
    return Outline(
        tree=build_tree(sorted(labels_of), taxonomy),
        sets=[labels for _, labels in sorted(labels_of.items())] if data.several else None,
        num_samples={split: counts[split] for split in ("train", "val") if counts[split]},
    )


def pack_labelled(
    data: LabelledData,
    out: Path,
    *,
    max_reject_rate: float = 0.01,
    workers: int = 1,
    overwrite: bool = False,
    watch: Watch = lambda _: nullcontext(ignore_progress),
) -> LabelledSet:
    """Store labelled images as a shard set in the folder `out`; a run that was killed goes on where it was.

    overwrite: an output of other images or settings is made anew; one of the same is kept.
    watch:     by the name of a step, who wants to know how far it is.

    Raises ValueError as `prepare`, for images without a training split, and for an output of other images or settings.
    """
    folder = _output(data, out, overwrite=overwrite)
    if folder.finished:
        return open_labelled(out)
    with folder:
        if folder.finished:  # by another process meanwhile
            return open_labelled(out)
        try:
            prepared, sets = _prepare(data, folder.work, max_reject_rate, workers, watch)
        except ValueError:
            if not (folder.work / _PREPARED).exists():
                folder.discard()  # nothing of it is of use to another try
            raise
        folder.own(f"{_SHARDS}/{name}" for name in planned_files(prepared, ShardSettings()))
        with watch("shard") as on_progress:
            pack(prepared, out / _SHARDS, ShardSettings(), workers=workers, on_progress=on_progress)
        if sets is not None:
            with TableWriter(out / LABEL_SETS, _SCHEMA) as table:
                rows = [{"wnid": wnid, "labels": list(labels)} for wnid, labels in sorted(sets.items())]
                table.write(pa.Table.from_pylist(rows, schema=_SCHEMA))
        files = record_files(out, [LABEL_SETS] if sets is not None else [])
        folder.finish({"format": FORMAT, "version": VERSION, "files": files})
    return open_labelled(out)


def _prepare(
    data: LabelledData, work: Path, max_reject_rate: float, workers: int, watch: Watch
) -> tuple[PreparedSet, dict[str, tuple[str, ...]] | None]:
    """Store the images as a prepared data set below `work`; returns it, and where they have several the label sets."""
    images = data.list_images(work)
    _check_train(data, images)
    source, taxonomy, sets = _as_source(data.name, images, several=data.several)
    with open_engine("local", workers=workers) as run_tasks, watch("store") as on_progress:
        try:
            prepared = prepare(
                source,
                work / _PREPARED,
                select=SelectSettings(rare_threshold=0, val_per_class=0, val_only=data.several),
                image=data.image,
                taxonomy=taxonomy,
                run_tasks=run_tasks,
                max_reject_rate=max_reject_rate,
                on_progress=on_progress,
            )
        except NoTrainingImageError as error:  # whose way out names options of another command
            raise ValueError(
                f"{data.name}: the class {taxonomy.name(error.wnid)!r} has no image to train on: of its "
                f"{error.num_raw} {error.num_val} are for validation and {error.num_rejects} were rejected; give it "
                "others, or leave the class out"
            ) from error
    return prepared, sets if data.several else None


def _list_files(path: Path) -> list[str]:
    """Return the files in the subfolders of a finished output."""
    shards = ("dataset.json", *ShardSet.contents, *list_shard_files(path / _SHARDS))
    return [f"{_SHARDS}/{name}" for name in shards]


def _output(data: LabelledData, out: Path, *, overwrite: bool) -> OutputFolder:
    options: dict[str, Any] = {
        "provenance": data.facts,
        "contents": (_SHARDS, LABEL_SETS),
        "list_files": _list_files,
    }
    try:
        return OutputFolder(out, **options)
    except ValueError:
        if not overwrite:
            raise
        return OutputFolder(out, **options, overwrite=True)


def _check_train(data: LabelledData, images: Sequence[LabelledImage]) -> None:
    if not any(image.split == "train" for image in images):
        raise ValueError(f"{data.name}: holds no image to train on; wanted some beside those for validation")


def _name_classes(images: Sequence[LabelledImage], *, several: bool) -> tuple[dict[tuple[str, ...], str], Taxonomy]:
    """Return the class of each set of labels, and a taxonomy that knows the classes."""
    sets = sorted({image.labels for image in images})
    if several:
        class_of = {labels: f"set{number:0{len(str(len(sets)))}d}" for number, labels in enumerate(sets)}
    else:
        class_of = {(label,): name for label, name in classes_of_labels(label for (label,) in sets).items()}
    nouns = WordNet.packaged()
    strangers = {wnid: ", ".join(labels) or "none" for labels, wnid in class_of.items() if wnid not in nouns}
    return class_of, Taxonomy(nouns, dict.fromkeys(strangers), strangers)


def _as_source(
    name: str, images: Sequence[LabelledImage], *, several: bool
) -> tuple[LabelledSource, Taxonomy, dict[str, tuple[str, ...]]]:
    """Return the images as a source of classes, what these are called, and the labels of each."""
    class_of, taxonomy = _name_classes(images, several=several)
    root = common_folder(image.path for image in images)
    classes = {wnid: LabelledClass(wnid, root, in_tar=False) for wnid in class_of.values()}
    missing: list[Reject] = []
    for image in images:
        if not image.path.is_file():
            missing.append(Reject(None, readable(image.name), "missing", "there is no such file"))
        else:
            classes[class_of[image.labels]].add_labelled(image)
    found = [classes[wnid] for wnid in sorted(classes) if len(classes[wnid])]
    labels_of = {wnid: labels for labels, wnid in class_of.items()}
    num_labels = len({label for labels in class_of for label in labels})
    return LabelledSource(name, found, missing, num_labels), taxonomy, labels_of


@dataclass
class LabelledClass(LooseClass):
    """A class of image files below the holder, each with its name and the split that its list or folder puts it in."""

    _names: list[str] = field(default_factory=list[str], repr=False)  # of each image
    _for_val: bytearray = field(default_factory=bytearray, repr=False)

    def add_labelled(self, image: LabelledImage) -> None:
        """Take in a file."""
        self.add(from_os(str(image.path.relative_to(self.holder))), 0, image.path.stat().st_size)
        self._names.append(image.name)
        self._for_val.append(image.split == "val")

    def _members(self) -> Iterator[Member]:
        images = zip(self.paths(), self._names, self._for_val, self._numbers[1::2], strict=True)
        for path, name, for_val, num_bytes in images:
            yield Member(name, path, 0, num_bytes, "val" if for_val else "train")


class LabelledSource(Seekable):
    """Labelled images as a source that is known before an image is read."""

    def __init__(self, name: str, classes: Sequence[LabelledClass], missing: list[Reject], num_labels: int) -> None:
        if not classes:
            raise ValueError(f"{name}: none of the images listed is there (the first: {missing[0].name})")
        self.name = name
        self.num_bytes: int | None = sum(each.num_bytes for each in classes)
        self._found: list[RawClass] = list(classes)
        self._missing = missing
        self._described = f"images: {sum(map(len, classes)):,}, labels: {num_labels:,}"

    @property
    def rejects(self) -> list[Reject]:
        """Files that are listed and are not there."""
        return self._missing

    @property
    def names(self) -> Mapping[str, str]:
        """Return none: the taxonomy has them."""
        return {}

    @property
    def ignored(self) -> Counter[str]:
        """Return none: whoever listed the images left them out."""
        return Counter()

    @property
    def empty_folders(self) -> list[str]:
        """Return none, as above."""
        return []

    @property
    def layout(self) -> Layout:
        """Return none: every image has its class and split."""
        return Layout()

    def is_processed(self) -> bool:
        """Tell that its images do not have their size yet."""
        return False

    def classes(self) -> list[RawClass]:
        """Return every class by name."""
        return self._found

    def describe(self) -> str:
        """Say how many images there are, and how many labels they have."""
        return self._described
