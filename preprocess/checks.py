"""What has to hold of a run's result, and what is said of it."""

from __future__ import annotations

import logging
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Sequence

from ..shards.manifest import STORED, read_table
from .classes.select import NoTrainingImageError, SelectSettings, SettingsError, read_names
from .classes.taxonomy import Taxonomy
from .images.alone import CRASH
from .outcome import Outcome, lost_strays, unreadable_class
from .sources.archive import DAMAGED, IMAGE_SUFFIXES, Reject, class_tar_of
from .sources.units import RawSource
from .tasks import EXCLUDED, ClassPart, Job

log = logging.getLogger(__name__)


def names_beginning(wnid: str, names: Sequence[str]) -> list[str]:
    """Return those of the sorted names that begin with `<wnid>_`: their keys could meet this class's."""
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
    """Raise ValueError where the data set would not be what was asked for; SettingsError where it never can be."""
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
    """Raise ValueError where class tars of a stream got keys that could be those of a class that came later."""
    names = [part.wnid for part in parts]
    for part in parts:
        longer = names_beginning(part.wnid, names)
        if longer and part.kept and not part.from_chunks:
            keys = read_table(job.class_part(part.wnid).with_suffix(".parquet"), STORED, ["key"])["key"].to_pylist()
            for other in longer:
                if any(key.startswith(f"{other}_") for key in keys):
                    raise ValueError(
                        f"{source.name}: the classes {part.wnid} and {other} could give images the same key, which "
                        "a stream tells too late; give the archive as a plain file, with --overwrite"
                    )


def _why_none(parts: Sequence[ClassPart], select: SelectSettings, source: RawSource) -> str:
    if select.classes is not None:
        return f"holds none of the {len(select.classes):,} classes of --classes; it holds {parts[0].wnid} and so on"
    largest = max(parts, key=lambda part: part.num_raw)
    if not largest.num_raw and not any(part.num_lost for part in parts):
        return why_no_images(len(parts), source)
    if largest.num_raw > select.rare_threshold:
        why = "below --drop-subtree" if select.drop_subtree else "in the folder of small classes"
        return f"every class of more than {select.rare_threshold} images is {why}; nothing is left"
    return (
        f"no class has more than {select.rare_threshold} images (the largest, {largest.wnid}, has "
        f"{largest.num_raw}); lower --rare-threshold"
    )


def why_no_images(num_classes: int, source: RawSource) -> str:
    """Say what a source holds in whose classes there are no images."""
    why = f"none of its {num_classes:,} classes holds a file that is called like an image ({', '.join(IMAGE_SUFFIXES)})"
    other = next((reject.name for each in source.classes() or () for reject in each.listed()[1]), None)
    if other is None:
        return f"{why}; where they hold tars, unpack the archive once, and give what is in it"
    if class_tar_of(other) is not None:
        return f"{why}, but tars such as {other}: this is a tar of tars of tars; unpack it once, and give what is in it"
    return f"{why}, but such as {other}"


def _check_damaged(
    outcome: Outcome, source: RawSource, is_wanted: Callable[[str], bool], max_reject_rate: float
) -> None:
    damaged = [
        reject for part in outcome.parts if is_wanted(part.wnid) for reject in part.rejects if reject.reason == DAMAGED
    ]
    damaged += [reject for reject in outcome.strays if (wnid := unreadable_class(reject)) and is_wanted(wnid)]
    if damaged and max_reject_rate < 1:
        raise ValueError(
            f"{source.name}: {len(damaged)} class tars are damaged or cannot be read, and nobody knows how many images "
            f"are lost with them (the first: {damaged[0].name}, {damaged[0].detail}); copy or download the archive "
            "again, or go on without them with --max-reject-rate 1"
        )


def _check_rejects(outcome: Outcome, select: SelectSettings, max_reject_rate: float) -> None:
    counted = [part for part in outcome.parts if part.kept or part.num_lost]
    lost = lost_strays(outcome.strays)
    rejects = [reject for part in counted for reject in part.rejects if reject.reason != EXCLUDED]  # asked for
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
        f"({of_reason:,}){fallen}. What was done is kept: the same command with a higher rate finishes it"
    )


def _name_fallen(outcome: Outcome, select: SelectSettings) -> str:
    """Say which classes fall under the threshold for what cannot be read of them."""
    classes = ", ".join(f"{part.wnid} ({part.num_raw} of {part.num_raw + part.num_lost})" for part in outcome.fallen)
    return (
        f"only because of images that cannot be read {len(outcome.fallen)} classes have no more than "
        f"{select.rare_threshold}: {classes}"
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
        first = (lost_strays(strays) or strays)[0]
        log.warning("%d members belong to no class (the first: %s; %s)", len(strays), first.name, first.detail)


def say_crashes(parts: Sequence[ClassPart]) -> None:
    """Say how many images end their decoder: another version of it may store them."""
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


def say_what_was_listed(select: SelectSettings, outcome: Outcome) -> None:
    """Say how much of the lists that were given found nothing, and what the data set lacks."""
    kept = outcome.kept
    say_missing_classes(select, [part.wnid for part in outcome.parts], len(kept))
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
    if outcome.fallen:
        log.warning("%s", _name_fallen(outcome, select))
    say_strays(outcome.strays)
