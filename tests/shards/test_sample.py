from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from in21k.shards.sample import MAX_KEY_BYTES, checksum, make_keys

WNID = "n01440764"
NAMES = st.lists(st.one_of(st.text(max_size=120), st.from_regex(r"n01440764_[a-c.\- ]{0,4}\.JPEG", fullmatch=True)))


@given(NAMES)
def test_keys_are_unique_short_of_safe_characters_and_begin_with_the_wnid(names: list[str]) -> None:
    keys = make_keys(WNID, names)
    assert len(set(keys)) == len(keys) == len(names)
    assert all(re.fullmatch(rf"{WNID}_[A-Za-z0-9_-]*", key) for key in keys)
    assert all(len(key.encode()) <= MAX_KEY_BYTES for key in keys)
    assert make_keys(WNID, names) == keys


@given(NAMES, NAMES)
def test_a_key_depends_on_no_later_name(names: list[str], later: list[str]) -> None:
    assert make_keys(WNID, names + later)[: len(names)] == make_keys(WNID, names)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("n01440764_10026.JPEG", "n01440764_10026"),
        ("n01440764/n01440764_10026.JPEG", "n01440764_10026"),
        ("10026.JPEG", "n01440764_10026"),
        ("n0144076_1.JPEG", "n01440764_n0144076_1"),
        ("n01440764.JPEG", "n01440764_n01440764"),
        ("n01440764_1.tar.jpg", "n01440764_1_tar"),
        ("my cat.jpg", "n01440764_my_cat"),
        ("кот.jpg", "n01440764____"),
        ("no_suffix", "n01440764_no_suffix"),
        (".jpg", "n01440764__jpg"),
        ("\udcff.jpg", "n01440764__"),
        ("x" * 200 + ".jpg", "n01440764_" + "x" * 86),
    ],
)
def test_a_key_is_the_stem_with_the_wnid_before_it_once(name: str, key: str) -> None:
    assert make_keys(WNID, [name]) == [key]


def test_equal_stems_are_counted_on_and_stay_within_the_limit() -> None:
    assert make_keys("n1", ["a.jpg", "a.png", "a-2.jpg", "b/a.gif"]) == ["n1_a", "n1_a-2", "n1_a-2-2", "n1_a-3"]
    long = "n1_" + "x" * 200
    keys = make_keys("n1", [f"{long}{number}.jpg" for number in range(11)])
    assert keys[1] == keys[0][:-2] + "-2"
    assert keys[10] == keys[0][:-3] + "-11"
    assert {len(key) for key in keys} == {MAX_KEY_BYTES}


@given(st.binary())
def test_a_checksum_is_the_beginning_of_the_sha256(data: bytes) -> None:
    assert checksum(data) == hashlib.sha256(data).hexdigest()[:16]


def test_many_images_of_one_name_get_keys_in_no_time() -> None:
    keys = make_keys("n1", [f"{number}/image.jpg" for number in range(30_000)])
    assert keys[:3] + keys[-1:] == ["n1_image", "n1_image-2", "n1_image-3", "n1_image-30000"]
