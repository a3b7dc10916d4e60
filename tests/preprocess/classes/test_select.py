from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.preprocess.classes.select import SelectSettings, read_names, split_members
from in21k.preprocess.classes.taxonomy import Taxonomy
from in21k.preprocess.sources.class_names import class_id
from in21k.preprocess.sources.members import Member
from in21k.shards.sample import checksum

NAMES = st.text(min_size=1, max_size=12).filter(lambda name: name.isprintable())
MEMBERS = st.lists(NAMES, max_size=20, unique=True).map(
    lambda names: [Member(name, name, number, 1) for number, name in enumerate(sorted(names, key=os.fsencode))]
)


def members(*names: str, split: str | None = None) -> list[Member]:
    return [Member(name, f"n1/{name}", number, 1, split) for number, name in enumerate(names)]


@pytest.fixture
def listing(tmp_path: Path) -> Callable[..., Path]:
    """Write lines to a file."""

    def listing(*lines: str, name: str = "list.txt") -> Path:
        (tmp_path / name).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
        return tmp_path / name

    return listing


@pytest.mark.parametrize(("num_raw", "kept"), [(0, False), (499, False), (500, False), (501, True)])
def test_a_class_is_kept_when_it_has_more_than_the_threshold(num_raw: int, kept: bool) -> None:
    actual = members(*(f"{number}.jpg" for number in range(num_raw)))
    assert SelectSettings(rare_threshold=500).keeps(None, actual) is kept


def test_a_threshold_of_zero_drops_empty_classes_alone() -> None:
    settings = SelectSettings(rare_threshold=0)
    assert [settings.keeps(None, item) for item in ([], members("a.jpg"))] == [False, True]


@pytest.mark.parametrize("verdict", [True, False])
def test_a_verdict_needs_no_count(verdict: bool) -> None:
    assert SelectSettings(rare_threshold=0).keeps(verdict, members("a.jpg")) is verdict
    assert SelectSettings(rare_threshold=9).keeps(verdict, members("a.jpg")) is verdict


@pytest.mark.parametrize(
    ("splits", "kept"), [(("train", "val"), True), (("val",), True), (("small",), False), (("train", "small"), True)]
)
def test_a_split_of_the_sources_own_decides_without_a_threshold(splits: tuple[str, ...], kept: bool) -> None:
    items = [member for split in splits for member in members("a.jpg", split=split)]
    assert SelectSettings(rare_threshold=500).keeps(None, items) is kept
    assert SelectSettings(rare_threshold=0).keeps(None, items) is kept


def test_named_classes_and_subtrees_are_judged_by_name_alone() -> None:
    taxonomy = Taxonomy.packaged()
    named = SelectSettings(classes=frozenset({"n01858441", "n01503061"}), drop_subtree=("n01858441",))
    verdicts = [named.verdict(wnid, taxonomy) for wnid in ("n01503061", "n01858441", "n02051845")]
    assert verdicts == [True, False, False]
    below = SelectSettings(drop_subtree=("n01503061", "n09450163"))
    verdicts = [below.verdict(wnid, taxonomy) for wnid in ("n01503061", "n01858441", "n09450163", "n01861778", "mine")]
    assert verdicts == [False, False, False, None, None]


@given(MEMBERS, st.integers(0, 25))
def test_the_first_members_are_for_validation_and_each_is_in_one_split(
    members: list[Member], val_per_class: int
) -> None:
    chosen = split_members("n1", members, SelectSettings(val_per_class=val_per_class))
    order = [(split, key) for split, key, _ in chosen]
    assert order == sorted(set(order))
    assert len({item.key for item in chosen}) == len(members)
    places = {split: sorted(item.member.offset for item in chosen if item.split == split) for split in ("train", "val")}
    assert places["val"] == list(range(min(val_per_class, len(members))))
    assert places["train"] == list(range(len(places["val"]), len(members)))


def test_a_split_of_the_sources_own_is_kept() -> None:
    items = [
        *members("a.jpg", "b.jpg", split="train"),
        *members("c.jpg", split="val"),
        *members("d.jpg", split="small"),
    ]
    chosen = split_members("n1", items, SelectSettings(val_per_class=2))
    assert [(item.split, item.name) for item in chosen] == [
        ("train", "a.jpg"),
        ("train", "b.jpg"),
        ("train", "d.jpg"),
        ("val", "c.jpg"),
    ]


