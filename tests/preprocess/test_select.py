from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.preprocess.archive import Member
from in21k.preprocess.select import SelectSettings, split_members

MEMBERS = st.lists(st.text(min_size=1, max_size=12), max_size=20, unique=True).map(
    lambda names: [
        Member(name, number, 1)
        for number, name in enumerate(sorted(names, key=lambda n: n.encode("utf-8", "surrogatepass")))
    ]
)


@pytest.mark.parametrize(("num_raw", "kept"), [(0, False), (499, False), (500, False), (501, True)])
def test_a_class_is_kept_when_it_has_more_than_the_threshold(num_raw: int, kept: bool) -> None:
    assert SelectSettings(rare_threshold=500).keeps(num_raw) is kept


def test_a_threshold_of_zero_drops_empty_classes_alone() -> None:
    assert [SelectSettings(rare_threshold=0).keeps(count) for count in (0, 1)] == [False, True]


@given(MEMBERS, st.integers(0, 25))
def test_the_first_members_are_for_validation_and_each_is_in_one_split(
    members: list[Member], val_per_class: int
) -> None:
    splits = split_members("n1", members, val_per_class)
    assert [member for _, member in sorted(splits["val"], key=lambda pair: pair[1].offset)] == members[:val_per_class]
    assert sorted(pair[1].offset for pair in splits["train"]) == list(range(val_per_class, len(members)))
    for pairs in splits.values():
        keys = [key for key, _ in pairs]
        assert keys == sorted(keys)
    assert len({key for pairs in splits.values() for key, _ in pairs}) == len(members)


@pytest.mark.parametrize("name", ["rare_threshold", "val_per_class"])
def test_numbers_below_zero_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} is -1; wanted 0 or more"):
        SelectSettings(**{name: -1})
