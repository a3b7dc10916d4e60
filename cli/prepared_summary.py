"""What `in21k preprocess` prints of a prepared data set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..shards.dataset import PreparedSet

_MOST_NAMES = 10  # of classes in a line; `--json` has all


def summarize(prepared: PreparedSet) -> dict[str, Any]:
    """Return the content of dataset.json, the levels of the tree, and the classes that lack validation images.

    Sets of older versions lack some facts; they get the empty ones here.
    """
    settings = prepared.info["settings"]
    has_val = "val" in prepared.num_samples or settings["val_per_class"] or settings["val_list"]
    return {
        "rejects": {},
        "num_with_warnings": 0,
        "ignored": {},
        "empty_classes": [],
        "dropped_for_rejects": {},
        "val_rejects": {},
        **prepared.info,
        "path": str(prepared.path),
        "classes_per_level": [len(classes) for classes in prepared.tree.classes_by_level],
        "classes_without_val": [
            row.wnid for row in prepared.classes if has_val and row.kept and not row.inner and not row.num_val
        ],
    }


def render(summary: Mapping[str, Any]) -> str:
    """Return the summary as text: a line for each fact that applies."""
    counts = summary["counts"]
    splits = " + ".join(f"{count['num_samples']:,} {split}" for split, count in counts["splits"].items())
    val_rejects = [f"{wnid} {count:,}" for wnid, count in summary["val_rejects"].items()]
    dropped = [f"{wnid} {count:,}" for wnid, count in summary["dropped_for_rejects"].items()]
    num_inner = counts.get("num_inner_classes", 0)
    kept = f"{counts['num_classes'] - num_inner:,} kept" + (f", {num_inner:,} inner classes added" if num_inner else "")
    lines = [
        f"{summary['path']}: {counts['num_classes_seen']:,} classes seen, {kept}",
        f"images of those: {counts['num_raw_kept']:,}; stored: {splits}",
        f"rejects, files that are not images included: {counts['num_rejects']:,}{_by_kind(summary['rejects'])}",
        f"images stored with a decoder warning: {summary['num_with_warnings']:,}",
        f"files ignored, known not to be images: {sum(summary['ignored'].values()):,}{_by_kind(summary['ignored'])}",
        _named("class folders and class tars that are empty", summary["empty_classes"]),
        _named("classes that only their rejects keep under the threshold, with how many", dropped),
        _named("classes without validation images", summary["classes_without_val"]),
        _named(
            "classes with rejects among their validation images, which are not replaced", val_rejects, len(val_rejects)
        ),
        f"classes per level of the tree: {' '.join(map(str, summary['classes_per_level']))}",
    ]
    return "\n".join(filter(None, lines))


def _by_kind(counts: Mapping[str, int]) -> str:
    """Return counts by kind, the largest first."""
    kinds = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    return f" ({', '.join(f'{kind} {count:,}' for kind, count in kinds)})" if kinds else ""


def _named(what: str, names: Iterable[str], most: int = _MOST_NAMES) -> str:
    """Return the number of names, and the first of them."""
    names = list(names)
    more = ", ..." if len(names) > most else ""
    return f"{what}: {len(names):,} ({', '.join(names[:most])}{more})" if names else ""
