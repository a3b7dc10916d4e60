"""The sections of a prepared data set's report, each from numbers to HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from ....shards.class_table import kept_classes
from ....shards.dataset import PreparedSet
from .. import charts
from ..histogram import Histogram
from ..markup import (
    bars,
    brief,
    byte_size,
    embedded_json,
    figure,
    number,
    percent,
    plural,
    printable,
    short,
    table,
    text,
)
from .numbers import ImageNumbers, RejectReason, reject_reasons
from .sheet import SheetImage, SheetRow

MAX_LISTED = 20  # kinds of changes and reasons; what comes after is summed up
NUM_BRANCHES = 12


class Facts:
    """What several sections say of a prepared data set; raises ValueError where its tables contradict each other."""

    def __init__(self, prepared: PreparedSet, images: ImageNumbers) -> None:
        self.prepared = prepared
        self.images = images
        classes = sorted(prepared.classes, key=lambda row: (-row.num_raw, row.wnid))
        self.kept = [row for row in classes if row.kept and not row.inner]
        self.dropped = [row for row in classes if not row.kept or (row.inner and row.num_raw)]
        self.by_index = kept_classes(classes)
        if tuple(row.wnid for row in self.by_index) != prepared.tree.wnids:
            raise ValueError(f"{prepared.path}: classes.parquet and tree.json differ; run `in21k verify`")

    @cached_property
    def num_raw(self) -> int:
        """Images of the source."""
        return sum(row.num_raw for row in (*self.kept, *self.dropped))

    @cached_property
    def num_raw_kept(self) -> int:
        """Images of the source in classes that were kept."""
        return sum(row.num_raw for row in self.kept)

    @property
    def num_lost(self) -> int:
        """Images of kept classes that were not stored."""
        return max(0, self.num_raw_kept - self.images.num_images)

    @cached_property
    def reasons(self) -> list[RejectReason]:
        """The rejects by reason."""
        return reject_reasons(self.prepared)

    @property
    def num_rejects(self) -> int:
        """Members that were rejected, those that claim to be no image included."""
        return sum(reason.count for reason in self.reasons)

    @cached_property
    def num_stored(self) -> list[int]:
        """Per class index its stored images."""
        return [row.num_train + row.num_val for row in self.by_index]

    @cached_property
    def num_below(self) -> list[int]:
        """Per class index the stored images of it and of the classes below it."""
        return self.prepared.tree.branch_sums(self.num_stored)

    def provenance(self, part: str) -> dict[str, Any]:
        """Return `source` or `settings` of dataset.json."""
        content = self.prepared.info.get(part)
        return content if isinstance(content, dict) else {}

    @property
    def source_bytes(self) -> int | None:
        """The size of the source's file; None where it was a stream."""
        num_bytes = self.provenance("source").get("num_bytes")
        return num_bytes if isinstance(num_bytes, int) else None

    @property
    def source_name(self) -> str:
        """What the source was called."""
        return printable(self.provenance("source").get("name", "a source without a name"))

    @property
    def threshold(self) -> int | None:
        """How many images a class had to have more of, where that is how classes were chosen."""
        threshold = self.provenance("settings").get("rare_threshold")
        if not isinstance(threshold, int):
            return None
        fits = all(row.num_raw > threshold for row in self.kept) and all(
            row.num_raw <= threshold for row in self.dropped
        )
        return threshold if fits else None

    @property
    def stored_side(self) -> int | None:
        """The size that images were squished to; None where they were not."""
        settings = self.provenance("settings")
        size = settings.get("size")
        return size if settings.get("resize") == "squish" and isinstance(size, int) else None


def _and_inner(facts: Facts) -> str:
    num_inner = facts.prepared.tree.num_inner
    return f", and {plural(num_inner, 'inner class', 'inner classes')} without images" if num_inner else ""


def overview(facts: Facts) -> str:
    """Counts before and after."""
    num_kept, num_seen = len(facts.kept), len(facts.kept) + len(facts.dropped)
    stored = facts.images.num_images
    size = f", the source {byte_size(facts.source_bytes)}" if facts.source_bytes is not None else ""
    tiles = [
        ("classes kept", number(num_kept), f"of {number(num_seen)} seen{_and_inner(facts)}"),
        ("images stored", number(stored), f"of {number(facts.num_raw)} in the source"),
        (
            "bytes of images",
            byte_size(facts.images.num_bytes),
            f"{byte_size(facts.images.num_bytes / stored)} each{size}",
        ),
        (
            "rejects",
            number(facts.num_rejects),
            f"{percent(facts.num_lost, facts.num_raw_kept)} of the kept classes' images",
        ),
    ]
    listed = "".join(
        f"<li><span>{text(what)}</span><strong>{text(value)}</strong><small>{text(note)}</small></li>"
        for what, value, note in tiles
    )
    return f'<ul class="tiles">{listed}</ul>{_way_of_the_images(facts)}'


