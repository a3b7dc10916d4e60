"""What has to hold of a run's result, and what is said of it."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Sequence

from ..shards.manifest import read_table
from .archive import DAMAGED, Reject, is_image
from .select import NoTrainingImageError, SelectSettings, SettingsError, read_names
from .sources import RawSource
from .store import EXCLUDED, ClassPart, Job
from .taxonomy import Taxonomy

log = logging.getLogger(__name__)

LOST_REASONS = ("no class", "missing")


def names_beginning(wnid: str, names: Sequence[str]) -> list[str]:
    """Return those of the sorted names that begin with `<wnid>_`: their keys could meet this class's."""
    prefix = f"{wnid}_"
    return list(names[bisect_left(names, prefix) : bisect_left(names, prefix + "\x7f")])


def check_parts(
    parts: Sequence[ClassPart],
    strays: Sequence[Reject],
    job: Job,
    source: RawSource,
    select: SelectSettings,
    taxonomy: Taxonomy,
    max_reject_rate: float,
) -> None:
    """Raise ValueError where the data set would not be what was asked for; SettingsError where it never can be."""
    kept = [part for part in parts if part.kept]
    _check_damaged(
        [part for part in parts if select.verdict(part.wnid, taxonomy) is not False], source, max_reject_rate
    )
    if source.classes() is None:
        _check_keys(parts, job, source)
    if not kept:
        raise SettingsError(f"{source.name}: {_why_none(parts, select)}")
    for part in kept:
        if not part.num_stored["train"] and not select.val_only:
            raise NoTrainingImageError(part.wnid, part.num_raw, part.num_val, len(part.rejects), select)
    _check_rejects(kept, lost_members(strays), max_reject_rate)


def lost_members(strays: Sequence[Reject]) -> list[Reject]:
    """Return those members of no class that look as if they were of one: images, or what lies in a folder."""
    return [
        reject for reject in strays if reject.reason in LOST_REASONS and (is_image(reject.name) or "/" in reject.name)
    ]


def _check_keys(parts: Sequence[ClassPart], job: Job, source: RawSource) -> None:
    """Raise ValueError where class tars of a stream got keys that could be those of a class that came later."""
    names = [part.wnid for part in parts]
    for part in parts:
        longer = names_beginning(part.wnid, names)
        if longer and part.kept and not part.from_chunks:
            keys = read_table(job.class_part(part.wnid).with_suffix(".parquet"), ["key"])["key"].to_pylist()
            for other in longer:
                if any(key.startswith(f"{other}_") for key in keys):
                    raise ValueError(
                        f"{source.name}: the classes {part.wnid} and {other} could give images the same key, which "
                        "a stream tells too late; give the archive as a plain file, with --overwrite"
                    )


def _why_none(parts: Sequence[ClassPart], select: SelectSettings) -> str:
    if select.classes is not None:
        return f"holds none of the {len(select.classes):,} classes of --classes; it holds {parts[0].wnid} and so on"
    largest = max(parts, key=lambda part: part.num_raw)
    if largest.num_raw > select.rare_threshold:
        why = "below --drop-subtree" if select.drop_subtree else "in the folder of small classes"
        return f"every class of more than {select.rare_threshold} images is {why}; nothing is left"
    return (
        f"no class has more than {select.rare_threshold} images (the largest, {largest.wnid}, has "
        f"{largest.num_raw}); lower --rare-threshold"
    )


def _check_damaged(parts: Sequence[ClassPart], source: RawSource, max_reject_rate: float) -> None:
    damaged = [reject for part in parts for reject in part.rejects if reject.reason == DAMAGED]
    if damaged and max_reject_rate < 1:
        raise ValueError(
            f"{source.name}: {len(damaged)} class tars are damaged, and nobody knows how many images are lost with "
            f"them (the first: {damaged[0].name}, {damaged[0].detail}); copy or download the archive again, "
            "or go on without them with --max-reject-rate 1"
        )


def _check_rejects(kept: Sequence[ClassPart], lost: Sequence[Reject], max_reject_rate: float) -> None:
    rejects = [reject for part in kept for reject in part.rejects if reject.reason != EXCLUDED]  # those were asked for
    rejects += lost
    num_members = sum(part.num_members for part in kept) + len(lost)
    if len(rejects) <= max_reject_rate * num_members:
        return
    (wnid, in_class), (reason, of_reason) = (
        Counter(column).most_common(1)[0] for column in zip(*((r.wnid, r.reason) for r in rejects), strict=True)
    )
    raise ValueError(
        f"{len(rejects):,} of {num_members:,} members were rejected, more than --max-reject-rate {max_reject_rate} "
        f"allows; most in {wnid or f'no class, such as {lost[0].name}'} ({in_class:,}), most as {reason!r} "
        f"({of_reason:,}). What was done is kept: the same command with a higher rate finishes it"
    )


def say_missing_classes(select: SelectSettings, names: Iterable[str], num_kept: int) -> None:
    """Say how many of the classes that were asked for the source does not hold."""
    missing = (select.classes or frozenset()).difference(names)
    if missing:
        log.warning(
            "--classes: %d of %d classes are not in the source, such as %s; class indices number the %d that are kept, "
            "and are not those of weights trained on all",
            len(missing),
            len(select.classes or ()),
            min(missing),
            num_kept,
        )


def say_strays(strays: Sequence[Reject]) -> None:
    """Say how many members belong to no class, and what the first is that looks as if it were of one."""
    if strays:
        first = (lost_members(strays) or strays)[0]
        log.warning("%d members belong to no class (the first: %s; %s)", len(strays), first.name, first.detail)


def say_what_was_listed(select: SelectSettings, parts: Sequence[ClassPart], strays: Sequence[Reject]) -> None:
    """Say how much of the lists that were given found nothing, and how many members belong to no class."""
    kept = [part for part in parts if part.kept]
    say_missing_classes(select, [part.wnid for part in parts], len(kept))
    # Details tell the lines by which images were excluded; one checksum may be that of many.
    rejects = (reject for part in kept for reject in part.rejects if reject.reason == EXCLUDED)
    excluded = {reject.detail.partition(", the checksum")[0] for reject in rejects}
    for option, path, found in (
        ("--exclude", select.exclude, len(excluded)),
        ("--val-list", select.val_list, sum(part.num_val for part in kept)),
    ):
        if path and found < read_names(path).num_lines:
            log.warning(
                "%s: %d of %d lines name an image of the kept classes", option, found, read_names(path).num_lines
            )
    say_strays(strays)
