"""The published numbers of ImageNet's releases and of their 21K-P, and how a data set differs from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ...shards.class_table import ClassRow
from ...shards.dataset import PreparedSet, ShardSet
from ...shards.label_spaces import label_space_wnids

MAX_NAMED = 20


@dataclass(frozen=True)
class Release:
    """A release of ImageNet, and its 21K-P: the classes that are left after pruning.

    num_seen, seen:  number of its classes; the name of their label space, None where none is published.
    num_raw:         number of its images, None where unknown.
    kept:            the label space of its 21K-P.
    per_level:       number of 21K-P's classes on each level of the semantic tree.
    num_train, num_val: the published sizes of 21K-P ("ImageNet-21K Pretraining for the Masses", and its repository).
    """

    num_seen: int
    seen: str | None
    num_raw: int | None
    kept: str
    per_level: tuple[int, ...]
    num_train: int
    num_val: int


RELEASES = {
    "fall11": Release(
        num_seen=21_841,
        seen="fall11",
        num_raw=14_197_122,
        kept="fall11p",
        per_level=(302, 1378, 2100, 2605, 2204, 1371, 716, 290, 146, 82, 26, 1),
        num_train=11_797_632,
        num_val=561_052,
    ),
    "winter21": Release(
        num_seen=19_167,
        seen=None,
        num_raw=None,
        kept="winter21p",
        per_level=(302, 1067, 1823, 2486, 2165, 1353, 710, 289, 146, 82, 26, 1),
        num_train=11_060_223,
        num_val=522_500,
    ),
}


def release_differences(dataset: PreparedSet | ShardSet, release: str) -> list[str]:
    """Compare the class table of a data set with a release; return each difference in words.

    At most MAX_NAMED differing classes are named for each difference. Image counts hardly ever equal the published
    ones exactly: rejects and other splits show as differences. Raises ValueError for a release that is not in RELEASES,
    and for a data set without a class table.
    """
    if release not in RELEASES:
        raise ValueError(f"release {release!r} is unknown; wanted {' or '.join(RELEASES)}")
    known, rows, pruned = RELEASES[release], dataset.classes, f"{release}'s 21K-P"
    kept = [row for row in rows if row.kept]
    differences = _differing_number("classes seen", len(rows), known.num_seen, release)
    if known.seen:
        differences += _differing_classes("seen", rows, rows, label_space_wnids(known.seen), release)
    if known.num_raw:
        differences += _differing_number("images seen", sum(row.num_raw for row in rows), known.num_raw, release)
    differences += _differing_number("classes kept", len(kept), sum(known.per_level), pruned)
    differences += _differing_classes("kept", kept, rows, label_space_wnids(known.kept), pruned)
    for what, number, published in (
        ("training images", sum(row.num_train for row in kept), known.num_train),
        ("validation images", sum(row.num_val for row in kept), known.num_val),
    ):
        differences += _differing_number(what, number, published, f"{pruned}, as published,")
    levels = Counter(row.level for row in kept if row.level is not None)
    per_level = [levels[level] for level in range(max(levels, default=-1) + 1)]
    if per_level != list(known.per_level):
        differences.append(f"classes per level: {_spaced(per_level)}; {pruned} has {_spaced(known.per_level)}")
    return differences


def _differing_number(what: str, number: int, expected: int, whose: str) -> list[str]:
    if number == expected:
        return []
    difference = f"{abs(number - expected):,} {'more' if number > expected else 'fewer'} here"
    return [f"{what}: {number:,}; {whose} has {expected:,} ({difference})"]


def _differing_classes(
    verb: str, classes: Sequence[ClassRow], rows: Sequence[ClassRow], expected: Iterable[str], whose: str
) -> list[str]:
    """Name the expected classes that are missing from `classes`, and the others that are there."""
    wnids_here, expected = {row.wnid for row in classes}, set(expected)
    num_raw = {row.wnid: row.num_raw for row in rows}
    missing, extra = sorted(expected - wnids_here), sorted(wnids_here - expected)
    return [
        f"{len(wnids):,} {what}: {_named(wnids, num_raw)}"
        for wnids, what in (
            (missing, f"classes of {whose} were not {verb}"),
            (extra, f"classes were {verb} that {whose} lacks"),
        )
        if wnids
    ]


def _named(wnids: Sequence[str], num_raw: Mapping[str, int]) -> str:
    named = [f"{wnid} ({num_raw[wnid]:,} images)" if wnid in num_raw else wnid for wnid in wnids[:MAX_NAMED]]
    return ", ".join(named) + (", ..." if len(wnids) > MAX_NAMED else "")


def _spaced(numbers: Iterable[int]) -> str:
    return " ".join(map(str, numbers))