def _way_of_the_images(facts: Facts) -> str:
    splits = facts.prepared.num_samples
    parts = [
        *((split, count, "val" if split == "val" else "kept", f"stored, {split}") for split, count in splits.items()),
        ("rejected", facts.num_lost, "rejected", "rejected, of kept classes"),
        ("dropped", facts.num_raw - facts.num_raw_kept, "dropped", "of dropped classes"),
    ]
    shown = [part for part in parts if part[1]]
    strip = "".join(f'<i class="{kind}" style="flex-grow:{count}"></i>' for _, count, kind, _ in shown)
    key = "".join(
        f'<li><i class="{kind}"></i>{text(what)} <strong>{number(count)}</strong> '
        f"<small>{percent(count, facts.num_raw)}</small></li>"
        for _, count, kind, what in shown
    )
    stored = facts.images.num_images
    caption = (
        f"Of {number(facts.num_raw)} images in the source {percent(stored, facts.num_raw)} are stored; "
        f"the {plural(len(facts.dropped), 'class', 'classes')} left out took "
        f"{percent(facts.num_raw - facts.num_raw_kept, facts.num_raw)} of the images along."
        if facts.dropped
        else f"Every class was kept; {percent(stored, facts.num_raw)} of the {number(facts.num_raw)} images are stored."
    )
    body = f'<div class="strip" aria-hidden="true">{strip}</div><ul class="legend">{key}</ul>'
    return figure("What became of the images", body, caption, wide=True)


