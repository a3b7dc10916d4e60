"""Which classes are kept, which of their images are for validation, and the key of each image."""

from __future__ import annotations

import re
import shutil
import stat
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from typing import Any, NamedTuple

from ...shards.sample import checksum, make_keys
from ..sources.class_names import class_id
from ..sources.folders import TRAIN_FOLDER, Layout, class_of_folder
from ..sources.labelled import NUM_VAL, num_held_back
from ..sources.layouts import as_member
from ..sources.members import Member, UselessError, is_image, readable
from .taxonomy import Taxonomy

_CHECKSUM = re.compile(r"[0-9a-f]{16}|[0-9a-f]{64}")


@dataclass(frozen=True)
class NameList:
    """The images that a file lists: by key, by checksum (16 hex digits), by path.

    paths: maps `<class>/<name>`, and the path as it stands in the file, to the latter.
    """

    keys: frozenset[str]
    checksums: frozenset[str]
    paths: Mapping[str, str]

    @property
    def fingerprint(self) -> str:
        """16 hex digits, equal for lists of the same images."""
        return checksum("\n".join([*sorted(self.keys), *sorted(self.checksums), *sorted(self.paths)]).encode())

    def line_of(self, wnid: str, key: str, member: Member) -> str | None:
        """Return the key or path by which the list names an image; None where it does not."""
        if key in self.keys or not self.paths:
            return key if key in self.keys else None
        by_path = self.paths.get(readable(member.path)) if member.path != member.name else None
        return by_path or self.paths.get(f"{wnid}/{readable(member.name)}")

    @property
    def num_lines(self) -> int:
        """Number of listed images, each counted once."""
        return len(self.keys) + len(self.checksums) + len(set(self.paths.values()))


def read_names(path: Path) -> NameList:
    """Read a list of images, one a line: a key, a path that ends in `<class>/<file name>`, or a checksum.

    A checksum is the sha256 (64 hex digits, or the first 16) of the original file or of the stored image. Raises
    ValueError for a line that is none of these, and for an empty list.
    """
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ValueError(f"{path}: not a regular file, and it is read more than once; give a file")
    return _read_names(path, status.st_mtime_ns, status.st_size)


@lru_cache(maxsize=4)
def _read_names(path: Path, *_version: int) -> NameList:
    keys: set[str] = set()
    checksums: set[str] = set()
    paths: dict[str, str] = {}
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as lines:
        for number, raw in enumerate(lines, 1):
            line = re.sub("/+", "/", readable(raw.strip().replace("\\", "/")))
            folder, _, name = line.rpartition("/")
            if not line or line.startswith("#"):
                continue
            if _CHECKSUM.fullmatch(line.lower()):
                checksums.add(line.lower()[:16])
            elif is_image(line) and (of_class := class_of_folder(folder).name):
                paths[line] = paths[f"{class_id(of_class)}/{as_member(line, 0, 0).name}"] = line
            elif name and (folder or "_" in name):
                stem = name.rpartition(".")[0] if is_image(name) else name
                keys.update(make_keys(class_id(folder.rpartition("/")[2]), [f"{stem}.jpg"]) if folder else [stem])
            else:
                raise ValueError(
                    f"{path}, line {number}: {line[:80]!r}; wanted a key (n01440764_26), a path that ends in "
                    "<class>/<file name>, or a sha256 checksum (64 or 16 hex digits)"
                )
    if not (keys or checksums or paths):
        raise ValueError(f"{path}: lists nothing; wanted a key, a path or a checksum a line")
    return NameList(frozenset(keys), frozenset(checksums), paths)


