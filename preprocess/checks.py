"""Checks of a run's result, and warnings about it."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ..shards.manifest import read_table
from .classes.select import NoTrainingImageError, SelectSettings, SettingsError, read_names
from .classes.taxonomy import Taxonomy
from .images.alone import CRASH
from .outcome import Outcome, lost_strays, unreadable_class
from .sources.members import DAMAGED, IMAGE_SUFFIXES, Reject, class_tar_of
from .sources.units import RawSource
from .tasks import CLASS_ROWS, EXCLUDED, ClassPart, Job

log = logging.getLogger(__name__)


def names_beginning(wnid: str, names: Sequence[str]) -> list[str]:
    """Return the sorted names that begin with `<wnid>_`: keys of these classes could equal this class's."""
    prefix = f"{wnid}_"
    return list(names[bisect_left(names, prefix) : bisect_left(names, prefix + "\x7f")])


def check_outcome(
    outcome: Outcome,
    job: Job,
    source: RawSource,
    select: SelectSettings,
    taxonomy: Taxonomy,
    max_reject_rate: float,
) -> None:
    """Raise ValueError for too many rejects and damaged class tars; SettingsError where no class or image is left."""
    _check_damaged(outcome, source, lambda wnid: select.verdict(wnid, taxonomy) is not False, max_reject_rate)
    if source.classes() is None:
        _check_keys(outcome.parts, job, source)
    if not outcome.kept:
        raise SettingsError(f"{source.name}: {_why_none(outcome.parts, select, source)}")
    for part in outcome.kept:
        if not part.num_stored["train"] and not select.val_only:
            raise NoTrainingImageError(part.wnid, part.num_raw, part.num_val, len(part.rejects), select)
    _check_rejects(outcome, select, max_reject_rate)


def _check_keys(parts: Sequence[ClassPart], job: Job, source: RawSource) -> None:
    """Raise ValueError where a class tar of a stream got keys that could equal keys of a class that came later."""
    names = [part.wnid for part in parts]
    for part in parts:
        longer = names_beginning(part.wnid, names)
        if longer and part.kept and not part.from_chunks:
            keys = read_table(job.class_part(part.wnid).with_suffix(".parquet"), CLASS_ROWS, ["key"])["key"].to_pylist()
            for other in longer:
                if any(key.startswith(f"{other}_") for key in keys):
                    raise ValueError(
                        f"{source.name}: the classes {part.wnid} and {other} could give images the same key, which "
                        "is noticed too late in a stream; give the archive as a plain file, with --overwrite"
                    )


def _why_none(parts: Sequence[ClassPart], select: SelectSettings, source: RawSource) -> str:
    if select.classes is not None:
        return f"holds none of the {len(select.classes):,} classes of --classes; it holds {parts[0].wnid} and so on"
    largest = max(parts, key=lambda part: part.num_raw)
    if not largest.num_raw and not any(part.num_lost for part in parts):
        return why_no_images(len(parts), source)
    if largest.num_raw > select.rare_threshold:
        why = "below --drop-subtree" if select.drop_subtree else "in the folder of small classes"
        return f"every class of more than {select.rare_threshold} images is {why}, so no class is left"
    return (
        f"no class has more than {select.rare_threshold} images (the largest, {largest.wnid}, has "
        f"{largest.num_raw}); lower --rare-threshold"
    )


def why_no_images(num_classes: int, source: RawSource) -> str:
    """Describe what a source whose classes hold no images holds instead."""
    why = f"none of its {num_classes:,} classes holds a file with an image suffix ({', '.join(IMAGE_SUFFIXES)})"
    rejects = (reject.name for raw_class in source.classes() or () for reject in raw_class.listed()[1])
    other = next(rejects, None)
    if other is None:
        return f"{why}; if they hold tars, unpack the archive once, and give its content"
    if class_tar_of(other) is not None:
        return f"{why}, but tars such as {other}: this is a tar of tars of tars; unpack it once, and give its content"
    return f"{why}, but files such as {other}"


