"""Folders whose class tables equal a release, and ones that differ."""

from __future__ import annotations

import re
from collections.abc import Callable
from itertools import count
from pathlib import Path

import pytest

from in21k.preprocess import build_tree
from in21k.preprocess.classes.label_spaces import read_classes
from in21k.preprocess.classes.release import MAX_NAMED, RELEASES, release_differences
from in21k.shards import PreparedSet
from in21k.shards.class_table import ClassRow, write_class_table
from in21k.shards.files.output import OutputFolder
from in21k.shards.files.record import VERSION, record_files
from in21k.shards.label_spaces import label_space_wnids


def shares(total: int, parts: int) -> list[int]:
    """Whole numbers that add up to `total`, as equal as can be."""
    return [total // parts + (part < total % parts) for part in range(parts)]


def rows_of(release: str) -> list[ClassRow]:
    """A class table with the release's classes and totals; what no list names has made-up wnids."""
    known = RELEASES[release]
    tree = build_tree(read_classes(known.kept))
    seen = set(label_space_wnids("fall11"))
    dropped = sorted(seen - set(tree.wnids))[: known.num_seen - len(tree)]
    train, val = shares(known.num_train, len(tree)), shares(known.num_val, len(tree))
    rest = shares((known.num_raw or 0) - sum(train) - sum(val) if known.num_raw else 0, len(dropped))
    return [
        *(
            ClassRow(wnid, tree.names[i], "", train[i] + val[i], train[i], val[i], True, False, i, tree.levels[i])
            for i, wnid in enumerate(tree.wnids)
        ),
        *(
            ClassRow(wnid, "", "", count, 0, 0, False, False, None, None)
            for wnid, count in zip(dropped, rest, strict=True)
        ),
    ]


@pytest.fixture
def prepared_of(tmp_path: Path) -> Callable[[list[ClassRow]], PreparedSet]:
    """Make a finished folder with a class table and nothing else."""

    def prepared_of(rows: list[ClassRow]) -> PreparedSet:
        out = tmp_path / "prepared"
        with OutputFolder(out, provenance={}, contents=PreparedSet.contents, list_files=lambda _: []) as folder:
            numbers = count()
            indexed = [row._replace(class_index=next(numbers)) if row.kept else row for row in sorted(rows)]
            write_class_table(out / "classes.parquet", indexed)
            kept = [row for row in indexed if row.kept]
            totals = {"train": sum(row.num_train for row in kept), "val": sum(row.num_val for row in kept)}
            info = {
                "format": PreparedSet.format,
                "version": VERSION,
                "source": {"name": "made-up.tar"},
                "settings": {},
                "counts": {
                    **dict.fromkeys(("num_classes_seen", "num_raw", "num_raw_kept", "num_rejects"), 0),
                    "num_classes": len(kept),
                    "splits": {split: {"num_samples": total} for split, total in totals.items() if total},
                },
            }
            folder.finish({**info, "files": record_files(out, ["classes.parquet"])})
        return PreparedSet(out)

    return prepared_of


Prepared = Callable[[list[ClassRow]], PreparedSet]


@pytest.mark.parametrize("release", RELEASES)
def test_a_data_set_that_equals_the_release_has_no_differences(release: str, prepared_of: Prepared) -> None:
    rows = rows_of(release)
    assert len(rows) == RELEASES[release].num_seen
    assert release_differences(prepared_of(rows), release) == []


@pytest.mark.parametrize("release", RELEASES)
def test_what_is_known_of_a_release_fits_together(release: str) -> None:
    known = RELEASES[release]
    tree = build_tree(read_classes(known.kept))
    assert [len(classes) for classes in tree.classes_by_level] == list(known.per_level)
    if known.seen:
        assert set(tree.wnids) < set(label_space_wnids(known.seen))


def test_one_release_is_not_the_other(prepared_of: Prepared) -> None:
    differences = "\n".join(release_differences(prepared_of(rows_of("winter21")), "fall11"))
    assert "classes seen: 19,167; fall11 has 21,841 (2,674 fewer here)" in differences
    assert "2,674 classes of fall11 were not seen: n" in differences
    assert "classes kept: 10,450; fall11's 21K-P has 11,221 (771 fewer here)" in differences
    assert "771 classes of fall11's 21K-P were not kept: n" in differences
    assert ("validation images: 522,500; fall11's 21K-P, as published, has 561,052 (38,552 fewer here)") in differences
    assert "classes per level: 302 1067 1823" in differences
    assert "fall11's 21K-P has 302 1378 2100" in differences


def test_a_few_rejects_are_counted_side_by_side_and_nothing_else_is_said(prepared_of: Prepared) -> None:
    rows = rows_of("fall11")
    rows[5] = rows[5]._replace(num_train=rows[5].num_train - 3)
    rows[9] = rows[9]._replace(num_val=rows[9].num_val - 1)
    assert release_differences(prepared_of(rows), "fall11") == [
        "training images: 11,797,629; fall11's 21K-P, as published, has 11,797,632 (3 fewer here)",
        "validation images: 561,051; fall11's 21K-P, as published, has 561,052 (1 fewer here)",
    ]


def test_classes_that_are_not_kept_or_should_not_be_are_named_with_their_images(prepared_of: Prepared) -> None:
    rows = rows_of("fall11")
    lost, gained = rows[0], rows[-1]
    rows[0] = lost._replace(kept=False, class_index=None, level=None)
    rows[-1] = gained._replace(kept=True, class_index=1, level=0)
    differences = release_differences(prepared_of(rows), "fall11")
    assert f"1 classes of fall11's 21K-P were not kept: {lost.wnid} ({lost.num_raw:,} images)" in differences
    assert f"1 classes were kept that fall11's 21K-P lacks: {gained.wnid} ({gained.num_raw:,} images)" in differences
    assert not any(line.startswith("classes kept") for line in differences)


def test_of_many_classes_the_first_are_named(prepared_of: Prepared) -> None:
    rows = [
        row._replace(wnid="my-" + row.wnid) if row.num_val and i < 30 else row
        for i, row in enumerate(rows_of("fall11"))
    ]
    differences = release_differences(prepared_of(rows), "fall11")
    for what in ("were not seen", "were seen that", "were not kept", "were kept that"):
        (line,) = (line for line in differences if what in line)
        assert line.startswith("30 classes")
        assert len(re.findall(r"n\d{8}", line)) == MAX_NAMED
        assert line.endswith(", ...")


def test_lost_images_of_the_source_are_counted(prepared_of: Prepared) -> None:
    rows = rows_of("fall11")
    rows[-1] = rows[-1]._replace(num_raw=rows[-1].num_raw - 7)
    (difference,) = release_differences(prepared_of(rows), "fall11")
    assert difference == "images seen: 14,197,115; fall11 has 14,197,122 (7 fewer here)"


def test_a_data_set_of_no_kept_class_is_compared_too(prepared_of: Prepared) -> None:
    assert "classes kept: 0; fall11's 21K-P has 11,221 (11,221 fewer here)" in release_differences(
        prepared_of([ClassRow("n1", "", "", 3, 0, 0, False, False, None, None)]), "fall11"
    )


def test_other_releases_are_refused(prepared_of: Prepared) -> None:
    with pytest.raises(ValueError, match="release 'spring12' is unknown; wanted fall11 or winter21"):
        release_differences(prepared_of([]), "spring12")
