"""Pack labelled images into a small shard set for fine-tuning, by way of a prepared data set.

For multi-label images a class of the shard set is a label set, and a table lists the labels of each.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
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
from .sources.folders import Layout
from .sources.labelled import LabelledImage, classes_of_labels, common_folder
from .sources.layouts import LooseClass
from .sources.members import Member, Reject, from_os, readable, to_bytes
from .sources.open import Seekable
from .sources.units import RawSource

FORMAT, MADE_BY = "in21k-labelled", "in21k finetune"
LABEL_SETS = "label_sets.parquet"
_SHARDS, _PREPARED = "shards", "prepared"
_SCHEMA = pa.schema(
    [
        pa.field("wnid", pa.string(), nullable=False),
        pa.field("labels", pa.list_(pa.string()), nullable=False),
    ]
)


# Opens the progress line of a step, by the step's name.
Watch: TypeAlias = Callable[[str], AbstractContextManager[OnProgress]]


@dataclass(frozen=True)
class LabelledSet:
    """Packed labelled images.

    shards: their shard set.
    sets:   for multi-label images the labels of each class of the shard set, in class order; else None.
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
    """Tell whether `pack_labelled` finished this folder."""
    dataset_json = path / DATASET_JSON
    return dataset_json.is_file() and read_json(dataset_json).get("format") == FORMAT


def open_labelled(path: Path) -> LabelledSet:
    """Open a folder that `pack_labelled` finished; raises ValueError where its files do not match."""
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
    """Return what identifies these images, wherever they lie: their number, and a digest of names, sizes and labels."""
    digest = hashlib.sha256()
    for image in images:
        size = image.path.stat().st_size if image.path.is_file() else None
        facts = [image.name, size, image.labels, image.split]
        digest.update(to_bytes(json.dumps(facts, ensure_ascii=False)))
    return {"num_images": len(images), "digest": digest.hexdigest()[:16]}


@dataclass(frozen=True, kw_only=True)
class LabelledData:
    """Labelled images, and how they are stored.

    name:        of the source, for the shards' card.
    provenance:  what identifies the source, as JSON values.
    list_images: returns the images, each with its split; it may write files into the folder that it is given.
    list_labels: returns the same images without writing files; their paths need not exist.
    image:       how the images are stored.
    several:     whether images may have several labels; a class of the shards is then a label set.
    """

    name: str
    provenance: dict[str, Any]
    list_images: Callable[[Path], Sequence[LabelledImage]]
    list_labels: Callable[[], Sequence[LabelledImage]]
    image: ImageSettings
    several: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """The settings that determine the bytes of the shards."""
        settings = {**vars(self.image), "several_labels": self.several}
        return {"source": {"name": self.name, **self.provenance}, "settings": settings}

    def is_packed(self, out: Path) -> bool:
        """Tell whether `out` holds these images, finished."""
        if not is_labelled_set(out):
            return False
        dataset_json = read_json(out / DATASET_JSON)
        return not describe_differences({key: dataset_json.get(key) for key in self.facts}, self.facts)


class Outline(NamedTuple):
    """What packed images will be if none of them is rejected."""

    tree: SemanticTree
    """The tree of the shard set's classes."""
    sets: list[list[str]] | None
    """For multi-label images the labels of each class of the shard set, in class order; else None."""
    num_samples: dict[str, int]
    """The number of samples of each split."""

    @property
    def labels(self) -> list[str]:
        """Every label, in the order of their class names."""
        return _labels_of(self.sets)


def outline_labelled(data: LabelledData) -> Outline:
    """Return the outline of what `pack_labelled` would write, from the images' names alone."""
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
    """Store labelled images as a shard set in the folder `out`; a run that was killed is resumed.

    overwrite: replace an output of other images or settings; one of the same is kept.
    watch:     opens the progress line of a step, by the step's name.

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
                folder.discard()  # it holds nothing that another try could use
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
    """Store the images as a prepared data set below `work`; return it, and for multi-label images the label sets."""
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
        except NoTrainingImageError as error:  # its message names options of another command
            raise ValueError(
                f"{data.name}: the class {taxonomy.name(error.wnid)!r} has no training image: of its "
                f"{error.num_raw} {error.num_val} are for validation and {error.num_rejects} were rejected; add some, "
                "or leave the class out"
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
        raise ValueError(f"{data.name}: has no training images; wanted some beside the validation images")


def _name_classes(images: Sequence[LabelledImage], *, several: bool) -> tuple[dict[tuple[str, ...], str], Taxonomy]:
    """Return the class of each set of labels, and a taxonomy of the classes."""
    sets = sorted({image.labels for image in images})
    if several:
        class_of = {labels: f"set{number:0{len(str(len(sets)))}d}" for number, labels in enumerate(sets)}
    else:
        class_of = {(label,): name for label, name in classes_of_labels(label for (label,) in sets).items()}
    nouns = WordNet.packaged()
    own_names = {wnid: ", ".join(labels) or "none" for labels, wnid in class_of.items() if wnid not in nouns}
    return class_of, Taxonomy(nouns, dict.fromkeys(own_names), own_names)


def _as_source(
    name: str, images: Sequence[LabelledImage], *, several: bool
) -> tuple[LabelledSource, Taxonomy, dict[str, tuple[str, ...]]]:
    """Return the images as a source, the taxonomy of its classes, and the labels of each class."""
    class_of, taxonomy = _name_classes(images, several=several)
    root = common_folder(image.path for image in images)
    classes = {wnid: LabelledClass(wnid, root, in_tar=False) for wnid in class_of.values()}
    missing: list[Reject] = []
    for image in images:
        if not image.path.is_file():
            missing.append(Reject(None, readable(image.name), "missing", "the file does not exist"))
        else:
            classes[class_of[image.labels]].add_labelled(image)
    with_images = [classes[wnid] for wnid in sorted(classes) if len(classes[wnid])]
    labels_of = {wnid: labels for labels, wnid in class_of.items()}
    num_labels = len({label for labels in class_of for label in labels})
    return LabelledSource(name, with_images, missing, num_labels), taxonomy, labels_of


@dataclass
class LabelledClass(LooseClass):
    """A class of image files below the holder, each with its name and split."""

    _names: list[str] = field(default_factory=list[str], repr=False)  # of each image
    _for_val: bytearray = field(default_factory=bytearray, repr=False)

    def add_labelled(self, image: LabelledImage) -> None:
        """Add a file."""
        self.add(from_os(str(image.path.relative_to(self.holder))), 0, image.path.stat().st_size)
        self._names.append(image.name)
        self._for_val.append(image.split == "val")

    def _members(self) -> Iterator[Member]:
        images = zip(self.paths(), self._names, self._for_val, self._numbers[1::2], strict=True)
        for path, name, for_val, num_bytes in images:
            yield Member(name, path, 0, num_bytes, "val" if for_val else "train")


class LabelledSource(Seekable):
    """Labelled images as a source."""

    def __init__(self, name: str, classes: Sequence[LabelledClass], missing: list[Reject], num_labels: int) -> None:
        if not classes:
            raise ValueError(f"{name}: none of the listed images exists (the first: {missing[0].name})")
        RawSource.__init__(self)
        self.name = name
        self.num_bytes = sum(labelled.num_bytes for labelled in classes)
        self.rejects, self._layout = missing, Layout()
        self._classes = list(classes)
        self._described = f"images: {sum(map(len, classes)):,}, labels: {num_labels:,}"

    def is_processed(self) -> bool:
        """Return False."""
        return False

    def describe(self) -> str:
        """Say how many images and labels there are."""
        return self._described
