from __future__ import annotations

import re
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from in21k.preprocess.classes.label_spaces import read_classes
from in21k.preprocess.classes.taxonomy import Taxonomy
from in21k.preprocess.sources.class_names import class_id
from in21k.shards.label_spaces import LABEL_SPACES, PublishedSpace, label_space_wnids

PERSON = "n00007846"


@pytest.mark.parametrize(("name", "num_classes"), [("fall11p", 11_221), ("winter21p", 10_450), ("in12k", 11_821)])
def test_label_spaces_of_published_weights_have_their_size_and_wnid_order(name: str, num_classes: int) -> None:
    classes = read_classes(name)
    assert len(classes) == num_classes
    assert classes == sorted(set(classes))


def test_every_class_of_the_label_spaces_is_a_synset() -> None:
    taxonomy = Taxonomy.packaged()
    assert [wnid for name in LABEL_SPACES for wnid in label_space_wnids(name) if wnid not in taxonomy] == []


def test_the_label_spaces_are_read_without_the_seconds_that_timm_and_torch_take_to_import() -> None:
    code = (
        "import sys; from in21k.preprocess.classes.label_spaces import read_classes; read_classes('fall11p'); "
        "print({'timm', 'torch'} & {*sys.modules})"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


def test_winter21p_lacks_771_classes_below_person_and_keeps_105_of_that_branch() -> None:
    """So no `--drop-subtree` makes winter21-P of fall11-P: its makers chose among the people."""
    taxonomy = Taxonomy.packaged()
    fall, winter = read_classes("fall11p"), read_classes("winter21p")
    people = {wnid for wnid in fall if taxonomy.is_below(wnid, PERSON)}
    missing = set(fall) - set(winter)
    assert set(winter) < set(fall)
    assert missing < people
    assert (len(people), len(missing), len(people - missing)) == (876, 771, 105)
    assert PERSON in people - missing


def test_of_all_21841_classes_2832_are_people() -> None:
    taxonomy = Taxonomy.packaged()
    wnids = label_space_wnids("fall11")
    assert len(wnids) == 21_841
    assert sum(taxonomy.is_below(wnid, PERSON) for wnid in wnids) == 2_832


def test_a_file_lists_classes_in_its_order(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xef\xbb\xbf# mine\r\nn02123045 tabby, a cat\r\n\r\n  my-cat  # a comment\nn01\n#n05")
    assert read_classes(str(path)) == ["n02123045", "my-cat", "n01"]


def test_a_file_lists_classes_by_name_or_by_identifier(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    lines = ["golden retriever", "C#  # a language", "café\tof coffee", class_id("hot dog"), "n02123045x y"]
    path.write_text(unicodedata.normalize("NFD", "\n".join(lines)))
    assert read_classes(str(path)) == list(map(class_id, ["golden retriever", "C#", "café", "hot dog", "n02123045x y"]))


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("n01\nn02\n\nn01\n", "line 4: n01 is on line 1 too"),
        (f"hot dog\n{class_id('hot dog')}\n", f"line 2: {class_id('hot dog')} is on line 1 too"),
        ("# nothing\n\n", "lists no class; wanted one class a line"),
        ("", "lists no class"),
    ],
)
def test_lists_that_are_none_are_refused_by_file_and_line(tmp_path: Path, content: str, wanted: str) -> None:
    path = tmp_path / "classes.txt"
    path.write_text(content)
    with pytest.raises(ValueError, match=r"classes\.txt.*" + re.escape(wanted)):
        read_classes(str(path))


def test_a_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "classes.txt"
    path.write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ValueError, match=r"classes\.txt: is not UTF-8 text"):
        read_classes(str(path))


def test_what_is_neither_name_nor_file_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"fall12p: neither a file.*wanted fall11p, in12k, winter21p, or a file"):
        read_classes("fall12p")
    with pytest.raises(ValueError, match="neither a file"):
        read_classes(str(tmp_path))


def test_a_timm_without_the_list_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(LABEL_SPACES, "new", PublishedSpace(1, "nothing.txt"))
    with pytest.raises(ValueError, match=r"timm lacks its list nothing\.txt; install timm 1\.0\.15 or later"):
        label_space_wnids("new")