def _check_damaged(
    outcome: Outcome, source: RawSource, is_wanted: Callable[[str], bool], max_reject_rate: float
) -> None:
    damaged = [
        reject for part in outcome.parts if is_wanted(part.wnid) for reject in part.rejects if reject.reason == DAMAGED
    ]
    damaged += [reject for reject in outcome.strays if (wnid := unreadable_class(reject)) and is_wanted(wnid)]
    if damaged and max_reject_rate < 1:
        raise ValueError(
            f"{source.name}: {len(damaged)} class tars are damaged or cannot be read, and the number of lost images is "
            f"unknown (the first: {damaged[0].name}, {damaged[0].detail}); copy or download the archive again, or skip "
            "them with --max-reject-rate 1"
        )


def _check_rejects(outcome: Outcome, select: SelectSettings, max_reject_rate: float) -> None:
    counted = [part for part in outcome.parts if part.kept or part.num_lost]
    lost = lost_strays(outcome.strays)
    rejects = [reject for part in counted for reject in part.rejects if reject.reason != EXCLUDED]
    rejects += lost
    num_members = sum(part.num_members for part in counted) + len(lost)
    if len(rejects) <= max_reject_rate * num_members:
        return
    (wnid, in_class), (reason, of_reason) = (
        Counter(column).most_common(1)[0] for column in zip(*((r.wnid, r.reason) for r in rejects), strict=True)
    )
    fallen = f"; {_name_fallen(outcome, select)}" if outcome.fallen else ""
    raise ValueError(
        f"{len(rejects):,} of {num_members:,} members were rejected, more than --max-reject-rate {max_reject_rate} "
        f"allows; most in {wnid or f'no class, such as {lost[0].name}'} ({in_class:,}), most as {reason!r} "
        f"({of_reason:,}){fallen}. What was done is kept: run the same command with a higher rate to finish it"
    )


def _name_fallen(outcome: Outcome, select: SelectSettings) -> str:
    """Name the classes that are dropped only because of unreadable images."""
    classes = ", ".join(f"{part.wnid} ({part.num_raw} of {part.num_raw + part.num_lost})" for part in outcome.fallen)
    return (
        f"{len(outcome.fallen)} classes have no more than {select.rare_threshold} images only because some cannot be "
        f"read: {classes}"
    )


def log_missing_classes(select: SelectSettings, names: Iterable[str], num_kept: int) -> None:
    """Log how many classes of --classes the source does not hold."""
    missing = (select.classes or frozenset()).difference(names)
    if missing:
        log.warning(
            "--classes: %d of %d classes are not in the source, such as %s; class indices count the %d that are kept, "
            "and differ from those of weights trained on all",
            len(missing),
            len(select.classes or ()),
            min(missing),
            num_kept,
        )


def log_strays(strays: Sequence[Reject]) -> None:
    """Log how many members belong to no class, and the first that was probably meant for one."""
    if strays:
        first = (lost_strays(strays) or strays)[0]
        log.warning("%d members belong to no class (the first: %s; %s)", len(strays), first.name, first.detail)


def log_crashes(parts: Sequence[ClassPart]) -> None:
    """Log how many images crash their decoder: another version of it may store them."""
    crashes = [reject for part in parts for reject in part.rejects if reject.reason == CRASH]
    if crashes:
        log.warning(
            "%d images crash their decoder (reason %s in rejects.parquet; the first: %s/%s): the bytes of this set "
            "depend on the decoders' versions",
            len(crashes),
            CRASH,
            crashes[0].wnid,
            crashes[0].name,
        )


def log_unmatched_lists(select: SelectSettings, outcome: Outcome) -> None:
    """Log what --classes, --exclude and --val-list name that the source lacks, and the members that were left out."""
    kept = outcome.kept
    log_missing_classes(select, [part.wnid for part in outcome.parts], len(kept))
    # An exclusion's detail holds its line in the list; one checksum may exclude several images.
    rejects = (reject for part in kept for reject in part.rejects if reject.reason == EXCLUDED)
    excluded = {reject.detail.partition(", the checksum")[0] for reject in rejects}
    for option, path, num_matches in (
        ("--exclude", select.exclude, len(excluded)),
        ("--val-list", select.val_list, sum(part.num_val for part in kept)),
    ):
        if path and num_matches < (num_lines := read_names(path).num_lines):
            log.warning("%s: %d of %d lines name an image of the kept classes", option, num_matches, num_lines)
    if outcome.fallen:
        log.warning("%s", _name_fallen(outcome, select))
    log_strays(outcome.strays)