def long_tail(facts: Facts) -> str:
    """The class sizes with the cut."""
    kept, dropped = facts.kept, facts.dropped
    chart = charts.long_tail(kept, dropped, facts.threshold)
    num_seen = len(kept) + len(dropped)
    caption = (
        f"Each class by its number of images, from {text(kept[0].name)} with {number(kept[0].num_raw)} down; "
        f"the vertical axis is logarithmic. "
    )
    if dropped:
        why = f" (those with {number(facts.threshold)} images or fewer)" if facts.threshold is not None else ""
        caption += (
            f"{percent(len(dropped), num_seen)} of the classes lie past the cut{why}, and "
            f"{percent(facts.num_raw - facts.num_raw_kept, facts.num_raw)} of the images with them."
        )
    else:
        caption += "None was dropped."
    rows = [("largest class", kept[0]), ("middle of those kept", kept[len(kept) // 2]), ("smallest kept", kept[-1])]
    rows += [("largest dropped", dropped[0]), ("smallest dropped", dropped[-1])] if dropped else []
    details = table(
        ["class", "name", "wnid", "images"],
        [(text(what), short(row.name), f"<code>{short(row.wnid)}</code>", number(row.num_raw)) for what, row in rows],
    )
    return figure("Images per class", chart, caption, details, wide=True)


def tree_levels(facts: Facts) -> str:
    """Classes per level."""
    levels = facts.prepared.tree.classes_by_level
    most = max(map(len, levels))
    images = [sum(facts.num_stored[index] for index in level) for level in levels]
    rows = [
        (f"level {place}", len(level), f"{number(len(level))} <small>{brief(count)} images</small>")
        for place, (level, count) in enumerate(zip(levels, images, strict=True))
    ]
    widest = max(range(len(levels)), key=lambda place: len(levels[place]))
    caption = (
        "A class's level is its number of ancestors that are classes too: "
        f"{plural(len(levels[0]), 'class stands', 'classes stand')} at the top, "
        f"and level {widest} is the widest with {number(most)}."
    )
    return figure("Classes per level of the tree", bars(rows, most), caption)


def largest_branches(facts: Facts) -> str:
    """The top classes with the most images below them."""
    tree, below = facts.prepared.tree, facts.num_below
    tops = sorted(tree.classes_by_level[0], key=lambda index: (-below[index], index))[:NUM_BRANCHES]
    whole = below[tops[0]]
    stored = facts.images.num_images
    rows = [
        (
            short(tree.names[index]),
            below[index],
            f"{brief(below[index])} <small>{percent(below[index], stored)}</small>",
        )
        for index in tops
    ]
    num_tops, share = len(tree.classes_by_level[0]), percent(sum(below[index] for index in tops), stored)
    which = plural(num_tops, "top class", "top classes")
    if len(tops) < num_tops:
        which = f"{len(tops)} largest of the {which}"
    caption = f"The {which}, with the images of every class below: {share} of all that are stored."
    return figure("The largest branches", bars(rows, whole, "val"), caption)


def tree_map(facts: Facts) -> str:
    """The taxonomy as a map to be opened branch by branch; `report.js` draws it."""
    tree, rows = facts.prepared.tree, facts.by_index
    inner = " with the inner ones" if tree.num_inner else ""
    data = {
        "names": [printable(name) for name in tree.names],
        "wnids": [printable(wnid) for wnid in tree.wnids],
        "definitions": [printable(row.definition) for row in rows],
        "parents": tree.parents,
        "raw": [row.num_raw for row in rows],
        "train": [row.num_train for row in rows],
        "val": [row.num_val for row in rows],
    }
    body = (
        '<div class="tree-map"><div class="map-bar"><nav class="crumbs" aria-label="Branch"></nav>'
        '<div class="find">'
        '<input type="search" placeholder="Find a class" aria-label="Find a class" autocomplete="off">'
        '<ul class="found" hidden></ul></div></div>'
        '<div class="stage" role="group" aria-label="Map of the classes"></div>'
        '<div class="about" aria-live="polite"></div>'
        "<noscript><p>The map needs JavaScript; the tables beside it do not.</p></noscript>"
        f"{embedded_json(data)}</div>"
    )
    caption = (
        f"The kept classes, {number(len(tree))}{inner}: a tile's area is the number of images stored for it and all "
        "classes below it; hues only tell neighbours apart. Open a branch by a click or tap, or with the arrow keys "
        "and Enter; Escape or the path above leads back."
    )
    return figure("The tree, by images", body, caption, wide=True)


def sizes(facts: Facts) -> str:
    """Widths, heights, pixels and bytes before and after."""
    images = facts.images
    return _sides(facts) + _pixels(images) + _bytes(facts)


def _sides(facts: Facts) -> str:
    counts = facts.images.sides.counts
    most = int(counts.max())
    chart = charts.size_map(facts.images.sides, facts.stored_side) + charts.shade_key(most)
    share = percent(most, facts.images.num_images)
    caption = (
        "Widths and heights of the stored images as they were in the source, both axes logarithmic: "
        f"the commonest cell, of sides within 12 %, holds {share} of them."
    )
    return figure("Source sizes", chart, caption)


def _pixels(images: ImageNumbers) -> str:
    before, after = (part.bins(4) for part in (images.source_pixels, images.stored_pixels))
    axis = charts.padded_log(
        [(min(before[0][0], after[0][0]), 0, 0), (0, max(before[-1][1], after[-1][1]), 0)], "pixels"
    )
    charts_of = "".join(
        f"<h4>{text(title)}</h4>{charts.histogram(bins, axis, f'pixels of an image, {title}', brief, kind)}"
        for title, bins, kind in (("In the source", before, "dropped"), ("As stored", after, "kept"))
    )
    caption = (
        "Pixels of an image before and after: half of the images had "
        f"{brief(images.source_pixels.quantile(0.5))} or fewer in the source, "
        f"and have {brief(images.stored_pixels.quantile(0.5))} or fewer now."
    )
    details = _quantiles(
        [("pixels in the source", images.source_pixels, brief), ("pixels as stored", images.stored_pixels, brief)]
    )
    return figure("Pixels, before and after", charts_of, caption, details)


def _bytes(facts: Facts) -> str:
    images = facts.images
    bins = images.stored_bytes.bins(8)
    axis = charts.padded_log(bins, "bytes of a stored image", byte_size)
    chart = charts.histogram(bins, axis, "bytes of a stored image", byte_size)
    read = (
        f"The source has {byte_size(facts.source_bytes)}"
        if facts.source_bytes is not None
        else "The source was a stream"
    )
    caption = (
        f"Stored images have {byte_size(images.num_bytes / images.num_images)} on average, "
        f"{byte_size(images.num_bytes)} together. {read}; how many bytes each image had in it is not recorded."
    )
    details = _quantiles([("bytes as stored", images.stored_bytes, byte_size)])
    return figure("Bytes of the stored images", chart, caption, details, wide=True)


def _quantiles(rows: Sequence[tuple[str, Histogram, Any]]) -> str:
    shares = (0.01, 0.1, 0.5, 0.9, 0.99)
    return table(
        ["percentile", *(f"{100 * share:g} %" for share in shares)],
        [(text(what), *(text(label(part.quantile(share))) for share in shares)) for what, part, label in rows],
    )


def changes(facts: Facts) -> str:
    """What images were, and what was done to them."""
    images = facts.images
    whole = images.num_images
    formats = [(short(name), count, _counted(count, whole)) for name, count in _common(images.formats)]
    leading, count = images.formats.most_common(1)[0]
    format_caption = (
        f"What the files were by their content, whatever they were called: {percent(count, whole)} {short(leading)}."
    )
    done = [("nothing: kept byte for byte", images.num_as_they_were, _counted(images.num_as_they_were, whole))]
    done += [(short(name), count, _counted(count, whole)) for name, count in _common(images.changes)]
    warned = sum(count for name, count in images.changes.items() if name.startswith("warning:"))
    change_caption = "What was done to the stored images; one image can count in several rows." + (
        " A decoder's warning changes nothing; the image is stored as it was decoded." if warned else ""
    )
    return figure("Formats in the source", bars(formats, whole), format_caption) + figure(
        "Changes made", bars(done, whole), change_caption
    )


def _counted(count: int, whole: int) -> str:
    return f"{number(count)} <small>{percent(count, whole)}</small>"


def _common(counts: Mapping[str, int]) -> list[tuple[str, int]]:
    ordered = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rest = sum(count for _, count in ordered[MAX_LISTED:])
    return ordered[:MAX_LISTED] + ([(f"{len(ordered) - MAX_LISTED} other kinds", rest)] if rest else [])


def rejects(facts: Facts) -> str:
    """The rejects by reason, with examples."""
    reasons, whole = facts.reasons, facts.num_rejects
    if not whole:
        caption = "Every member of the kept classes' archives could be stored."
        return figure("Rejects by reason", '<p class="none">No rejects.</p>', caption, wide=True)
    rows = [
        (short(name), count, _counted(count, whole))
        for name, count in _common({reason.reason: reason.count for reason in reasons})
    ]
    caption = (
        f"{plural(whole, 'member', 'members')} of the source were not stored, "
        f"{number(facts.num_lost)} of them images of kept classes ({percent(facts.num_lost, facts.num_raw_kept)}); "
        "<code>rejects.parquet</code> lists each one."
    )
    examples = "".join(
        f"<li><h4>{short(reason.reason)}</h4><dl>{''.join(_example(*example) for example in reason.examples)}</dl></li>"
        for reason in reasons[:MAX_LISTED]
    )
    return figure("Rejects by reason", bars(rows, whole, "rejected"), caption) + figure(
        "Examples", f'<ul class="examples">{examples}</ul>', "A few members of each reason, with what was found."
    )


def _example(class_name: str, member: str, detail: str) -> str:
    place = f" <small>{short(class_name)}</small>" if class_name else ""
    return f"<dt><code>{short(member)}</code>{place}</dt><dd>{short(detail)}</dd>"


def contact_sheet(rows: Sequence[SheetRow], seed: int) -> str:
    """Images drawn by chance, a row per branch."""
    if not rows:
        return figure("Images", '<p class="none">No images were asked for.</p>', "--images asks for some.", wide=True)
    sheet = "".join(
        f"<h4>{_path(row.path)} <small>{number(row.num_images)} training images</small></h4>"
        f'<ul class="thumbnails">{"".join(map(_thumbnail, row.images))}</ul>'
        for row in rows
    )
    count = sum(len(row.images) for row in rows)
    caption = (
        f"{plural(count, 'training image', 'training images')} as stored, drawn by chance (seed {seed}) from the "
        f"{plural(len(rows), 'branch', 'largest branches')}; below each its class."
    )
    return figure("A look at the images", sheet, caption, wide=True)


def _path(names: Sequence[str]) -> str:
    above = "".join(f"<small>{short(name)} ›</small> " for name in names[:-1])
    return above + short(names[-1])


def _thumbnail(image: SheetImage) -> str:
    name, source = short(image.class_name), short(image.source_name)
    return f'<li><img src="{image.uri}" alt="{name}" title="{source}" decoding="async"><span>{name}</span></li>'


def made_with(facts: Facts) -> str:
    """Settings and versions."""
    info = facts.prepared.info
    settings = table(
        ["setting", "value"], [(f"<code>{short(k)}</code>", v) for k, v in _flat(facts.provenance("settings"))]
    )
    source = table(["source", "value"], [(f"<code>{short(k)}</code>", v) for k, v in _flat(facts.provenance("source"))])
    kind = f"{short(info.get('format'))}, version {short(info.get('version'))}"
    return figure(
        "Settings",
        settings,
        f"What shaped the bytes of this data set ({kind}); equal settings and source give equal bytes.",
    ) + figure("Source", source, "What was read.")


def _flat(content: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return the (name, value as HTML) of settings, those inside others by `outer.inner`."""
    rows: list[tuple[str, str]] = []
    for key, value in content.items():
        if isinstance(value, dict):
            rows += _flat(value, f"{prefix}{key}.")
        elif isinstance(value, bool) or value is None:
            rows.append((f"{prefix}{key}", {True: "yes", False: "no", None: "none"}[value]))
        elif isinstance(value, list):
            rows.append((f"{prefix}{key}", short(", ".join(map(str, value)) or "none")))
        else:
            rows.append((f"{prefix}{key}", number(value) if isinstance(value, int) else short(value)))
    return rows
