"""Annotation lists as text, JSON lines and CSV give the same images and labels."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from in21k.preprocess.sources.label_list import NO_LABEL, read_list

Rows = list[tuple[str, tuple[str, ...]]]


def listed(folder: Path, content: str | bytes, *files: str) -> Rows:
    for name in files:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"")
    path = folder / "list"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return [(image.path, image.labels) for image in read_list(path)]


@pytest.mark.parametrize(
    ("line", "files", "wanted"),
    [
        ("x.jpg traffic light", ["x.jpg"], ("x.jpg", ("traffic light",))),
        ("x.jpg ant,red thing", ["x.jpg"], ("x.jpg", ("ant", "red thing"))),
        ("x.jpg ant, red  thing", ["x.jpg"], ("x.jpg", ("ant", "red  thing"))),
        ("my street/1.jpg traffic light", ["my street/1.jpg"], ("my street/1.jpg", ("traffic light",))),
        ("x y.jpg light", ["x", "x y.jpg"], ("x", ("y.jpg light",))),  # the shortest file
        ("x y.jpg light", ["x/1.jpg", "x y.jpg"], ("x y.jpg", ("light",))),  # a folder is not a file
        ("x  a.jpg two  words", ["x  a.jpg"], ("x  a.jpg", ("two  words",))),
        ("gone by.jpg light", [], ("gone by.jpg", ("light",))),  # the last blank
        ("gone by.jpg\ttraffic light", [], ("gone by.jpg", ("traffic light",))),
        ("x.jpg y.jpg\ttraffic light", ["x.jpg"], ("x.jpg y.jpg", ("traffic light",))),
        ("x.jpg -", ["x.jpg"], ("x.jpg", ())),
        ("x.jpg \t -", ["x.jpg"], ("x.jpg", ())),
        ("é.jpg café", ["é.jpg"], ("é.jpg", ("café",))),
        ("x.jpg cafe\u0301,café", ["x.jpg"], ("x.jpg", ("café",))),
        ("x" * 300 + " a b", [], ("x" * 300 + " a", ("b",))),
    ],
)
def test_a_line_is_parted_at_a_tab_or_behind_the_shortest_file(
    line: str, files: list[str], wanted: tuple[str, tuple[str, ...]], tmp_path: Path
) -> None:
    for ends in ("\n", "\r\n"):
        assert listed(tmp_path, f"\ufeff# a comment{ends}{ends}{line}{ends}", *files) == [wanted]


PATHS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), min_size=1, max_size=9).map(str.strip)
LABELS = st.text(st.characters(exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"], exclude_characters=","), min_size=1)


def as_text(rows: Rows) -> str:
    return "".join(f"{path}\t{','.join(labels) or NO_LABEL}\n" for path, labels in rows)


def as_json(rows: Rows) -> str:
    lines = [
        {"path": path, "label": labels[0]} if len(labels) == 1 else {"labels": labels, "path": path}
        for path, labels in rows
    ]
    return "".join(f"{json.dumps(line)}\n" for line in lines)


def as_csv(rows: Rows) -> str:
    out = io.StringIO()
    csv.writer(out).writerows([("Path", "LABEL"), *((path, ",".join(labels) or NO_LABEL) for path, labels in rows)])
    return out.getvalue()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            PATHS.filter(lambda path: path and path[0] not in "#{\"'"),
            st.lists(LABELS.filter(lambda label: label != NO_LABEL), max_size=3).map(tuple),
        ),
        min_size=1,
    )
)
def test_text_json_lines_and_csv_say_the_same(tmp_path: Path, rows: Rows) -> None:
    results = [listed(tmp_path, form(rows)) for form in (as_text, as_json, as_csv)]
    assert [path for path, _ in results[0]] == [path for path, _ in rows]
    assert results[0] == results[1] == results[2]


def test_json_lines_take_numbers_and_labels_with_commas(tmp_path: Path) -> None:
    lines = ['{"path": "a.jpg", "label": 7}', "", '{"path": "b.jpg", "labels": ["tench, Tinca tinca", "fish"], "x": 1}']
    assert listed(tmp_path, "\n".join(lines)) == [("a.jpg", ("7",)), ("b.jpg", ("fish", "tench, Tinca tinca"))]


def test_other_columns_of_a_csv_do_not_count_and_are_named(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    content = 'id,path,split,labels\n1,"a, b.jpg",train,"ant,red thing"\n2,c.jpg,val,-\n'
    assert listed(tmp_path, content) == [("a, b.jpg", ("ant", "red thing")), ("c.jpg", ())]
    assert "ignoring the list's columns other than path and label: id, split" in caplog.text


def test_a_path_whose_bytes_are_not_utf8_stays_that_path(tmp_path: Path) -> None:
    assert listed(tmp_path, b"caf\xe9.jpg cat\n") == [("caf\udce9.jpg", ("cat",))]


@pytest.mark.parametrize(
    ("content", "wanted"),
    [
        ("a.jpg cat\nb.jpg\n", "line 2: 'b.jpg'; wanted a path and labels"),
        ("a.jpg cat\n\tcat\n", "line 2: 'cat'; wanted a path and labels"),
        ("a.jpg a,,b\n", "line 1: 'a.jpg a,,b'; wanted a path and labels"),
        ("a\0.jpg cat\n", "line 1: .*; wanted a path and labels"),
        (b"a.jpg caf\xe9\n", "line 1: the class name .* is not UTF-8"),
        ('{"path": "a.jpg", "label": "cat"}\nb.jpg cat\n', "line 2: 'b.jpg cat' is not JSON; wanted JSON lines"),
        ('{"path": "a.jpg"}\n', "line 1: .*wanted JSON lines"),
        ('{"path": 3, "label": "cat"}\n', "line 1: .*wanted JSON lines"),
        ('{"path": "a.jpg", "label": "cat", "labels": []}\n', "line 1: .*wanted JSON lines"),
        ('{"path": "a.jpg", "label": null}\n', "line 1: its labels are .*wanted JSON lines"),
        ('{"path": "a.jpg", "label": true}\n', "line 1: its labels are .*wanted JSON lines"),
        ('{"path": "a.jpg", "labels": "cat"}\n', "line 1: its labels are cat; wanted JSON lines"),
        ('{"path": "\\ud800.jpg", "label": "cat"}\n', "line 1: the path .* is not UTF-8"),
        ('{"path": "", "label": "cat"}\n', "line 1: the path '' is empty"),
        ("path,label\na.jpg\n", "line 2: 'a.jpg'; wanted rows"),
        ("path,label\na.jpg,\n", "line 2: 'a.jpg,' lacks a label; wanted rows"),
        ('path,label\n"a.jpg,cat\n', "line 2: .*wanted rows"),
    ],
)
def test_a_line_that_is_none_is_named_with_what_was_wanted(content: str | bytes, wanted: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"^{tmp_path}/list, {wanted}"):
        listed(tmp_path, content)