def test_a_list_names_the_validation_images_instead(listing: Callable[..., Path]) -> None:
    items = [*members("a.jpg", "b.jpg", "c/d.jpg", split="train"), *members("n1_e.png", "f g.jpg", split="val")]
    path = listing("n1_a", "n1/b.jpg", "some/where/n1/n1_e.png", "./n1/f g.jpg")
    chosen = split_members("n1", items, SelectSettings(val_list=path))
    assert [item.name for item in chosen if item.split == "val"] == ["a.jpg", "b.jpg", "n1_e.png", "f g.jpg"]


def test_a_path_names_the_image_of_its_suffix_and_no_other(listing: Callable[..., Path]) -> None:
    """Both have the stem `a`, so the key of the second has a number."""
    chosen = split_members("n1", members("a.jpg", "a.png"), SelectSettings(val_list=listing("n1/a.png")))
    assert [(item.split, item.name, item.key) for item in chosen] == [
        ("train", "a.jpg", "n1_a"),
        ("val", "a.png", "n1_a-2"),
    ]


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("n01440764/sub/x.jpg", "sub/x.jpg"),
        ("C:\\data\\n01440764\\x.jpg", "x.jpg"),
        ("/data/n01440764/x.JPEG", "x.JPEG"),
        ("data//n01440764//x.jpg", "x.jpg"),
        ("n01440764/\udcff.jpg", "\udcff.jpg"),
        ("n01440764/ä b.jpg\r", "ä b.jpg"),
    ],
)
def test_a_path_of_a_list_ends_in_class_and_name(line: str, name: str, listing: Callable[..., Path]) -> None:
    items = [Member(name, f"elsewhere/n01440764/{name}", 0, 1)]
    chosen = split_members("n01440764", items, SelectSettings(val_list=listing(line)))
    assert [item.split for item in chosen] == ["val"]
    assert [member.split for member in split_members("n2", items, SelectSettings(val_list=listing(line)))] == ["train"]


@pytest.mark.parametrize("folder", ["my cats", class_id("my cats"), "data//my cats/"])
def test_a_path_or_key_of_a_list_names_its_class_in_either_form(folder: str, listing: Callable[..., Path]) -> None:
    items = [Member("x.jpg", "my cats/x.jpg", 0, 1), Member("y.jpg", "my cats/y.jpg", 0, 1)]
    for line in (f"{folder}/x.jpg", f"{folder}/x"):
        chosen = split_members(class_id("my cats"), items, SelectSettings(val_list=listing(line)))
        assert [(item.split, item.name) for item in chosen] == [("train", "y.jpg"), ("val", "x.jpg")]


def test_checksums_may_be_short_or_long_and_of_either_case(listing: Callable[..., Path]) -> None:
    long = "0123456789abcdef" * 4
    assert read_names(listing(long.upper(), long[:16], "fedcba9876543210")).checksums == {long[:16], "fedcba9876543210"}


def test_a_list_is_read_again_when_it_has_changed(listing: Callable[..., Path]) -> None:
    first = SelectSettings(exclude=listing("n1_a")).described()
    same = SelectSettings(exclude=listing("n1_a", "", " n1_a\r", name="other.txt")).described()
    assert same == first
    assert SelectSettings(exclude=listing("n1_a", "n1_b")).described() != first
    assert first["exclude"] == checksum(b"n1_a")


@pytest.mark.parametrize("line", ["a.jpg", "word", "/", "a/b/"])
def test_a_line_that_names_nothing_is_refused_with_its_number(line: str, listing: Callable[..., Path]) -> None:
    path = listing("n1_a", line)
    with pytest.raises(ValueError, match=r"list\.txt, line 2: .*wanted a key"):
        read_names(path)


def test_an_empty_list_is_refused(listing: Callable[..., Path]) -> None:
    with pytest.raises(ValueError, match=r"list\.txt: lists nothing"):
        read_names(listing("", " "))


@pytest.mark.parametrize("name", ["rare_threshold", "val_per_class"])
def test_numbers_below_zero_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; wanted 0 or more"):
        SelectSettings(**{name: -1})
