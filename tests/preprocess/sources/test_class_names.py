"""Any UTF-8 name is a class's, and one identifier stands for it everywhere."""

from __future__ import annotations

import hashlib
import re
import unicodedata

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from in21k.preprocess.sources.class_names import class_id, class_name
from in21k.preprocess.sources.labelled import classes_of_labels

NAMES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=90)


@given(NAMES)
@example("x" * 56)
@example("001.Black_footed_Albatross")
def test_an_identifier_is_the_plain_name_or_a_cut_one_with_its_digest(name: str) -> None:
    nfc = unicodedata.normalize("NFC", name)
    plain = re.sub("[^A-Za-z0-9_-]", "_", nfc)[:55]
    digest = hashlib.sha256(nfc.encode()).hexdigest()[:8]
    assert class_id(name) == (nfc if plain == nfc else f"{plain}-{digest}")


@given(NAMES)
def test_the_identifier_of_an_identifier_is_itself_in_every_normal_form(name: str) -> None:
    wnid = class_id(name)
    assert re.fullmatch("[A-Za-z0-9_-]{1,64}", wnid)
    assert class_id(wnid) == wnid
    for form in ("NFC", "NFD"):
        assert class_id(unicodedata.normalize(form, name)) == wnid
        assert class_name(unicodedata.normalize(form, name)) == class_name(name)


@pytest.mark.parametrize(("name", "wanted"), [("", "is empty"), ("caf\udce9", r"'caf\\xe9' is not UTF-8; rename it")])
def test_a_name_that_no_class_can_have_is_refused(name: str, wanted: str) -> None:
    for function in (class_id, class_name):
        with pytest.raises(ValueError, match=wanted):
            function(name)


@given(st.sets(NAMES.map(class_name), min_size=1, max_size=8))
def test_labels_have_identifiers_of_their_own(labels: set[str]) -> None:
    ids = classes_of_labels(labels)
    assert set(ids) == labels
    assert len(set(ids.values())) == len(labels)
    if not all(label.isascii() and label.isdigit() for label in labels):
        assert ids == {label: class_id(label) for label in labels}


def test_a_label_beside_its_own_identifier_is_refused() -> None:
    with pytest.raises(ValueError, match="'hot dog' and 'hot_dog-836cef5d' are one class"):
        classes_of_labels(["hot dog", class_id("hot dog")])