@dataclass(frozen=True, kw_only=True)
class SelectSettings:
    """Which classes are kept, and which of their images are for validation.

    rare_threshold:  a class is kept when it has more images than this, unreadable ones included.
    val_per_class:   number of validation images of a class: the first by byte order of their names; None: 50.
    val_share:       take no more than this share of a class's images for validation (see `num_held_back`).
    val_list:        a file that names the validation images instead (see `read_names`).
    classes:         keep exactly these, however many images they have.
    drop_subtree:    drop these synsets, and all below them in the taxonomy.
    inner_classes:   add the ancestors at which branches with classes meet, as classes without images.
    exclude:         a file that names images which are not stored.
    val_only:        allow classes with validation images alone, as label sets may be.
    own_classes:     keep all classes of a source that has a split, whatever their number of images.

    The split of a source that has one is kept. `val_only` and `own_classes` follow from the source, and are not part of
    what identifies an output.
    """

    rare_threshold: int = 500
    val_per_class: int | None = None
    val_share: float | None = None
    val_list: Path | None = None
    classes: frozenset[str] | None = None
    drop_subtree: tuple[str, ...] = ()
    inner_classes: bool = False
    exclude: Path | None = None
    val_only: bool = False
    own_classes: bool = True

    @property
    def num_val(self) -> int:
        """Number of validation images of a class."""
        return NUM_VAL if self.val_per_class is None else self.val_per_class

    def __post_init__(self) -> None:
        for name in ("rare_threshold", "val_per_class"):
            value = getattr(self, name)
            if value is not None and value < 0:
                raise ValueError(f"{name} is {value}; wanted 0 or more")
        if self.val_list and read_names(self.val_list).checksums:
            raise ValueError(
                f"{self.val_list}: lists checksums, which are not known when images are split; wanted keys or paths"
            )

    def carried(self, folder: Path) -> SelectSettings:
        """Return these settings for the tasks: files copied to `folder`, and no class names.

        Each task has the verdict on its class, and up to 20,000 names in every pickled task would cost gigabytes.
        """
        copies: dict[str, Path] = {}
        for name in ("val_list", "exclude"):
            if source := getattr(self, name):
                copies[name] = folder / f"{name}.txt"
                shutil.copyfile(source, copies[name])
        return replace(self, classes=None if self.classes is None else frozenset(), **copies)

    def described(self) -> dict[str, Any]:
        """Return what identifies these settings, as JSON values: files by their content."""
        return {
            "rare_threshold": self.rare_threshold,
            "val_per_class": self.num_val,
            "val_share": self.val_share,
            "val_list": self.val_list and read_names(self.val_list).fingerprint,
            "classes": None if self.classes is None else checksum("\n".join(sorted(self.classes)).encode()),
            "drop_subtree": sorted(self.drop_subtree),
            "inner_classes": self.inner_classes,
            "exclude": self.exclude and read_names(self.exclude).fingerprint,
        }

    def of_source(self, source_name: str, layout: Layout) -> SelectSettings:
        """Return these settings for a source of this layout.

        Raises SettingsError where the source has a split and `val_per_class` is set.
        """
        if layout.val is not None and self.val_per_class is not None:
            raise SettingsError(
                f"{source_name}: has a split of its own, {TRAIN_FOLDER}/ and {layout.val}/, and --val-per-class "
                f"{self.val_per_class} was given too; leave the option out, or give {TRAIN_FOLDER}/ alone"
            )
        return replace(self, own_classes=layout.processed)

    def verdict(self, wnid: str, taxonomy: Taxonomy) -> bool | None:
        """Tell whether a class is kept; None where its number of images decides."""
        if any(taxonomy.is_below(wnid, top) for top in self.drop_subtree):
            return False
        return None if self.classes is None else wnid in self.classes

    def keeps(self, verdict: bool | None, members: Sequence[Member], num_lost: int = 0) -> bool:
        """Tell whether a class of these images, and of `num_lost` unreadable ones, is kept."""
        if verdict is not None:
            return verdict
        splits = {member.split for member in members if self.own_classes} - {None}
        return bool(splits - {"small"}) if splits else len(members) + num_lost > self.rare_threshold

    def excluded(self) -> NameList:
        """Return the images that must not be stored."""
        return read_names(self.exclude) if self.exclude else NameList(frozenset(), frozenset(), {})


class SettingsError(UselessError):
    """Settings under which a source gives no data set; other settings start over."""


class NoTrainingImageError(SettingsError):
    """A class that would be kept without a training image.

    num_raw, num_val, num_rejects: number of its images, of those for validation, and of those that were not stored.
    """

    def __init__(self, wnid: str, num_raw: int, num_val: int, num_rejects: int, select: SelectSettings) -> None:
        super().__init__(wnid, num_raw, num_val, num_rejects, select)
        self.wnid, self.num_raw, self.num_val, self.num_rejects = wnid, num_raw, num_val, num_rejects
        self._select = select

    def __str__(self) -> str:
        if self.num_raw > self.num_val:
            way_out = "leave the class out: name the others in --classes, or raise --rare-threshold"
        elif self._select.val_list:
            way_out = "take some off --val-list, or the class off --classes"
        elif self._select.classes is not None:
            way_out = "lower --val-per-class, or take the class off --classes"
        else:
            way_out = "lower --val-per-class or raise --rare-threshold"
        return (
            f"{self.wnid} would have no training image: of its {self.num_raw} images {self.num_val} are for validation "
            f"and {self.num_rejects} were rejected; {way_out}"
        )


class Chosen(NamedTuple):
    """An image with its split and key."""

    split: str
    key: str
    member: Member

    @property
    def name(self) -> str:
        """The name of the member, as the tables have it."""
        return readable(self.member.name)


def split_members(
    wnid: str, members: Sequence[Member], select: SelectSettings, others: Sequence[str] = ()
) -> list[Chosen]:
    """Return the class's images, sorted by split and key. `members` are in byte order; others: see make_keys."""
    keys = make_keys(wnid, [readable(member.name) for member in members], others)
    return sorted(map(Chosen, _splits(wnid, members, keys, select), keys, members))


def check_training_images(wnid: str, chosen: Sequence[Chosen], num_rejects: int, select: SelectSettings) -> None:
    """Raise NoTrainingImageError where every image of a class is for validation."""
    if chosen and not select.val_only and all(image.split == "val" for image in chosen):
        raise NoTrainingImageError(wnid, len(chosen), len(chosen), num_rejects, select)


def _splits(wnid: str, members: Sequence[Member], keys: Sequence[str], select: SelectSettings) -> Iterable[str]:
    if select.val_list:
        lines = map(read_names(select.val_list).line_of, repeat(wnid), keys, members)
        return ("val" if line else "train" for line in lines)
    if any(member.split in ("train", "val") for member in members):
        return ("val" if member.split == "val" else "train" for member in members)
    num_val = select.num_val
    if select.val_share is not None:
        num_val = min(num_val, num_held_back(len(members), select.val_share))
    return ("val" if number < num_val else "train" for number in range(len(members)))
